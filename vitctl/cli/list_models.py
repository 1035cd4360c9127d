"""``vitctl list-models``."""

from __future__ import annotations

import fnmatch
from typing import Annotated

import typer


def list_models(
    pattern: Annotated[str, typer.Argument(help="which networks, such as 'vit*'", show_default="all")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON on stdout")] = False,
) -> None:
    """List the networks that --net takes, and what they cost at 32 px and 10 classes."""
    from vitctl.cli import printing
    from vitctl.errors import RequestError
    from vitctl.models import MODELS
    from vitctl.registry import suggest

    rows = [
        {
            "name": name,
            "family": entry.family,
            "params": entry.params,
            "mflop": entry.mflop,
            "tokens": entry.tokens,
            "summary": entry.summary,
            "paper": entry.paper,
            "options": {key: option.default for key, option in entry.options.items()},
        }
        for name, entry in MODELS.items()
        if fnmatch.fnmatchcase(name, pattern)
    ]
    if not rows:
        raise RequestError(f"no network is called {pattern!r}{suggest(pattern, MODELS)}")
    if as_json:
        printing.print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("net", style="bold", no_wrap=True)
    for heading in ("parameters", "MFLOP", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it is")
    table.add_column("paper")
    for name, entry in MODELS.items():
        if fnmatch.fnmatchcase(name, pattern):
            table.add_row(
                name, f"{entry.params:,}", f"{entry.mflop:,.1f}", str(entry.tokens or "-"), entry.summary, entry.paper
            )
    Console(highlight=False).print(table)
