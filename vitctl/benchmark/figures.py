"""Measurements of a device, as shown in the report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PARTS = ("data", "forward", "backward", "optimizer")
"""Parts of a training step."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of measured seconds."""

    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Compute the quartiles of ``values``, which must not be empty."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high, len(values))

    @property
    def spread(self) -> float:
        """Interquartile range divided by the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Parity:
    """Numerical difference between a device and fp32 on a CPU, for the same weights and images.

    Attributes:
        logits: norm of the difference, divided by the norm of the CPU's logits.
        gradients: the same for the gradients of all parameters, concatenated.
        tolerance: largest value allowed for either.
    """

    logits: float
    gradients: float
    tolerance: float

    @property
    def exceeded(self) -> bool:
        """Whether a difference exceeds the tolerance or is NaN."""
        return not (self.logits <= self.tolerance and self.gradients <= self.tolerance)


@dataclass
class Figures:
    """Measurements of one device.

    Attributes:
        label: name in the report.
        device: torch's name for the device, or None if it is not available.
        device_name: the vendor's name for it.
        missing: why the device is not available, or empty.
        batch: images per step.
        epoch_images: images per epoch.
        micro_batch: images per forward pass.
        precision: precision of the arithmetic, such as ``fp32``.
        threads: CPU threads.
        initial: seconds of the first step, including the extra time of the very first micro-batch.
        steps: seconds of each step after the warm-up.
        pieces: seconds of each micro-batch if steps are long; the quartiles of ``step`` are derived from theirs.
        step: seconds per step, once the median is stable.
        validation: seconds to evaluate 100 images.
        split: median seconds per step spent on each of :data:`PARTS`.
        images_per_second: training speed.
        gflops: 10^9 floating-point operations per second in forward and backward; backward counts as two forwards.
        gemm_gflops: the highest rate that matrix products of the network's shapes reach.
        peak_memory: bytes; on CPU and MPS that of the process, and so of all devices measured until then.
        compile_time: seconds, or None.
        parity: numerical difference from the CPU.
        cpu_step: seconds that a CPU took for forward and backward of the same batch in fp32, once and without warm-up.
        epoch_time: seconds per epoch, extrapolated from ``step``.
        trained: summary of the training run, or None.
        failed: why the training run failed, or empty.
        others: share of the machine's CPU time that other processes took during the measurement, or None if unknown.
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
    cpu_step: float | None = None
    epoch_time: float | None = None
    trained: dict[str, Any] | None = None
    failed: str = ""
    others: float | None = None
