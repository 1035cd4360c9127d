"""Curves of figures by epoch, as means over runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vitctl.report.chart import Dash, Line, Tone


def mean_curve(
    histories: Sequence[Sequence[Mapping[str, Any]]],
    key: str,
    *,
    label: str,
    tone: Tone,
    series: str,
    dash: Dash = "solid",
) -> Line | None:
    """Return the mean of a figure over runs by epoch, with a band of one standard deviation over several runs.

    Args:
        histories: the records of each run's epochs.
        key: the figure; epochs without it are left out.
        label: what it is.
        tone: colour of the line.
        series: name of its series.
        dash: style of the line.

    Returns:
        The line, or None if no record has the figure.
    """
    by_epoch: dict[int, list[float]] = {}
    for history in histories:
        for record in history:
            value = finite(record.get(key))
            if value is not None:
                by_epoch.setdefault(int(record["epoch"]), []).append(value)
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
    spreads = [statistics.stdev(by_epoch[epoch]) if len(by_epoch[epoch]) > 1 else 0.0 for epoch in epochs]
    several = len(histories) > 1
    return Line(
        label=label,
        x=epochs,
        y=means,
        low=[mean - spread for mean, spread in zip(means, spreads, strict=True)] if several else (),
        high=[mean + spread for mean, spread in zip(means, spreads, strict=True)] if several else (),
        tone=tone,
        dash=dash,
        series=series,
    )


def finite(value: Any) -> float | None:
    """Return a number of a record, or None if it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
