"""Filtering, sorting and columns of a list of runs."""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from vitctl.config import MAPPINGS, NAMED, NET_FLAGS, SWITCHES, setting_of
from vitctl.config.keys import OPT_FLAGS
from vitctl.config.names import OPTION_NAMES
from vitctl.data.manifest import DATA_SHA256
from vitctl.errors import RequestError
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, or_list, similar, split_spec, unknown
from vitctl.runs.stored import CODE, MACHINE, SETTINGS, Record, RunState
from vitctl.units import parse_duration

COLUMNS = ("name", "net", "opt", "dataset", "epochs", "test_acc", "val_acc", "seconds", "state")
"""Columns that are shown by default."""

SECONDS = ("seconds", "epoch_time", "eval_time", "compile_time")
"""Columns in seconds, which are compared with durations such as ``10m``."""

STORED = (
    *("name", "run", "state", "started", "failure", "epoch", "step", "train_loss", "train_acc", "val_loss", "val_acc"),
    *("best_val_acc", "best_epoch", "test_loss", "test_acc", "seconds", "images_per_second", "params", "peak_memory"),
    *(*CODE, *MACHINE, DATA_SHA256),
)
"""Columns besides the settings that a finished run has; there are others."""

_BY_OTHER_NAMES = {"time": "seconds", "acc": "test_acc", "accuracy": "test_acc", "loss": "test_loss", "path": "run"}

FLAG_OPTIONS = {
    **{flag: f"net_options.{option}" for flag, option in NET_FLAGS.items()},
    **{flag: f"opt_options.{option}" for flag, option in OPT_FLAGS.items()},
}
"""Columns of the options that have flags of their own, such as ``patch``."""

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([\w.:/ -]*\w)\s*(!=|<=|>=|==|=|<|>|~)\s*((?![=<>]).*?)\s*", re.DOTALL)


def column_of(word: str, known: Collection[str]) -> str:
    """Return the column for any spelling: ``n_epochs``, ``test acc``, ``patch``, ``net:depth``, ``mlp_ratio``.

    Args:
        word: the name as it was given.
        known: columns that some run has.

    Raises:
        RequestError: unknown column, or an option of several tables.
    """
    name = setting_of(word.strip().replace(" ", "_"))
    valid = dict.fromkeys([*STORED, *(each for each in SETTINGS if each not in MAPPINGS), *known])
    if name in valid:
        return name
    if name in _BY_OTHER_NAMES:
        return _BY_OTHER_NAMES[name]
    option = OPTION_NAMES.get(name, name)
    if option in FLAG_OPTIONS:
        return FLAG_OPTIONS[option]
    table, dot, key = option.replace(":", ".").partition(".")  # net:depth, as in --net vit:depth=8
    if dot and (column := f"{setting_of(table).removesuffix('_options')}_options.{key}") in valid:
        return column
    tables = [column for column in valid if column.endswith(f".{name}")]
    if len(tables) == 1:
        return tables[0]
    near = tables or similar(name, [*valid, *_BY_OTHER_NAMES])
    if name in SWITCHES:
        setting, value = SWITCHES[name]
        hint = f"use {setting}, such as --where {setting}={value}"
    else:
        hint = f"did you mean {or_list(near)}?" if near else "list all columns with vitctl runs list --json"
    raise RequestError(f"unknown column {word!r}", hint=hint)


@dataclass(frozen=True)
class Condition:
    """A condition on runs, such as ``net=vit_small`` or ``test_acc>90``.

    Attributes:
        operator: how to compare; ``~`` matches a pattern with ``*``, ``?`` and ``[...]``.
        values: what to compare with, by column; several for ``net=vit:depth=8``, which must all be equal.
    """

    operator: Operator
    values: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Condition:
        """Parse the value of ``--where``.

        Args:
            text: a column, an operator and a value.
            known: columns that some run has.

        Raises:
            RequestError: another form, an unknown column, or a value that has no order.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise RequestError(
                f"--where {text!r} is not a condition",
                hint="use --where 'COLUMN=VALUE', or one of != < <= > >= ~ in place of =",
            )
        column, word = column_of(match[1], known), match[3]
        sign = cast("Operator", "=" if match[2] == "==" else match[2])
        if sign in _ORDERS and column != "started" and _number(word, column) is None:
            raise RequestError(
                f"--where {text!r} needs a number after {sign}", hint=f"use a number, or = != ~ in place of {sign}"
            )
        if sign in ("=", "!="):
            if column == "state" and word not in get_args(RunState):
                raise unknown("--where state", word, get_args(RunState))
            if column in NAMED and ":" in word:
                return cls(sign, _with_options(column, word, known))
        return cls(sign, {column: word})

    def matches(self, row: Record) -> bool:
        """Return whether a row satisfies the condition; a missing value equals ``none``, and has no order."""
        column, word = next(iter(self.values.items()))
        cell = row.get(column)
        if self.operator == "~":
            return fnmatch.fnmatchcase(_word(cell), word)
        if self.operator in _ORDERS:
            compare = _ORDERS[self.operator]
            if column == "started":
                return cell is not None and compare(str(cell), word.replace(" ", "T"))
            number = _number(cell, column)
            return number is not None and compare(number, _number(word, column))
        equal = all(_equal(row.get(name), value, name) for name, value in self.values.items())
        return equal is (self.operator == "=")


def _with_options(column: str, spec: str, known: Collection[str]) -> dict[str, str]:
    """Return the values by column of a network, optimizer or augmentation with options: ``vit:depth=8``.

    Raises:
        RequestError: another form, or an unknown option.
    """
    try:
        name, options = split_spec(spec, column)
    except RequestError:
        raise RequestError(
            f"--where '{column}={spec}' is incomplete", hint=f"use --where '{column}=NAME:key=value,...'"
        ) from None
    return {column: name, **{column_of(f"{column}.{key}", known): value for key, value in options.items()}}


def _word(cell: Any) -> str:
    """Return a value as it is typed."""
    return "none" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)


def _equal(cell: Any, word: str, column: str) -> bool:
    if isinstance(cell, bool):
        return word.lower() in (TRUE_WORDS if cell else FALSE_WORDS)
    if _word(cell) == word:
        return True
    number = _number(cell, column)
    return number is not None and number == _number(word, column)


def _number(value: Any, column: str) -> float | None:
    """Return a value as a number, seconds for durations and percent for accuracies; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip().removesuffix("%")
    try:
        number = float(text)
    except ValueError:
        if column not in (*SECONDS, "max_time"):
            return None
        try:
            return parse_duration(text.replace(" ", ""), column)
        except RequestError:
            return None
    return None if math.isnan(number) else number


def select(rows: Iterable[Record], conditions: Sequence[Condition]) -> list[Record]:
    """Return the rows that satisfy all conditions."""
    return [row for row in rows if all(condition.matches(row) for condition in conditions)]


def descends(column: str) -> bool:
    """Return whether a column is sorted with the largest value first: accuracies, speed and dates."""
    return column.endswith(("_acc", "_acc_tta")) or column in ("images_per_second", "started")


def sort(rows: list[Record], columns: Sequence[str], *, reverse: bool = False) -> list[Record]:
    """Return the rows sorted by columns, the first of which matters most; missing values are last in any order.

    Args:
        rows: the rows; equal ones keep their order.
        columns: the columns.
        reverse: whether to reverse the order.
    """
    for column in reversed(columns):
        present = [(key, row) for row in rows if (key := _sort_key(row.get(column), column)) is not None]
        absent = [row for row in rows if _sort_key(row.get(column), column) is None]
        present.sort(key=lambda pair: pair[0], reverse=descends(column) is not reverse)
        rows = [row for _, row in present] + absent
    return rows


def _sort_key(cell: Any, column: str) -> tuple[bool, Any] | None:
    """Return a key that sorts numbers before text; None for a missing value."""
    if isinstance(cell, bool):
        return False, cell
    number = _number(cell, column)
    if number is not None:
        return False, number
    return None if cell is None or isinstance(cell, float) else (True, str(cell))


def columns_of(text: str, known: Collection[str]) -> list[str]:
    """Return the columns of ``--columns``: names separated by commas, which a leading ``+`` adds to the default.

    Raises:
        RequestError: unknown column.
    """
    columns = [column_of(word.removeprefix("+"), known) for word in text.split(",")]
    return list(dict.fromkeys([*(COLUMNS if text.startswith("+") else ()), *columns]))


def columns_in(rows: Iterable[Record]) -> list[str]:
    """Return the columns that some row has, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in row))
