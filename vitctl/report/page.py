"""The page of a report on training runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitctl.report.chart import Chart
from vitctl.report.charts import (
    Series,
    class_chart,
    confusion_chart,
    curves,
    make_series,
    percent,
    reliability_charts,
)
from vitctl.report.curves import finite
from vitctl.report.images import ImageReader, Shown, most_confident, show, show_attention
from vitctl.report.metrics import (
    Calibration,
    Proportion,
    class_metrics,
    confusion_matrix,
    fit_temperature,
    largest_confusions,
    tempered,
)
from vitctl.report.rendering import render
from vitctl.report.run import RunRecord
from vitctl.report.settings import SettingRow, between_runs, from_recipe, same_but_seed
from vitctl.report.verdict import Findings, best_run, verdict
from vitctl.units import format_bytes, format_duration, printable

FEW = 3
"""Runs up to which each has :data:`MANY_MISTAKES` and an attention rollout; with more, only the best run has."""

MANY_MISTAKES, SOME_MISTAKES = 24, 12
"""Mistakes to show."""

_ROLLED = 8
"""Test images over which to show attention: half of them mistakes."""


@dataclass
class Detail:
    """A run's part of a report.

    Attributes:
        id: name in the page, such as ``r0``.
        series: the series that it belongs to.
        findings: what is known about it.
        full: whether it has all mistakes and an attention rollout, and is open.
        mistakes: its most confident mistakes.
        mistakes_missing: why some have no thumbnail, or empty.
        rolled: test images with attention.
        rolled_missing: why there are none, or empty.
        charts: its charts by section: ``confusion``, ``classes`` and ``calibration``.
        calibration: rows of the table of calibration: label, as trained, and with the fitted temperature.
        temperature: the fitted temperature; None without held-out images.
        cost: rows of the table of cost.
        repeat: the command that trains with its stored settings.
    """

    id: str
    series: Series
    findings: Findings
    full: bool = True
    mistakes: list[Shown] = field(default_factory=list)
    mistakes_missing: str = ""
    rolled: list[Shown] = field(default_factory=list)
    rolled_missing: str = ""
    charts: dict[str, list[Chart]] = field(default_factory=dict)
    calibration: list[tuple[str, str, str]] = field(default_factory=list)
    temperature: float | None = None
    cost: list[tuple[str, str]] = field(default_factory=list)
    repeat: str = ""

    @property
    def run(self) -> RunRecord:
        """The run."""
        return self.findings.run


@dataclass
class RunsReport:
    """The content of a report.

    Attributes:
        title: its title.
        verdict: its first sentence.
        series: the series of its curves.
        settings: settings that differ.
        settings_of: heads of their columns; empty if they cannot be compared.
        curves: charts of curves.
        details: the runs.
    """

    title: str
    verdict: str
    series: list[Series]
    settings: list[SettingRow]
    settings_of: list[str]
    curves: list[Chart]
    details: list[Detail]

    @property
    def charts(self) -> list[Chart]:
        """All charts."""
        return [*self.curves, *(chart for each in self.details for charts in each.charts.values() for chart in charts)]


def build_report(runs: Sequence[RunRecord], data_dir: str | None, say: Callable[[str], None]) -> RunsReport:
    """Return a report on training runs.

    Args:
        runs: the runs, at least one.
        data_dir: folder of the data, for thumbnails; None for that of training.
        say: receives warnings.
    """
    groups = same_but_seed(runs)
    series = make_series(groups)
    findings = {id(run): find(run) for run in runs}
    scored = [each for each in findings.values() if each.accuracy is not None]
    best = best_run(scored)[0] if scored else None
    details = []
    for number, run in enumerate(runs):
        its = next(each for each in series if any(member is run for member in each.runs))
        full = len(runs) <= FEW or findings[id(run)] is best
        detail = Detail(f"r{number}", its, findings[id(run)], full, cost=_cost(run))
        detail.repeat = f"vitctl train --config {shlex.quote(printable(str(run.path)))}"
        _add_details(detail, data_dir, say)
        details.append(detail)
    settings: list[SettingRow] | None
    if len(runs) > 1:
        settings, heads = between_runs(runs), [run.name for run in runs]
    else:
        settings, heads = from_recipe(runs[0]), [f"recipe {runs[0].settings.get('recipe')}", runs[0].name]
    return RunsReport(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        verdict=verdict([[findings[id(run)] for run in group] for group in groups]),
        series=series,
        settings=settings or [],
        settings_of=[] if settings is None else heads,
        curves=curves(series),
        details=details,
    )


def find(run: RunRecord) -> Findings:
    """Compute the metrics of a run's predictions for the test images."""
    test = run.test
    if test is None or not len(test):
        return Findings(run)
    confusion = confusion_matrix(test.labels, test.predicted, len(run.classes))
    return Findings(
        run,
        accuracy=Proportion.of(int(confusion.trace()), len(test)),
        confusion=confusion,
        classes=class_metrics(confusion),
        confusions=largest_confusions(confusion),
        calibration=Calibration.of(test.probabilities, test.labels, test.predicted, test.losses),
    )


def _add_details(detail: Detail, data_dir: str | None, say: Callable[[str], None]) -> None:
    run, findings, test = detail.run, detail.findings, detail.run.test
    if test is None or findings.confusion is None or findings.calibration is None:
        return
    detail.charts["confusion"] = [confusion_chart(f"{detail.id}-confusion", findings.confusion, run.classes)]
    detail.charts["classes"] = [class_chart(f"{detail.id}-classes", findings.classes, run.classes)]
    detail.charts["calibration"] = reliability_charts(detail.id, findings.calibration)
    after = None
    if run.held_out is not None and len(run.held_out):
        detail.temperature = fit_temperature(run.held_out.probabilities, run.held_out.labels)
        after = Calibration.of(tempered(test.probabilities, detail.temperature), test.labels, test.predicted)
    for label, key, factor in (
        ("expected calibration error (ECE)", "ece", 100),
        ("negative log-likelihood (NLL)", "nll", 1),
        ("Brier score", "brier", 1),
    ):
        texts = [
            "–"
            if each is None
            else f"{factor * getattr(each, key):.{2 if factor == 100 else 4}f}{' %' * (factor == 100)}"
            for each in (findings.calibration, after)
        ]
        detail.calibration.append((label, texts[0], texts[1]))
    wrong = most_confident(test, correct=False)[: MANY_MISTAKES if detail.full else SOME_MISTAKES]
    if run.config is None:
        detail.mistakes, detail.mistakes_missing = (
            [Shown(each, None) for each in wrong],
            "the settings are not readable",
        )
        return
    images = ImageReader(run, data_dir)
    detail.mistakes, detail.mistakes_missing = show(images, wrong)
    if detail.full:
        right = most_confident(test, correct=True)
        half = _ROLLED // 2
        chosen = wrong[:half] + right[:: max(1, len(right) // half)][: _ROLLED - len(wrong[:half])]
        if chosen:
            detail.rolled, detail.rolled_missing = show_attention(run, images, chosen, say)
    else:
        detail.rolled_missing = f"of more than {FEW} runs, only the best has one"


def _cost(run: RunRecord) -> list[tuple[str, str]]:
    """Return labels and texts of what a run took; what is not known is left out."""
    facts = {**run.environment, **run.summary}
    last = run.history[-1] if run.history else {}

    def number(key: str) -> float | None:
        value = finite(facts.get(key))
        return finite(last.get(key)) if value is None else value

    rows: list[tuple[str, str | None]] = [
        ("epochs", f"{last.get('epoch')}" if last else None),
        ("steps", None if (steps := number("step")) is None or not last else f"{steps:,.0f}"),
        ("wall time", None if (seconds := number("seconds")) is None else format_duration(seconds)),
        ("time per epoch", None if (epoch := finite(last.get("epoch_time"))) is None else format_duration(epoch)),
        ("speed", None if (speed := number("images_per_second")) is None else f"{speed:,.0f} images/s"),
        ("waiting for data", None if (wait := number("data_wait")) is None else f"{100 * wait:.1f} %"),
        ("peak memory", None if (memory := number("peak_memory")) is None else format_bytes(memory)),
        ("parameters", None if (params := number("params")) is None else f"{params:,.0f}"),
        ("device", _device(facts)),
        ("precision", facts.get("precision")),
        ("versions", ", ".join(f"{name} {facts[name]}" for name in ("vitctl", "torch", "python") if facts.get(name))),
        ("commit", facts.get("git_commit")),
    ]
    return [(label, printable(str(text))) for label, text in rows if text]


def _device(facts: dict[str, Any]) -> str | None:
    if not facts.get("device"):
        return None
    threads = f", {facts['threads']} threads" if facts.get("threads") else ""
    return f"{facts['device']} ({facts.get('device_name')}{threads})"


def html(report: RunsReport) -> str:
    """Return a report on training runs as a page."""
    return render(
        "runs.html",
        report=report,
        image_path=_image_path,
        confidence=lambda run, index: float(run.test.probabilities[index, run.test.predicted[index]]),
        wrong_in=lambda run, index: _wrong_in([each.run for each in report.details], run, index),
        epoch_columns=_epoch_columns,
        percent=percent,
        number=lambda value: "–" if finite(value) is None else f"{value:,.5g}",
        accuracy_text=lambda value: "–" if finite(value) is None else f"{value:.2f}",
    )


def _image_path(run: RunRecord, index: int) -> str:
    assert run.test is not None
    name = run.test.names[index]
    return printable(str(Path(run.test.source) / name) if run.test.files else name)


def _wrong_in(runs: Sequence[RunRecord], run: RunRecord, index: int) -> str:
    """Return in how many of the runs with the same test images an image is classified wrongly; empty for one run."""
    assert run.test is not None
    name = run.test.names[index]
    same = [
        each.test
        for each in runs
        if each.test is not None and each.classes == run.classes and each.test.names[index : index + 1] == [name]
    ]
    if len(same) < 2:
        return ""
    wrong = sum(bool(test.predicted[index] != test.labels[index]) for test in same)
    return f"wrong in {wrong} of {len(same)} runs"


_COLUMNS = ("train_loss", "val_loss", "train_acc", "val_acc", "lr", "images_per_second", "epoch_time")


def _epoch_columns(run: RunRecord) -> list[str]:
    return [key for key in _COLUMNS if any(key in record for record in run.history)]
