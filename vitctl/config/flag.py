"""Declaration of one setting: a flag of ``vitctl train``, a key of a file and a parameter of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.registry import FALSE_WORDS, TRUE_WORDS, check_range, convert, unknown

RUN, NETWORK, DATA, AUGMENTATION = "Run", "Network", "Data and evaluation", "Augmentation"
OPTIMIZER, SCHEDULE = "Optimizer and loss", "Schedule and length"
DEVICE, CHECKPOINTS, LOGGING = "Device", "Checkpoints", "Logging"

_SWITCH_WORDS = {*TRUE_WORDS, *FALSE_WORDS} - {"0", "1"}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Type, range and help of one setting.

    Attributes:
        kind: bool, int, float or str.
        help: help text of at most 60 characters.
        panel: group of ``--help``, unless it is a main flag.
        names: further spellings of the flag.
        metavar: placeholder for the value in ``--help``; None shows the type.
        choices: the only values allowed.
        low: smallest value allowed.
        high: largest value allowed.
        below: the value must be less than this.
        table: the table whose names are accepted, for shell completion.
        shown: the default as ``--help`` describes it.
        resumable: whether ``--resume`` may change the stored value.
        when_true: for a setting that can be switched on without a value: the value of ``true`` and of the flag without a
            value, unless the recipe has one.
        when_false: the value of ``false``.
        parser: converts a value, given the flag's name for errors, in place of ``kind``, ``choices`` and range.
    """

    kind: type
    help: str
    panel: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    table: Mapping[str, Any] | None = None
    shown: str | None = None
    resumable: bool = False
    when_true: float | str | None = None
    when_false: float | str = 0.0
    parser: Callable[[Any, str], Any] | None = None

    def parse(self, name: str, value: object) -> Any:
        """Convert ``value`` to this flag's type; True means that the caller must fill in :attr:`when_true`.

        Raises:
            RequestError: wrong type, unknown choice or out of range.
        """
        what = flag_name(name)
        if name == "pretrained" and isinstance(value, bool):  # YAML reads true and false as booleans
            value = str(value).lower()
        if self.when_true is not None and str(value).lower() in _SWITCH_WORDS:
            return convert(value, bool, what) or self.when_false
        if self.parser is not None:
            return self.parser(value, what)
        parsed = convert(value, self.kind, what)
        if self.choices and parsed not in self.choices:
            raise unknown(what, parsed, self.choices)
        check_range(parsed, what, low=self.low, high=self.high, below=self.below)
        return parsed


def flag_name(name: str) -> str:
    """Return the flag of a setting: ``save_every`` -> ``--save-every``."""
    return "--" + name.replace("_", "-")
