"""Parameter groups: weight decay, learning rates per layer and per role, and hidden matrices for Muon."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vitctl.errors import RequestError
from vitctl.optim.entry import ROLES
from vitctl.registry import or_list

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Normalisation layers."""

NO_DECAY = ("pos_embed", "cls_token", "dist_token", "reg_token", "temperature", "relative_position_bias_table")
"""Last name components of parameters that are never decayed, whatever their shape."""

STACKED = {"qkv": 3, "to_qkv": 3, "kv": 2, "to_kv": 2}
"""Number of matrices stacked row-wise in the weight of a linear layer, by the last component of its name.

A few of timm's networks order the rows by head instead; their weights are split into groups of heads.
"""


def param_groups(
    model: nn.Module, weight_decay: float, decay_all: bool = False, *, split_matrices: bool = False
) -> list[dict[str, Any]]:
    """Return the trained parameters of ``model`` in groups with and without weight decay.

    Biases, embeddings, learned temperatures and the parameters of norms are not decayed, as shrinking them does not
    regularise.

    Args:
        model: the network.
        weight_decay: weight decay of the groups that have it.
        decay_all: decay every parameter.
        split_matrices: put hidden matrices into separate groups. The key ``parts`` of a group is then the number of
            matrices stacked in each of its parameters (see :func:`hidden_matrices`), 0 for other parameters.
    """
    undecayed = set() if decay_all else undecayed_names(model)
    parts = hidden_matrices(model) if split_matrices else {}
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in undecayed, parts.get(name, 0)), []).append(parameter)
    return [
        {"params": groups[without, count], "weight_decay": 0.0 if without else weight_decay}
        | ({"parts": count} if split_matrices else {})
        for without, count in sorted(groups)
    ]


def split_by_layer(groups: list[dict[str, Any]], model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Split ``groups`` by layer and give each a key ``lr_scale``, the factor of its learning rate.

    The factor is 1 for the head, ``layer_decay`` for the layer before it, ``layer_decay ** 2`` for the one before that,
    and so on (Clark et al. 2020, arXiv 2003.10555; Bao et al. 2022). The network's ``group_matcher()``, as in timm,
    defines the order of its layers.

    Raises:
        RequestError: the network has no ``group_matcher()``.
    """
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise RequestError(
            f"--layer-decay {layer_decay:g} needs the order of the layers, which this network does not define",
            hint="use --layer-decay 1",
        )
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    scales = {
        parameter: layer_decay ** (max(layers.values()) - layers[name]) for name, parameter in model.named_parameters()
    }
    return _split_by_scale(groups, scales)


def split_by_role(groups: list[dict[str, Any]], model: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Split ``groups`` by role and multiply the key ``lr_scale`` of each by the factor of its role.

    Args:
        groups: the groups of the trained parameters.
        model: the network.
        factors: factors by role (:data:`vitctl.optim.ROLES`); 1 for the other parameters.

    Raises:
        RequestError: no trained parameter has one of the roles.
    """
    roles = parameter_roles(model)
    trained = {roles[parameter] for group in groups for parameter in group["params"] if parameter in roles}
    for role, factor in factors.items():
        if role not in trained:
            known = or_list([each for each in ROLES if each in trained])
            raise RequestError(
                f"--lr-scale {role}={factor:g} does nothing: no trained parameter of this network has that role",
                hint=f"use only {known} in --lr-scale" if known else "remove --lr-scale",
            )
    return _split_by_scale(groups, {parameter: factors.get(role, 1.0) for parameter, role in roles.items()})


def _split_by_scale(groups: list[dict[str, Any]], scales: Mapping[nn.Parameter, float]) -> list[dict[str, Any]]:
    """Split ``groups`` by the factor of each parameter, 1 by default, and multiply their ``lr_scale`` by it."""
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        split += [
            {**group, "params": part, "lr_scale": group.get("lr_scale", 1.0) * scale} for scale, part in parts.items()
        ]
    return split


def parameter_roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the role of each parameter that has one of :data:`vitctl.optim.ROLES`.

    A module may name the roles of its parameters itself, with a method ``parameter_roles()`` that returns roles by the
    parameters' names within the module. They replace those that follow from the types of the layers.
    """
    hidden = hidden_matrices(model)
    roles = {
        parameter: "convolutions" if parameter.ndim > 2 else "matrices"
        for name, parameter in model.named_parameters()
        if name in hidden
    }
    roles |= {parameter: "head" for layer in _classifiers(model) for parameter in layer.parameters()}
    for module in model.modules():
        if isinstance(module, NORMS):
            roles |= {
                parameter: "norm_bias" if name == "bias" else "norm_weight"
                for name, parameter in module.named_parameters(recurse=False)
            }
    for module in model.modules():
        own = getattr(module, "parameter_roles", None)
        if callable(own):
            roles |= {module.get_parameter(name): role for name, role in own().items()}
    return roles


def undecayed_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters without weight decay.

    They are

    - biases and other parameters of fewer than two dimensions;
    - the parameters of norms and ``nn.Embedding``;
    - parameters whose last name component is in :data:`NO_DECAY`;
    - parameters that the network's ``no_weight_decay()`` or ``no_weight_decay_keywords()``, as in timm, lists;
    - vectors with further dimensions for broadcasting, such as a learned scale ``[1, 1, D]``.
    """
    listed = _names_from(model, "no_weight_decay")
    keywords = _names_from(model, "no_weight_decay_keywords")
    in_layers = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Embedding, *NORMS))
        for name, _ in module.named_parameters(recurse=False)
    }
    names = set()
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        vector = sum(side > 1 for side in parameter.shape) < 2 and last != "weight"
        if (
            parameter.ndim < 2
            or vector
            or last in NO_DECAY
            or name in in_layers
            or last == "bias"
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in listed)
            or any(keyword in name for keyword in keywords)
        ):
            names.add(name)
    return names


def _names_from(model: nn.Module, method: str) -> set[str]:
    function = getattr(model, method, None)
    return {str(name) for name in function()} if callable(function) else set()


def hidden_matrices(model: nn.Module) -> dict[str, int]:
    """Return the names of the parameters that Muon updates, each with the number of matrices stacked in it.

    They are the weights of linear layers and ungrouped convolutions, except

    - the first layer, which sees pixels (the patch embedding or the first convolution);
    - the classifier: timm's ``get_classifier()``, else the last layer;
    - weights with a single row or column.

    The order of the layers is that in which the model registers them. A fused projection counts as several matrices
    (:data:`STACKED`), as Jordan (2024) advises to orthogonalise queries, keys and values separately. The weight of a
    grouped convolution does not map between all channels, so it is excluded.
    """
    layers = list(_weights(model))
    if not layers:
        return {}
    excluded = {id(layers[0][1])} | {id(p) for layer in _classifiers(model) for p in layer.parameters()}
    return {
        name: stacked
        for name, weight, stacked in layers
        if stacked
        and id(weight) not in excluded
        and weight.shape[0] % stacked == 0
        and min(weight.shape[0] // stacked, weight[0].numel()) > 1
    }


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the classifier: timm's ``get_classifier()`` if they have parameters, else the last layer."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if callable(get_classifier) else None
    heads = [each for each in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(each, nn.Module)]
    if any(True for head in heads for _ in head.parameters()):
        return heads
    names = [name for name, *_ in _weights(model)]
    return [model.get_submodule(name.rpartition(".")[0]) for name in names[-1:]]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the weight name, weight and number of stacked matrices of each linear or convolutional layer.

    The number is 0 for a grouped convolution.
    """
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield f"{dot}in_proj_weight", module.in_proj_weight, 3
        elif isinstance(module, nn.Linear):
            yield f"{dot}weight", module.weight, STACKED.get(prefix.rpartition(".")[2], 1)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            yield f"{dot}weight", module.weight, 1 if module.groups == 1 else 0
