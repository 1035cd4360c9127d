"""Intervals, calibration, confusions and metrics of classes, compared with SciPy, scikit-learn and formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss, precision_recall_fscore_support
from sklearn.metrics import confusion_matrix as sklearn_confusion

from vitctl.report import metrics
from vitctl.report.metrics import BINS, Calibration, Proportion


@pytest.fixture
def predicted() -> tuple[Any, Any, Any]:
    """Return probabilities, labels and predicted classes of 500 images of 6 classes, the last without images."""
    random = np.random.default_rng(0)
    labels = random.integers(5, size=500)
    logits = random.normal(size=(500, 6))
    logits[np.arange(500), labels] += 1.5
    shares = np.exp(2 * logits)
    shares /= shares.sum(1, keepdims=True)
    return shares, labels, shares.argmax(1)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 1), (3, 7), (5970, 10_000), (0, 1)])
def test_intervals_are_wilsons(hits: int, count: int) -> None:
    found = Proportion.of(hits, count)
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_nothing_has_no_interval() -> None:
    assert Proportion.of(0, 0) is None


def test_nll_and_brier_equal_scikit_learns(predicted: Any) -> None:
    shares, labels, classes = predicted
    found = Calibration.of(shares, labels, classes)
    assert found.nll == pytest.approx(log_loss(labels, shares, labels=range(6)))
    assert found.brier == pytest.approx(brier_score_loss(labels, shares, labels=range(6), scale_by_half=False))


def test_ece_equals_its_formula(predicted: Any) -> None:
    shares, labels, classes = predicted
    total = 0.0
    for place in range(BINS):
        inside = [i for i in range(len(labels)) if place / BINS < shares[i, classes[i]] <= (place + 1) / BINS]
        if inside:
            accuracy = sum(classes[i] == labels[i] for i in inside) / len(inside)
            confidence = sum(shares[i, classes[i]] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    found = Calibration.of(shares, labels, classes)
    assert found.ece == pytest.approx(total)
    assert sum(each.count for each in found.bins) == len(labels) and len(found.bins) == BINS


def test_confidences_at_the_ends_of_the_range_are_binned() -> None:
    found = Calibration.of(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), np.array([0, 0]))
    assert [each.count for each in found.bins if each.count] == [1, 1] and found.bins[-1].count == 1


def test_class_metrics_and_confusions_equal_scikit_learns(predicted: Any) -> None:
    _, labels, classes = predicted
    confusion = metrics.confusion_matrix(labels, classes, 6)
    assert (confusion == sklearn_confusion(labels, classes, labels=range(6))).all()
    precision, recall, f1, support = precision_recall_fscore_support(labels, classes, labels=range(6), zero_division=0)
    found = metrics.class_metrics(confusion)
    for i, each in enumerate(found):
        assert each.count == support[i]
        assert (each.precision.value if each.precision else 0) == pytest.approx(precision[i])
        assert (each.recall.value if each.recall else 0) == pytest.approx(recall[i])
        assert each.f1 is None or (each.f1[1] <= each.f1[0] <= each.f1[2] and each.f1[0] == pytest.approx(f1[i]))
    assert found[5].recall is None


def test_the_largest_confusions_come_first() -> None:
    found = metrics.largest_confusions(np.array([[5, 3, 0], [1, 9, 3], [0, 0, 4]]), limit=2)
    assert [(each.true, each.predicted, each.images) for each in found] == [(0, 1, 3), (1, 2, 3)]
    assert found[0].share == 3 / 8


def test_confused_classes_become_neighbours() -> None:
    confusion = 50 * np.eye(6, dtype=np.int64)
    for one, other in ((0, 5), (1, 3), (2, 4)):
        confusion[one, other] = confusion[other, one] = 20
    order = metrics.neighbours_first(confusion)
    assert sorted(order) == list(range(6))
    for one, other in ((0, 5), (1, 3), (2, 4)):
        assert abs(order.index(one) - order.index(other)) == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_without_confusions_classes_keep_their_order(size: int) -> None:
    assert metrics.neighbours_first(np.eye(size, dtype=np.int64)) == list(range(size))


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_probabilities_too_sharp_is_found(true: float) -> None:
    random = np.random.default_rng(1)
    logits = 2 * random.normal(size=(20_000, 4))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (honest.cumsum(1) > random.random((len(logits), 1))).argmax(1)
    assert metrics.fit_temperature(metrics.tempered(honest, 1 / true), labels) == pytest.approx(true, rel=0.05)


def test_temperature_divides_the_logits() -> None:
    logits = np.array([[1.0, -2.0, 0.5]])
    shares = np.exp(logits) / np.exp(logits).sum()
    expected = np.exp(logits / 3) / np.exp(logits / 3).sum()
    assert metrics.tempered(shares, 3.0) == pytest.approx(expected)
