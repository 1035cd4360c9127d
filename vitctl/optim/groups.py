"""Which parameters weight decay applies to."""

from __future__ import annotations

from typing import Any

from torch import nn

SPARED_NAMES = ("pos_embed", "cls_token", "temperature")
"""Last parts of the names of parameters that are spared whatever their shape."""


def param_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Return the parameters of ``model`` in at most two groups, with and without weight decay.

    Biases, the scales of norms, embeddings and learned temperatures are spared: pulling those towards zero does not
    regularise (Loshchilov and Hutter's decay is meant for the matrices). ``decay_all`` puts everything in one group.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spare = parameter.ndim < 2 or name.rpartition(".")[2] in SPARED_NAMES
        (spared if spare and not decay_all else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
