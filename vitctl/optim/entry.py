"""Rows of the table of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitctl.registry import Entry, Value

TIMM = "timm/"
"""Prefix of the names of timm's optimizers."""


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry(Entry):
    """An optimizer of the table.

    Attributes:
        lr: default learning rate, unless a flag or recipe gives one.
        weight_decay: likewise.
        source: whose implementation runs.
        paper: where it was described.
        split_matrices: it wants hidden matrices in groups of their own (:func:`vitctl.optim.groups.hidden_matrices`).
        second_lr: the option that is the learning rate of what ``lr`` is not for; it scales with the network instead.
    """

    lr: float
    weight_decay: float
    source: str = "torch"
    paper: str = ""
    split_matrices: bool = False
    second_lr: str | None = None

    def check_rate(self, lr: float, weight_decay: float, options: Mapping[str, Value]) -> None:
        """Raise RequestError where the optimizer refuses a rate or a decay that the flags allow; those of the table take all."""
