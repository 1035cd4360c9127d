"""Training data of a network, recorded so that it can be evaluated on images it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.config import TrainConfig
from vitctl.data.reading import FULL


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The training data of a network; the fields are those of :class:`~vitctl.config.TrainConfig`.

    Attributes:
        dataset: name of the data set.
        val: validation protocol, as ``--val``.
        val_fraction: share of the training set that was held out.
        split_seed: seeds the choice of the held-out images.
        limit_train: number of training images used; None for all.
        flips: whether a mirrored image keeps its class.
        fit: how its images became square.
        value_range: grey values of its 16-bit and float images that became black and white.
    """

    dataset: str
    val: str
    val_fraction: float
    split_seed: int
    limit_train: int | None
    flips: bool
    fit: str = "crop"
    value_range: str = FULL

    @classmethod
    def of(cls, config: TrainConfig) -> Provenance:
        """Return the provenance of a network trained with ``config``."""
        return cls(
            dataset=config.dataset,
            val=config.val,
            val_fraction=config.val_fraction,
            split_seed=config.split_seed,
            limit_train=config.limit_train,
            flips=config.flips,
            fit=config.fit,
            value_range=config.value_range,
        )
