"""Early termination compared with ``stop_runs`` of W&B's ``sweeps`` package."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sweep.conftest import fixture
from vitctl.sweep.hyperband import Hyperband

CASES = fixture("hyperband.json")


@pytest.mark.parametrize("strict", [True, False])
def test_decisions_match_wandb_on_a_thousand_histories(strict: bool) -> None:
    stopped = 0
    for case in CASES:
        sign = -1 if case["goal"] == "maximize" else 1
        histories = [[sign * value for value in history if value is not None] for _, history in case["runs"]]
        hyperband = Hyperband.from_settings({**case["settings"], "strict": strict})
        mine = [
            i
            for i, (state, _) in enumerate(case["runs"])
            if state == "R" and hyperband.stops(histories[i], [history for history in histories if history])
        ]
        assert mine == case["strict" if strict else "loose"], case
        stopped += len(mine)
    assert sum(len(case["runs"]) for case in CASES) == 1000 and stopped > 20


@pytest.mark.parametrize(
    ("settings", "bands"),
    [
        ({"min_iter": 3}, (3, 9, 27, 81)),
        ({"min_iter": 2, "eta": 1.5}, (2, 3, 4, 6)),
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 27, "s": 9}, (1, 3, 9)),
        ({"max_iter": 20, "s": 2, "min_iter": 5}, (2, 6)),
    ],
)
def test_bands_follow_from_the_settings(settings: dict[str, Any], bands: tuple[int, ...]) -> None:
    assert Hyperband.from_settings(settings).bands[:4] == bands


def test_strict_is_the_default_as_in_wandb() -> None:
    assert Hyperband.from_settings({"min_iter": 3}).strict


@pytest.mark.parametrize("settings", [{"min_iter": 3, "eta": 1500.5}, {"min_iter": 10**300, "eta": 10.5}])
def test_the_number_of_bands_is_limited(settings: dict[str, Any]) -> None:
    assert 1 <= len(Hyperband.from_settings(settings).bands) < 10


def test_a_single_trial_is_not_stopped() -> None:
    assert not Hyperband((1, 3)).stops([5.0, 5.0, 5.0], [[5.0, 5.0, 5.0]])
