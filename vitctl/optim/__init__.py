"""The optimizers: a table of names.

An optimizer is a function ``build(param_groups, lr, weight_decay, **options) -> torch.optim.Optimizer``, where
``param_groups`` carry their own ``weight_decay`` (see :mod:`vitctl.optim.groups`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.registry import Entry, Option


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry(Entry):
    """An optimizer of the table.

    Attributes:
        lr: the learning rate to use when neither a flag nor a recipe says one.
        weight_decay: likewise.
        source: whose implementation runs.
    """

    lr: float
    weight_decay: float
    source: str = "torch"


_ADAM_OPTIONS = {
    "beta1": Option(0.9, "decay of the mean of gradients", low=0, below=1),
    "beta2": Option(0.999, "decay of the mean of squared gradients", low=0, below=1),
    "eps": Option(1e-8, "added to the denominator", low=0),
}

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "adam": OptimizerEntry(
        target="vitctl.optim.build:adam",
        summary="Adam; weight decay is L2 regularisation",
        options=_ADAM_OPTIONS,
        lr=1e-3,
        weight_decay=0.0,
    ),
    "adamw": OptimizerEntry(
        target="vitctl.optim.build:adamw",
        summary="Adam with decoupled weight decay",
        options=_ADAM_OPTIONS,
        lr=2e-3,
        weight_decay=0.05,
    ),
    "sgd": OptimizerEntry(
        target="vitctl.optim.build:sgd",
        summary="stochastic gradient descent with momentum",
        options={
            "momentum": Option(0.9, "share of the last update kept", low=0, below=1),
            "nesterov": Option(True, "look ahead along the momentum"),
        },
        lr=0.05,
        weight_decay=5e-4,
    ),
    "adan": OptimizerEntry(
        target="vitctl.optim.build:adan",
        summary="adaptive Nesterov momentum; betas as 1 - beta of the paper",
        options={
            "beta1": Option(0.02, "weight of a new gradient in its mean", low=0, high=1),
            "beta2": Option(0.08, "weight of a new gradient difference in its mean", low=0, high=1),
            "beta3": Option(0.01, "weight of a new square in its mean", low=0, high=1),
            "eps": Option(1e-8, "added to the denominator", low=0),
        },
        lr=1e-3,
        weight_decay=0.02,
        source="adan-pytorch",
    ),
}
"""Every optimizer that ``--opt`` takes."""
