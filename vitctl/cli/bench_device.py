"""``vitctl bench-device``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitctl.cli.options import takes_settings

PANEL = "Comparison"

DEFAULT_SECONDS = 60.0
"""For which a device is measured unless ``--max-time`` says otherwise."""

OF_RUNS = ("wandb", "tensorboard", "save_every", "patience", "tta", "keep", "max_steps", "val", "pretrained")
"""Settings that mean nothing to steps that no run is made of."""


@takes_settings
def bench_device(
    settings: dict[str, Any],
    device_names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DEVICE]...", help="cpu, mps, cuda, cuda:INDEX", show_default="all that are here"),
    ] = None,
    skip_unavailable: Annotated[
        bool,
        typer.Option(
            "--skip-unavailable", help="measure the others where a device is not there", rich_help_panel=PANEL
        ),
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="try batch, micro-batch, precision and threads, those not given, and write the fastest to tuned-DEVICE.yaml",
            rich_help_panel=PANEL,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE",
            help="a folder, for files of every kind and pictures; or a file: .json .csv .md .png .svg .html",
            rich_help_panel=PANEL,
        ),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="runs of --epochs lie below it", rich_help_panel=PANEL)] = Path("runs"),
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file of settings; flags win over it", rich_help_panel=PANEL),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print everything as one JSON document", rich_help_panel=PANEL)
    ] = False,
) -> None:
    """Measure what training costs on each device: the same weights and batches, the step that train takes, in turns.

    Takes about a minute a device (--max-time) and needs no data set. With --epochs N each device then really trains, and
    accuracies are shown.
    """
    from vitctl.benchmark.output import check_out, write
    from vitctl.config import flag_name, normalise_keys, resolve_config
    from vitctl.errors import RequestError
    from vitctl.training.signals import watch_parent
    from vitctl.units import parse_duration
    from vitctl.yamlfile import read_yaml

    watch_parent()
    if "device" in settings:
        raise RequestError(f"--device {settings['device']}: name devices as arguments: vitctl bench-device cpu mps")
    trains = settings.get("epochs") is not None
    if tune and trains:
        raise RequestError("--tune measures settings, and trains nothing; --epochs does not go with it")
    if not trains:
        for name in settings:
            if name in OF_RUNS or name.startswith("wandb_"):
                raise RequestError(f"{flag_name(name)} is for runs, and without --epochs none is made; leave it out")
    if out is not None:
        check_out(out)
    file = normalise_keys(read_yaml(config_file), str(config_file)) if config_file else {}
    file.pop("device", None)
    asked = settings.pop("max_time", file.pop("max_time", None))
    seconds = parse_duration(asked, "--max-time") if asked is not None else DEFAULT_SECONDS
    given = {*settings, *file}
    if not trains:
        for name in (*OF_RUNS, "epochs"):
            file.pop(name, None)
        settings["epochs"] = 1
        settings["val"] = "none"
    defaults = {} if "recipe" in settings or "recipe" in file else {"net": "vit_small", "bs": 512}
    config = resolve_config(settings, {**defaults, **file})

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    observer = make_observer()
    from vitctl.benchmark import devices as bench  # torch loads here
    from vitctl.devices import available_devices

    chosen, missing = bench.choose_devices(device_names or available_devices(), skip_unavailable)
    document: dict[str, Any]
    with observer:
        if tune:
            from vitctl.benchmark import tune as tuning

            tables, document = [], {"devices": []}
            for label, device in chosen:
                trials = tuning.tune(_on(config, device), observer.message, observer.decoding, given)
                observer.message(f"written: {tuning.write_settings(label, trials)}")
                tables.append(tuning.tune_table(label, trials))
                document["devices"].append({"label": label, "trials": [vars(trial) for trial in trials]})
            drawings = {}
        else:
            from vitctl.benchmark.device_report import DeviceReport

            lanes = bench.open_lanes(config, chosen, observer.message, observer.decoding)
            measured = {each.label: each for each in bench.measure_lanes(lanes, seconds, observer.message)}
            del lanes
            if trains:
                from vitctl.training.run import start_run

                for label, device in chosen:
                    run = start_run(_on(config, device), runs_dir, None, observer, observer.decoding)
                    measured[label].trained = run
            names = device_names or [label for label, _ in chosen]
            report = DeviceReport(
                config,
                [measured.get(name) or bench.Figures(name, None, missing=missing[name]) for name in names],
            )
            tables, document, drawings = report.tables(), report.document(), report.figures()
        if out is not None:
            for path in write(out, "bench-device", document, tables, drawings):
                observer.message(f"written: {path}")
    if as_json:
        printing.print_json(document)
    else:
        for table in tables:
            printing.print_comparison(table)


def _on(config: Any, device: str) -> Any:
    import dataclasses

    return dataclasses.replace(config, device=device)
