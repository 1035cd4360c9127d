"""README and the pages of ``docs/`` are true: their lines run, print what they show, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections import Counter
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main

from tests.docs.page import REPOSITORY, Page, Step, pages, read_page
from tests.docs.running import Shell, check, expected_status
from tests.docs.substitutions import FILES, QUICK, SKIPPED, SUBSTITUTIONS, Skip, Substitution
from vitctl.cli.app import app
from vitctl.cli.usage import usage_error
from vitctl.config import FLAGS
from vitctl.errors import RequestError

PAGES = {page.name: page for page in map(read_page, pages())}

ROOT: Any = typer.main.get_command(app)

COMMANDS = ROOT.commands


def substituted(step: Step, page: str) -> tuple[str, list[Substitution]]:
    """Return what runs in place of a step, and the rules that changed it."""
    text, used = step.text, []
    for rule in SUBSTITUTIONS:
        if page in (rule.pages or (page,)) and re.search(rule.pattern, text):
            text = re.sub(rule.pattern, rule.replacement, text, count=1)
            used.append(rule)
    return text, used


def skip_of(text: str, page: str) -> Skip | None:
    """Return the rule by which what would run in place of a step does not, if any."""
    return next((skip for skip in SKIPPED if page in (skip.pages or (page,)) and re.search(skip.pattern, text)), None)


def run_page(page: Page, shell: Shell) -> tuple[list[Step], list[Step]]:
    """Run the steps of a page from top to bottom, and return those that ran and those that were skipped.

    Raises:
        AssertionError: a step fails or prints something else than the page shows.
    """
    FILES.get(page.name, lambda _: None)(shell.folder)
    ran, skipped = [], []
    for step in page.steps:
        text, _ = substituted(step, page.name)
        if skip_of(text, page.name):
            skipped.append(step)
            continue
        line = f"python -c {shlex.quote(text)}" if step.language == "python" else text
        wrong = check(step, text, *shell.run(line))
        assert not wrong, f"{page.name}:{step.line}: {wrong}"
        ran.append(step)
    return ran, skipped


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name, page in PAGES.items() if page.steps],
)
def test_the_lines_of_a_page_run_and_print_what_it_shows(name: str, shell: Shell) -> None:
    page = PAGES[name]
    ran, skipped = run_page(page, shell)
    numbers = sorted(step.line for step in (*ran, *skipped) if step.language != "python")
    assert numbers == typed(page.text), "a line was neither run nor skipped"


def typed(text: str) -> list[int]:
    """Return the numbers of the lines in blocks of a shell that a reader types, found without :func:`read_page`."""
    numbers, language, continued = [], "", False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            language, continued = "" if language else line.strip().strip("`") or "text", False
        elif language in ("sh", "console"):
            begins = line.startswith("$ ") if language == "console" else line.strip() and line.strip()[0] != "#"
            numbers += [number] if begins and not continued else []
            continued = line.endswith("\\")
    return numbers


def calls(text: str) -> list[re.Match[str]]:
    """Return all places of a text that name a command of ``vitctl``, or call ``python``, wherever they are."""
    nested = "|".join(
        rf"{name}\s+(?:{'|'.join(each.commands)})" if hasattr(each, "commands") else name
        for name, each in COMMANDS.items()
    )
    pattern = rf"\bvitctl\s+(?:(?:{nested})(?![\w-])|--?\w)|\bpython3?\s+(?:-m|-c|\S+\.py)\b"
    return [*re.finditer(pattern, text)]


def escaped(page: Page) -> list[str]:
    """Return the places of a page that name a command, and are neither run nor skipped nor checked as inline code."""
    lines = page.text.split("\n")
    return [
        f"{page.name}:{page.line_of(call.start())}: {lines[page.line_of(call.start()) - 1].strip()}"
        for call in calls(page.text)
        if not any(start <= call.start() < end for start, end in page.read)
    ]


@pytest.mark.parametrize("name", PAGES)
def test_no_command_escapes(name: str) -> None:
    assert not escaped(PAGES[name])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_follows_the_conventions(name: str) -> None:
    assert not PAGES[name].faults
    assert PAGES[name].text.startswith("# ")


def test_every_substitution_and_skip_is_used() -> None:
    found = [(page.name, *substituted(step, page.name)) for page in PAGES.values() for step in page.steps]
    skips = [skip_of(text, page) for page, text, _ in found]
    used = [rule for (_, _, rules), skip in zip(found, skips, strict=True) if not skip for rule in rules]
    assert [rule for rule in SUBSTITUTIONS if rule not in used] == []
    assert [skip for skip in SKIPPED if skip not in skips] == []
    assert all(rule.why for rule in SUBSTITUTIONS) and all(skip.reason for skip in SKIPPED)
    assert PAGES.keys() >= QUICK | FILES.keys()


def placeholder(value: object) -> bool:
    """Return whether a value stands for what a reader fills in, such as ``NAME``, ``N`` or ``...``."""
    return isinstance(value, str) and (re.fullmatch(r"[A-Z][A-Z/_|]*", value) is not None or "..." in value)


def refusal(code: str) -> str:
    """Return why a command in inline code does not parse, or nothing. Its arguments may be missing or placeholders."""
    command = re.sub(r"\[OPTIONS\]|[\[\]]", "", code)
    command = re.split(r"\s(?:&&|\||>|;|#)\s", f"{command} ", maxsplit=1)[0]
    try:
        words = shlex.split(command)[1:]
    except ValueError as error:
        return f"{code}: {error}"
    here, path = ROOT, "vitctl"
    while hasattr(here, "commands") and words and not words[0].startswith("-"):
        if words[0] not in here.commands:
            return f"{code}: {path} has no command {words[0]}"
        path, here = f"{path} {words[0]}", here.commands[words[0]]
        del words[0]
    if hasattr(here, "commands") and (not words or words[0] in ("-h", "--help")):
        return ""
    try:
        if "--help" not in words:
            given = here.make_context(path, list(words), resilient_parsing=False).params
            for name, value in given.items():
                if name in FLAGS and value is not None and not placeholder(value):
                    FLAGS[name].parse(name, value)
    except RequestError as error:
        return f"{code}: {error}"
    except Exception as error:
        if not hasattr(error, "format_message"):
            if type(error).__name__ == "Exit":  # of --version
                return ""
            raise
        if "Missing argument" in error.format_message():
            return ""
        return f"{code}: {usage_error(error)}"
    return ""


@pytest.mark.parametrize("name", PAGES)
def test_commands_parse_even_if_they_are_skipped_or_replaced(name: str) -> None:
    steps = [step for step in PAGES[name].steps if step.language != "python" and expected_status(step.output) == "0"]
    wrong = [
        f"{name}:{step.line}: {why}"
        for step in steps
        for call in re.finditer(r"\bvitctl ", step.text)
        if (why := refusal(step.text[call.start() :]))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_prose_parse(name: str) -> None:
    page = PAGES[name]
    wrong = []
    for line, code in page.code:
        if re.match(r"vitctl (?!\d)", code) and (why := refusal(code)):
            wrong.append(f"{name}:{line}: {why}")
        if (module := re.match(r"python3? -m ([\w.]+)", code)) and importlib.util.find_spec(module[1]) is None:
            wrong.append(f"{name}:{line}: there is no module {module[1]}")
    assert not wrong, "\n".join(wrong)


def broken(page: Page) -> list[str]:
    """Return the links of a page that lead to no file of the repository or no heading of a page."""
    wrong = []
    for line, link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, heading = unquote(link).partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists() or not any(map(path.is_relative_to, (REPOSITORY, page.path.parent))):
            wrong.append(f"{page.name}:{line}: {link} leads to no file")
        elif heading and path.suffix == ".md" and heading not in numbered(read_page(path).anchors):
            wrong.append(f"{page.name}:{line}: {link} leads to no heading")
    return wrong


def numbered(anchors: list[str]) -> set[str]:
    """Return anchors with ``-1``, ``-2`` at those that occur again."""
    seen: Counter[str] = Counter()
    result = set()
    for each in anchors:
        result.add(f"{each}-{seen[each]}" if seen[each] else each)
        seen[each] += 1
    return result


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    assert broken(PAGES[name]) == []
