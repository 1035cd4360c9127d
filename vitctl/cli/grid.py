"""Tables that fit the terminal: numbers are never cut, and columns without room move to a further table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPED = 140
"""Width of tables that are not printed to a terminal."""

WRAPPED = 18
"""Smallest width of a column of text."""

GAP = 2
"""Spaces between columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading, with the unit if any.
        text: whether cells are text, which may be wrapped; otherwise they are figures or names, which are not.
    """

    title: str
    text: bool = False


def stdout_console() -> Console:
    """Return a console of the terminal's width, or of :data:`PIPED` without a terminal."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPED if piped else None)


def grids(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int) -> list[Table]:
    """Lay out rows in as few tables as fit ``width``, each with the first column.

    Args:
        columns: the columns; the first one labels the rows.
        rows: cells, one per column; they may have several lines.
        width: columns of the terminal.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sizes = [_size(column, [str(row[i]) for row in rows]) for i, column in enumerate(columns)]
    tables = []
    for part in split_columns(sizes, width):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for i in (0, *part):
            column = columns[i]
            right = i > 0 and not column.text
            table.add_column(
                Text(column.title),
                style="bold" if i == 0 else "",
                justify="right" if right else "left",
                no_wrap=not column.text,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in (row[i] for i in (0, *part))))
        tables.append(table)
    return tables


def split_columns(sizes: Sequence[int], width: int) -> list[list[int]]:
    """Distribute columns over tables of at most ``width``, in order.

    Args:
        sizes: width of each column's content; the first column is part of every table.
        width: columns of the terminal.

    Returns:
        For each table, the indices of its columns without the first.
    """
    parts: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes[1:], start=1):
        if not parts or room < size + GAP:
            parts.append([])
            room = width - sizes[0]
        parts[-1].append(i)
        room -= size + GAP
    return parts or [[]]


def _size(column: Column, cells: Sequence[str]) -> int:
    """Return the smallest content width of a column."""
    longest = max((len(line) for text in (column.title, *cells) for line in text.split("\n")), default=0)
    return min(longest, WRAPPED) if column.text else longest


def show(console: Console, *tables: Table) -> None:
    """Print tables; without a terminal, lines have no trailing spaces."""
    if console.is_terminal:
        console.print(*tables, sep="\n")
        return
    with console.capture() as capture:
        console.print(*tables, sep="\n")
    sys.stdout.write("\n".join(line.rstrip() for line in capture.get().split("\n")))


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows of one line each in one table of any width.

    It looks like those of :func:`grids`, for which Rich takes seconds if there are 1,000 rows.
    """
    cells = [[column.title for column in columns], *rows]
    widths = [max(map(text_width, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - text_width(cell))
            parts.append(gap + cell if i > 0 and not columns[i].text else cell + gap)
        return (" " * GAP).join(parts).rstrip()

    head, *body = map(line, cells)
    return [head, "─" * (sum(widths) + GAP * (len(widths) - 1)), *body]


def text_width(text: str) -> int:
    """Return the number of terminal columns that ``text`` takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def print_grid(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print rows to stdout in as many tables as the terminal's width requires."""
    console = stdout_console()
    show(console, *grids(columns, rows, console.width))


def short_labels(names: Sequence[str], length: int = 5) -> list[str] | None:
    """Return distinct abbreviations of at most ``length`` characters, or None if they would not differ."""
    short = [name[:length] for name in names]
    return short if len(set(short)) == len(short) and all(short) else None
