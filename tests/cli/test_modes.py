"""Modes of ``train``: which flags each accepts."""

from __future__ import annotations

from typing import Any

import pytest

from vitctl.cli.modes import MODES, NEW_RUN, choose_mode
from vitctl.config import FLAGS, flag_name
from vitctl.errors import RequestError

OWN = (
    "resume",
    "accept_data",
    "name",
    "runs_dir",
    "config",
    "print_config",
    "dry_run",
    "lr_finder",
    "lr_finder_out",
    "preview_batch",
    "json",
)
"""Flags of ``train`` that are not settings."""


@pytest.mark.parametrize("mode", [*MODES, "run"])
def test_a_mode_accepts_flags_that_it_uses_and_refuses_others(mode: str) -> None:
    asked: dict[str, Any] = {} if mode == "run" else {mode: True}
    uses = NEW_RUN.uses if mode == "run" else MODES[mode].uses
    for name in (*FLAGS, *OWN):
        if name in MODES and name != mode:
            continue
        if name in uses or name == mode:
            assert choose_mode({**asked, name: "x"}, "seed") == mode, name
        else:
            flag = flag_name(name)
            with pytest.raises(RequestError, match=rf"^{flag} does nothing with.*\nhint: (remove {flag}$|add --)"):
                choose_mode({**asked, name: "x"}, "seed")


@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_two_modes_are_refused(first: str, second: str) -> None:
    if first == second:
        assert choose_mode({first: True}, "seed") == first
    else:
        with pytest.raises(RequestError, match=r"^--\S+ does nothing with --\S+, which .*\nhint: remove --"):
            choose_mode({first: True, second: True}, "seed")


def test_every_flag_is_in_the_table_of_modes() -> None:
    used = set().union(*(mode.uses for mode in MODES.values()), NEW_RUN.uses)
    assert used == {*FLAGS, *OWN}


@pytest.mark.parametrize("mode", ["lr_finder", "preview_batch"])
def test_a_length_is_accepted_if_the_recipe_depends_on_it(mode: str) -> None:
    assert choose_mode({mode: True, "epochs": 1}, "vit_small") == mode
    with pytest.raises(RequestError, match="--epochs does nothing with --"):
        choose_mode({mode: True, "epochs": 1}, "seed")


@pytest.mark.parametrize("value", [None, False, "disabled"])
def test_a_flag_with_an_off_value_counts_as_not_given(value: object) -> None:
    assert choose_mode({"dry_run": True, "wandb": value, "tensorboard": value}, "seed") == "dry_run"
