"""Tables of figures, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        text: the figure as shown, with its unit.
        value: the figure for programs, or None.
    """

    text: str
    value: float | str | None = None


NOTHING = Cell("–")


@dataclass(frozen=True)
class Row:
    """One kind of figure for all columns.

    Attributes:
        better: whether low or high values are better; None marks no best value.
    """

    label: str
    cells: tuple[Cell, ...]
    better: Literal["low", "high"] | None = None


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        corner: heading of the column of row labels.
        columns: headings of the other columns.
        notes: legend and remarks below the table.
        words: those of the columns that hold words, which a page aligns on the left.
        sortable: whether readers of a page may sort the rows.
    """

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sortable: bool = False


def best(row: Row) -> set[int]:
    """Return the columns with the best value of ``row``; none if fewer than two have a value, or all are equal."""
    values = {
        i: float(cell.value)
        for i, cell in enumerate(row.cells)
        if isinstance(cell.value, (int, float)) and not isinstance(cell.value, bool)
    }
    if row.better is None or len(values) < 2 or len(set(values.values())) == 1:
        return set()
    target = (min if row.better == "low" else max)(values.values())
    return {i for i, value in values.items() if value == target}


def markdown(table: Table) -> str:
    """Return ``table`` in GitHub's Markdown, with the best values in bold."""

    def line(words: Iterable[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"

    lines = [f"**{table.title}**", "", line([table.corner, *table.columns])]
    lines.append(line(["---", *["---:"] * len(table.columns)]))
    for row in table.rows:
        marked = best(row)
        cells = [f"**{cell.text}**" if i in marked else cell.text for i, cell in enumerate(row.cells)]
        lines.append(line([row.label, *cells]))
    if table.notes:
        lines += ["", *[f"- {note}" for note in table.notes]]
    return "\n".join(lines) + "\n"


def csv_text(tables: Iterable[Table]) -> str:
    """Return the tables as one CSV table with a line per cell: table, row, column, value and text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "text"])
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow([table.title, row.label, column, "" if cell.value is None else cell.value, cell.text])
    return text.getvalue()
