"""Runs a comparison of optimizers: ordinary run folders side by side, over seeds, that go on where they were."""

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
from vitctl.config import TrainConfig
from vitctl.errors import Interrupted, NotFinite, RequestError, RunFailed
from vitctl.files import new_folder, write_text
from vitctl.observer import SILENT, Observer
from vitctl.process.child import Child, LifeLine, Metrics, TrialRun, job_environments, train_command, wait_until_free
from vitctl.process.signals import StopRequest
from vitctl.training import start
from vitctl.training.preflight import check_config
from vitctl.training.run_folder import RunFolder

FOLDER, RECORD = "comparisons", "comparison.json"
POLL_SECONDS = 0.2

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A run of a comparison.

    Attributes:
        label: of its contestant.
        name: of its folder.
        config: its settings.
        searching: it is one of the learning-rate search.
    """

    label: str
    name: str
    config: TrainConfig
    searching: bool = False

    @property
    def title(self) -> str:
        """What it is called while it runs."""
        rate = f", lr {self.config.lr:g}" if self.searching else ""
        return f"{self.label}{rate}, seed {self.config.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        task: what it was.
        summary: its final figures; None where it diverged.
        history: a record per epoch.
        diverged_step: when its loss was no longer finite; None where it always was.
        shared: the machine was shared with other runs of the comparison, so its times say little.
    """

    task: Task
    summary: Record | None
    history: list[Record]
    diverged_step: int | None = None
    shared: bool = False


@dataclass
class Result:
    """A comparison that is over.

    Attributes:
        plan: what it was.
        folder: where its runs are.
        costs: of each contestant's optimizer.
        runs: of each contestant, one a seed; empty where no rate of the search was any good.
        search: of each contestant that took part in it, one a learning rate.
        rates: the learning rate that each contestant ran with.
        environment: device and versions.
    """

    plan: ComparisonPlan
    folder: Path
    costs: dict[str, OptimizerCost]
    runs: dict[str, list[Outcome]]
    search: dict[str, list[Outcome]]
    rates: dict[str, float]
    environment: Record


@dataclass
class Folder:
    """The folder of a comparison, and what it remembers in ``comparison.json``.

    Attributes:
        path: the folder.
        document: what is in the file.
    """

    path: Path
    document: Record = field(default_factory=dict)

    @classmethod
    def find_or_create(cls, plan: ComparisonPlan, runs_dir: Path, name: str | None, new: bool) -> Folder:
        """Return the folder of the comparison ``plan``, which may have been begun.

        Args:
            plan: what is to be compared.
            runs_dir: the folder lies below it.
            name: of the folder; None makes one up from the plan, so that the same arguments find it again.
            new: make one, whatever there is.

        Raises:
            RequestError: the name is of another comparison, or no folder can be made.
        """
        if name is not None and ("/" in name or "\\" in name or name in ("", ".", "..")):
            raise RequestError(f"--name {name!r} is no name for a folder")
        place, base = runs_dir / FOLDER, name or plan.name
        number, path, newest = 1, place / base, None
        while path.exists():
            newest, number = path, number + 1
            path = place / f"{base}-{number}"
            if name is not None:
                break
        if newest is not None and not new:
            return cls._open(newest, plan)
        if newest is not None and name is not None:
            raise RequestError(
                f"--new --name {name}: {newest} is there and is never overwritten; choose another --name"
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
        try:  # the folder appears with its record in it, or not at all
            with new_folder(path) as staging:
                Folder(staging, folder.document).write()
        except OSError as error:
            raise RequestError(f"cannot make the folder {path}: {error.strerror}; choose another --runs-dir") from error
        return folder

    @classmethod
    def _open(cls, path: Path, plan: ComparisonPlan) -> Folder:
        remedy = "choose another --name"
        try:
            document = json.loads((path / RECORD).read_text(encoding="utf-8"))
            stored = document["plan"]
            document["costs"], document["diverged"], document["shared"]
        except FileNotFoundError:
            raise RequestError(f"{path} is there and is no comparison of optimizers; {remedy}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path / RECORD} is damaged ({error}); {remedy}") from error
        asked = plan.identity()
        if stored != asked:
            lines = differences(stored, asked)
            more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise RequestError(f"{path} is another comparison: {'; '.join(lines[:5])}{more}; {remedy}")
        return cls(path, document)

    def write(self) -> None:
        """Write ``comparison.json``."""
        write_text(self.path / RECORD, json.dumps(self.document, indent=2) + "\n")

    def outcome(self, task: Task) -> Outcome | None:
        """Return what became of a run, or None when it is not over."""
        place = self.path / task.name
        diverged = self.document["diverged"].get(task.name)
        failure = RunFolder(place).read_failure() if diverged is None else None
        if failure is not None and failure.kind == "not_finite":  # the comparison ended before it recorded this
            diverged = failure.step
            self.diverged(task, failure.step or 0)
        summary = RunFolder(place).read_summary() if diverged is None else None
        if diverged is None and summary is None:
            return None
        shared = task.name in self.document["shared"]
        return Outcome(task, summary, Metrics(place / "metrics.jsonl").new(), diverged, shared)

    def begun(self, task: Task, shared: bool) -> None:
        """Remember that a run begins or goes on, beside others or by itself."""
        if shared and task.name not in self.document["shared"]:
            self.document["shared"].append(task.name)
            self.write()

    def diverged(self, task: Task, step: int) -> None:
        """Remember that a run's loss was no longer finite."""
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
) -> Result:
    """Run a comparison, or go on with it, and return what was found.

    The seed alone decides initial weights, order of the data and draws of the augmentation: they are the same for all.

    Args:
        plan: what is to be compared.
        runs_dir: the runs lie in ``comparisons/<name>`` below it.
        name: of the comparison; None makes one up from the plan.
        observer: receives every event.
        jobs: runs at once, each in a process of its own where there are several.
        new: begin another comparison, though there is one of these arguments.

    Raises:
        RequestError: device, data, network or folder cannot be had, or the name is of another comparison.
        RunFailed: no run gave finite figures, or memory or disk is used up.
        Interrupted: a signal came; everything is saved, and the same arguments go on.
    """
    for each in plan.contestants:
        check_config(each.config, observer, weights=False)
    device = devices.resolve_device(plan.config.device)
    labels = {each.label: each.config for each in plan.contestants}
    costs = measure_costs(labels, observer) if new or not _has_costs(runs_dir, name, plan) else None
    folder = Folder.find_or_create(plan, runs_dir, name, new)
    with RunFolder(folder.path).locked():
        if costs is not None:
            folder.document["costs"] = {label: dataclasses.asdict(cost) for label, cost in costs.items()}
            folder.document["environment"] = devices.environment(device)
            folder.write()
        measured = {label: OptimizerCost(**cost) for label, cost in folder.document["costs"].items()}
        runs_of = Runs(folder, observer, jobs, plan.config.threads is not None)
        grouped = plan.grouped(folder.path.name)

        searched = [each for each in grouped.contestants if each.searched]
        tries = {each.label: [_search_task(each, lr, plan) for lr in plan.rates(each)] for each in searched}
        planned = len(plan.contestants) * len(plan.seeds) + sum(map(len, tries.values())) - len(searched)
        runs_of.planned = planned
        runs_of.run([task for column in zip(*tries.values(), strict=True) for task in column])
        search = {label: [runs_of.outcomes[task.name] for task in tasks] for label, tasks in tries.items()}
        rates = {each.label: each.config.lr for each in grouped.contestants if not each.searched}
        rates.update({label: rate for label, outcomes in search.items() if (rate := best_rate(outcomes)) is not None})

        tasks = {
            each.label: [_final_task(each, rates[each.label], seed) for seed in plan.seeds]
            for each in grouped.contestants
            if each.label in rates
        }
        runs_of.planned = planned - len(plan.seeds) * (len(plan.contestants) - len(tasks))
        runs_of.run([task for row in zip(*tasks.values(), strict=True) for task in row])  # seed by seed
        runs = {
            each.label: [runs_of.outcomes[task.name] for task in tasks.get(each.label, [])]
            for each in grouped.contestants
        }
    if not any(outcome.summary for outcomes in runs.values() for outcome in outcomes):
        first, step = next(iter(folder.document["diverged"].items()))
        raise RunFailed(
            f"every run diverged, so there is nothing to compare ({first} at step {step}); give lower learning rates, such as "
            f"{plan.config.opt}:lr=..., or more --warmup"
        )
    return Result(plan, folder.path, measured, runs, search, rates, folder.document["environment"])


def _has_costs(runs_dir: Path, name: str | None, plan: ComparisonPlan) -> bool:
    """Whether the comparison was begun, and its costs are known; a damaged or foreign one is refused here.

    Raises:
        RequestError: see :meth:`Folder.find_or_create`.
    """
    if not (runs_dir / FOLDER / (name or plan.name)).exists():
        return False
    return bool(Folder.find_or_create(plan, runs_dir, name, new=False).document["costs"])


def _final_task(contestant: Contestant, lr: float, seed: int) -> Task:
    rate = f"-lr{lr:g}" if contestant.searched else ""
    return Task(contestant.label, f"{contestant.slug}{rate}-seed{seed}", contestant.at(seed, lr))


def _search_task(contestant: Contestant, lr: float, plan: ComparisonPlan) -> Task:
    # The same folder as the final run's: what the search did with the first seed is not done again.
    return dataclasses.replace(_final_task(contestant, lr, plan.seeds[0]), searching=True)


def best_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Return the learning rate with the best held-out accuracy at the end, the lower one of two; None: all diverged."""
    scored = [(each.summary["val_acc"], each.task.config.lr) for each in outcomes if each.summary]
    return max(scored, key=lambda pair: (pair[0], -pair[1]))[1] if scored else None


class Runs:
    """Runs tasks, one after another in this process, or several at once in processes of their own."""

    def __init__(self, folder: Folder, observer: Observer, jobs: int, threads_set: bool) -> None:
        self.folder, self.observer, self.jobs = folder, observer, jobs
        self.environments = job_environments(jobs, threads_set)
        self.outcomes: dict[str, Outcome] = {}
        self.planned = 0
        self.took: list[float] = []

    def run(self, tasks: Sequence[Task]) -> None:
        """Run what is not over yet."""
        waiting = []
        for task in {task.name: task for task in tasks}.values():
            outcome = self.folder.outcome(task)
            if outcome is None:
                waiting.append(task)
            else:
                self.outcomes[task.name] = dataclasses.replace(outcome, task=task)
        if self.jobs == 1:
            for task in waiting:
                self._run_here(task)
        elif waiting:
            self._run_children(waiting)

    def _tell(self, what: str) -> None:
        left = None
        if self.took:
            left = sum(self.took) / len(self.took) * (self.planned - len(self.outcomes)) / self.jobs
        self.observer.running(what, len(self.outcomes), self.planned, left)

    def _over(self, task: Task, started: float, diverged_step: int | None = None) -> None:
        if diverged_step is not None:
            self.folder.diverged(task, diverged_step)
            self.observer.message(f"{task.title}: diverged at step {diverged_step}; the others go on")
        outcome = self.folder.outcome(task)
        if outcome is None:
            raise RunFailed(f"the run {self.folder.path / task.name} ended and left no figures")
        self.outcomes[task.name] = outcome
        self.took.append(time.monotonic() - started)
        self._tell("")

    def _run_here(self, task: Task) -> None:
        self._tell(task.title)
        self.folder.begun(task, shared=False)
        started, place = time.monotonic(), self.folder.path / task.name
        try:
            if (place / "config.json").is_file():
                start.resume_run(place, {}, self.observer)
            else:
                start.start_run(task.config, self.folder.path, task.name, self.observer, started=time.monotonic())
        except NotFinite as error:
            self._over(task, started, error.step)
        except Interrupted as stop:
            raise self._interrupted(stop.signum) from None
        else:
            self._over(task, started)

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(
            f"stopped, and saved in {self.folder.path}; the same command, without --new, goes on where it was", signum
        )

    def _run_children(self, tasks: Sequence[Task]) -> None:
        free, line = list(range(self.jobs)), LifeLine()
        waiting = list(tasks)
        active: dict[int, tuple[Task, Child, float]] = {}
        stopping = "stopping: the runs under way are saving; once more quits at once"
        with StopRequest(lambda _: self.observer.message(stopping)) as stop, _ended_with(active):
            while waiting or active:
                while waiting and free and not stop:
                    slot, task = free.pop(0), waiting.pop(0)
                    self._tell(task.title)
                    self.folder.begun(task, shared=True)
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
                    if not child.asked or code == 0:
                        self._child_ended(task, child, code, started)

    def _start(self, task: Task, slot: int, line: LifeLine) -> Child:
        place = self.folder.path / task.name
        settings = place.with_name(f"{task.name}.yaml")
        write_text(settings, yaml.safe_dump(task.config.to_dict(), sort_keys=False))
        wait_until_free(place)
        command = train_command(TrialRun(settings, place))
        return Child(command, place.with_name(f"{task.name}.log"), self.environments[slot], line)

    def _child_ended(self, task: Task, child: Child, code: int, started: float) -> None:
        failure = child.failure()
        if code == 0:
            self._over(task, started)
        elif failure.kind == "not_finite" and failure.step is not None:
            self._over(task, started, failure.step)
        elif failure.kind == "killed":
            raise RunFailed(f"the run {task.title} was {failure.message}; the same command goes on where it was")
        else:
            kind = RequestError if code == RequestError.exit_code else RunFailed
            raise kind(f"{task.title}: {failure.message} (log: {child.log})")


@contextlib.contextmanager
def _ended_with(active: Mapping[int, tuple[Task, Child, float]]) -> Iterator[None]:
    """End the children that still run when an error ends their comparison: they save first."""
    try:
        yield
    except BaseException:
        for _, child, _ in active.values():
            child.ask()
        for _, child, _ in active.values():
            while child.wait(1.0) is None:
                pass
        raise
