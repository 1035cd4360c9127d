"""How sweeps are shown: tables on stdout, and what an agent says while it works on stderr."""

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

from vitctl.cli.printing import print_json, print_table
from vitctl.observer import Observer
from vitctl.sweep.space import show, show_params
from vitctl.sweep.states import TrialState
from vitctl.sweep.sweep import Sweep, TrialRow
from vitctl.units import format_duration

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table

    from vitctl.sweep.agent import Snapshot

Record = dict[str, Any]


# -- words ------------------------------------------------------------------------------------------------------------


def format_value(sweep: Sweep, value: float | None) -> str:
    """Return a value of the sweep's metric: ``53.01 %`` for accuracies, which are in percent."""
    if value is None:
        return "-"
    return f"{value:.2f} %" if sweep.file.metric.name.endswith("_acc") else show(float(value))


def describe_counts(counts: Mapping[TrialState, int]) -> str:
    """Return ``14 complete, 5 pruned, 1 running``."""
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trial yet"


def describe(sweep: Sweep, snapshot: Snapshot) -> str:
    """Return what a sweep searches, and how far it is, in a line."""
    file, total = sweep.file, snapshot.total
    how = {"bayes": sweep.plan.sampler}.get(file.method, file.method)
    return (
        f"{how} over {', '.join(file.order)} for {file.metric.name} ({file.metric.goal}); "
        f"{describe_counts(snapshot.counts)}{f' of {total}' if total is not None else ''}"
    )


def row_document(row: TrialRow) -> Record:
    """Return a trial as JSON."""
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
    """Return how a sweep stands, as JSON."""
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


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def top_tables(sweep: Sweep, rows: list[TrialRow], width: int) -> list[Table]:
    """Return trials as a table with a line for each; where ``width`` has no room for that, with a column for each.

    No figure is cut off: what does not fit beside the others goes into a further table.
    """
    heads = ["Rank", sweep.file.metric.name, *sweep.file.order, "trial", "state"]
    lines = [
        [
            f"Top {rank}",
            format_value(sweep, row.value),
            *(show(row.params.get(name)) for name in sweep.file.order),
            str(row.trial),
            row.state if row.state != "pruned" else f"pruned at {row.epochs}",
        ]
        for rank, row in enumerate(rows, 1)
    ]
    sizes = [max(map(len, column)) + 3 for column in zip(heads, *lines, strict=True)]
    if sum(sizes) + 1 <= width:
        return [_top_table(heads, lines)]
    parts: list[list[list[str]]] = []
    room = 0
    for line in lines:
        needed = max(map(len, line)) + 3
        if not parts or needed > room:
            parts.append([])
            room = width - max(map(len, heads)) - 4
        parts[-1].append(line)
        room -= needed
    return [
        _top_table(["Rank", *(line[0] for line in part)], [list(row) for row in zip(heads, *part, strict=True)][1:])
        for part in parts
    ]


def _top_table(heads: list[str], lines: list[list[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for i, head in enumerate(heads):
        table.add_column(
            escape(head),
            style="bold" if i == 0 else "",
            justify="right" if i and head != "state" else "left",
            no_wrap=True,
        )
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def print_top(sweep: Sweep, count: int) -> None:
    """Print the best trials."""
    rows = sweep.top(count)
    if not rows:
        print(f"no trial of the sweep {sweep.id} has a {sweep.file.metric.name} yet", file=sys.stderr)
        return
    console = _console()
    console.print(*top_tables(sweep, rows, console.width), sep="\n")


def print_best(sweep: Sweep, row: TrialRow) -> None:
    """Print one trial."""
    print_table(
        f"trial {row.trial} of the sweep {sweep.id} ({sweep.file.name})",
        [
            (sweep.file.metric.name, format_value(sweep, row.value)),
            *((name, show(value)) for name, value in row.params.items()),
            *((name, str(value)) for name, value in sweep.file.settings({}, sweep.plan.fixed).items()),
            ("run", str(row.run)),
        ],
    )


def print_status(sweep: Sweep, snapshot: Snapshot) -> None:
    """Print how a sweep stands."""
    plan, file = sweep.plan, sweep.file
    counts = snapshot.counts
    rows = [
        ("state", snapshot.state),
        ("trials", describe_counts(counts) + (f" of {snapshot.total}" if snapshot.total is not None else "")),
        ("searches", f"{file.metric.name}, {file.metric.goal}d"),
        ("method", file.method + (f" ({plan.sampler})" if file.method == "bayes" else "")),
        ("stops early", plan.pruner if plan.pruner != "file" else "hyperband" if file.hyperband else "no"),
        ("storage", plan.storage),
    ]
    if plan.fixed:
        rows.append(("fixed", show_params(plan.fixed)))
    if snapshot.eta is not None:
        rows.append(("left", f"about {format_duration(snapshot.eta)}"))
    print_table(f"sweep {sweep.id}: {file.title}, created {plan.created[:16].replace('T', ' ')} UTC", rows)
    console = _console()
    if snapshot.running:
        console.print(running_table(sweep, snapshot))
    if snapshot.best:
        console.print(*top_tables(sweep, list(snapshot.best), console.width), sep="\n")


def running_table(sweep: Sweep, snapshot: Snapshot) -> Table:
    """Return the trials that run now, on any agent."""
    from rich.table import Table

    table = Table()
    table.add_column("running", style="bold", justify="right")
    table.add_column("epoch", justify="right")
    table.add_column(f"best {sweep.file.metric.name}", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("parameters")
    table.add_column("agent")
    for row in snapshot.running:
        table.add_row(
            str(row.trial),
            str(row.epochs),
            format_value(sweep, row.value),
            format_duration(row.seconds) if row.seconds is not None else "-",
            show_params(row.params),
            row.agent or "-",
        )
    return table


def list_row(sweep: Sweep) -> Record:
    """Return a sweep for the list; one whose storage cannot be had says so."""
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
        return row | {"error": str(error)}
    best = snapshot.best[0].value if snapshot.best else None
    return row | {
        "state": snapshot.state,
        "trials": sum(snapshot.counts.values()),
        "metric": sweep.file.metric.name,
        "best": best,
        "shown_best": format_value(sweep, best),
    }


def print_list(rows: list[Record]) -> None:
    """Print the sweeps."""
    from rich.table import Table

    table = Table()
    for heading in ("id", "file", "state"):
        table.add_column(heading, no_wrap=True)
    table.add_column("trials", justify="right")
    table.add_column("best", justify="right")
    table.add_column("created (UTC)", no_wrap=True)
    for row in rows:
        best = f"{row['metric']} {row['shown_best']}" if row["best"] is not None else "-"
        table.add_row(
            row["id"],
            row["file"],
            row["state"],
            str(row["trials"] if row["trials"] is not None else "-"),
            best,
            row["created"][:16].replace("T", " "),
        )
    _console().print(table)
    for row in rows:
        if "error" in row:
            print(f"{row['id']}: {row['error']}", file=sys.stderr)


def print_plan(plan: Record, *, as_json: bool) -> None:
    """Print what a sweep would do."""
    if as_json:
        print_json(plan)
        return
    from rich.table import Table

    for note in plan["notes"]:
        print(note, file=sys.stderr)
    size = plan["size"]
    sets = "more than can be counted" if size is None else f"{size:,}"
    bands = ", ".join(map(str, plan["bands"])) or "none"
    rows = [
        ("method", plan["method"] + (f" ({plan['sampler']})" if plan["method"] == "bayes" else "")),
        ("metric", f"{plan['metric']}, {plan['goal']}d" + (f", until {plan['target']:g}" if plan["target"] else "")),
        ("points of the grid" if plan["method"] == "grid" else "different parameter sets", sets),
        ("trials", str(plan["run_cap"] or ("all" if plan["method"] == "grid" else "until stopped"))),
        (
            "hyperband looks after epoch" if plan["pruner"] == "file" else "pruner",
            bands if plan["pruner"] == "file" else plan["pruner"],
        ),
        *((name, text) for name, text in plan["parameters"].items()),
        *((name, f"{value} (fixed)") for name, value in plan["constants"].items()),
    ]
    print_table(f"dry run: {plan['file']}", rows)
    table = Table()
    for name in plan["parameters"]:
        table.add_column(name, justify="right")
    for sample in plan["samples"]:
        table.add_row(*(show(sample[name]) for name in plan["parameters"]))
    console = _console()
    words = {"grid": "the first points", "bayes": "parameter sets drawn as the first trials are"}
    console.print(words.get(plan["method"], "parameter sets drawn as trials are"), style="bold")
    console.print(table)


# -- an agent at work -------------------------------------------------------------------------------------------------


def make_observer(*, count: int | None = None, as_json: bool = False) -> SweepLines:
    """Return the observer for this stderr: a table that changes on a terminal, lines elsewhere."""
    kind = SweepTable if sys.stderr.isatty() else SweepLines
    return kind(count=count, as_json=as_json)


class SweepLines(Observer):
    """Prints a line when a trial starts, reports or ends, and the result of an agent on stdout.

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
            more = "another: --new" if snapshot.state == "finished" else f"go on: vitctl sweep resume {sweep.id}"
            self.print(f"{self._name} is {snapshot.state}: {describe_counts(snapshot.counts)}; {more}")
        else:
            self.print(f"{self._name} {'is created' if created else 'goes on'}: {describe(sweep, snapshot)}")

    def sweep_closed(self, why: str | None) -> None:
        """Print why the agent ended, and the best trials."""
        if why is not None:
            self.print(
                {
                    "finished": f"{self._name} is finished",
                    "stopped": f"{self._name} was stopped; go on: vitctl sweep resume {self.sweep.id}",
                    "count": f"this agent has begun its {self._count} trials",
                    "time": f"this agent's time is up; go on: vitctl sweep agent {self.sweep.id}",
                }[why]
            )
        if self._as_json:
            from vitctl.sweep.agent import take_snapshot

            print_json(status_document(self.sweep, take_snapshot(self.sweep)))
        else:
            print_top(self.sweep, 3)

    @property
    def _name(self) -> str:
        return f"the sweep {self.sweep.id} ({self.sweep.file.name})"

    def trial_started(self, trial: int, params: Mapping[str, Any], run: Path, resumed: bool) -> None:
        """Say what is tried."""
        self.print(f"trial {trial} {'goes on' if resumed else 'begins'}: {show_params(params)} | {run}")

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """Say what a trial reported."""
        self.print(f"trial {trial} epoch {epoch}: {self.sweep.file.metric.name} {format_value(self.sweep, value)}")

    def trial_ended(self, trial: int, state: str, value: float | None, why: str) -> None:
        """Say how a trial ended."""
        parts = [f"trial {trial} {state}"]
        if value is not None:
            parts.append(f"{self.sweep.file.metric.name} {format_value(self.sweep, value)}")
        if why:
            parts.append(why)
        if state == "complete" and value is not None:
            metric = self.sweep.file.metric
            if self._best is None or metric.sign * value < metric.sign * self._best:
                self._best = value
                parts.append("the best so far")
        self.print(" | ".join(parts))


class SweepTable(SweepLines):
    """Shows running and best trials in a table that changes; what ended stays as lines above it."""

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
        """Nothing: the table shows it."""

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """Nothing: the table shows it."""

    def sweep_changed(self, snapshot: Snapshot) -> None:
        """Draw the table anew."""
        if self._live is not None:
            self._live.update(self._image(snapshot))

    def _image(self, snapshot: Snapshot) -> Group:
        from rich.console import Group
        from rich.text import Text

        total = f" of {snapshot.total}" if snapshot.total is not None else ""
        line = f"{self.sweep.id} {snapshot.state} | {describe_counts(snapshot.counts)}{total}"
        line += f" | {format_duration(time.monotonic() - self._start)}"
        if snapshot.eta is not None:
            line += f" | about {format_duration(snapshot.eta)} left"
        parts: list[Any] = [Text(line, style="bold")]
        if snapshot.running:
            parts.append(running_table(self.sweep, snapshot))
        if snapshot.best:
            assert self._live is not None
            parts += top_tables(self.sweep, list(snapshot.best), self._live.console.width)
        return Group(*parts)
