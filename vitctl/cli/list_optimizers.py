"""``vitctl list-optimizers``."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vitctl.errors import RequestError
    from vitctl.optim import OptimizerEntry


def list_optimizers(
    pattern: Annotated[
        str, typer.Argument(help="name or pattern, such as 'ad*' or 'timm/*lamb*'", show_default="all except timm's")
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """List optimizers with their default settings."""
    from vitctl.cli import printing
    from vitctl.optim import OPTIMIZERS, TIMM
    from vitctl.registry import format_value, unknown

    entries, elsewhere = _timm_entries(pattern) if pattern.startswith(TIMM) else (_own_entries(pattern), [])
    if not entries and elsewhere:
        raise elsewhere[0]
    if not entries:
        names = [*OPTIMIZERS, "timm/*"]
        if pattern.startswith(TIMM):
            from vitctl.optim.timm_rows import timm_names  # torch loads here

            names = timm_names()
        raise unknown("optimizer", pattern, names, "list them with vitctl list-optimizers 'timm/*'")
    if as_json:
        printing.print_json(
            [
                {
                    "name": name,
                    "lr": entry.lr,
                    "weight_decay": entry.weight_decay,
                    "options": {key: option.default for key, option in entry.options.items()},
                    "source": entry.source,
                    "paper": entry.paper,
                    "summary": entry.summary,
                }
                for name, entry in entries.items()
            ]
        )
        return
    from vitctl.cli.grid import Column, print_grid, stdout_console

    print_grid(
        [
            Column("optimizer"),
            Column("lr"),
            Column("weight decay"),
            Column("options", text=True),
            Column("description", text=True),
        ],
        [
            [
                name,
                f"{entry.lr:g}",
                f"{entry.weight_decay:g}",
                " ".join(
                    f"{key}={'-' if option.default is None else format_value(option.default)}"
                    for key, option in entry.options.items()
                ),
                "\n".join(filter(None, (entry.summary, entry.paper, f"code: {entry.source}"))),
            ]
            for name, entry in entries.items()
        ],
    )
    console = stdout_console()
    if elsewhere:
        console.print(
            f"{len(elsewhere)} more are not usable here, such as: {elsewhere[0].message}", markup=False, soft_wrap=True
        )
    elif not pattern.startswith(TIMM):
        console.print("timm's optimizers are --opt timm/NAME; list them with: vitctl list-optimizers 'timm/*'")


def _own_entries(pattern: str) -> dict[str, OptimizerEntry]:
    from vitctl.optim import OPTIMIZERS

    return {name: entry for name, entry in OPTIMIZERS.items() if fnmatch.fnmatchcase(name, pattern)}


def _timm_entries(pattern: str) -> tuple[dict[str, OptimizerEntry], list[RequestError]]:
    """Return timm's matching optimizers that can be used, and the errors of the others."""
    from vitctl.errors import RequestError
    from vitctl.optim.timm_rows import timm_entry, timm_names

    entries: dict[str, OptimizerEntry] = {}
    elsewhere: list[RequestError] = []
    for name in fnmatch.filter(timm_names(), pattern):
        try:
            entries[name] = timm_entry(name)
        except RequestError as error:
            elsewhere.append(error)
    return entries, elsewhere
