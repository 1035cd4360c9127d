"""Notes on what W&B's rules do and few expect, and on settings that trials do not get."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tests.sweep.conftest import sweep_file
from vitctl.sweep.file import check_fixed, check_trains
from vitctl.sweep.notes import command_notes, goal_notes, grid_notes, notes_of

LR = {"lr": {"values": [0.1, 0.2]}}


@pytest.mark.parametrize(
    ("parameters", "note"),
    [
        ({"weight_decay": {"min": 0, "max": 1}}, "weight_decay: only whole numbers are drawn"),
        ({"net_options.dropout": {"min": 0, "max": 1}}, "net_options.dropout: only whole numbers are drawn"),
        ({"weight_decay": {"min": 0, "max": 1, "distribution": "int_uniform"}}, None),
        ({"weight_decay": {"min": 0.0, "max": 1}}, None),
        ({"epochs": {"min": 1, "max": 3}}, None),
        ({"net_options.depth": {"min": 1, "max": 3}}, None),
    ],
)
def test_whole_bounds_of_a_rate_are_noted(parameters: dict[str, Any], note: str | None) -> None:
    found = [each for each in sweep_file(parameters).notes if "whole" in each]
    assert not found if note is None else note in found[0] and "for fractions use min: 0.0" in found[0]


@pytest.mark.parametrize(
    ("name", "goal", "hint"),
    [
        ("val_acc", "minimize", "use goal: maximize"),
        ("train_loss", "maximize", "use goal: minimize"),
        ("val_acc", "maximize", None),
        ("val_loss", "minimize", None),
        ("images_per_second", "minimize", None),
    ],
)
def test_goals_that_find_the_worst_trial_are_noted(name: str, goal: str, hint: str | None) -> None:
    notes = goal_notes(sweep_file(LR, metric={"name": name, "goal": goal}))
    assert not notes if hint is None else hint in notes[0]


@pytest.mark.parametrize(
    ("low", "high", "q", "last", "hint"),
    [
        (0.1, 0.5, 0.1, "0.4", "use max: 0.55"),
        (0, 3, 1, "2", "use max: 3.5"),
        (0.0, 1.0, 0.3, None, None),
        (0.0, 1.0, 0.4, "0.8", None),
    ],
)
def test_a_max_that_a_grid_leaves_out_is_noted(low: float, high: float, q: float, last: str, hint: str | None) -> None:
    def grid(high: float) -> Any:
        return sweep_file({"lr": {"distribution": "q_uniform", "min": low, "max": high, "q": q}}, method="grid")

    (note,) = grid_notes(grid(high))
    end = grid(high).space.varying["lr"].grid()[-1]
    assert f"the grid ends at {end}, before max" in note and (last is None or str(end) == last)
    assert (hint in note) if hint else "use max" not in note
    if hint:
        assert grid(float(hint.split()[-1])).space.varying["lr"].grid()[-1] == high


def test_a_random_search_has_no_grid_note() -> None:
    assert not grid_notes(sweep_file({"lr": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}}))


COMMAND = [
    *("${env}", "python3", "-m", "${program}", "--epochs", 5, "--batch-size=64", "--lr", 0.1, "--weight-decay", "0.05"),
    *("--label_smoothing", "0.1", "--decay-all", "--amp-level", "O1", "--model", "unet", "--hidden", 1, 2, "${args}"),
]


def test_settings_hidden_in_the_command_are_named_with_fixed() -> None:
    file = sweep_file(LR, command=COMMAND)
    ours, others = command_notes(file, {})
    flags = shlex.split(ours)[shlex.split(ours).index("add") + 1 :]
    assert flags[::2] == ["--fixed"] * 5
    settings = dict(flag.split("=") for flag in flags[1::2])
    assert settings == {
        "epochs": "5",
        "bs": "64",
        "weight_decay": "0.05",
        "label_smoothing": "0.1",
        "decay_all": "true",
    }
    assert "accept its --amp-level O1, --model unet, --hidden 1 2" in others
    fixed = check_fixed(file, settings)
    check_trains(file, fixed)
    assert command_notes(file, fixed) == [others]


def test_a_command_of_macros_has_no_note() -> None:
    command = ["${env}", "${interpreter}", "${program}", "${args_no_boolean_flags}"]
    assert not command_notes(sweep_file(LR, command=command), {})


def test_notes_are_one_sentence_each() -> None:
    parameters = {
        **LR,
        "weight_decay": {"min": 0, "max": 1},
        "dropout": {"values": [0.0, 0.1]},
        "warmup": {"distribution": "q_uniform", "min": 0.0, "max": 0.2, "q": 0.1},
    }
    for method in ("random", "grid"):
        file = sweep_file(parameters, method=method, metric={"name": "val_acc"})
        notes = notes_of(file, {}, None)
        assert len(notes) == 5 and not any(note.endswith(".") or len(note) > 110 for note in notes), notes
