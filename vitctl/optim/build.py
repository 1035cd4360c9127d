"""Builders of the optimizers in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vitctl import devices
from vitctl.errors import RequestError
from vitctl.optim import find_optimizer
from vitctl.optim.groups import param_groups, split_by_layer, split_by_role
from vitctl.registry import Value

Groups = list[dict[str, Any]]


def build_optimizer(
    opt: str,
    options: Mapping[str, Value],
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_all: bool = False,
    layer_decay: float = 1.0,
    lr_scale: Mapping[str, float] | None = None,
) -> Optimizer:
    """Build the optimizer ``opt`` for the parameters of ``model``.

    The learning rate of a group must be multiplied by its key ``lr_scale``, if any.

    Args:
        opt: a name in :data:`vitctl.optim.OPTIMIZERS`, or ``timm/NAME``.
        options: resolved values of all options of its entry.
        model: the network, already on its device.
        lr: peak learning rate.
        weight_decay: weight decay; see :func:`param_groups` for parameters without it.
        decay_all: decay every parameter.
        layer_decay: ratio of each layer's learning rate to the next layer's; see :func:`split_by_layer`.
        lr_scale: factors of the learning rate by role of the parameters; see :func:`split_by_role`.

    Raises:
        RequestError: unknown optimizer, a network that does not define the order of its layers, or a role that none of
            its trained parameters has.
    """
    entry = find_optimizer(opt)
    groups = param_groups(model, weight_decay, decay_all, split_matrices=entry.split_matrices)
    if layer_decay != 1:
        groups = split_by_layer(groups, model, layer_decay)
    if lr_scale:
        groups = split_by_role(groups, model, lr_scale)
    optimizer: Optimizer = entry.load()(groups, lr=lr, **options)
    return optimizer


def _fused(groups: Groups) -> bool:
    """Return whether torch has fused kernels for these parameters; they are ten times as fast as a loop."""
    return all(devices.has_fused_optimizers(p.device) and torch.is_floating_point(p) for p in groups[0]["params"])


def adam(groups: Groups, *, lr: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Build Adam (Kingma and Ba 2015); weight decay is added to the gradient."""
    return Adam(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=_fused(groups))


def adamw(groups: Groups, *, lr: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Build AdamW (Loshchilov and Hutter 2019)."""
    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=_fused(groups))


def sgd(groups: Groups, *, lr: float, momentum: float, nesterov: bool) -> Optimizer:
    """Build stochastic gradient descent; ``nesterov`` is ignored without momentum."""
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=_fused(groups))


def adan(groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float) -> Optimizer:
    """Build the multi-tensor version of adan-pytorch's Adan."""
    from vitctl.optim.adan import Adan

    return Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps)


def adan_pytorch(groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float) -> Optimizer:
    """Build the adan-pytorch package's Adan."""
    from adan_pytorch import Adan

    optimizer: Optimizer = Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps)
    return optimizer


def adan_official(
    groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float, no_prox: bool
) -> Optimizer:
    """Build timm's version of the authors' Adan (https://github.com/sail-sg/Adan)."""
    from timm.optim import Adan

    optimizer: Optimizer = Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps, no_prox=no_prox, foreach=True)
    return optimizer


def lion(groups: Groups, *, lr: float, beta1: float, beta2: float) -> Optimizer:
    """Build timm's version of Lion (Chen et al. 2023)."""
    from timm.optim import Lion

    optimizer: Optimizer = Lion(groups, lr=lr, betas=(beta1, beta2), foreach=True)
    return optimizer


def muon(
    groups: Groups,
    *,
    lr: float,
    adamw_lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    **matrix_options: Any,
) -> Optimizer:
    """Build Muon for the groups of hidden matrices, with AdamW and its own learning rate for the rest.

    Args:
        groups: parameter groups, which have the key ``parts``.
        lr: learning rate of the hidden matrices.
        adamw_lr: learning rate of the rest.
        beta1: AdamW's first beta.
        beta2: AdamW's second beta.
        eps: AdamW's epsilon.
        matrix_options: options of :class:`~vitctl.optim.muon.Muon` for the hidden matrices.

    Raises:
        RequestError: no group has hidden matrices.
    """
    from vitctl.optim.muon import Muon

    _set_second_lr(groups, lr, adamw_lr, "muon", "adamw")
    return Muon(groups, lr=lr, betas=(beta1, beta2), eps=eps, **matrix_options)


def muon_sgd(groups: Groups, *, lr: float, sgd_lr: float, sgd_momentum: float, **matrix_options: Any) -> Optimizer:
    """Build Muon for the groups of hidden matrices, with SGD and its own learning rate for the rest.

    Args:
        groups: parameter groups, which have the key ``parts``.
        lr: learning rate of the hidden matrices.
        sgd_lr: learning rate of the rest.
        sgd_momentum: momentum coefficient of the rest.
        matrix_options: options of :class:`~vitctl.optim.muon.Muon` for the hidden matrices.

    Raises:
        RequestError: no group has hidden matrices.
    """
    from vitctl.optim.muon import Muon

    _set_second_lr(groups, lr, sgd_lr, "muon_sgd", "sgd")
    return Muon(groups, lr=lr, sgd_momentum=sgd_momentum, **matrix_options)


def _set_second_lr(groups: Groups, lr: float, second_lr: float, opt: str, second: str) -> None:
    """Set the learning rate of the groups without hidden matrices, which the optimizer ``second`` updates.

    Raises:
        RequestError: no group has hidden matrices.
    """
    if not any(group["parts"] for group in groups):
        raise RequestError(
            f"--opt {opt} has no effect here: none of the trained parameters is a hidden matrix",
            hint=f"use --opt {second}",
        )
    for group in groups:
        if not group["parts"]:
            # The schedule sets the rate of every group relative to lr.
            group["lr_scale"] = group.get("lr_scale", 1.0) * (second_lr / lr if lr else 1.0)
            group["lr"] = second_lr
