"""Which parameters weight decay applies to, which learn more slowly, and which are hidden matrices."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vitctl.errors import RequestError

SPARED_NAMES = ("pos_embed", "cls_token", "dist_token", "reg_token", "temperature", "relative_position_bias_table")
"""Last parts of the names of parameters that are spared whatever their shape."""

STACKED = {"qkv": 3, "to_qkv": 3, "kv": 2, "to_kv": 2}
"""Linear layers whose weight is taken for that many matrices stacked row-wise, by the last part of their name.

A few of timm's networks lay them out head by head instead; there the pieces are groups of heads.
"""


def param_groups(
    model: nn.Module, weight_decay: float, decay_all: bool = False, *, split_matrices: bool = False
) -> list[dict[str, Any]]:
    """Return the parameters of ``model`` in groups, with and without weight decay.

    Biases, the parameters of norms, embeddings and learned temperatures are spared: pulling those towards zero does
    not regularise (Loshchilov and Hutter's decay is meant for the matrices).

    Args:
        model: with its parameters on their device.
        weight_decay: of the groups that are not spared.
        decay_all: decay every parameter.
        split_matrices: put hidden matrices into groups of their own and say by the key ``parts`` what a group holds:
            see :func:`hidden_matrices`; 0 is for the rest.
    """
    spared = set() if decay_all else spared_names(model)
    parts = hidden_matrices(model) if split_matrices else {}
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in spared, parts.get(name, 0)), []).append(parameter)
    return [
        {"params": groups[spare, count], "weight_decay": 0.0 if spare else weight_decay}
        | ({"parts": count} if split_matrices else {})
        for spare, count in sorted(groups)
    ]


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
        split += [
            {**group, "params": part, "lr_scale": group.get("lr_scale", 1.0) * scale} for scale, part in parts.items()
        ]
    return split


def spared_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay spares.

    They are biases and those of fewer than two dimensions; the parameters of norms and ``nn.Embedding``; those called as
    :data:`SPARED_NAMES`, or that timm's ``no_weight_decay()`` and ``no_weight_decay_keywords()`` name; and vectors that
    are shaped to broadcast, such as ``[1, 1, D]`` of a learned scale.
    """
    named = _called(model, "no_weight_decay")
    keywords = _called(model, "no_weight_decay_keywords")
    sparing = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, sparing)
        for name, _ in module.named_parameters(recurse=False)
    }
    spared = set()
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        vector = sum(side > 1 for side in parameter.shape) < 2 and last != "weight"
        if (
            parameter.ndim < 2
            or vector
            or last in SPARED_NAMES
            or name in norms
            or last == "bias"
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in named)
            or any(keyword in name for keyword in keywords)
        ):
            spared.add(name)
    return spared


def _called(model: nn.Module, method: str) -> set[str]:
    function = getattr(model, method, None)
    return {str(name) for name in function()} if callable(function) else set()


def hidden_matrices(model: nn.Module) -> dict[str, int]:
    """Return the names of the parameters that Muon moves, each with the number of matrices stacked in it.

    They are the weights of linear layers and of convolutions without groups, but for

    - the first such layer, which sees pixels (the patch embedding, the first convolution);
    - the classifier, by timm's ``get_classifier()``, else the last such layer;
    - weights of a single row or column.

    Layers count in the order in which the model registers them. Embeddings are no layers of this kind. A fused projection
    (:data:`STACKED`) is as many matrices as it is projections: Jordan 2024 advises to orthogonalise queries, keys and
    values apart. Grouped convolutions are left out, as their weight is no map between all channels.
    """
    layers = list(_weights(model))
    if not layers:
        return {}
    get_classifier = getattr(model, "get_classifier", None)
    heads = get_classifier() if callable(get_classifier) else None
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    classifier = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    outside = {id(layers[0][1])} | (classifier or {id(layers[-1][1])})
    return {
        name: stacked
        for name, weight, stacked in layers
        if stacked
        and id(weight) not in outside
        and weight.shape[0] % stacked == 0
        and min(weight.shape[0] // stacked, weight[0].numel()) > 1
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, weight and number of stacked matrices of every linear and convolutional layer; 0 where grouped."""
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield f"{dot}in_proj_weight", module.in_proj_weight, 3
        elif isinstance(module, nn.Linear):
            yield f"{dot}weight", module.weight, STACKED.get(prefix.rpartition(".")[2], 1)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            yield f"{dot}weight", module.weight, 1 if module.groups == 1 else 0
