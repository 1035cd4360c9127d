"""The agent of a local sweep, which claims trials, trains them in child processes, and prunes them.

An agent claims a trial under a lock shared by all agents, and holds the lock until the trial has parameters, a heartbeat
and the agent's name. Under the lock, a running trial without a name therefore belongs to an agent that died while
claiming it. A trial with a name and an overdue heartbeat belongs to an agent that died later. Both are retried.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState

from vitctl.errors import Interrupted, RunFailed, VitctlError
from vitctl.files import write_failed, write_text
from vitctl.observer import Observer
from vitctl.process.child import Child, LifeLine, Metrics, Trainer, TrialRun, train_command, wait_until_free
from vitctl.process.failure import Failure
from vitctl.process.signals import StopRequest
from vitctl.sweep.images import SweepImages, images_of
from vitctl.sweep.ledger import (
    AGENT,
    EXHAUSTED,
    FAILURE,
    FAILURE_KIND,
    FIXED,
    IMAGES,
    KILLS,
    MAX_RETRIES,
    RUN,
    Ledger,
    root_of,
)
from vitctl.sweep.optuna_parts import WandbPruner
from vitctl.sweep.sampler import Exhausted
from vitctl.sweep.space import Params
from vitctl.sweep.states import AgentEnd, SweepState, TrialEnd
from vitctl.sweep.states import TrialState as TrialStatus
from vitctl.sweep.storage import (
    GRACE,
    HEARTBEAT,
    ClaimLock,
    agent_name,
    diagnose,
    is_storage_error,
    redacted,
    sqlite_file,
    storage_failed,
)
from vitctl.sweep.sweep import Sweep, TrialRow, retry_trial
from vitctl.units import plural

POLL, CHECK = 0.1, 2.0
"""Seconds between checks of a child process, and between checks of the storage for changes by other processes."""

PAUSE = 1.0
"""Seconds to wait before trying again, if no trial can be started or the storage is unavailable."""

OUTAGE = 300.0
"""Seconds after which an agent gives up on an unavailable storage."""

FAILURES_IN_A_ROW = 3


class TrialsFailed(RunFailed):
    """Several trials in a row failed.

    Attributes:
        trial: number of the last trial.
        failure: why the last trial failed.
    """

    def __init__(self, message: str, *, hint: str, trial: int, failure: Failure) -> None:
        super().__init__(message, hint=hint)
        self.trial = trial
        self.failure = failure


class StorageGone(RunFailed):
    """The sweep or its storage was deleted while an agent was running."""


class TrialFailed(Exception):
    """Training of a trial failed."""


class TrialReleased(Exception):
    """The trial is released without a result and will be retried."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a sweep at one time.

    Attributes:
        counts: number of trials in each state.
        total: final number of trials, or None if unlimited.
        running: running trials of all agents.
        images: the images that trials ran on.
        eta: estimated seconds until the sweep finishes, or None.
    """

    state: SweepState
    counts: Mapping[TrialStatus, int]
    total: int | None
    running: Sequence[TrialRow]
    best: Sequence[TrialRow]
    images: SweepImages
    eta: float | None


def take_snapshot(sweep: Sweep, study: Study | None = None, count: int = 5) -> Snapshot:
    """Return the current state of ``sweep``.

    Args:
        sweep: any sweep.
        study: the sweep's study, if it is open; by default, the sweep's reader.
        count: number of best trials to include.

    Raises:
        RunFailed: the storage failed.
    """
    ledger = sweep.ledger(study)
    rows = sweep.rows(ledger)
    left = sweep.left(ledger)
    running = [row for row in rows if row.state == "running"]
    done = [row.seconds for row in rows if row.state in ("complete", "pruned") and row.seconds is not None]
    eta = None
    if left is not None and done and running:
        mean = sum(done[-20:]) / len(done[-20:])
        to_do = (left + ledger.count("waiting")) * mean + sum(max(0.0, mean - (row.seconds or 0)) for row in running)
        eta = to_do / len(running)
    return Snapshot(
        state=sweep.state(ledger, sweep.control(study)),
        counts=ledger.counts,
        total=None if left is None else left + len(ledger.trials),
        running=running,
        best=sweep.top(count, ledger),
        images=SweepImages.of(ledger.trials),
        eta=eta,
    )


@dataclass
class _Slot:
    """The state of a worker."""

    environment: Mapping[str, str]
    trial_id: int | None = None
    number: int = -1
    result: TrialEnd | None = None
    failure: Failure | None = None
    fault: BaseException | None = None
    """Unexpected exception raised by the objective."""


class Agent:
    """Runs trials of a sweep until nothing is left to do.

    Args:
        sweep: the sweep to work on.
        observer: receives every event, in the thread that calls :meth:`run`.
        workers: environment variables of each worker; workers run in parallel, one trial at a time each.
        trainer: returns the command that trains a trial.
        count: maximum number of trials to start.
        max_time: time limit in seconds; running trials are then saved, and the next agent resumes them.
        heartbeat: seconds between heartbeats.
        grace: seconds without a heartbeat after which other agents take over a trial.
        pause: see :data:`PAUSE`.
        retries: maximum number of retries of a trial that is killed in the same epoch each time.
        clock: returns the time in seconds, for ``max_time``.
    """

    def __init__(
        self,
        sweep: Sweep,
        observer: Observer,
        *,
        workers: Sequence[Mapping[str, str]] = ({},),
        trainer: Trainer = train_command,
        count: int | None = None,
        max_time: float | None = None,
        heartbeat: int = HEARTBEAT,
        grace: int = GRACE,
        pause: float = PAUSE,
        retries: int = MAX_RETRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sweep = sweep
        self._observer = observer
        self._workers = [_Slot(environment) for environment in workers]
        self._trainer = trainer
        self._count = count
        self._max_time = max_time
        self._storage = sweep.open(heartbeat, grace)
        self._line = LifeLine()
        self._events: queue.SimpleQueue[Callable[[Observer], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._begun = 0
        self._failures = 0
        self._waiting_reported = False
        self._out_since: float | None = None
        self._last_outage = -math.inf
        self._heartbeat = heartbeat
        self._pause = pause
        self._retries = retries
        self._clock = clock
        self._error: BaseException | None = None
        self._why: AgentEnd = "finished"

    # -- the agent ---------------------------------------------------------------------------------------------------

    def run(self) -> AgentEnd:
        """Run until the sweep is over or this agent's limit is reached, and return why it ended.

        Raises:
            TrialsFailed: three trials failed in a row.
            RunFailed: the storage failed.
            Interrupted: a signal was received; running trials are saved.
        """
        start = self._clock()

        def on_signal(_: int) -> None:
            self._stopping.set()
            self._observer.message("stopping after saving the running trials; press Ctrl-C again to quit immediately")

        with StopRequest(on_signal) as stop:
            # Daemon threads, so that a second signal ends the process at once; their children end with it.
            threads = [threading.Thread(target=self._work, args=(slot,), daemon=True) for slot in self._workers]
            for thread in threads:
                thread.start()
            study = self.sweep.study(self._storage) if self._observer.wants_snapshots else None
            shown = 0.0
            while any(thread.is_alive() for thread in threads):
                self._forward_events(POLL)
                if self._max_time is not None and self._clock() - start >= self._max_time:
                    if not self._stopping.is_set():
                        self._why = "time"
                        self._observer.message("time limit reached; saving the running trials")
                    self._stopping.set()
                if study is not None and time.monotonic() - shown >= CHECK:
                    shown = time.monotonic()
                    self._show(study)
            self._forward_events(0)
            self._release_lost()
            if study is not None:
                self._show(study)
            if self._error is not None:
                raise self._error
            if stop.signum is not None:
                raise Interrupted(
                    "stopped; the running trials are saved",
                    stop.signum,
                    hint=f"resume them: {self.sweep.agent_command}",
                )
        return self._why

    def _forward_events(self, seconds: float) -> None:
        """Forward the queued events to the observer, after waiting up to ``seconds`` for the first one."""
        try:
            event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
            while True:
                event(self._observer)
                event = self._events.get_nowait()
        except queue.Empty:
            pass

    def _show(self, study: Study) -> None:
        with contextlib.suppress(RunFailed):  # the workers handle storage failures
            self._observer.sweep_changed(take_snapshot(self.sweep, study))

    def _release_lost(self) -> None:
        """Enqueue the trials that this agent released, so that the storage shows their state immediately."""
        claim = ClaimLock(self.sweep.url, self.sweep.id)
        try:
            with claim:
                study = self.sweep.study(self._storage)
                for trial in self.sweep.ledger(study).lost:
                    retry_trial(study, trial, self.sweep.file.space)
        except Exception as error:  # if the storage failed, the next agent enqueues them
            if not is_storage_error(error) and not isinstance(error, (VitctlError, optuna.exceptions.OptunaError)):
                raise
        finally:
            self._storage.remove_session()
            self._storage.engine.dispose()

    # -- a worker ----------------------------------------------------------------------------------------------------

    def _work(self, slot: _Slot) -> None:
        try:
            later: list[Study] = []
            study = self.sweep.study(self._storage, sampler=self.sweep.sampler(later), pruner=True)
            later.append(study)
            while not self._stopping.is_set() and self._reserve():
                slot.trial_id, slot.result, slot.failure, slot.fault = None, None, None, None
                outcome = self._claim_and_train(study, slot)
                if not slot.result:
                    with self._lock:
                        self._begun -= 1
                if outcome == "over":
                    break
                if outcome == "wait":
                    self._stopping.wait(self._pause)
                self._count_failures(slot)
        except BaseException as error:  # noqa: BLE001 - the agent's own thread raises it
            with self._lock:
                self._error = self._error or error
            self._stopping.set()
        finally:
            self._storage.remove_session()

    def _reserve(self) -> bool:
        """Count another trial and return True, or return False if ``count`` is reached."""
        with self._lock:
            if self._count is not None and self._begun >= self._count:
                self._why = "count"
                return False
            self._begun += 1
            return True

    def _count_failures(self, slot: _Slot) -> None:
        """Count consecutive failures.

        Raises:
            TrialsFailed: three trials failed in a row.
        """
        with self._lock:
            if slot.result in ("complete", "pruned"):
                self._failures = 0
            elif slot.result in ("failed", "killed"):
                self._failures += 1
                if self._failures >= FAILURES_IN_A_ROW:
                    assert slot.failure is not None
                    if slot.result == "killed":
                        hint = f"continue the sweep: {self.sweep.agent_command}"
                    else:
                        cause = slot.failure.hint or "correct the cause"
                        hint = f"{cause}, then retry: vitctl sweep retry {self.sweep.id} --failed"
                    raise TrialsFailed(
                        f"{self._failures} trials failed in a row; trial {slot.number}: {slot.failure.message} "
                        f"(log: {self._log(slot.number)})",
                        hint=hint,
                        trial=slot.number,
                        failure=slot.failure,
                    )

    def _claim_and_train(self, study: Study, slot: _Slot) -> Literal["ran", "wait", "over"]:
        """Claim a trial and train it.

        Returns:
            ``ran``; ``wait`` if no trial can start now; ``over`` if no more trials will start.
        """
        claim = ClaimLock(self.sweep.url, self.sweep.id)
        try:
            self._check_file()
            claim.acquire()
            decision = self._prepare(study)
            self._out_since = None
            if decision != "claim":
                return decision
            study.optimize(
                lambda trial: self._watched(study, trial, claim, slot),
                n_trials=1,
                catch=(TrialFailed, TrialReleased, Exhausted),
            )
        except Exception as error:
            if isinstance(error, RunFailed) or error is slot.fault:
                raise
            if failed := storage_error_in(error):
                self._outage(failed)
                return "wait"
            # Optuna has no exceptions for a deleted sweep or a lost trial, so query the storage.
            if not self._sweep_exists():
                raise StorageGone(
                    f"sweep {self.sweep.id} was deleted from storage {redacted(self.sweep.url)}",
                    hint=f"create it again: vitctl sweep create {self.sweep.file.name}",
                ) from error
            if slot.trial_id is None or self._is_mine(slot.trial_id):
                raise
            self._lost(slot)
            return "ran"
        finally:
            claim.release()
        return "ran"

    def _prepare(self, study: Study) -> Literal["claim", "wait", "over"]:
        """Enqueue the trials of dead agents again, then decide what to do; the claim lock must be held."""
        sweep = self.sweep
        control = sweep.control(study)
        if time.monotonic() - self._last_outage < 2 * self._heartbeat:
            return "wait"  # the outage stopped all heartbeats: give other agents time to send one
        optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if AGENT not in trial.user_attrs:
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        ledger = Ledger.of(study.get_trials(deepcopy=False), sweep.file.space)
        for trial in ledger.lost:
            retry_trial(study, trial, sweep.file.space)
        running = ledger.count("running")
        if control == "stopped":
            self._why = "stopped"
            return "over"
        if control == "paused":
            self._report_waiting(f"the sweep is paused; resume it with vitctl sweep resume {sweep.id}")
            return "wait"
        if not sweep.target_reached(ledger):
            if ledger.count("waiting") or sweep.left(ledger) != 0:
                self._waiting_reported = False
                return "claim"
            if running:
                trials = plural(running, "running trial")
                self._report_waiting(f"no trial left to start; waiting for {trials} in case an agent dies")
        return "wait" if running else "over"

    def _report_waiting(self, text: str) -> None:
        if not self._waiting_reported:
            self._waiting_reported = True
            self._events.put(lambda observer: observer.message(text))

    def _check_file(self) -> None:
        file = sqlite_file(self.sweep.url)
        if file is not None and not file.exists():
            raise StorageGone(
                f"storage {file} was deleted",
                hint=f"create the sweep again: vitctl sweep create {self.sweep.file.name}",
            )

    def _outage(self, error: BaseException) -> None:
        """Wait for a storage that failed.

        Raises:
            RunFailed: the storage has been unavailable for too long, or cannot recover.
        """
        self._check_file()
        fault = diagnose(error)
        now = self._last_outage = time.monotonic()
        if self._out_since is None:
            self._out_since = now
            text = f"storage unavailable ({fault.reason}); retrying for up to {OUTAGE / 60:.0f} min"
            self._events.put(lambda observer: observer.message(text))
        if fault.final or now - self._out_since > OUTAGE:
            raise storage_failed(self.sweep.url, error) from error
        self._stopping.wait(self._pause)

    def _sweep_exists(self) -> bool:
        return self.sweep.id in optuna.get_all_study_names(self._storage)

    def _is_mine(self, trial_id: int) -> bool:
        return bool(self._storage.get_trial(trial_id).state == TrialState.RUNNING)

    def _lost(self, slot: _Slot) -> None:
        slot.result = "lost"
        self._emit_end(slot, "released", None, "taken over by another agent after missed heartbeats")

    def _watched(self, study: Study, trial: Trial, claim: ClaimLock, slot: _Slot) -> float:
        """Run the objective and record an unexpected exception, which is not one of Optuna's."""
        try:
            return self._objective(study, trial, claim, slot)
        except (optuna.TrialPruned, TrialFailed, TrialReleased, Exhausted):
            raise
        except Exception as error:
            slot.fault = None if storage_error_in(error) else error
            raise

    # -- a trial -----------------------------------------------------------------------------------------------------

    def _objective(self, study: Study, trial: Trial, claim: ClaimLock, slot: _Slot) -> float:
        """Train a trial and return its best value: the objective function for Optuna.

        Raises:
            optuna.TrialPruned: the trial was pruned.
            TrialFailed: training failed.
            TrialReleased: the trial will be retried.
        """
        slot.trial_id = trial._trial_id
        try:
            params: Params = {
                name: parameter.read(suggest_value(trial, name, parameter.optuna()))
                for name, parameter in self.sweep.file.space.varying.items()
            }
        except Exhausted:
            if FIXED in self._storage.get_trial(trial._trial_id).system_attrs:
                why = "no untried parameter set has these values"
                trial.set_user_attr(FAILURE, why)
                self._events.put(lambda observer: observer.message(f"enqueued trial {trial.number} failed: {why}"))
            else:
                trial.set_user_attr(EXHAUSTED, True)
            raise
        slot.number = root_of(self._storage.get_trial(trial._trial_id))
        run = self.sweep.runs_dir / f"{self.sweep.id}-{slot.number:04d}"
        trial.set_user_attr(RUN, str(run))
        self._storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(AGENT, agent_name())
        claim.release()

        slot.result = "released"
        config = self._write_config(slot.number, params)
        wait_until_free(run)
        resumed = run.exists()
        shown = {name: params[name] for name in self.sweep.file.order}
        child = Child(self._trainer(TrialRun(config, run)), self._log(slot.number), slot.environment, self._line)
        self._events.put(lambda observer: observer.trial_started(slot.number, shown, run, resumed))
        try:
            history, pruned = self._follow(study, trial, child, run, slot)
            asked = child.asked  # before the clean-up below sets it
        except UpdateFinishedTrialError:
            child.kill()
            raise TrialReleased from None  # Optuna then fails to end the trial; see _claim_and_train
        finally:
            child.ask()
            while child.wait(POLL) is None:
                pass
        code = child.wait(0)
        metric = self.sweep.file.metric
        if code == 0 and history:
            slot.result = "complete"
            value = metric.best(history)
            self._emit_end(slot, "complete", value, "")
            return value
        if pruned:
            slot.result = "pruned"
            self._emit_end(slot, "pruned", metric.best(history), f"after {plural(len(history), 'value')}")
            raise optuna.TrialPruned
        if asked and code is not None and code != 0:
            self._emit_end(slot, "released", None, "saved; the next agent resumes it")
            raise TrialReleased
        self._fail(trial, child, code, slot, len(history))
        raise AssertionError("unreachable")

    def _follow(self, study: Study, trial: Trial, child: Child, run: Path, slot: _Slot) -> tuple[list[float], bool]:
        """Report the values that training records until it ends, and store the digest of its images.

        Returns:
            The values, and whether the trial was pruned.

        Raises:
            UpdateFinishedTrialError: the trial no longer belongs to this agent.
            RunFailed: the storage failed.
        """
        name = self.sweep.file.metric.name
        metrics = Metrics(run / "metrics.jsonl")
        history: list[float] = []
        unreported: list[tuple[int, float]] = []
        pruned, recorded, checked = False, False, time.monotonic()
        while True:
            code = child.wait(POLL)  # before reading the file, so that its last lines are not missed
            for row in metrics.new():
                value = row.get(name)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    history.append(float(value))
                    unreported.append((row["epoch"], float(value)))
                    self._emit_progress(slot.number, row["epoch"], float(value))
            try:
                reported = bool(unreported)
                if reported and not recorded:
                    self._record_images(study, trial, run, slot)
                    recorded = True
                while unreported:
                    epoch, value = unreported[0]
                    trial.report(value, epoch)
                    del unreported[0]
                # Once for all new values, so that a resumed trial is not compared again at bands that it passed.
                if reported and code is None and not child.asked and trial.should_prune():
                    pruned = True
                    child.ask()
                if time.monotonic() - checked >= CHECK and code is None:
                    checked = time.monotonic()
                    self._check_file()
                    if not self._is_mine(trial._trial_id):
                        raise UpdateFinishedTrialError
                    # W&B's rules stop a trial as soon as better ones appear, not only when it reports.
                    if history and not child.asked and isinstance(study.pruner, WandbPruner) and trial.should_prune():
                        pruned = True
                        child.ask()
                self._out_since = None
            except Exception as error:
                if not is_storage_error(error):
                    raise
                self._outage(error)
            if self._stopping.is_set():
                child.ask()
            if code is not None and not unreported:
                return history, pruned

    def _record_images(self, study: Study, trial: Trial, run: Path, slot: _Slot) -> None:
        """Store the digest of a trial's images, and warn if it differs from that of earlier trials."""
        found = images_of(run, trial.params)
        if found is None:
            return
        trial.set_user_attr(IMAGES, found)
        images = SweepImages.of(self.sweep.ledger(study).trials)
        if slot.number in images.others:
            text = f"trial {slot.number} runs on other images ({found[0][:12]}) than earlier trials"
            self._events.put(lambda observer: observer.message(text))

    def _fail(self, trial: Trial, child: Child, code: int | None, slot: _Slot, epochs: int) -> None:
        """Fail or release a trial whose training ended without a result.

        Args:
            trial: the trial.
            child: the process that trained it.
            code: exit code of the process.
            slot: the worker that ran it.
            epochs: number of epochs finished in all attempts.

        Raises:
            TrialFailed: training failed.
            TrialReleased: the trial will be retried.
        """
        assert code is not None
        failure = child.failure()
        slot.result, slot.failure = "failed", failure
        if failure.kind == "killed":
            slot.result = "killed"
            before, kills = trial.user_attrs.get(KILLS, (epochs, 0))
            kills = kills + 1 if before == epochs else 1
            trial.set_user_attr(KILLS, [epochs, kills])
            if kills <= self._retries:
                self._emit_end(slot, "released", None, f"{failure.message}; it will be retried")
                raise TrialReleased
            failure = replace(failure, message=f"{failure.message} {kills} times in epoch {epochs + 1}")
        elif code == 0:
            failure = Failure(kind="failed", message=f"training recorded no {self.sweep.file.metric.name}")
        elif failure.kind == "busy":
            # A child of an agent that counts as dead is still training, and will end soon.
            slot.result = "released"
            self._emit_end(slot, "released", None, f"{failure.message}; it will be retried")
            raise TrialReleased
        slot.failure = failure
        trial.set_user_attr(FAILURE, failure.message)
        trial.set_user_attr(FAILURE_KIND, failure.kind)
        self._emit_end(slot, "failed", None, f"{failure.message} (log: {self._log(slot.number)})")
        raise TrialFailed

    def _emit_progress(self, number: int, epoch: int, value: float) -> None:
        self._events.put(lambda observer: observer.trial_reported(number, epoch, value))

    def _emit_end(self, slot: _Slot, state: str, value: float | None, why: str) -> None:
        number = slot.number
        self._events.put(lambda observer: observer.trial_ended(number, state, value, why))

    def _log(self, number: int) -> Path:
        return self.sweep.folder / "trials" / f"{number:04d}.log"

    def _write_config(self, number: int, params: Params) -> Path:
        path = self.sweep.folder / "trials" / f"{number:04d}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(error, path) from error
        write_text(path, yaml.safe_dump(self.sweep.plan.settings(params), sort_keys=False))
        return path


def storage_error_in(error: BaseException) -> BaseException | None:
    """Return the database error in the chain of causes of ``error``, or None.

    If Optuna cannot store a result, it raises an AssertionError or UnboundLocalError of its own.
    """
    found: BaseException | None = error
    while found is not None and not is_storage_error(found):
        found = found.__cause__ or found.__context__
    return found


def suggest_value(trial: Trial, name: str, distribution: object) -> Any:
    """Return the value of a parameter of a trial: the sampler's, or the enqueued one."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
