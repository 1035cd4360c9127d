"""``vitctl compare-optimizers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitctl.cli.options import COMPARISON, AsJson, ConfigFile, Out, takes_settings


@takes_settings(hidden=("opt",))
def compare_optimizers(
    settings: dict[str, Any],
    optimizers: Annotated[
        list[str],
        typer.Argument(metavar="OPT...", help="two or more optimizers, such as adan:lr=1e-3 adamw"),
    ],
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", help="runs per optimizer, with consecutive seeds from --seed", rich_help_panel=COMPARISON
        ),
    ] = 3,
    lr_search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="first try N learning rates for each OPT without lr=",
            rich_help_panel=COMPARISON,
            show_default="no search",
        ),
    ] = None,
    from_sweep: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ID",
            help="start from the settings of a sweep's best trial",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="database that holds the sweep of --from-sweep", rich_help_panel=COMPARISON),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="concurrent runs; they slow each other down", rich_help_panel=COMPARISON),
    ] = 1,
    out: Out = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="name of the comparison's folder",
            rich_help_panel=COMPARISON,
            show_default="from network, data and settings",
        ),
    ] = None,
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="start over even if a comparison with these settings exists", rich_help_panel=COMPARISON
        ),
    ] = False,
    runs_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="folder for runs, which go to DIR/comparisons/NAME", rich_help_panel=COMPARISON
        ),
    ] = Path("runs"),
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare optimizers fairly: same initial weights, data order and augmentation.

    Reports which differences are larger than the noise between seeds. To resume an interrupted comparison, run the same
    command again.
    """
    from vitctl.benchmark.output import check_out, write
    from vitctl.benchmark.plan import make_plan
    from vitctl.config import read_settings
    from vitctl.errors import RequestError
    from vitctl.process.signals import watch_parent

    watch_parent()
    if storage is not None and from_sweep is None:
        raise RequestError("--storage does nothing without --from-sweep", hint="remove --storage")
    if out is not None:
        check_out(out)
    file = read_settings(config_file) if config_file else {}
    sweep: dict[str, Any] = {}
    if from_sweep is not None:
        from vitctl.cli.sweep import find_local
        from vitctl.sweep.sweep import best_settings  # optuna loads here

        sweep = best_settings(find_local(from_sweep, runs_dir, storage).id, runs_dir, storage)
    plan = make_plan(optimizers, settings, file, sweep, seeds=seeds, lr_search=lr_search)

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    observer = make_observer()
    from vitctl.benchmark import optimizers as comparison  # torch loads here
    from vitctl.benchmark.report import Report

    with observer:
        result = comparison.compare_optimizers(plan, runs_dir, name, observer, jobs=jobs, new=new)
    report = Report(result)
    if as_json:
        printing.print_json(report.document())
    else:
        for table in report.tables():
            printing.print_comparison(table)
        printing.print_next("vitctl", "report", result.folder)
    if out is not None:  # last, as a disk may be full
        for path in write(out, "compare-optimizers", report):
            observer.message(f"wrote {path}")
