"""``--help`` of every command: short texts, groups, and lines that fit the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.core import TyperOption

from tests.conftest import Cli
from vitctl.cli.app import app
from vitctl.cli.options import WIDTH, short_help
from vitctl.config import FLAGS, MAIN_FLAGS, SWITCHES, flag_name


def walk(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its path, such as ``("sweep", "agent")``."""
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, *path, name)


ROOT = typer.main.get_command(app)
ALL = dict(walk(ROOT))
PATHS = [pytest.param(path, id=" ".join(path) or "vitctl") for path in ALL]

TYPERS = ("--help", "--install-completion", "--show-completion")
"""Options with texts of Typer's."""

OPTIONS = [
    pytest.param(option, id=" ".join([*path, option.opts[0]]))
    for path, command in ALL.items()
    for option in command.params
    if isinstance(option, TyperOption) and not option.hidden and option.opts[0] not in TYPERS
]


def without_default(text: str) -> str:
    return re.sub(r"\s*\[default: .*\]$", "", text)


def groups(text: str) -> dict[str, list[str]]:
    """Return the long flags of each group of a help text, in order."""
    result: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            title = heading[1]
            result[title] = []
        elif title and (flags := re.match(r"  (?:-\w, )?(--[\w-]+)", line)):
            result[title].append(flags[1])
    return result


def test_every_command_is_found() -> None:
    assert {("train",), ("eval",), ("sweep", "agent"), ("sweep", "plot")} <= ALL.keys() and len(ALL) > 20
    assert len(OPTIONS) > 200


@pytest.mark.parametrize("option", OPTIONS)
def test_the_help_of_an_option_is_short(option: TyperOption) -> None:
    text = without_default(option.help or "")
    assert 0 < len(text) <= 60, text
    assert not text.endswith(".") and text == text.strip()
    assert text[0].islower() or re.match(r"--|\.|[A-Z0-9]", text), "begins in lower case, unless with a name"


@pytest.mark.parametrize("path", PATHS)
def test_the_first_line_of_a_command_is_short(path: tuple[str, ...]) -> None:
    first, _, rest = (ALL[path].help or "").partition("\n")
    assert 0 < len(first) <= 80 and first.endswith("."), first
    assert not rest or rest.startswith("\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("path", PATHS)
def test_no_line_of_help_is_wider_than_the_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for flag in ("--help", "-h"):
        result = cli(*path, flag)
        assert result.code == 0 and result.err == ""
        assert result.out.startswith(f"Usage: {' '.join(['vitctl', *path])} ")
        lines = result.out.splitlines()
        assert max(map(len, lines)) <= min(columns, WIDTH), max(lines, key=len)
        assert not re.search(r"\x1b|…|\\\[|[│╭╰]", result.out), "plain text, and nothing is cut off"


@pytest.mark.parametrize("path", PATHS)
def test_help_lists_every_visible_option_and_no_hidden_one(cli: Cli, path: tuple[str, ...]) -> None:
    listed = [flag for flags in groups(cli(*path, "--help").out).values() for flag in flags]
    options = [each for each in ALL[path].params if isinstance(each, TyperOption) and each.opts != ["--help"]]
    visible = [next(name for name in each.opts if name.startswith("--")) for each in options if not each.hidden]
    assert sorted(listed) == sorted({*visible, "--help"})


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if hasattr(command, "commands")])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_help_of_a_group_lists_its_commands(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = " ".join(cli(*path, "--help").out.split())
    for name, command in ALL[path].commands.items():
        assert f" {name} {command.short_help or short_help(command)}" in text


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if hasattr(command, "commands")])
def test_a_group_without_a_command_shows_its_help(cli: Cli, path: tuple[str, ...]) -> None:
    result = cli(*path)
    assert result.code == 2 and result.out + result.err == cli(*path, "--help").out


def test_the_first_group_of_train_has_the_main_flags(cli: Cli) -> None:
    shown = groups(cli("train", "--help").out)
    main = [flag_name(name) for name in MAIN_FLAGS]
    assert next(iter(shown)) == "Options"
    assert set(shown["Options"]) == {*main, "--resume", "--name", "--config", "--help"}
    assert [flag for flag in shown["Options"] if flag in main] == main


def test_the_other_settings_of_train_are_in_their_groups(cli: Cli) -> None:
    shown = groups(cli("train", "--help").out)
    for name, flag in FLAGS.items():
        if name not in MAIN_FLAGS:
            assert flag_name(name) in shown[flag.panel], name
    assert not {f"--{name}" for name in SWITCHES} & {flag for flags in shown.values() for flag in flags}


def test_defaults_are_in_one_pair_of_brackets(cli: Cli) -> None:
    text = " ".join(cli("train", "--help").out.split())
    for default in ("0", "from the recipe", "runs", "disabled; online under a W&B agent"):
        assert f"[default: {default}]" in text
    assert "[default: (" not in text and "[[" not in text and "]]" not in text
    assert "None" not in text and " TEXT" not in text.replace("--wandb-notes TEXT", "")
