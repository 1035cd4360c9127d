"""An existing sweep: its plan, its storage, and the operations on it."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from vitctl.config import NET_FLAGS, OPTION_TABLES, free_settings, normalise_keys, resolve_config, setting_of
from vitctl.errors import RequestError, RunFailed
from vitctl.files import write_text
from vitctl.recipes import RECIPES
from vitctl.registry import suggest
from vitctl.sweep.file import SweepFile, parameter_name, parse_sweep_file
from vitctl.sweep.ledger import FAILURE, FAILURE_KIND, FIXED, RUN, Ledger, params_of, retry_attributes, root_of
from vitctl.sweep.optuna_parts import build_pruner, build_sampler, history_of
from vitctl.sweep.sampler import SpaceSampler
from vitctl.sweep.space import Params, Space, Value, show, show_params
from vitctl.sweep.states import Control, SweepState
from vitctl.sweep.states import TrialState as TrialStatus
from vitctl.sweep.storage import (
    GRACE,
    HEARTBEAT,
    ClaimLock,
    TrialStorage,
    open_storage,
    parse_url,
    redacted,
    sqlite_file,
    translated_errors,
)
from vitctl.units import mask_passwords, parse_duration, plural

RECORD = "sweep.json"
_PLAN, _CONTROL = "vitctl", "control"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class SweepPlan:
    """The options of a sweep, which never change after its creation.

    Attributes:
        id: eight letters and digits.
        file: the sweep file.
        fixed: settings of ``--fixed``.
        run_cap: maximum number of trials, or None.
        sampler: a name in ``SAMPLERS``.
        pruner: a name in ``PRUNERS``, with options.
        seed: seeds the sampler.
        created: time of creation in UTC, in ISO 8601 format.
        storage: URL of the storage, without a password.
        format: version of the record; trials of version 1 hold out by position and read full value ranges, and its
            ``method: random`` draws without replacement; recipes of versions 1 and 2 choose no hybrid networks.
    """

    id: str
    file: SweepFile
    fixed: Mapping[str, Any]
    run_cap: int | None
    sampler: str
    pruner: str
    seed: int
    created: str
    storage: str
    format: int = 3

    @property
    def replacement(self) -> bool:
        """Whether parameter sets are drawn with replacement, as by W&B's ``method: random``."""
        return self.file.method == "random" and self.format > 1

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial, as in a ``--config`` file; ``params`` are the varied parameters."""
        settings = self.file.settings(params, self.fixed)
        implied = {"holdout_by": "position", "value_range": "full"} if self.format == 1 else {}
        return {**implied, **settings, **(network_before_hybrids(settings) if self.format < 3 else {})}

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "format": self.format,
            "id": self.id,
            "file": self.file.name,
            "fixed": dict(self.fixed),
            "run_cap": self.run_cap,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            "created": self.created,
            "storage": self.storage,
            "text": self.file.text,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> SweepPlan:
        """Restore a plan from the output of :meth:`to_dict`.

        Raises:
            RequestError: the record is damaged, or from another version of vitctl.
        """
        try:
            file = parse_sweep_file(values["text"], values["file"], f"{source} ({values['file']})")
            keys = ("id", "fixed", "run_cap", "sampler", "pruner", "seed", "created", "storage", "format")
            return cls(file=file, **{key: values[key] for key in keys})
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{source} is damaged or from another version of vitctl: {error!r}",
                hint="create the sweep again: vitctl sweep create FILE",
            ) from error

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """Return one line for each option in ``other`` that differs from this plan."""
        lines = []
        for name, value in other.items():
            mine = getattr(self, name)
            if name == "fixed":
                for key in sorted({*mine, *value}):
                    if mine.get(key) != value.get(key):
                        lines.append(f"--fixed {key}: {show(mine.get(key))} -> {show(value.get(key))}")
            elif mine != value:
                lines.append(f"--{name.replace('_', '-')}: {show(mine)} -> {show(value)}")
        return lines


_FAST = {"conv_layers": 3}
_SPRINT = {"depth": 1, "conv_width": 32, **_FAST}
_BEFORE_HYBRIDS: Mapping[str, Mapping[float | None, tuple[str, Mapping[str, int]]]] = {
    "default": {None: ("cct_2", {})},
    "sprint": {None: ("cct_2", _SPRINT)},
    "fast": {
        None: ("cct_2", _FAST),
        90: ("cct_2", _SPRINT),
        1200: ("cct_4", _FAST),
        math.inf: ("cct_4", {**_FAST, "conv_width": 96, "embed_dim": 192, "num_heads": 3}),
    },
}
"""The networks of recipes in sweeps of versions 1 and 2, by upper limit of ``--max-time`` in seconds; None for no limit."""


def network_before_hybrids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``net`` and ``net_options`` of a trial without ``net`` as its recipe chose them before the hybrids.

    Args:
        settings: settings of the trial, under any of their names.

    Returns:
        Settings to add or replace, or none if the trial's settings, or another recipe, choose the network.
    """
    named = {setting_of(name): value for name, value in settings.items()}
    by_time = _BEFORE_HYBRIDS.get(str(named.get("recipe", "default")))
    if by_time is None or not named.keys().isdisjoint(("net", *NET_FLAGS)):
        return {}
    limits = []
    if (given := named.get("max_time")) is not None:
        seconds = parse_duration(given, "max_time")
        limits = [limit for limit in by_time if limit is not None and seconds <= limit]
    net, options = by_time[min(limits) if limits else None]
    options = {**options, **named.get("net_options", {})}
    return {"net": net, **({"net_options": options} if options else {})}


@dataclass(frozen=True)
class TrialRow:
    """A row in a list of trials.

    Attributes:
        trial: number of the first attempt, which identifies the trial.
        params: values of the varied parameters.
        value: best value of the metric so far, or None.
        epochs: number of reported values.
        run: run folder, or None.
        agent: host and process id of the agent, or None.
        seconds: duration so far, or None.
        failure: why training failed, or None.
        failure_kind: kind of the failure, see :data:`vitctl.errors.Kind`; None if an earlier version recorded it.
    """

    trial: int
    state: TrialStatus
    params: Params
    value: float | None
    epochs: int
    run: str | None
    agent: str | None
    seconds: float | None
    failure: str | None
    attempts: int
    failure_kind: str | None = None


class Sweep:
    """A sweep in its storage.

    Args:
        plan: options of the sweep.
        url: URL of the storage, with the password if it has one.
        runs_dir: folder of run folders, and of the sweep's folder ``sweeps/ID``.
    """

    def __init__(self, plan: SweepPlan, url: URL, runs_dir: Path) -> None:
        self.plan = plan
        self.url = url
        self.runs_dir = runs_dir
        self.folder = runs_dir / "sweeps" / plan.id
        self._reader: Study | None = None

    @property
    def id(self) -> str:
        """The sweep's id."""
        return self.plan.id

    @property
    def place(self) -> str:
        """The flag, after a space, with which commands find this sweep; empty in the usual folder."""
        return "" if self.runs_dir == Path("runs") else f" --runs-dir {shlex.quote(str(self.runs_dir))}"

    @property
    def agent_command(self) -> str:
        """The command that runs trials of this sweep, for hints."""
        return shlex.join(self.command("agent"))

    def command(self, name: str) -> list[str]:
        """Return the words of a command on this sweep, such as ``best``."""
        return ["vitctl", "sweep", name, self.id, *shlex.split(self.place)]

    def format_value(self, value: float | None) -> str:
        """Format a value of the metric; accuracies are in percent."""
        if value is None:
            return "-"
        return f"{value:.2f} %" if self.file.metric.name.endswith("_acc") else show(float(value))

    @property
    def file(self) -> SweepFile:
        """The sweep file as of the sweep's creation."""
        return self.plan.file

    # -- creation ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, plan: SweepPlan, url: URL, runs_dir: Path) -> Sweep:
        """Create the sweep's folder, storage and study.

        Raises:
            RequestError: the folder or the storage cannot be created.
        """
        sweep = cls(plan, url, runs_dir)
        build_sampler(plan.sampler, plan.seed)
        build_pruner(plan.pruner, plan.file)
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"cannot create {sweep.folder}: {error.strerror}", hint="use another --runs-dir"
            ) from error
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, sweep.folder, ignore_errors=True)  # leave no incomplete sweep behind
            sweep._create_study()
            sweep.keep_record()
            undo.pop_all()
        return sweep

    def _create_study(self) -> None:
        plan, url = self.plan, self.url
        storage = open_storage(url, create=True)
        with translated_errors(url, RequestError):
            study = optuna.create_study(
                storage=storage,
                study_name=plan.id,
                direction=StudyDirection.MAXIMIZE if plan.file.metric.sign < 0 else StudyDirection.MINIMIZE,
            )
            study.set_metric_names([plan.file.metric.name])
            study.set_user_attr(_PLAN, plan.to_dict())
            study.set_user_attr(_CONTROL, "running")
            storage.remove_session()
            storage.engine.dispose()

    def keep_record(self) -> None:
        """Write the plan to the sweep's folder, so that the sweep can be found without its storage.

        Raises:
            RequestError: the folder is not writable.
        """
        path = self.folder / RECORD
        if path.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.plan.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise RequestError(
                f"cannot create {self.folder}: {error.strerror}", hint="use another --runs-dir"
            ) from error
        except RunFailed as error:
            raise RequestError(error.message, hint=error.hint or "use another --runs-dir") from error

    # -- the study ---------------------------------------------------------------------------------------------------

    def study(self, storage: TrialStorage, *, sampler: BaseSampler | None = None, pruner: bool = False) -> Study:
        """Return the sweep's study in ``storage``.

        Raises:
            RequestError: the storage does not contain the sweep.
        """
        try:
            return optuna.load_study(
                study_name=self.id,
                storage=storage,
                sampler=sampler or optuna.samplers.RandomSampler(),
                pruner=build_pruner(self.plan.pruner, self.file) if pruner else None,
            )
        except KeyError:
            raise RequestError(
                f"sweep {self.id} not found in storage {redacted(self.url)}",
                hint="use another --storage, or list all sweeps: vitctl sweep list",
            ) from None

    def sampler(self, study: list[Study]) -> SpaceSampler:
        """Return the sweep's sampler.

        Args:
            study: an empty list, to which the caller adds the study; a study needs its sampler first.
        """
        file = self.file
        base = build_sampler(self.plan.sampler, self.plan.seed) if file.method == "bayes" else None
        return SpaceSampler(
            file.space,
            file.method,
            self.plan.seed,
            base,
            lambda: study[0].get_trials(deepcopy=False),
            replacement=self.plan.replacement,
        )

    def open(self, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> TrialStorage:
        """Open the storage for an agent; see :func:`~vitctl.sweep.storage.open_storage`."""
        return open_storage(self.url, heartbeat=heartbeat, grace=grace)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Study]:
        """Yield the study while holding the claim lock, so that no agent claims a trial meanwhile.

        Raises:
            RequestError: the storage cannot be opened.
            RunFailed: the storage failed.
        """
        storage = open_storage(self.url, heartbeat=HEARTBEAT)
        try:
            with translated_errors(self.url), ClaimLock(self.url, self.id):
                yield self.study(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()

    @property
    def reader(self) -> Study:
        """The study, for reading."""
        if self._reader is None:
            self._reader = self.study(open_storage(self.url))
        return self._reader

    def ledger(self, study: Study | None = None) -> Ledger:
        """Return the trials.

        Raises:
            RunFailed: the storage failed.
        """
        with translated_errors(self.url):
            return Ledger.of((study or self.reader).get_trials(deepcopy=False), self.file.space)

    # -- control -----------------------------------------------------------------------------------------------------

    def control(self, study: Study | None = None) -> Control:
        """Return the state that the user requested."""
        with translated_errors(self.url):
            control: Control = (study or self.reader).user_attrs.get(_CONTROL, "running")
            return control

    def set_control(self, word: Control) -> None:
        """Request a state; agents notice it within seconds."""
        with self.changing() as study:
            study.set_user_attr(_CONTROL, word)

    def used(self, ledger: Ledger) -> int:
        """Return the number of trials that count towards ``run_cap``."""
        return len(ledger.trials)

    def left(self, ledger: Ledger) -> int | None:
        """Return the number of trials that can still be started; None if unlimited."""
        if ledger.exhausted:
            return 0
        file = self.file
        size = file.space.grid_size if file.method == "grid" else None if self.plan.replacement else file.space.size
        ends = [] if size is None else [size - ledger.seen]
        if self.plan.run_cap is not None:
            ends.append(self.plan.run_cap - self.used(ledger))
        return max(0, min(ends)) if ends else None

    def target_reached(self, ledger: Ledger) -> bool:
        """Return whether a trial has reached the metric's target."""
        metric = self.file.metric
        return metric.target is not None and any(
            metric.reached(value) for trial in ledger.trials for value in history_of(trial)
        )

    def state(self, ledger: Ledger, control: Control) -> SweepState:
        """Return the state of the sweep."""
        if not ledger.count("running") and (
            self.target_reached(ledger) or (self.left(ledger) == 0 and not ledger.count("waiting"))
        ):
            return "finished"
        if control != "running":
            return control
        return "running" if ledger.count("running") else "waiting"

    # -- trials ------------------------------------------------------------------------------------------------------

    def value_of(self, trial: FrozenTrial) -> float | None:
        """Return the best finite value of a trial, or None."""
        history = history_of(trial)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            history.append(trial.value)
        return self.file.metric.best(history) if history else None

    def row(self, trial: FrozenTrial, ledger: Ledger) -> TrialRow:
        """Return a trial as a row."""
        start, end = trial.datetime_start, trial.datetime_complete
        state = ledger.state(trial)
        if state == "running" and start is not None:
            end = datetime.datetime.now()
        seconds = (end - start).total_seconds() if start and end and state != "waiting" else None
        attributes = trial.user_attrs
        return TrialRow(
            trial=root_of(trial),
            state=state,
            params={name: params_of(trial)[name] for name in self.file.order if name in params_of(trial)},
            value=self.value_of(trial),
            epochs=len(history_of(trial)),
            run=attributes.get(RUN),
            agent=attributes.get("agent") if state == "running" else None,
            seconds=seconds,
            failure=attributes.get(FAILURE),
            failure_kind=attributes.get(FAILURE_KIND),
            attempts=len(trial.system_attrs.get("retry_history", ())) + (trial.state != TrialState.WAITING),
        )

    def rows(self, ledger: Ledger | None = None) -> list[TrialRow]:
        """Return all trials, by number."""
        ledger = ledger or self.ledger()
        return sorted((self.row(trial, ledger) for trial in ledger.trials), key=lambda row: row.trial)

    def top(self, count: int, ledger: Ledger | None = None) -> list[TrialRow]:
        """Return the ``count`` best complete or pruned trials, best first."""
        sign = self.file.metric.sign
        rows = [row for row in self.rows(ledger) if row.state in ("complete", "pruned") and row.value is not None]
        return sorted(rows, key=lambda row: (sign * (row.value or 0.0), row.trial))[:count]

    def best(self) -> TrialRow:
        """Return the best complete trial.

        Raises:
            RequestError: none is complete yet.
        """
        sign = self.file.metric.sign
        rows = [row for row in self.rows() if row.state == "complete" and row.value is not None]
        if not rows:
            raise RequestError(
                f"no trial of sweep {self.id} is complete yet", hint=f"see its progress: vitctl sweep status {self.id}"
            )
        return min(rows, key=lambda row: (sign * (row.value or 0.0), row.trial))

    def settings(self, row: TrialRow) -> dict[str, Any]:
        """Return the settings that repeat a trial with ``train --config``."""
        return self.plan.settings(row.params)

    # -- changes to the queue ----------------------------------------------------------------------------------------

    def enqueue(self, given: Mapping[str, Any]) -> int:
        """Enqueue a trial with the values in ``given`` and return its number; other parameters are sampled.

        Raises:
            RequestError: a parameter that does not vary, an invalid value, a parameter set that was already tried, or a
                sweep that starts no more trials.
        """
        called = {setting_of(name): name for name in self.file.space.varying}
        names = {name: called.get(setting_of(parameter_name(name)), name) for name in given}
        params = {names[name]: self._checked(names[name], value) for name, value in given.items()}
        space, file = self.file.space, self.file
        if file.method == "grid" and not any(
            all(point[name] == value for name, value in params.items()) for point in space.grid_points()
        ):
            raise RequestError(
                f"the grid of {file.name} has no point {show_params(params)}",
                hint=f"see its points: vitctl sweep create {file.name} --dry-run {space.grid_size}",
            )
        with self.changing() as study:
            ledger = self.ledger(study)
            if self.target_reached(ledger):
                raise RequestError(
                    f"sweep {self.id} has reached its target and starts no more trials",
                    hint=f"change target in {file.name}, then run vitctl sweep create {file.name}",
                )
            if self.left(ledger) == 0:
                used, cap = self.used(ledger), self.plan.run_cap
                if cap is not None and used >= cap:
                    raise RequestError(
                        f"sweep {self.id} is full: it has {plural(used, 'trial')}, and run_cap is {cap}",
                        hint=f"create another sweep: vitctl sweep create {file.name} --run-cap {cap + 1}",
                    )
                raise RequestError(
                    f"sweep {self.id} has already tried all {ledger.seen} parameter sets",
                    hint=f"add values to {file.name} and create another sweep: vitctl sweep create {file.name}",
                )
            if params.keys() >= space.varying.keys():
                for trial in ledger.trials:
                    known = params_of(trial)
                    if known.keys() >= params.keys() and space.key(known) == space.key(params):
                        number, state = root_of(trial), ledger.state(trial)
                        again_hint = f"retry it: vitctl sweep retry {self.id} --trial {number}"
                        raise RequestError(
                            f"trial {number} already has these parameters ({state})",
                            hint=again_hint if state == "failed" else f"use values other than {show_params(params)}",
                        )
            elif file.method == "grid":
                seen = {
                    space.key(known)
                    for trial in ledger.trials
                    if (known := params_of(trial)).keys() >= space.varying.keys()
                }
                if all(
                    space.key(point) in seen
                    for point in space.grid_points()
                    if all(point[name] == value for name, value in params.items())
                ):
                    raise RequestError(
                        f"all grid points of {file.name} with {show_params(params)} were already tried",
                        hint=f"use values other than {show_params(params)}",
                    )
            study.enqueue_trial(params)
            return max(trial.number for trial in study.get_trials(deepcopy=False))

    def _checked(self, name: str, value: Any) -> Value:
        """Return a value of a parameter, converted and checked against the file."""
        varying = self.file.space.varying
        if name not in varying:
            constants = self.file.space.constants
            in_all = f", which is {show(constants[name])} in all trials" if name in constants else ""
            raise RequestError(
                f"{self.file.name} does not vary {name!r}{in_all}",
                hint=suggest(name, varying, f"use one of: {', '.join(varying)}"),
            )
        parameter = varying[name]
        if parameter.distribution in ("categorical", "categorical_w_probabilities"):
            for choice in parameter.choices:
                if value == choice or str(value).lower() == show(choice).lower() or str(value) == str(choice):
                    return choice
            with contextlib.suppress(ValueError, TypeError):
                for choice in parameter.choices:
                    if isinstance(choice, (int, float)) and float(value) == choice:
                        return choice
            raise RequestError(
                f"{name}={value} is not a value in {self.file.name}",
                hint=f"use one of: {', '.join(show(choice) for choice in parameter.choices)}",
            )
        low, high = parameter.bounds
        in_range = f"use a number from {show(low)} to {show(high)}"
        try:
            number = float(value)
        except (ValueError, TypeError):
            raise RequestError(f"{name} takes a number, not {value!r}", hint=in_range) from None
        if not math.isfinite(number) or not low <= number <= high:
            raise RequestError(f"{name}={show(number)} is out of range ({parameter.describe()})", hint=in_range)
        if parameter.step is None:
            return number
        near = parameter.snap(number)
        on_grid = parameter.grid() if self.file.method == "grid" else None
        if on_grid is not None:
            near = min(on_grid, key=lambda candidate: abs(float(candidate or 0) - number))  # type: ignore[assignment]
        if not math.isclose(near, number, rel_tol=1e-9, abs_tol=1e-15):
            raise RequestError(
                f"{name}={show(number)} is not a value of {parameter.describe()}",
                hint=f"use {name}={show(near)}",
            )
        return near

    def retry_failed(self, trials: Sequence[int] | None = None) -> list[int]:
        """Enqueue failed trials again and return their numbers; they resume from their checkpoints, if any.

        Args:
            trials: numbers of the trials; None for all failed trials.

        Raises:
            RequestError: one of ``trials`` does not exist or has not failed.
        """
        with self.changing() as study:
            ledger = self.ledger(study)
            called = {root_of(trial): trial for trial in ledger.trials}
            for number in trials or ():
                if number not in called:
                    raise RequestError(
                        f"sweep {self.id} has no trial {number}", hint=f"list its trials: vitctl sweep export {self.id}"
                    )
                if ledger.state(called[number]) != "failed":
                    raise RequestError(
                        f"trial {number} is {ledger.state(called[number])}, not failed",
                        hint=f"retry all failed trials: vitctl sweep retry {self.id} --failed",
                    )
            failed = [
                number
                for number, trial in called.items()
                if ledger.state(trial) == "failed" and (trials is None or not trials or number in trials)
            ]
            for number in failed:
                retry_trial(study, called[number], self.file.space)
            return sorted(failed)


def retry_trial(study: Study, trial: FrozenTrial, space: Space) -> None:
    """Enqueue another attempt at a trial that has ended; it lists the earlier attempts in its attributes."""
    user, system = retry_attributes(trial)
    complete = trial.params.keys() >= space.varying.keys()
    if complete:
        system.pop(FIXED, None)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params if complete else {},
            distributions=trial.distributions if complete else {},
            user_attrs=user,
            system_attrs=system,
        )
    )


def new_id() -> str:
    """Return a new id: eight random letters and digits, like W&B's."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def now() -> str:
    """Return the time in UTC in ISO 8601 format, in milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


# -- lookup -----------------------------------------------------------------------------------------------------------


def find_sweeps(runs_dir: Path, storage: str | None = None) -> list[Sweep]:
    """Return all sweeps below ``runs_dir``, or those in ``storage`` if given, newest first.

    Raises:
        RequestError: the storage cannot be opened.
    """
    url = parse_url(storage) if storage else None
    found: dict[str, Sweep] = {}
    if url is not None:
        reader = open_storage(url)
        with translated_errors(url, RequestError):
            for study in optuna.get_all_study_summaries(reader, include_best_trial=False):
                if _PLAN in study.user_attrs:
                    with contextlib.suppress(RequestError):  # skip sweeps of other versions
                        plan = SweepPlan.from_dict(study.user_attrs[_PLAN], redacted(url))
                        found[plan.id] = Sweep(plan, url, runs_dir)
        reader.engine.dispose()
    for record in runs_dir.glob(f"sweeps/*/{RECORD}"):
        try:
            plan = SweepPlan.from_dict(json.loads(record.read_text(encoding="utf-8")), str(record))
        except (OSError, ValueError, RequestError):
            continue  # skip damaged records and those of other versions
        if url is None or redacted(parse_url(plan.storage)) == redacted(url):
            found.setdefault(plan.id, Sweep(plan, url or own_url(plan, record), runs_dir))
    return sorted(found.values(), key=lambda sweep: sweep.plan.created, reverse=True)


def own_url(plan: SweepPlan, record: Path) -> URL:
    """Return the URL of a sweep's storage; a SQLite file that was moved with the sweep's folder is found there."""
    url = parse_url(plan.storage)
    file = sqlite_file(url)
    beside = record.parent / file.name if file else None
    if file is not None and beside is not None and not file.exists() and beside.exists():
        return URL.create("sqlite", database=str(beside.absolute()))
    return url


def _place(runs_dir: Path, storage: str | None) -> str:
    """Describe where sweeps were searched, for messages."""
    return mask_passwords(storage) if storage else str(runs_dir / "sweeps")


def is_file(target: str) -> bool:
    """Return whether ``target`` is a file, not an id."""
    return target.endswith((".yaml", ".yml", ".json")) or Path(target).is_file()


def find_sweep(target: str, runs_dir: Path, storage: str | None = None) -> Sweep:
    """Return the sweep with the id ``target``, or the newest sweep of the file ``target``.

    Raises:
        RequestError: no such sweep.
    """
    sweeps = find_sweeps(runs_dir, storage)
    if is_file(target):
        name = Path(target).name
        for sweep in sweeps:
            if sweep.file.name == name:
                return sweep
        raise RequestError(
            f"no sweep of {name} found in {_place(runs_dir, storage)}", hint=f"create one: vitctl sweep create {target}"
        )
    for sweep in sweeps:
        if sweep.id == target:
            return sweep
    raise RequestError(
        f"sweep {target!r} not found in {_place(runs_dir, storage)}",
        hint=suggest(target, [sweep.id for sweep in sweeps], "list all sweeps: vitctl sweep list"),
    )


def best_settings(target: str, runs_dir: Path = Path("runs"), storage: str | None = None) -> dict[str, Any]:
    """Return the settings of a sweep's best trial: its parameters, the file's constants and ``--fixed``.

    They include the settings that the recipe chose for runs as short as the trials, and for folders of images the
    values that a run would fit to their number. The parameters were selected with these settings, so a longer run must
    keep them.

    Args:
        target: id or file of the sweep.
        runs_dir: folder of run folders and sweeps.
        storage: URL of the storage, if it is not in the sweep's folder.

    Raises:
        RequestError: no such sweep, or none of its trials is complete.
    """
    sweep = find_sweep(target, runs_dir, storage)
    settings = normalise_keys(sweep.settings(sweep.best()), f"sweep {sweep.id}")
    config = resolve_config({}, settings)
    seconds = parse_duration(config.max_time, "max_time") if config.max_time else None
    of_length = RECIPES[config.recipe].by_length(seconds, settings.get("epochs"))
    for name in (*of_length, *free_settings(config, settings)):
        if name not in settings:
            settings[name] = getattr(config, name)
            if (table := f"{name}_options") in OPTION_TABLES:
                settings[table] = {**getattr(config, table), **settings.get(table, {})}
    return settings
