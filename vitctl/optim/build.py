"""The builders that the table of optimizers names, and :func:`build_optimizer` over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vitctl import devices
from vitctl.errors import RequestError
from vitctl.optim import find_optimizer
from vitctl.optim.groups import param_groups, split_by_layer
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
) -> Optimizer:
    """Build the optimizer ``opt`` over the parameters of ``model``.

    Args:
        opt: a name of :data:`vitctl.optim.OPTIMIZERS`, or ``timm/NAME``.
        options: every option of its row, resolved.
        model: already on its device.
        lr: peak learning rate. A group with a key ``lr_scale`` is to be trained with that many times the rate.
        weight_decay: as the optimizer understands it; see :func:`param_groups` for what is spared.
        decay_all: decay every parameter.
        layer_decay: learning rate of each layer over that of the next; see :func:`split_by_layer`.

    Raises:
        RequestError: no such optimizer, or a network whose layers are not known.
    """
    entry = find_optimizer(opt)
    groups = param_groups(model, weight_decay, decay_all, split_matrices=entry.split_matrices)
    if layer_decay != 1:
        groups = split_by_layer(groups, model, layer_decay)
    optimizer: Optimizer = entry.load()(groups, lr=lr, **options)
    return optimizer


def _fused(groups: Groups) -> bool:
    """Whether torch has fused kernels for these parameters; they are an order faster than a loop over them."""
    return all(devices.has_fused_optimizers(p.device) and torch.is_floating_point(p) for p in groups[0]["params"])


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
    """Adan as the adan-pytorch package computes it, over all parameters at once."""
    from vitctl.optim.adan import Adan

    return Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps)


def adan_pytorch(groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float) -> Optimizer:
    """The adan-pytorch package's Adan."""
    from adan_pytorch import Adan

    optimizer: Optimizer = Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps)
    return optimizer


def adan_official(
    groups: Groups, *, lr: float, beta1: float, beta2: float, beta3: float, eps: float, no_prox: bool
) -> Optimizer:
    """Adan as its authors compute it (https://github.com/sail-sg/Adan), in timm's version."""
    from timm.optim import Adan

    optimizer: Optimizer = Adan(groups, lr=lr, betas=(beta1, beta2, beta3), eps=eps, no_prox=no_prox, foreach=True)
    return optimizer


def lion(groups: Groups, *, lr: float, beta1: float, beta2: float) -> Optimizer:
    """Lion (Chen et al. 2023), in timm's version."""
    from timm.optim import Lion

    optimizer: Optimizer = Lion(groups, lr=lr, betas=(beta1, beta2), foreach=True)
    return optimizer


def muon(
    groups: Groups,
    *,
    lr: float,
    adamw_lr: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> Optimizer:
    """Muon over the groups of hidden matrices, AdamW with a rate of its own over the rest."""
    from vitctl.optim.muon import Muon

    if not any(group["parts"] for group in groups):
        raise RequestError(
            "--opt muon finds no hidden matrix or inner convolution among what is trained, so that --lr would do nothing; take "
            "--opt adamw"
        )
    for group in groups:
        if not group["parts"]:
            # Relative to lr, which the schedule moves for all groups.
            group["lr_scale"] = group.get("lr_scale", 1.0) * (adamw_lr / lr if lr else 1.0)
            group["lr"] = adamw_lr
    return Muon(groups, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, betas=(beta1, beta2), eps=eps)
