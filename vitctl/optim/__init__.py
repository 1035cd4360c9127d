"""The table of optimizers.

Each target is a function ``build(param_groups, *, lr, **options) -> torch.optim.Optimizer``, where every group has its
own ``weight_decay`` (see :mod:`vitctl.optim.groups`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitctl.optim.entry import ROLES as ROLES
from vitctl.optim.entry import TIMM as TIMM
from vitctl.optim.entry import OptimizerEntry as OptimizerEntry
from vitctl.registry import Option, Value, unknown

_ADAM_OPTIONS = {
    "beta1": Option(0.9, "decay rate of the mean of gradients", low=0, below=1),
    "beta2": Option(0.999, "decay rate of the mean of squared gradients", low=0, below=1),
    "eps": Option(1e-8, "term added to the denominator", low=0),
}
_ADAN_OPTIONS = {
    "beta1": Option(0.02, "weight of the new gradient in the running mean", above=0, high=1),
    "beta2": Option(0.08, "weight of the new gradient difference in its mean", above=0, high=1),
    "beta3": Option(0.01, "weight of the new squared gradient in its mean", above=0, high=1),
    "eps": Option(1e-8, "term added to the denominator", above=0),
}


def _muon_options(momentum: float, ns_steps: int, renormalize: str) -> dict[str, Option]:
    return {
        "momentum": Option(momentum, "momentum coefficient", low=0, below=1),
        "nesterov": Option(True, "Nesterov momentum"),
        "ns_steps": Option(ns_steps, "number of Newton-Schulz iterations", low=1, high=50),
        "renormalize": Option(
            renormalize,
            "weights to scale back to a fixed norm before each step",
            choices=("none", "convolutions", "all"),
        ),
    }


_ADAN_PAPER = "Xie et al. 2022, arXiv 2208.06677"

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "adam": OptimizerEntry(
        target="vitctl.optim.build:adam",
        summary="Adam with weight decay as L2 regularisation",
        options=_ADAM_OPTIONS,
        lr=1e-3,
        weight_decay=0.0,
        paper="Kingma and Ba 2015, arXiv 1412.6980",
    ),
    "adamw": OptimizerEntry(
        target="vitctl.optim.build:adamw",
        summary="Adam with decoupled weight decay",
        options=_ADAM_OPTIONS,
        lr=2e-3,
        weight_decay=0.05,
        paper="Loshchilov and Hutter 2019, arXiv 1711.05101",
    ),
    "sgd": OptimizerEntry(
        target="vitctl.optim.build:sgd",
        summary="stochastic gradient descent with momentum",
        options={
            "momentum": Option(0.9, "momentum coefficient", low=0, below=1),
            "nesterov": Option(True, "Nesterov momentum"),
        },
        lr=0.05,
        weight_decay=5e-4,
        paper="Sutskever et al. 2013",
    ),
    "adan": OptimizerEntry(
        target="vitctl.optim.build:adan",
        summary="Adan as in adan-pytorch, but multi-tensor; the paper's betas",
        options=_ADAN_OPTIONS,
        lr=1e-3,
        weight_decay=0.02,
        source="vitctl",
        paper=_ADAN_PAPER,
    ),
    "adan_pytorch": OptimizerEntry(
        target="vitctl.optim.build:adan_pytorch",
        summary="the adan-pytorch package's Adan; the paper's betas",
        options=_ADAN_OPTIONS,
        lr=1e-3,
        weight_decay=0.02,
        source="adan-pytorch",
        paper=_ADAN_PAPER,
    ),
    "adan_official": OptimizerEntry(
        target="vitctl.optim.build:adan_official",
        summary="the authors' Adan (sail-sg); betas are 1 - the paper's",
        options={
            "beta1": Option(0.98, "decay rate of the mean of gradients", low=0, below=1),
            "beta2": Option(0.92, "decay rate of the mean of gradient differences", low=0, below=1),
            "beta3": Option(0.99, "decay rate of the mean of squared gradients", low=0, below=1),
            "eps": Option(1e-8, "term added to the denominator", above=0),
            "no_prox": Option(False, "AdamW's weight decay instead of the proximal one"),
        },
        lr=2e-3,
        weight_decay=0.02,
        source="timm",
        paper=_ADAN_PAPER,
    ),
    "muon": OptimizerEntry(
        target="vitctl.optim.build:muon",
        summary="orthogonalised momentum for hidden matrices, AdamW elsewhere",
        options={
            "adamw_lr": Option(3e-3, "peak learning rate of the AdamW part", low=0),
            **_muon_options(0.95, 5, "none"),
            "beta1": Option(0.9, "AdamW's decay rate of the mean of gradients", low=0, below=1),
            "beta2": Option(0.99, "AdamW's decay rate of the mean of squared gradients", low=0, below=1),
            "eps": Option(1e-8, "term added to AdamW's denominator", low=0),
        },
        lr=0.02,
        weight_decay=0.01,
        source="vitctl",
        paper="Jordan 2024, https://kellerjordan.github.io/posts/muon",
        split_matrices=True,
        second_lr="adamw_lr",
    ),
    "muon_sgd": OptimizerEntry(
        target="vitctl.optim.build:muon_sgd",
        summary="orthogonalised momentum for hidden matrices, SGD elsewhere",
        options={
            "sgd_lr": Option(0.05, "peak learning rate of the SGD part", low=0),
            **_muon_options(0.6, 3, "convolutions"),
            "sgd_momentum": Option(0.85, "momentum coefficient of the SGD part", low=0, below=1),
        },
        lr=0.02,
        weight_decay=0.0,
        source="vitctl",
        paper="Jordan 2024, https://github.com/KellerJordan/cifar10-airbench",
        split_matrices=True,
        second_lr="sgd_lr",
    ),
    "lion": OptimizerEntry(
        target="vitctl.optim.build:lion",
        summary="sign of the momentum; lower rate, higher decay than AdamW",
        options={
            "beta1": Option(0.9, "weight of the mean of gradients in the update", low=0, below=1),
            "beta2": Option(0.99, "decay rate of the mean of gradients", low=0, below=1),
        },
        lr=3e-4,
        weight_decay=0.3,
        source="timm",
        paper="Chen et al. 2023, arXiv 2302.06675",
    ),
}
"""Optimizers that ``--opt`` accepts, besides ``timm/NAME``."""


def find_optimizer(opt: str) -> OptimizerEntry:
    """Return the entry of an optimizer; ``timm/NAME`` imports timm.

    Raises:
        RequestError: unknown optimizer.
    """
    if opt.startswith(TIMM):
        from vitctl.optim.timm_rows import timm_entry

        return timm_entry(opt)
    if opt not in OPTIMIZERS:
        raise unknown("--opt", opt, [*OPTIMIZERS, f"{TIMM}NAME"])
    return OPTIMIZERS[opt]


def doubtful_betas(opt: str, options: Mapping[str, Value]) -> str | None:
    """Return a warning if a beta seems to follow the other convention, else None.

    A beta is either the decay rate of a running mean (0.98) or the weight of a new gradient in it (0.02). It is
    doubtful if 0.5 is between it and its default.
    """
    table = find_optimizer(opt).options
    betas = [
        name
        for name in options
        if name in table
        and re.fullmatch(r"beta\d", name)
        and table[name].default is not None  # None: known to timm only
    ]
    pairs = {name: (float(options[name]), float(table[name].default)) for name in betas}
    doubtful = {name: pair for name, pair in pairs.items() if 0 < pair[0] < 1 and (pair[0] - 0.5) * (pair[1] - 0.5) < 0}
    if not doubtful:
        return None
    given = ", ".join(f"{name}={value:g} (default {default:g})" for name, (value, default) in doubtful.items())
    other = ",".join(f"{name}={1 - value:g}" for name, (value, _) in doubtful.items())
    return f"--opt {opt}: {given} looks like 1 - beta; if so, use {other}"
