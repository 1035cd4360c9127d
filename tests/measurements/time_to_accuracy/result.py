"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        name: row of the comparison.
        budget: seconds that the run was given; None if it has its own length.
        seed: seed of the run.
        seconds: wall time of the complete command.
        test_acc: test accuracy of the last weights, in percent.
        test_acc_tta: accuracy of the mean over an image and its mirror image.
        images: number of training images seen, counted in each epoch.
        mflop: cost of a forward pass of an image, in 10^6 floating-point operations.
        precision: ``fp32`` or ``bf16``.
        threads: CPU threads.
    """

    name: str
    budget: float | None
    seed: int
    seconds: float
    test_acc: float
    test_acc_tta: float
    images: int
    mflop: float
    precision: str
    threads: int

    @property
    def pflop(self) -> float:
        """Operations of the training in 10^15: three forward passes for each image."""
        return 3 * self.mflop * self.images / 1e9
