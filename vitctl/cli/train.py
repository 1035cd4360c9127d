"""``vitctl train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitctl import STARTED
from vitctl.cli.options import takes_settings

RUN = "Run"


@takes_settings
def train(
    settings: dict[str, Any],
    resume: Annotated[
        Path | None, typer.Option("--resume", "-r", help="go on with the run in this folder", rich_help_panel=RUN)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the run's folder", rich_help_panel=RUN, show_default="network, optimizer, data, time"
        ),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders lie", rich_help_panel=RUN)] = Path("runs"),
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file of settings; flags win over it", rich_help_panel=RUN),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="print the settings as a --config file, and stop", rich_help_panel=RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="take a few steps, say what the run would cost, and save nothing", rich_help_panel=RUN
        ),
    ] = False,
    lr_finder: Annotated[
        bool,
        typer.Option(
            "--lr-finder",
            help="take 200 steps (--max-steps) at rates around --lr, suggest one, and save a picture alone",
            rich_help_panel=RUN,
        ),
    ] = False,
    lr_finder_out: Annotated[
        Path | None,
        typer.Option(
            help="picture of --lr-finder: .png, .svg or .pdf", rich_help_panel=RUN, show_default="lr-finder.png"
        ),
    ] = None,
    preview_batch: Annotated[
        Path | None,
        typer.Option(
            help="draw the first batch as the network would see it, count blank pictures, and train nothing",
            metavar="FILE.png",
            rich_help_panel=RUN,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the final figures as JSON on stdout", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a network.

    Without any flag: cct_2, a small compact transformer, for ten epochs of CIFAR-10. The run's folder holds its settings, a
    line of metrics per epoch, checkpoints and the final figures; a run that was stopped or killed goes on with --resume.
    """
    from vitctl.config import normalise_keys, resolve_config, resolve_dataset
    from vitctl.errors import RequestError
    from vitctl.process.signals import watch_parent
    from vitctl.recipes import RECIPES
    from vitctl.yamlfile import read_yaml

    watch_parent()
    if lr_finder_out is not None and not lr_finder:
        raise RequestError("--lr-finder-out is the picture of --lr-finder; give that too")
    file = normalise_keys(read_yaml(config_file), str(config_file)) if config_file and resume is None else {}
    told = {
        "--wandb": settings.get("wandb") not in (None, "disabled"),
        "--tensorboard": settings.get("tensorboard"),
    }
    if lr_finder:
        clashing: dict[str, Any] = {"--resume": resume, "--name": name, "--dry-run": dry_run}
        # A length says nothing here but to recipes that choose network, batch or augmentation by it.
        recipe = RECIPES.get(str(settings.get("recipe") or file.get("recipe") or "default"))
        clashing["--epochs"] = None if recipe and recipe.by_epochs else settings.get("epochs")
        clashing["--max-time"] = None if recipe and recipe.by_time else settings.get("max_time")
        idle = (
            "schedule",
            "schedule_per",
            "warmup",
            "warmdown",
            "patience",
            "mix_off",
            "ema",
            "tta",
            "save_every",
            "keep",
        )
        clashing |= {f"--{name.replace('_', '-')}": settings.get(name) for name in idle} | told
        for flag, value in clashing.items():
            if value:
                raise RequestError(f"--lr-finder takes a few steps and makes no run; {flag} does not go with it")
    if dry_run:
        for flag, value in {"--name": name, **told}.items():
            if value:
                raise RequestError(f"--dry-run takes a few steps and makes no run; {flag} does not go with it")
    if preview_batch is not None:
        alone = {
            "--resume": resume,
            "--name": name,
            "--print-config": print_config,
            "--dry-run": dry_run,
            "--lr-finder": lr_finder,
            "--compile": settings.get("compile"),
            **told,
        }
        for flag, value in alone.items():
            if value:
                raise RequestError(f"--preview-batch draws one batch and makes no run; {flag} does not go with it")
    if resume is not None:
        clashing = {"--name": name, "--config": config_file, "--print-config": print_config, "--dry-run": dry_run}
        for flag, value in clashing.items():
            if value:
                raise RequestError(f"--resume goes on with the stored settings; {flag} does not go with it")
        if "dataset" in settings:
            settings["dataset"], place = resolve_dataset(settings["dataset"], settings.get("data_dir"))
            settings.update({"data_dir": place} if place else {})
    else:
        config = resolve_config(settings, file)
        if print_config:
            for flag, value in {
                "--dry-run": dry_run,
                "--lr-finder": lr_finder,
                "--name": name,
                "--json": as_json,
            }.items():
                if value:
                    raise RequestError(f"--print-config prints the settings, and stops; {flag} does not go with it")
            import yaml

            typer.echo(yaml.safe_dump(config.to_dict(), sort_keys=False), nl=False)
            return

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    observer = make_observer()
    from vitctl.training import start  # torch loads here

    with observer:
        if resume is not None:
            summary = start.resume_run(resume, settings, observer, started=STARTED)
        elif lr_finder:
            from vitctl.tools.lr_finder import DEFAULT_PICTURE, EXTRA, can_draw, find_lr

            if lr_finder_out is None and can_draw():
                lr_finder_out = Path(DEFAULT_PICTURE)
            elif lr_finder_out is None:
                observer.message(f"no picture without matplotlib: {EXTRA}")
            # The recipe's length is that of a training run.
            summary = find_lr(config, observer, lr_finder_out, settings.get("max_steps") or file.get("max_steps"))
        elif preview_batch is not None:
            from vitctl.tools.preview import preview_batch as draw_preview

            summary = draw_preview(config, preview_batch, observer)
        elif dry_run:
            from vitctl.tools.dry_run import dry_run as measure_cost

            summary = measure_cost(config, observer)
        else:
            summary = start.start_run(config, runs_dir, name, observer, started=STARTED)
    if as_json:
        printing.print_json(summary)
    elif lr_finder:
        printing.print_lr_finder(summary)
    elif preview_batch is not None:
        printing.print_preview(summary)
    elif dry_run:
        printing.print_dry_run(summary)
    else:
        printing.print_summary(summary)
