"""``vitctl runs``: list, show, diff, rm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitctl.cli.options import Command, Group
from vitctl.config import RUNS
from vitctl.errors import RequestError
from vitctl.files import check_table, write_text
from vitctl.units import format_bytes, plural, printable, quoted

app = typer.Typer(
    name="runs",
    cls=Group,
    help="List, compare and delete runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Targets = Annotated[list[Path], typer.Argument(metavar="RUN...", help="names or folders of runs", show_default=False)]
RunsDir = Annotated[Path, typer.Option(help="folder of runs", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="print as JSON")]


@app.command("list", cls=Command)
def list_runs(
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="condition such as net=vit or 'test_acc>90'; repeatable", metavar="CONDITION"),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="columns to sort by, best first", metavar="COLUMN,...", show_default="newest first"),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="reverse the order")] = False,
    columns: Annotated[
        str | None,
        typer.Option(help="columns to show; +COLUMN,... adds to the default", metavar="COLUMN,..."),
    ] = None,
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="write the runs to this file")] = None,
) -> None:
    """List runs with their settings and results.

    A column is a setting, an option such as net:depth, or a result. Operators of --where are =, !=, <, <=, >, >= and ~ for
    patterns with *; several conditions must all hold. JSON and CSV have all columns unless --columns is given.
    """
    from vitctl.cli import runs_view
    from vitctl.cli.printing import print_json
    from vitctl.runs import query, stored

    if csv is not None:
        check_table(csv, "--csv")
    every = [run.row() for run in stored.read_runs(runs_dir)]
    known = query.columns_in(every)
    conditions = [query.Condition.parse(text, known) for text in where or []]
    chosen = query.columns_of(columns, known) if columns is not None else None
    keys = [query.column_of(word, known) for word in sort.split(",")] if sort is not None else []
    rows = query.sort(query.select(every, conditions), keys, reverse=reverse)
    if reverse and not keys:
        rows.reverse()
    if as_json:
        print_json([runs_view.document(row, chosen) for row in rows])
    elif rows:
        runs_view.print_runs(rows, chosen)
    if not rows:
        folder = printable(str(runs_dir))
        none = f"no match among {plural(len(every), 'run')} in {folder}"
        typer.echo(none if every else f"no runs in {folder}; start one with vitctl train", err=True)
    if csv is not None:
        write_text(csv, runs_view.csv_text(rows, chosen or query.columns_in(rows) or known))


@app.command(cls=Command)
def show(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="name or folder of a run", show_default=False)],
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show the settings, results and sessions of a run."""
    from vitctl.cli import runs_view
    from vitctl.cli.printing import print_json
    from vitctl.runs.stored import open_run

    run = open_run(target, runs_dir)
    if as_json:
        print_json(runs_view.run_document(run))
    else:
        runs_view.print_run(run)


@app.command(cls=Command)
def diff(
    targets: Targets,
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write the differences to this file")
    ] = None,
) -> None:
    """Show what differs between runs.

    Compares settings, results, versions, machine and images.
    """
    from vitctl.cli import runs_view
    from vitctl.cli.printing import print_json
    from vitctl.runs.comparing import differences, remarks
    from vitctl.runs.stored import open_run

    if csv is not None:
        check_table(csv, "--csv")
    runs = [open_run(target, runs_dir) for target in targets]
    if len(runs) < 2:
        raise RequestError("runs diff needs two runs or more", hint=f"use vitctl runs diff {quoted(runs[0].name)} RUN")
    found = differences(runs)
    notes = remarks(runs, found)
    if as_json:
        print_json({"runs": [run.name for run in runs], **found, "notes": notes})
    else:
        runs_view.print_differences(runs, found, notes)
    if csv is not None:
        write_text(csv, runs_view.differences_csv(runs, found))


@app.command(cls=Command)
def rm(
    targets: Targets,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="delete without asking")] = False,
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
) -> None:
    """Delete runs with their checkpoints.

    Asks first. Runs under way and folders outside --runs-dir are never deleted.
    """
    from vitctl.cli.printing import print_json
    from vitctl.runs.removal import check_removable, remove_run, size_of
    from vitctl.runs.stored import open_run

    runs = {run.path.resolve(): run for run in (open_run(target, runs_dir) for target in targets)}
    for run in runs.values():
        check_removable(run, runs_dir)
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError(
                "runs rm needs a terminal to ask before it deletes", hint="add --yes to delete without asking"
            )
        for run in runs.values():
            typer.echo(f"{printable(run.name)} ({run.state}, {format_bytes(size_of(run))})", err=True)
        typer.echo(f"delete {plural(len(runs), 'run')}? [y/N] ", err=True, nl=False)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            typer.echo("nothing was deleted", err=True)
            raise typer.Exit(1)
    for run in runs.values():
        remove_run(run, runs_dir)
        if not as_json:
            typer.echo(f"deleted {printable(str(run.path))}", err=True)
    if as_json:
        print_json({"deleted": [str(run.path) for run in runs.values()]})
