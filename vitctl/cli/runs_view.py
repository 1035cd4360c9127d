"""Display of stored runs: lists, one run, and what differs between several."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from vitctl.cli.grid import GAP, Column, lines, print_grid, stdout_console, text_width
from vitctl.cli.printing import print_bold, print_table
from vitctl.config import FLAGS
from vitctl.data.manifest import DATA_SHA256
from vitctl.registry import format_spec, format_value
from vitctl.runs.comparing import Differences
from vitctl.runs.query import COLUMNS, SECONDS
from vitctl.runs.stored import StoredRun
from vitctl.units import format_bytes, format_duration, printable

Record = dict[str, Any]

TITLES = {"seconds": "time", "started": "started (UTC)"}
"""Headings that differ from the name of the column."""

LEAST_IMPORTANT = ("opt", "dataset", "seconds", "val_acc", "epochs", "net")
"""Default columns in the order in which a narrow terminal loses them."""

TEXT = ("name", "run", "state", "failure", "platform", "device_name")
"""Columns that are aligned to the left."""

COSTS = (*SECONDS, "images_per_second", "peak_memory", "params")
"""Figures of which the relative change is shown."""

FIRST = ("test_acc", "test_acc_tta", "best_val_acc", "val_acc", "train_acc", "test_loss", "val_loss", "train_loss")
"""Results that are shown before the others."""

MISSING = "-"

LONGEST = 2000
"""Characters of a value that are printed; JSON and CSV have all."""


# -- values -----------------------------------------------------------------------------------------------------------


def cell(row: Record, column: str) -> str:
    """Return a value of a run as text; its ``epochs`` are ``3/10`` after 3 of 10."""
    if column == "epochs":
        done, total = (shown(column, value) for value in (row.get("epoch") or 0, row.get("epochs")))
        return done if total in (MISSING, done) else f"{done}/{total}"
    return shown(column, row.get(column))


def shown(column: str, value: Any) -> str:
    """Return a value as text with its unit: accuracies in percent, times, sizes; digests are cut to 12 digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or (isinstance(value, int) and column in FLAGS):
        return format_value(value)
    if isinstance(value, (int, float)):
        return _figure(column, value)
    text = str(value)
    text = printable(text[:LONGEST]) + ("…" if len(text) > LONGEST else "")
    if column == "started":
        return text[:16].replace("T", " ")
    if column in (DATA_SHA256, "git_commit"):
        return text[:12] + ("+" if text.endswith("+") else "")
    return text


def _figure(column: str, value: float) -> str:
    if column.endswith(("_acc", "_acc_tta")):
        return f"{value:.2f} %"
    if "_loss" in column:
        return f"{value:.4f}"
    if column in SECONDS:
        return format_duration(value)
    if column == "peak_memory":
        return format_bytes(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _change(column: str, values: Sequence[Any]) -> str:
    """Return by how much the second of two figures is larger, in percent for costs; ``""`` if they are not figures."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return ""
    one, other = values
    if column.endswith(("_acc", "_acc_tta")):
        return f"{other - one:+.2f} points"
    if column in COSTS:
        return f"{100 * (other / one - 1):+.1f} %" if one else ""
    return f"{'-' if other < one else '+'}{_figure(column, abs(other - one))}"


# -- lists ------------------------------------------------------------------------------------------------------------


def document(row: Record, columns: Sequence[str] | None) -> Record:
    """Return the columns of a run, or all, as JSON values."""
    return row if columns is None else {column: row.get(column) for column in columns}


def csv_text(rows: Iterable[Record], columns: Sequence[str]) -> str:
    """Return runs as CSV."""
    return _csv([columns, *([row.get(column) for column in columns] for row in rows)])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def print_runs(rows: Sequence[Record], chosen: Sequence[str] | None) -> None:
    """Print a line per run; a terminal without room for all default columns gets the most important ones."""
    columns, lost = list(chosen or COLUMNS), list[str]()
    cells = {column: [cell(row, column) for row in rows] for column in columns}
    if chosen is None and sys.stdout.isatty():
        columns, lost = fitting(columns, cells, stdout_console().width)
    heads = [Column(_title(column), text=column in TEXT) for column in columns]
    print("\n".join(lines(heads, list(zip(*(cells[column] for column in columns), strict=True)))))
    if lost:
        print(f"no room for {', '.join(map(_title, lost))}; choose with --columns", file=sys.stderr)


def fitting(columns: Sequence[str], cells: dict[str, list[str]], width: int) -> tuple[list[str], list[str]]:
    """Return the columns that fit ``width``, and those left out, the least important ones."""
    sizes = {column: max(map(text_width, [_title(column), *cells[column]])) for column in columns}
    kept, lost = list(columns), []
    for column in LEAST_IMPORTANT:
        if sum(sizes[each] + GAP for each in kept) - GAP <= width:
            break
        kept.remove(column)
        lost.append(column)
    return kept, lost


def _title(column: str) -> str:
    return TITLES.get(column, column)


# -- one run ----------------------------------------------------------------------------------------------------------


def run_document(run: StoredRun) -> Record:
    """Return everything about a run as JSON values."""
    return {
        "name": run.name,
        "run": str(run.path),
        "state": run.state,
        "settings": run.settings,
        "results": run.results,
        "sessions": run.sessions,
        "history": run.history(),
        "failure": run.failure.to_dict() if run.failure else None,
        "notes": list(run.notes),
    }


def print_run(run: StoredRun) -> None:
    """Print the state, results, settings and sessions of a run."""
    row, figures = run.row(), run.figures
    results = {name: figures[name] for name in FIRST if name in figures} | figures | run.data
    overview = [
        ("folder", printable(str(run.path))),
        ("started", f"{shown('started', row['started'])} UTC" if row["started"] else MISSING),
        ("epochs", cell(row, "epochs")),
        *([("failure", printable(run.failure.message))] if run.failure else []),
        *(("note", printable(note)) for note in run.notes),
    ]
    print_table(f"{printable(run.name)}: {run.state}", overview)
    for title, values in (
        ("results" if run.state == "finished" else "results of the last epoch", results),
        ("versions and machine", run.environment),
    ):
        if values:
            print_table(f"\n{title}", [(_title(name), shown(name, value)) for name, value in values.items()])
    if run.settings:
        print_table("\nsettings", _settings_by_group(run.settings))
    if run.sessions:
        print_bold("\nsessions")
        print_grid(
            [Column("started (UTC)"), Column("step"), *(Column(name, text=True) for name in ("device", "command"))],
            [
                [
                    shown("started", session.get("started")),
                    shown("step", session.get("step")),
                    shown("device", session.get("device")),
                    shown("command", session.get("command")),
                ]
                for session in run.sessions
            ],
        )


def _settings_by_group(settings: Record) -> list[tuple[str, str]]:
    """Return a row per group of ``vitctl train --help`` with the settings that have a value, as they are typed."""
    groups: dict[str, list[str]] = {flag.panel: [] for flag in FLAGS.values()}
    for name, flag in FLAGS.items():
        value = settings.get(name)
        if isinstance(value, dict):
            value = ",".join(f"{key}={shown(key, each)}" for key, each in value.items()) or None
        elif isinstance(options := settings.get(f"{name}_options"), dict):
            value = format_spec(str(value), options)
        if value is not None:
            groups[flag.panel].append(f"{name}={shown(name, value)}")
    return [(group, ", ".join(words)) for group, words in groups.items() if words]


# -- several runs -----------------------------------------------------------------------------------------------------


def print_differences(runs: Sequence[StoredRun], found: Differences, notes: Sequence[str]) -> None:
    """Print a table per section with a column per run; that of two runs' results also has the changes."""
    names = [Column(printable(run.name), text=True) for run in runs]
    for section, values in found.items():
        rows = [[_title(name), *(shown(name, value) for value in row)] for name, row in values.items()]
        columns = [Column(section), *names]
        if section == "results" and len(runs) == 2:
            columns.append(Column("change"))
            rows = [[*row, _change(name, values[name])] for row, name in zip(rows, values, strict=True)]
        if rows:
            print_grid(columns, rows)
    equal = [section for section, values in found.items() if not values]
    if equal:
        print(f"the same: {', '.join(equal)}", file=sys.stderr)
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


def differences_csv(runs: Sequence[StoredRun], found: Differences) -> str:
    """Return the differences as CSV, a line per value with a column per run."""
    head = ["section", "name", *(run.name for run in runs)]
    return _csv([head, *([section, name, *row] for section, values in found.items() for name, row in values.items())])
