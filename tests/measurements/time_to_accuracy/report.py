"""Table and plot of a comparison."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.measurements.cards import band
from tests.measurements.time_to_accuracy.result import Result

GREY = "#808080"
"""Colour of text and axes, legible on light and dark pages."""

MARKERS = "os^vD*Pp<>X"


def groups(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results of each row and budget, over seeds, in order of their time."""
    by_key: dict[tuple[str, float | None], list[Result]] = {}
    for each in results:
        by_key.setdefault((each.name, each.budget), []).append(each)
    return sorted(by_key.values(), key=lambda group: _mean(group, lambda each: each.seconds))


def _mean(group: Sequence[Result], figure: Callable[[Result], float]) -> float:
    return statistics.mean(map(figure, group))


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table with a row for each name and budget."""
    lines = [
        "| run | budget | wall time | PFLOP | images | precision | threads | seeds | test accuracy | with TTA |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for group in groups(results):
        first = group[0]
        budget = f"{first.budget:,g} s" if first.budget else "–"
        cost = f"{_mean(group, lambda each: each.seconds):,.1f} s | {_mean(group, lambda each: each.pflop):.4f}"
        seen = f"{_mean(group, lambda each: each.images):,.0f}"
        how = f"{'/'.join(sorted({each.precision for each in group}))} | {first.threads} | {len(group)}"
        accuracies = [str(band([each.test_acc for each in group])), str(band([each.test_acc_tta for each in group]))]
        lines.append(f"| `{first.name}` | {budget} | {cost} | {seen} | {how} | {' | '.join(accuracies)} |")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw test accuracy against wall time and against PFLOP, both on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.patch.set_alpha(0)
    panels: list[tuple[str, Callable[[Result], float], tuple[int, ...]]] = [
        ("wall time of the complete command (s)", lambda each: each.seconds, (1, 2, 5)),
        ("operations in training (PFLOP)", lambda each: each.pflop, (1,)),
    ]
    names = list(dict.fromkeys(each.name for each in results))
    for axes, (label, cost, ticks) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for name, marker in zip(names, itertools.cycle(MARKERS)):
            points = [group for group in groups(results) if group[0].name == name]
            axes.plot(
                [_mean(group, cost) for group in points],
                [_mean(group, lambda each: each.test_acc) for group in points],
                marker=marker,
                label=name,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=ticks))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label, color=GREY)
        axes.grid(color=GREY, alpha=0.25)
        axes.tick_params(which="both", colors=GREY)
        axes.patch.set_alpha(0)
        for spine in axes.spines.values():
            spine.set_color(GREY)
    figure.axes[0].set_ylabel("CIFAR-10 test accuracy (%)", color=GREY)
    figure.axes[1].legend(labelcolor=GREY, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
