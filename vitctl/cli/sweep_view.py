"""Display of sweeps: tables on stdout, progress of an agent on stderr."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vitctl.cli.grid import Column, grids, print_grid, stdout_console
from vitctl.cli.grid import show as show_tables
from vitctl.cli.printing import print_bold, print_json, print_next, print_table
from vitctl.observer import Observer
from vitctl.sweep.images import SweepImages
from vitctl.sweep.space import show, show_params
from vitctl.sweep.states import TrialState
from vitctl.sweep.sweep import Sweep, TrialRow
from vitctl.units import format_duration

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

    from vitctl.sweep.agent import Snapshot

Record = dict[str, Any]


# -- words ------------------------------------------------------------------------------------------------------------


def describe_counts(counts: Mapping[TrialState, int]) -> str:
    """Return ``14 complete, 5 pruned, 1 running``."""
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trials yet"


def describe(sweep: Sweep, snapshot: Snapshot) -> str:
    """Describe search space, metric and progress of a sweep in one line."""
    file, total = sweep.file, snapshot.total
    how = {"bayes": sweep.plan.sampler}.get(file.method, file.method)
    return (
        f"{how} search over {', '.join(file.order)}, {file.metric.goal} {file.metric.name}; "
        f"{describe_counts(snapshot.counts)}{f' of {total}' if total is not None else ''}"
    )


def row_document(row: TrialRow) -> Record:
    """Return a trial as JSON values."""
    return {
        "trial": row.trial,
        "state": row.state,
        "params": row.params,
        "value": row.value,
        "epochs": row.epochs,
        "run": row.run,
        "seconds": row.seconds,
        "attempts": row.attempts,
        **({"agent": row.agent} if row.agent else {}),
        **({"failure": row.failure} if row.failure else {}),
        **({"failure_kind": row.failure_kind} if row.failure_kind else {}),
    }


def status_document(sweep: Sweep, snapshot: Snapshot) -> Record:
    """Return the progress of a sweep as JSON values."""
    plan = sweep.plan
    return {
        "id": sweep.id,
        "file": sweep.file.name,
        "title": sweep.file.title,
        "state": snapshot.state,
        "counts": dict(snapshot.counts),
        "total": snapshot.total,
        "eta": snapshot.eta,
        "metric": sweep.file.metric.name,
        "goal": sweep.file.metric.goal,
        "method": sweep.file.method,
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "run_cap": plan.run_cap,
        "seed": plan.seed,
        "fixed": dict(plan.fixed),
        "created": plan.created,
        "storage": plan.storage,
        "folder": str(sweep.folder),
        "images": list(snapshot.images.digests),
        "other_images": {str(trial): digest for trial, digest in snapshot.images.others.items()},
        "running": [row_document(row) for row in snapshot.running],
        "best": [row_document(row) for row in snapshot.best],
    }


def export(sweep: Sweep, form: str) -> str:
    """Return all trials as CSV or JSON, with the columns trial, state, params, value and run."""
    columns = ("trial", "state", "params", "value", "run")
    rows = [{key: row_document(row)[key] for key in columns} for row in sweep.rows()]
    if form == "json":
        return json.dumps(rows, indent=2) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "params": json.dumps(row["params"])})
    return text.getvalue()


# -- tables -----------------------------------------------------------------------------------------------------------


def top_tables(sweep: Sweep, rows: list[TrialRow], width: int) -> list[Table]:
    """Return trials as a table with one row each or, if ``width`` has no room for that, one column each."""
    heads = ["Rank", sweep.file.metric.name, *sweep.file.order, "trial", "state"]
    lines = [
        [
            f"Top {rank}",
            sweep.format_value(row.value),
            *(show(row.params.get(name)) for name in sweep.file.order),
            str(row.trial),
            row.state if row.state != "pruned" else f"pruned at {row.epochs}",
        ]
        for rank, row in enumerate(rows, 1)
    ]
    tables = grids([Column(head) for head in heads], lines, width)
    if len(tables) == 1:
        return tables
    turned = [list(row) for row in zip(heads, *lines, strict=True)]
    return grids([Column(head) for head in turned[0]], turned[1:], width)


def _print_other_images(images: SweepImages) -> None:
    if text := images.describe_others():
        print(text, file=sys.stderr)


def print_top(sweep: Sweep, count: int) -> None:
    """Print the best trials."""
    ledger = sweep.ledger()
    rows = sweep.top(count, ledger)
    _print_other_images(SweepImages.of(ledger.trials))
    if not rows:
        print(f"sweep {sweep.id} has no trial with a {sweep.file.metric.name} yet", file=sys.stderr)
        return
    console = stdout_console()
    show_tables(console, *top_tables(sweep, rows, console.width))


def print_best(sweep: Sweep, row: TrialRow) -> None:
    """Print one trial."""
    _print_other_images(SweepImages.of(sweep.ledger().trials))
    print_table(
        f"trial {row.trial} of sweep {sweep.id} ({sweep.file.name})",
        [
            (sweep.file.metric.name, sweep.format_value(row.value)),
            *((name, show(value)) for name, value in row.params.items()),
            *((name, str(value)) for name, value in sweep.file.settings({}, sweep.plan.fixed).items()),
            ("run", str(row.run)),
        ],
    )


def print_status(sweep: Sweep, snapshot: Snapshot) -> None:
    """Print the progress of a sweep."""
    plan, file = sweep.plan, sweep.file
    counts = snapshot.counts
    rows = [
        ("state", snapshot.state),
        ("trials", describe_counts(counts) + (f" of {snapshot.total}" if snapshot.total is not None else "")),
        ("metric", f"{file.metric.name} ({file.metric.goal})"),
        ("method", file.method + (f" ({plan.sampler})" if file.method == "bayes" else "")),
        ("pruner", plan.pruner if plan.pruner != "file" else "hyperband" if file.hyperband else "none"),
        ("storage", plan.storage),
    ]
    if plan.fixed:
        rows.append(("fixed", show_params(plan.fixed)))
    if snapshot.images.digests:
        rows.append(("images", ", ".join(digest[:12] for digest in snapshot.images.digests)))
    if snapshot.eta is not None:
        rows.append(("time left (estimate)", format_duration(snapshot.eta)))
    print_table(f"sweep {sweep.id}: {file.title}, created {plan.created[:16].replace('T', ' ')} UTC", rows)
    _print_other_images(snapshot.images)
    console = stdout_console()
    if snapshot.running:
        show_tables(console, *running_tables(sweep, snapshot, console.width))
    if snapshot.best:
        show_tables(console, *top_tables(sweep, list(snapshot.best), console.width))


def running_tables(sweep: Sweep, snapshot: Snapshot, width: int) -> list[Table]:
    """Return the running trials of all agents as tables."""
    columns = [
        Column("running"),
        Column("epoch"),
        Column(f"best {sweep.file.metric.name}"),
        Column("time"),
        Column("parameters", text=True),
        Column("agent", text=True),
    ]
    rows = [
        [
            str(row.trial),
            str(row.epochs),
            sweep.format_value(row.value),
            format_duration(row.seconds) if row.seconds is not None else "-",
            show_params(row.params),
            row.agent or "-",
        ]
        for row in snapshot.running
    ]
    return grids(columns, rows, width)


def list_row(sweep: Sweep) -> Record:
    """Return a sweep as a row of the list; ``error`` if its storage cannot be read."""
    from vitctl.errors import VitctlError

    row: Record = {
        "id": sweep.id,
        "file": sweep.file.name,
        "created": sweep.plan.created,
        "storage": sweep.plan.storage,
        "state": "unknown",
        "trials": None,
        "best": None,
    }
    try:
        from vitctl.sweep.agent import take_snapshot

        snapshot = take_snapshot(sweep, count=1)
    except VitctlError as error:
        return row | {"error": error.message}
    best = snapshot.best[0].value if snapshot.best else None
    return row | {
        "state": snapshot.state,
        "trials": sum(snapshot.counts.values()),
        "metric": sweep.file.metric.name,
        "best": best,
        "shown_best": sweep.format_value(best),
    }


def print_list(rows: list[Record]) -> None:
    """Print the list of sweeps."""
    print_grid(
        [Column("id"), Column("file", text=True), *map(Column, ("state", "trials", "best", "created (UTC)"))],
        [
            [
                row["id"],
                row["file"],
                row["state"],
                str(row["trials"] if row["trials"] is not None else "-"),
                f"{row['metric']} {row['shown_best']}" if row["best"] is not None else "-",
                row["created"][:16].replace("T", " "),
            ]
            for row in rows
        ],
    )
    for row in rows:
        if "error" in row:
            print(f"{row['id']}: {row['error']}", file=sys.stderr)


def print_plan(plan: Record, *, as_json: bool) -> None:
    """Print the plan of a sweep."""
    if as_json:
        print_json(plan)
        return
    for note in plan["notes"]:
        print(note, file=sys.stderr)
    size = plan["size"]
    sets = "unlimited" if size is None else f"{size:,}"
    bands = ", ".join(map(str, plan["bands"])) or "none"
    rows = [
        ("method", plan["method"] + (f" ({plan['sampler']})" if plan["method"] == "bayes" else "")),
        ("metric", f"{plan['metric']}, {plan['goal']}d" + (f", until {plan['target']:g}" if plan["target"] else "")),
        ("grid points" if plan["method"] == "grid" else "distinct parameter sets", sets),
        ("trials", str(plan["run_cap"] or ("all" if plan["method"] == "grid" else "until stopped"))),
        (
            "hyperband rungs (epochs)" if plan["pruner"] == "file" else "pruner",
            bands if plan["pruner"] == "file" else plan["pruner"],
        ),
        *((name, text) for name, text in plan["parameters"].items()),
        *((name, f"{value} (fixed)") for name, value in plan["constants"].items()),
    ]
    print_table(f"dry run: {plan['file']}", rows)
    print_bold("first grid points" if plan["method"] == "grid" else "example parameter sets")
    print_grid(
        [Column("#"), *map(Column, plan["parameters"])],
        [
            [str(number), *(show(sample[name]) for name in plan["parameters"])]
            for number, sample in enumerate(plan["samples"], start=1)
        ],
    )


# -- an agent at work -------------------------------------------------------------------------------------------------


def make_observer(*, count: int | None = None, as_json: bool = False) -> SweepLines:
    """Return an observer that prints to stderr: a live table on a terminal, lines elsewhere."""
    kind = SweepTable if sys.stderr.isatty() else SweepLines
    return kind(count=count, as_json=as_json)


class SweepLines(Observer):
    """Prints a line when a trial starts, reports or ends, and the agent's result on stdout.

    Args:
        count: number of trials that the agent was asked to start.
        as_json: print the result as JSON.
    """

    def __init__(self, *, count: int | None = None, as_json: bool = False) -> None:
        self._count = count
        self._as_json = as_json
        self._sweep: Sweep | None = None
        self._best: float | None = None

    @property
    def sweep(self) -> Sweep:
        """The sweep that the agent works on."""
        assert self._sweep is not None, "sweep_opened comes first"
        return self._sweep

    def print(self, text: str) -> None:
        """Print a line to stderr."""
        print(text, file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        self.print(text)

    def sweep_opened(self, sweep: Sweep, snapshot: Snapshot, *, created: bool) -> None:
        """Print the state of the sweep."""
        self._sweep = sweep
        self._best = snapshot.best[0].value if snapshot.best else None
        if snapshot.state in ("finished", "stopped"):
            more = (
                "add --new for another"
                if snapshot.state == "finished"
                else f"resume it: vitctl sweep resume {sweep.id}"
            )
            self.print(f"{self._name} is {snapshot.state}: {describe_counts(snapshot.counts)}; {more}")
        else:
            self.print(f"{self._name} {'created' if created else 'continues'}: {describe(sweep, snapshot)}")

    def sweep_closed(self, why: str | None) -> None:
        """Print why the agent ended, and the best trials."""
        if why is not None:
            self.print(
                {
                    "finished": f"{self._name} is finished",
                    "stopped": f"{self._name} was stopped; resume it: vitctl sweep resume {self.sweep.id}",
                    "count": "this agent has started as many trials as --count allows",
                    "time": f"time is up; continue with {self.sweep.agent_command}",
                }[why]
            )
        if self._as_json:
            from vitctl.sweep.agent import take_snapshot

            print_json(status_document(self.sweep, take_snapshot(self.sweep)))
        else:
            print_top(self.sweep, 3)
            if self.sweep.ledger().count("complete"):
                print_next(*self.sweep.command("best"))

    @property
    def _name(self) -> str:
        return f"sweep {self.sweep.id} ({self.sweep.file.name})"

    def trial_started(self, trial: int, params: Mapping[str, Any], run: Path, resumed: bool) -> None:
        """Print the parameters of a trial."""
        self.print(f"trial {trial} {'resumes' if resumed else 'starts'}: {show_params(params)} | {run}")

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """Print a reported value."""
        self.print(f"trial {trial} epoch {epoch}: {self.sweep.file.metric.name} {self.sweep.format_value(value)}")

    def trial_ended(self, trial: int, state: str, value: float | None, why: str) -> None:
        """Print the result of a trial."""
        parts = [f"trial {trial} {state}"]
        if value is not None:
            parts.append(f"{self.sweep.file.metric.name} {self.sweep.format_value(value)}")
        if why:
            parts.append(why)
        if state == "complete" and value is not None:
            metric = self.sweep.file.metric
            if self._best is None or metric.sign * value < metric.sign * self._best:
                self._best = value
                parts.append("best so far")
        self.print(" | ".join(parts))


class SweepTable(SweepLines):
    """Shows running and best trials in a live table, below one line per finished trial."""

    wants_snapshots = True

    def __init__(self, *, count: int | None = None, as_json: bool = False) -> None:
        super().__init__(count=count, as_json=as_json)
        self._live: Live | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print(self, text: str) -> None:
        """Print a line above the table."""
        if self._live is not None:
            self._live.console.print(text, markup=False, soft_wrap=True)
        else:
            super().print(text)

    def trial_started(self, trial: int, params: Mapping[str, Any], run: Path, resumed: bool) -> None:
        """Do nothing; the table shows it."""

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """Do nothing; the table shows it."""

    def sweep_changed(self, snapshot: Snapshot) -> None:
        """Update the table."""
        if self._live is not None:
            self._live.update(self._view(snapshot))

    def _view(self, snapshot: Snapshot) -> Group:
        from rich.console import Group
        from rich.text import Text

        total = f" of {snapshot.total}" if snapshot.total is not None else ""
        line = f"{self.sweep.id} {snapshot.state} | {describe_counts(snapshot.counts)}{total}"
        line += f" | {format_duration(time.monotonic() - self._start)}"
        if snapshot.eta is not None:
            line += f" | {format_duration(snapshot.eta)} left"
        parts: list[Any] = [Text(line, style="bold")]
        assert self._live is not None
        if snapshot.running:
            parts += running_tables(self.sweep, snapshot, self._live.console.width)
        if snapshot.best:
            parts += top_tables(self.sweep, list(snapshot.best), self._live.console.width)
        return Group(*parts)
