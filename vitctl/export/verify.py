"""Whether an exported file computes what the network does, and how fast.

A float32 file agrees when no logit is off by more than the tolerance, in absolute terms: a logit is a logarithm of odds, so
that an absolute difference d changes any probability by at most d / 2, however large the logits are, while a bound
relative to them would let a confident network's probabilities move. It must also predict the same classes, except of a
image whose two likeliest classes are as far apart as the tolerance allows both of them to move.

The network's side is PyTorch in float32 with the checkpoint's own mean and deviation; the file's side gets its images in the form
that the file itself states. So a wrong number anywhere between image and logit shows.

Shapes: n images, B batch, C channels, H and W sides of an image, K classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitctl.data.dataset import Dataset
from vitctl.export.formats import Run, as_input, resize
from vitctl.export.metadata import Metadata
from vitctl.export.request import TOLERANCE
from vitctl.inference.classifier import Classifier
from vitctl.inference.scoring import part_for

BATCHES = (1, 3, 17)
"""Batches of several sizes that each file is run on besides the sample."""

SPEED_BATCH = 256
"""The batch that images/s are measured at, where one takes less than :data:`SPEED_SECONDS`."""

SPEED_SECONDS = 20.0

LATENCY_RUNS, LATENCY_SECONDS = 100, 4.0
"""How often a single image is timed: that many times, or for that long."""

LATENCY_TURN, SETTLING_RUNS = 20, 10
"""Single images timed in a turn, and those before them that are not."""

Progress = Callable[[str, int, int], None]
"""Told what is compared, how many images are done, and of how many."""


@dataclass(frozen=True)
class Sample:
    """The images that network and files are compared on.

    Attributes:
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]``, or None for generated images.
        title: what they are.
    """

    images: Tensor
    labels: Tensor | None
    title: str

    def first(self, count: int) -> Tensor:
        """Return uint8 ``[count, C, H, W]``: the first images, over again where there are fewer."""
        return self.images[torch.arange(count) % len(self.images)]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a file's outputs compare with the network's.

    Attributes:
        batches: greatest difference of a logit in batches of each of :data:`BATCHES`.
        max_difference: over all that was run; NaN where one side is not finite.
        max_logit: the network's greatest, by magnitude: float32 rounds in proportion to it.
        max_difference_probs: of the probabilities, or None where the file gives none.
        changed: predictions of the sample that differ.
        ties: of these, those between two classes that are equally likely within the tolerance.
        top1: accuracy of the file on the sample, in percent, or None without labels.
    """

    batches: dict[int, float]
    max_difference: float
    max_logit: float
    max_difference_probs: float | None
    changed: int
    ties: int
    top1: float | None

    def failure(self, tolerance: float) -> str | None:
        """Return what is wrong for a float32 file, or None when it computes what the network does."""
        worst = _worst([self.max_difference, self.max_difference_probs or 0.0])
        if not worst <= tolerance:  # NaN is worse than any
            return (
                f"its outputs differ by up to {worst:.2g} (--tolerance {tolerance:g}), where logits reach "
                f"{self.max_logit:.3g}"
            )
        if self.changed > self.ties:
            return f"{self.changed - self.ties} predictions differ"
        return None


def make_sample(classifier: Classifier, data: Dataset | None, count: int | None, *, whole_numbers: bool) -> Sample:
    """Return images to compare on: of the test set where there is one, else generated ones.

    Args:
        classifier: the network.
        data: the data set, or None.
        count: how many; None is all.
        whole_numbers: the files take uint8, so that a resized image is rounded; both sides then see it so.
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
    return Sample(resize(images, classifier.size) if whole_numbers else images, labels, title)


@dataclass(frozen=True)
class Reference:
    """What the network gives: logits ``[n, K]`` of the sample, and of each of :data:`BATCHES`."""

    logits: Tensor
    batches: dict[int, Tensor]

    def top1(self, sample: Sample) -> float | None:
        """Return the network's accuracy on the sample, in percent."""
        return accuracy(self.logits, sample.labels)


def make_reference(classifier: Classifier, sample: Sample, progress: Progress | None = None) -> Reference:
    """Run the network on the sample."""
    logits = in_pieces(classifier.logits, sample.images, classifier.batch, "network", progress)
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
    """Run a file on what the network was run on.

    Args:
        record: what the file says of itself.
        run: runs the file.
        sample: images.
        reference: what the network gave for them.
        tolerance: up to which two logits count as equal, for ties; no more than the default one, as a greater one is
            leave for the logits to move, and not for predictions to change.
        batch: images run at once.
        title: what the file is called in ``progress``.
        progress: told how far it is.
    """
    probs_differences: list[float] = []

    def logits(images: Tensor) -> Tensor:
        outputs = [output.float() for output in run(as_input(images, record))]
        if record.form.softmax:
            probs_differences.append(difference(outputs[0].softmax(1), outputs[1]))
        return outputs[0]

    theirs = in_pieces(logits, sample.images, batch, title, progress)
    batches = {count: difference(logits(sample.first(count)), reference.batches[count]) for count in BATCHES}
    best, guess = reference.logits.argmax(1), theirs.argmax(1)
    changed = best != guess
    rows = torch.arange(len(best))
    gap = reference.logits[rows, best] - reference.logits[rows, guess]
    return Agreement(
        batches=batches,
        max_difference=_worst([difference(theirs, reference.logits), *batches.values()]),
        max_logit=float(reference.logits.abs().max()),
        max_difference_probs=_worst(probs_differences) if probs_differences else None,
        changed=int(changed.sum()),
        ties=int((changed & (gap <= 2 * min(tolerance, TOLERANCE))).sum()),
        top1=accuracy(theirs, sample.labels),
    )


def in_pieces(
    logits: Callable[[Tensor], Tensor], images: Tensor, batch: int, title: str, progress: Progress | None = None
) -> Tensor:
    """Return float ``[n, K]``: the logits of images, uint8 ``[n, C, H, W]``, run ``batch`` at a time."""
    outputs: list[Tensor] = []
    for piece in torch.split(images, batch):
        outputs.append(logits(piece))
        if progress:
            progress(title, sum(map(len, outputs)), len(images))
    return torch.cat(outputs)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the greatest difference of two tensors, infinite where their shapes differ, NaN where one is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max())


def _worst(differences: list[float]) -> float:
    return float(torch.tensor(differences, dtype=torch.float64).max())  # unlike max(), never loses a NaN


def accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the share of images whose greatest logit is the label's, in percent."""
    return None if labels is None else 100 * float((logits.argmax(1) == labels).double().mean())


def measure_speed(runs: Mapping[str, tuple[Run, Metadata]], sample: Sample) -> dict[str, dict[str, Any]]:
    """Time each of ``runs`` in turn, so that a machine whose speed drifts slows all of them.

    A turn at single images is several runs: the threads of an engine go on spinning for some milliseconds after its last
    run, and would slow the first ones of the next engine.

    Args:
        runs: by name, what runs images and the form that it takes them in.
        sample: images.

    Returns:
        By name: ``latency_p50`` and ``latency_p95`` of one image in seconds, ``images_per_second`` in batches of
        ``speed_batch``.
    """
    single = {name: as_input(sample.first(1), record) for name, (_, record) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    limit = LATENCY_SECONDS * len(runs)
    while len(next(iter(times.values()))) < LATENCY_RUNS:
        for name, (run, _) in runs.items():
            for _ in range(SETTLING_RUNS):
                run(single[name])
            turn = [_timed(run, single[name])]
            while len(turn) < LATENCY_TURN and sum(turn) < LATENCY_SECONDS / 4:
                turn.append(_timed(run, single[name]))
            times[name] += turn
        if time.perf_counter() - begun > limit and min(map(len, times.values())) >= 5:
            break
    slowest = max(statistics.median(seconds) for seconds in times.values())
    batch = max(1, min(SPEED_BATCH, int(SPEED_SECONDS / slowest)))
    many = {name: as_input(sample.first(batch), record) for name, (_, record) in runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(4):
        for name, (run, _) in runs.items():
            seconds = _timed(run, many[name])
            if i or seconds > 2:  # the first one warms up, which is of no weight where it takes long
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
