"""``vitctl list-recipes``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vitctl.recipes import Card, Recipe

NOT_MEASURED = "not measured"


def list_recipes(
    name: Annotated[str | None, typer.Argument(help="recipe to show in detail", show_default="all, in brief")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """List recipes with their settings and measured results."""
    from vitctl.cli import printing
    from vitctl.recipes import RECIPES
    from vitctl.registry import lookup

    if name is not None:
        lookup(RECIPES, name, "recipe")
    if as_json:
        printing.print_json([_document(each, RECIPES[each]) for each in RECIPES if name in (None, each)])
    elif name is not None:
        _print_card(name, RECIPES[name])
    else:
        _print_all(RECIPES)


def _document(name: str, recipe: Recipe) -> dict[str, Any]:
    import dataclasses

    document = dataclasses.asdict(recipe)
    document["by_time"] = {_bound(seconds): values for seconds, values in recipe.by_time.items()}
    tables = [document[name].values() for name in ("by_net", "by_opt", "by_dataset", "by_time", "by_epochs")]
    for values in (document["pretrained"], *itertools.chain(*tables)):
        if "lr_factor" in values:
            values.setdefault("lr_scale", values["lr_factor"])  # the JSON key of earlier versions
    return {"name": name, **document, "measured": bool(recipe.cards)}


def _bound(seconds: float) -> str:
    from vitctl.units import format_duration

    return "longer" if math.isinf(seconds) else f"up to {format_duration(seconds)}"


def _print_all(recipes: Mapping[str, Recipe]) -> None:
    from vitctl.cli.grid import Column, print_grid, stdout_console

    columns = [
        Column("recipe"),
        Column("purpose", text=True),
        Column("net, optimizer, epochs", text=True),
        Column("test accuracy"),
        Column("time"),
        Column("after", text=True),
    ]
    print_grid(columns, [_row(name, recipe) for name, recipe in recipes.items()])
    stdout_console().print(
        "Accuracy and time were measured on CIFAR-10. Show a recipe's settings with: vitctl list-recipes NAME",
        soft_wrap=True,
    )


def _row(name: str, recipe: Recipe) -> list[str]:
    from vitctl.units import format_duration

    steps = recipe.settings.get("max_steps")
    length = f"{steps} steps" if steps else _by_dataset(recipe.epochs)
    return [
        name,
        recipe.summary,
        f"{recipe.settings['net']}\n{recipe.settings['opt']}, {length}",
        "\n".join(str(card.test_acc) for card in recipe.cards) or NOT_MEASURED,
        "\n".join(format_duration(card.seconds) for card in recipe.cards),
        "\n".join(_length(card) for card in recipe.cards),
    ]


def _by_dataset(epochs: Mapping[str, int]) -> str:
    from vitctl.recipes import ANY

    special = [f"{dataset} {count}" for dataset, count in epochs.items() if dataset != ANY]
    return ", ".join([str(epochs[ANY]), *special])


def _measured(card: Card, recipe: Recipe) -> str:
    """Return the card's network, optimizer (unless it is the recipe's) and data set."""
    from vitctl.units import parse_duration

    spec = recipe.net(card.dataset, parse_duration(card.max_time, "max_time") if card.max_time else None)
    net = spec if spec.partition(":")[0] == card.net else card.net
    return ", ".join([net, *([card.opt] if card.opt else []), card.dataset])


def _length(card: Card) -> str:
    from vitctl.units import plural

    if card.max_time:
        return f"--max-time {card.max_time}"
    return plural(card.max_steps, "step") if card.max_steps else plural(card.epochs, "epoch")


def _print_card(name: str, recipe: Recipe) -> None:
    from vitctl.cli import printing
    from vitctl.cli.grid import Column, print_grid, stdout_console
    from vitctl.config import flag_name
    from vitctl.units import format_duration

    rows = [] if "max_steps" in recipe.settings else [("epochs", _by_dataset(recipe.epochs))]
    rows += [(flag_name(key), _words(value)) for key, value in recipe.settings.items()]
    for title, further in (("--net", recipe.by_net), ("--opt", recipe.by_opt), ("--dataset", recipe.by_dataset)):
        rows += [(f"with {title} {pattern}", _mapping(values)) for pattern, values in further.items()]
    rows += [("with pretrained weights", _mapping(recipe.pretrained))] if recipe.pretrained else []
    rows += [(f"with --max-time, {_bound(seconds)}", _mapping(values)) for seconds, values in recipe.by_time.items()]
    rows += [(f"with --epochs, up to {count}", _mapping(values)) for count, values in recipe.by_epochs.items()]
    if recipe.net_options:
        rows.append(("network options", _mapping(recipe.net_options)))
    rows += [(f"options of --opt {opt}", _mapping(values)) for opt, values in recipe.opt_options.items()]
    rows += [("paper", recipe.paper)] if recipe.paper else []
    rows += [] if recipe.cards else [("test accuracy", NOT_MEASURED)]
    printing.print_table(f"{name}: {recipe.summary}", rows)
    console = stdout_console()
    for card in recipe.cards:
        console.print(
            f"\nmeasured: {_measured(card, recipe)}, {_length(card)}, {card.precision}, {card.seeds_named}, "
            f"{format_duration(card.seconds)} per run, {card.machine}, {card.versions}",
            style="bold",
            markup=False,
        )
        bands = [[str(epoch), str(band)] for epoch, band in enumerate(card.val_acc, start=1)]
        print_grid([Column("epoch"), Column("accuracy")], [*bands, ["test", str(card.test_acc)]])


def _words(value: object) -> str:
    from vitctl.config.lr_scale import format_lr_scale
    from vitctl.registry import format_value

    if isinstance(value, Mapping):
        return format_lr_scale(value)
    return format_value(value) if isinstance(value, (bool, int, float, str)) else str(value)


def _mapping(values: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key}={'default of the optimizer' if value is None else _words(value)}" for key, value in values.items()
    )
