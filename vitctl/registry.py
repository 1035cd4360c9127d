"""Tables of named things: networks, optimizers, data sets, recipes.

A table maps a name to an :class:`Entry`; an entry says where the code is and which options it takes, without
importing it, so that help, listings, completion and every usage error answer without torch. The one syntax for a
name with options is ``NAME[:key=value,...]``.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitctl.errors import RequestError

Value = bool | int | float | str
"""What an option can be set to."""

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """An option of a table's entry; its type is that of the default.

    Attributes:
        default: used where nothing else is asked for.
        help: half a line for ``--help`` and listings.
        choices: the only values allowed.
        low: least value allowed.
        high: greatest value allowed.
        below: the value must be less than this.
        above: the value must be greater than this.
    """

    default: Value
    help: str = ""
    choices: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    above: float | None = None

    def parse(self, value: object, what: str) -> Value:
        """Return ``value`` as this option's type.

        Args:
            value: text from the command line, or a scalar from a file.
            what: how to call it in an error, such as ``--net vit:depth``.

        Raises:
            RequestError: wrong type, not among the choices, or out of range.
        """
        parsed: Value = convert(value, type(self.default), what)
        if self.choices and parsed not in self.choices:
            raise RequestError(f"{what} is {parsed!r}{suggest(str(parsed), map(str, self.choices))}")
        check_range(parsed, what, low=self.low, high=self.high, below=self.below, above=self.above)
        return parsed


def convert(value: object, kind: type, what: str) -> Any:
    """Return ``value`` as ``kind`` (bool, int, float or str), or raise RequestError naming ``what``."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    wrong = RequestError(f"{what} takes {words}, not {value!r}")
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


def _number(value: float) -> str:
    """Return a whole number in full, and another one as short as it can be."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def check_range(
    value: object,
    what: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    above: float | None = None,
) -> None:
    """Raise RequestError unless the number ``value`` is ``low <= value <= high`` and ``above < value < below``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if low is not None and value < low:
        raise RequestError(f"{what} is {_number(value)}; the least is {_number(low)}")
    if high is not None and value > high:
        raise RequestError(f"{what} is {_number(value)}; the greatest is {_number(high)}")
    if below is not None and value >= below:
        raise RequestError(f"{what} is {value:g}; it must be less than {below:g}")
    if above is not None and value <= above:
        raise RequestError(f"{what} is {value:g}; it must be greater than {above:g}")


@dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
        target: ``package.module:attribute`` of the code, imported only by :meth:`load`.
        summary: one line for listings.
        options: the options that the code takes, with their defaults.
    """

    target: str
    summary: str
    options: Mapping[str, Option] = field(default_factory=dict)

    def load(self) -> Any:
        """Import and return what :attr:`target` names."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_options(self, given: Mapping[str, object], what: str) -> dict[str, Value]:
        """Return every option of the entry, ``given`` ones parsed and the others at their defaults.

        Args:
            given: option names and values.
            what: how to call the entry in an error, such as ``--net vit``.

        Raises:
            RequestError: an option that the entry does not have, or a bad value.
        """
        for name in given:
            if name not in self.options:
                near = suggest(name, self.options).partition("; did you mean ")[2]
                known = ", ".join(self.options) or "none"
                raise RequestError(
                    f"{what} has no option {name!r}{f'; did you mean {near}' if near else f' (options: {known})'}"
                )
        return {
            name: option.parse(given[name], f"{what}:{name}") if name in given else option.default
            for name, option in self.options.items()
        }


def suggest(name: str, names: Iterable[str], lead: str = "did you mean") -> str:
    """Return the tail of an error sentence: near matches of ``name`` when there are, else all ``names``."""
    names = list(names)
    folded = {candidate.lower(): candidate for candidate in names}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    if near:
        return f"; {lead} {' or '.join(near)}?"
    if names and len(names) <= 20:
        return f"; there are {', '.join(names)}"
    return ""


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Return ``table[name]``.

    Args:
        table: the table.
        name: what was asked for.
        what: the flag, such as ``--net``.

    Raises:
        RequestError: no such name; the message offers near matches.
    """
    if name not in table:
        raise RequestError(f"{what} {name!r} is unknown{suggest(name, table)}")
    return table[name]


def split_spec(text: str, what: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME[:key=value,...]`` into the name and its options, as text.

    Raises:
        RequestError: an option without ``=``, an empty name or key, or a key given twice.
    """
    name, colon, tail = text.partition(":")
    options: dict[str, str] = {}
    if not name or (colon and not tail):
        raise RequestError(f"{what} {text!r} is not NAME or NAME:key=value,...")
    for part in tail.split(",") if tail else []:
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not value.strip():
            raise RequestError(f"{what} {text!r}: {part!r} is not key=value")
        if key in options:
            raise RequestError(f"{what} {text!r} gives {key} twice")
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
