"""Comparison of exported files with the model, in output and speed.

A float32 file matches if no logit differs from the model's by more than the tolerance, and the predicted classes are the
same. The tolerance is absolute: if no logit changes by more than d, no probability changes by more than d / 2, however
large the logits are. A relative tolerance would not bound the probabilities. Predictions may differ in a tie, that is,
if the logits of the two classes are no further apart than two changes within the tolerance.

The model runs in PyTorch in float32, with the checkpoint's mean and standard deviation. The file gets its images in the
form that its own metadata specifies, so the comparison covers the metadata too.

Shapes: n images, B images in a batch, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitctl.data.dataset import Dataset
from vitctl.export.formats import Run, as_input, resize
from vitctl.export.metadata import Metadata
from vitctl.export.request import TOLERANCE
from vitctl.inference.classifier import Classifier
from vitctl.inference.scoring import part_for
from vitctl.units import plural

BATCHES = (1, 3, 17)
"""Batch sizes to run each file at, in addition to the sample."""

SPEED_BATCH = 256
"""Batch size for measuring throughput, unless a batch takes longer than :data:`SPEED_SECONDS`."""

SPEED_SECONDS = 20.0
"""Longest time to measure throughput for."""

LATENCY_RUNS, LATENCY_SECONDS = 100, 4.0
"""Number of runs to measure latency, and the longest time to measure it for."""

LATENCY_TURN, SETTLING_RUNS = 20, 10
"""Timed runs of a single image in one turn, and untimed runs before them."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the file, the number of images done, and the total."""


@dataclass(frozen=True)
class Sample:
    """Images on which files are compared with the model.

    Attributes:
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]``, or None for generated images.
        title: description, such as ``1,000 cifar10 test images``.
    """

    images: Tensor
    labels: Tensor | None
    title: str

    def first(self, count: int) -> Tensor:
        """Return the first ``count`` images, uint8 ``[count, C, H, W]``, starting over if there are fewer."""
        return self.images[torch.arange(count) % len(self.images)]


class Mismatch(NamedTuple):
    """A reason why a file does not match the model, and a hint."""

    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Differences between the outputs of a file and of the model.

    Attributes:
        batches: largest difference of a logit by batch size, for each of :data:`BATCHES`.
        max_difference: largest difference of a logit in all runs; NaN if a value is not finite.
        max_logit: the model's largest logit in magnitude; float32 rounding errors grow with it.
        max_difference_probs: largest difference of a probability, or None if the file has no probabilities.
        changed: number of predictions that differ on the sample.
        ties: number of these that are ties; see the module's docstring.
        top1: accuracy of the file on the sample in percent, or None without labels.
    """

    batches: dict[int, float]
    max_difference: float
    max_logit: float
    max_difference_probs: float | None
    changed: int
    ties: int
    top1: float | None

    def failure(self, tolerance: float) -> Mismatch | None:
        """Return why a float32 file does not match the model, or None if it does."""
        worst = _worst([self.max_difference, self.max_difference_probs or 0.0])
        if not worst <= tolerance:  # NaN fails
            return Mismatch(
                f"outputs differ by up to {worst:.2g} (--tolerance {tolerance:g})",
                f"use another --format, or raise --tolerance if that is acceptable for logits up to {self.max_logit:.3g}",
            )
        if self.changed > self.ties:
            return Mismatch(f"{plural(self.changed - self.ties, 'prediction')} changed", "use another --format")
        return None


def make_sample(classifier: Classifier, data: Dataset | None, count: int | None, *, uint8_input: bool) -> Sample:
    """Return test images to compare on, or generated images without a data set.

    Args:
        classifier: the model.
        data: the data set, or None.
        count: number of images; None for all.
        uint8_input: round resized images to uint8, for files with uint8 input, so that the model sees the same values.
    """
    if data is not None:
        subset = part_for(classifier, data, "test", count)
        images = subset.examples.images[subset.index]
        labels: Tensor | None = subset.examples.labels[subset.index]
        title = f"{len(images):,} {data.name} test images"
    else:
        shape = (count or 1, classifier.channels, classifier.size, classifier.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels, title = None, f"{len(images):,} generated images"
    return Sample(resize(images, classifier.size) if uint8_input else images, labels, title)


@dataclass(frozen=True)
class Reference:
    """The model's logits ``[n, K]`` for the sample, and by batch size for each of :data:`BATCHES`."""

    logits: Tensor
    batches: dict[int, Tensor]

    def top1(self, sample: Sample) -> float | None:
        """Return the model's accuracy on the sample in percent."""
        return accuracy(self.logits, sample.labels)


def make_reference(classifier: Classifier, sample: Sample, progress: Progress | None = None) -> Reference:
    """Run the model on the sample."""
    logits = run_in_batches(classifier.logits, sample.images, classifier.batch, "network", progress)
    return Reference(logits, {count: classifier.logits(sample.first(count)) for count in BATCHES})


def compare(
    record: Metadata,
    run: Run,
    sample: Sample,
    reference: Reference,
    *,
    tolerance: float,
    batch: int,
    title: str,
    progress: Progress | None = None,
) -> Agreement:
    """Run a file on the sample and compare its outputs with the model's.

    Args:
        record: metadata of the file.
        run: runs the file.
        sample: the images.
        reference: the model's outputs.
        tolerance: tolerance for ties, capped at the default :data:`TOLERANCE`: a larger one permits larger differences
            of the logits, but no more changed predictions.
        batch: batch size.
        title: name of the file for ``progress``.
        progress: called after each batch.
    """
    probs_differences: list[float] = []

    def logits(images: Tensor) -> Tensor:
        outputs = [output.float() for output in run(as_input(images, record))]
        if record.form.softmax:
            probs_differences.append(difference(outputs[0].softmax(1), outputs[1]))
        return outputs[0]

    file_logits = run_in_batches(logits, sample.images, batch, title, progress)
    batches = {count: difference(logits(sample.first(count)), reference.batches[count]) for count in BATCHES}
    expected, predicted = reference.logits.argmax(1), file_logits.argmax(1)
    changed = expected != predicted
    rows = torch.arange(len(expected))
    gap = reference.logits[rows, expected] - reference.logits[rows, predicted]
    return Agreement(
        batches=batches,
        max_difference=_worst([difference(file_logits, reference.logits), *batches.values()]),
        max_logit=float(reference.logits.abs().max()),
        max_difference_probs=_worst(probs_differences) if probs_differences else None,
        changed=int(changed.sum()),
        ties=int((changed & (gap <= 2 * min(tolerance, TOLERANCE))).sum()),
        top1=accuracy(file_logits, sample.labels),
    )


def run_in_batches(
    logits: Callable[[Tensor], Tensor], images: Tensor, batch: int, title: str, progress: Progress | None = None
) -> Tensor:
    """Return the logits, float ``[n, K]``, of images, uint8 ``[n, C, H, W]``."""
    outputs: list[Tensor] = []
    for piece in torch.split(images, batch):
        outputs.append(logits(piece))
        if progress:
            progress(title, sum(map(len, outputs)), len(images))
    return torch.cat(outputs)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference: infinite if the shapes differ, NaN or infinite if a value is not finite."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.double() - b.double()).abs().max())


def _worst(differences: list[float]) -> float:
    return float(torch.tensor(differences, dtype=torch.float64).max())  # unlike max(), propagates NaN


def accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the top-1 accuracy in percent, or None without labels."""
    return None if labels is None else 100 * float((logits.argmax(1) == labels).double().mean())


def measure_speed(runs: Mapping[str, tuple[Run, Metadata]], sample: Sample) -> dict[str, dict[str, Any]]:
    """Measure latency and throughput of the model and files, in turns, so that drifting machine speed affects all alike.

    A turn of latency has several runs, the first ones untimed: an engine's threads keep spinning for some milliseconds
    after its last run, which would slow down the next engine.

    Args:
        runs: the function to time and the metadata of its input, by name.
        sample: the images.

    Returns:
        By name: ``latency_p50`` and ``latency_p95`` for one image in seconds, and ``images_per_second`` at a batch size
        of ``speed_batch``.
    """
    single = {name: as_input(sample.first(1), record) for name, (_, record) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    limit = LATENCY_SECONDS * len(runs)
    while len(next(iter(times.values()))) < LATENCY_RUNS:
        for name, (run, _) in runs.items():
            for _ in range(SETTLING_RUNS):
                run(single[name])
            turn = [_timed(run, single[name])]
            while len(turn) < LATENCY_TURN and sum(turn) < LATENCY_SECONDS / 4:
                turn.append(_timed(run, single[name]))
            times[name] += turn
        if time.perf_counter() - start > limit and min(map(len, times.values())) >= 5:
            break
    slowest = max(statistics.median(seconds) for seconds in times.values())
    batch = max(1, min(SPEED_BATCH, int(SPEED_SECONDS / slowest)))
    many = {name: as_input(sample.first(batch), record) for name, (_, record) in runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(4):
        for name, (run, _) in runs.items():
            seconds = _timed(run, many[name])
            if i or seconds > 2:  # the first batch is a warm-up, unless it takes so long that this does not matter
                rates[name].append(batch / seconds)
        if i and sum(batch / rate for values in rates.values() for rate in values) > SPEED_SECONDS:
            break
    return {
        name: {
            "latency_p50": statistics.median(times[name]),
            "latency_p95": sorted(times[name])[int(0.95 * (len(times[name]) - 1))],
            "images_per_second": statistics.median(rates[name]),
            "speed_batch": batch,
        }
        for name in runs
    }


def _timed(run: Run, images: Tensor) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
