"""The local engine: sweeps on this machine, or on several that share a PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from vitctl.errors import RequestError
from vitctl.observer import Observer
from vitctl.process.child import job_environments
from vitctl.registry import lookup, split_spec
from vitctl.sweep import PRUNERS, SAMPLERS
from vitctl.sweep.agent import Agent, take_snapshot
from vitctl.sweep.engine import AgentOptions, SweepOptions
from vitctl.sweep.file import SweepFile, check_trains, length_notes, read_sweep_file, setting_of
from vitctl.sweep.storage import ClaimLock, open_storage, parse_url, redacted, sqlite_file
from vitctl.sweep.sweep import Sweep, SweepPlan, find_sweep, find_sweeps, is_file, new_id, now

DATABASE = "study.db"


def check_plan(file: SweepFile, options: SweepOptions) -> dict[str, Any]:
    """Return the plan that a new sweep would be created with; see :class:`~vitctl.sweep.sweep.SweepPlan`.

    Raises:
        RequestError: an option that cannot be, or a trial that ``train`` would refuse.
    """
    given = {"fixed": {}, "run_cap": file.run_cap, "pruner": "file", "seed": None, **options.given(file)}
    given.setdefault("sampler", "tpe" if file.method == "bayes" else "random")
    lookup(SAMPLERS, given["sampler"], "--sampler")
    if file.method != "bayes" and given["sampler"] != "random":
        raise RequestError(
            f"--sampler {given['sampler']} is for method: bayes, and {file.name} says method: {file.method}; change it there"
        )
    name, pruner_options = split_spec(given["pruner"], "--pruner")
    lookup(PRUNERS, name, "--pruner").resolve_options(pruner_options, f"--pruner {name}")
    if given["seed"] is None:
        given["seed"] = random.SystemRandom().randrange(2**31)
    check_trains(file, given["fixed"])
    return given


class LocalEngine:
    """Creates sweeps and runs agents; nothing leaves this machine but to the storage."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Create a sweep from a file and return its id; see :class:`~vitctl.sweep.engine.Engine`."""
        return self._create(read_sweep_file(path), options, observer).id

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run an agent; see :class:`~vitctl.sweep.engine.Engine`."""
        gpus = gpu_environments(asked.gpus) if asked.gpus is not None else None  # refused before a sweep is made
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
        for note in (*file.notes, *file.local_notes, *length_notes(file, plan.fixed)):
            observer.message(note)
        return sweep

    def find(self, target: str, options: SweepOptions) -> Sweep:
        """Return a sweep by id, or the newest from a file.

        Raises:
            RequestError: there is none.
        """
        return find_sweep(target, options.runs_dir, options.storage)

    def find_or_create(
        self, target: str, options: SweepOptions, observer: Observer, *, new: bool = False
    ) -> tuple[Sweep, bool]:
        """Return the sweep that an agent is to work on, and whether it was made just now.

        Args:
            target: an id; or a file, whose newest sweep is meant, and which makes one when there is none.
            options: must be those that the sweep was created with, as far as they were given.
            observer: receives warnings about the file of a new sweep.
            new: make one, whatever there is.

        Raises:
            RequestError: no such sweep; the file was edited since, or an option differs: the difference is named.
        """
        if not is_file(target):
            if new:
                raise RequestError(f"--new makes a sweep from a file, and {target!r} is an id; name the file")
            sweep = self.find(target, options)
            self._refuse_other(sweep, options, sweep.file)
            return sweep, False
        path = Path(target)
        file = read_sweep_file(path)
        with creating(options):
            if options.storage is not None:  # it may be new, too
                open_storage(parse_url(options.storage), create=True).engine.dispose()
            sweeps = [] if new else find_sweeps(options.runs_dir, options.storage)
            for sweep in sweeps:
                if sweep.file.name == path.name:
                    self._refuse_other(sweep, options, file)
                    return sweep, False
            return self._create(file, options, observer), True

    @staticmethod
    def _refuse_other(sweep: Sweep, options: SweepOptions, file: SweepFile) -> None:
        created = (
            f"the sweep {sweep.id}, created from {sweep.file.name} on {sweep.plan.created[:16].replace('T', ' ')} UTC"
        )
        remedy = f"--new starts another sweep, {sweep.id} in place of the file goes on with this one"
        lines = sweep.file.difference(file)
        if lines:
            raise RequestError(
                f"{file.name} was edited since {created}; {remedy}:\n" + "\n".join(f"  {x}" for x in lines)
            )
        lines = sweep.plan.difference(options.given(sweep.file))
        if lines:
            raise RequestError(
                f"{created}, was created with other options; leave them out, or --new starts another sweep:\n"
                + "\n".join(f"  {line}" for line in lines)
            )


@contextlib.contextmanager
def creating(options: SweepOptions) -> Iterator[None]:
    """Keep two agents that are started at once from making a sweep each."""
    if options.storage is not None:
        url = parse_url(options.storage)
    else:
        url = URL.create("sqlite", database=str(options.runs_dir.absolute() / "sweeps" / "create"))
    place = sqlite_file(url)
    try:
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cannot make the folder {place and place.parent}: {error.strerror}; choose another --runs-dir"
        ) from error
    with ClaimLock(url, "create"):
        yield


def gpu_environments(gpus: str) -> list[dict[str, str]]:
    """Return the environments of one trial on each GPU, which then sees that one alone.

    Raises:
        RequestError: there is no such CUDA device.
    """
    from vitctl.devices import available_devices  # torch loads here

    there = [name.removeprefix("cuda:") for name in available_devices() if name.startswith("cuda:")]
    asked = there if gpus == "all" else [word.strip() for word in gpus.split(",")]
    if not there:
        raise RequestError(f"--gpus {gpus}: there is no CUDA device here; --jobs N runs N trials at once")
    for word in asked:
        if word not in there:
            raise RequestError(f"--gpus {gpus}: there is no CUDA device {word!r}; there are {', '.join(there)}")
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return [{"CUDA_VISIBLE_DEVICES": visible[int(word)] if visible else word} for word in dict.fromkeys(asked)]


def dry_run(path: Path, options: SweepOptions, count: int) -> dict[str, Any]:
    """Return what a sweep from the file would do, and make nothing.

    Returns:
        ``file``, ``method``, ``metric``, ``goal``, ``sampler``, ``pruner``, ``run_cap``; ``size`` (of the grid, or how many
        different sets there are; None when they cannot be counted), ``bands`` (of hyperband), ``parameters`` (in words),
        ``constants``, and ``samples``: the first ``count`` parameter sets; those of ``method: bayes`` are random draws, as
        its first ones are.

    Raises:
        RequestError: see :meth:`LocalEngine.create`.
    """
    file = read_sweep_file(path)
    plan = check_plan(file, options)
    space = file.space
    if file.method == "grid":
        samples = [point for point, _ in zip(space.grid_points(), range(count), strict=False)]
    else:
        size = space.size
        samples, number = [], 0
        while len(samples) < (count if size is None else min(count, size)) and number < 100 * count:
            params = space.draw(random.Random(f"{plan['seed']}:{number}:0"))
            number += 1
            if params not in samples:
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
        "notes": [*file.notes, *file.local_notes, *length_notes(file, plan["fixed"])],
    }
