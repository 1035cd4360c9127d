"""What a sweep engine is: who proposes and keeps the trials of a sweep, and runs its agents."""

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
    """What a sweep may be created with; None where nobody said.

    Attributes:
        runs_dir: where run folders, and the sweep's own under ``sweeps/``, lie.
        storage: URL of its storage; a SQLite file in the sweep's folder where None.
        fixed: settings of ``train`` that the file lacks or fixes.
        run_cap: over the file's.
        sampler: a name of ``SAMPLERS``.
        pruner: a name of ``PRUNERS``, with options.
        seed: of the draws.
    """

    runs_dir: Path = Path("runs")
    storage: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    run_cap: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    seed: int | None = None

    def given(self, file: SweepFile) -> dict[str, Any]:
        """Return the given options under the names of :class:`~vitctl.sweep.sweep.SweepPlan`.

        Raises:
            RequestError: a setting of ``--fixed`` cannot be.
        """
        from vitctl.sweep.file import check_fixed

        given = {key: getattr(self, key) for key in ("run_cap", "sampler", "pruner", "seed")}
        if self.fixed:
            given["fixed"] = check_fixed(file, self.fixed)
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """How an agent works.

    Attributes:
        new: on a sweep created now, whatever there is.
        count: begin at most so many trials.
        jobs: trials at once; None is one.
        gpus: ``all``, or indices such as ``0,2``: one trial at once on each of these CUDA devices.
        max_time: seconds.
    """

    new: bool = False
    count: int | None = None
    jobs: int | None = None
    gpus: str | None = None
    max_time: float | None = None


class Engine(Protocol):
    """Creates sweeps and runs agents. A new one is a class with these methods and a row of ``ENGINES``."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Create a sweep from a file and return its id.

        Raises:
            RequestError: the file has mistakes, or an option cannot be.
            RunFailed: a service cannot be reached.
        """

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run trials until the sweep is over or ``asked`` says so.

        Args:
            target: an id; or a file, whose newest sweep is meant, and which makes one when there is none.
            options: of a sweep that is created, or as those of the sweep.
            asked: how to work.
            observer: receives every event.

        Raises:
            RequestError: no such sweep; the file was edited since, or an option differs: the difference is named.
            RunFailed, Interrupted: trials fail, or a service cannot be reached; a signal.
        """


@dataclass(frozen=True, kw_only=True)
class EngineEntry(Entry):
    """A row of ``ENGINES``.

    Attributes:
        ids: regular expression of ids that can be this engine's alone; empty where none says so.
        lacks: options of ``create`` and ``agent`` that the engine decides itself.
        page: where such an id is shown, with ``{0}``, ``{1}`` … for the parts of the id.
    """

    ids: str = ""
    lacks: tuple[str, ...] = ()
    page: str = ""

    def refuse(self, name: str, given: Mapping[str, object]) -> None:
        """Refuse what the engine ``name`` would leave without effect.

        Raises:
            RequestError: an option of :attr:`lacks` was given.
        """
        for option, value in given.items():
            if value is not None and value is not False and option in self.lacks:
                flag = "--" + option.replace("_", "-")
                raise RequestError(
                    f"{flag} is for local sweeps; --engine {name} decides it for its own: leave {flag} or --engine {name} out"
                )

    def owns(self, target: str) -> bool:
        """Whether ``target`` can be nothing but the id of one of this engine's sweeps."""
        return bool(self.ids and re.fullmatch(self.ids, target))
