"""``vitctl report``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitctl.cli.options import DeviceName
from vitctl.config import RUNS
from vitctl.errors import RequestError
from vitctl.files import check_replaceable, folder_error, is_stream, write_bytes, write_text
from vitctl.units import printable, quoted

if TYPE_CHECKING:
    from vitctl.report.chart import Chart


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="runs; or one sweep or comparison", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the HTML file")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="also write each chart to this folder")
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="evaluate runs that stored no predictions")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder with the images", show_default="as in training"),
    ] = None,
    device: DeviceName = "auto",
) -> None:
    """Write an HTML report on training runs, a sweep, or a comparison of optimizers.

    The page is one file that needs no network. Of runs, it shows curves, mistakes, confusions, calibration and cost; of a
    sweep (its id or folder), trials and importance of parameters; of a comparison (its folder), differences and noise.
    """
    check_replaceable(out, "--out", _HTML)
    if png is not None:
        if os.path.lexists(png) and not png.is_dir():  # lexists: a broken link
            raise RequestError(f"--png {png} is not a folder", hint="use --png with a folder")
        if os.path.realpath(png) == os.path.realpath(out):
            raise RequestError(f"--out and --png both name {png}", hint="use --png with another folder")
        if problem := folder_error(png if png.is_dir() else png.absolute().parent):
            raise RequestError(f"cannot write --png {png}: {problem}", hint="use --png with a path in another folder")
    if out.suffix.lower() not in _HTML and not is_stream(out):
        raise RequestError(f"--out {out} does not end in .html", hint=f"use --out {quoted(out.with_suffix('.html'))}")
    if data_dir is not None and not data_dir.is_dir():
        raise RequestError(
            f"--data-dir {data_dir}: no such folder", hint="use --data-dir with the folder of the images"
        )
    if device != "auto" and not evaluate:
        raise RequestError(
            f"--device {device} does nothing without --evaluate", hint="add --evaluate, or remove --device"
        )
    kind, folder = _find(runs)
    if kind != "runs":
        for flag, given in (("--evaluate", evaluate), ("--data-dir", data_dir is not None)):
            if given:
                raise RequestError(f"{flag} does nothing for a {kind}", hint=f"remove {flag}")
        text, verdict, charts = _of_sweep(folder) if kind == "sweep" else _of_comparison(folder)
    else:
        text, verdict, charts = _of_runs(runs, data_dir, device if evaluate else None)
    write_text(out, text)
    typer.echo(verdict)
    typer.echo(f"report: {printable(str(out))}")
    if png is not None:
        from vitctl.report import drawing

        png.mkdir(exist_ok=True)
        for chart in charts:
            write_bytes(png / f"{chart.id}.png", drawing.render([chart], "png"))
        typer.echo(f"charts: {printable(str(png))}")


def _find(targets: list[Path]) -> tuple[Literal["runs", "sweep", "comparison"], Path]:
    """Return what the targets are, and the folder of a sweep or comparison.

    Raises:
        RequestError: a sweep or a comparison with other targets.
    """
    for target in targets:
        for kind, parent, record in KINDS:
            for folder in (target, RUNS / parent / target):
                if (folder / record).is_file():
                    if len(targets) > 1:
                        raise RequestError(
                            f"{target} is a {kind}, which has a report of its own",
                            hint=f"run vitctl report {quoted(target)}",
                        )
                    return kind, folder
    return "runs", targets[0]


_HTML = (".html", ".htm")

KINDS: tuple[tuple[Literal["sweep", "comparison"], str, str], ...] = (
    ("sweep", "sweeps", "sweep.json"),
    ("comparison", "comparisons", "comparison.json"),
)
"""Kinds of folders other than runs, with their parent in the folder of runs, and their record."""

Content = tuple[str, str, "Sequence[Chart]"]
"""A page, its verdict and its charts."""


def _of_sweep(folder: Path) -> Content:
    from vitctl.sweep.plots import SweepReport  # optuna loads here
    from vitctl.sweep.sweep import find_sweep

    folder = folder.resolve()
    runs_dir = Path(os.path.relpath(folder.parents[1]))
    report = SweepReport(find_sweep(folder.name, runs_dir))
    sections = report.sections()
    return report.page(sections), report.verdict, [chart for section in sections for chart in section.charts]


def _of_comparison(folder: Path) -> Content:
    from vitctl.benchmark.optimizers import read_comparison  # torch loads here
    from vitctl.benchmark.output import page
    from vitctl.benchmark.report import Report

    report = Report(read_comparison(folder))
    return page(report), report.verdict, [chart for section in report.plots() for chart in section.charts]


def _of_runs(runs: list[Path], data_dir: Path | None, device: str | None) -> Content:
    """Return the report on runs; those without predictions are evaluated on a device, unless it is None."""
    from vitctl.cli.progress import make_observer
    from vitctl.config import find_run

    with make_observer() as observer:
        from vitctl.report import page  # numpy and torch load here
        from vitctl.report.run import evaluate_run, read_run_record

        folder = None if data_dir is None else str(data_dir.absolute())
        found = [find_run(path) for path in runs]
        records = [read_run_record(each) for each in {each.resolve(): each for each in found}.values()]
        for record in records if device is not None else []:
            if record.test is None:
                evaluate_run(record, device or "auto", folder, observer.message)
        built = page.build_report(records, folder, observer.message)
    return page.html(built), built.verdict, built.charts
