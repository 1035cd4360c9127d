"""Modes of ``vitctl train`` and the flags that each accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitctl.config import FLAGS, flag_name
from vitctl.config.flag import AUGMENTATION, DATA, DEVICE, LOGGING, NETWORK, OPTIMIZER, RUN, SCHEDULE
from vitctl.errors import RequestError
from vitctl.recipes import RECIPES


def _panels(*panels: str) -> frozenset[str]:
    return frozenset(name for name, flag in FLAGS.items() if flag.panel in panels)


@dataclass(frozen=True)
class Mode:
    """A mode of ``train``.

    Attributes:
        flag: the flag that selects the mode; empty for a new run.
        does: what the mode does, as a clause for error messages: "--lr-finder, which only takes a few steps".
        uses: settings and flags that have an effect in this mode.
        by_length: also accept ``--epochs`` and ``--max-time`` if the recipe's settings depend on them.
    """

    flag: str
    does: str
    uses: frozenset[str]
    by_length: bool = False

    def refuse_others(self, given: Mapping[str, object], recipe: str) -> None:
        """Refuse flags that have no effect in this mode.

        Args:
            given: settings and flags of the command line by name; None, False and ``disabled`` count as not given.
            recipe: name of the recipe.

        Raises:
            RequestError: a flag has no effect; the message names the first.
        """
        uses = set(self.uses)
        if self.by_length and recipe in RECIPES:
            uses |= {"epochs"} if RECIPES[recipe].by_epochs else set()
            uses |= {"max_time"} if RECIPES[recipe].by_time else set()
        for name, value in given.items():
            if not (value is None or value is False or value == "disabled" or name in uses):
                raise RequestError(
                    f"{flag_name(name)} does nothing with {self.flag}, which {self.does}",
                    hint=f"remove {flag_name(name)}",
                )


_ALL = frozenset(FLAGS)
_TRACKERS = _panels(LOGGING)
MODES = {
    "preview_batch": Mode(
        "--preview-batch",
        "only plots a batch",
        _panels(RUN, NETWORK, DATA, AUGMENTATION) - {"freeze_backbone", "loss_sum", "mix_off", "tta"}
        | {"bs", "accumulate", "device", "threads"}
        | {"preview_batch", "config", "json"},
        by_length=True,
    ),
    "lr_finder": Mode(
        "--lr-finder",
        "only takes a few steps",
        _panels(RUN, NETWORK, DATA, AUGMENTATION, OPTIMIZER, SCHEDULE, DEVICE)
        - {
            "epochs",
            "max_time",
            "loss_sum",
            "schedule",
            "schedule_per",
            "warmup",
            "warmup_epochs",
            "warmup_steps",
            "warmdown",
            "patience",
            "mix_off",
            "ema",
            "tta",
        }
        | {"lr_finder", "lr_finder_out", "config", "json"},
        by_length=True,
    ),
    "resume": Mode("--resume", "uses the settings of the run", _ALL | {"resume", "accept_data", "runs_dir", "json"}),
    "print_config": Mode("--print-config", "only prints the settings", _ALL | {"print_config", "config"}),
    "dry_run": Mode(
        "--dry-run",
        "only takes a few steps",
        _ALL - _TRACKERS - {"keep", "patience", "save_every"} | {"dry_run", "config", "json"},
    ),
}
"""Every mode except a new run, by the name of its flag. If two are given, the first in this order refuses the other."""

NEW_RUN = Mode("", "", _ALL | {"name", "runs_dir", "config", "json"})


def choose_mode(given: Mapping[str, object], recipe: str) -> str:
    """Return the name of the mode that the command line selects; ``run`` for a new run.

    Args:
        given: see :meth:`Mode.refuse_others`.
        recipe: name of the recipe.

    Raises:
        RequestError: a flag has no effect in the mode.
    """
    if given.get("accept_data") and given.get("resume") is None:
        raise RequestError("--accept-data does nothing without --resume", hint="add --resume RUN")
    if given.get("lr_finder_out") is not None and not given.get("lr_finder"):
        raise RequestError("--lr-finder-out does nothing without --lr-finder", hint="add --lr-finder")
    for name, mode in MODES.items():
        if given.get(name) not in (None, False):
            mode.refuse_others(given, recipe)
            return name
    NEW_RUN.refuse_others(given, recipe)
    return "run"
