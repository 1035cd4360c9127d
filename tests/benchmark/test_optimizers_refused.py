"""Error messages of ``compare-optimizers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.test_optimizers import COMPARE
from tests.conftest import Cli


def test_all_runs_diverge(refused: Any) -> None:
    error = refused(*COMPARE, "adam:lr=1e30", "sgd:lr=1e30", "--seeds", 1, code=1)
    assert "all runs diverged" in error and "at step" in error and "hint: use lower learning rates" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["adam", "sgd", "--seeds", "0"], "--seeds 0"),
        (["adam", "sdg"], "did you mean sgd"),
        (["adam", "sgd", "--device", "cuda:7"], "--device cuda:7"),
        (["adam", "sgd", "--storage", "x"], "--from-sweep"),
        (["adam", "sgd", "--out", "x.pdf"], ".json, .csv"),
        (["adam", "sgd", "--name", "a/b"], "not a valid folder name"),
        (["adam", "sgd", "--from-sweep", "nope"], "sweep 'nope' not found"),
        (["adam", "sgd", "--from-sweep", "a/b/c"], "is a sweep of --engine wandb"),
    ],
)
def test_refused_before_any_work(refused: Any, tmp_path: Path, words: list[str], expected: str) -> None:
    assert expected in refused(*COMPARE, *words)
    assert not (tmp_path / "runs" / "comparisons").exists()


def test_the_name_of_another_comparison_is_refused(cli: Cli, refused: Any, tmp_path: Path) -> None:
    words = [*COMPARE, "adam", "sgd", "--seeds", 1]
    assert cli(*words, "--name", "x").code == 0
    assert "epochs 2 (stored: 1)" in refused(*COMPARE, "--epochs", 2, "adam", "sgd", "--seeds", 1, "--name", "x")
    assert "exists and is not overwritten" in refused(*words, "--name", "x", "--new")
    (tmp_path / "runs" / "comparisons" / "y").mkdir()
    assert "is not a comparison" in refused(*words, "--name", "y")
    (tmp_path / "runs" / "comparisons" / "y" / "comparison.json").write_text("{")
    assert "is damaged" in refused(*words, "--name", "y")
    # without a name, the newest comparison with the same arguments is resumed; --new starts another
    place = tmp_path / "runs" / "comparisons"
    counts = []
    for more in ([], [], ["--new"], []):
        assert cli(*words, *more).code == 0
        counts.append(len(list(place.glob("cct_2-digits-*"))))
    assert counts == [1, 1, 2, 2]
