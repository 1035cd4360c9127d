"""Reading a page of the documentation: the lines that a reader would type, what they print, commands in prose, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).parents[2]

RUN = ("sh", "console", "python")
"""Languages of the fenced blocks that are run."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a reader runs at one place of a page: a line of a shell, or a block of Python.

    Attributes:
        line: number of its first line in the page.
        text: the shell line, with continued lines joined, or the Python block.
        output: the lines that the page shows as its output; None if it shows none.
        language: that of the block.
    """

    line: int
    text: str
    language: Literal["sh", "console", "python"]
    output: tuple[str, ...] | None = None


@dataclass(kw_only=True)
class Page:
    """A page of the documentation.

    Attributes:
        path: the file.
        text: its content.
        steps: what a reader runs, from top to bottom.
        code: lines and contents of inline code in prose.
        links: lines and targets of links and images.
        anchors: names of the headings, as links call them.
        read: offsets in ``text`` of the lines in ``steps`` and their outputs, and of inline code.
        faults: what does not follow the conventions.
    """

    path: Path
    text: str
    steps: list[Step] = field(default_factory=list)
    code: list[tuple[int, str]] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    read: list[tuple[int, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Path in the repository."""
        return self.path.relative_to(REPOSITORY).as_posix() if self.path.is_relative_to(REPOSITORY) else self.path.name

    def line_of(self, offset: int) -> int:
        """Return the number of the line at an offset in the text."""
        return self.text.count("\n", 0, offset) + 1


def pages() -> list[Path]:
    """Return the files of all pages."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def read_page(path: Path) -> Page:
    """Read a page from a file in UTF-8."""
    page = Page(path=path, text=path.read_text(encoding="utf-8"))
    lines = page.text.split("\n")
    prose: list[str] = []  # the page with blocks as empty lines, so that lines keep their numbers
    after_python = False
    at = 0
    while at < len(lines):
        fence = re.match(r"( *)(`{3,})\s*([\w-]*)\s*$", lines[at])
        if not fence:
            if lines[at].strip():
                after_python = False
            prose.append(lines[at])
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[2]), len(lines))
        if end == len(lines):
            page.faults.append(f"{page.name}:{at + 1}: this block does not end")
        block = [re.sub(rf"^ {{0,{len(fence[1])}}}", "", line) for line in lines[at + 1 : end]]
        language = fence[3]
        first = at + 2
        if language == "sh":
            _add_shell(page, block, first)
        elif language == "console":
            _add_console(page, block, first)
        elif language == "python":
            page.steps.append(Step(line=first, text="\n".join(block), language="python"))
            _add_read(page, first, len(block))
        elif language == "text" and after_python:
            step = page.steps.pop()
            page.steps.append(Step(line=step.line, text=step.text, language="python", output=tuple(block)))
            _add_read(page, first, len(block))
        elif not language or language in ("bash", "shell", "zsh", "py"):
            page.faults.append(f"{page.name}:{at + 1}: use one of the languages {', '.join(RUN)}, or text")
        after_python = language == "python"
        prose += [""] * (end + 1 - at)
        at = end + 1
    _read_prose(page, prose)
    return page


def _add_read(page: Page, line: int, count: int) -> None:
    """Note that lines of a page were read as steps or outputs."""
    starts = [0, *(match.end() for match in re.finditer("\n", page.text)), len(page.text)]
    page.read.append((starts[line - 1], starts[min(line - 1 + count, len(starts) - 1)]))


def _joined(block: list[str], first: int) -> Iterator[tuple[int, int, str]]:
    """Yield the number of the first line, the number of lines and the text of each line that may be continued."""
    at = 0
    while at < len(block):
        start = at
        while block[at].endswith("\\") and at + 1 < len(block):
            at += 1
        at += 1
        text = " ".join(line.removesuffix("\\").strip() for line in block[start:at])
        yield first + start, at - start, text


def _add_shell(page: Page, block: list[str], first: int) -> None:
    for line, count, text in _joined(block, first):
        if text and not text.startswith("#"):
            page.steps.append(Step(line=line, text=text, language="sh"))
            _add_read(page, line, count)


def _add_console(page: Page, block: list[str], first: int) -> None:
    typed: tuple[int, str] | None = None
    output: list[str] = []

    def close() -> None:
        if typed is not None:
            shown = tuple(output) or None
            page.steps.append(Step(line=typed[0], text=typed[1], language="console", output=shown))

    at = 0
    while at < len(block):
        if block[at].startswith("$ "):
            close()
            line, count, text = next(_joined(block[at:], first + at))
            typed, output = (line, text.removeprefix("$ ")), []
            at += count
        else:
            if typed is None:
                page.faults.append(f"{page.name}:{first + at}: a console block begins with a line typed after '$ '")
            output.append(block[at])
            at += 1
    close()
    _add_read(page, first, len(block))


def _read_prose(page: Page, lines: list[str]) -> None:
    """Find code, links and headings in the lines outside blocks."""
    text = "\n".join(lines)
    starts = [0, *(match.end() for match in re.finditer("\n", page.text))]
    blank = True
    for number, line in enumerate(lines, start=1):
        if blank and re.match(r" {4,}\S", line) and not re.match(r" *([-*]|\d+\.) ", line):
            page.faults.append(f"{page.name}:{number}: use a fenced block instead of an indented one")
        blank = not line.strip()
        if heading := re.match(r"#+ (.*)", line):
            page.anchors.append(anchor(heading[1]))
    for match in re.finditer(r"(`+)(?!`)((?:[^\n]|\n(?!\s*\n))+?)(?<!`)\1(?!`)", text):
        number = text.count("\n", 0, match.start()) + 1
        page.code.append((number, " ".join(match[2].split()).replace(r"\|", "|")))
        begin = starts[number - 1] + match.start() - (text.rfind("\n", 0, match.start()) + 1)
        last = text.count("\n", 0, match.end()) + 1
        end = starts[last - 1] + match.end() - (text.rfind("\n", 0, match.end()) + 1)
        page.read.append((begin, end))
    plain = re.sub(r"`[^`\n]*`", lambda code: "x" * len(code[0]), text)
    for match in re.finditer(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|\b(?:href|src|srcset)=\"([^\"]+)\"", plain):
        page.links.append((text.count("\n", 0, match.start()) + 1, match[1] or match[2]))


def anchor(heading: str) -> str:
    """Return the name of a heading in links, as the hosting site makes it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
