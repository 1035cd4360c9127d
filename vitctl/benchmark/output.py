"""``--out``: a comparison as JSON, CSV, Markdown, plots and a page that needs no network."""

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
from vitctl.units import json_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("json", "csv", "md", "png", "svg", "html")
DRAWN = ("png", "svg", "html")
"""Those that need matplotlib."""

EXTRA = "pip install 'vitctl[plots]'"

Figures = Mapping[str, "Callable[[], Figure]"]


def check_out(out: Path) -> None:
    """Refuse a place that could not be written, before any work.

    Args:
        out: a file, whose ending says what it is; or a folder, which is made if its parent is there.

    Raises:
        RequestError: an unknown ending, a place that cannot be written, or plots without matplotlib.
    """
    kind = out.suffix.lower().removeprefix(".")
    single = bool(kind) and not out.is_dir()
    if single and kind not in KINDS:
        raise RequestError(
            f"--out {out}: a file's name must end in {', '.join(f'.{kind}' for kind in KINDS)}; a folder gets them all"
        )
    if (not single or kind in DRAWN) and importlib.util.find_spec("matplotlib") is None:
        raise RequestError(
            f"--out {out} draws plots with matplotlib, which is not installed: {EXTRA}, or name a file that ends in "
            f".json, .csv or .md"
        )
    folder = out.absolute() if out.is_dir() else out.absolute().parent
    if out.exists() and not single and not out.is_dir():
        raise RequestError(f"--out {out} is a file without an ending; name a folder, or a file such as {out}.json")
    if not folder.is_dir():
        raise RequestError(f"--out {out}: the folder {folder} is not there; make it first, or name another place")
    if single:
        check_replaceable(out, "--out", (out.suffix.lower(),))
    if reason := folder_error(folder):
        raise RequestError(f"--out {out} cannot be written: {reason}; name another place")


def write(out: Path, name: str, document: Mapping[str, Any], tables: Sequence[Table], figures: Figures) -> list[Path]:
    """Write what ``out`` asks for and return the files, each there whole or not at all.

    Args:
        out: as :func:`check_out` accepts it.
        name: of the files in a folder.
        document: the JSON document.
        tables: of the other forms.
        figures: what draws each plot, by the word that is added to the file's name; the first one is the plot of
            a single file.

    Raises:
        RunFailed: the disk is full or the place has gone.
    """
    kind = out.suffix.lower().removeprefix(".")
    drawn = (
        {word: draw() for word, draw in figures.items()} if out.is_dir() or kind not in KINDS or kind in DRAWN else {}
    )

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
        raise RunFailed(f"cannot make {out}: {error.strerror}") from error
    files = {out / f"{name}.{kind}": content(kind) for kind in ("json", "csv", "md", "html")}
    for word, figure in drawn.items():
        files |= {out / f"{name}-{word}.{kind}": render(figure, kind) for kind in ("png", "svg")}
    for path, data in files.items():
        write_bytes(path, data)
    return list(files)


def render(figure: Figure, kind: str) -> bytes:
    """Return ``figure`` as ``png`` or ``svg``."""
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
    """Return a page that needs nothing but itself."""
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
