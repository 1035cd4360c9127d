"""A sweep that exists: its plan, its storage, and what one can ask of it and do to it."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import secrets
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

from vitctl.config import OPTION_TABLES, normalise_keys, resolve_config
from vitctl.errors import RequestError, RunFailed
from vitctl.files import write_text
from vitctl.recipes import RECIPES
from vitctl.registry import suggest
from vitctl.sweep.file import SweepFile, parse_sweep_file
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
    storage_sentences,
)
from vitctl.units import mask_passwords, parse_duration

RECORD = "sweep.json"
_PLAN, _CONTROL = "vitctl", "control"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep was created with; it never changes.

    Attributes:
        id: eight letters and digits.
        file: the sweep file.
        fixed: settings of ``train`` by ``--fixed``.
        run_cap: the most trials, or None.
        sampler: a name of ``SAMPLERS``.
        pruner: a name of ``PRUNERS``, with options.
        seed: of the draws.
        created: when, in UTC.
        storage: its URL without a password.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "format": 1,
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
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            RequestError: it is damaged, or of another version.
        """
        try:
            file = parse_sweep_file(values["text"], values["file"], f"{source} ({values['file']})")
            keys = ("id", "fixed", "run_cap", "sampler", "pruner", "seed", "created", "storage")
            return cls(file=file, **{key: values[key] for key in keys})
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{source} is no sweep's record, or that of another version: {error!r}") from error

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """Return which of the options that were given, by name, this sweep was not created with, a line each."""
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


@dataclass(frozen=True)
class TrialRow:
    """A trial as it is listed.

    Attributes:
        trial: the number that it is called by.
        state: complete, pruned, failed, running or waiting.
        params: what varies.
        value: the best that it reached, or None.
        epochs: how many values it has reported.
        run: its run's folder, or None.
        agent: host and process of its agent, or None.
        seconds: how long it has taken, or None.
        failure: why training failed, or None.
        attempts: how often it was begun.
        failure_kind: kind of that failure, see :data:`vitctl.errors.Kind`; None if an earlier version recorded it.
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
        plan: what it was created with.
        url: of the storage, with the password if there is one.
        runs_dir: where run folders lie; the sweep's own folder is ``sweeps/<id>`` in it.
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
    def file(self) -> SweepFile:
        """The sweep file, as it was when the sweep was created."""
        return self.plan.file

    # -- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, plan: SweepPlan, url: URL, runs_dir: Path) -> Sweep:
        """Make the sweep's folder, storage and study.

        Raises:
            RequestError: folder or storage cannot be made.
        """
        sweep = cls(plan, url, runs_dir)
        build_sampler(plan.sampler, plan.seed)
        build_pruner(plan.pruner, plan.file)
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"cannot make the sweep's folder {sweep.folder}: {error.strerror}; choose another --runs-dir"
            ) from error
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, sweep.folder, ignore_errors=True)  # of no use by half
            sweep._create_study()
            sweep.keep_record()
            undo.pop_all()
        return sweep

    def _create_study(self) -> None:
        plan, url = self.plan, self.url
        storage = open_storage(url, create=True)
        with storage_sentences(url, RequestError):
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
        """Write the plan into the sweep's folder, where it is found without asking the storage.

        Raises:
            RequestError: the folder cannot be written.
        """
        path = self.folder / RECORD
        if path.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.plan.to_dict(), indent=2) + "\n")
        except (OSError, RunFailed) as error:
            raise RequestError(f"cannot write {path} ({error}); choose another --runs-dir") from error

    # -- the study ---------------------------------------------------------------------------------------------------

    def study(self, storage: TrialStorage, *, sampler: BaseSampler | None = None, pruner: bool = False) -> Study:
        """Return the sweep's study in ``storage``.

        Raises:
            RequestError: the storage does not have it.
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
                f"the sweep {self.id} is not in the storage {redacted(self.url)}; it was deleted, or --storage names another"
            ) from None

    def sampler(self, study: list[Study]) -> SpaceSampler:
        """Return what proposes parameters; ``study`` is filled in later, as a study wants its sampler first."""
        file = self.file
        base = build_sampler(self.plan.sampler, self.plan.seed) if file.method == "bayes" else None
        return SpaceSampler(file.space, file.method, self.plan.seed, base, lambda: study[0].get_trials(deepcopy=False))

    def open(self, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> TrialStorage:
        """Open the storage for an agent.

        Raises:
            RequestError: it cannot be had.
        """
        return open_storage(self.url, heartbeat=heartbeat, grace=grace)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Study]:
        """Give the study while no agent claims a trial.

        Raises:
            RequestError: the storage cannot be had.
        """
        storage = open_storage(self.url, heartbeat=HEARTBEAT)
        try:
            with storage_sentences(self.url), ClaimLock(self.url, self.id):
                yield self.study(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()

    @property
    def reader(self) -> Study:
        """The study, to look at."""
        if self._reader is None:
            self._reader = self.study(open_storage(self.url))
        return self._reader

    def ledger(self, study: Study | None = None) -> Ledger:
        """Return the trials.

        Raises:
            RunFailed: the storage failed.
        """
        with storage_sentences(self.url):
            return Ledger.of((study or self.reader).get_trials(deepcopy=False), self.file.space)

    # -- control -----------------------------------------------------------------------------------------------------

    def control(self, study: Study | None = None) -> Control:
        """Return whether it is running, paused or stopped."""
        with storage_sentences(self.url):
            control: Control = (study or self.reader).user_attrs.get(_CONTROL, "running")
            return control

    def set_control(self, word: Control) -> None:
        """Set whether it is running, paused or stopped; agents look within seconds."""
        with self.changing() as study:
            study.set_user_attr(_CONTROL, word)

    def used(self, ledger: Ledger) -> int:
        """Return how many trials count towards ``run_cap``."""
        return len(ledger.trials)

    def left(self, ledger: Ledger) -> int | None:
        """Return how many parameter sets may still be proposed; None when there is no end."""
        if ledger.exhausted:
            return 0
        file = self.file
        size = file.space.grid_size if file.method == "grid" else file.space.size
        ends = [] if size is None else [size - ledger.seen]
        if self.plan.run_cap is not None:
            ends.append(self.plan.run_cap - self.used(ledger))
        return max(0, min(ends)) if ends else None

    def target_reached(self, ledger: Ledger) -> bool:
        """Whether a trial has reached the metric's target."""
        metric = self.file.metric
        return metric.target is not None and any(
            metric.reached(value) for trial in ledger.trials for value in history_of(trial)
        )

    def state(self, ledger: Ledger, control: Control) -> SweepState:
        """Return running, paused, stopped, finished, or ``waiting``: for an agent."""
        if not ledger.count("running") and (
            self.target_reached(ledger) or (self.left(ledger) == 0 and not ledger.count("waiting"))
        ):
            return "finished"
        if control != "running":
            return control
        return "running" if ledger.count("running") else "waiting"

    # -- trials ------------------------------------------------------------------------------------------------------

    def value_of(self, trial: FrozenTrial) -> float | None:
        """Return the best finite value that a trial has reached."""
        history = history_of(trial)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            history.append(trial.value)
        return self.file.metric.best(history) if history else None

    def row(self, trial: FrozenTrial, ledger: Ledger) -> TrialRow:
        """Return a trial as it is listed."""
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
        """Return all trials, in the order in which they were first begun."""
        ledger = ledger or self.ledger()
        return sorted((self.row(trial, ledger) for trial in ledger.trials), key=lambda row: row.trial)

    def top(self, count: int, ledger: Ledger | None = None) -> list[TrialRow]:
        """Return the best trials, complete or pruned, best first."""
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
            raise RequestError(f"no trial of the sweep {self.id} is complete yet; see vitctl sweep status {self.id}")
        return min(rows, key=lambda row: (sign * (row.value or 0.0), row.trial))

    def settings(self, row: TrialRow) -> dict[str, Any]:
        """Return what ``train --config`` repeats a trial with."""
        return self.file.settings(row.params, self.plan.fixed)

    # -- changing what comes -----------------------------------------------------------------------------------------

    def enqueue(self, given: Mapping[str, Any]) -> int:
        """Have ``given`` tried next; what is not given is proposed as usual. Return the trial's number.

        Raises:
            RequestError: a parameter that does not vary, a value off the file's grid or out of its range, a set that was
                tried already, or no room under ``run_cap``.
        """
        params = {name: self._checked(name, value) for name, value in given.items()}
        space, file = self.file.space, self.file
        if file.method == "grid" and not any(
            all(point[name] == value for name, value in params.items()) for point in space.grid_points()
        ):
            raise RequestError(f"the grid of {file.name} has no such point")
        with self.changing() as study:
            ledger = self.ledger(study)
            if self.target_reached(ledger):
                raise RequestError(f"the sweep {self.id} has reached its target, and begins no more trials")
            if self.left(ledger) == 0:
                raise RequestError(
                    f"the sweep {self.id} has no room for another trial: {self.used(ledger)} of "
                    f"{self.plan.run_cap or ledger.seen} are used"
                )
            if params.keys() >= space.varying.keys():
                for trial in ledger.trials:
                    known = params_of(trial)
                    if known.keys() >= params.keys() and space.key(known) == space.key(params):
                        raise RequestError(
                            f"trial {root_of(trial)} has these parameters already ({ledger.state(trial)})"
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
                        f"every point of the grid of {file.name} with {show_params(params)} was tried already"
                    )
            study.enqueue_trial(params)
            return max(trial.number for trial in study.get_trials(deepcopy=False))

    def _checked(self, name: str, value: Any) -> Value:
        """Return a value of one parameter, as the file allows it."""
        varying = self.file.space.varying
        if name not in varying:
            constant = self.file.space.constants.get(name)
            hint = f", which is {show(constant)} in all trials" if name in self.file.space.constants else ""
            raise RequestError(f"{self.file.name} does not vary {name!r}{hint}", hint=suggest(name, varying))
        parameter = varying[name]
        if parameter.distribution in ("categorical", "categorical_w_probabilities"):
            for choice in parameter.choices:
                if value == choice or str(value).lower() == show(choice).lower() or str(value) == str(choice):
                    return choice
            with contextlib.suppress(ValueError, TypeError):
                for choice in parameter.choices:
                    if isinstance(choice, (int, float)) and float(value) == choice:
                        return choice
            raise RequestError(f"{name}={value} is not among {parameter.describe()}")
        try:
            number = float(value)
        except (ValueError, TypeError):
            raise RequestError(f"{name} takes a number, not {value!r}") from None
        low, high = parameter.bounds
        if not math.isfinite(number) or not low <= number <= high:
            raise RequestError(f"{name}={show(number)} is out of range: {parameter.describe()}")
        if parameter.step is None:
            return number
        near = parameter.snap(number)
        on_grid = parameter.grid() if self.file.method == "grid" else None
        if on_grid is not None:
            near = min(on_grid, key=lambda candidate: abs(float(candidate or 0) - number))  # type: ignore[assignment]
        if not math.isclose(near, number, rel_tol=1e-9, abs_tol=1e-15):
            raise RequestError(
                f"{name}={show(number)} is not on the file's grid ({parameter.describe()}); {show(near)} is"
            )
        return near

    def retry_failed(self, trials: Sequence[int] | None = None) -> list[int]:
        """Have failed trials tried again, from their checkpoints where there are some, and return their numbers.

        Args:
            trials: these; None for all.

        Raises:
            RequestError: one of ``trials`` is not there or has not failed.
        """
        with self.changing() as study:
            ledger = self.ledger(study)
            called = {root_of(trial): trial for trial in ledger.trials}
            for number in trials or ():
                if number not in called:
                    raise RequestError(f"the sweep {self.id} has no trial {number}")
                if ledger.state(called[number]) != "failed":
                    raise RequestError(f"trial {number} has not failed: it is {ledger.state(called[number])}")
            failed = [
                number
                for number, trial in called.items()
                if ledger.state(trial) == "failed" and (trials is None or not trials or number in trials)
            ]
            for number in failed:
                again(study, called[number], self.file.space)
            return sorted(failed)


def again(study: Study, trial: FrozenTrial, space: Space) -> None:
    """Put a trial that has ended into the queue once more; the new one names the old one as an attempt before it."""
    user, system = retry_attributes(trial)
    whole = trial.params.keys() >= space.varying.keys()
    if whole:
        system.pop(FIXED, None)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params if whole else {},
            distributions=trial.distributions if whole else {},
            user_attrs=user,
            system_attrs=system,
        )
    )


def new_id() -> str:
    """Return an id such as W&B's."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


# -- finding ----------------------------------------------------------------------------------------------------------


def find_sweeps(runs_dir: Path, storage: str | None = None) -> list[Sweep]:
    """Return all sweeps below ``runs_dir``, and those of ``storage`` where one is named, newest first.

    Raises:
        RequestError: the storage cannot be had.
    """
    url = parse_url(storage) if storage else None
    found: dict[str, Sweep] = {}
    if url is not None:
        reader = open_storage(url)
        with storage_sentences(url, RequestError):
            for study in optuna.get_all_study_summaries(reader, include_best_trial=False):
                if _PLAN in study.user_attrs:
                    with contextlib.suppress(RequestError):  # another version's: no reason not to find the others
                        plan = SweepPlan.from_dict(study.user_attrs[_PLAN], redacted(url))
                        found[plan.id] = Sweep(plan, url, runs_dir)
        reader.engine.dispose()
    for record in runs_dir.glob(f"sweeps/*/{RECORD}"):
        try:
            plan = SweepPlan.from_dict(json.loads(record.read_text(encoding="utf-8")), str(record))
        except (OSError, ValueError, RequestError):
            continue  # another version's, or damaged: it is no reason not to find the others
        if url is None or redacted(parse_url(plan.storage)) == redacted(url):
            found.setdefault(plan.id, Sweep(plan, url or own_url(plan, record), runs_dir))
    return sorted(found.values(), key=lambda sweep: sweep.plan.created, reverse=True)


def own_url(plan: SweepPlan, record: Path) -> URL:
    """Return the URL of a sweep's storage; a SQLite file in the sweep's folder moves along with it."""
    url = parse_url(plan.storage)
    file = sqlite_file(url)
    beside = record.parent / file.name if file else None
    if file is not None and beside is not None and not file.exists() and beside.exists():
        return URL.create("sqlite", database=str(beside.absolute()))
    return url


def _place(runs_dir: Path, storage: str | None) -> str:
    """Return the location that was searched for sweeps, for messages."""
    return mask_passwords(storage) if storage else str(runs_dir / "sweeps")


def is_file(target: str) -> bool:
    """Whether what names a sweep is a file, not an id."""
    return target.endswith((".yaml", ".yml", ".json")) or Path(target).is_file()


def find_sweep(target: str, runs_dir: Path, storage: str | None = None) -> Sweep:
    """Return the sweep with the id ``target``, or the newest that was created from the file ``target``.

    Raises:
        RequestError: there is none.
    """
    sweeps = find_sweeps(runs_dir, storage)
    if is_file(target):
        name = Path(target).name
        for sweep in sweeps:
            if sweep.file.name == name:
                return sweep
        raise RequestError(
            f"no sweep in {_place(runs_dir, storage)} was created from {name}; create one: vitctl sweep create {target}"
        )
    for sweep in sweeps:
        if sweep.id == target:
            return sweep
    raise RequestError(
        f"no sweep {target!r} in {_place(runs_dir, storage)}",
        hint=suggest(target, [sweep.id for sweep in sweeps], "list sweeps with vitctl sweep list"),
    )


def best_settings(target: str, runs_dir: Path = Path("runs"), storage: str | None = None) -> dict[str, Any]:
    """Return the settings of ``train``, by name, of a sweep's best trial: its parameters, constants and ``--fixed``.

    What the recipe takes for runs as short as the trials were is among them: the parameters were chosen with it, and a
    longer run with them is to have it too.

    Args:
        target: an id, or the file that the sweep was created from.
        runs_dir: where run folders lie.
        storage: of the sweep, when it is not in its folder.

    Raises:
        RequestError: no such sweep, or none of its trials is complete.
    """
    sweep = find_sweep(target, runs_dir, storage)
    settings = normalise_keys(sweep.settings(sweep.best()), f"the sweep {sweep.id}")
    config = resolve_config({}, settings)
    seconds = parse_duration(config.max_time, "max_time") if config.max_time else None
    for name in RECIPES[config.recipe].by_length(seconds, settings.get("epochs")):
        if name not in settings:
            settings[name] = getattr(config, name)
            if (table := f"{name}_options") in OPTION_TABLES:
                settings[table] = {**getattr(config, table), **settings.get(table, {})}
    return settings
