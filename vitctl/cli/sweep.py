"""``vitctl sweep``: create, agent, status, list, top, best, stop, pause, resume, retry, enqueue, export, plot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitctl.cli.options import Command, Group
from vitctl.errors import RequestError
from vitctl.files import check_replaceable, check_table, write_text
from vitctl.registry import lookup, unknown
from vitctl.sweep import ENGINES, PRUNERS, SAMPLERS
from vitctl.sweep.states import Control
from vitctl.units import mask_passwords, plural

if TYPE_CHECKING:
    from vitctl.sweep.engine import Engine, EngineEntry, SweepOptions
    from vitctl.sweep.sweep import Sweep

app = typer.Typer(
    name="sweep",
    cls=Group,
    help="Search hyperparameters with W&B sweep files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NEW = "New sweeps"

Target = Annotated[
    str, typer.Argument(metavar="FILE|ID", help="sweep file (its newest sweep) or sweep id", show_default=False)
]
RunsDir = Annotated[Path, typer.Option(help="folder for runs and sweeps", metavar="DIR")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="database, such as postgresql://USER@HOST/DATABASE",
        metavar="URL",
        show_default="SQLite in the sweep's folder",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print as JSON")]
EngineName = Annotated[
    str | None,
    typer.Option(help="what runs the sweep", metavar="|".join(ENGINES), show_default="local"),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option(
        "--fixed",
        help="setting for all trials; repeatable",
        metavar="KEY=VALUE",
        rich_help_panel=NEW,
    ),
]
RunCap = Annotated[
    int | None,
    typer.Option("--run-cap", help="maximum number of trials", metavar="N", min=1, rich_help_panel=NEW),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="sampler for method: bayes",
        metavar="|".join(SAMPLERS),
        show_default="tpe",
        rich_help_panel=NEW,
    ),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        help=", ".join(PRUNERS),
        metavar="NAME",
        show_default="the file's early_terminate",
        rich_help_panel=NEW,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="seed for the sampler", metavar="N", min=0, show_default="random", rich_help_panel=NEW),
]

RUNS = Path("runs")


def _options(
    runs_dir: Path,
    storage: str | None,
    fixed: list[str] | None = None,
    run_cap: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    seed: int | None = None,
) -> SweepOptions:
    """Return the options of a sweep, checking names before heavy imports.

    Raises:
        RequestError: an unknown name, or ``--fixed`` without KEY=VALUE.
    """
    settings: dict[str, str] = {}
    for word in fixed or []:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise RequestError(
                f"--fixed {word!r} is not KEY=VALUE", hint="use --fixed KEY=VALUE, such as --fixed net=cct_2"
            )
        if key in settings:
            raise RequestError(f"--fixed sets {key} twice", hint=f"use --fixed {key}=VALUE once")
        settings[key.strip()] = value.strip()
    if sampler is not None:
        lookup(SAMPLERS, sampler, "--sampler")
    if pruner is not None:
        lookup(PRUNERS, pruner.partition(":")[0], "--pruner")
    from vitctl.sweep.engine import SweepOptions

    return SweepOptions(
        runs_dir=runs_dir,
        storage=storage,
        fixed=settings,
        run_cap=run_cap,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
    )


def _engine(name: str | None, target: str) -> tuple[str, EngineEntry]:
    """Return the name and entry of the engine that runs ``target``.

    Raises:
        RequestError: unknown engine, or a sweep id of another engine.
    """
    if name is not None:
        lookup(ENGINES, name, "--engine")
    is_file = Path(target).exists() or target.endswith((".yaml", ".yml"))
    owner = next((each for each, entry in ENGINES.items() if not is_file and entry.owns(target)), None)
    if owner is not None and name not in (None, owner):
        raise RequestError(f"{target} is a sweep of --engine {owner}, not {name}", hint=f"remove --engine {name}")
    name = owner or name or next(iter(ENGINES))
    return name, ENGINES[name]


def _find_file(target: Path) -> Path:
    """Return the path of a sweep file, after reporting its mistakes before heavy imports."""
    from vitctl.sweep.file import find_sweep_file, read_sweep_file

    path = find_sweep_file(target)
    if path != target:
        _print_note(f"{target} not found; using {path}")
    read_sweep_file(path)
    return path


def find_local(target: str, runs_dir: Path, storage: str | None) -> Sweep:
    """Return a sweep by its id, or the newest of a file.

    Raises:
        RequestError: no such sweep, or W&B runs it.
    """
    name, entry = _engine(None, target)
    if entry.page:
        raise RequestError(
            f"{target} is a sweep of --engine {name}; see {entry.page.format(*target.split('/'))}",
            hint=f"run its trials with vitctl sweep agent {target}",
        )
    from vitctl.sweep.sweep import find_sweep  # optuna loads here

    return find_sweep(target, runs_dir, storage)


def _print_note(text: str) -> None:
    typer.echo(text, err=True)


@app.command(cls=Command)
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="sweep file in W&B's format", show_default=False)],
    dry_run: Annotated[
        int | None,
        typer.Option(
            "--dry-run",
            help="only show N parameter sets and the size of the sweep",
            metavar="N",
            min=1,
        ),
    ] = None,
    engine: EngineName = None,
    fixed: Fixed = None,
    run_cap: RunCap = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    seed: Seed = None,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Create a sweep from a file and print its id.

    Parameters and values are checked as "vitctl train" would. The sweep keeps a copy of the file. vitctl's own files,
    such as sweeps/digits.yaml, are found from any folder.
    """
    name, entry = _engine(engine, str(file))
    file = _find_file(file)
    entry.refuse(name, {"storage": storage, "sampler": sampler, "pruner": pruner, "seed": seed, "dry_run": dry_run})
    options = _options(runs_dir, storage, fixed, run_cap, sampler, pruner, seed)
    if dry_run is not None:
        from vitctl.cli import sweep_view
        from vitctl.sweep import local

        sweep_view.print_plan(local.dry_run(file, options, dry_run), as_json=as_json)
        return
    from vitctl.cli.sweep_view import make_observer

    made: Engine = entry.load()()
    _print_id(made.create(file, options, make_observer()), as_json)


def _print_id(id: str, as_json: bool) -> None:
    from vitctl.cli import printing

    if as_json:
        printing.print_json({"id": id})
    else:
        typer.echo(id)


@app.command(cls=Command)
def agent(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID",
            help="sweep file (its newest sweep, created if needed) or sweep id",
            show_default=False,
        ),
    ],
    count: Annotated[int | None, typer.Option(help="start at most N trials", metavar="N", min=1)] = None,
    jobs: Annotated[int | None, typer.Option(help="concurrent trials", metavar="N", min=1, show_default="1")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="CUDA devices, one trial at a time on each", metavar="all|0,1,...")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(help="stop after 90s, 10m or 2h; running trials are saved", metavar="TIME"),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="create another sweep from the file", rich_help_panel=NEW)] = False,
    engine: EngineName = None,
    fixed: Fixed = None,
    run_cap: RunCap = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    seed: Seed = None,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Run trials of a sweep until it is finished.

    Several agents can work on one sweep, also on other machines. Each trial is a "vitctl train" with its own run folder.
    Ctrl-C saves running trials, and the next agent resumes them, as it does those of a killed agent.
    """
    from vitctl.units import parse_duration

    seconds = parse_duration(max_time, "--max-time") if max_time is not None else None
    if jobs is not None and gpus is not None:
        raise RequestError("--jobs and --gpus are mutually exclusive", hint="use --jobs N or --gpus all")
    if gpus is not None and not re.fullmatch(r"all|\d+(,\d+)*", gpus):
        raise RequestError(f"--gpus takes all or indices, not {gpus!r}", hint="use --gpus all or --gpus 0,1")
    name, entry = _engine(engine, target)
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        target = str(_find_file(Path(target)))
    given = {"storage": storage, "sampler": sampler, "pruner": pruner, "seed": seed, "jobs": jobs, "gpus": gpus}
    entry.refuse(name, {**given, "max_time": max_time, "json": as_json})
    options = _options(runs_dir, storage, fixed, run_cap, sampler, pruner, seed)
    from vitctl.cli.sweep_view import make_observer
    from vitctl.sweep.engine import AgentOptions

    asked = AgentOptions(new=new, count=count, jobs=jobs, gpus=gpus, max_time=seconds)
    found: Engine = entry.load()()
    found.work(target, options, asked, make_observer(count=count, as_json=as_json))


@app.command(cls=Command)
def status(target: Target, runs_dir: RunsDir = RUNS, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the progress of a sweep.

    Shows trials by state, running trials, the best trials and the estimated time left.
    """
    sweep = find_local(target, runs_dir, storage)
    from vitctl.cli import printing, sweep_view
    from vitctl.sweep.agent import take_snapshot

    snapshot = take_snapshot(sweep)
    if as_json:
        printing.print_json(sweep_view.status_document(sweep, snapshot))
    else:
        sweep_view.print_status(sweep, snapshot)


@app.command("list", cls=Command)
def list_sweeps(runs_dir: RunsDir = RUNS, storage: Storage = None, as_json: AsJson = False) -> None:
    """List sweeps in --runs-dir or --storage."""
    from vitctl.cli import printing, sweep_view
    from vitctl.sweep.sweep import find_sweeps

    rows = [sweep_view.list_row(sweep) for sweep in find_sweeps(runs_dir, storage)]
    if as_json:
        printing.print_json(rows)
    elif not rows:
        _print_note(
            f"no sweeps in {mask_passwords(storage) if storage else runs_dir / 'sweeps'}; "
            f"create one with vitctl sweep create FILE"
        )
    else:
        sweep_view.print_list(rows)


@app.command(cls=Command)
def top(
    target: Target,
    count: Annotated[int, typer.Option("-k", "--count", help="number of trials", metavar="N", min=1)] = 3,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show the best trials and their parameters."""
    sweep = find_local(target, runs_dir, storage)
    from vitctl.cli import printing, sweep_view

    if as_json:
        printing.print_json([sweep_view.row_document(row) for row in sweep.top(count)])
    else:
        sweep_view.print_top(sweep, count)


@app.command(cls=Command)
def best(
    target: Target,
    config: Annotated[bool, typer.Option("--config", help="print the settings as a file for train --config")] = False,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show the best complete trial or its settings."""
    if config and as_json:
        raise RequestError("--config and --json are mutually exclusive", hint="use --config or --json")
    sweep = find_local(target, runs_dir, storage)
    from vitctl.cli import printing, sweep_view

    row = sweep.best()
    if config:
        import yaml

        from vitctl.sweep.sweep import best_settings

        settings = best_settings(sweep.id, runs_dir, storage)
        typer.echo(f"# trial {row.trial} of the sweep {sweep.id}: {sweep.format_value(row.value)}")
        typer.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)
    elif as_json:
        printing.print_json({**sweep_view.row_document(row), "settings": sweep.settings(row)})
    else:
        sweep_view.print_best(sweep, row)


def _set_control(target: str, word: Control, runs_dir: Path, storage: str | None) -> None:
    sweep = find_local(target, runs_dir, storage)
    before = sweep.control()
    if word == "paused" and before == "stopped":
        raise RequestError(f"the sweep {sweep.id} is stopped", hint=f"resume it first: vitctl sweep resume {sweep.id}")
    sweep.set_control(word)
    running = sweep.ledger().count("running")
    rest = f"; {plural(running, 'running trial')} will finish" if running and word != "running" else ""
    words = {"running": "resumed", "paused": "paused; agents wait", "stopped": "stopped; agents exit"}
    _print_note(f"sweep {sweep.id} {words[word]}{rest}")


@app.command(cls=Command)
def stop(target: Target, runs_dir: RunsDir = RUNS, storage: Storage = None) -> None:
    """Stop a sweep: running trials finish, agents exit."""
    _set_control(target, "stopped", runs_dir, storage)


@app.command(cls=Command)
def pause(target: Target, runs_dir: RunsDir = RUNS, storage: Storage = None) -> None:
    """Pause a sweep: running trials finish, agents wait."""
    _set_control(target, "paused", runs_dir, storage)


@app.command(cls=Command)
def resume(target: Target, runs_dir: RunsDir = RUNS, storage: Storage = None) -> None:
    """Resume a paused or stopped sweep."""
    _set_control(target, "running", runs_dir, storage)


@app.command(cls=Command)
def retry(
    target: Target,
    failed: Annotated[bool, typer.Option("--failed", help="all failed trials")] = False,
    trials: Annotated[list[int] | None, typer.Option("--trial", help="a failed trial; repeatable", metavar="N")] = None,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
) -> None:
    """Retry failed trials, from their checkpoints if any."""
    if failed == bool(trials):
        raise RequestError(
            "no trials selected" if not failed else "--failed and --trial are mutually exclusive",
            hint="use --failed for all failed trials, or --trial N",
        )
    sweep = find_local(target, runs_dir, storage)
    again = sweep.retry_failed(trials)
    if not again:
        _print_note(f"sweep {sweep.id} has no failed trials")
    else:
        numbers = ", ".join(map(str, again))
        _print_note(f"queued for retry: {numbers}; run {sweep.agent_command}")


@app.command(cls=Command)
def enqueue(
    target: Target,
    values: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="values of parameters", show_default=False)
    ],
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
) -> None:
    """Queue a trial with the given parameters.

    The sampler proposes the other parameters as usual.
    """
    params: dict[str, str] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise RequestError(f"{word!r} is not KEY=VALUE", hint="use KEY=VALUE, such as lr=0.001")
        if key in params:
            raise RequestError(f"{key} is set twice", hint=f"use {key}=VALUE once")
        params[key] = value
    sweep = find_local(target, runs_dir, storage)
    number = sweep.enqueue(params)
    control = sweep.control()
    if control == "running":
        _print_note(f"trial {number} is queued; run {sweep.agent_command}")
    else:
        _print_note(f"trial {number} is queued, but the sweep is {control}; resume it: vitctl sweep resume {sweep.id}")


@app.command(cls=Command)
def export(
    target: Target,
    form: Annotated[str, typer.Option("--format", help="output format", metavar="csv|json")] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="output file", show_default="stdout")
    ] = None,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
) -> None:
    """Export all trials as CSV or JSON."""
    if form not in ("csv", "json"):
        raise unknown("--format", form, ("csv", "json"))
    if out is not None:
        check_table(out, "--out") if form == "csv" else check_replaceable(out, "--out", (".json",))
    sweep = find_local(target, runs_dir, storage)
    from vitctl.cli import sweep_view

    text = sweep_view.export(sweep, form)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)


@app.command(cls=Command)
def plot(
    target: Target,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="history, parallel, importances, curves or values; repeatable",
            show_default="all",
        ),
    ] = None,
    forms: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="png|html|svg", help="output format; repeatable", show_default="png, html"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="output folder, or one .html, .png or .svg file",
            show_default="plots in the sweep's folder",
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    storage: Storage = None,
) -> None:
    """Plot a sweep.

    Plots the history, parallel coordinates, parameter importances, learning curves, and values by parameter.
    """
    for flag, given, known in (
        ("--kind", kinds, ("history", "parallel", "importances", "curves", "values")),
        ("--format", forms, ("png", "html", "svg")),
    ):
        for word in given or ():
            if word not in known:
                raise unknown(flag, word, known)
    single = out is not None and not out.is_dir() and out.suffix.lower() in (".html", ".png", ".svg")
    if single and out is not None:
        check_replaceable(out, "--out", (out.suffix.lower(),))
        if forms:
            raise RequestError(
                f"--format does nothing with --out {out}", hint="remove --format, or use --out with a folder"
            )
    sweep = find_local(target, runs_dir, storage)
    from vitctl.sweep.plots import KINDS
    from vitctl.sweep.plots import plot as draw

    for path in draw(sweep, kinds or list(KINDS), forms or ["png", "html"], out or sweep.folder / "plots", _print_note):
        typer.echo(str(path))
