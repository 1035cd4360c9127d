"""Durations, sizes and counts as text."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import Any

from vitctl.errors import RequestError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_SURROGATE = re.compile("[\ud800-\udfff]")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")


def parse_duration(text: str | float, what: str) -> float:
    """Return seconds for ``90``, ``90s``, ``10m`` or ``1.5h``; a bare number is seconds.

    Raises:
        RequestError: anything else, or zero.
    """
    match = _DURATION.fullmatch(str(text).strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not match or seconds <= 0:
        raise RequestError(
            f"{what} takes a duration, not {text!r}", hint="use seconds, minutes or hours: 90s, 10m or 1h"
        )
    return seconds


def parse_save_every(text: str | int, what: str) -> tuple[int | None, float | None]:
    """Return ``(steps, None)`` for a bare number, ``(None, seconds)`` for ``30s``, ``10m`` or ``1h``.

    Raises:
        RequestError: anything else, or zero.
    """
    word = str(text).strip().lower()
    if word.isdigit() and int(word) > 0:
        return int(word), None
    if word[-1:] in ("s", "m", "h"):
        return None, parse_duration(word, what)
    raise RequestError(f"{what} takes steps or a duration, not {text!r}", hint="use 500 for steps, or 30s, 10m or 1h")


def format_duration(seconds: float) -> str:
    """Return ``0.4 s``, ``48 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def format_bytes(count: float) -> str:
    """Return ``512 B``, ``3.4 MiB`` or ``1.2 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def json_text(document: Any) -> str:
    """Return ``document`` as JSON; infinite and NaN values become null, and texts are :func:`escaped`."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(each) for each in value]
        if isinstance(value, str):
            return escaped(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(document), indent=2)


def plural(count: int, noun: str) -> str:
    """Return ``1 step``, ``300 steps`` or ``22,125 steps``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def escaped(name: str) -> str:
    r"""Return the name of a file with bytes that are not valid UTF-8 as ``\x94``; Python holds them as surrogates."""
    return _SURROGATE.sub(lambda match: _escape(ord(match[0])), name)


def printable(name: str) -> str:
    """Return the name of a file as one line, with what cannot be printed :func:`escaped`."""
    if name.isprintable():
        return name
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in escaped(name))


def quoted(path: object) -> str:
    r"""Return a path as a word of a shell command on one line; ``$'a\nb'`` if parts of it cannot be printed."""
    name = str(path)
    if name.isprintable():
        return shlex.quote(name)
    return f"$'{printable(name.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39)))}'"


def _escape(surrogate: int) -> str:
    is_byte = 0xDC80 <= surrogate <= 0xDCFF
    return f"\\x{surrogate - 0xDC00:02x}" if is_byte else f"\\u{surrogate:04x}"


def mask_passwords(text: str) -> str:
    """Return a URL or a command-line argument with its password replaced by ``***``."""
    text = re.sub(r"(\b\w+:(?://)?[^/:@]*:).*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"(?i)(password=)[^&\s'\"]+", r"\1***", text)
