"""Matching of runs with the cards of their recipe."""

from __future__ import annotations

from typing import Any

from vitctl.config.keys import FLAGS
from vitctl.config.resolution import resolve_config
from vitctl.config.train_config import TrainConfig
from vitctl.recipes import RECIPES, Card
from vitctl.units import parse_duration


def find_card(config: TrainConfig, precision: str) -> Card | None:
    """Return the card that a run with these settings can be compared with, or None.

    Network, data set, length and precision must match the card, and every other setting that affects the result must
    match the recipe. Seed, device, threads and similar settings may differ.

    Args:
        config: settings of the run.
        precision: precision of the run: ``fp32``, ``bf16`` or ``fp16``.
    """
    for card in RECIPES[config.recipe].cards if config.recipe in RECIPES else ():
        if (card.net, card.dataset, card.precision) == (config.net, config.dataset, precision):
            length = "max_time" if card.max_time else "max_steps" if card.max_steps else "epochs"
            asked = {"recipe": config.recipe, "dataset": card.dataset, length: getattr(card, length)}
            asked |= {"opt": card.opt} if card.opt else {}
            usual = resolve_config(asked)
            if usual.net != card.net:
                usual = resolve_config({**asked, "net": card.net})
            if _relevant_settings(usual) == _relevant_settings(config):
                return card
    return None


def _relevant_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that affect the result, apart from the seed."""
    free = {name for name, flag in FLAGS.items() if flag.resumable and name not in ("epochs", "max_steps")}
    relevant = {name: value for name, value in config.to_dict().items() if name not in free | {"seed"}}
    if config.max_time:  # max_steps then depends on the machine
        relevant |= {"max_time": parse_duration(config.max_time, "--max-time"), "max_steps": None, "refits": None}
    return relevant
