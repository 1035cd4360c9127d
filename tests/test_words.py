"""What a person reads is plain English: no phrase that ``vitctl`` gave up, and a useful hint with every refusal."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitctl"
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}

GIVEN_UP = (
    r"pictures?",
    r"(is|are) not (t)?here",
    r"there are those",
    r"is no (name|setting|key) of",
    r"go(es|ing)? on",
    r"go(es)? on with",
    r"gone on",
    r"nobody",
    r"(is|are|be) told( of)?",
    r"tells?",
    r"say(s)? so",
    r"(is|are) lent",
    r"stands? beside",
    r"hangs? on",
    r"course of the learning rate",
    r"held against",
    r"(is|are) off by",
    r"predecessor('s|s)?",
    r"once more quits",
    r"likeliest",
    r"the scripts that vitctl replaces",
    r"say what is in",
    r"was stopped or killed",
    r"alone",
)
"""Phrases of the old wording, as regular expressions of whole words."""

ALLOWED = {
    ("data/cache.py", "pictures"): "a folder of the cache keeps its name",
    ("inference/predict.py", "picture"): "a key and column that programs read keeps its name",
    ("tools/lr_finder.py", "picture"): "a key that programs read keeps its name",
    ("tools/preview.py", "picture"): "a key that programs read keeps its name",
    ("models/", "predecessor"): "a value of init= keeps its name",
    ("recipes.py", "predecessor"): "a value of init= keeps its name",
}
"""Reasons for the strings that keep one, by file or folder and the phrase."""


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every string and docstring of a module with its line; f-strings with ``{}`` for each value."""
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part != node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, text_of(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def text_of(node: ast.expr | None) -> str:
    """Return the text of a string expression, with ``{}`` for what is not known."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "{}"


TEXTS = [(file, line, text) for file, tree in TREES.items() for line, text in strings(tree)]


@pytest.mark.parametrize("phrase", GIVEN_UP)
def test_given_up_phrases_are_gone(phrase: str) -> None:
    pattern = re.compile(rf"\b({phrase})\b", re.IGNORECASE)
    found = [
        f"{file}:{line}: {' '.join(text.split())[:100]}"
        for file, line, text in TEXTS
        if (match := pattern.search(text))
        and not any(file.startswith(where) and match[0] == kept for where, kept in ALLOWED)
    ]
    assert not found, "\n".join(found)


def refusals() -> Iterator[tuple[str, int, ast.Call, str | None]]:
    """Yield file, line, call and hint of every error of the user that the package constructs."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name in ("RequestError", "RunBusy", "DeviceUnavailable"):
                hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
                yield file, node.lineno, node, text_of(hints[0]) if hints else None


def test_every_refusal_has_a_hint() -> None:
    missing = [
        f"{file}:{line}: {text_of(call.args[0] if call.args else None)}"
        for file, line, call, hint in refusals()
        if hint is None
    ]
    assert not missing, "\n".join(missing)


USEFUL = re.compile(
    r"--|\{\}|vitctl |pip install|use |remove |add |VITCTL_|WANDB_|Ctrl-C|https?://|mkdir|delete |[A-Z_]+="
)
"""What a hint can name: a flag, a value, a command, a variable, an address."""


def test_every_hint_names_what_to_type() -> None:
    vague = [f"{file}:{line}: {hint}" for file, line, _, hint in refusals() if hint and not USEFUL.search(hint)]
    assert not vague, "\n".join(vague)


def test_messages_and_hints_are_short_lines_without_full_stop() -> None:
    wrong = []
    for file, line, call, hint in refusals():
        for text in (text_of(call.args[0] if call.args else None), hint or ""):
            for each in text.split("\n"):
                if len(each.replace("{}", "")) > 100 or each.rstrip().endswith("."):
                    wrong.append(f"{file}:{line}: {each}")
    assert not wrong, "\n".join(wrong)
