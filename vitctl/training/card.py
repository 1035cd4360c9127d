"""A run beside the card of its recipe: is its accuracy what is usual?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitctl.recipes import Band, Card
from vitctl.units import format_duration, plural

if TYPE_CHECKING:
    from vitctl.training.session import Session

Record = dict[str, Any]


class CardWatch:
    """Says once when the held-out accuracy falls below the card's band, and compares the test accuracy at the end.

    Args:
        session: the session of the run. A run whose length was changed is not compared, as its earlier epochs had other
            learning rates.
        card: the recipe card to compare the run with, or None.
    """

    def __init__(self, session: Session, card: Card | None) -> None:
        self.recipe = session.config.recipe
        self.card = card
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
