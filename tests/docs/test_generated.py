"""The generated pages of ``docs/`` are up to date, complete and the same on every machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperOption

from tests.docs import generate
from tests.docs.page import REPOSITORY
from vitctl.cli.app import app
from vitctl.models import MODELS
from vitctl.recipes import RECIPES


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_generated_page_is_up_to_date(page: str) -> None:
    path = generate.DOCS / page
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    assert found == generate.text_of(page), f"docs/{page} differs from the tables; run {generate.COMMAND}"


def test_a_changed_page_is_noticed_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    generate.main()
    assert {path.name for path in tmp_path.iterdir()} == generate.PAGES.keys()
    page = tmp_path / "cli.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`--epochs N`", "`--rounds N`"), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"run python -m tests\.docs\.generate"):
        test_a_generated_page_is_up_to_date("cli.md")
    generate.main()
    test_a_generated_page_is_up_to_date("cli.md")


def test_pages_do_not_depend_on_the_terminal(python: list[str]) -> None:
    text = "from tests.docs.generate import *; print(*map(text_of, PAGES), sep='', end='')"
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm-256color", "FORCE_COLOR": "1"}
    found = subprocess.run(
        [*python, "-c", text], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "".join(map(generate.text_of, generate.PAGES))


def test_every_visible_flag_and_its_default_are_listed() -> None:
    text = generate.text_of("cli.md")
    for path, command in generate.commands(typer.main.get_command(app)):
        _, _, section = text.partition(f"\n## `{' '.join(['vitctl', *path])}`\n")
        section, _, _ = section.partition("\n## ")
        for option in command.params:
            if isinstance(option, TyperOption) and not option.hidden and "completion" not in (option.name or ""):
                (name, *words) = generate.flag_row(option)
                words = [word.replace("|", r"\|") for word in words]
                rows = [line for line in section.splitlines() if re.match(rf"\| `{option.opts[0]}[` ]", line)]
                shared = f"`{option.opts[0]}`" in section.partition("\nAs for ")[2]
                assert len(rows) + shared == 1, f"{path}: {name}"
                assert shared or all(word in rows[0] for word in words)


def test_every_recipe_and_network_is_described() -> None:
    recipes, models = generate.text_of("recipes.md"), generate.text_of("models.md")
    for name, recipe in RECIPES.items():
        assert f"\n## {name}\n" in recipes
        assert all(f"| test accuracy | {card.test_acc} |" in recipes for card in recipe.cards)
    for name, entry in MODELS.items():
        assert f"\n| `{name}` |" in models and f"\n## {entry.family}\n" in models
        assert all(f"\n| `{option}` |" in models for option in entry.options)
