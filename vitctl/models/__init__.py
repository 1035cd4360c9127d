"""The networks: a table of names, each one file away from its code.

A network is a function ``build(*, img_size, in_chans, num_classes, **options) -> nn.Module`` whose module maps
normalised pictures, float ``[B, C, H, W]``, to logits ``[B, K]``. ``options`` are those of its row here, and what the
row holds fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vitctl.errors import RequestError
from vitctl.registry import Entry, Option, Value, lookup

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """A network of the table.

    Attributes:
        fixed: arguments of the function that tell this row from others of the same function; no options.
        family: what it is kin to, for listings.
        params: parameters at 10 classes and 32 px, in all.
        mflop: one forward pass of one 32-px picture; a multiply-add counts as two, attention products included. Those
            of the ViTs are 11 to 15 % below the predecessor's, which computed tokens in its last block that its head
            never saw.
        tokens: length of the sequence at 32 px, 0 for convolutional networks.
        img_size: the picture size to use when nobody asks for another.
        batchnorm: a batch must not be cut into pieces, as the statistics would change.
        paper: where it was described.
    """

    fixed: Mapping[str, Value] = field(default_factory=dict)
    family: str
    params: int
    mflop: float
    tokens: int = 0
    img_size: int = 32
    batchnorm: bool = False
    paper: str = ""

    def check_size(self, name: str, options: Mapping[str, Value], img_size: int) -> None:
        """Refuse a picture size that the network cannot take, and options that do not go together.

        Args:
            name: what the network is called.
            options: every option of its row, resolved.
            img_size: side of the square pictures, in pixels.

        Raises:
            RequestError: the patch does not divide the size, or the number of heads the width (the message lists
                those that do), or the MLP would have no hidden unit.
        """
        patch = options.get("patch_size")
        if isinstance(patch, int) and img_size % patch:
            raise RequestError(
                f"--patch {patch} does not divide --size {img_size} ({name}); patches that do: {_divisors(img_size)}"
            )
        width, heads, ratio = options.get("embed_dim"), options.get("num_heads"), options.get("mlp_ratio")
        if isinstance(width, int) and isinstance(heads, int) and "head_dim" not in options and width % heads:
            raise RequestError(
                f"--net {name}:num_heads={heads} does not divide embed_dim={width}; numbers of heads that do: "
                f"{_divisors(width)}"
            )
        if isinstance(width, int) and isinstance(ratio, float) and int(width * ratio) < 1:
            raise RequestError(
                f"--net {name}:mlp_ratio={ratio:g} leaves no hidden unit at embed_dim={width}; the least is {math.ceil(1000 / width) / 1000:g}"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _vit_options(depth: int = 6, num_heads: int = 8, mlp_ratio: float = 1.0) -> dict[str, Option]:
    return {
        "patch_size": Option(4, "side of a patch in pixels", low=1),
        "embed_dim": Option(512, "width of the tokens", low=8),
        "depth": Option(depth, "number of blocks", low=1),
        "num_heads": Option(num_heads, "attention heads", low=1),
        "head_dim": Option(64, "width of a head", low=1),
        "mlp_ratio": Option(mlp_ratio, "hidden width of the MLP over embed_dim", low=0.01),
        "dropout": Option(0.1, "dropout after each projection", low=0, below=1),
        "emb_dropout": Option(0.1, "dropout on the embedded tokens", low=0, below=1),
        "drop_path_rate": Option(
            0.0, "stochastic depth of the last block; earlier ones less, linearly", low=0, below=1
        ),
        "pool": Option("cls", "what the head sees: the class token, or the mean of the tokens", choices=("cls", "avg")),
        "init": Option(
            "vit",
            "vit: normal of std 0.02; predecessor: torch's layers, embeddings N(0, 1)",
            choices=("vit", "predecessor"),
        ),
    }


def _cct_options(depth: int, embed_dim: int, num_heads: int, mlp_ratio: float) -> dict[str, Option]:
    return {
        "embed_dim": Option(embed_dim, "width of the tokens", low=8),
        "depth": Option(depth, "number of blocks", low=1),
        "num_heads": Option(num_heads, "attention heads", low=1),
        "mlp_ratio": Option(mlp_ratio, "hidden width of the MLP over embed_dim", low=0.01),
        "conv_layers": Option(2, "convolutions of the tokenizer, each followed by a pooling", low=1, high=4),
        "conv_kernel": Option(3, "side of their kernels", low=1),
        "conv_width": Option(64, "channels of all but the last of them", low=1),
        "dropout": Option(0.0, "dropout on the embedded tokens and after each projection", low=0, below=1),
        "attn_dropout": Option(0.0, "dropout on the attention weights", low=0, below=1),
        "drop_path_rate": Option(
            0.0, "stochastic depth of the last block; earlier ones less, linearly", low=0, below=1
        ),
    }


_VIT_PAPER = "Dosovitskiy et al. 2021, arXiv 2010.11929"
_SMALL_PAPER = "Lee et al. 2021, arXiv 2112.13492"
_CCT_PAPER = "Hassani et al. 2021, arXiv 2104.05704"
_RESNET_PAPER = "He et al. 2016, arXiv 1512.03385"


def _cct(depth: int, embed_dim: int, num_heads: int, mlp_ratio: float, params: int, mflop: float) -> ModelEntry:
    return ModelEntry(
        target="vitctl.models.cct:cct",
        summary=f"compact convolutional transformer, {depth} blocks of width {embed_dim}, 3x3 tokenizer of 2 layers",
        options=_cct_options(depth, embed_dim, num_heads, mlp_ratio),
        family="cct",
        params=params,
        mflop=mflop,
        tokens=64,
        paper=_CCT_PAPER,
    )


MODELS: dict[str, ModelEntry] = {
    "vit": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="Vision Transformer, 6 blocks of width 512",
        options=_vit_options(),
        fixed={"small": False},
        family="vit",
        params=9_523_722,
        mflop=1139.2,
        tokens=65,
        paper=_VIT_PAPER,
    ),
    "vit_small": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="vit with shifted patch tokenization and locality self-attention",
        options=_vit_options(),
        fixed={"small": True},
        family="vit",
        params=9_622_512,
        mflop=1151.8,
        tokens=65,
        paper=_SMALL_PAPER,
    ),
    "vit_tiny": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="vit_small with 4 blocks, 6 heads and half the MLP",
        options=_vit_options(depth=4, num_heads=6, mlp_ratio=0.5),
        fixed={"small": True},
        family="vit",
        params=4_371_438,
        mflop=496.7,
        tokens=65,
        paper=_SMALL_PAPER,
    ),
    "cct_2": _cct(2, 128, 2, 1.0, 283_723, 70.7),
    "cct_4": _cct(4, 128, 2, 1.0, 482_123, 100.0),
    "cct_6": _cct(6, 256, 4, 2.0, 3_326_923, 506.9),
    "cct_7": _cct(7, 256, 4, 2.0, 3_853_259, 578.2),
    "res18": ModelEntry(
        target="vitctl.models.resnet:res18",
        summary="ResNet-18 with a 3x3 stem and no max-pooling",
        family="resnet",
        params=11_173_962,
        mflop=1110.8,
        batchnorm=True,
        paper=_RESNET_PAPER,
    ),
}
"""Every network that ``--net`` takes."""


def build_model(net: str, options: Mapping[str, Value], *, img_size: int, in_chans: int, num_classes: int) -> nn.Module:
    """Build the network ``net``.

    Args:
        net: a name of :data:`MODELS`.
        options: every option of its row, resolved.
        img_size: side of the square pictures, in pixels.
        in_chans: 1 for grey, 3 for colour.
        num_classes: K, the width of the logits.

    Returns:
        A module that maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``, initialised
        from torch's global random state.

    Raises:
        RequestError: the network is not registered, or cannot be built at this size or with these options.
    """
    from vitctl.models.dropout import replace_dropout
    from vitctl.models.linear import replace_linear

    entry: ModelEntry = lookup(MODELS, net, "--net")
    entry.check_size(net, options, img_size)
    arguments = {**entry.fixed, **options}
    model: nn.Module = entry.load()(img_size=img_size, in_chans=in_chans, num_classes=num_classes, **arguments)
    replace_dropout(model)
    replace_linear(model)
    return model
