"""Parameters, operations and output shapes of a network, counted on torch's ``meta`` device.

All figures are for a forward pass of one image in evaluation mode. Nothing is allocated or computed, and torch's random
state does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Build = Callable[[], nn.Module]
"""Builds the network to count; called under ``torch.device("meta")``."""


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of ``model``; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class ForwardCost:
    """Cost of a forward pass of one image.

    Attributes:
        mflop: 10^6 floating-point operations; a multiply-add counts as two. Attention products are included, as fused
            kernels, which would hide them from the counter, are not used on ``meta``.
        tokens: length of the sequence that enters the first module of ``blocks``, or 0. A feature map counts as the
            sequence of its positions if that module applies a LayerNorm to each position, as window transformers do.
    """

    mflop: float
    tokens: int


def forward_cost(build: Build, in_chans: int, img_size: int) -> ForwardCost:
    """Count the operations and tokens of one image of ``[in_chans, img_size, img_size]``."""
    counter = FlopCounterMode(display=False)
    lengths: list[int] = []

    def note(block: nn.Module, args: tuple[object, ...]) -> None:
        x = args[0] if args else None
        if lengths or not isinstance(x, Tensor):
            return
        norm = getattr(block, "norm1", None)
        if x.ndim == 3:
            lengths.append(x.shape[1])  # [B, N, D]
        elif x.ndim == 4 and _norm_of_positions(norm, x.shape[3]):
            lengths.append(x.shape[1] * x.shape[2])  # [B, H, W, D]

    def watch(name: str, module: nn.Module) -> None:
        if name == "blocks.0" or name.endswith(".blocks.0"):
            module.register_forward_pre_hook(note)

    _trace(build, in_chans, img_size, watch=watch, running=counter)
    return ForwardCost(mflop=float(counter.get_total_flops()) / 1e6, tokens=lengths[0] if lengths else 0)


def _norm_of_positions(norm: object, width: int) -> bool:
    """Return whether ``norm`` is a LayerNorm, torch's or timm's, over a last dimension of ``width``.

    timm's ``LayerNorm2d``, a subclass of torch's, normalises channels that are not last.
    """
    return isinstance(norm, nn.LayerNorm) and type(norm).__name__ == "LayerNorm" and norm.normalized_shape == (width,)


def activation_floats(build: Build, in_chans: int, img_size: int) -> int:
    """Return the size of the largest output of any module for one image of ``[in_chans, img_size, img_size]``.

    It indicates how much cache an image needs while a layer processes it.
    """
    largest = 0

    def note(module: nn.Module, args: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    _trace(build, in_chans, img_size, watch=lambda _, module: module.register_forward_hook(note))
    return largest


def matmul_lengths(build: Build, in_chans: int, img_size: int, batch: int) -> list[int]:
    """Return the number of terms of each sum in the matrix products of a training step, in order of computation.

    For the weight gradient of a linear layer it is images x tokens, for instance.

    Args:
        build: builds the network.
        in_chans: channels of the images.
        img_size: height and width of the images.
        batch: number of images.
    """
    recorder = _MatmulLengths()
    with torch.device("meta"):
        model = build().train()
        with recorder:
            model(torch.empty(batch, in_chans, img_size, img_size)).sum().backward()  # [B, C, H, W]
    return recorder.lengths


class _MatmulLengths(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the length of the inner dimension of each matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lengths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}.get(func._schema.name)
        if first is not None:
            self.lengths.append(args[first].shape[-1])
        return func(*args, **(kwargs or {}))


def most_images(build: Build, in_chans: int, img_size: int, longest: int) -> int:
    """Return the largest batch for which no sum of :func:`matmul_lengths` has more than ``longest`` terms.

    Returns:
        The number of images; 0 if a single image has longer sums.
    """
    two, three = (matmul_lengths(build, in_chans, img_size, batch) for batch in (2, 3))  # BatchNorm needs two
    most = longest
    for of_two, of_three in zip(two, three, strict=True):
        growing = of_three - of_two
        fixed = of_two - 2 * growing
        if fixed + growing > longest:
            return 0
        if growing:
            most = min(most, (longest - fixed) // growing)
    return most


@dataclass(frozen=True)
class LayerRow:
    """A row of a table of layers.

    Attributes:
        name: qualified name in the network.
        kind: name of the class.
        shape: shape of the output for one image; None if the output is not a tensor or the layer is not called.
        params: number of parameters.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    params: int


def layer_table(build: Build, in_chans: int, img_size: int) -> list[LayerRow]:
    """Return the children of a network in order, with lists and sequences replaced by their own children.

    Layers that have no parameters and are not called are left out.
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
    """Run the network for one image on ``meta``.

    Args:
        build: builds the network.
        in_chans: channels of the image.
        img_size: height and width of the image.
        watch: called with the name of each module and the module before the run, to register hooks.
        running: context manager for the run.
    """
    with torch.device("meta"), torch.no_grad():
        model = build().eval().requires_grad_(False)  # the counter fails on views of parameters that require gradients
        for name, module in model.named_modules():
            if watch is not None:
                watch(name, module)
        with running or nullcontext():
            model(torch.empty(1, in_chans, img_size, img_size))  # [1, C, H, W]
