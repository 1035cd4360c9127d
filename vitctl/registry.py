"""Tables of named things: networks, optimizers, data sets, recipes.

A table maps a name to an :class:`Entry`, which names the code and its options without importing it, so that help,
listings, completion and usage errors need no torch. A name with options is written ``NAME[:key=value,...]``.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitctl.errors import RequestError

Value = bool | int | float | str
"""Values of options."""

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """An option of a table's entry, of the type of its default.

    Attributes:
        default: the default value.
        help: half a line for ``--help`` and listings.
        choices: the only valid values, if any.
        low: smallest valid value.
        high: largest valid value.
        below: exclusive upper bound.
        above: exclusive lower bound.
        earlier: what runs did before the option existed, if not the default.
    """

    default: Value
    help: str = ""
    choices: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    above: float | None = None
    earlier: Value | None = None

    def parse(self, value: object, what: str) -> Value:
        """Convert ``value`` to this option's type.

        Args:
            value: text from the command line, or a scalar from a file.
            what: name of the option in error messages, such as ``--net vit:depth``.

        Raises:
            RequestError: wrong type, not among the choices, or out of range.
        """
        parsed: Value = convert(value, type(self.default), what)
        if self.choices and parsed not in self.choices:
            raise unknown(what, parsed, map(str, self.choices))
        check_range(parsed, what, low=self.low, high=self.high, below=self.below, above=self.above)
        return parsed


_KINDS: dict[type, tuple[str, str]] = {
    bool: ("true or false", "use true or false"),
    int: ("a whole number", "use a whole number such as 8"),
    float: ("a number", "use a number such as 0.1"),
    str: ("text", "use a word or a number; put quotes around true and false in YAML"),
}
"""What a value of each type is called, and the hint for a value of another type."""


def convert(value: object, kind: type, what: str) -> Any:
    """Convert ``value`` to ``kind``: bool, int, float or str.

    Raises:
        RequestError: ``value`` is not of that kind; ``what`` names the flag or key.
    """
    called, hint = _KINDS[kind]
    wrong = RequestError(f"{what} takes {called}, not {value!r}", hint=hint)
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise wrong
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise wrong
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)
        if kind is float:
            if not math.isfinite(number):
                raise wrong
            return number
        if isinstance(value, str) and value.lstrip("+-").isdigit():
            return int(value)
        if isinstance(value, int):
            return value
        if number.is_integer():
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise wrong


def check_range(
    value: object,
    what: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    above: float | None = None,
) -> None:
    """Check ``low <= value <= high`` and ``above < value < below`` for a number; other values pass.

    Raises:
        RequestError: ``value`` is out of range; ``what`` names the flag or key.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    small = (low is not None and value < low) or (above is not None and value <= above)
    large = (high is not None and value > high) or (below is not None and value >= below)
    if small or large:
        named = f"{what}{'=' if ':' in what else ' '}{_number(value)}"  # an option is written --net vit:depth=8
        hint = f"use {_range(low, high, below, above)}"
        raise RequestError(f"{named} is too {'small' if small else 'large'}", hint=hint)


def _range(low: float | None, high: float | None, below: float | None, above: float | None) -> str:
    """Describe the valid numbers, such as ``1 or more`` or ``a value of at least 0 and less than 1``."""
    if low is not None and high is not None:
        return f"a value from {_number(low)} to {_number(high)}"
    if above is None and below is None:
        return f"{_number(low)} or more" if low is not None else f"{_number(high)} or less" if high is not None else ""
    bounds = [
        *([f"at least {_number(low)}"] if low is not None else []),
        *([f"more than {_number(above)}"] if above is not None else []),
        *([f"at most {_number(high)}"] if high is not None else []),
        *([f"less than {_number(below)}"] if below is not None else []),
    ]
    return f"a value of {' and '.join(bounds)}"


def _number(value: float) -> str:
    """Format a bound or a value in an error."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def load_target(target: str) -> Any:
    """Import and return ``package.module:attribute``."""
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
        target: ``package.module:attribute`` of the code, imported only by :meth:`load`.
        summary: one line for listings.
        options: options of the code.
    """

    target: str
    summary: str
    options: Mapping[str, Option] = field(default_factory=dict)

    def load(self) -> Any:
        """Import and return :attr:`target`."""
        return load_target(self.target)

    def resolve_options(self, given: Mapping[str, object], what: str) -> dict[str, Value]:
        """Return the values of all options: ``given`` ones parsed, others at their defaults.

        Args:
            given: option names and values.
            what: name of the entry in error messages, such as ``--net vit``.

        Raises:
            RequestError: unknown option or bad value.
        """
        for name in given:
            if name not in self.options:
                hint = suggest(name, self.options, f"use {what} without options")
                raise RequestError(f"{what} has no option {name!r}", hint=hint)
        return {
            name: option.parse(given[name], f"{what}:{name}") if name in given else option.default
            for name, option in self.options.items()
        }


def suggest(name: str, names: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return a hint for an unknown name: the most similar ``names``, else all of a few, else ``otherwise``."""
    names = list(names)
    if near := similar(name, names):
        return f"did you mean {or_list(near)}?"
    return f"use {or_list(names)}" if 0 < len(names) <= 20 else otherwise


def similar(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of ``names`` that resemble ``name``, most similar first."""
    folded = {candidate.lower(): candidate for candidate in names}
    return [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]


def or_list(words: Sequence[str]) -> str:
    """Return ``a``, ``a or b``, or ``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def first_of(words: Sequence[str], count: int = 3) -> str:
    """Return the first ``count`` words, separated by commas, and the number of the others."""
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return ", ".join(words[:count]) + more


def unknown(what: str, name: object, names: Iterable[str], otherwise: str | None = None) -> RequestError:
    """Return the error for a name that is not among ``names``.

    Args:
        what: flag or key, such as ``--net``.
        name: the unknown name.
        names: valid names.
        otherwise: hint if no name is similar and there are many.
    """
    return RequestError(f"unknown {what} {name!r}", hint=suggest(str(name), names, otherwise))


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Return ``table[name]``.

    Raises:
        RequestError: unknown name; ``what`` is the flag, such as ``--net``.
    """
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def split_spec(text: str, what: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME[:key=value,...]`` into the name and its options, as text.

    Raises:
        RequestError: an option without ``=``, an empty name or key, or a key given twice.
    """
    name, colon, tail = text.partition(":")
    options: dict[str, str] = {}
    hint = f"use {what} NAME or {what} NAME:key=value,..."
    if not name or (colon and not tail):
        raise RequestError(f"{what} {text!r} is incomplete", hint=hint)
    for part in tail.split(",") if tail else []:
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not value.strip():
            raise RequestError(f"{what} {text!r}: {part!r} is not of the form key=value", hint=hint)
        if key in options:
            raise RequestError(f"{what} {text!r} sets {key} twice", hint=f"use {key}=... once")
        options[key] = value.strip()
    return name.strip(), options


def format_spec(name: str, options: Mapping[str, Value]) -> str:
    """Return ``NAME:key=value,...``, the inverse of :func:`split_spec`."""
    if not options:
        return name
    return f"{name}:" + ",".join(f"{key}={format_value(value)}" for key, value in options.items())


def format_value(value: Value) -> str:
    """Return a value as it is typed: ``true``, ``0.001``, ``16``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
