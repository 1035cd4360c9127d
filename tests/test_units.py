import json
import math
import subprocess

import pytest

from vitctl.errors import RequestError
from vitctl.units import (
    format_bytes,
    format_duration,
    json_text,
    parse_duration,
    parse_save_every,
    plural,
    printable,
    quoted,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("1.5h", 5400), (7, 7), (" 2 M ", 120)]
)
def test_durations_are_parsed(text: str | int, seconds: float) -> None:
    assert parse_duration(text, "--max-time") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "10d", "m", "1:30", "nan", "1e3"])
def test_bad_durations_are_refused_by_name(text: str) -> None:
    with pytest.raises(RequestError, match="--max-time takes a duration"):
        parse_duration(text, "--max-time")


def test_save_every_takes_steps_or_a_duration() -> None:
    assert parse_save_every("500", "x") == (500, None)
    assert parse_save_every(500, "x") == (500, None)
    assert parse_save_every("10m", "x") == (None, 600)
    for bad in ("0", "-5", "1.5", "often", "0s"):
        with pytest.raises(RequestError):
            parse_save_every(bad, "x")


def test_durations_and_sizes_are_formatted() -> None:
    assert [format_duration(s) for s in (0.42, 9.96, 48, 725, 12_000)] == [
        "0.4 s",
        "10.0 s",
        "48 s",
        "12 min 5 s",
        "3 h 20 min",
    ]
    assert [format_bytes(n) for n in (512, 3_565_158, 2 << 30)] == ["512 B", "3.4 MiB", "2.00 GiB"]


def test_infinite_and_nan_values_become_null_in_json() -> None:
    document = {"a": [1.5, math.nan, (math.inf, "x", True, None)], "b": {"c": -math.inf}}
    assert json.loads(json_text(document)) == {"a": [1.5, None, [None, "x", True, None]], "b": {"c": None}}


@pytest.mark.parametrize(("count", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (22125, "22,125 steps")])
def test_counts_have_a_plural_and_thousands_separators(count: int, text: str) -> None:
    assert plural(count, "step") == text


def test_a_name_is_printed_on_one_line() -> None:
    assert printable("caf\u00e9 \U0001f600\n\x1b[31m\udcff") == "caf\u00e9 \U0001f600\\n\\x1b[31m\\xff"


@pytest.mark.parametrize("name", ["a", "a b", "it's", "line\nbreak", "\x1b[31mred\\", "tab\t'quoted'", "\u202e"])
def test_quoted_paths_are_one_line_that_the_shell_reads_back(name: str) -> None:
    word = quoted(name)
    assert word.isprintable()
    shell = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert shell.stdout.decode() == name
