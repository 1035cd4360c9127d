"""Optimizer comparisons: ordinary training runs of each optimizer with each seed, which resume when interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitctl import devices
from vitctl.benchmark.cost import OptimizerCost, measure_costs
from vitctl.benchmark.plan import ComparisonPlan, Contestant, differences
from vitctl.config import TrainConfig, is_run
from vitctl.data.manifest import DATA_SHA256, MANIFEST, require_unchanged
from vitctl.errors import Interrupted, NotFinite, RequestError, RunFailed
from vitctl.files import new_folder, write_text
from vitctl.observer import SILENT, Observer
from vitctl.process.child import Child, LifeLine, Metrics, TrialRun, job_environments, train_command, wait_until_free
from vitctl.process.signals import StopRequest
from vitctl.training import start
from vitctl.training.preflight import check_config
from vitctl.training.run_folder import RunFolder, check_folder_name
from vitctl.training.setup import open_data

FOLDER, RECORD = "comparisons", "comparison.json"
POLL_SECONDS = 0.2

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A run of a comparison, finished or not.

    Attributes:
        label: label of the contestant.
        name: name of the run's folder.
        searching: whether the run belongs to the learning-rate search.
    """

    label: str
    name: str
    config: TrainConfig
    searching: bool = False

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        rate = f", lr {self.config.lr:g}" if self.searching else ""
        return f"{self.label}{rate}, seed {self.config.seed}"


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        summary: final figures; None if the run diverged.
        history: record of each epoch.
        diverged_step: step in which the loss became infinite or NaN, or None.
        shared: whether the machine was shared with other runs of the comparison, so that times are not comparable.
    """

    task: Task
    summary: Record | None
    history: list[Record]
    diverged_step: int | None = None
    shared: bool = False


@dataclass
class Comparison:
    """A finished comparison; mappings are by the contestants' labels.

    Attributes:
        folder: folder of the runs.
        costs: cost of each optimizer.
        runs: outcome for each seed; empty if every learning rate of the search diverged.
        search: outcome for each learning rate of the search.
        rates: learning rate of the runs.
        environment: versions, device and threads.
        data_sha256: digest of the images, see :attr:`vitctl.data.manifest.Manifest.digest`; None if they have no files.
    """

    plan: ComparisonPlan
    folder: Path
    costs: dict[str, OptimizerCost]
    runs: dict[str, list[Outcome]]
    search: dict[str, list[Outcome]]
    rates: dict[str, float]
    environment: Record
    data_sha256: str | None = None


@dataclass
class ComparisonFolder:
    """The folder of a comparison and the content of its record, ``comparison.json``."""

    path: Path
    document: Record = field(default_factory=dict)

    @classmethod
    def find_or_create(cls, plan: ComparisonPlan, runs_dir: Path, name: str | None, new: bool) -> ComparisonFolder:
        """Open the folder of the comparison ``plan``, or create it.

        Args:
            plan: settings, which must match those of an existing comparison.
            runs_dir: folder that contains the folder ``comparisons``.
            name: name of the folder; None derives it from the plan, so that the same arguments find it again.
            new: create another folder even if one exists.

        Raises:
            RequestError: the name belongs to another comparison, or the folder cannot be created.
        """
        parent, base = runs_dir / FOLDER, name or plan.name
        number, path, newest = 1, parent / base, None
        while path.exists():
            newest, number = path, number + 1
            path = parent / f"{base}-{number}"
            if name is not None:
                break
        if newest is not None and not new:
            return cls._open(newest, plan)
        if newest is not None and name is not None:
            raise RequestError(
                f"--new --name {name}: {newest} exists and is not overwritten",
                hint="use another --name, or remove --name to get a new one",
            )
        folder = cls(
            path,
            {
                "format": 1,
                "plan": plan.identity(),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "costs": {},
                "diverged": {},
                "shared": [],
            },
        )
        try:  # the folder appears together with its record
            with new_folder(path) as staging:
                ComparisonFolder(staging, folder.document).write()
        except OSError as error:
            raise RequestError(
                f"cannot create {path}: {error.strerror}", hint="use --runs-dir with a folder that you can write to"
            ) from error
        return folder

    @classmethod
    def read(cls, path: Path, hint: str = "repeat its vitctl compare-optimizers command") -> ComparisonFolder:
        """Open the folder of a comparison.

        Args:
            path: the folder.
            hint: hint of the errors.

        Raises:
            RequestError: ``path`` is not the folder of a comparison, or its record is damaged.
        """
        try:
            document = json.loads((path / RECORD).read_text(encoding="utf-8"))
            document["plan"], document["costs"], document["diverged"], document["shared"]
        except FileNotFoundError:
            raise RequestError(f"{path} exists and is not a comparison of optimizers", hint=hint) from None
        except OSError as error:
            raise RequestError(f"cannot read {path / RECORD}: {error.strerror}", hint=hint) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path / RECORD} is damaged: {error}", hint=hint) from error
        return cls(path, document)

    @classmethod
    def _open(cls, path: Path, plan: ComparisonPlan) -> ComparisonFolder:
        folder = cls.read(path, "use another --name")
        stored = folder.document["plan"]
        requested = plan.identity()
        if stored != requested:
            lines = differences(stored, requested)
            more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise RequestError(
                f"{path} has other settings: {'; '.join(lines[:5])}{more}",
                hint="use another --name, or the stored settings to resume that comparison",
            )
        return folder

    def write(self) -> None:
        """Write ``comparison.json``."""
        write_text(self.path / RECORD, json.dumps(self.document, indent=2) + "\n")

    def outcome(self, task: Task) -> Outcome | None:
        """Return the outcome of a run, or None if it is not finished."""
        run = RunFolder(self.path / task.name)
        diverged = self.document["diverged"].get(task.name)
        failure = run.read_failure() if diverged is None else None
        if failure is not None and failure.kind == "not_finite":  # the comparison ended before recording this
            diverged = failure.step
            self.record_divergence(task, failure.step or 0)
        summary = run.read_summary() if diverged is None else None
        if diverged is None and summary is None:
            return None
        shared = task.name in self.document["shared"]
        return Outcome(task, summary, Metrics(run.path / "metrics.jsonl").new(), diverged, shared)

    def require_unchanged_data(self, config: TrainConfig, observer: Observer) -> None:
        """Record the images on the first call, and refuse changed ones from then on.

        Raises:
            RequestError: the images changed since the comparison started, or are not available.
        """
        dataset, _ = open_data(config, observer)
        require_unchanged(
            dataset.manifest,
            self.document.get(DATA_SHA256),
            self.path / MANIFEST,
            dataset.source,
            accept=False,
            hint="restore them, or use another --name to start another comparison",
        )
        if dataset.manifest is not None and DATA_SHA256 not in self.document:
            dataset.manifest.write(self.path / MANIFEST)
            self.document[DATA_SHA256] = dataset.manifest.digest
            self.write()

    def record_shared(self, task: Task) -> None:
        """Record that a run shares the machine with others."""
        if task.name not in self.document["shared"]:
            self.document["shared"].append(task.name)
            self.write()

    def record_divergence(self, task: Task, step: int) -> None:
        """Record that a run's loss became infinite or NaN in ``step``."""
        self.document["diverged"][task.name] = step
        self.write()


def compare_optimizers(
    plan: ComparisonPlan,
    runs_dir: Path,
    name: str | None,
    observer: Observer = SILENT,
    *,
    jobs: int = 1,
    new: bool = False,
) -> Comparison:
    """Run or resume a comparison.

    Initial weights, data order and augmentation depend only on the seed, and so are the same for all optimizers.

    Args:
        plan: contestants, settings and seeds.
        runs_dir: the runs are in its folder ``comparisons/<name>``.
        name: name of the comparison; None derives it from the plan.
        observer: receives every event.
        jobs: number of runs at a time; if there are several, each has a process of its own.
        new: start a new comparison even if one with the same arguments exists.

    Raises:
        RequestError: device, data, network or folder is not available, or the name belongs to another comparison.
        RunFailed: all runs diverged, or memory or disk space ran out.
        Interrupted: a signal arrived; everything is saved, and the same arguments resume the comparison.
    """
    if name is not None:
        check_folder_name(name)
    for each in plan.contestants:
        check_config(each.config, observer, weights=False)
    device = devices.resolve_device(plan.config.device)
    labels = {each.label: each.config for each in plan.contestants}
    costs = measure_costs(labels, observer) if new or not _has_costs(runs_dir, name, plan) else None
    folder = ComparisonFolder.find_or_create(plan, runs_dir, name, new)
    with RunFolder(folder.path).locked():
        if costs is not None:
            folder.document["costs"] = {label: dataclasses.asdict(cost) for label, cost in costs.items()}
            folder.document["environment"] = devices.environment(device)
            folder.write()
        queue = RunQueue(folder, observer, jobs, plan.config.threads is not None)
        grouped = plan.grouped(folder.path.name)

        tries = _search_tasks(grouped)
        planned = len(plan.contestants) * len(plan.seeds) + sum(map(len, tries.values())) - len(tries)
        queue.planned = planned
        queue.run([task for column in zip(*tries.values(), strict=True) for task in column])
        search = {label: [queue.outcomes[task.name] for task in tasks] for label, tasks in tries.items()}
        rates = _rates(grouped, search)

        tasks = _final_tasks(grouped, rates)
        queue.planned = planned - len(plan.seeds) * (len(plan.contestants) - len(tasks))
        queue.run([task for row in zip(*tasks.values(), strict=True) for task in row])  # seed by seed
        runs = {label: [queue.outcomes[task.name] for task in tasks.get(label, [])] for label in labels}
    if not any(outcome.summary for outcomes in runs.values() for outcome in outcomes):
        first, step = next(iter(folder.document["diverged"].items()))
        raise RunFailed(
            f"all runs diverged ({first} at step {step})",
            hint=f"use lower learning rates, such as {plan.config.opt}:lr={plan.config.lr / 10:g}, or a longer --warmup",
        )
    return _comparison(plan, folder, runs, search, rates)


def _comparison(
    plan: ComparisonPlan,
    folder: ComparisonFolder,
    runs: dict[str, list[Outcome]],
    search: dict[str, list[Outcome]],
    rates: dict[str, float],
) -> Comparison:
    costs = {label: OptimizerCost(**cost) for label, cost in folder.document["costs"].items()}
    environment, digest = folder.document["environment"], folder.document.get(DATA_SHA256)
    return Comparison(plan, folder.path, costs, runs, search, rates, environment, digest)


def read_comparison(path: Path) -> Comparison:
    """Return a comparison from its folder.

    Raises:
        RequestError: the comparison is not finished, or its record is damaged or from another version of vitctl.
    """
    folder = ComparisonFolder.read(path)
    try:
        plan = ComparisonPlan.of_identity(folder.document["plan"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path / RECORD} is damaged: {error!r}",
            hint="start another comparison with vitctl compare-optimizers --new",
        ) from error

    def outcomes(tasks: Mapping[str, Sequence[Task]]) -> dict[str, list[Outcome]]:
        found = {label: [folder.outcome(task) for task in each] for label, each in tasks.items()}
        if any(outcome is None for each in found.values() for outcome in each):
            raise RequestError(
                f"the comparison {path} is not finished", hint="resume it: repeat its vitctl compare-optimizers command"
            )
        return {label: [outcome for outcome in each if outcome is not None] for label, each in found.items()}

    search = outcomes(_search_tasks(plan))
    rates = _rates(plan, search)
    finals = _final_tasks(plan, rates)
    runs = outcomes({each.label: finals.get(each.label, []) for each in plan.contestants})
    if not any(outcome.summary for each in runs.values() for outcome in each):
        raise RequestError(
            f"all runs of the comparison {path} diverged",
            hint=f"compare them with lower learning rates, such as {plan.config.opt}:lr={plan.config.lr / 10:g}",
        )
    return _comparison(plan, folder, runs, search, rates)


def _has_costs(runs_dir: Path, name: str | None, plan: ComparisonPlan) -> bool:
    """Return whether the comparison exists and holds the optimizers' costs.

    Raises:
        RequestError: see :meth:`ComparisonFolder.find_or_create`.
    """
    if not (runs_dir / FOLDER / (name or plan.name)).exists():
        return False
    return bool(ComparisonFolder.find_or_create(plan, runs_dir, name, new=False).document["costs"])


def _search_tasks(plan: ComparisonPlan) -> dict[str, list[Task]]:
    """Return the runs of the learning-rate search, by label."""
    searched = [each for each in plan.contestants if each.searched]
    return {each.label: [_search_task(each, lr, plan) for lr in plan.rates(each)] for each in searched}


def _rates(plan: ComparisonPlan, search: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Return the learning rate of each contestant's runs; none if all rates of its search diverged."""
    rates = {each.label: each.config.lr for each in plan.contestants if not each.searched}
    return rates | {label: rate for label, found in search.items() if (rate := best_rate(found)) is not None}


def _final_tasks(plan: ComparisonPlan, rates: Mapping[str, float]) -> dict[str, list[Task]]:
    """Return the runs with every seed, by label."""
    return {
        each.label: [_final_task(each, rates[each.label], seed) for seed in plan.seeds]
        for each in plan.contestants
        if each.label in rates
    }


def _final_task(contestant: Contestant, lr: float, seed: int) -> Task:
    rate = f"-lr{lr:g}" if contestant.searched else ""
    return Task(contestant.label, f"{contestant.slug}{rate}-seed{seed}", contestant.at(seed, lr))


def _search_task(contestant: Contestant, lr: float, plan: ComparisonPlan) -> Task:
    # The folder is that of the final run, so that the run with the first seed is not repeated.
    return dataclasses.replace(_final_task(contestant, lr, plan.seeds[0]), searching=True)


def best_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Return the learning rate with the best final held-out accuracy, the lowest of equals; None if all diverged."""
    scored = [(each.summary["val_acc"], each.task.config.lr) for each in outcomes if each.summary]
    return max(scored, key=lambda pair: (pair[0], -pair[1]))[1] if scored else None


class RunQueue:
    """Runs tasks, one after the other in this process, or several at a time in child processes."""

    def __init__(self, folder: ComparisonFolder, observer: Observer, jobs: int, threads_set: bool) -> None:
        self.folder, self.observer, self.jobs = folder, observer, jobs
        self.environments = job_environments(jobs, threads_set)
        self.outcomes: dict[str, Outcome] = {}
        self.planned = 0
        self.durations: list[float] = []

    def run(self, tasks: Sequence[Task]) -> None:
        """Run the tasks that are not finished."""
        waiting = []
        for task in {task.name: task for task in tasks}.values():
            outcome = self.folder.outcome(task)
            if outcome is None:
                waiting.append(task)
            else:
                self.outcomes[task.name] = dataclasses.replace(outcome, task=task)
        if waiting:
            self.folder.require_unchanged_data(waiting[0].config, self.observer)
        if self.jobs == 1:
            for task in waiting:
                self._run_here(task)
        elif waiting:
            self._run_children(waiting)

    def _report_progress(self, what: str) -> None:
        left = None
        if self.durations:
            left = sum(self.durations) / len(self.durations) * (self.planned - len(self.outcomes)) / self.jobs
        self.observer.running(what, len(self.outcomes), self.planned, left)

    def _ended(self, task: Task, started: float, diverged_step: int | None = None) -> None:
        if diverged_step is not None:
            self.folder.record_divergence(task, diverged_step)
            self.observer.message(f"{task.title}: diverged at step {diverged_step}; the other runs continue")
        outcome = self.folder.outcome(task)
        if outcome is None:
            run = self.folder.path / task.name
            raise RunFailed(
                f"the run {run} ended without a summary", hint="run the same command without --new to resume it"
            )
        self.outcomes[task.name] = outcome
        self.durations.append(time.monotonic() - started)
        self._report_progress("")

    def _run_here(self, task: Task) -> None:
        self._report_progress(task.title)
        started, run = time.monotonic(), self.folder.path / task.name
        try:
            if is_run(run):
                start.resume_run(run, {}, self.observer)
            else:
                start.start_run(task.config, self.folder.path, task.name, self.observer, started=time.monotonic())
        except NotFinite as error:
            self._ended(task, started, error.step)
        except Interrupted as stop:
            raise self._interrupted(stop.signum) from None
        else:
            self._ended(task, started)

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(
            f"stopped; the comparison is saved in {self.folder.path}",
            signum,
            hint="run the same command without --new to resume it",
        )

    def _run_children(self, tasks: Sequence[Task]) -> None:
        free, line = list(range(self.jobs)), LifeLine()
        waiting = list(tasks)
        active: dict[int, tuple[Task, Child, float]] = {}
        stopping = "stopping: waiting for the current runs to save; press Ctrl-C again to quit immediately"
        with StopRequest(lambda _: self.observer.message(stopping)) as stop, _stopped_on_error(active):
            while waiting or active:
                while waiting and free and not stop:
                    slot, task = free.pop(0), waiting.pop(0)
                    self._report_progress(task.title)
                    self.folder.record_shared(task)
                    active[slot] = (task, self._start(task, slot, line), time.monotonic())
                if stop:
                    for _, child, _ in active.values():
                        child.ask()
                    if not active:
                        assert stop.signum is not None
                        raise self._interrupted(stop.signum)
                for slot, (task, child, started) in list(active.items()):
                    code = child.wait(POLL_SECONDS / len(active))
                    if code is None:
                        continue
                    del active[slot]
                    free.append(slot)
                    if code == 0 or not (child.asked or stop):  # a batch system signals children too
                        self._child_ended(task, child, code, started)

    def _start(self, task: Task, slot: int, line: LifeLine) -> Child:
        run = self.folder.path / task.name
        settings = run.with_name(f"{task.name}.yaml")
        write_text(settings, yaml.safe_dump(task.config.to_dict(), sort_keys=False))
        wait_until_free(run)
        command = train_command(TrialRun(settings, run))
        return Child(command, run.with_name(f"{task.name}.log"), self.environments[slot], line)

    def _child_ended(self, task: Task, child: Child, code: int, started: float) -> None:
        failure = child.failure()
        if code == 0:
            self._ended(task, started)
        elif failure.kind == "not_finite" and failure.step is not None:
            self._ended(task, started, failure.step)
        elif failure.kind == "killed":
            raise RunFailed(
                f"the run {task.title} was {failure.message}", hint="run the same command without --new to resume"
            )
        else:
            kind = RequestError if code == RequestError.exit_code else RunFailed
            raise kind(f"{task.title}: {failure.message}", hint=failure.hint or f"see the log {child.log}")


@contextlib.contextmanager
def _stopped_on_error(active: Mapping[int, tuple[Task, Child, float]]) -> Iterator[None]:
    """On an error, let the running children save and wait until they end."""
    try:
        yield
    except BaseException:
        for _, child, _ in active.values():
            child.ask()
        for _, child, _ in active.values():
            while child.wait(1.0) is None:
                pass
        raise
