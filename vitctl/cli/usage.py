"""Errors of the command line itself: unknown flags and commands, missing and extra arguments, values of a wrong type."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperArgument

from vitctl.cli.options import TYPED, Command, argument_name, value_name
from vitctl.config import ALIASES, FLAGS, flag_name, foreign_name, setting_of
from vitctl.config.names import INSTEAD
from vitctl.errors import RequestError
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, check_range, convert, or_list, similar, suggest

EXPORT_SCRIPT = ("checkpoint", "model_type", "output_dir", "img_size", "batch_size")
"""Flags of the original export_models.py that ``vitctl export`` does not need; it also has ``--verify``."""


def usage_error(error: Any) -> RequestError:
    """Convert an error of Typer's parser to one with a hint.

    Args:
        error: a ``UsageError``.
    """
    context = error.ctx
    path = context.command_path if context else "vitctl"
    see = f"see {path} --help"
    message = error.format_message().strip().rstrip(".")
    if option := getattr(error, "option_name", ""):
        if hasattr(error, "possibilities"):
            if path == "vitctl export" and option.lstrip("-").replace("-", "_") in EXPORT_SCRIPT:
                hint = _export_command(context.meta[TYPED])
                return RequestError(f"{option} is a flag of the original export_models.py", hint=hint)
            return _unknown_option(option, context.command if context else None, path)
        if "requires an argument" in message:
            parameters = context.command.params if context else []
            return RequestError(f"{option} needs a value", hint=f"use {option} {value_name(option, parameters)}")
        return RequestError(f"{option} takes no value", hint=f"use {option} without a value")
    if match := re.match(r"No such command '([^']*)'", message):
        return RequestError(f"unknown command {match[1]!r}", hint=suggest(match[1], context.command.commands, see))
    if message.startswith("Missing argument"):
        arguments = [argument_name(each) for each in context.command.params if isinstance(each, TyperArgument)]
        return RequestError(f"missing argument {argument_name(error.param)}", hint=f"use {path} {' '.join(arguments)}")
    if message.startswith("Missing option"):
        option = error.param.opts[0]
        return RequestError(f"{option} is missing", hint=f"add {option} {error.param.metavar or 'VALUE'}")
    if match := re.fullmatch(r"Got unexpected extra argument\(s\) \((.*)\)", message, re.DOTALL):
        if match[1].lower() in (*TRUE_WORDS, *FALSE_WORDS):
            hint = "remove it; a switch such as --json takes no value"
        else:
            hint = f"remove it, or put quotes around it; {see}"
        return RequestError(f"extra argument: {match[1]}", hint=hint)
    return _bad_value(error) or RequestError(message[:1].lower() + message[1:], hint=see)


def _export_command(typed: Sequence[str]) -> str:
    """Return the hint for flags of export_models.py: a command that writes the same formats."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in EXPORT_SCRIPT:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?")
    given, others = parser.parse_known_args(typed)
    paths = [given.checkpoint, *(word for word in others if not word.startswith("-")), "CKPT"]
    path, folder = (shlex.quote(next(filter(None, words))) for words in (paths, [given.output_dir, "exported_models"]))
    return f"run mkdir -p {folder} && vitctl export {path} -f onnx -f torchscript -o {folder}"


def _bad_value(error: Any) -> RequestError | None:
    """Return the error for a number that pydantic, which Typer uses, rejects."""
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if not problems or not getattr(error, "param", None):
        return None
    kind, value, option = problems[0]["type"], problems[0]["input"], max(error.param.opts, key=len)
    try:
        if kind == "greater_than_equal":
            check_range(int(value), option, low=problems[0]["ctx"]["ge"])
        elif kind in ("int_parsing", "float_parsing"):
            convert(value, int if kind == "int_parsing" else float, option)
    except RequestError as mistake:
        return mistake
    return None


def _unknown_option(option: str, command: Any, path: str) -> RequestError:
    """Return the error for an unknown flag, with the flag that replaces it or similar ones in the hint."""
    word = option.lstrip("-").replace("-", "_")
    see = f"list all flags with {path} --help"
    if not isinstance(command, Command):
        hint = f"use {path} train {option}" if path == "vitctl" and setting_of(option) in FLAGS else see
        return RequestError(f"unknown flag {option}", hint=hint)
    # Devices and optimizers that a command takes as arguments are hidden flags of it.
    hidden = [
        flag_name(name) for name in FLAGS if command.has_settings and flag_name(name) not in command.visible_options()
    ]
    if command.has_settings and (known := foreign_name(word, option)):
        return RequestError(known.message, hint=_without(hidden, known.hint or see))
    names = {name[2:].replace("-", "_"): name for name in command.visible_options()}
    if command.has_settings:
        names |= {alias: flag_name(setting) for alias, setting in ALIASES.items() if flag_name(setting) not in hidden}
    elif setting_of(option) in FLAGS or foreign_name(word, option):
        return RequestError(f"{path} has no flag {option}", hint=see)
    refused = [flag[2:].replace("-", "_") for flag in hidden]
    found = similar(word, [*names, *refused, *(INSTEAD if command.has_settings else ())])
    if found and found[0] in INSTEAD and found[0] not in names:
        hint = _without(hidden, INSTEAD[found[0]])
        if f"use {option} " in hint:  # a flag of train that this command lacks
            hint = see
        return RequestError(f"unknown flag {option}", hint=hint)
    near = dict.fromkeys(names[name] for name in found if name in names)
    return RequestError(f"unknown flag {option}", hint=f"did you mean {or_list([*near])}?" if near else see)


def _without(flags: Sequence[str], hint: str) -> str:
    """Return ``hint`` without ``flags``, whose values are arguments: ``use --opt adam`` -> ``use adam``."""
    for flag in flags:
        hint = hint.replace(f"{flag} ", "")
    return hint
