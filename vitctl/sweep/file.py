"""Sweep files in W&B's format, checked completely, with all mistakes reported by line."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitctl.config import (
    FLAGS,
    MAPPINGS,
    OPTION_TABLES,
    Flag,
    foreign_name,
    normalise_keys,
    resolve_config,
    setting_of,
    similar_settings,
)
from vitctl.config.names import INSTEAD, OPTION_NAMES, SWITCHES
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.registry import Entry, or_list, similar, suggest
from vitctl.sweep.hyperband import Hyperband
from vitctl.sweep.space import EXPONENTS, Parameter, Space, show, show_params
from vitctl.yamlfile import Mistakes, Place, line_numbers, parse_yaml, read_text

_PACKAGE = Path(__file__).parents[1]
SHIPPED = _PACKAGE / "sweeps" if (_PACKAGE / "sweeps").is_dir() else _PACKAGE.parent / "sweeps"
"""Folder of vitctl's own sweep files: in the package if it was installed from a wheel, else beside it."""

METHODS = ("grid", "random", "bayes")
METRICS = (
    "val_acc",
    "val_loss",
    "train_acc",
    "train_loss",
    "lr",
    "epoch_time",
    "eval_time",
    "images_per_second",
    "data_wait",
    "overhead",
    "seconds",
)
"""Figures that ``train`` records each epoch, which a sweep can optimise."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    **dict.fromkeys(
        (
            *("uniform", "q_uniform"),
            *("log_uniform", "q_log_uniform", "inv_log_uniform"),
            *("log_uniform_values", "q_log_uniform_values", "inv_log_uniform_values"),
        ),
        ("min", "max"),
    ),
    **dict.fromkeys(("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"), ()),
}
_DEFAULTS: dict[str, dict[str, float]] = {
    "normal": {"mu": 0, "sigma": 1},
    "log_normal": {"mu": 0, "sigma": 1},
    "beta": {"a": 1, "b": 1},
}
DISTRIBUTIONS = tuple(_REQUIRED)

_TOP = {
    "method": "",
    "parameters": "",
    "metric": "",
    "early_terminate": "",
    "run_cap": "",
    "name": "",
    "description": "",
    "project": "",
    "entity": "",
    "program": "each trial runs vitctl train",
    "command": "each trial runs vitctl train",
    "controller": "a local sweep has no controller",
    "apiVersion": "",
    "kind": "",
}
"""Top-level keys, with the reason for those that have no effect."""

_UNSUPPORTED = {
    "scheduler": ("schedulers of W&B", "remove scheduler, and use method: bayes"),
    "job": ("jobs of W&B Launch", "remove job; each trial runs vitctl train"),
    "image_uri": ("images of W&B Launch", "remove image_uri; each trial runs vitctl train"),
    "metrics": ("several metrics", "use metric: {name: val_acc, goal: maximize}"),
}
"""Top-level keys of W&B that vitctl does not support, what they stand for, and hints."""

_EXAMPLE_METRIC = "metric: {name: val_acc, goal: maximize}"
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_NAME_KEYS = ("name", "type")
"""Last parts of dotted names that stand for a choice itself, as in ``optimizer.name``, not for one of its options."""
_ROWS: dict[str, Mapping[str, Entry]] = {"net_options": MODELS, "opt_options": OPTIMIZERS}
"""The tables whose rows have the options of a nested parameter."""
_TYPICAL = 64
_MAX_CHECKED = 2000
_MAX_GRID_VALUES = 100_000


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep optimises.

    Attributes:
        name: a figure that ``train`` records each epoch, see :data:`METRICS`.
        goal: ``minimize`` or ``maximize``.
        target: value at which the sweep ends, or None.
    """

    name: str
    goal: str
    target: float | None = None

    @property
    def sign(self) -> int:
        """Factor that makes lower values better: 1 or -1."""
        return -1 if self.goal == "maximize" else 1

    def best(self, values: Iterable[float]) -> float:
        """Return the best of ``values``."""
        return (max if self.goal == "maximize" else min)(values)

    def reached(self, value: float) -> bool:
        """Return whether ``value`` meets the target."""
        return self.target is not None and self.sign * value <= self.sign * self.target


@dataclass(frozen=True)
class SweepFile:
    """A sweep file without mistakes.

    Attributes:
        name: file name.
        text: content of the file.
        method: ``grid``, ``random`` or ``bayes``.
        space: search space.
        metric: metric to optimise.
        hyperband: settings of ``early_terminate``, or None.
        run_cap: maximum number of trials, or None.
        title: value of the ``name`` key, or the file name without its suffix.
        document: parsed content in the form that W&B accepts: all distributions are named, and 1e-4 is a number.
        order: names of the varied parameters, in the order of the file.
        notes: notes for the user with any engine.
        local_notes: notes on keys that the local engine ignores.
    """

    name: str
    text: str
    method: str
    space: Space
    metric: Metric
    hyperband: Hyperband | None
    run_cap: int | None
    title: str
    document: dict[str, Any]
    order: tuple[str, ...]
    notes: tuple[str, ...] = ()
    local_notes: tuple[str, ...] = ()

    def settings(self, params: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial, as in a ``--config`` file.

        Args:
            params: values of the varied parameters.
            fixed: settings of ``--fixed``, which override the file's constants.
        """
        replaced = {setting_of(name) for name in fixed}
        nested = self.space.nested(params)
        return {**{name: value for name, value in nested.items() if setting_of(name) not in replaced}, **fixed}

    def difference(self, other: SweepFile) -> list[str]:
        """Return one line for each key whose value differs in ``other``, ignoring comments and layout."""
        ours, theirs = _flatten(self.document), _flatten(other.document)
        lines = []
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if ours.get(key) != theirs.get(key):
                lines.append(f"{key}: {_value_at(ours, key)} -> {_value_at(theirs, key)}")
        return lines


def _flatten(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {key: value for k, v in node.items() for key, value in _flatten(v, f"{name}.{k}" if name else k).items()}
    return {name: node}


def _value_at(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key], default=str) if key in flat else "not set"


def parameter_name(key: str) -> str:
    """Return the name of a parameter for a key of the file: ``dropout`` -> ``net_options.dropout``."""
    return OPTION_NAMES.get(key.replace("-", "_"), key)


def find_sweep_file(path: Path) -> Path:
    """Return ``path``, or vitctl's own sweep file of that name if ``NAME`` or ``sweeps/NAME`` does not exist.

    Raises:
        RequestError: neither exists.
    """
    if path.exists():
        return path
    shipped = {file.name: file for file in sorted(SHIPPED.glob("*.yaml"))}
    if path.name in shipped and str(path.parent) in (".", "sweeps"):
        return shipped[path.name]
    near = [f"{stem}.yaml" for stem in similar(path.stem, [file.stem for file in shipped.values()])]
    files = f"use the path of an existing file, or one of vitctl's: {', '.join(shipped)}"
    raise RequestError(f"{path} not found", hint=f"did you mean {or_list(near)}?" if near else files)


def read_sweep_file(path: Path) -> SweepFile:
    """Read and check the sweep file ``path``.

    Raises:
        RequestError: the file cannot be read or has mistakes; all of them are listed by line.
    """
    return parse_sweep_file(read_text(path), path.name, str(path))


def parse_sweep_file(text: str, name: str, source: str | None = None) -> SweepFile:
    """Parse and check the ``text`` of a sweep file.

    Args:
        text: content of the file.
        name: name of the file, without folders.
        source: name of the file in error messages; ``name`` if None.

    Raises:
        RequestError: the file has mistakes; all of them are listed by line.
    """
    source = source or name
    document = parse_yaml(text, source)
    wrapper = _wrapper_of(document, source)
    inner = document[wrapper] if wrapper else document
    reader = _Reader({str(key): value for key, value in inner.items()}, line_numbers(text, source), source)
    if wrapper:
        reader.root = (wrapper,)
        if others := [key for key in document if key != wrapper]:
            reader.notes.append(f"only {wrapper!r} is read; ignored: {', '.join(others)}")
    return reader.read(text, name)


def _wrapper_of(document: Mapping[str, Any], source: str) -> str | None:
    """Return the key that holds the sweep, or None if the sweep is at the top level.

    Raises:
        RequestError: several keys hold one.
    """
    if {"method", "parameters"} & document.keys():
        return None
    found = [key for key, value in document.items() if isinstance(value, dict) and "parameters" in value]
    if len(found) > 1:
        raise RequestError(f"{source} has several sweeps: {', '.join(found)}", hint=f"keep one, such as {found[0]}")
    return found[0] if found else None


class _Reader:
    """Checks a document and collects its mistakes.

    Args:
        document: parsed content of the file.
        lines: line number of every value.
        source: name of the file in error messages.

    Attributes:
        root: keys of the text that lead to the document.
    """

    def __init__(self, document: dict[str, Any], lines: dict[Place, int], source: str) -> None:
        self.document = document
        self.source = source
        self.root: Place = ()
        self.mistakes = Mistakes(lines, source)
        self.notes: list[str] = []
        self.local_notes: list[str] = []

    def wrong(self, place: Place, message: str, hint: str | None) -> None:
        """Record a mistake at ``place``.

        Args:
            place: keys and list positions that lead to the value.
            message: what is wrong.
            hint: what to write instead; None for a setting with too many valid values to list.
        """
        self.mistakes.add((*self.root, *place), message, hint or "list the valid values: vitctl train --help")

    def raise_mistakes(self) -> None:
        """Raise all recorded mistakes as one RequestError, if there are any."""
        self.mistakes.raise_all(f"vitctl sweep create {self.source} --dry-run 1")

    def read(self, text: str, name: str) -> SweepFile:
        """Check the document and return the sweep file.

        Raises:
            RequestError: the document has mistakes.
        """
        document = self.document
        for key, value in document.items():
            if mistake := _mistake_in_top(key, value):
                self.wrong((key,), *mistake)
        self._note_ignored()
        method = self._method()
        metric = self._metric(method)
        hyperband = self._early_terminate()
        run_cap = self._run_cap()
        parameters = self._parameters(method)
        self.raise_mistakes()

        assert method is not None
        space = Space([parameter for parameter, _ in parameters])
        file = SweepFile(
            name=name,
            text=text,
            method=method,
            space=space,
            metric=metric,
            hyperband=hyperband,
            run_cap=run_cap,
            title=document.get("name", Path(name).stem),
            document={**document, "parameters": _nested(parameter for parameter, _ in parameters)},
            order=tuple(parameter.name for parameter, _ in parameters if parameter.varies),
            notes=tuple(self.notes),
            local_notes=tuple(self.local_notes),
        )
        if not space.varying:
            self.wrong(
                ("parameters",),
                "no parameter varies",
                "use values: [...], or min: and max:, for at least one parameter",
            )
            self.raise_mistakes()
        return file

    def _note_ignored(self) -> None:
        """Note the keys that have no effect, grouped by reason."""
        ignored: dict[str, list[str]] = {}
        for key, why in _TOP.items():
            if why and key in self.document:
                ignored.setdefault(why, []).append(key)
        for why, keys in ignored.items():
            notes = self.local_notes if "controller" in keys else self.notes
            notes.append(f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} ignored: {why}")

    def _run_cap(self) -> Any:
        run_cap: Any = self.document.get("run_cap")
        if "run_cap" in self.document and (not _is_int(run_cap) or run_cap < 1):
            self.wrong(
                ("run_cap",),
                f"run_cap takes a whole number of at least 1, not {_shown(run_cap)}",
                "use a number of trials, such as run_cap: 20",
            )
        return run_cap

    def _method(self) -> str | None:
        method = self.document.get("method")
        if "method" not in self.document:
            self.wrong((), "method is missing", f"add method: {or_list(METHODS)}")
        elif method == "custom":
            self.wrong(("method",), "method: custom is not supported", f"use method: {or_list(METHODS)}")
        elif method not in METHODS:
            self.wrong(("method",), f"unknown method {_shown(method)}", suggest(str(method), METHODS))
        else:
            return str(method)
        return None

    def _metric(self, method: str | None) -> Metric:
        default = Metric("val_acc", "maximize")
        if "metric" not in self.document:
            if method == "bayes" or "early_terminate" in self.document:
                what = "method: bayes" if method == "bayes" else "early_terminate"
                self.wrong((), f"{what} needs a metric", f"add {_EXAMPLE_METRIC}")
            else:
                self.notes.append("no metric given; val_acc is maximized")
            return default
        metric = self.document["metric"]
        if not isinstance(metric, dict):
            self.wrong(("metric",), f"metric takes a name and a goal, not {_shown(metric)}", f"use {_EXAMPLE_METRIC}")
            return default
        for key in metric:
            if key not in _METRIC_KEYS:
                self.wrong(("metric", str(key)), f"unknown key {str(key)!r} in metric", suggest(str(key), _METRIC_KEYS))
        name = metric.get("name")
        if not isinstance(name, str):
            self.wrong(("metric",), "metric has no name", f"use {_EXAMPLE_METRIC}")
        elif name.startswith("test_"):
            self.wrong(
                ("metric", "name"),
                f"metric {name} is measured only once, after the last epoch",
                "use val_acc or val_loss, measured on held-out images after each epoch",
            )
        elif name not in METRICS:
            self.wrong(("metric", "name"), f"unknown metric {name!r}", _similar_metric(name))
        goal = metric.get("goal", "minimize")
        if goal not in ("minimize", "maximize"):
            self.wrong(("metric", "goal"), f"unknown goal {_shown(goal)}", suggest(str(goal), ("minimize", "maximize")))
        elif "goal" not in metric:
            self.notes.append(f"metric has no goal; {name} is minimized, which is W&B's default")
        target = metric.get("target")
        if "target" in metric and not _is_number(target):
            self.wrong(
                ("metric", "target"), f"target takes a number, not {_shown(target)}", "use a number, such as target: 90"
            )
            target = None
        self._impute(metric)
        return Metric(str(name), str(goal), target)

    def _impute(self, metric: Mapping[Any, Any]) -> None:
        for key, words in (
            ("impute", ("latest", "best", "worst")),
            ("impute_while_running", ("latest", "best", "worst", "false")),
        ):
            if key in metric:
                word = "false" if metric[key] is False else metric[key]
                if word not in words:
                    self.wrong(("metric", key), f"unknown {key} {_shown(word)}", suggest(str(word), words))
                else:
                    self.local_notes.append(f"{key} is ignored: a local sweep does not learn from failed trials")

    def _early_terminate(self) -> Hyperband | None:
        if "early_terminate" not in self.document:
            return None
        settings = self.document["early_terminate"]
        place: Place = ("early_terminate",)
        if not isinstance(settings, dict):
            self.wrong(
                place,
                f"early_terminate takes settings, not {_shown(settings)}",
                "use early_terminate: {type: hyperband, min_iter: 3}",
            )
            return None
        before = len(self.mistakes)
        self._hyperband_values(settings, place)
        self._hyperband_bands(settings, place)
        if len(self.mistakes) > before:
            return None
        hyperband = Hyperband.from_settings(settings)
        if not hyperband.bands:
            eta = settings.get("eta", Hyperband.eta)
            self.wrong(
                place,
                f"max_iter {settings['max_iter']} is less than eta {show(eta)}, which leaves no bands",
                f"use max_iter: {math.ceil(eta)} or more",
            )
            return None
        if "max_iter" in settings and "min_iter" in settings:
            self.notes.append("min_iter is ignored, as in W&B, because max_iter and s are given")
        return hyperband

    def _hyperband_values(self, settings: dict[Any, Any], place: Place) -> None:
        """Check each setting of ``early_terminate`` by itself."""
        for key in settings:
            if key not in _HYPERBAND_KEYS:
                self.wrong(
                    (*place, str(key)),
                    f"unknown key {str(key)!r} in early_terminate",
                    suggest(str(key), _HYPERBAND_KEYS),
                )
        if "type" not in settings:
            self.wrong(place, "early_terminate has no type", "add type: hyperband")
        elif settings["type"] != "hyperband":
            self.wrong(
                (*place, "type"), f"unknown early_terminate type {_shown(settings['type'])}", "use type: hyperband"
            )
        for key in ("min_iter", "max_iter", "s"):
            if key in settings and (not _is_int(settings[key]) or settings[key] < 1):
                self.wrong(
                    (*place, key),
                    f"{key} takes a whole number of at least 1, not {_shown(settings[key])}",
                    f"use a number such as {key}: 3",
                )
        eta = settings.get("eta", Hyperband.eta)
        if not _is_number(eta) or eta <= 1:
            self.wrong((*place, "eta"), f"eta takes a number above 1, not {_shown(eta)}", "use a number such as eta: 3")
        if not isinstance(settings.get("strict", True), bool):
            self.wrong(
                (*place, "strict"),
                f"strict takes true or false, not {_shown(settings['strict'])}",
                "use strict: true or strict: false",
            )

    def _hyperband_bands(self, settings: dict[Any, Any], place: Place) -> None:
        """Check that ``early_terminate`` has either ``min_iter``, or ``max_iter`` and ``s``."""
        if "max_iter" in settings and "s" not in settings:
            hint = "add the number of bands, such as s: 2"
            if "min_iter" in settings:
                hint = f"{hint}, or remove max_iter"
            self.wrong(place, "early_terminate has max_iter but no s", hint)
        elif "s" in settings and "max_iter" not in settings and "min_iter" not in settings:
            self.wrong(place, "early_terminate has s but no max_iter", "add max_iter, such as max_iter: 27")
        elif "min_iter" not in settings and "max_iter" not in settings:
            self.wrong(place, "early_terminate has no min_iter", "add min_iter, such as min_iter: 3, or max_iter and s")

    def _parameters(self, method: str | None) -> list[tuple[Parameter, Place]]:
        parameters = self.document.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            what = "parameters is missing" if "parameters" not in self.document else "parameters is empty"
            if parameters is not None and not isinstance(parameters, dict):
                what = f"parameters takes settings by name, not {_shown(parameters)}"
            self.wrong(("parameters",), what, "use parameters: {lr: {min: 0.001, max: 0.01}}")
            return []
        found: list[tuple[Parameter, Place]] = []
        self._collect(parameters, ("parameters",), "", found)
        seen: dict[str, str] = {}
        for parameter, place in found:
            setting, key = setting_of(parameter.name), str(place[-1])
            if setting in seen:
                self.wrong(
                    place,
                    f"{key!r} and {seen[setting]!r} both set {setting}",
                    f"remove {key} or {seen[setting]}",
                )
            seen.setdefault(setting, key)
            if method == "grid" and parameter.on_a_grid and parameter.grid_count > _MAX_GRID_VALUES:
                self.wrong(
                    place,
                    f"{parameter.name!r} has {parameter.grid_count:,} values, too many for method: grid",
                    f"use at most {_MAX_GRID_VALUES:,} values, or method: random",
                )
            if method == "grid" and not parameter.on_a_grid:
                hint = "use values, int_uniform or q_uniform"
                if parameter.distribution == "categorical_w_probabilities":
                    hint = "remove probabilities"
                self.wrong(
                    place,
                    f"{parameter.name!r} is {parameter.distribution}, which method: grid does not support",
                    hint,
                )
        return found

    def _collect(self, node: dict[Any, Any], place: Place, prefix: str, found: list[tuple[Parameter, Place]]) -> None:
        for key, settings in node.items():
            here = (*place, str(key))
            if not isinstance(key, str) or not _NAME.fullmatch(key) or (prefix and "." in key):
                self.wrong(
                    here,
                    f"{str(key)!r} is not a valid parameter name",
                    "use letters, digits, _ and -, beginning with a letter or _",
                )
                continue
            name = f"{prefix}{key}" if prefix else parameter_name(key)
            name = setting_of(name) if setting_of(name) in MAPPINGS else name
            table, dot, option = name.partition(".")
            if setting_of(name) not in FLAGS and (table not in MAPPINGS or (dot and not option.isidentifier())):
                self.wrong(here, *_unknown_parameter(key))
                continue
            if not isinstance(settings, dict):
                word = "values" if isinstance(settings, list) else "value"
                self.wrong(
                    here,
                    f"{name!r} takes value, values, or min and max, not {_shown(settings)}",
                    f"use {key}: {{{word}: {_shown(settings)}}}",
                )
                continue
            nest = f"use {key}: {{parameters: {{OPTION: {{values: [...]}}}}}}"
            if "parameters" in settings:
                inner = settings["parameters"]
                if name not in MAPPINGS:
                    self.wrong(
                        here,
                        f"{name!r} takes no nested parameters",
                        f"use nested parameters only in {or_list(MAPPINGS)}",
                    )
                elif len(settings) > 1 or not isinstance(inner, dict) or not inner:
                    self.wrong(here, f"{name!r} takes parameters with options, and no other key", nest)
                else:
                    self._collect(inner, (*here, "parameters"), f"{name}.", found)
                continue
            if name in MAPPINGS:
                self.wrong(here, f"{key!r} takes nested parameters", nest)
                continue
            parameter = self._parameter(name, settings, here)
            if parameter is not None:
                found.append((parameter, here))
                if not prefix and name != key:
                    self.notes.append(f"{key} sets {name}")

    def _parameter(self, name: str, settings: dict[Any, Any], place: Place) -> Parameter | None:
        """Return the parameter that ``settings`` describe, or None after recording mistakes."""
        before = len(self.mistakes)
        distribution = self._distribution(name, settings, place)
        if distribution is None:
            return None
        base = distribution.removeprefix("q_")
        allowed = [
            *_REQUIRED[distribution],
            *_DEFAULTS.get(base, {}),
            *(["q"] if distribution.startswith("q_") else []),
        ]
        for key in settings:
            if key not in allowed and key != "distribution":
                self.wrong(
                    (*place, str(key)),
                    f"{name!r} is {distribution}, which has no {str(key)!r}",
                    f"use only: {', '.join(allowed)}",
                )
        for key in _REQUIRED[distribution]:
            if key not in settings:
                self.wrong(place, f"{name!r} is {distribution}, which needs {key}", f"add {key}")
        filled: dict[str, Any] = {**_DEFAULTS.get(base, {}), **({"q": 1.0} if distribution.startswith("q_") else {})}
        filled |= {key: settings[key] for key in allowed if key in settings}
        if len(self.mistakes) > before:
            return None
        if "value" in filled:
            filled["value"] = self._value(name, filled["value"], (*place, "value"))
        elif "values" in filled:
            self._values(name, filled, place)
        else:
            self._numbers(name, distribution, filled, place)
        if len(self.mistakes) > before:
            return None
        flag = FLAGS.get(setting_of(name))
        parameter = Parameter(name, distribution, filled, int_only=flag is not None and flag.kind is int)
        if flag is not None and distribution not in ("constant", "categorical", "categorical_w_probabilities"):
            self._range(parameter, flag, place)
        if len(self.mistakes) > before:
            return None
        if distribution in EXPONENTS:
            low, high = parameter.bounds
            self.notes.append(
                f"{name}: {distribution} takes exponents of e: values range from {show(float(low))} to "
                f"{show(float(high))}; for plain values use {distribution}_values"
            )
        return parameter

    def _distribution(self, name: str, settings: dict[Any, Any], place: Place) -> str | None:
        given = settings.get("distribution")
        if "distribution" in settings:
            if not isinstance(given, str) or given not in _REQUIRED:
                self.wrong(
                    (*place, "distribution"),
                    f"{name!r} has the unknown distribution {_shown(given)}",
                    suggest(str(given), DISTRIBUTIONS),
                )
                return None
            return str(given)
        if "value" in settings:
            return "constant"
        if "values" in settings:
            return "categorical_w_probabilities" if "probabilities" in settings else "categorical"
        if "min" in settings and "max" in settings:
            if "q" in settings:
                self.wrong(
                    (*place, "q"),
                    f"{name!r} has q but no distribution",
                    "add distribution: q_uniform, or another that begins with q_",
                )
                return None
            whole = all(_is_int(settings[key]) for key in ("min", "max"))
            if whole and _is_rate(name):
                self.notes.append(
                    f"{name}: only whole numbers are drawn, as min and max are whole; for fractions use "
                    f"min: {float(settings['min'])}"
                )
            return "int_uniform" if whole else "uniform"
        for keys, distribution in ((("mu", "sigma"), "normal"), (("a", "b"), "beta")):
            if any(key in settings for key in keys):
                self.wrong(place, f"{name!r} has no distribution", f"add distribution: {distribution}")
                return None
        if "min" in settings or "max" in settings:
            given, missing = ("min", "max") if "min" in settings else ("max", "min")
            self.wrong(place, f"{name!r} has {given} but no {missing}", f"add {missing}")
            return None
        known = ("value", "values", "probabilities", "min", "max", "q", "mu", "sigma", "a", "b", "distribution")
        odd = next((str(key) for key in settings if key not in known), None)
        if odd is not None:
            self.wrong(place, f"{name!r} has the unknown key {odd!r}", suggest(odd, known))
        else:
            self.wrong(place, f"{name!r} has no values", "add value, values, or min and max")
        return None

    def _value(self, name: str, value: Any, place: Place) -> Any:
        """Return a value converted as ``train`` does, or None after recording a mistake; a list of one is its item."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None and (
            not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and math.isnan(value))
        ):
            self.wrong(place, f"{_shown(value)} is not a valid value of {name!r}", "use a number, text, true or false")
            return None
        flag = FLAGS.get(setting_of(name))
        if value is None or flag is None:
            return value
        try:
            return flag.parse(setting_of(name), value)
        except RequestError as error:
            self.wrong(place, f"{name!r}: {error.message}", error.hint)
            return None

    def _values(self, name: str, filled: dict[str, Any], place: Place) -> None:
        values = filled["values"]
        if not isinstance(values, list) or not values:
            self.wrong(
                (*place, "values"),
                f"{name!r}: values {'is empty' if values == [] else f'takes a list, not {_shown(values)}'}",
                "use a list such as values: [1, 2]" if values == [] else f"use values: [{_shown(values)}]",
            )
            return
        parsed = [self._value(name, value, (*place, "values", i)) for i, value in enumerate(values)]
        for i, value in enumerate(parsed):
            for other in parsed[:i]:
                if value == other and type(value) is not type(other) and bool in (type(value), type(other)):
                    self.wrong(
                        (*place, "values", i),
                        f"{name!r} has both {_shown(other)} and {_shown(value)}, which are equal",
                        f"remove {_shown(other)} or {_shown(value)}",
                    )
        filled["values"] = parsed
        if "probabilities" not in filled:
            return
        weights = filled["probabilities"]
        where = (*place, "probabilities")
        if not isinstance(weights, list) or not all(_is_number(weight) and weight >= 0 for weight in weights):
            self.wrong(
                where,
                f"{name!r}: probabilities takes a list of numbers of at least 0, not {_shown(weights)}",
                "use a list such as probabilities: [0.5, 0.5]",
            )
        elif len(weights) != len(parsed):
            self.wrong(
                where,
                f"{name!r} has {len(parsed)} values but {len(weights)} probabilities",
                "use one probability for each value",
            )
        elif not math.isclose(sum(weights), 1, rel_tol=1e-5):
            self.wrong(
                where,
                f"{name!r}: the probabilities add up to {show(float(sum(weights)))}, not 1",
                "use probabilities that add up to 1",
            )

    def _numbers(self, name: str, distribution: str, filled: dict[str, Any], place: Place) -> None:
        for key, value in filled.items():
            where = (*place, key)
            is_exponent = (
                key in ("min", "max", "mu", "sigma") and "log" in distribution and "_values" not in distribution
            )
            limit = 100 if is_exponent else 1e300
            if not _is_number(value):
                hint = f"remove the quotes: {key}: {value}" if _reads_as_number(value) else "use a number such as 0.1"
                self.wrong(where, f"{name!r}: {key} takes a number, not {_shown(value)}", hint)
            elif distribution == "int_uniform" and not _is_int(value):
                self.wrong(
                    where,
                    f"{name!r}: int_uniform takes whole numbers, not {key} {show(value)}",
                    "use whole numbers, or distribution: uniform",
                )
            elif key in ("q", "sigma", "a", "b") and value <= 0:
                self.wrong(where, f"{name!r}: {key} {show(value)} is too small", f"use {key} above 0")
            elif key == "min" and distribution.endswith("_values") and value <= 0:
                self.wrong(where, f"{name!r}: min {show(value)} is too small for {distribution}", "use min above 0")
            elif abs(value) > limit:
                hint = f"use {key} from -{limit:g} to {limit:g}"
                if distribution in EXPONENTS:
                    hint = f"{hint}, or distribution: {distribution}_values"
                self.wrong(where, f"{name!r}: {key} {show(value)} is too large for {distribution}", hint)
        if not all(_is_number(value) for value in filled.values()):
            return
        if "min" in filled and filled["min"] >= filled["max"]:
            self.wrong(
                place,
                f"{name!r}: min {show(filled['min'])} is not less than max {show(filled['max'])}",
                "use a smaller min or a larger max",
            )
        ends = [abs(filled[key]) for key in ("min", "max", "mu", "sigma") if key in filled]
        if filled.get("q", 0) > 0 and "log" not in distribution and max(ends, default=1) / filled["q"] > 1e12:
            self.wrong((*place, "q"), f"{name!r}: q {show(filled['q'])} is too small for the range", "use a larger q")

    def _range(self, parameter: Parameter, flag: Flag, place: Place) -> None:
        """Check that ``train`` accepts the values of a range."""
        name = parameter.name
        if flag.kind is bool or flag.choices or flag.table is not None:
            self.wrong(place, f"{name!r} does not take a range of numbers", "use a list of values: values: [...]")
            return
        step = parameter.step
        if flag.kind is int and (step is None or step != int(step)):
            self.wrong(
                place,
                f"{name!r} takes whole numbers, but {parameter.distribution} includes fractions",
                "use distribution: int_uniform, or a q_ distribution with q: 1",
            )
            return
        low, high = parameter.bounds
        for value in (low, high):
            try:
                flag.parse(setting_of(name), int(value) if parameter.integer else value)
            except RequestError as error:
                self.wrong(place, f"{name!r} can become {show(value)}: {error.message}", error.hint)
                return


def _mistake_in_top(key: str, value: object) -> tuple[str, str | None] | None:
    """Return message and hint for a mistake in a top-level key that no other function checks, or None."""
    if key in _UNSUPPORTED:
        what, hint = _UNSUPPORTED[key]
        return f"{key}: {what} are not supported", hint
    if key not in _TOP:
        return f"unknown key {key!r}", suggest(key, _TOP)
    if key == "kind" and value != "sweep":
        return f"unknown kind {_shown(value)}", "use kind: sweep"
    if key in ("name", "description", "project", "entity", "program", "apiVersion") and not (
        isinstance(value, str) and value
    ):
        return f"{key} takes text, not {_shown(value)}", f'use quoted text: {key}: "..."'
    if key == "command" and not isinstance(value, list):
        return f"command takes a list, not {_shown(value)}", "remove command; each trial runs vitctl train"
    if key == "controller" and value not in ({"type": "local"}, {"type": "cloud"}):
        return f"controller takes a type, not {_shown(value)}", "use controller: {type: local} or {type: cloud}"
    return None


def _nested(parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return parameters as in a file: nested, with parsed numbers and named distributions, as W&B's client requires."""
    result: dict[str, Any] = {}
    for parameter in parameters:
        *groups, last = parameter.name.split(".")
        node = result
        for group in groups:
            node = node.setdefault(group, {"parameters": {}})["parameters"]
        node[last] = {"distribution": parameter.distribution, **parameter.settings}
    return result


def _unknown_parameter(key: str) -> tuple[str, str]:
    """Return message and hint for an unknown parameter; following any hint leaves a valid file."""
    word = setting_of(key)
    if error := foreign_name(word, key):
        return error.message, f"remove it, or {INSTEAD[word]}" if word in INSTEAD else str(error.hint)
    if word in SWITCHES:
        name, value = SWITCHES[word]
        return f"unknown setting {key!r}", f"remove it, or use {name}: {{value: {value}}}"
    near = _meant(key) or similar_settings(word)
    hint = "remove it, or list all settings with vitctl train --help"
    return f"unknown setting {key!r}", f"did you mean {or_list(near)}? If not, remove it" if near else hint


def _meant(key: str) -> list[str]:
    """Return the parameters that a project's own name, such as ``optimizer.lr`` or ``mlp_ratio``, can stand for."""
    *groups, last = key.split(".")
    word = setting_of(groups[-1] if groups and last in _NAME_KEYS else last)
    if word in {*FLAGS, *OPTION_NAMES}:
        return [OPTION_NAMES.get(word, word)]
    return [f"{table}.{word}" for table, rows in _ROWS.items() if any(word in row.options for row in rows.values())]


def _similar_metric(name: str) -> str:
    """Return a hint for an unknown metric, such as ``val/loss`` or ``top1_acc``."""
    for figure in ("loss", "acc"):
        if figure in name.lower():
            return f"did you mean {'train' if 'train' in name.lower() else 'val'}_{figure}?"
    return f"use {or_list(METRICS)}"


def check_fixed(file: SweepFile, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``--fixed``, parsed, under the names that ``train`` uses.

    Raises:
        RequestError: an unknown setting, a bad value, or a parameter that the file varies.
    """
    parsed = normalise_keys(fixed, "--fixed")
    varied = {setting_of(name.partition(".")[0]): name for name in file.space.varying}
    for name in parsed:
        if name in varied:
            parameter = file.space.varying[varied[name]]
            raise RequestError(
                f"--fixed {name} conflicts with {file.name}, which varies {parameter.name} ({parameter.describe()})",
                hint=f"remove --fixed {name}, or remove {parameter.name} from {file.name}",
            )
    return parsed


def check_trains(file: SweepFile, fixed: Mapping[str, Any]) -> None:
    """Check that ``train`` accepts the trials of a sweep.

    Every value of a list, both ends of every range and a sample of combinations are checked; for ``method: grid``, the
    points of the grid.

    Raises:
        RequestError: ``train`` refuses a combination, or does not measure the metric.
    """
    space, metric = file.space, file.metric
    ends = extremes(space)
    first = {name: values[0] for name, values in ends.items()}
    if file.method == "grid":
        points = list(itertools.islice(space.grid_points(), _MAX_CHECKED))
    else:
        points = [first | {name: value} for name, values in ends.items() for value in values]
        rng = random.Random(0)
        points += [space.draw(rng) for _ in range(_TYPICAL)]
    for params in points:
        settings = file.settings(params, fixed)
        try:
            config = resolve_config({}, normalise_keys(settings, file.name))
        except RequestError as error:
            raise RequestError(
                f"{file.name}: train refuses {show_params(params)}: {error.message}",
                hint=_choices_with_options(settings) or error.hint or f"change these values in {file.name}",
            ) from error
        if config.val != "holdout" and metric.name.startswith("val_"):
            problem = "does not measure" if config.val == "none" else "uses the test set for"
            of_recipe = "" if "val" in settings else f" (from recipe {config.recipe})"
            holdout = "only holdout as val" if "val" in space.varying else "--fixed val=holdout"
            raise RequestError(
                f"{file.name}: val: {config.val}{of_recipe} {problem} {metric.name}",
                hint=f"use {holdout}, or another metric",
            )


def _choices_with_options(settings: Mapping[str, Any]) -> str | None:
    """Return the hint if the network or optimizer lacks an option that others have, else None."""
    try:
        config = resolve_config({}, normalise_keys({k: v for k, v in settings.items() if k not in OPTION_TABLES}, ""))
    except RequestError:
        return None
    for table, rows in _ROWS.items():
        kind = table.removesuffix("_options")
        chosen = getattr(config, kind)
        for option in settings.get(table, ()):
            having = [name for name, row in rows.items() if option in row.options]
            if having and chosen in rows and chosen not in having:
                return f"use only {or_list(having[:3])} as {kind}, or remove {table}.{option}"
    return None


def extremes(space: Space) -> dict[str, list[Any]]:
    """Return the values of each varied parameter, or the bounds of its range."""
    return {
        name: list(p.choices) if p.distribution.startswith("categorical") else [_whole(p, end) for end in p.bounds]
        for name, p in space.varying.items()
    }


def _whole(parameter: Parameter, value: float) -> int | float:
    return int(value) if parameter.integer else value


def _is_rate(name: str) -> bool:
    """Return whether a setting, or an option of a network or optimizer, takes fractions."""
    if (flag := FLAGS.get(setting_of(name))) is not None:
        return flag.kind is float
    table, _, option = name.partition(".")
    rows = _ROWS.get(table, {}).values()
    return any(isinstance(row.options[option].default, float) for row in rows if option in row.options)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _reads_as_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _shown(value: object) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
