"""What is measured on a device: the figures that the measuring makes and the report shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PARTS = ("data", "forward", "backward", "optimizer")
"""Of a training step."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of measured seconds."""

    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return those of ``values``, of which there is at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high, len(values))

    @property
    def spread(self) -> float:
        """The interquartile range, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Parity:
    """How far a device's arithmetic is from that of fp32 on a CPU, for the same weights and pictures.

    Attributes:
        logits: norm of the difference over norm of the CPU's.
        gradients: the same, over the gradients of all parameters taken together.
        tolerance: what either may be at most.
    """

    logits: float
    gradients: float
    tolerance: float

    @property
    def off(self) -> bool:
        """Whether the arithmetic is off; a figure that is not a number is."""
        return not (self.logits <= self.tolerance and self.gradients <= self.tolerance)


@dataclass
class Figures:
    """What was measured on a device.

    Attributes:
        label: what it is called.
        device: torch's name of it, or None where it is not there.
        device_name: its maker's name.
        missing: why it is not there, or empty.
        batch: pictures of a step.
        epoch_images: pictures of an epoch.
        micro_batch: pictures run at once.
        precision: of the arithmetic.
        threads: of the CPU.
        initial: seconds of the first step, and what the first piece of all took longer than the second.
        steps: seconds of those that count.
        pieces: seconds of micro-batches, where a step is long; their spread is that of the steps.
        step: seconds of a step, stabilized.
        validation: seconds of evaluating 100 pictures.
        split: seconds of a step spent on each of :data:`PARTS`, medians.
        images_per_second: trained pictures.
        gflops: floating-point operations of forward and backward, 10^9 a second; backward counts as two forwards.
        gemm_gflops: what matrix products of the network's own shapes reach at most.
        peak_memory: bytes; of the process on CPU and MPS, so over all devices until then.
        compile_time: seconds, or None.
        parity: against the CPU.
        epoch_time: seconds of an epoch; extrapolated unless ``trained`` is there.
        trained: the summary of a real run, or None.
        failed: why the real run failed, or empty.
        others: share of the machine's CPU time that other processes took while it was measured, or None where unknown.
    """

    label: str
    device: str | None
    device_name: str = ""
    missing: str = ""
    batch: int = 0
    epoch_images: int = 0
    micro_batch: int = 0
    precision: str = ""
    threads: int = 0
    initial: float = 0.0
    steps: list[float] = field(default_factory=list)
    pieces: list[float] = field(default_factory=list)
    step: Quartiles | None = None
    validation: Quartiles | None = None
    split: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    gflops: float = 0.0
    gemm_gflops: float = 0.0
    peak_memory: int = 0
    compile_time: float | None = None
    parity: Parity | None = None
    epoch_time: float | None = None
    trained: dict[str, Any] | None = None
    failed: str = ""
    others: float | None = None
