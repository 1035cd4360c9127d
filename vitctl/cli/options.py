"""Flags generated from the table of settings, and the layout of ``--help``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from vitctl.config import FLAGS, MAIN_FLAGS, SWITCHES, Flag, flag_name, setting_of
from vitctl.errors import RequestError
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, convert, or_list

COMPARISON = "Comparison"
"""Group of the options that comparisons add to those of ``train``."""

MAIN = "Options"
"""Group that ``--help`` lists first."""

WIDTH = 100
"""Widest help in columns."""

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="output: .json .csv .md .png .svg .html, or folder for all",
        rich_help_panel=COMPARISON,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file of settings, or a run; flags override it"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print everything as one JSON document")]
Weights = Annotated[str, typer.Option(help="weights of a run: last, or best by held-out accuracy", metavar="last|best")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:INDEX", metavar="NAME")]

BARE = {
    **{flag_name(name): flag_name(name) for name, flag in FLAGS.items() if flag.when_true is not None},
    "--pretrained": "--pretrained",
    "--resume": "--resume",
    "-r": "--resume",
}
"""Long names of the flags that need no value; without one, they are ``true``."""

TYPED = "vitctl.typed"
"""Key in the ``meta`` of Typer's context for the words of the command line as they were typed."""


class Command(TyperCommand):
    """A command with a plain, grouped ``--help`` that accepts flags in many spellings.

    Underscores stand for hyphens, switches take ``=true`` and ``=false`` as W&B agents pass them
    (``--n_epochs=5 --decay_all=True``), some flags need no value (:data:`BARE`), no flag takes the next flag as its value,
    and settings may have the names of other tools (:data:`vitctl.config.names.SYNONYMS`).
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        """Build the command; see Typer for the arguments."""
        super().__init__(*args, **more)
        self.short_help = self.short_help or short_help(self)
        for parameter in self.params:
            # Typer would put brackets into brackets around a default that is a description.
            if isinstance(parameter, (TyperOption, TyperArgument)) and isinstance(parameter.show_default, str):
                if parameter.show_default:
                    parameter.help = f"{parameter.help} [default: {parameter.show_default}]"
                parameter.show_default = False

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _described(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in the usage line, with the arguments as errors name them."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        words = [(argument_name(each), each.required) for each in arguments]
        return ["[OPTIONS]", *(name if required else f"[{name}]" for name, required in words)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options in their groups."""
        arguments: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[str, str]]] = {MAIN: []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            if isinstance(parameter, TyperArgument):
                arguments.append((argument_name(parameter), record[1]))
            else:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or MAIN, []).append(record)
        for title, records in [("Arguments", arguments), *groups.items()]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=28)

    @property
    def has_settings(self) -> bool:
        """Whether the command has the flags of :func:`takes_settings`."""
        return any(parameter.name == "weight_decay" for parameter in self.params)

    def visible_options(self) -> list[str]:
        """Return the long names of the options that ``--help`` lists."""
        options = [each for each in self.params if isinstance(each, TyperOption) and not each.hidden]
        return ["--help", *(name for each in options for name in each.opts if name.startswith("--"))]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Convert ``args`` to the spellings that Typer knows, and parse them."""
        ctx.meta[TYPED] = list(args)
        own = {name for parameter in self.params for name in parameter.opts if name.startswith("-")}  # no arguments
        switches = {  # what to write for true and for false; nothing for false if there is no --no- form
            name: (parameter.opts[:1], parameter.secondary_opts[:1])
            for parameter in self.params
            if getattr(parameter, "is_flag", False)
            for name in parameter.opts
        }
        given = not ctx.resilient_parsing  # shell completion asks for the value of the last option
        takes_value = own - switches.keys()
        words = (*TRUE_WORDS, *FALSE_WORDS)
        plain: list[str] = []
        rest = list(args)
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                plain += [argument, *rest]
                break
            name, equals, value = _split_flag(argument, own)
            on, off = switches.get(name, ([], []))
            if off and not equals and rest and rest[0].lower() in words:
                equals, value = "=", rest.pop(0)
            if equals and name in switches and value.lower() in words:
                plain += on if convert(value, bool, name) else off
            elif not equals and name in BARE and name in own and (_is_flag(rest[0]) if rest else given):
                plain.append(f"{BARE[name]}=true")
            elif not equals and name in takes_value and (_begins_flag(rest[0], own) if rest else given):
                raise RequestError(f"{name} needs a value", hint=f"use {name} {value_name(name, self.params)}")
            else:
                plain.append(f"{name}{equals}{value}")
                if not equals and name in takes_value and rest:
                    plain.append(rest.pop(0))
        if given:
            self._check_not_empty(ctx, plain, takes_value)
        return super().parse_args(ctx, plain)

    def _check_not_empty(self, ctx: Any, args: Sequence[str], takes_value: Container[str]) -> None:
        """Refuse an empty value or argument: as a path, it would mean the current folder."""
        option = ""
        for argument in args:
            name, equals, value = argument.partition("=")
            if (option and not argument) or (equals and not value and name in takes_value):
                name = option or name
                hint = f"use {name} {value_name(name, self.params)}, or remove {name}"
                raise RequestError(f"{name} is empty", hint=hint)
            if not argument:
                words = self.collect_usage_pieces(ctx)[1:]
                hint = f"use {ctx.command_path} {' '.join(words)}" if words else "remove it"
                raise RequestError("an argument is empty", hint=hint)
            option = argument if argument in takes_value and not option else ""


class Group(TyperGroup):
    """A group of commands with a plain ``--help``."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _described(super().get_help_option(ctx))


def value_name(option: str, parameters: Iterable[Any]) -> str:
    """Return the choices of a setting's flag, else the placeholder of its value in ``--help``."""
    setting = FLAGS.get(setting_of(option))
    if setting is not None and setting.choices:
        return or_list(setting.choices)
    return next((each.metavar for each in parameters if option in each.opts and each.metavar), "VALUE")


def argument_name(argument: TyperArgument) -> str:
    """Return how ``--help`` and errors call a positional argument."""
    return argument.metavar or (argument.name or "").upper()


def short_help(command: Any) -> str:
    """Return the first line of a command's help, which Typer would cut off at the terminal's width."""
    return (command.help or "").strip().split("\n")[0].rstrip(".")


def _described(option: Any) -> Any:
    if option is not None:
        option.help = "show this help"
    return option


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not word[1].isdigit() and word[1] != "."


def _begins_flag(word: str, own: Container[str]) -> bool:
    """Return whether ``word`` is a flag and not the value of one, as ``-5 %`` and ``-`` may be."""
    return word.startswith("--") or word in own


def _split_flag(word: str, own: Container[str]) -> tuple[str, str, str]:
    """Split ``--n_epochs=5`` into the flag's name among ``own``, ``=`` and the value; other words are returned whole."""
    if not word.startswith("--"):
        return word, "", ""
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    canonical = flag_name(setting_of(name))
    return (canonical if name not in own and canonical in own else name), equals, value


def takes_settings(*, hidden: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a flag for every setting to a command.

    The command's parameter ``settings`` receives the given ones, parsed by :meth:`vitctl.config.Flag.parse` like those of
    files and sweeps, so that errors are the same.

    Args:
        hidden: settings that the command refuses, which ``--help`` does not list.
    """
    return functools.partial(_add_settings, hidden=hidden)


def _add_settings(command: Callable[..., None], hidden: Sequence[str]) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "settings"
    ]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, FLAGS[name], name in hidden),
        )
        for name in dict.fromkeys([*MAIN_FLAGS, *FLAGS])
    ]
    switches = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool | None, typer.Option(f"--{name}", hidden=True)],
        )
        for name in SWITCHES
    ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        settings = switched_settings({name: given.pop(name) for name in SWITCHES}, given)
        for name, flag in FLAGS.items():
            value = given.pop(name)
            if value is not None:
                settings[name] = flag.parse(name, value)
        command(settings=settings, **given)

    parameters = [*flags[: len(MAIN_FLAGS)], *own, *flags[len(MAIN_FLAGS) :], *switches]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__
    return wrapper


def switched_settings(given: Mapping[str, bool | None], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the given switches of the original scripts stand for.

    Raises:
        RequestError: one of them contradicts another or the flag of its setting.
    """
    settings: dict[str, Any] = {}
    for name, (setting, value) in SWITCHES.items():
        if not given[name]:
            continue
        other = settings.get(setting, flags.get(setting))
        if other not in (None, value):
            raise RequestError(
                f"--{name} means {flag_name(setting)} {value}, which contradicts {flag_name(setting)} {other}",
                hint=f"remove --{name}",
            )
        settings[setting] = value
    return settings


def _annotation(name: str, flag: Flag, hidden: bool) -> Any:
    long = flag_name(name)
    panel = MAIN if name in MAIN_FLAGS else flag.panel
    shown = flag.shown or _shown_default(name)
    if flag.kind is bool:
        names = [f"{long}/--no-{long[2:]}"]
        option = typer.Option(*names, help=flag.help, rich_help_panel=panel, show_default=shown, hidden=hidden)
        return Annotated[bool | None, option]
    option = typer.Option(
        long,
        *flag.names,
        help=flag.help,
        rich_help_panel=panel,
        metavar=flag.metavar or "|".join(flag.choices) or {int: "N", float: "X", str: "TEXT"}[flag.kind],
        show_default=shown,
        autocompletion=_completion(flag),
        hidden=hidden,
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
