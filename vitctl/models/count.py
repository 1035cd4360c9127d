"""What a network costs, found without running it: shapes pass through it on torch's ``meta`` device.

Every figure is for one image, forward, in evaluation mode. Nothing is allocated or computed, and torch's random
state is left as it was, so a count may be taken in the middle of anything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Build = Callable[[], nn.Module]
"""Makes the network to be counted; called under ``torch.device("meta")``."""

LAYER_NORMS = (nn.LayerNorm, LayerNorm)
"""Norms over the last dimension alone."""


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers the parameters of ``model`` hold, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class ForwardCost:
    """What one image costs.

    Attributes:
        mflop: of its way through the network, a multiply-add counted as two, attention products included: on ``meta``
            the fused kernels that hide them on a CPU do not exist.
        tokens: length of the sequence that enters the first block, 0 for a network without a sequence. Blocks are what
            the network keeps under the name ``blocks``. A map is a sequence of its positions where the first block
            normalises each of them by itself, as those of window transformers do.
    """

    mflop: float
    tokens: int


def forward_cost(build: Build, in_chans: int, img_size: int) -> ForwardCost:
    """Return what one image's way through the network costs.

    Args:
        build: makes the network.
        in_chans: C of the image.
        img_size: H and W of the image.
    """
    counter = FlopCounterMode(display=False)
    lengths: list[int] = []

    def note(block: nn.Module, args: tuple[object, ...]) -> None:
        x = args[0] if args else None
        if lengths or not isinstance(x, Tensor):
            return
        norm = getattr(block, "norm1", None)
        if x.ndim == 3:
            lengths.append(x.shape[1])  # [B, N, D]
        elif x.ndim == 4 and type(norm) in LAYER_NORMS and getattr(norm, "normalized_shape", ()) == (x.shape[3],):
            lengths.append(x.shape[1] * x.shape[2])  # [B, H, W, D]

    def watch(name: str, module: nn.Module) -> None:
        if name == "blocks.0" or name.endswith(".blocks.0"):
            module.register_forward_pre_hook(note)

    _trace(build, in_chans, img_size, watch=watch, running=counter)
    return ForwardCost(mflop=float(counter.get_total_flops()) / 1e6, tokens=lengths[0] if lengths else 0)


def activation_floats(build: Build, in_chans: int, img_size: int) -> int:
    """Return the greatest number of floats that any module of the network puts out for one image.

    It says how much of a fast memory one image needs while a layer works on it.

    Args:
        build: makes the network.
        in_chans: C of the image.
        img_size: H and W of the image.
    """
    greatest = 0

    def note(module: nn.Module, args: object, output: object) -> None:
        nonlocal greatest
        if isinstance(output, Tensor):
            greatest = max(greatest, output.numel())

    _trace(build, in_chans, img_size, watch=lambda _, module: module.register_forward_hook(note))
    return greatest


@dataclass(frozen=True)
class LayerRow:
    """A layer, as a table of them shows it.

    Attributes:
        name: within the network.
        kind: its class.
        shape: of what it puts out for one image; None where that is no tensor, or it is not reached.
        params: how many it holds.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    params: int


def layer_table(build: Build, in_chans: int, img_size: int) -> list[LayerRow]:
    """Return the layers of a network in their order: its children, and those of lists and sequences in their place.

    Layers that neither hold a parameter nor are reached are left out.

    Args:
        build: makes the network.
        in_chans: C of the image.
        img_size: H and W of the image.
    """
    layers: list[tuple[str, nn.Module]] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def gather(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                gather(f"{prefix}{name}.", child)
            else:
                layers.append((f"{prefix}{name}", child))

    def watch(name: str, module: nn.Module) -> None:
        if not name:
            gather("", module)

        def note(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(name, tuple(output.shape))

        module.register_forward_hook(note)

    _trace(build, in_chans, img_size, watch=watch)
    return [
        LayerRow(name, type(module).__name__, shapes.get(name), count_parameters(module))
        for name, module in layers
        if type(module) is not nn.Identity and (name in shapes or count_parameters(module))
    ]


def _trace(
    build: Build,
    in_chans: int,
    img_size: int,
    *,
    watch: Callable[[str, nn.Module], object] | None = None,
    running: AbstractContextManager[object] | None = None,
) -> None:
    """Pass the shape of one image through the network that ``build`` makes.

    Args:
        build: makes the network.
        in_chans: C of the image.
        img_size: H and W of the image.
        watch: called with each module and its name beforehand, to hang hooks on.
        running: held open while the network runs.
    """
    with torch.device("meta"), torch.no_grad():
        model = build().eval().requires_grad_(False)  # the counter stumbles over views of parameters that want one
        for name, module in model.named_modules():
            if watch is not None:
                watch(name, module)
        with running or nullcontext():
            model(torch.empty(1, in_chans, img_size, img_size))  # [1, C, H, W]
