"""The local engine: sweeps on this machine, or on several that share a PostgreSQL database."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from vitctl.config import setting_of
from vitctl.errors import RequestError
from vitctl.observer import Observer
from vitctl.process.child import job_environments
from vitctl.registry import lookup, split_spec
from vitctl.sweep import PRUNERS, SAMPLERS
from vitctl.sweep.agent import Agent, take_snapshot
from vitctl.sweep.engine import AgentOptions, SweepOptions
from vitctl.sweep.file import SweepFile, check_trains, read_sweep_file
from vitctl.sweep.notes import notes_of
from vitctl.sweep.storage import ClaimLock, open_storage, parse_url, redacted, sqlite_file
from vitctl.sweep.sweep import Sweep, SweepPlan, find_sweep, find_sweeps, is_file, new_id, now

DATABASE = "study.db"


def check_plan(file: SweepFile, options: SweepOptions) -> dict[str, Any]:
    """Return the options of a new sweep, checked, as keyword arguments of :class:`~vitctl.sweep.sweep.SweepPlan`.

    Raises:
        RequestError: an option is invalid, or ``train`` would refuse a trial.
    """
    given = {"fixed": {}, "run_cap": file.run_cap, "pruner": "file", "seed": None, **options.given(file)}
    given.setdefault("sampler", "tpe" if file.method == "bayes" else "random")
    lookup(SAMPLERS, given["sampler"], "--sampler")
    if file.method != "bayes" and given["sampler"] != "random":
        raise RequestError(
            f"--sampler {given['sampler']} does nothing with method: {file.method}",
            hint=f"remove --sampler, or use method: bayes in {file.name}",
        )
    name, pruner_options = split_spec(given["pruner"], "--pruner")
    lookup(PRUNERS, name, "--pruner").resolve_options(pruner_options, f"--pruner {name}")
    if given["seed"] is None:
        given["seed"] = random.SystemRandom().randrange(2**31)
    check_trains(file, given["fixed"])
    return given


class LocalEngine:
    """Creates sweeps and runs agents; it sends data to the storage only."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Create a sweep from a file and return its id; see :class:`~vitctl.sweep.engine.Engine`."""
        return self._create(read_sweep_file(path), options, observer).id

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run an agent; see :class:`~vitctl.sweep.engine.Engine`."""
        gpus = gpu_environments(asked.gpus) if asked.gpus is not None else None  # check before creating a sweep
        sweep, created = self.find_or_create(target, options, observer, new=asked.new)
        before = take_snapshot(sweep)
        observer.sweep_opened(sweep, before, created=created)
        why = None
        if before.state not in ("finished", "stopped"):
            sweep.keep_record()
            threads_set = any(
                setting_of(name) == "threads" for name in (*sweep.plan.fixed, *sweep.file.space.parameters)
            )
            workers = gpus or job_environments(asked.jobs or 1, threads_set)
            with observer:
                agent = Agent(sweep, observer, workers=workers, count=asked.count, max_time=asked.max_time)
                why = agent.run()
        observer.sweep_closed(why)

    def _create(self, file: SweepFile, options: SweepOptions, observer: Observer) -> Sweep:
        id = new_id()
        settings = check_plan(file, options)
        if options.storage is not None:
            url = parse_url(options.storage)
        else:
            folder = options.runs_dir / "sweeps" / id
            url = URL.create("sqlite", database=str((folder / DATABASE).absolute()))
        plan = SweepPlan(id=id, file=file, created=now(), storage=redacted(url), **settings)
        sweep = Sweep.create(plan, url, options.runs_dir)
        for note in (*file.local_notes, *notes_of(file, plan.fixed, plan.run_cap)):
            observer.message(note)
        return sweep

    def find(self, target: str, options: SweepOptions) -> Sweep:
        """Return the sweep with an id, or the newest sweep of a file; see :func:`~vitctl.sweep.sweep.find_sweep`."""
        return find_sweep(target, options.runs_dir, options.storage)

    def find_or_create(
        self, target: str, options: SweepOptions, observer: Observer, *, new: bool = False
    ) -> tuple[Sweep, bool]:
        """Return the sweep for an agent, and whether it was created by this call.

        Args:
            target: a sweep's id, or a file. A file stands for its newest sweep, and a sweep is created if it has none.
            options: those of a new sweep. For an existing sweep, every option that is set must match it.
            observer: receives notes on the file of a new sweep.
            new: create a new sweep even if the file has one.

        Raises:
            RequestError: unknown sweep; or the file was edited after the sweep was created, or an option differs.
        """
        if not is_file(target):
            if new:
                raise new_needs_file(target)
            sweep = self.find(target, options)
            self._check_unchanged(sweep, options, sweep.file)
            return sweep, False
        path = Path(target)
        file = read_sweep_file(path)
        with creating(options):
            if options.storage is not None:  # it may not exist yet
                open_storage(parse_url(options.storage), create=True).engine.dispose()
            sweeps = [] if new else find_sweeps(options.runs_dir, options.storage)
            for sweep in sweeps:
                if sweep.file.name == path.name:
                    self._check_unchanged(sweep, options, file)
                    return sweep, False
            return self._create(file, options, observer), True

    @staticmethod
    def _check_unchanged(sweep: Sweep, options: SweepOptions, file: SweepFile) -> None:
        lines = sweep.file.difference(file)
        if lines:
            created = sweep.plan.created[:16].replace("T", " ")
            raise RequestError(
                f"{file.name} was edited after sweep {sweep.id} was created ({created} UTC):\n{indented(lines)}",
                hint=f"add --new to create another sweep, or continue this one: {sweep.agent_command}",
            )
        lines = sweep.plan.difference(options.given(sweep.file))
        if lines:
            raise RequestError(
                f"sweep {sweep.id} was created with other options:\n{indented(lines)}",
                hint="remove them, or use the sweep file with --new to create another sweep",
            )


def indented(lines: list[str]) -> str:
    """Join ``lines`` for a message, indented by two spaces."""
    return "\n".join(f"  {line}" for line in lines)


def new_needs_file(target: str) -> RequestError:
    """Return the error for ``--new`` with the id of a sweep."""
    return RequestError(
        f"--new needs a sweep file, but {target!r} is an id", hint="use the path of a sweep file, or remove --new"
    )


@contextlib.contextmanager
def creating(options: SweepOptions) -> Iterator[None]:
    """Hold a lock so that two agents started at the same time do not both create a sweep."""
    if options.storage is not None:
        url = parse_url(options.storage)
    else:
        url = URL.create("sqlite", database=str(options.runs_dir.absolute() / "sweeps" / "create"))
    place = sqlite_file(url)
    try:
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        flag = "--runs-dir" if options.storage is None else "--storage"
        raise RequestError(
            f"cannot create {place and place.parent}: {error.strerror}", hint=f"use another {flag}"
        ) from error
    with ClaimLock(url, "create"):
        yield


def gpu_environments(gpus: str) -> list[dict[str, str]]:
    """Return the environment variables of each worker, which make one GPU visible to it.

    Args:
        gpus: ``all``, or indices such as ``0,2``.

    Raises:
        RequestError: a CUDA device is missing.
    """
    from vitctl.devices import available_devices  # torch loads here

    available = [name.removeprefix("cuda:") for name in available_devices() if name.startswith("cuda:")]
    asked = available if gpus == "all" else [word.strip() for word in gpus.split(",")]
    if not available:
        raise RequestError(
            f"--gpus {gpus}: this machine has no CUDA device", hint="use --jobs N to run N trials in parallel"
        )
    for word in asked:
        if word not in available:
            raise RequestError(
                f"--gpus {gpus}: CUDA device {word} not found",
                hint=f"use --gpus all, or a list of: {', '.join(available)}",
            )
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return [{"CUDA_VISIBLE_DEVICES": visible[int(word)] if visible else word} for word in dict.fromkeys(asked)]


def dry_run(path: Path, options: SweepOptions, count: int) -> dict[str, Any]:
    """Describe the sweep that a file would create, without creating it.

    Returns:
        The options of the sweep, and these keys: ``size``, the number of grid points or of different parameter sets
        (None if unlimited); ``bands`` of hyperband; ``parameters``, a description of each; ``constants``; ``notes``;
        and ``samples``, the first ``count`` parameter sets. Samples of ``method: bayes`` are random, as the first
        trials of such a sweep are.

    Raises:
        RequestError: see :meth:`LocalEngine.create`.
    """
    file = read_sweep_file(path)
    plan = check_plan(file, options)
    space = file.space
    if file.method == "grid":
        samples = [point for point, _ in zip(space.grid_points(), range(count), strict=False)]
    else:
        replacement = file.method == "random"
        size = None if replacement else space.size
        samples, number = [], 0
        while len(samples) < (count if size is None else min(count, size)) and number < 100 * count:
            params = space.draw(random.Random(f"{plan['seed']}:{number}:0"))
            number += 1
            if replacement or params not in samples:
                samples.append(params)
    bands = file.hyperband.bands if file.hyperband is not None else ()
    constants = file.settings({}, plan["fixed"])
    return {
        "file": file.name,
        "method": file.method,
        "metric": file.metric.name,
        "goal": file.metric.goal,
        "target": file.metric.target,
        "sampler": plan["sampler"],
        "pruner": plan["pruner"],
        "run_cap": plan["run_cap"],
        "size": space.grid_size if file.method == "grid" else space.size,
        "bands": [band for band in bands if band <= 1000],
        "parameters": {name: space.varying[name].describe() for name in file.order},
        "constants": constants,
        "samples": [{name: sample[name] for name in file.order} for sample in samples],
        "notes": [*file.local_notes, *notes_of(file, plan["fixed"], plan["run_cap"])],
    }
