"""Lengths of the warm-up: a fraction of the run, epochs or steps."""

from __future__ import annotations

import re

from vitctl.errors import RequestError
from vitctl.registry import check_range, convert

WARMUP_UNITS = {"warmup_epochs": "ep", "warmup_steps": "st"}
"""Other flags that set the warm-up, and their units."""

FEWEST_STEPS = 100
"""Smallest number that means steps without a unit; a smaller one may also mean epochs."""

_WARMUP = re.compile(r"(\d+(?:\.\d+)?)\s*(ep|st)(?:ochs?|eps?)?")


def parse_warmup(value: object, what: str) -> float | str:
    """Parse ``0.05`` (a fraction of the run), ``5ep`` (epochs), and ``500`` or ``500st`` (steps).

    Args:
        value: the value of a flag or file.
        what: name of the flag or key in errors.

    Returns:
        The fraction as a number, or text in the form of ``5ep`` or ``500st``.

    Raises:
        RequestError: another value, such as 5, which may mean epochs or steps.
    """
    word = str(value).strip().lower()
    match = _WARMUP.fullmatch(word)
    if match and (match[2] == "ep" or float(match[1]).is_integer()):
        count = float(match[1])
        return f"{count:.10g}{match[2]}" if count else 0.0
    try:
        number = convert(value, float, what)
    except RequestError as error:
        raise RequestError(
            f"{what} takes a fraction, epochs or steps, not {value!r}",
            hint="use 0.05 for a fraction of the run, 5ep for epochs, or 500st for steps",
        ) from error
    if number >= FEWEST_STEPS and number.is_integer():
        return f"{number:.0f}st"
    check_range(number, what, low=0)
    if number >= 1:
        raise RequestError(
            f"{what} {number:g} has no unit",
            hint=f"use {number:g}ep for epochs, {max(1, round(number))}st for steps, or 0.05 for a fraction of the run",
        )
    return float(number)


def split_warmup(warmup: float | str) -> tuple[float, str]:
    """Return the number and the unit of a parsed warm-up: ``ep``, ``st``, or empty for a fraction of the run."""
    return (float(warmup[:-2]), warmup[-2:]) if isinstance(warmup, str) else (warmup, "")
