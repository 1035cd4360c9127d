"""Entries of the table of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitctl.registry import Entry, Value

TIMM = "timm/"
"""Prefix of the names of timm's optimizers."""


ROLES = ("head", "matrices", "convolutions", "norm_weight", "norm_bias", "whitening_bias")
"""Roles of parameters whose learning rate ``--lr-scale`` multiplies by a factor.

``head`` is the classifier; ``matrices`` and ``convolutions`` are the weights of hidden linear and convolutional layers, as
Muon updates them (:func:`vitctl.optim.groups.hidden_matrices`). Parameters such as the biases of linear layers, embeddings
and the first layer's weight have no role. Networks can name the roles of their own parameters
(:func:`vitctl.optim.groups.parameter_roles`).
"""


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry(Entry):
    """An optimizer.

    Attributes:
        lr: default learning rate.
        weight_decay: default weight decay.
        source: package with the implementation.
        paper: reference.
        split_matrices: whether hidden matrices get separate groups (:func:`vitctl.optim.groups.hidden_matrices`).
        second_lr: option with the learning rate of parameters that ``lr`` does not apply to; of the two, only it is
            scaled to the network's width.
    """

    lr: float
    weight_decay: float
    source: str = "torch"
    paper: str = ""
    split_matrices: bool = False
    second_lr: str | None = None

    def check_rate(self, lr: float, weight_decay: float, options: Mapping[str, Value]) -> None:
        """Check a learning rate and weight decay for limits of the optimizer; those in the table have none.

        Raises:
            RequestError: the optimizer rejects one of them.
        """
