"""Training data of a network, recorded so that it can be evaluated on images it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The training data of a network; most fields are those of :class:`~vitctl.config.TrainConfig`.

    Attributes:
        dataset: name of the data set.
        val: validation protocol, as ``--val``.
        val_fraction: share of the training set that was held out.
        split_seed: seeds the choice of the held-out images.
        holdout_by: how they were chosen, as ``--holdout-by``.
        test_fraction: share of a folder's images that are the test set, as ``--test-fraction``.
        limit_train: number of training images used; None for all.
        flips: whether a mirrored image keeps its class.
        data_sha256: digest of the images, see :attr:`vitctl.data.manifest.Manifest.digest`; empty if not recorded.
        fit: how its images became square.
        value_range: grey values of its 16-bit and float images that became black and white.
    """

    dataset: str
    val: str
    val_fraction: float
    split_seed: int
    holdout_by: str
    test_fraction: float | None
    limit_train: int | None
    flips: bool
    data_sha256: str
    fit: str
    value_range: str

    @classmethod
    def of(cls, config: TrainConfig, data_sha256: str) -> Provenance:
        """Return the provenance of a network trained with ``config`` on images with the digest ``data_sha256``."""
        return cls(
            dataset=config.dataset,
            val=config.val,
            val_fraction=config.val_fraction,
            split_seed=config.split_seed,
            holdout_by=config.holdout_by,
            test_fraction=config.test_fraction,
            limit_train=config.limit_train,
            flips=config.flips,
            data_sha256=data_sha256,
            fit=config.fit,
            value_range=config.value_range,
        )
