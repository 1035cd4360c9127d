"""Networks: a table of names, and functions to look them up and build them.

A row's target is a function ``build(*, img_size, in_chans, num_classes, **options) -> nn.Module``. The module maps
normalised images, float ``[B, C, H, W]``, to logits ``[B, K]``. ``options`` are the row's options and its fixed
arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitctl.errors import RequestError
from vitctl.models import checks
from vitctl.models.entry import TIMM as TIMM
from vitctl.models.entry import Measured as Measured
from vitctl.models.entry import ModelEntry as ModelEntry
from vitctl.recipes import RECIPES
from vitctl.registry import Option, Value, format_spec, or_list, unknown

if TYPE_CHECKING:
    from torch import nn


def _widths(
    embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, *, head_dim: int | None = None, least: int = 1
) -> dict[str, Option]:
    options = {
        "embed_dim": Option(embed_dim, "width of the tokens", low=8, high=16384),
        "depth": Option(depth, "number of blocks", low=least, high=1000),
        "num_heads": Option(num_heads, "number of attention heads", low=1),
    }
    if head_dim is not None:
        options["head_dim"] = Option(head_dim, "width of each attention head", low=1)
    return {**options, "mlp_ratio": Option(mlp_ratio, "hidden width of the MLP divided by embed_dim", low=0.01)}


def _patch(patch_size: int = 4) -> dict[str, Option]:
    return {"patch_size": Option(patch_size, "patch size in pixels", low=1)}


def _dropout(rate: float = 0.1, where: str = "after each projection", name: str = "dropout") -> dict[str, Option]:
    return {name: Option(rate, f"dropout rate {where}", low=0, below=1)}


_EMB_DROPOUT = _dropout(0.1, "on the embedded tokens", "emb_dropout")
_HEAD_DROPOUT = _dropout(0.0, "before the head")
_DROP_PATH = {"drop_path_rate": Option(0.0, "drop path rate of the last block, rising linearly from 0", low=0, below=1)}
_POOL = {"pool": Option("cls", "input of the head: class token or mean of the tokens", choices=("cls", "avg"))}
_INIT = {
    "init": Option("vit", "initial weights; predecessor: as in the original scripts", choices=("vit", "predecessor"))
}
_POS_INIT = {
    "pos_init": Option("normal", "initial position embedding: random or 2-D sin-cos", choices=("normal", "sincos"))
}
_HEAD_HIDDEN = {"head_hidden": Option(0, "hidden width of the head; 0: a single layer", low=0)}
_CONV_INIT = {
    "init": Option(
        "kaiming", "initial weights; predecessor: as in the original scripts", choices=("kaiming", "predecessor")
    )
}
_BATCHNORM = {
    "bn_momentum": Option(0.1, "weight of a new batch in BatchNorm's statistics", above=0, high=1),
    "bn_scale": Option(True, "learn BatchNorm's scale; false: it stays 1"),
}
_WIDTH = {"width": Option(64, "channels of the first stage, doubled in the next three", low=8)}

_VIT_PAPER = "Dosovitskiy et al. 2021, arXiv 2010.11929"
_SMALL_PAPER = "Lee et al. 2021, arXiv 2112.13492"
_COMPACT_PAPER = "Hassani et al. 2021, arXiv 2104.05704"
_CAIT_PAPER = "Touvron et al. 2021, arXiv 2103.17239"
_RESNET_PAPER = "He et al. 2016, arXiv 1512.03385"
_AIRBENCH_PAPER = "Jordan 2024, arXiv 2404.00498"
_HYBRID_PAPER = "Jordan 2024, arXiv 2404.00498; Xiao et al. 2021, arXiv 2106.14881"
_AUGREG_PAPER = "Steiner et al. 2022, arXiv 2106.10270"


def _class_token_note(mflop: float) -> str:
    """Return the note of a ViT whose last block computes only the class token."""
    return (
        f"{mflop:,.1f} MFLOP in the original scripts, where the last block computes all tokens; "
        "here, it does so only with pool=avg"
    )


def _vit_options(depth: int = 6, num_heads: int = 8, mlp_ratio: float = 1.0) -> dict[str, Option]:
    widths = _widths(512, depth, num_heads, mlp_ratio, head_dim=64)
    rates = {**_dropout(), **_EMB_DROPOUT, **_DROP_PATH}
    return {**_patch(), **widths, **rates, **_POOL, **_INIT, **_POS_INIT, **_HEAD_HIDDEN}


def _compact_options(depth: int, embed_dim: int, num_heads: int, mlp_ratio: float) -> dict[str, Option]:
    return {
        **_widths(embed_dim, depth, num_heads, mlp_ratio),
        **_dropout(0.0, "on the embedded tokens and each projection"),
        **_dropout(0.0, "on the attention weights", "attn_dropout"),
        **_DROP_PATH,
    }


def _cct(
    depth: int,
    embed_dim: int,
    num_heads: int,
    mlp_ratio: float,
    params: int,
    mflop: float,
    measured: Measured | None = None,
) -> ModelEntry:
    convolutions = {
        "conv_layers": Option(2, "tokenizer convolutions, each followed by max-pooling", low=1, high=4),
        "conv_kernel": Option(3, "kernel size of the tokenizer convolutions", low=1),
        "conv_width": Option(64, "channels of all tokenizer convolutions but the last", low=1),
    }
    return ModelEntry(
        target="vitctl.models.cct:cct",
        summary=f"CCT-{depth}/3x2, width {embed_dim}",
        options={**_compact_options(depth, embed_dim, num_heads, mlp_ratio), **convolutions},
        family="cct",
        params=params,
        mflop=mflop,
        tokens=64,
        paper=_COMPACT_PAPER,
        measured=measured,
    )


def _cait_options(num_heads: int, mlp_ratio: float) -> dict[str, Option]:
    return {
        **_patch(),
        **_widths(512, 6, num_heads, mlp_ratio, head_dim=64),
        "class_depth": Option(2, "number of class-attention layers", low=1),
        **_dropout(),
        **_EMB_DROPOUT,
        "layer_dropout": Option(0.05, "chance that an image skips a layer in training", low=0, below=1),
        **_INIT,
    }


def _resnet(layers: int, params: int, mflop: float, published_acc: float | None = None) -> ModelEntry:
    return ModelEntry(
        target="vitctl.models.resnet:resnet",
        summary=f"ResNet-{layers} for small images",
        options={**_WIDTH, **_HEAD_DROPOUT, **_DROP_PATH, **_CONV_INIT, **_BATCHNORM},
        fixed={"layers": layers},
        family="resnet",
        params=params,
        mflop=mflop,
        batchnorm=True,
        channels_last=("cpu", "cuda"),
        paper=_RESNET_PAPER,
        published_acc=published_acc,
    )


def _hybrid(
    width: int,
    growth: int,
    late_width: int,
    stride: int,
    depth: int,
    num_heads: int,
    params: int,
    mflop: float,
) -> ModelEntry:
    embed_dim, late_groups = width * growth, int(late_width > 0)
    convolutions = {
        "width": Option(width, "channels of the first group of convolutions", low=8),
        "growth": Option(
            growth, "factor of the channels from group to group before the blocks", low=1, high=8, earlier=2
        ),
        "groups": Option(2, "groups of two convolutions before the blocks, each with max-pooling", low=1, high=6),
        "late_groups": Option(late_groups, "groups of convolutions after the blocks", low=0, high=6, earlier=0),
        "late_width": Option(late_width or 2 * embed_dim, "channels of the groups after the blocks", low=8),
        "stride": Option(stride, "stride of the whitened patches, a pixel less than their side", low=1, high=8),
        "bn_momentum": Option(0.4, "weight of a new batch in BatchNorm's statistics", above=0, high=1),
    }
    return ModelEntry(
        target="vitctl.models.hybrid:hybrid",
        summary=f"{4 + 2 * late_groups} convs, {depth} blocks of width {embed_dim}",
        options={**_widths(embed_dim, depth, num_heads, 2.0, least=0), **convolutions},
        family="hybrid",
        params=params,
        mflop=mflop,
        tokens=49 if late_groups else 9,
        batchnorm=True,
        channels_last=("cpu", "cuda"),
        bf16=("cpu",),
        data_init="vitctl.models.whitening:whiten",
        check=checks.check_hybrid,
        paper=_HYBRID_PAPER,
    )


def _finetuned(
    size: str,
    embed_dim: int,
    num_heads: int,
    params: int,
    mflop: float,
    published_acc: float,
) -> ModelEntry:
    return ModelEntry(
        target="vitctl.models.finetune:vit_timm",
        summary=f"pretrained ViT-{size[0].upper()}/16, 384 px",
        options={**_patch(16), **_widths(embed_dim, 12, num_heads, 4.0), **_dropout(0.0), **_DROP_PATH},
        family="vit",
        params=params,
        mflop=mflop,
        tokens=577,
        img_size=384,
        weights=f"vit_{size}_patch16_384",
        pretrained=True,
        paper=_AUGREG_PAPER,
        published_acc=published_acc,
    )


MODELS: dict[str, ModelEntry] = {
    "vit": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="ViT, 6 blocks of width 512",
        options=_vit_options(),
        fixed={"kind": "vit"},
        family="vit",
        params=9_523_722,
        mflop=1139.2,
        tokens=65,
        check=checks.check_vit,
        paper=_VIT_PAPER,
        published_acc=80.0,
        note=_class_token_note(1281.9),
    ),
    "vit_small": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="ViT for small data sets",
        options=_vit_options(),
        fixed={"kind": "small"},
        family="vit",
        params=9_622_512,
        mflop=1151.8,
        tokens=65,
        check=checks.check_vit,
        paper=_SMALL_PAPER,
        published_acc=80.0,
        note=_class_token_note(1294.5),
    ),
    "vit_tiny": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="vit_small with 4 blocks",
        options=_vit_options(depth=4, num_heads=6, mlp_ratio=0.5),
        fixed={"kind": "small"},
        family="vit",
        params=4_371_438,
        mflop=496.7,
        tokens=65,
        check=checks.check_vit,
        paper=_SMALL_PAPER,
        note=_class_token_note(587.0),
    ),
    "simplevit": ModelEntry(
        target="vitctl.models.simplevit:simplevit",
        summary="ViT with fixed positions",
        options={**_patch(), **_widths(512, 6, 8, 1.0, head_dim=64), **_dropout(0.0), **_DROP_PATH, **_INIT},
        family="vit",
        params=9_486_858,
        mflop=1261.4,
        tokens=64,
        check=checks.check_simplevit,
        paper="Beyer et al. 2022, arXiv 2205.01580",
    ),
    "dyt": ModelEntry(
        target="vitctl.models.vit:vit",
        summary="ViT with Dynamic Tanh",
        options=_vit_options(),
        fixed={"kind": "dyt"},
        family="vit",
        params=9_523_735,
        mflop=1139.2,
        tokens=65,
        check=checks.check_vit,
        paper="Zhu et al. 2025, arXiv 2503.10622",
        published_acc=74.0,
        note=_class_token_note(1281.9),
    ),
    "cait": ModelEntry(
        target="vitctl.models.cait:cait",
        summary="CaiT, 6 + 2 layers",
        options=_cait_options(num_heads=8, mlp_ratio=1.0),
        family="cait",
        params=12_685_322,
        mflop=1408.5,
        tokens=64,
        paper=_CAIT_PAPER,
        published_acc=80.0,
        note="layer_dropout is drawn per image; the original scripts drew it per batch",
    ),
    "cait_small": ModelEntry(
        target="vitctl.models.cait:cait",
        summary="CaiT with 6 heads",
        options=_cait_options(num_heads=6, mlp_ratio=0.5),
        family="cait",
        params=8_488_522,
        mflop=954.8,
        tokens=64,
        paper=_CAIT_PAPER,
        note="layer_dropout is drawn per image; the original scripts drew it per batch",
    ),
    "swin": ModelEntry(
        target="vitctl.models.swin:swin",
        summary="Swin-T for small images",
        options={
            "window_size": Option(4, "window size in positions of the feature map", low=1),
            "embed_dim": Option(96, "width of the first stage, doubled in each later stage", low=8, high=4096),
            "depth": Option(6, "blocks of the third stage; other stages have 2", low=1, high=1000),
            "head_dim": Option(32, "width of each attention head; divides embed_dim", low=1),
            "mlp_ratio": Option(4.0, "hidden width of the MLP divided by the stage's width", low=0.01),
            **_dropout(0.0),
            **_DROP_PATH,
            **_INIT,
        },
        family="swin",
        params=26_598_646,
        mflop=1056.8,
        tokens=256,
        check=checks.check_swin,
        paper="Liu et al. 2021, arXiv 2103.14030",
        published_acc=90.0,
        note="26,601,718 parameters in the original scripts, which counted 3,072 untrained mask entries",
    ),
    "mlpmixer": ModelEntry(
        target="vitctl.models.mixers:mlpmixer",
        summary="MLP-Mixer, 6 blocks",
        options={
            **_patch(),
            "embed_dim": Option(512, "width of the tokens", low=8, high=16384),
            "depth": Option(6, "number of blocks", low=1, high=1000),
            "token_ratio": Option(4.0, "hidden width of the token MLP divided by the token count", low=0.01),
            "mlp_ratio": Option(0.5, "hidden width of the channel MLP divided by embed_dim", low=0.01),
            **_dropout(0.0, "after each layer of the MLPs"),
            "drop_path_rate": Option(0.0, "drop path rate of every block", low=0, below=1),
            **_INIT,
        },
        family="mixer",
        params=1_819_530,
        mflop=405.8,
        tokens=64,
        check=checks.check_mlpmixer,
        paper="Tolstikhin et al. 2021, arXiv 2105.01601",
        published_acc=88.0,
    ),
    "convmixer": ModelEntry(
        target="vitctl.models.mixers:convmixer",
        summary="ConvMixer, 16 blocks, kernel 8",
        options={
            **_patch(1),
            "embed_dim": Option(256, "number of channels", low=8, high=16384),
            "depth": Option(16, "number of blocks", low=1, high=1000),
            "kernel_size": Option(8, "kernel size of the depthwise convolutions", low=1),
            **_HEAD_DROPOUT,
        },
        family="mixer",
        params=1_339_402,
        mflop=2685.9,
        batchnorm=True,
        channels_last=("cpu",),
        paper="Trockman and Kolter 2022, arXiv 2201.09792",
        published_acc=96.3,
    ),
    "mobilevit": ModelEntry(
        target="vitctl.models.mobilevit:mobilevit",
        summary="MobileViT-XXS for small images",
        options={
            "variant": Option("xxs", "widths, as in the paper", choices=("xxs", "xs", "s")),
            "reduction": Option(8, "total stride: image size over last map's size (paper: 32)", choices=(4, 8, 16, 32)),
            **_dropout(0.0, "after each projection of the transformer blocks"),
        },
        family="mobilevit",
        params=1_014_672,
        mflop=153.4,
        tokens=64,
        batchnorm=True,
        channels_last=("cpu",),
        paper="Mehta and Rastegari 2022, arXiv 2110.02178",
        note="the original scripts need images of at least 64 px; their network is reduction=32",
    ),
    "cct_2": _cct(2, 128, 2, 1.0, 283_723, 70.7, Measured(acc=66.7, recipe="default, muon", epochs=1)),
    "cct_4": _cct(4, 128, 2, 1.0, 482_123, 100.0, Measured(acc=66.6, recipe="default", epochs=3)),
    "cct_6": _cct(6, 256, 4, 2.0, 3_326_923, 506.9),
    "cct_7": _cct(7, 256, 4, 2.0, 3_853_259, 578.2),
    "cvt": ModelEntry(
        target="vitctl.models.cct:patch_transformer",
        summary="CVT-7/4, sequence pooling",
        options={**_patch(), **_compact_options(7, 256, 4, 2.0)},
        fixed={"class_token": False},
        family="cct",
        params=3_716_363,
        mflop=500.8,
        tokens=64,
        paper=_COMPACT_PAPER,
    ),
    "vit_lite": ModelEntry(
        target="vitctl.models.cct:patch_transformer",
        summary="ViT-Lite-7/4, class token",
        options={**_patch(), **_compact_options(7, 256, 4, 2.0)},
        fixed={"class_token": True},
        family="cct",
        params=3_716_618,
        mflop=509.0,
        tokens=65,
        paper=_COMPACT_PAPER,
    ),
    "res18": _resnet(18, 11_173_962, 1110.8, 93.0),
    "res34": _resnet(34, 21_282_122, 2318.8),
    "res50": _resnet(50, 23_520_842, 2595.7),
    "res101": _resnet(101, 42_512_970, 5020.0),
    "vgg": ModelEntry(
        target="vitctl.models.vgg:vgg",
        summary="VGG-19 with BatchNorm",
        options={**_WIDTH, **_HEAD_DROPOUT, **_CONV_INIT, **_BATCHNORM},
        family="vgg",
        params=20_040_522,
        mflop=796.3,
        batchnorm=True,
        channels_last=("cpu", "cuda"),
        paper="Simonyan and Zisserman 2015, arXiv 1409.1556",
    ),
    "hybrid_tiny": _hybrid(64, 2, 0, 2, 4, 4, 818_152, 37.8),
    "hybrid_small": _hybrid(64, 3, 256, 1, 2, 4, 2_129_400, 241.5),
    "hybrid_base": _hybrid(96, 3, 384, 1, 2, 6, 4_769_880, 519.9),
    "airbench94": ModelEntry(
        target="vitctl.models.airbench:airbench",
        summary="CNN of CIFAR-10 speed records",
        options={
            "width": Option(64, "channels of the first group of convolutions", low=8),
            "width_ratio": Option(4, "channels of the two other groups divided by width", low=1),
        },
        family="airbench",
        params=1_972_792,
        mflop=236.3,
        batchnorm=True,
        channels_last=("cpu", "cuda"),
        bf16=("cpu",),
        data_init="vitctl.models.whitening:whiten",
        paper=_AIRBENCH_PAPER,
    ),
    "vit_timm": _finetuned("base", 768, 12, 86_098_186, 110_967.2, 98.5),
    "vit_small_timm": _finetuned("small", 384, 6, 21_815_434, 30_979.9, 97.5),
}
"""Networks for ``--net``, except those of timm."""


def find_model(net: str) -> ModelEntry:
    """Return the row of the network ``net``, a name of :data:`MODELS` or ``timm/NAME``.

    Raises:
        RequestError: unknown network; the hint suggests similar names.
    """
    if net.startswith(TIMM):
        from vitctl.models.timm_zoo import timm_entry

        return timm_entry(net)
    if net not in MODELS:
        raise unknown("--net", net, MODELS, f"run vitctl list-models, or use --net {TIMM}NAME for a network of timm")
    return MODELS[net]


def best_measured(name: str, entry: ModelEntry) -> Measured | None:
    """Return vitctl's best CIFAR-10 result with a network, from its row and the cards of all recipes.

    Cards of runs with ``max_steps`` and of recipes that set options of this network in ``--net`` do not count.
    """
    known = [
        Measured(acc=card.test_acc.mean, recipe=recipe, epochs=card.epochs)
        for recipe, each in RECIPES.items()
        if not str(each.settings["net"]).startswith(f"{name}:")
        for card in each.cards
        if card.dataset == "cifar10" and card.net == name and not card.max_steps
    ]
    known += [entry.measured] if entry.measured else []
    return max(known, key=lambda measured: measured.acc, default=None)


def table_row(name: str, entry: ModelEntry) -> dict[str, Any]:
    """Return a row of the table, as JSON values."""
    measured = best_measured(name, entry)
    return {
        "name": name,
        "family": entry.family,
        "params": entry.params,
        "mflop": entry.mflop,
        "tokens": entry.tokens,
        "img_size": entry.img_size,
        "published_acc": entry.published_acc,
        "measured_acc": measured.acc if measured else None,
        "measured_recipe": measured.recipe if measured else None,
        "measured_epochs": measured.epochs if measured else None,
        "pretrained": entry.weights or None,
        "summary": entry.summary,
        "paper": entry.paper,
        "note": entry.note,
        "options": {key: option.default for key, option in entry.options.items()},
    }


def build_model(net: str, options: Mapping[str, Value], *, img_size: int, in_chans: int, num_classes: int) -> nn.Module:
    """Build the network ``net``, with weights drawn from torch's global random state.

    Args:
        net: a name of :data:`MODELS`, or ``timm/NAME``.
        options: value of every option of the row.
        img_size: height and width of the images, in pixels.
        in_chans: 1 for greyscale, 3 for colour.
        num_classes: number of logits.

    Returns:
        A module that maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.

    Raises:
        RequestError: unknown network, impossible size or options, or not enough memory.
    """
    from vitctl.devices import is_out_of_memory
    from vitctl.models.dropout import replace_dropout
    from vitctl.models.linear import replace_linear

    entry = find_model(net)
    entry.check_size(net, options, img_size)
    arguments = {**entry.fixed, **options}
    try:
        model: nn.Module = entry.load()(img_size=img_size, in_chans=in_chans, num_classes=num_classes, **arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        smaller = [name for name in ("embed_dim", "width", "depth") if name in options]
        raise RequestError(
            f"--net {format_spec(net, options)} does not fit into memory",
            hint=f"use a smaller {or_list([*smaller, '--size'])}",
        ) from error
    replace_dropout(model)
    replace_linear(model)
    return model
