"""Pages from the templates in ``templates/``, and pages that consist of charts and tables."""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vitctl import __version__
from vitctl.report import drawing
from vitctl.report.chart import Chart
from vitctl.report.tables import Table, best
from vitctl.units import escaped, mask_passwords, printable

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page, and its charts together a file.

    Attributes:
        id: name that is unique on the page, of letters and hyphens; also that of the file.
        title: its heading.
        intro: a sentence above the charts; empty for none.
        charts: its charts.
        tables: its tables, below the charts; a title that equals that of the section is not repeated.
        commands: what each command does, and the command.
    """

    id: str
    title: str
    intro: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[tuple[str, str]] = ()


def page(title: str, verdict: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Return a self-contained page of sections.

    Args:
        title: its title.
        verdict: the sentence at the top.
        sections: its sections.
        notes: what a reader must know first.
    """
    return render(
        "sections.html", title=title, verdict=verdict, sections=sections, notes=notes, keys=drawing.keys, best=best
    )


def render(template: str, **content: Any) -> str:
    """Return a page without references to other files.

    Args:
        template: name of the template.
        **content: its variables.
    """
    folder = importlib.resources.files("vitctl.report") / "templates"
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return escaped(
        _environment()
        .get_template(template)
        .render(
            style=Markup((folder / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_digest=digest,
            version=__version__,
            now=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            **content,
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitctl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "scene": drawing.lay_out,
        "svg": drawing.svg,
        "variable": drawing.variable,
        "shown": _shown,
    }
    return environment


_LONGEST_SHOWN = 10_000
"""Characters of a value from a run's folder; longer ones are cut off."""


def _shown(value: object) -> str:
    text = str(value)
    return printable(mask_passwords(text[:_LONGEST_SHOWN])) + ("…" if len(text) > _LONGEST_SHOWN else "")
