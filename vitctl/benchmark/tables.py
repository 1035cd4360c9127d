"""Tables of figures: what is shown, what a program reads, and which cell of a row is the best."""

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
        text: what is shown.
        value: what a program reads; None where there is none.
    """

    text: str
    value: float | str | None = None


NOTHING = Cell("–")


@dataclass(frozen=True)
class Row:
    """One kind of figure, of every column.

    Attributes:
        label: what it is.
        cells: one per column.
        better: which values are, so that the best can be marked; None marks none.
    """

    label: str
    cells: tuple[Cell, ...]
    better: Literal["low", "high"] | None = None


@dataclass(frozen=True)
class Table:
    """Figures side by side.

    Attributes:
        title: above it.
        corner: heads the column of labels.
        columns: what is compared.
        rows: each with a cell per column.
        notes: sentences below it.
    """

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def best(row: Row) -> set[int]:
    """Return the columns that hold the best value of ``row``: none where fewer than two have one, or all are equal."""
    values = {
        i: float(cell.value)
        for i, cell in enumerate(row.cells)
        if isinstance(cell.value, (int, float)) and not isinstance(cell.value, bool)
    }
    if row.better is None or len(values) < 2 or len(set(values.values())) == 1:
        return set()
    wanted = (min if row.better == "low" else max)(values.values())
    return {i for i, value in values.items() if value == wanted}


def markdown(table: Table) -> str:
    """Return ``table`` in GitHub's Markdown, its best values bold."""

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
    """Return a line per cell: table, row, column, value and text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "text"])
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow([table.title, row.label, column, "" if cell.value is None else cell.value, cell.text])
    return text.getvalue()
