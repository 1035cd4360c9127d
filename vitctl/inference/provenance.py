"""What a network was trained on, so that it is measured on images that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The training data of a network; the fields are those of :class:`~vitctl.config.TrainConfig`.

    Attributes:
        dataset: name of the data set.
        val: what was held out, as ``--val``.
        val_fraction: share of the training set that was held out.
        split_seed: seed of the held-out part.
        limit_train: images of the training part that were used; None is all.
        flips: whether a mirrored image is still of its class.
    """

    dataset: str
    val: str
    val_fraction: float
    split_seed: int
    limit_train: int | None
    flips: bool

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
        )
