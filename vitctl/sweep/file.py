"""The sweep file: W&B's schema, checked in full, with every mistake named by its line."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitctl.config import ALIASES, FLAGS, LENGTHS, OPTION_TABLES, Flag, normalise_keys, resolve_config
from vitctl.errors import RequestError
from vitctl.registry import suggest
from vitctl.sweep.hyperband import Hyperband
from vitctl.sweep.space import EXPONENTS, Parameter, Space, show, show_params
from vitctl.yamlfile import Place, line_numbers, parse_yaml, read_text

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
"""What ``train`` records each epoch, and a sweep can go by."""

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
    "program": "vitctl train is what runs",
    "command": "vitctl train is what runs",
    "controller": "a local sweep has no controller",
    "apiVersion": "",
    "kind": "",
}
_ELSEWHERE = {
    "scheduler": "W&B's custom schedulers run their own code; leave it out, and say method: bayes",
    "job": "it names a W&B Launch job; leave it out, as vitctl train is what runs",
    "image_uri": "it names a W&B Launch image; leave it out, as vitctl train is what runs",
    "metrics": "a sweep has one metric here; write metric: {name: val_acc, goal: maximize}",
}
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TYPICAL = 64
_MOST_CHECKED = 2000
_MOST_ON_A_GRID = 100_000


@dataclass(frozen=True)
class Metric:
    """What a sweep goes by.

    Attributes:
        name: of a figure that ``train`` records each epoch.
        goal: minimize or maximize.
        target: the sweep ends once a trial reaches this.
    """

    name: str
    goal: str
    target: float | None = None

    @property
    def sign(self) -> int:
        """What to multiply values by, so that less is better."""
        return -1 if self.goal == "maximize" else 1

    def best(self, values: Iterable[float]) -> float:
        """Return the best of ``values``."""
        return (max if self.goal == "maximize" else min)(values)

    def reached(self, value: float) -> bool:
        """Whether ``value`` meets the target."""
        return self.target is not None and self.sign * value <= self.sign * self.target


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that has no mistakes.

    Attributes:
        name: of the file.
        text: all of it.
        method: grid, random or bayes.
        space: its parameters.
        metric: what it goes by.
        hyperband: its ``early_terminate``, or None.
        run_cap: the most trials, or None.
        title: its ``name`` key, or that of the file.
        document: the whole file as W&B takes it: numbers are numbers, and distributions are named.
        order: the parameters that vary, as they come in the file.
        notes: what its writer should know, whatever the engine.
        local_notes: what the local engine leaves out.
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
        """Return what a trial's ``--config`` file holds.

        Args:
            params: what varies.
            fixed: of ``--fixed``; they win over the file's constants.
        """
        replaced = {setting_of(name) for name in fixed}
        nested = self.space.nested(params)
        return {**{name: value for name, value in nested.items() if setting_of(name) not in replaced}, **fixed}

    def difference(self, other: SweepFile) -> list[str]:
        """Return what ``other`` says otherwise, a line each; comments and layout do not count."""
        ours, theirs = _flatten(self.document), _flatten(other.document)
        lines = []
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if ours.get(key) != theirs.get(key):
                lines.append(f"{key}: {_said(ours, key)} -> {_said(theirs, key)}")
        return lines


def _flatten(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {key: value for k, v in node.items() for key, value in _flatten(v, f"{name}.{k}" if name else k).items()}
    return {name: node}


def _said(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key], default=str) if key in flat else "nothing"


def setting_of(name: str) -> str:
    """Return the setting of ``train`` that a parameter's name or key stands for: ``n_epochs`` -> ``epochs``."""
    word = name.strip().lstrip("-").replace("-", "_")
    return ALIASES.get(word, word)


def read_sweep_file(path: Path) -> SweepFile:
    """Read and check the sweep file ``path``.

    Raises:
        RequestError: it cannot be read, or has mistakes; all are named with their lines.
    """
    return parse_sweep_file(read_text(path), path.name, str(path))


def parse_sweep_file(text: str, name: str, source: str | None = None) -> SweepFile:
    """Check the ``text`` of a sweep file.

    Args:
        text: all of the file.
        name: its name without folders.
        source: how to call it in errors; its name where None.

    Raises:
        RequestError: it has mistakes; all are named with their lines.
    """
    source = source or name
    document = parse_yaml(text, source)
    return _Reader(document, line_numbers(text, source), source).read(text, name)


class _Reader:
    """Goes through a document and collects its mistakes.

    Args:
        document: the file's content.
        lines: of every value.
        source: how to call the file.
    """

    def __init__(self, document: dict[str, Any], lines: dict[Place, int], source: str) -> None:
        self.document = document
        self.lines = lines
        self.source = source
        self.mistakes: dict[tuple[int, str], None] = {}
        self.notes: list[str] = []
        self.local_notes: list[str] = []

    def wrong(self, place: Place, message: str) -> None:
        """Note a mistake at ``place``."""
        while place and place not in self.lines:
            place = place[:-1]
        self.mistakes[(self.lines.get(place, 1), message)] = None

    def raise_mistakes(self) -> None:
        """Raise RequestError when there are mistakes."""
        if not self.mistakes:
            return
        found = sorted(self.mistakes)
        if len(found) == 1:
            raise RequestError(f"{self.source}, line {found[0][0]}: {found[0][1]}")
        lines = "\n".join(f"  line {line}: {message}" for line, message in found)
        raise RequestError(f"{self.source} has {len(found)} mistakes:\n{lines}")

    def read(self, text: str, name: str) -> SweepFile:
        """Check everything and return the file."""
        document = self.document
        for key, value in document.items():
            if key in _ELSEWHERE:
                self.wrong((key,), f"{key!r} is not for vitctl: {_ELSEWHERE[key]}")
            elif key not in _TOP:
                self.wrong((key,), f"{key!r} is no key of a sweep file{_tail(key, _TOP)}")
            elif key in ("name", "description", "project", "entity", "program", "apiVersion", "kind"):
                if not isinstance(value, str) or not value:
                    self.wrong((key,), f"{key} takes text, not {_shown(value)}")
                elif key == "kind" and value != "sweep":
                    self.wrong((key,), f"kind is {value!r}; a sweep file's is sweep")
            elif key == "command" and not isinstance(value, list):
                self.wrong((key,), f"command takes a list, not {_shown(value)}")
            elif key == "controller" and (
                not isinstance(value, dict) or value.get("type") not in ("local", "cloud") or len(value) > 1
            ):
                self.wrong((key,), "controller takes type: local or type: cloud")
        ignored: dict[str, list[str]] = {}
        for key, why in _TOP.items():
            if why and key in document:
                ignored.setdefault(why, []).append(key)
        for why, keys in ignored.items():
            notes = self.local_notes if "controller" in keys else self.notes
            notes.append(f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} ignored: {why}")

        method = self._method()
        metric = self._metric(method)
        hyperband = self._early_terminate()
        run_cap = document.get("run_cap")
        if "run_cap" in document and (not isinstance(run_cap, int) or isinstance(run_cap, bool) or run_cap < 1):
            self.wrong(("run_cap",), f"run_cap takes a whole number from 1, not {_shown(run_cap)}")
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
            document=self._normalised({parameter.name: parameter for parameter, _ in parameters}),
            order=tuple(parameter.name for parameter, _ in parameters if parameter.varies),
            notes=tuple(self.notes),
            local_notes=tuple(self.local_notes),
        )
        if not space.varying:
            self.wrong(
                ("parameters",), "nothing varies: each parameter has one value; give one of them values, or min and max"
            )
            self.raise_mistakes()
        return file

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _method(self) -> str | None:
        method = self.document.get("method")
        if "method" not in self.document:
            self.wrong((), f"method is missing; there are {', '.join(METHODS)}")
        elif method == "custom":
            self.wrong(
                ("method",), "method: custom is W&B's way to run a scheduler of one's own; say grid, random or bayes"
            )
        elif method not in METHODS:
            self.wrong(("method",), f"method {_shown(method)} is unknown{_tail(str(method), METHODS)}")
        else:
            return str(method)
        return None

    def _metric(self, method: str | None) -> Metric:
        default = Metric("val_acc", "maximize")
        if "metric" not in self.document:
            if method == "bayes" or "early_terminate" in self.document:
                what = "method: bayes" if method == "bayes" else "early_terminate"
                self.wrong((), f"{what} needs a metric, such as metric: {{name: val_acc, goal: maximize}}")
            else:
                self.notes.append("no metric is given: val_acc, maximized, is taken")
            return default
        metric = self.document["metric"]
        if not isinstance(metric, dict):
            self.wrong(("metric",), "metric takes name and goal, such as metric: {name: val_acc, goal: maximize}")
            return default
        for key in metric:
            if key not in _METRIC_KEYS:
                self.wrong(("metric", str(key)), f"metric has no key {str(key)!r}{_tail(str(key), _METRIC_KEYS)}")
        name = metric.get("name")
        if not isinstance(name, str):
            self.wrong(("metric",), f"metric needs a name{_tail('', METRICS)}")
        elif name.startswith("test_"):
            self.wrong(
                ("metric", "name"),
                f"{name} is measured once, after the last epoch, and selects nothing; take val{name[4:]}, of "
                f"held-out images",
            )
        elif name not in METRICS:
            self.wrong(("metric", "name"), f"{name!r} is not recorded by train{_tail(name, METRICS)}")
        goal = metric.get("goal", "minimize")
        if goal not in ("minimize", "maximize"):
            self.wrong(
                ("metric", "goal"), f"goal {_shown(goal)} is unknown{_tail(str(goal), ('minimize', 'maximize'))}"
            )
        elif "goal" not in metric:
            self.notes.append(f"metric has no goal, so W&B's default holds: {name} is minimized")
        target = metric.get("target")
        if "target" in metric and not _is_number(target):
            self.wrong(("metric", "target"), f"target takes a number, not {_shown(target)}")
            target = None
        for key, words in (
            ("impute", ("latest", "best", "worst")),
            ("impute_while_running", ("latest", "best", "worst", "false")),
        ):
            if key in metric:
                word = "false" if metric[key] is False else metric[key]
                if word not in words:
                    self.wrong(("metric", key), f"{key} {_shown(word)} is unknown{_tail(str(word), words)}")
                else:
                    self.local_notes.append(
                        f"{key} is ignored: it steers W&B's own search; here failed trials teach nothing"
                    )
        return Metric(str(name), str(goal), target)

    def _early_terminate(self) -> Hyperband | None:
        if "early_terminate" not in self.document:
            return None
        settings = self.document["early_terminate"]
        place: Place = ("early_terminate",)
        if not isinstance(settings, dict):
            self.wrong(place, "early_terminate takes type: hyperband, and min_iter, or max_iter and s")
            return None
        before = len(self.mistakes)
        for key in settings:
            if key not in _HYPERBAND_KEYS:
                near = _tail(str(key), _HYPERBAND_KEYS)
                self.wrong((*place, str(key)), f"early_terminate has no key {str(key)!r}{near}")
        if settings.get("type") != "hyperband":
            self.wrong((*place, "type"), f"early_terminate has type {_shown(settings.get('type'))}; there is hyperband")
        for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1)):
            if key in settings and (not _is_int(settings[key]) or settings[key] < least):
                self.wrong((*place, key), f"{key} takes a whole number from {least}, not {_shown(settings[key])}")
        eta = settings.get("eta", 3)
        if not _is_number(eta) or eta <= 1:
            self.wrong((*place, "eta"), f"eta takes a number above 1, not {_shown(eta)}")
        if not isinstance(settings.get("strict", True), bool):
            self.wrong((*place, "strict"), f"strict takes true or false, not {_shown(settings['strict'])}")
        if "max_iter" in settings and "s" not in settings and "min_iter" not in settings:
            self.wrong(place, "max_iter needs s, the number of bands below it")
        elif "s" in settings and "max_iter" not in settings and "min_iter" not in settings:
            self.wrong(place, "s needs max_iter, from which its bands count down")
        elif "max_iter" in settings and "s" not in settings:
            self.wrong(place, "max_iter wins over min_iter, and needs s, the number of bands below it")
        elif "min_iter" not in settings and "max_iter" not in settings:
            self.wrong(place, "hyperband needs min_iter, or max_iter and s")
        if len(self.mistakes) > before:
            return None
        hyperband = Hyperband.from_settings(settings)
        if not hyperband.bands:
            self.wrong(
                place,
                f"max_iter {settings['max_iter']} / eta {show(eta)} is below 1, so there is no band; raise max_iter",
            )
            return None
        if "max_iter" in settings and "min_iter" in settings:
            self.notes.append("min_iter is ignored: max_iter and s win over it, as in W&B")
        return hyperband

    def _parameters(self, method: str | None) -> list[tuple[Parameter, Place]]:
        parameters = self.document.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            what = "parameters is missing" if "parameters" not in self.document else "parameters is empty"
            if parameters is not None and not isinstance(parameters, dict):
                what = f"parameters takes names with values below them, not {_shown(parameters)}"
            self.wrong(("parameters",), f"{what}; write parameters: {{lr: {{min: 0.001, max: 0.01}}}}")
            return []
        found: list[tuple[Parameter, Place]] = []
        self._collect(parameters, ("parameters",), "", found)
        seen: dict[str, str] = {}
        for parameter, place in found:
            setting = setting_of(parameter.name)
            if setting in seen:
                self.wrong(place, f"{parameter.name!r} and {seen[setting]!r} both set {setting}")
            seen.setdefault(setting, parameter.name)
            if method == "grid" and parameter.on_a_grid and parameter.grid_count > _MOST_ON_A_GRID:
                self.wrong(place, f"{parameter.name!r} has {parameter.grid_count:,} values, too many for method: grid")
            if method == "grid" and not parameter.on_a_grid:
                remedy = "values, int_uniform and q_uniform can"
                if parameter.distribution == "categorical_w_probabilities":
                    remedy = "leave the probabilities out"
                self.wrong(
                    place,
                    f"method: grid cannot go through {parameter.name!r}, which is {parameter.distribution}: {remedy}",
                )
        return found

    def _collect(self, node: dict[Any, Any], place: Place, prefix: str, found: list[tuple[Parameter, Place]]) -> None:
        for key, settings in node.items():
            here = (*place, str(key))
            name = f"{prefix}{key}"
            if not isinstance(key, str) or not _NAME.fullmatch(key) or ("." in key):
                self.wrong(here, f"{str(key)!r} is no name of a parameter: letters, digits, _ and - make one")
                continue
            group = prefix.rstrip(".")
            if not prefix and setting_of(key) not in FLAGS and key not in OPTION_TABLES:
                self.wrong(here, f"{key!r} is no setting of train{_tail(setting_of(key), [*FLAGS, *ALIASES])}")
                continue
            if not isinstance(settings, dict):
                self.wrong(here, f"{name!r} takes value:, values:, or min: and max:, not {_shown(settings)}")
                continue
            if "parameters" in settings:
                inner = settings["parameters"]
                if group or key not in OPTION_TABLES:
                    self.wrong(here, f"{name!r} has no parameters of its own; only {', '.join(OPTION_TABLES)} have")
                elif len(settings) > 1 or not isinstance(inner, dict) or not inner:
                    self.wrong(here, f"{name!r}: parameters: stands alone, with names and values below it")
                else:
                    self._collect(inner, (*here, "parameters"), f"{name}.", found)
                continue
            if key in OPTION_TABLES and not group:
                self.wrong(
                    here, f"{key!r} takes parameters: with the options below it, such as depth: {{values: [2, 4]}}"
                )
                continue
            parameter = self._parameter(name, settings, here)
            if parameter is not None:
                found.append((parameter, here))

    def _parameter(self, name: str, settings: dict[Any, Any], place: Place) -> Parameter | None:
        """Return the parameter that ``settings`` describe; mistakes are noted, and None is returned."""
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
                    f"{name!r} is {distribution}, which has no {str(key)!r}{_tail(str(key), allowed)}",
                )
        for key in _REQUIRED[distribution]:
            if key not in settings:
                self.wrong(place, f"{name!r} is {distribution}, which needs {key}")
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
        parameter = Parameter(name, distribution, filled, whole=flag is not None and flag.kind is int)
        if flag is not None and distribution not in ("constant", "categorical", "categorical_w_probabilities"):
            self._range(parameter, flag, place)
        if len(self.mistakes) > before:
            return None
        if distribution in EXPONENTS:
            low, high = parameter.bounds
            self.notes.append(
                f"{name}: {distribution} takes exponents of e, so its values go from {show(float(low))} to "
                f"{show(float(high))}; {distribution}_values takes the values themselves"
            )
        return parameter

    def _distribution(self, name: str, settings: dict[Any, Any], place: Place) -> str | None:
        given = settings.get("distribution")
        if "distribution" in settings:
            if not isinstance(given, str) or given not in _REQUIRED:
                near = _tail(str(given), DISTRIBUTIONS)
                self.wrong(
                    (*place, "distribution"), f"{name!r} has the distribution {_shown(given)}, which is unknown{near}"
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
                    (*place, "q"), f"{name!r} has q but no distribution; say distribution: q_uniform, or another q_"
                )
                return None
            whole = all(_is_int(settings[key]) for key in ("min", "max"))
            return "int_uniform" if whole else "uniform"
        for keys, distribution in ((("mu", "sigma"), "normal"), (("a", "b"), "beta")):
            if any(key in settings for key in keys):
                self.wrong(place, f"{name!r} has no distribution; say distribution: {distribution}")
                return None
        if "min" in settings or "max" in settings:
            self.wrong(place, f"{name!r} needs {'max' if 'min' in settings else 'min'} too")
            return None
        known = ("value", "values", "probabilities", "min", "max", "q", "mu", "sigma", "a", "b", "distribution")
        odd = next((str(key) for key in settings if key not in known), None)
        hint = f"; it has no key {odd!r}{_tail(odd, known)}" if odd else ""
        self.wrong(place, f"{name!r} needs value, values, or min and max{hint}")
        return None

    def _value(self, name: str, value: Any, place: Place) -> Any:
        """Return a single value as ``train`` reads it."""
        if value is not None and (
            not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and math.isnan(value))
        ):
            self.wrong(place, f"{name!r} has the value {_shown(value)}; a number, text, true or false is one")
            return None
        flag = FLAGS.get(setting_of(name))
        if value is None or flag is None:
            return value
        try:
            return flag.parse(setting_of(name), value)
        except RequestError as error:
            self.wrong(place, f"{name!r}: {error}")
            return None

    def _values(self, name: str, filled: dict[str, Any], place: Place) -> None:
        values = filled["values"]
        if not isinstance(values, list) or not values:
            self.wrong((*place, "values"), f"{name!r}: values takes a list such as [1, 2], not {_shown(values)}")
            return
        parsed = [self._value(name, value, (*place, "values", i)) for i, value in enumerate(values)]
        for i, value in enumerate(parsed):
            for other in parsed[:i]:
                if value == other and type(value) is not type(other) and bool in (type(value), type(other)):
                    self.wrong(
                        (*place, "values", i), f"{name!r} has both {_shown(other)} and {_shown(value)}, which are equal"
                    )
        filled["values"] = parsed
        if "probabilities" not in filled:
            return
        weights = filled["probabilities"]
        where = (*place, "probabilities")
        if not isinstance(weights, list) or not all(_is_number(weight) and weight >= 0 for weight in weights):
            self.wrong(where, f"{name!r}: probabilities takes a list of numbers from 0, not {_shown(weights)}")
        elif len(weights) != len(parsed):
            self.wrong(where, f"{name!r} has {len(parsed)} values and {len(weights)} probabilities")
        elif not math.isclose(sum(weights), 1, rel_tol=1e-5):
            self.wrong(where, f"{name!r}: the probabilities make {show(float(sum(weights)))}, not 1")

    def _numbers(self, name: str, distribution: str, filled: dict[str, Any], place: Place) -> None:
        for key, value in filled.items():
            where = (*place, key)
            if not _is_number(value):
                hint = f"; write it without quotes: {key}: {value}" if _reads_as_number(value) else ""
                self.wrong(where, f"{name!r}: {key} takes a number, not {_shown(value)}{hint}")
            elif distribution == "int_uniform" and not _is_int(value):
                self.wrong(where, f"{name!r}: {key} is {show(value)}, and int_uniform takes whole numbers")
            elif key in ("q", "sigma", "a", "b") and value <= 0:
                self.wrong(where, f"{name!r}: {key} is {show(value)}; it must be above 0")
            elif key == "min" and distribution.endswith("_values") and value <= 0:
                self.wrong(
                    where, f"{name!r}: min is {show(value)}, and {distribution} has a logarithm; it must be above 0"
                )
            elif abs(value) > 1e300 or (
                key in ("min", "max", "mu", "sigma")
                and "log" in distribution
                and "_values" not in distribution
                and abs(value) > 100
            ):
                self.wrong(where, f"{name!r}: {key} is {show(value)}, which is too large")
        if not all(_is_number(value) for value in filled.values()):
            return
        if "min" in filled and filled["min"] >= filled["max"]:
            self.wrong(place, f"{name!r}: min {show(filled['min'])} is not less than max {show(filled['max'])}")
        ends = [abs(filled[key]) for key in ("min", "max", "mu", "sigma") if key in filled]
        if filled.get("q", 0) > 0 and "log" not in distribution and max(ends, default=1) / filled["q"] > 1e12:
            self.wrong((*place, "q"), f"{name!r}: q is {show(filled['q'])}, which is too small for the range")

    def _range(self, parameter: Parameter, flag: Flag, place: Place) -> None:
        """Refuse a range that ``train`` would refuse values of."""
        name = parameter.name
        if flag.kind is bool or flag.choices or flag.table is not None:
            self.wrong(place, f"{name!r} takes names, not a range of numbers; list them under values:")
            return
        step = parameter.step
        if flag.kind is int and (step is None or step != int(step)):
            self.wrong(
                place,
                f"{name!r} takes whole numbers, and {parameter.distribution} draws fractions; use int_uniform, or a q_ "
                f"distribution with q: 1",
            )
            return
        low, high = parameter.bounds
        for value in (low, high):
            try:
                flag.parse(setting_of(name), int(value) if parameter.integer else value)
            except RequestError as error:
                self.wrong(place, f"{name!r} can become {show(value)}: {error}")
                return

    def _normalised(self, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
        """Return the document with real numbers and named distributions, as W&B's own client takes it."""

        def tree(node: dict[str, Any], prefix: str) -> dict[str, Any]:
            result: dict[str, Any] = {}
            for key, settings in node.items():
                if "parameters" in settings:
                    result[key] = {"parameters": tree(settings["parameters"], f"{prefix}{key}.")}
                else:
                    parameter = parameters[f"{prefix}{key}"]
                    result[key] = {"distribution": parameter.distribution, **parameter.settings}
            return result

        return {**self.document, "parameters": tree(self.document["parameters"], "")}


def check_fixed(file: SweepFile, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``--fixed``, parsed, by the names of ``train``.

    Raises:
        RequestError: an unknown setting, a bad value, or a parameter that the file varies.
    """
    parsed = normalise_keys(fixed, "--fixed")
    varied = {setting_of(name.partition(".")[0]): name for name in file.space.varying}
    for name in parsed:
        if name in varied:
            raise RequestError(
                f"--fixed {name}: {file.name} varies {varied[name]} ({file.space.varying[varied[name]].describe()}); take it "
                f"out of the file, or leave --fixed {name} out"
            )
    return parsed


def check_trains(file: SweepFile, fixed: Mapping[str, Any]) -> None:
    """Refuse a sweep that would make ``train`` refuse a trial: each value, and combinations of them, are tried out.

    Raises:
        RequestError: the first combination that ``train`` refuses, in its words.
    """
    space, metric = file.space, file.metric
    extremes = _extremes(space)
    first = {name: values[0] for name, values in extremes.items()}
    points = [first | {name: value} for name, values in extremes.items() for value in values]
    if file.method == "grid":
        points = []
        for i, point in enumerate(space.grid_points()):
            if i == _MOST_CHECKED:
                break
            points.append(point)
    rng = random.Random(0)
    points += [space.draw(rng) for _ in range(_TYPICAL)] if file.method != "grid" else []
    for params in points:
        settings = file.settings(params, fixed)
        try:
            config = resolve_config({}, normalise_keys(settings, file.name))
        except RequestError as error:
            raise RequestError(f"{file.name}: train would refuse {show_params(params)}: {error}") from error
        if config.val != "holdout" and metric.name.startswith("val_"):
            lacks = (
                f"measures no {metric.name}"
                if config.val == "none"
                else f"takes {metric.name} from the test set, which selects nothing"
            )
            of_recipe = "" if "val" in settings else f" (of recipe {config.recipe})"
            raise RequestError(
                f"{file.name}: val: {config.val}{of_recipe} {lacks}; choose another metric or val: holdout"
            )


def length_notes(file: SweepFile, fixed: Mapping[str, Any]) -> list[str]:
    """Return a note for each length that varies so far that the recipe takes other values for some of them.

    Args:
        file: which :func:`check_trains` found nothing wrong with.
        fixed: settings that the file lacks.
    """
    extremes = _extremes(file.space)
    first = {name: values[0] for name, values in extremes.items()}
    notes = []
    for name, lengths in extremes.items():
        if setting_of(name) not in LENGTHS:
            continue
        settings = [file.settings(first | {name: length}, fixed) for length in lengths]
        configs = [resolve_config({}, normalise_keys(each, file.name)).to_dict() for each in settings]
        apart = {key for config in configs for key in config if config[key] != configs[0][key]} - set(LENGTHS)
        differing = sorted(apart - set(OPTION_TABLES))
        if differing:
            notes.append(
                f"{name}: the recipe has other values of {', '.join(differing)} for some of these lengths, so trials differ "
                f"in more than {name}; give {'it' if len(differing) == 1 else 'them'} a value here to compare lengths alone"
            )
    return notes


def _extremes(space: Space) -> dict[str, list[Any]]:
    """Return the values of each parameter that varies, or the ends of its range."""
    return {
        name: list(p.choices) if p.distribution.startswith("categorical") else [_whole(p, end) for end in p.bounds]
        for name, p in space.varying.items()
    }


def _whole(parameter: Parameter, value: float) -> int | float:
    return int(value) if parameter.integer else value


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


def _tail(name: str, names: Iterable[str]) -> str:
    hint = suggest(name, names)
    return f"; {hint}" if hint else ""
