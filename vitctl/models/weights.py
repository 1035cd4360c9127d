"""Initial weights that several networks share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def init_weights(model: nn.Module, init: str, embeddings: Iterable[nn.Parameter | None] = ()) -> None:
    """Initialise ``model`` in place, from torch's global random state.

    Args:
        model: the network; its norms do not change.
        init: ``vit`` (linear layers and embeddings: normal with std 0.02, truncated at ±2; biases: zero; convolutions:
            unchanged) or ``predecessor`` (linear layers and convolutions: torch's default; embeddings: N(0, 1)).
        embeddings: position embeddings and class tokens; None is ignored.
    """
    for parameter in embeddings:
        if parameter is None:
            continue
        if init == "predecessor":
            nn.init.normal_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02)
    for module in model.modules():
        if init == "predecessor" and isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_batchnorm(model: nn.Module, *, momentum: float, scale: bool) -> None:
    """Set the momentum of every BatchNorm of ``model``, and whether its scale is learned or stays as it is.

    Args:
        model: the network.
        momentum: weight of a new batch in the running statistics.
        scale: whether to train the scale.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
            module.weight.requires_grad_(scale)


def sincos_positions(side: int, dim: int) -> Tensor:
    """Return a 2-D sin-cos position embedding, float ``[side * side, dim]``, in row-major order.

    It has the sines and cosines of columns, then those of rows, at ``dim / 4`` frequencies that fall geometrically from
    1 to 1/10000. ``dim`` is a multiple of 4 and at least 8.
    """
    frequencies = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4 - 1))
    angles = torch.arange(side)[:, None] * frequencies  # [side, dim / 4]
    rows = angles.repeat_interleave(side, dim=0)  # [side * side, dim / 4]
    columns = angles.repeat(side, 1)  # [side * side, dim / 4]
    return torch.cat((columns.sin(), columns.cos(), rows.sin(), rows.cos()), dim=1)


def init_preserving_scale(weight: Tensor) -> None:
    """Initialise the weight ``[E, D]`` of a linear layer with std ``D ** -0.5``: outputs are as large as inputs."""
    nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
