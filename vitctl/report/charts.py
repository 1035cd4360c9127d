"""The charts of training runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitctl.report.chart import Bars, Chart, Intervals, Line, Matrix
from vitctl.report.curves import mean_curve
from vitctl.report.metrics import BINS, Calibration, ClassMetrics, Ints, Proportion, neighbours_first
from vitctl.report.run import RunRecord


@dataclass(frozen=True)
class Series:
    """Runs that share a colour: a single one, or several that differ only in their seed.

    Attributes:
        id: name in the page, such as ``s0``.
        tone: number of its colour.
        label: name of the run, or what the runs' names have in common.
        runs: the runs.
    """

    id: str
    tone: int
    label: str
    runs: list[RunRecord]


def make_series(groups: Sequence[list[RunRecord]]) -> list[Series]:
    """Return a series for each group of runs."""
    series = []
    for number, runs in enumerate(groups):
        label = runs[0].name
        if len(runs) > 1:
            label = f"{_common_start([run.name for run in runs]) or label} ({len(runs)} seeds)"
        series.append(Series(f"s{number}", number, label, runs))
    return series


def _common_start(names: Sequence[str]) -> str:
    """Return what all names begin with, without separators at its end."""
    first, last = min(names), max(names)
    same = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return "".join(same).rstrip("-_. ")


_CURVES = (
    ("loss", "Loss", "mean loss", {"train_loss": "training", "val_loss": "validation"}),
    ("accuracy", "Accuracy", "accuracy in %", {"train_acc": "training", "val_acc": "validation"}),
    ("lr", "Learning rate", "learning rate", {"lr": ""}),
    ("speed", "Speed", "images per second", {"images_per_second": ""}),
)
"""Charts of curves: id, title, label of the vertical axis, and a label for each figure of the records that is drawn."""


def curves(series: Sequence[Series]) -> list[Chart]:
    """Return the charts of loss, accuracy, learning rate and images per second by epoch; empty without epochs."""
    charts = []
    for id, title, axis, keys in _CURVES:
        lines = [line for each in series for key, part in keys.items() if (line := _curve(each, key, part)) is not None]
        if not lines:
            continue
        ends = [f"{line.label}: {_last(line):.4g}" for line in lines]
        description = f"{axis} by epoch; last values: {'; '.join(ends[:20])}"
        charts.append(
            Chart(
                id=f"curve-{id}",
                title=title,
                description=description,
                x="epoch",
                y=axis,
                marks=lines,
                y_range=(0, 100) if id == "accuracy" else None,
                width=400,
                height=260,
            )
        )
    return charts


def _last(line: Line) -> float:
    return next((value for value in reversed(line.y) if math.isfinite(value)), math.nan)


def _curve(series: Series, key: str, part: str) -> Line | None:
    return mean_curve(
        [run.history for run in series.runs],
        key,
        label=f"{series.label}, {part}" if part else series.label,
        tone=series.tone,
        dash="dashed" if part == "training" else "solid",
        series=series.id,
    )


def confusion_chart(id: str, confusion: Ints, classes: Sequence[str]) -> Chart:
    """Return the confusion matrix, with classes that are often confused as neighbours."""
    order = neighbours_first(confusion)
    size = len(classes)
    side = min(760, max(400, 150 + size * (30 if size <= 20 else 13)))
    right = int(confusion.trace())
    return Chart(
        id=id,
        title="Confusion matrix",
        description=f"{right:,} of {int(confusion.sum()):,} images lie on the diagonal, where the predicted class is the true one",
        x="predicted class",
        y="true class",
        marks=[Matrix(names=[classes[i] for i in order], counts=confusion[order][:, order].tolist())],
        width=side,
        height=side,
    )


def percent(share: Proportion | None) -> str:
    """Return a share with its interval: ``45.0 % (42.1-48.0)``."""
    if share is None:
        return "–"
    value, low, high = (f"{100 * each:.1f}" for each in (share.value, share.low, share.high))
    return f"{value} % ({low}–{high})"


_MOST_ROWS = 60


def class_chart(id: str, metrics: Sequence[ClassMetrics], classes: Sequence[str]) -> Chart:
    """Return the recall of each class, or of the :data:`_MOST_ROWS` with the lowest, with its interval."""
    rows = [(each, each.recall) for each in metrics if each.recall is not None]
    rows.sort(key=lambda row: row[1].value)
    some = len(rows) > _MOST_ROWS
    rows = rows[:_MOST_ROWS]
    return Chart(
        id=id,
        title=f"Recall of the {_MOST_ROWS} weakest classes" if some else "Recall by class",
        description="share of each class's images that are recognised, with 95 % intervals, lowest first",
        x="recall in %",
        x_range=(0, 100),
        marks=[
            Intervals(
                names=[classes[each.index] for each, _ in rows],
                values=[100 * recall.value for _, recall in rows],
                low=[100 * recall.low for _, recall in rows],
                high=[100 * recall.high for _, recall in rows],
                texts=[f"{classes[each.index]}: {percent(recall)} of {each.count:,}" for each, recall in rows],
            )
        ],
        width=460,
        height=50 + 18 * max(4, len(rows)),
    )


def reliability_charts(id: str, calibration: Calibration) -> list[Chart]:
    """Return the reliability diagram, and the number of images in each of its bins."""
    filled = [each for each in calibration.bins if each.accuracy is not None and each.confidence is not None]
    points = [(100 * (each.confidence or 0), 100 * each.accuracy.value) for each in filled if each.accuracy]
    edges = [100 * place / BINS for place in range(BINS + 1)]
    texts = [
        f"confidence {100 * each.low:.0f}–{100 * each.high:.0f} %: "
        + (f"{percent(each.accuracy)} of {each.count:,} correct" if each.accuracy else "no images")
        for each in calibration.bins
    ]
    diagram = Chart(
        id=f"{id}-reliability",
        title="Reliability",
        description=f"share of correct predictions by confidence, in {BINS} bins; expected calibration error {100 * calibration.ece:.2f} %",
        x="confidence in %",
        y="correct in %",
        marks=[
            Bars(
                edges=edges,
                values=[100 * each.accuracy.value if each.accuracy else 0.0 for each in calibration.bins],
                texts=texts,
            ),
            Line(label="", x=[0, 100], y=[0, 100], tone="muted", dash="dashed", guide=True),
            Line(
                label="mean confidence of the bin",
                x=[x for x, _ in points],
                y=[y for _, y in points],
                tone=0,
                dots=True,
                guide=True,
            ),
        ],
        x_range=(0, 100),
        y_range=(0, 100),
        width=400,
        height=300,
    )
    counts = Chart(
        id=f"{id}-confidence",
        title="Images by confidence",
        description=f"number of images in each of the {BINS} bins",
        x="confidence in %",
        y="images",
        marks=[Bars(edges=edges, values=[each.count for each in calibration.bins], texts=texts)],
        x_range=(0, 100),
        width=400,
        height=300,
    )
    return [diagram, counts]
