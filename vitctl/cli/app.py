"""The ``vitctl`` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from vitctl import __version__
from vitctl.cli.bench_device import bench_device
from vitctl.cli.compare_optimizers import compare_optimizers
from vitctl.cli.convert import convert
from vitctl.cli.doctor import doctor
from vitctl.cli.eval import evaluate
from vitctl.cli.export import export
from vitctl.cli.list_models import list_models
from vitctl.cli.list_optimizers import list_optimizers
from vitctl.cli.list_recipes import list_recipes
from vitctl.cli.options import WIDTH, Command, Group
from vitctl.cli.predict import predict
from vitctl.cli.report import report
from vitctl.cli.runs import app as runs
from vitctl.cli.sweep import app as sweep
from vitctl.cli.train import train

app = typer.Typer(
    name="vitctl",
    cls=Group,
    help="Train Vision Transformers on small images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)


def _version(asked: bool) -> None:
    if not asked:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    typer.echo(f"vitctl {__version__} (torch {torch}, Python {platform.python_version()})")
    raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="print the versions of vitctl, torch and Python"
        ),
    ] = False,
) -> None:
    """Train Vision Transformers on small images."""


app.command(cls=Command)(train)
app.command("eval", cls=Command)(evaluate)
app.command("bench-device", cls=Command)(bench_device)
app.command("compare-optimizers", cls=Command)(compare_optimizers)
app.command(cls=Command)(convert)
app.command(cls=Command)(doctor)
app.command(cls=Command)(export)
app.command(cls=Command)(predict)
app.command(cls=Command)(report)
app.command("list-models", cls=Command)(list_models)
app.command("list-optimizers", cls=Command)(list_optimizers)
app.command("list-recipes", cls=Command)(list_recipes)
app.add_typer(runs, name="runs", short_help="List, compare and delete runs")
app.add_typer(sweep, name="sweep", short_help="Search hyperparameters with W&B sweep files")
