"""``vitctl train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitctl import STARTED
from vitctl.cli.options import takes_settings

if TYPE_CHECKING:
    from vitctl.config import TrainConfig

RUN = "Run"


@takes_settings()
def train(
    settings: dict[str, Any],
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", "-r", metavar="[RUN]", help="resume a run; by default, the newest with these settings"
        ),
    ] = None,
    accept_data: Annotated[
        bool,
        typer.Option("--accept-data", help="resume a run even if its images changed", rich_help_panel=RUN),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the run's folder", metavar="NAME", show_default="from network, optimizer, data and time"
        ),
    ] = None,
    runs_dir: Annotated[
        Path | None,
        typer.Option(help="folder for run folders", metavar="DIR", rich_help_panel=RUN, show_default="runs"),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="YAML file of settings, or a run; flags override it"),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="print the settings as a --config file and exit", rich_help_panel=RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="estimate time and memory of the run, save nothing", rich_help_panel=RUN),
    ] = False,
    lr_finder: Annotated[
        bool,
        typer.Option(
            "--lr-finder",
            help="suggest a learning rate after 200 steps, save only a plot",
            rich_help_panel=RUN,
        ),
    ] = False,
    lr_finder_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="plot of --lr-finder: .png, .svg or .pdf",
            rich_help_panel=RUN,
            show_default="lr-finder.png",
        ),
    ] = None,
    preview_batch: Annotated[
        Path | None,
        typer.Option(
            help="save the first augmented batch as an image, do not train",
            metavar="FILE.png",
            rich_help_panel=RUN,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the final metrics as JSON", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a model.

    By default, trains hybrid_tiny (convolutions, then transformer blocks) for ten epochs on CIFAR-10. Settings,
    metrics and checkpoints are saved in the run's folder. Resume an interrupted run with --resume.

    Data sets by name: digits, cifar10, cifar100, mnist, fashionmnist, kmnist, svhn and stl10.
    """
    from vitctl.cli.modes import choose_mode
    from vitctl.config import RUNS, find_run, free_settings, is_run, read_settings, resolve_config, resolve_dataset
    from vitctl.process.signals import watch_parent

    in_sweep = watch_parent() or "WANDB_SWEEP_ID" in os.environ
    file = read_settings(config_file) if config_file and resume is None else {}
    flags = {
        "resume": resume,
        "accept_data": accept_data,
        "name": name,
        "runs_dir": runs_dir,
        "config": config_file,
        "print_config": print_config,
        "dry_run": dry_run,
        "lr_finder": lr_finder,
        "lr_finder_out": lr_finder_out,
        "preview_batch": preview_batch,
        "json": as_json,
    }
    mode = choose_mode({**flags, **settings}, str(settings.get("recipe") or file.get("recipe") or "default"))
    if resume is not None:
        if "dataset" in settings:
            settings["dataset"], place = resolve_dataset(settings["dataset"], settings.get("data_dir"))
            settings.update({"data_dir": place} if place else {})
    else:
        config = resolve_config(settings, file)
        free = () if in_sweep else free_settings(config, {**file, **settings})
        if mode == "print_config":
            typer.echo(settings_file(config, free), nl=False)
            return

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        if resume is not None:
            from vitctl.training.start import find_newest, resume_run  # torch loads here, as in the other branches

            if str(resume) == "true":
                resume = find_newest(runs_dir or RUNS, settings)
                observer.message(f"resuming {resume}, the newest run{' with these settings' if settings else ''}")
            else:
                found = find_run(resume, runs_dir or RUNS)
                missing = runs_dir is not None and not found.exists()
                resume = Path(runs_dir or RUNS, resume) if missing else found  # the error then lists runs of --runs-dir
            summary = resume_run(resume, settings, observer, accept_data=accept_data, started=STARTED)
        elif mode == "lr_finder":
            from vitctl.tools.lr_finder import DEFAULT_PLOT, find_lr

            plot = lr_finder_out or Path(DEFAULT_PLOT)
            # The recipe's length is meant for training runs.
            summary = find_lr(config, observer, plot, settings.get("max_steps") or file.get("max_steps"), free)
        elif preview_batch is not None:
            from vitctl.tools.preview import preview_batch as draw_preview

            summary = draw_preview(config, preview_batch, observer, free)
        elif mode == "dry_run":
            from vitctl.tools.dry_run import dry_run as measure_cost

            summary = measure_cost(config, observer, free=free)
        else:
            from vitctl.training.start import start_run

            summary = start_run(config, runs_dir or RUNS, name, observer, started=STARTED, free=free)
    if as_json:
        printing.print_json(summary)
        return
    show = {
        "lr_finder": printing.print_lr_finder,
        "preview_batch": printing.print_preview,
        "dry_run": printing.print_dry_run,
    }
    if mode in show:
        show[mode](summary)
        return
    printing.print_summary(summary)
    if resume is None:
        run = Path(runs_dir or RUNS, summary["name"])
    else:  # also by its checkpoint
        run = next(folder for folder in (resume, *resume.parents) if is_run(folder))
    printing.print_next("vitctl", "report", run)


def settings_file(config: TrainConfig, free: tuple[str, ...]) -> str:
    """Return settings as a ``--config`` file, with those that a run fits to its images as comments."""
    import yaml

    settings = config.to_dict()
    if not free:
        return yaml.safe_dump(settings, sort_keys=False)
    rest = {name: value for name, value in settings.items() if name not in free}
    note = "# fitted to the number of training images when the run starts, unless given; the recipe's values:\n"
    return yaml.safe_dump(rest, sort_keys=False) + note + "".join(f"# {name}: {settings[name]}\n" for name in free)
