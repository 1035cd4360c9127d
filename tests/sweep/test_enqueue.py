"""Errors for parameters that cannot be enqueued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fake import run_agent
from tests.sweep.test_agent import small
from vitctl.errors import RequestError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lrr": 1}, "does not vary 'lrr'\nhint: did you mean lr"),
        ({"epochs": 2}, "which is 3 in all trials"),
        ({"lr": "fast"}, "takes a number"),
        ({"lr": 1}, "out of range"),
        ({"lr": 0.00015}, "hint: use lr=0.0001"),
    ],
)
def test_bad_parameters_are_not_enqueued(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        small(tmp_path).enqueue(given)


def test_values_are_enqueued_by_any_name_of_a_parameter(tmp_path: Path) -> None:
    parameters = {"learning_rate": {"values": [1e-3, 2e-3]}, "dropout": {"values": [0.0, 0.1]}}
    sweep = small(tmp_path, parameters=parameters)
    sweep.enqueue({"lr": "0.002", "drop_rate": "0.1"})
    (row,) = sweep.rows()
    assert row.params == {"learning_rate": 2e-3, "net_options.dropout": 0.1}


def test_a_parameter_set_is_not_enqueued_twice(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=2)
    sweep.enqueue({"lr": "0.0007", "weight_decay": "0.02"})
    with pytest.raises(RequestError, match="trial 0 already has these parameters"):
        sweep.enqueue({"lr": "7e-4", "weight_decay": 0.02})
    sweep.enqueue({"lr": 1e-3})
    with pytest.raises(RequestError, match="is full: it has 2 trials, and run_cap is 2"):
        sweep.enqueue({"lr": 1e-4})


@pytest.mark.usefixtures("forked_trainers")
def test_points_of_an_exhausted_grid_are_not_enqueued(tmp_path: Path) -> None:
    sweep = small(tmp_path, "grid", {"lr": {"values": [1e-3, 2e-3]}, "epochs": {"values": [1, 2]}})
    run_agent(sweep, count=2)
    with pytest.raises(RequestError, match=r"all grid points of test\.yaml with epochs=1 were already tried"):
        sweep.enqueue({"epochs": 1})
