"""The interface of sweep engines, which propose and store the trials of a sweep and run its agents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitctl.errors import RequestError
from vitctl.registry import Entry

if TYPE_CHECKING:
    from vitctl.observer import Observer
    from vitctl.sweep.file import SweepFile


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of a new sweep; None means the default.

    Attributes:
        runs_dir: folder of run folders, and of sweep folders in ``sweeps/``.
        storage: URL of the storage; by default a SQLite file in the sweep's folder.
        fixed: settings of ``train`` that the file lacks or sets to a constant, which they replace.
        run_cap: maximum number of trials; replaces that of the file.
        sampler: a name in ``SAMPLERS``.
        pruner: a name in ``PRUNERS``, with options.
        seed: seeds the sampler.
    """

    runs_dir: Path = Path("runs")
    storage: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    run_cap: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    seed: int | None = None

    def given(self, file: SweepFile) -> dict[str, Any]:
        """Return the options that are set, named as in :class:`~vitctl.sweep.sweep.SweepPlan`.

        Raises:
            RequestError: a setting of ``--fixed`` is unknown, invalid, or varied by the file.
        """
        from vitctl.sweep.file import check_fixed

        given = {key: getattr(self, key) for key in ("run_cap", "sampler", "pruner", "seed")}
        if self.fixed:
            given["fixed"] = check_fixed(file, self.fixed)
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """Options of an agent.

    Attributes:
        new: create a new sweep even if the file has one.
        count: maximum number of trials to start.
        jobs: number of parallel trials, 1 by default.
        gpus: CUDA devices that run one trial each in parallel: ``all``, or indices such as ``0,2``.
        max_time: time limit in seconds.
    """

    new: bool = False
    count: int | None = None
    jobs: int | None = None
    gpus: str | None = None
    max_time: float | None = None


class Engine(Protocol):
    """Creates sweeps and runs agents. To add an engine, write a class with these methods and a row of ``ENGINES``."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Create a sweep from a file and return its id.

        Raises:
            RequestError: the file has mistakes, or an option is invalid.
            RunFailed: a service cannot be reached.
        """

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run trials until the sweep is over or a limit in ``asked`` is reached.

        Args:
            target: a sweep's id, or a file. A file stands for its newest sweep, and a sweep is created if it has none.
            options: those of a new sweep. For an existing sweep, every option that is set must match it.
            asked: options of the agent.
            observer: receives every event.

        Raises:
            RequestError: unknown sweep; or the file was edited after the sweep was created, or an option differs.
            RunFailed: trials failed, or a service cannot be reached.
            Interrupted: a signal was received.
        """


@dataclass(frozen=True, kw_only=True)
class EngineEntry(Entry):
    """A row of ``ENGINES``.

    Attributes:
        ids: regular expression that matches ids of this engine only; empty if its ids are not recognisable.
        lacks: options of ``create`` and ``agent`` that the engine does not support.
        page: URL that shows a sweep, with ``{0}``, ``{1}``, ... for the parts of its id.
    """

    ids: str = ""
    lacks: tuple[str, ...] = ()
    page: str = ""

    def refuse(self, name: str, given: Mapping[str, object]) -> None:
        """Refuse options that have no effect with this engine.

        Args:
            name: name of the engine.
            given: options by name; None and False mean that the option was not given.

        Raises:
            RequestError: an option in :attr:`lacks` was given.
        """
        for option, value in given.items():
            if value is not None and value is not False and option in self.lacks:
                flag = "--" + option.replace("_", "-")
                raise RequestError(f"{flag} does nothing with --engine {name}", hint=f"remove {flag}")

    def owns(self, target: str) -> bool:
        """Return whether ``target`` has the form of this engine's ids."""
        return bool(self.ids and re.fullmatch(self.ids, target))
