"""Plots of a sweep by Optuna: PNG through matplotlib, interactive HTML through plotly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from vitctl.errors import RequestError, RunFailed
from vitctl.sweep.sweep import Sweep

KINDS = {
    "history": "plot_optimization_history",
    "parallel": "plot_parallel_coordinate",
    "importances": "plot_param_importances",
    "curves": "plot_intermediate_values",
}
"""Kinds of plots, with the names of Optuna's functions."""

FORMATS = ("png", "html")


def plot(sweep: Sweep, kinds: list[str], formats: list[str], folder: Path, warn: Callable[[str], None]) -> list[Path]:
    """Draw plots of ``sweep`` into ``folder`` and return the paths of the files.

    Args:
        sweep: a sweep with at least one complete trial.
        kinds: names in :data:`KINDS`.
        formats: names in :data:`FORMATS`.
        folder: output folder; created if missing.
        warn: receives a message for each plot that needs more trials.

    Raises:
        RequestError: no trial is complete, a package is not installed, or the folder cannot be created.
        RunFailed: a file cannot be written.
    """
    sweep.best()  # raises if no trial is complete
    drawn: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot create {folder}: {error.strerror}", hint="use --out with another folder") from error
    for form in formats:
        draw = _drawer(form)
        for kind in kinds:
            path = folder / f"{kind}.{form}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    draw(sweep, KINDS[kind], path)
                except (ValueError, RuntimeError) as error:
                    warn(f"skipping {path.name}: {error}")
                    continue
                except OSError as error:
                    raise RunFailed(
                        f"cannot write {path}: {error.strerror}", hint="use --out with another folder"
                    ) from error
            drawn.append(path)
    return drawn


def _drawer(form: str) -> Callable[[Sweep, str, Path], None]:
    package = "matplotlib" if form == "png" else "plotly"
    try:
        import_module(package)
    except ImportError as error:
        raise RequestError(
            f"--format {form} needs the package {package}", hint="install it: pip install 'vitctl[plots]'"
        ) from error
    return _png if form == "png" else _html


def _arguments(sweep: Sweep, name: str) -> dict[str, Any]:
    label = sweep.file.metric.name
    if name == "plot_intermediate_values":
        return {}
    return {"target_name": label}


def _png(sweep: Sweep, name: str, path: Path) -> None:
    import matplotlib
    from optuna.visualization import matplotlib as drawing

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = getattr(drawing, name)(sweep.reader, **_arguments(sweep, name))
    if name == "plot_intermediate_values":
        axes.set_xlabel("epoch")
        axes.set_ylabel(sweep.file.metric.name)
        if len(axes.lines) > 12 and axes.get_legend() is not None:
            axes.get_legend().remove()  # with many trials, the legend covers the curves
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(axes.figure)


def _html(sweep: Sweep, name: str, path: Path) -> None:
    import optuna.visualization as pages

    figure = getattr(pages, name)(sweep.reader, **_arguments(sweep, name))
    if name == "plot_intermediate_values":
        figure.update_layout(xaxis_title="epoch", yaxis_title=sweep.file.metric.name)
    figure.write_html(path, include_plotlyjs=True)  # so that the page opens offline
