"""What the networks cannot do, said before they are built: sizes and options that do not go together. Light."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vitctl.errors import RequestError
from vitctl.registry import Value


def divisors(number: int) -> str:
    """Return the divisors of ``number``, as a list for a message."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def check_common(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Refuse what no network with these options can do.

    Args:
        net: what the network is called.
        options: every option of its row, resolved.
        img_size: side of the square images, in pixels.

    Raises:
        RequestError: the patch does not divide the size, or the number of heads the width (the message lists those
            that do), or the MLP would have no hidden unit.
    """
    patch = options.get("patch_size")
    if isinstance(patch, int) and img_size % patch:
        sizes = [size for size in (img_size // patch * patch, (img_size // patch + 1) * patch) if size]
        raise RequestError(
            f"--patch {patch} does not divide --size {img_size} ({net}); patches that do: {divisors(img_size)}; "
            f"sizes that it divides: {', '.join(map(str, sizes))}, ..."
        )
    width, heads, ratio = options.get("embed_dim"), options.get("num_heads"), options.get("mlp_ratio")
    if isinstance(width, int) and isinstance(heads, int) and "head_dim" not in options and width % heads:
        raise RequestError(
            f"--net {net}:num_heads={heads} does not divide embed_dim={width}; numbers of heads that do: {divisors(width)}"
        )
    if isinstance(width, int) and isinstance(ratio, float) and int(width * ratio) < 1:
        raise RequestError(
            f"--net {net}:mlp_ratio={ratio:g} leaves no hidden unit at embed_dim={width}; the least is "
            f"{math.ceil(1000 / width) / 1000:g}"
        )


def check_swin(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Refuse sizes whose maps the windows do not tile, and widths that are no whole number of heads."""
    window, width, head_dim = (options[name] for name in ("window_size", "embed_dim", "head_dim"))
    assert isinstance(window, int) and isinstance(width, int) and isinstance(head_dim, int)
    if width % head_dim:
        raise RequestError(
            f"--net {net}:embed_dim={width} is no multiple of head_dim={head_dim}; widths of heads that divide it: "
            f"{divisors(width)}"
        )
    if img_size % 8 or img_size % (8 * window):
        fitting = [w for w in range(1, 17) if img_size % (8 * w) == 0]
        windows = f", or --net {net}:window_size={' or '.join(map(str, fitting[:4]))}" if fitting else ""
        sizes = ", ".join(str(8 * window * i) for i in range(1, 5))
        raise RequestError(
            f"--size {img_size}: --net {net} with windows of {window} takes multiples of {8 * window} ({sizes}, ...){windows}"
        )


def check_simplevit(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Refuse widths that sines and cosines of two coordinates do not fill."""
    width = options["embed_dim"]
    assert isinstance(width, int)
    if width % 4:
        raise RequestError(
            f"--net {net}:embed_dim={width} is no multiple of 4, as its positions need; take {width // 4 * 4} or "
            f"{width // 4 * 4 + 4}"
        )


def check_vit(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Refuse, where learned positions start from sines and cosines, widths that these do not fill."""
    if options.get("pos_init") == "sincos":
        check_simplevit(net, options, img_size)


def check_mlpmixer(net: str, options: Mapping[str, Value], img_size: int) -> None:
    """Refuse an MLP between tokens without a hidden unit."""
    patch, ratio = options["patch_size"], options["token_ratio"]
    assert isinstance(patch, int) and isinstance(ratio, float)
    tokens = (img_size // patch) ** 2
    if int(tokens * ratio) < 1:
        raise RequestError(
            f"--net {net}:token_ratio={ratio:g} leaves no hidden unit at {tokens} tokens; the least is "
            f"{math.ceil(1000 / tokens) / 1000:g}"
        )
