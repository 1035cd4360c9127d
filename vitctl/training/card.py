"""Comparison of a run's accuracy with the card of its recipe."""

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
    """Warns once if an epoch's accuracy is below the card's band, and compares the test accuracy at the end.

    Args:
        session: session of the run. A run whose length was changed is not compared, as its earlier epochs had different
            learning rates.
        card: the recipe's card, or None for no comparison.
    """

    def __init__(self, session: Session, card: Card | None) -> None:
        self.recipe = session.config.recipe
        self.card = card
        self.session = session
        self.warned = False
        for row in session.history:
            if not math.isclose(row["lr"], session.lr(row["step"] - 1), rel_tol=1e-6, abs_tol=1e-12):
                self.card = None

    def expect(self, say: Callable[[str], None]) -> None:
        """Report the accuracy that the recipe usually reaches."""
        if self.card is None:
            return
        if self.card.max_time:
            limit = f" within {self.card.max_time}"
            steps = f"{plural(self.card.max_steps or 0, 'step')} on {self.card.machine}"
            took = f"{steps}, {self.session.total_steps:,} on this machine"
        else:
            limit, took = "", f"{format_duration(self.card.seconds)} on {self.card.machine}"
        say(
            f"recipe {self.recipe} usually reaches {self.card.test_acc} test accuracy{limit} "
            f"({self.card.seeds_named}; {took})"
        )

    def epoch(self, row: Record, say: Callable[[str], None]) -> None:
        """Warn if the accuracy of an epoch is below the card's band, unless this was done before."""
        if self.card is None or self.warned or "val_acc" not in row or row["epoch"] > len(self.card.val_acc):
            return
        band = self.card.val_acc[row["epoch"] - 1]
        if row["val_acc"] < band.floor:
            self.warned = True
            what = "test" if row["val_split"] == "test" else "held-out"
            after = f"after {row['epoch']} of {plural(self.card.epochs, 'epoch')}"
            say(self._warning(f"{what} accuracy", row["val_acc"], band, after))

    def final(self, summary: Record, say: Callable[[str], None]) -> Record:
        """Compare the final figures, and return the summary's ``card``: the band, and whether the run is below it.

        If fewer steps fit into ``--max-time`` than in the card's runs, the run is not expected to reach the band.
        """
        if self.card is None or summary["stopped_early"]:
            return {}
        band = self.card.test_acc
        shorter = self.card.max_time and self.session.total_steps < (self.card.max_steps or 0)
        below = summary["test_acc"] < band.floor and not shorter
        if below:
            say(self._warning("test accuracy", summary["test_acc"], band))
        return {"card": {"test_acc": band.mean, "deviation": band.deviation, "below": below}}

    def _warning(self, what: str, accuracy: float, band: Band, after: str = "") -> str:
        card = self.card
        assert card is not None
        if not after:
            after = f"after {plural(card.max_steps, 'step') if card.max_steps else plural(card.epochs, 'epoch')}"
        return (
            f"warning: {what} {accuracy:.1f} % is below the {band} that is usual for recipe {self.recipe} {after}\n"
            f"check that data and versions match the recipe's runs ({card.versions}, {card.machine})"
        )
