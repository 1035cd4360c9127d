"""``method: random`` draws with replacement as W&B's does; sweeps of earlier versions keep drawing without."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from tests.conftest import Cli
from tests.sweep.conftest import sweep_file, sweep_text
from tests.sweep.fake import make_sweep, run_agent
from vitctl.sweep.sampler import SpaceSampler
from vitctl.sweep.sweep import find_sweep

TWO = {"lr": {"values": [1e-3, 2e-3]}, "epochs": {"value": 1}}


def test_proposals_have_the_probabilities_of_independent_draws() -> None:
    space = sweep_file(
        {"lr": {"values": [1.0, 2.0, 3.0]}, "bs": {"values": [8, 16], "probabilities": [0.2, 0.8]}}
    ).space
    sampler = SpaceSampler(space, "random", seed=0, replacement=True)
    trials: list[Any] = [SimpleNamespace(number=number, system_attrs={}) for number in range(4000)]
    counts = Counter(space.key(sampler.propose(None, trial, {})) for trial in trials)  # type: ignore[arg-type]
    expected = {(bs, lr): 4000 / 3 * share for bs, share in ((8, 0.2), (16, 0.8)) for lr in (1.0, 2.0, 3.0)}
    assert counts.keys() == expected.keys()
    assert stats.chisquare([counts[key] for key in expected], [*expected.values()]).pvalue > 1e-3


@pytest.mark.usefixtures("forked_trainers")
def test_a_finite_space_is_drawn_from_until_run_cap(tmp_path: Path) -> None:
    sweep = make_sweep(sweep_text(TWO, run_cap=5), tmp_path)
    assert run_agent(sweep)[0] == "finished"
    rows = sweep.rows()
    assert [row.state for row in rows] == ["complete"] * 5 and len({row.params["lr"] for row in rows}) == 2
    assert (sweep.left(sweep.ledger()), sweep.state(sweep.ledger(), "running")) == (0, "finished")


@pytest.mark.usefixtures("forked_trainers")
def test_without_run_cap_a_finite_space_does_not_end(tmp_path: Path) -> None:
    sweep = make_sweep(sweep_text(TWO), tmp_path)
    assert run_agent(sweep, count=4)[0] == "count"
    assert sweep.left(sweep.ledger()) is None and sweep.state(sweep.ledger(), "running") == "waiting"


@pytest.mark.usefixtures("forked_trainers")
def test_sweeps_of_earlier_versions_end_after_all_parameter_sets(tmp_path: Path) -> None:
    sweep = find_sweep(make_sweep(sweep_text(TWO), tmp_path, format=1).id, tmp_path)  # the rule is stored
    assert not sweep.plan.replacement
    assert run_agent(sweep)[0] == "finished"
    assert sorted(float(str(row.params["lr"])) for row in sweep.rows()) == [1e-3, 2e-3]


@pytest.mark.parametrize(("method", "repeats"), [("random", True), ("bayes", False)])
def test_a_dry_run_shows_the_draws(cli: Cli, method: str, repeats: bool) -> None:
    Path("s.yaml").write_text(sweep_text(TWO, method=method))
    shown = json.loads(cli("sweep", "create", "s.yaml", "--dry-run", 6, "--seed", 1, "--json").out)
    assert len(shown["samples"]) == (6 if repeats else 2)
    assert any("does not end after 2 parameter sets; add --run-cap 2" in note for note in shown["notes"]) == repeats


@pytest.mark.parametrize(("method", "replacement"), [("random", True), ("bayes", False), ("grid", False)])
def test_only_random_sweeps_draw_with_replacement(tmp_path: Path, method: str, replacement: bool) -> None:
    sweep = make_sweep(sweep_text(TWO, method=method), tmp_path)
    assert find_sweep(sweep.id, tmp_path).plan.replacement is replacement
