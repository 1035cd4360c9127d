"""Which parameters weight decay applies to, and which learn more slowly."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitctl.errors import RequestError

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


def split_by_layer(groups: list[dict[str, Any]], model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Split ``groups`` by layer, each with a ``lr_scale`` that the learning rate of its parameters is multiplied by.

    The head has 1, the layer before it ``layer_decay``, the one before that its square, and so on (Clark et al. 2020,
    arXiv 2003.10555; Bao et al. 2022). Which parameters follow which is what the network's ``group_matcher`` says, in
    timm's words.

    Raises:
        RequestError: the network has none.
    """
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise RequestError(
            f"--layer-decay {layer_decay:g}: the network does not say which of its layers follow which; leave it out"
        )
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    scales = {
        parameter: layer_decay ** (max(layers.values()) - layers[name]) for name, parameter in model.named_parameters()
    }
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales[parameter], []).append(parameter)
        split += [{**group, "params": part, "lr_scale": scale} for scale, part in parts.items()]
    return split
