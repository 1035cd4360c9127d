"""Figures computed from predicted probabilities: intervals, calibration, confusions and metrics of classes.

Shapes: n images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 15
"""Bins of equal width of the reliability diagram and of the expected calibration error."""

LEVEL = 0.95
"""Confidence level of all intervals."""

SMALLEST = 2.0**-24
"""Smallest positive number of half precision, in which probabilities are stored; zero counts as this."""


@dataclass(frozen=True)
class Proportion:
    """A share of a count, with its Wilson interval.

    Attributes:
        hits: number of successes.
        count: number of trials.
        low: lower end of the interval, from 0 to 1.
        high: upper end.
    """

    hits: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, from 0 to 1."""
        return self.hits / self.count

    @classmethod
    def of(cls, hits: int, count: int, level: float = LEVEL) -> Proportion | None:
        """Return the share with Wilson's score interval (Wilson 1927), or None for a count of 0."""
        if not count:
            return None
        z = NormalDist().inv_cdf((1 + level) / 2)
        share, weight = hits / count, z * z / count
        centre = share + weight / 2
        half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
        return cls(hits, count, max(0.0, (centre - half) / (1 + weight)), min(1.0, (centre + half) / (1 + weight)))


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of a class.

    Attributes:
        index: the class.
        count: number of its images.
        recall: share of its images that are predicted as it; None without images.
        precision: share of the images predicted as it that are of it; None if there are none.
        f1: harmonic mean of both as value, low end and high end; None without images and predictions. It is ``2 J / (1 + J)``
            for the share J that the correct images have of those that are of the class or predicted as it, and its
            interval is that of J, transformed in the same way.
    """

    index: int
    count: int
    recall: Proportion | None
    precision: Proportion | None
    f1: tuple[float, float, float] | None


def class_metrics(confusion: Ints) -> list[ClassMetrics]:
    """Return the metrics of each class from the confusion matrix, ``[K, K]`` with a row per true class."""
    result = []
    for index, hits in enumerate(np.diagonal(confusion).tolist()):
        count, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        joined = Proportion.of(hits, count + predicted - hits)
        f1 = None
        if joined is not None:
            value, low, high = (2 * share / (1 + share) for share in (joined.value, joined.low, joined.high))
            f1 = value, low, high
        result.append(ClassMetrics(index, count, Proportion.of(hits, count), Proportion.of(hits, predicted), f1))
    return result


@dataclass(frozen=True)
class Confusion:
    """Images of a class that are predicted as another.

    Attributes:
        true: the true class.
        predicted: the predicted class.
        images: number of images.
        share: their share of the true class's images.
    """

    true: int
    predicted: int
    images: int
    share: float


def largest_confusions(confusion: Ints, limit: int = 10) -> list[Confusion]:
    """Return the off-diagonal cells with most images, largest first; by share of the true class among equals."""
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    counts = confusion.sum(1)
    cells = [
        Confusion(int(true), int(predicted), int(off[true, predicted]), float(off[true, predicted] / counts[true]))
        for true, predicted in zip(*np.nonzero(off), strict=True)
    ]
    return sorted(cells, key=lambda cell: (-cell.images, -cell.share))[:limit]


def neighbours_first(confusion: Ints) -> list[int]:
    """Return the classes in an order in which those that are often confused are neighbours.

    Classes are clustered by the share of their images that are predicted as each other, and the leaves of the tree are
    turned so that neighbours are as similar as possible (Bar-Joseph et al. 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(confusion) < 3 or not (confusion.sum() - np.trace(confusion)):
        return list(range(len(confusion)))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    similar = shares + shares.T
    distances = squareform(similar.max() - similar, checks=False)
    tree = linkage(distances, "average")
    if len(confusion) <= _LARGEST_ORDERED:
        tree = optimal_leaf_ordering(tree, distances)
    return [int(each) for each in leaves_list(tree)]


_LARGEST_ORDERED = 300
"""Classes up to which the leaves are turned; the time for this grows with the cube of their number."""


@dataclass(frozen=True)
class Bin:
    """A bin of the reliability diagram.

    Attributes:
        low: lower end of the confidences, exclusive but for 0.
        high: upper end, inclusive.
        count: number of images.
        confidence: their mean confidence; None without images.
        accuracy: share that is classified correctly; None without images.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: Proportion | None


@dataclass(frozen=True)
class Calibration:
    """How well probabilities match the share of images that are classified correctly.

    Attributes:
        bins: :data:`BINS` bins of equal width.
        ece: expected calibration error: mean distance of confidence and accuracy over the bins, weighted by count.
        nll: mean negative log-likelihood of the true class.
        brier: Brier score: mean squared distance of the probabilities from the true class, summed over the classes.
    """

    bins: list[Bin]
    ece: float
    nll: float
    brier: float

    @classmethod
    def of(cls, probabilities: Floats, labels: Ints, predicted: Ints, losses: Floats | None = None) -> Calibration:
        """Compute the calibration.

        Args:
            probabilities: ``[n, K]``.
            labels: true classes, ``[n]``.
            predicted: predicted classes, ``[n]``.
            losses: exact loss of each image, ``[n]``; None for that of ``probabilities``.
        """
        rows = np.arange(len(labels))
        confidence, correct = probabilities[rows, predicted], predicted == labels
        places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        bins = []
        for place in range(BINS):
            inside = places == place
            mean = float(confidence[inside].mean()) if inside.any() else None
            share = Proportion.of(int(correct[inside].sum()), int(inside.sum()))
            bins.append(Bin(place / BINS, (place + 1) / BINS, int(inside.sum()), mean, share))
        gaps = [
            each.count * abs(each.accuracy.value - each.confidence)
            for each in bins
            if each.accuracy is not None and each.confidence is not None
        ]
        if losses is None:
            losses = -np.log(np.maximum(probabilities[rows, labels], SMALLEST))
        squares = (probabilities**2).sum(1) - 2 * probabilities[rows, labels] + 1
        return cls(bins, sum(gaps) / len(labels), float(losses.mean()), float(squares.mean()))


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Return the probabilities after division of the logits by ``temperature``, ``[n, K]``."""
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    result: Floats = powers / powers.sum(1, keepdims=True)
    return result


def fit_temperature(probabilities: Floats, labels: Ints) -> float:
    """Return the temperature with the lowest negative log-likelihood (Guo et al. 2017), from 0.05 to 20.

    Args:
        probabilities: predictions for held-out images, ``[n, K]``.
        labels: their true classes, ``[n]``.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(probabilities, SMALLEST)).astype(np.float32)
    logits -= logits.max(1, keepdims=True)
    true = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        factor = np.float32(np.exp(-log_temperature))
        return float((np.log(np.exp(factor * logits).sum(1)) - factor * true).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Return the number of images by true class (rows) and predicted class (columns), ``[K, K]``."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)  # [K, K]
