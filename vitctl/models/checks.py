"""Checks of image sizes and options before a network is built, without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vitctl.errors import RequestError
from vitctl.registry import Value, or_list


def divisors(number: int) -> str:
    """Return the divisors of ``number`` as a list for a hint, such as ``1, 2, 3 or 6``."""
    return or_list([str(n) for n in range(1, number + 1) if number % n == 0])


def multiples(number: int, near: int) -> str:
    """Return the multiples of ``number`` just below and above ``near``, for a hint."""
    return or_list([str(n) for n in (near // number * number, (near // number + 1) * number) if n])


def check_common(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check the rules for options that many networks share.

    Args:
        net: name of the network in messages.
        options: value of every option of the row.
        img_size: height and width of the images, in pixels.

    Raises:
        RequestError: the patch does not divide the size, or the number of heads the width, or the MLP would have no
            hidden unit.
    """
    patch = options.get("patch_size")
    if isinstance(patch, int) and img_size % patch:
        raise RequestError(
            f"--patch {patch} does not divide --size {img_size}",
            hint=f"use --patch {divisors(img_size)}, or --size {multiples(patch, img_size)}",
        )
    width, heads, ratio = options.get("embed_dim"), options.get("num_heads"), options.get("mlp_ratio")
    if isinstance(width, int) and isinstance(heads, int) and "head_dim" not in options and width % heads:
        raise RequestError(
            f"--net {net}:num_heads={heads} does not divide embed_dim={width}", hint=f"use num_heads={divisors(width)}"
        )
    if isinstance(width, int) and isinstance(ratio, float) and int(width * ratio) < 1:
        raise RequestError(
            f"--net {net}:mlp_ratio={ratio:g} leaves no hidden unit with embed_dim={width}",
            hint=f"use mlp_ratio={math.ceil(1000 / width) / 1000:g} or more",
        )


def check_swin(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check that windows tile every feature map, and that heads fill every width."""
    window, width, head_dim = (options[name] for name in ("window_size", "embed_dim", "head_dim"))
    assert isinstance(window, int) and isinstance(width, int) and isinstance(head_dim, int)
    if width % head_dim:
        raise RequestError(
            f"--net {net}:head_dim={head_dim} does not divide embed_dim={width}", hint=f"use head_dim={divisors(width)}"
        )
    if img_size % (8 * window):
        fitting = [str(w) for w in range(1, 17) if img_size % (8 * w) == 0]
        windows = f", or --net {net}:window_size={or_list(fitting[:4])}" if fitting else ""
        raise RequestError(
            f"--size {img_size} is not a multiple of {8 * window}, as --net {net}:window_size={window} requires",
            hint=f"use --size {multiples(8 * window, img_size)}{windows}",
        )


def check_hybrid(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check that a whitened patch, a pixel larger than its stride, fits into the image."""
    stride = options["stride"]
    assert isinstance(stride, int)
    if stride >= img_size:
        raise RequestError(
            f"--net {net}:stride={stride} needs images of {stride + 1} px or more, not --size {img_size}",
            hint=f"use stride={img_size - 1} or less, or --size {stride + 1}",
        )


def check_simplevit(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check that the width suits a 2-D sin-cos position embedding."""
    width = options["embed_dim"]
    assert isinstance(width, int)
    if width % 4:
        raise RequestError(
            f"--net {net}:embed_dim={width} is not a multiple of 4, as sin-cos positions require",
            hint=f"use embed_dim={multiples(4, width)}",
        )


def check_vit(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check that the width suits ``pos_init``."""
    if options.get("pos_init") == "sincos":
        check_simplevit(net, options, img_size)


def check_mlpmixer(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Check that the token MLP has a hidden unit."""
    patch, ratio = options["patch_size"], options["token_ratio"]
    assert isinstance(patch, int) and isinstance(ratio, float)
    tokens = (img_size // patch) ** 2
    if int(tokens * ratio) < 1:
        raise RequestError(
            f"--net {net}:token_ratio={ratio:g} leaves no hidden unit with {tokens} tokens",
            hint=f"use token_ratio={math.ceil(1000 / tokens) / 1000:g} or more",
        )
