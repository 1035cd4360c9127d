"""A run beside the card of its recipe: is its accuracy what is usual?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitctl.config import FLAGS, TrainConfig, resolve_config
from vitctl.recipes import RECIPES, Band, Card
from vitctl.units import format_duration, parse_duration, plural

if TYPE_CHECKING:
    from vitctl.training.session import Session

Record = dict[str, Any]


def find_card(config: TrainConfig) -> Card | None:
    """Return the card that a run with these settings can be compared with, or None.

    There is one when the recipe was measured with this network, data set and number of epochs, and nothing else that
    decides what is computed differs from the recipe: seed, device, threads and the like may.
    """
    for card in RECIPES[config.recipe].cards if config.recipe in RECIPES else ():
        if (card.net, card.dataset) == (config.net, config.dataset):
            length = "max_time" if card.max_time else "max_steps" if card.max_steps else "epochs"
            asked = {"recipe": config.recipe, "dataset": card.dataset, length: getattr(card, length)}
            asked |= {"opt": card.opt} if card.opt else {}
            usual = resolve_config(asked)
            if usual.net != card.net:
                usual = resolve_config({**asked, "net": card.net})
            if _what_counts(usual) == _what_counts(config):
                return card
    return None


def _what_counts(config: TrainConfig) -> dict[str, Any]:
    free = {name for name, flag in FLAGS.items() if flag.resumable and name not in ("epochs", "max_steps")}
    counts = {name: value for name, value in config.to_dict().items() if name not in free | {"seed"}}
    if config.max_time:  # the machine says how many steps fit
        counts |= {"max_time": parse_duration(config.max_time, "--max-time"), "max_steps": None}
    return counts


class CardWatch:
    """Says once when the held-out accuracy falls below the card's band, and compares the test accuracy at the end.

    Args:
        session: of the run. One whose length was changed on the way, so that earlier epochs had other learning rates,
            is not compared.
    """

    def __init__(self, session: Session) -> None:
        self.recipe = session.config.recipe
        self.card = find_card(session.config)
        self.steps = session.total_steps
        self.warned = False
        for row in session.history:
            if not math.isclose(row["lr"], session.lr(row["step"] - 1), rel_tol=1e-6, abs_tol=1e-12):
                self.card = None

    def expect(self, say: Callable[[str], None]) -> None:
        """Say what accuracy is usual."""
        if self.card is None:
            return
        if self.card.max_time:
            steps, length = self.card.max_steps, f"within {self.card.max_time} "
            took = f"{plural(steps or 0, 'step')} on {self.card.machine}, and {self.steps:,} fit here"
        else:
            length, took = "", f"{format_duration(self.card.seconds)} on {self.card.machine}"
        say(
            f"recipe {self.recipe}: {self.card.test_acc} on the test set is usual {length}({self.card.seeds_named}; {took})"
        )

    def epoch(self, row: Record, say: Callable[[str], None]) -> None:
        """Compare the record of an epoch."""
        if self.card is None or self.warned or "val_acc" not in row or row["epoch"] > len(self.card.val_acc):
            return
        band = self.card.val_acc[row["epoch"] - 1]
        if row["val_acc"] < band.floor:
            self.warned = True
            what = "test" if row["val_split"] == "test" else "held-out"
            after = f"after {row['epoch']} of {plural(self.card.epochs, 'epoch')}"
            say(self._sentence(f"{what} accuracy", row["val_acc"], band, after))

    def final(self, summary: Record, say: Callable[[str], None]) -> Record:
        """Compare the final figures; return ``card`` for the summary: the card's band and whether the run is below.

        A run for which fewer steps fit into ``--max-time`` than into the card's is not expected to reach as much.
        """
        if self.card is None or summary["stopped_early"]:
            return {}
        band = self.card.test_acc
        below = summary["test_acc"] < band.floor and not (
            self.card.max_time and self.steps < (self.card.max_steps or 0)
        )
        if below:
            say(self._sentence("test accuracy", summary["test_acc"], band))
        return {"card": {"test_acc": band.mean, "deviation": band.deviation, "below": below}}

    def _sentence(self, what: str, accuracy: float, band: Band, after: str = "") -> str:
        card = self.card
        assert card is not None
        if not after:
            after = f"after {plural(card.max_steps, 'step') if card.max_steps else plural(card.epochs, 'epoch')}"
        return (
            f"below the card's band: {what} {accuracy:.1f} % where {band} is usual for recipe {self.recipe} {after} "
            f"(measured with {card.versions}, {card.machine}); are the data and the versions the same?"
        )
