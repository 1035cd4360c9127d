"""``vitctl list-models``."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any

import typer

from vitctl.errors import RequestError
from vitctl.registry import suggest, unknown

SORT_COLUMNS = ("name", "family", "params", "mflop", "tokens", "published_acc", "measured_acc")

WIDE = 110
"""Terminal width from which the table also shows tokens and papers."""

CAPTION = """published: CIFAR-10 test accuracy of the original scripts
measured: CIFAR-10 test accuracy with vitctl, {of}
MFLOP: cost of a forward pass for one image"""


def list_models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="name, family or pattern such as 'vit*'", show_default="all")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="column to sort by, such as params or measured_acc", metavar="COLUMN", show_default="by family"
        ),
    ] = None,
    details: Annotated[
        str | None,
        typer.Option("--details", metavar="NET", help="show layers and options of a model, also timm/NAME"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="image size of --details in pixels", metavar="N", min=4, show_default="the model's"),
    ] = None,
    timm: Annotated[
        str | None, typer.Option("--timm", metavar="PATTERN", help="search timm's models, such as 'vit*tiny*'")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """List models with their cost and accuracy.

    Costs are for 10 classes and images of 32 px (384 px for fine-tuned models). Published accuracies are those of the
    original scripts; measured ones were trained with vitctl.
    """
    from vitctl.cli import printing

    given = [
        flag for flag, value in (("PATTERN", pattern), ("--details", details), ("--timm", timm)) if value is not None
    ]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are mutually exclusive", hint=f"use {' or '.join(given)}")
    if size is not None and details is None:
        raise RequestError(f"--size {size} does nothing without --details", hint="add --details NET, or remove --size")
    if sort is not None and (details or timm):
        raise RequestError(f"--sort {sort} does nothing with {given[0]}", hint="remove --sort")
    if details is not None:
        from vitctl.models import find_model
        from vitctl.registry import split_spec

        name, options = split_spec(details, "--details")
        find_model(name).resolve_options(options, f"--details {name}")
        from vitctl.models.details import describe_network  # torch loads here

        document = describe_network(details, size)
        printing.print_json(document) if as_json else print_details(details, document)
        return
    if timm is not None:
        rows = timm_search(timm)
        printing.print_json(rows) if as_json else print_timm(rows)
        return
    rows = table_rows(pattern, sort)
    printing.print_json(rows) if as_json else print_rows(rows)


def table_rows(pattern: str | None, sort: str | None) -> list[dict[str, Any]]:
    """Return the matching rows of the table, sorted, as JSON values.

    Raises:
        RequestError: no row matches, or an unknown column to sort by.
    """
    from vitctl.models import MODELS, table_row

    if sort is not None and sort not in SORT_COLUMNS:
        raise unknown("--sort", sort, SORT_COLUMNS)
    rows = [
        table_row(name, entry)
        for name, entry in MODELS.items()
        if pattern is None or pattern == entry.family or fnmatch.fnmatchcase(name, pattern)
    ]
    if not rows:
        families = {entry.family for entry in MODELS.values()}
        names = [*MODELS, *sorted(families - set(MODELS))]
        raise unknown(
            "network",
            pattern,
            names,
            "list all with vitctl list-models, or timm's with vitctl list-models --timm '*vit*'",
        )
    if sort is not None:
        descending = sort.endswith("_acc")
        known = [row for row in rows if row[sort] is not None]
        known.sort(key=lambda row: row[sort], reverse=descending)
        rows = known + [row for row in rows if row[sort] is None]
    return rows


def timm_search(pattern: str) -> list[dict[str, Any]]:
    """Return timm's matching models as JSON values.

    Raises:
        RequestError: no model matches.
    """
    from vitctl.models import details, timm_zoo  # torch loads here

    names = timm_zoo.search(pattern)
    if not names:
        stars = f"*{pattern.strip('*')}*"
        more = len(timm_zoo.search(stars))
        near = timm_zoo.near_names(pattern.strip("*"))
        hint = (
            f"use --timm '{stars}', which matches {more}"
            if more
            else suggest(pattern, [f"--timm {name}" for name in near], "use --timm '*vit*'")
        )
        raise RequestError(f"no timm model matches {pattern!r}", hint=hint)
    return details.timm_rows(names)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the table, with the recipe and epochs of each measured accuracy."""
    from vitctl.cli.grid import Column, print_grid, stdout_console

    console = stdout_console()
    wide = console.width >= WIDE
    columns = [
        Column("net"),
        Column("parameters" if wide else "params"),
        Column("MFLOP"),
        *([Column("tokens")] if wide else []),
        Column("published"),
        Column("measured"),
        Column("description", text=True),
        *([Column("arXiv")] if wide else []),
    ]
    cells = []
    for row in rows:
        measured = ""
        if row["measured_acc"] is not None:
            recipe = f"{row['measured_recipe']} " if wide else ""
            measured = f"{row['measured_acc']:.1f} % {recipe}x{row['measured_epochs']}"
        cells.append(
            [
                row["name"],
                f"{row['params']:,}" if wide else f"{row['params'] / 1e6:.1f} M",
                f"{row['mflop']:,.1f}" if row["mflop"] < 1000 else f"{row['mflop']:,.0f}",
                *([str(row["tokens"] or "-")] if wide else []),
                f"{row['published_acc']:.1f} %" if row["published_acc"] is not None else "",
                measured,
                row["summary"],
                *([row["paper"].rpartition("arXiv ")[2]] if wide else []),
            ]
        )
    print_grid(columns, cells)
    of = "recipe x epochs" if wide else "x epochs"
    console.print(CAPTION.format(of=of), markup=False)


def print_details(spec: str, document: dict[str, Any]) -> None:
    """Print the details of a model."""
    from vitctl.cli.grid import Column, print_grid, stdout_console
    from vitctl.models import MODELS
    from vitctl.registry import format_value

    console = stdout_console()
    cost = f"{document['params']:,} parameters, {document['mflop']:,.1f} MFLOP per image"
    tokens = f", {document['tokens']:,} tokens" if document["tokens"] else ""
    console.print(f"{spec}: {document['summary']}", style="bold", markup=False, soft_wrap=True)
    console.print(f"{cost}{tokens}, at {document['img_size']} px and 10 classes", markup=False, soft_wrap=True)
    entry = MODELS.get(spec)  # the note holds for the default options and size
    note = document["note"] if entry and document["img_size"] == entry.img_size else ""
    for line in (document["paper"], note):
        if line:
            console.print(line, markup=False, soft_wrap=True)
    options = [
        [
            option["name"],
            "" if option["value"] is None else format_value(option["value"]),
            option["allowed"],
            option["help"],
        ]
        for option in document["options"]
    ]
    layers = [
        [
            layer["name"],
            layer["kind"],
            " x ".join(map(str, layer["shape"])) if layer["shape"] else "-",
            f"{layer['params']:,}",
        ]
        for layer in document["layers"]
    ]
    for title, columns, rows in (
        ("options", [Column(name, text=True) for name in ("option", "value", "allowed", "description")], options),
        (
            "layers, with output shapes for one image",
            [Column("layer", text=True), Column("kind", text=True), Column("shape"), Column("parameters")],
            layers,
        ),
    ):
        console.print(title, style="bold")
        print_grid(columns, rows)


def print_timm(rows: list[dict[str, Any]]) -> None:
    """Print models of timm."""
    from vitctl.cli.grid import Column, print_grid

    print(f"{len(rows)} models of timm")
    print_grid(
        [Column("net", text=True), Column("image size (px)"), Column("pretrained weights", text=True)],
        [[row["name"], str(row["img_size"]), "yes" if row["pretrained"] else ""] for row in rows],
    )
