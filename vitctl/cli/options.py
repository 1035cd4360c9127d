"""Flags made from the settings table, so that each is described once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from vitctl.config import FLAGS, Flag, flag_name
from vitctl.errors import RequestError
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, convert

COMPARISON = "Comparison"
"""Panel of the options that comparisons have besides those of ``train``."""

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PLACE",
        help="a folder, for files of every kind and plots; or a file: .json .csv .md .png .svg .html",
        rich_help_panel=COMPARISON,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file of settings; flags win over it", rich_help_panel=COMPARISON),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="print everything as one JSON document", rich_help_panel=COMPARISON)
]


LEGACY = ("noaug", "noamp", "nowandb")
"""Flags of the predecessor's scripts that today's defaults or other flags answer; see :func:`legacy_settings`."""

_REFUSED = {
    "dp": "--dp: DataParallel is gone; a run uses one device (--device cuda:0)",
    "dimhead": "--dimhead is an option of the network today: --net vit:head_dim=64",
}


class Command(TyperCommand):
    """A command whose flags may be typed with underscores, and whose switches take ``=true`` and ``=false``.

    W&B agents pass parameters so: ``--n_epochs=5 --decay_all=True``. A number that can be switched on may be typed without
    a value: ``--mixup``.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        """Make the command; see Typer for the arguments."""
        super().__init__(*args, **more)
        for parameter in self.params:
            # Typer prints a default that is told in words, and not taken from the function, in brackets within brackets.
            if isinstance(parameter, (TyperOption, TyperArgument)) and isinstance(parameter.show_default, str):
                if parameter.show_default:
                    parameter.help = rf"{parameter.help} \[default: {parameter.show_default}]"
                parameter.show_default = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring ``args`` into the form that Typer knows, and parse them."""
        switches = {
            name: (parameter.opts[0], parameter.secondary_opts[0])
            for parameter in self.params
            if getattr(parameter, "is_flag", False) and getattr(parameter, "secondary_opts", None)
            for name in parameter.opts
        }
        alone = {
            name
            for parameter in self.params
            if getattr(parameter, "is_flag", False) and not getattr(parameter, "secondary_opts", None)
            for name in parameter.opts
        }
        bare = {flag_name(name) for name, flag in FLAGS.items() if flag.when_true is not None}
        plain: list[str] = []
        for i, argument in enumerate(args):
            if argument == "--":
                plain += args[i:]
                break
            if not argument.startswith("--"):
                plain.append(argument)
                continue
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            if equals and name in switches and value.lower() in (*TRUE_WORDS, *FALSE_WORDS):
                plain.append(switches[name][0 if convert(value, bool, name) else 1])
            elif equals and name in alone and value.lower() in (*TRUE_WORDS, *FALSE_WORDS):
                plain += [name] if convert(value, bool, name) else []
            elif name in bare and not equals and (i + 1 == len(args) or _is_flag(args[i + 1])):
                plain.append(f"{name}=true")
            else:
                plain.append(f"{name}{equals}{value}")
        return super().parse_args(ctx, plain)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` a flag for every setting; its parameter ``settings`` gets those that were given, parsed.

    Values are parsed by :meth:`vitctl.config.Flag.parse`, as those of files and sweeps are, so that all are refused in
    the same words.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, flag))
        for name, flag in FLAGS.items()
    ]
    legacy = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool | None, typer.Option(f"--{name}", hidden=True)],
        )
        for name in LEGACY
    ] + [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool | None, typer.Option(f"--{name}", hidden=True)]
            if name == "dp"
            else Annotated[str | None, typer.Option(f"--{name}", hidden=True)],
        )
        for name in _REFUSED
    ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        for name, sentence in _REFUSED.items():
            if given.pop(name) is not None:
                raise RequestError(sentence)
        settings = legacy_settings({name: given.pop(name) for name in LEGACY}, given)
        for name, flag in FLAGS.items():
            value = given.pop(name)
            if value is not None:
                settings[name] = flag.parse(name, value)
        command(settings=settings, **given)

    parameters = [*own, *flags, *legacy]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__
    return wrapper


def legacy_settings(given: Mapping[str, bool | None], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the predecessor's flags mean today.

    ``--noaug`` left crop and flip on, so it is ``--aug basic``; ``--nowandb`` is ``--wandb disabled``; ``--noamp`` is
    ``--precision fp32``.

    Raises:
        RequestError: one of them beside another value of its flag.
    """
    settings = {}
    for legacy, flag, value in (
        ("noaug", "aug", "basic"),
        ("nowandb", "wandb", "disabled"),
        ("noamp", "precision", "fp32"),
    ):
        other = flags.get(flag)
        if not given[legacy]:
            continue
        if other not in (None, value):
            raise RequestError(f"--{legacy} means --{flag} {value}, and --{flag} {other} is given too; leave one out")
        settings[flag] = value
    return settings


def _annotation(name: str, flag: Flag) -> Any:
    long = flag_name(name)
    shown = flag.shown or _shown_default(name)
    if flag.kind is bool:
        names = [f"{long}/--no-{long[2:]}"]
        option = typer.Option(*names, help=flag.help, rich_help_panel=flag.panel, show_default=shown)
        return Annotated[bool | None, option]
    option = typer.Option(
        long,
        *flag.names,
        help=flag.help,
        rich_help_panel=flag.panel,
        metavar=flag.metavar or "|".join(flag.choices) or {int: "N", float: "X", str: "TEXT"}[flag.kind],
        show_default=shown,
        autocompletion=_completion(flag),
    )
    return Annotated[str | None, option]


def _shown_default(name: str) -> str:
    import dataclasses

    from vitctl.config import TrainConfig

    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    value = defaults.get(name)
    return "" if value is None or value is False else str(value)


def _completion(flag: Flag) -> Callable[[str], list[tuple[str, str]]] | None:
    if flag.table is not None:
        rows = [(name, entry.summary) for name, entry in flag.table.items()]
    elif flag.choices:
        rows = [(choice, "") for choice in flag.choices]
    else:
        return None

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [row for row in rows if row[0].startswith(incomplete)]

    return complete
