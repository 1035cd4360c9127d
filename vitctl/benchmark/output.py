"""Output of comparisons to files (``--out``): JSON, CSV, Markdown, plots, and a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitctl.benchmark.tables import Table, best, csv_text, markdown
from vitctl.errors import RequestError, RunFailed
from vitctl.files import check_replaceable, folder_error, write_bytes
from vitctl.registry import or_list
from vitctl.units import json_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("json", "csv", "md", "png", "svg", "html")
DRAWN = ("png", "svg", "html")
"""Suffixes of files with plots, which need matplotlib."""

Plots = Mapping[str, "Callable[[], Figure]"]
"""Functions that draw a plot, by the word that is added to the file's name."""


def check_out(out: Path) -> None:
    """Check that ``out`` can be written, before any work.

    Args:
        out: a file, whose suffix selects the format; or a folder, which may be missing if its parent exists.

    Raises:
        RequestError: the suffix is unknown, the path is not writable, or plots need matplotlib.
    """
    kind = out.suffix.lower().removeprefix(".")
    single = bool(kind) and not out.is_dir()
    if single and kind not in KINDS:
        raise RequestError(
            f"--out {out}: unknown file type .{kind}",
            hint=f"use --out with a name that ends in {or_list([f'.{kind}' for kind in KINDS])}, or with a folder for all",
        )
    if (not single or kind in DRAWN) and importlib.util.find_spec("matplotlib") is None:
        raise RequestError(
            f"--out {out} needs matplotlib, which is not installed",
            hint="install it: pip install 'vitctl[plots]', or use --out with a .json, .csv or .md file",
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


def write(out: Path, name: str, document: Mapping[str, Any], tables: Sequence[Table], plots: Plots) -> list[Path]:
    """Write the results to ``out``, each file atomically, and return the files.

    Args:
        out: a path that :func:`check_out` accepts.
        name: name of the files in a folder, without suffix.
        document: content of the JSON file.
        tables: content of the CSV, Markdown and HTML files.
        plots: plots of a folder or an HTML file; an image file gets the first one.

    Raises:
        RunFailed: the disk is full, or the folder is missing or not writable.
    """
    kind = out.suffix.lower().removeprefix(".")
    drawn = {word: draw() for word, draw in plots.items()} if out.is_dir() or kind not in KINDS or kind in DRAWN else {}

    def content(kind: str) -> bytes:
        if kind == "json":
            return (json_text(document) + "\n").encode()
        if kind == "csv":
            return csv_text(tables).encode()
        if kind == "md":
            return "\n".join(map(markdown, tables)).encode()
        if kind == "html":
            return page(name, tables, drawn).encode()
        return render(next(iter(drawn.values())), kind)

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
    for word, figure in drawn.items():
        files |= {out / f"{name}-{word}.{kind}": render(figure, kind) for kind in ("png", "svg")}
    for path, data in files.items():
        write_bytes(path, data)
    return list(files)


def render(figure: Figure, kind: str) -> bytes:
    """Return ``figure`` as a file of kind ``png`` or ``svg``."""
    data = io.BytesIO()
    more: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
    figure.savefig(data, format=kind, bbox_inches="tight", facecolor="white", **more)
    return data.getvalue()


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --best: #1a7f3722; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--best); font-weight: 600; }
img { max-width: 100%; background: white; border-radius: 6px; }
ul { color: GrayText; }
"""


def page(title: str, tables: Sequence[Table], figures: Mapping[str, Figure]) -> str:
    """Return a self-contained HTML page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
    ]
    for word, figure in figures.items():
        data = base64.b64encode(render(figure, "svg")).decode()
        parts.append(f"<p><img alt='{html.escape(word)}' src='data:image/svg+xml;base64,{data}'></p>")
    for table in tables:
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in (table.corner, *table.columns))
        parts.append(f"<h2>{html.escape(table.title)}</h2><div class='wide'><table><tr>{heads}</tr>")
        for row in table.rows:
            marked = best(row)
            cells = "".join(
                f"<td{' class=best' if i in marked else ''}>{html.escape(cell.text)}</td>"
                for i, cell in enumerate(row.cells)
            )
            parts.append(f"<tr><td>{html.escape(row.label)}</td>{cells}</tr>")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        parts.append(f"</table></div><ul>{notes}</ul>")
    return "\n".join([*parts, "</body></html>\n"])
