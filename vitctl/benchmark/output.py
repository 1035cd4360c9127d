"""Output of comparisons to files (``--out``): JSON, CSV, Markdown, plots, and a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitctl.errors import RequestError, RunFailed
from vitctl.files import check_replaceable, folder_error, write_bytes
from vitctl.registry import or_list
from vitctl.report.tables import Table, csv_text, markdown
from vitctl.units import json_text

if TYPE_CHECKING:
    from vitctl.report.rendering import Section

KINDS = ("json", "csv", "md", "png", "svg", "html")


class Results(Protocol):
    """The results of a comparison."""

    @property
    def verdict(self) -> str:
        """The main result, in one or two sentences."""

    def tables(self) -> list[Table]:
        """Return the tables."""

    def document(self) -> Mapping[str, Any]:
        """Return everything as JSON values."""

    def plots(self) -> Sequence[Section]:
        """Return the charts; each section's id is added to the names of its files in a folder."""


def check_out(out: Path) -> None:
    """Check that ``out`` can be written, before any work.

    Args:
        out: a file, whose suffix selects the format; or a folder, which may be missing if its parent exists.

    Raises:
        RequestError: the suffix is unknown, or the path is not writable.
    """
    kind = out.suffix.lower().removeprefix(".")
    single = bool(kind) and not out.is_dir()
    if single and kind not in KINDS:
        raise RequestError(
            f"--out {out}: unknown file type .{kind}",
            hint=f"use --out with a name that ends in {or_list([f'.{kind}' for kind in KINDS])}, or with a folder for all",
        )
    folder = out.absolute() if out.is_dir() else out.absolute().parent
    if out.exists() and not single and not out.is_dir():
        raise RequestError(
            f"--out {out} is a file without a suffix",
            hint=f"use --out with a folder, or with a file such as {out}.json",
        )
    if not folder.is_dir():
        raise RequestError(f"--out {out}: no such folder: {folder}", hint=f"create it: mkdir -p {folder}")
    if single:
        check_replaceable(out, "--out", (out.suffix.lower(),))
    if reason := folder_error(folder):
        raise RequestError(f"cannot write --out {out}: {reason}", hint="use --out with a path in another folder")


def write(out: Path, name: str, results: Results) -> list[Path]:
    """Write the results to ``out``, each file atomically, and return the files.

    Args:
        out: a path that :func:`check_out` accepts; an image file gets all charts.
        name: name of the files in a folder, without suffix.
        results: the results.

    Raises:
        RunFailed: the disk is full, or the folder is missing or not writable.
    """
    from vitctl.report import drawing  # numpy loads here

    kind = out.suffix.lower().removeprefix(".")
    tables, plots = results.tables(), results.plots()

    def content(kind: str) -> bytes:
        if kind == "json":
            return (json_text(results.document()) + "\n").encode()
        if kind == "csv":
            return csv_text(tables).encode()
        if kind == "md":
            return "\n".join(map(markdown, tables)).encode()
        if kind == "html":
            return page(results).encode()
        return drawing.render([chart for plot in plots for chart in plot.charts], kind, tables[0].title)

    if kind in KINDS and not out.is_dir():
        write_bytes(out, content(kind))
        return [out]
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFailed(
            f"cannot create {out}: {error.strerror}", hint="use --out with a path in another folder"
        ) from error
    files = {out / f"{name}.{kind}": content(kind) for kind in ("json", "csv", "md", "html")}
    for plot in plots:
        for kind in ("png", "svg"):
            files[out / f"{name}-{plot.id}.{kind}"] = drawing.render(plot.charts, kind, tables[0].title)
    for path, data in files.items():
        write_bytes(path, data)
    return list(files)


def page(results: Results) -> str:
    """Return results as a self-contained HTML page."""
    from vitctl.report import rendering

    first, *others = results.tables()
    sections = [
        *results.plots(),
        rendering.Section(id="figures", title="All figures", tables=[first]),
        *(rendering.Section(id=f"table-{i}", title=table.title, tables=[table]) for i, table in enumerate(others)),
    ]
    return rendering.page(first.title, results.verdict, sections)
