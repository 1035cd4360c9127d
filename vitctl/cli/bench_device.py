"""``vitctl bench-device``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitctl.cli.options import COMPARISON, AsJson, ConfigFile, Out, takes_settings


@takes_settings(hidden=("device",))
def bench_device(
    settings: dict[str, Any],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="DEVICE...", help="cpu, mps, cuda or cuda:INDEX", show_default="all available"),
    ] = None,
    skip_unavailable: Annotated[
        bool,
        typer.Option("--skip-unavailable", help="skip devices that are not available", rich_help_panel=COMPARISON),
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="find the fastest settings and save tuned-DEVICE.yaml",
            rich_help_panel=COMPARISON,
        ),
    ] = False,
    out: Out = None,
    runs_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="folder for the runs of --epochs", rich_help_panel=COMPARISON)
    ] = Path("runs"),
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare training speed across devices.

    All devices start from the same weights and train on the same batches, in turns. This takes about a minute per device
    (see --max-time) and needs no data set. With --epochs N, each device then also trains
    and evaluates a complete run.
    """
    from vitctl.benchmark.device_plan import make_device_plan
    from vitctl.benchmark.output import check_out, write
    from vitctl.config import read_settings
    from vitctl.process.signals import watch_parent

    watch_parent()
    file = read_settings(config_file) if config_file else {}
    plan = make_device_plan(settings, file, tune=tune, out=out)
    if out is not None:
        check_out(out)

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    observer = make_observer()
    import vitctl.devices  # torch loads here
    from vitctl.benchmark import devices
    from vitctl.benchmark.device_report import DeviceReport
    from vitctl.benchmark.figures import Figures
    from vitctl.benchmark.tune import TuneReport, tune_devices

    chosen, missing = devices.choose_devices(names or [], skip_unavailable)
    environment = vitctl.devices.environment(vitctl.devices.resolve_device(next(iter(chosen.values()), "cpu")))
    report: DeviceReport | TuneReport
    with observer:
        if tune:
            trials = tune_devices(plan, chosen, observer)
            report = TuneReport(plan.config, trials, environment)
        else:
            found = devices.bench_devices(plan, chosen, runs_dir, observer)
            columns = [found.get(name) or Figures(name, None, missing=missing[name]) for name in names or found]
            report = DeviceReport(plan.config, columns, environment)
    if as_json:
        printing.print_json(report.document())
    else:
        for table in report.tables():
            printing.print_comparison(table)
    if out is not None:  # last, as a disk may be full
        for path in write(out, "bench-device", report):
            observer.message(f"wrote {path}")
