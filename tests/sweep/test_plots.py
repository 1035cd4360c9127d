"""Plots and pages of sweeps, from fabricated trials."""

from __future__ import annotations

import math
import xml.dom.minidom
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.conftest import Cli
from tests.report.test_page import HOSTILE, parse
from tests.sweep.conftest import sweep_text
from tests.sweep.fake import make_sweep
from vitctl.errors import RequestError
from vitctl.sweep.plots import FORMATS, KINDS, SweepReport, plot
from vitctl.sweep.sweep import Sweep

Refused = Callable[..., str]

EPOCHS = 6
PARAMETERS = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
    "weight_decay": {"values": [0.0, 0.05]},
    "warmup": {"min": 0.0, "max": 0.5},
    "opt": {"values": ["adan", "adamw", "sgd"]},
}


def value_of(lr: float, epoch: int) -> float:
    return (70 - 8 * (math.log10(lr) + 2.5) ** 2) * (1 - 0.5**epoch)


def add_trials(sweep: Sweep, count: int) -> Sweep:
    """Add trials that were never run: every third is stopped early, one has failed."""
    varying = sweep.file.space.varying
    with sweep.changing() as study:
        for number in range(count):
            shares = [(number * step + 0.3) % 1 for step in (0.618034, 0.7548777, 0.5698403, 0.8191725)]
            params = {name: varying[name].quantile(share) for name, share in zip(varying, shares, strict=True)}
            state = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED][number % 3]
            user: dict[str, Any] = {"run": f"runs/{number}"}
            if number == 4:
                state, user["failure"] = TrialState.FAIL, HOSTILE
            epochs = {TrialState.COMPLETE: EPOCHS, TrialState.PRUNED: 1 + number % 4}.get(state, 0)
            lr = float(params["lr"] if isinstance(params["lr"], (int, float)) else 0)
            values = {epoch: value_of(lr, epoch) for epoch in range(1, epochs + 1)}
            study.add_trial(
                optuna.create_trial(
                    state=state,
                    params=params,
                    distributions={name: parameter.optuna() for name, parameter in varying.items()},
                    intermediate_values=values,
                    value=values[EPOCHS] if state == TrialState.COMPLETE else None,
                    user_attrs=user,
                )
            )
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    text = sweep_text(PARAMETERS, method="random", run_cap=20)
    return add_trials(make_sweep(text, tmp_path / "runs"), 20)


def test_the_page_shows_the_best_trials_importance_values_and_early_stops(sweep: Sweep) -> None:
    report = SweepReport(sweep)
    html = report.page(report.sections())
    found = parse(html)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert "window.hacked" in found.text and "<img src=x" not in html  # the failure of a trial is text
    rows = [row for row in sweep.rows() if row.state == "complete"]
    best = max(rows, key=lambda row: row.value or 0.0)
    assert report.verdict.startswith(f"Trial {best.trial} has the best val_acc: {best.value:.2f} %")
    assert "13 complete, 6 stopped early, 1 failed" in report.verdict
    assert "important parameter is lr" in report.verdict  # the values depend on nothing else
    assert f"vitctl sweep best {sweep.id} --config --runs-dir" in found.text


def test_the_trials_are_drawn_where_their_values_are(sweep: Sweep) -> None:
    report = SweepReport(sweep)
    (complete,) = [mark for mark in report.values().charts[0].marks if mark.label == "complete"]  # type: ignore[union-attr]
    rows = [row for row in sweep.rows() if row.state == "complete"]
    assert sorted(complete.x) == pytest.approx(sorted(row.params["lr"] for row in rows))  # type: ignore[union-attr, type-var]
    (parallel,) = report.parallel().charts[0].marks  # type: ignore[union-attr]
    assert [axis.name for axis in parallel.axes] == [*PARAMETERS, "val_acc"]  # type: ignore[union-attr]
    assert all(0 <= place <= 1 for line in parallel.lines for place in line)  # type: ignore[union-attr]
    assert parallel.lines[-1][-1] == 1.0  # type: ignore[union-attr]  # the best trial is in front
    best = report.history().charts[0].marks[0].y  # type: ignore[union-attr]
    assert list(best) == sorted(best) and best[-1] == report.best.value
    assert sum(report.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("form", FORMATS)
def test_each_kind_becomes_a_file_of_each_format(form: str, sweep: Sweep, tmp_path: Path) -> None:
    files = plot(sweep, list(KINDS), [form], tmp_path / "plots", pytest.fail)
    assert {file.name for file in files} == {f"{kind}.{form}" for kind in KINDS}
    for file in files:
        if form == "svg":
            xml.dom.minidom.parse(str(file))
        assert file.read_bytes().startswith({"png": b"\x89PNG", "html": b"<!doctype", "svg": b"<?xml"}[form])


@pytest.mark.parametrize("name", ["all.html", "all.PNG", "all.svg"])
def test_a_single_file_has_all_kinds(name: str, sweep: Sweep, tmp_path: Path, cli: Cli) -> None:
    result = cli("sweep", "plot", sweep.id, "--out", name)
    assert result.out.split() == [name] and (tmp_path / name).stat().st_size > 10_000
    if name.endswith("html"):
        assert {f'id="{kind}"' for kind in KINDS} <= set((tmp_path / name).read_text().split())


def test_a_file_has_one_format(sweep: Sweep, refused: Refused) -> None:
    assert "--format does nothing with" in refused("sweep", "plot", sweep.id, "--out", "a.png", "--format", "html")


def test_few_trials_leave_out_what_cannot_be_drawn(tmp_path: Path) -> None:
    sweep = make_sweep(sweep_text(PARAMETERS, method="random"), tmp_path)
    with pytest.raises(RequestError, match="no trial"):
        SweepReport(sweep)
    add_trials(sweep, 1)
    warned: list[str] = []
    files = plot(sweep, list(KINDS), ["png"], tmp_path / "plots", warned.append)
    assert {file.stem for file in files} == KINDS.keys() - {"importances"}
    assert warned == ["skipping importances: it needs two complete trials with different parameters"]
    assert SweepReport(sweep).curves().intro == "No trial was stopped early."


def test_report_accepts_the_id_or_the_folder_of_a_sweep(
    sweep: Sweep, cli: Cli, refused: Refused, tmp_path: Path
) -> None:
    for target in (sweep.id, sweep.folder):
        result = cli("report", target, "-o", "sweep.html", "--png", "charts")
        assert result.out.startswith("Trial "), result.err
        assert "All trials" in (tmp_path / "sweep.html").read_text()
    assert {path.stem for path in (tmp_path / "charts").iterdir()} >= {"history", "importances", "values-lr"}
    assert "is a sweep, which has a report of its own" in refused("report", "x", sweep.id)
    assert "--evaluate does nothing for a sweep" in refused("report", sweep.id, "--evaluate")
