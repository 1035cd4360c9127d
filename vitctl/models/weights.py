"""How the weights of a new network are drawn, where its families agree on it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def draw_weights(model: nn.Module, init: str, embeddings: Iterable[nn.Parameter | None] = ()) -> None:
    """Draw the weights of ``model`` anew, from torch's global random state.

    Args:
        model: its linear layers and convolutions are drawn; norms keep their ones and zeros.
        init: ``vit`` (linear layers and embeddings from a normal of std 0.02 cut at two, no bias; convolutions are
            left as they are) or ``predecessor`` (linear layers and convolutions as torch draws them, embeddings from
            N(0, 1)).
        embeddings: learned positions and class tokens; None stands for one that the network does not have.
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


def sincos_positions(side: int, dim: int) -> Tensor:
    """Return float ``[side * side, dim]``: sines and cosines of columns, then of rows, at ``dim / 4`` frequencies.

    The frequencies fall geometrically from 1 to 1/10000. ``dim`` is a multiple of 4 and at least 8.
    """
    frequencies = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4 - 1))
    angles = torch.arange(side)[:, None] * frequencies  # [side, dim / 4]
    rows = angles.repeat_interleave(side, dim=0)  # [side * side, dim / 4]
    columns = angles.repeat(side, 1)  # [side * side, dim / 4]
    return torch.cat((columns.sin(), columns.cos(), rows.sin(), rows.cos()), dim=1)


def spread(weight: Tensor) -> None:
    """Draw the weight ``[E, D]`` of a linear layer so that what it puts out is as large as what it takes in."""
    nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
