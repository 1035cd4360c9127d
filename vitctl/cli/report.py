"""``vitctl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.cli.options import DeviceName
from vitctl.errors import RequestError
from vitctl.files import check_replaceable, folder_error, write_bytes, write_text


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs", show_default=False)],
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
    """Write an HTML report on training runs.

    The page is one file that needs no network: curves, mistakes, confusions, calibration, cost.
    """
    from vitctl.config import find_run

    check_replaceable(out, "--out", (".html", ".htm"))
    if png is not None:
        if png.exists() and not png.is_dir():
            raise RequestError(f"--png {png} is a file", hint="use --png with a folder")
        if problem := folder_error(png if png.is_dir() else png.absolute().parent):
            raise RequestError(f"cannot write --png {png}: {problem}", hint="use --png with a path in another folder")
    if data_dir is not None and not data_dir.is_dir():
        raise RequestError(
            f"--data-dir {data_dir}: no such folder", hint="use --data-dir with the folder of the images"
        )
    if device != "auto" and not evaluate:
        raise RequestError(
            f"--device {device} does nothing without --evaluate", hint="add --evaluate, or remove --device"
        )
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        from vitctl.report import drawing, page  # numpy and torch load here
        from vitctl.report.run import evaluate_run, read_run

        folder = None if data_dir is None else str(data_dir.absolute())
        found = [find_run(path) for path in runs]
        records = [read_run(each) for each in {each.resolve(): each for each in found}.values()]
        for record in records if evaluate else []:
            if record.test is None:
                evaluate_run(record, device, folder, observer.message)
        built = page.build_report(records, folder, observer.message)
    write_text(out, page.html(built))
    typer.echo(built.verdict)
    typer.echo(f"report: {out}")
    if png is not None:
        png.mkdir(exist_ok=True)
        for chart in built.charts:
            write_bytes(png / f"{chart.id}.png", drawing.render([chart], "png"))
        typer.echo(f"charts: {png}")
