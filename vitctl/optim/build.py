"""The builders that the table of optimizers names, and :func:`build_optimizer` over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vitctl.optim import OPTIMIZERS
from vitctl.optim.groups import param_groups, split_by_layer
from vitctl.registry import Value, lookup

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
) -> Optimizer:
    """Build the optimizer ``opt`` over the parameters of ``model``.

    Args:
        opt: a name of :data:`vitctl.optim.OPTIMIZERS`.
        options: every option of its row, resolved.
        model: already on its device.
        lr: peak learning rate.
        weight_decay: as the optimizer understands it; see :func:`param_groups` for what is spared.
        decay_all: decay every parameter.
        layer_decay: learning rate of each layer over that of the next; see :func:`split_by_layer`.

    Raises:
        RequestError: no such optimizer, or a network whose layers are not known.
    """
    entry = lookup(OPTIMIZERS, opt, "--opt")
    groups = param_groups(model, weight_decay, decay_all)
    if layer_decay != 1:
        groups = split_by_layer(groups, model, layer_decay)
    optimizer: Optimizer = entry.load()(groups, lr=lr, **options)
    return optimizer


def _fused(groups: Groups) -> bool:
    """Whether torch has fused kernels for the device; they are an order faster than the loop over parameters."""
    return all(p.device.type in ("cpu", "cuda", "mps") and torch.is_floating_point(p) for p in groups[0]["params"])


def adam(groups: Groups, *, lr: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient."""
    return Adam(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=_fused(groups))


def adamw(groups: Groups, *, lr: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=_fused(groups))


def sgd(groups: Groups, *, lr: float, momentum: float, nesterov: bool) -> Optimizer:
    """Stochastic gradient descent; ``nesterov`` needs momentum."""
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=_fused(groups))


def adan(groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float) -> Optimizer:
    """Adan (Xie et al. 2022, arXiv 2208.06677) as the adan-pytorch package computes it."""
    from adan_pytorch import Adan

    optimizer: Optimizer = Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps)
    return optimizer
