"""W&B: the figures of a run, sent by a process of its own.

W&B's client prompts, retries for minutes, prints, hooks ``sys.exit`` and starts a server of its own. None of that happens
in the training process: :func:`main` runs in one of its own, is told what to send through a pipe, and is killed when it
takes too long, upon which W&B's server ends by itself. Whatever it has not uploaded by then lies in the run's folder, where
``wandb sync`` finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitctl.config import split_tags
from vitctl.files import write_text
from vitctl.observer import Record, RunStart
from vitctl.tracking.tracker import Tracker, numbers
from vitctl.units import mask_passwords

LOAD_SECONDS = 60.0
"""How long the client may take to be loaded: a second, from a disk at hand."""

INIT_SECONDS = 6.0
"""How long the client tries to reach the service before the run goes on offline."""

FINISH_SECONDS = 6.0
"""How long the last figures may take to upload; what is left then is for ``wandb sync``."""

GRACE_SECONDS = 2.0
"""How much longer than that the client may take, whatever it is doing."""

ENDED = "its client ended unexpectedly"
DEFAULT_PROJECT = "vitctl"
STATE = "wandb.json"
FOLDER = "wandb"
LOG = "client.log"

PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from {__name__} import main
main()
"""
"""What the client process runs: without the working folder on its path, with this vitctl wherever it lies."""

COMMAND = (sys.executable, "-P", "-c", PROGRAM)


class WandbRun(Tracker):
    """Sends a run's figures to W&B, or into W&B's files in the run's folder.

    The W&B run is called like the run's folder and keeps its id in ``wandb.json`` there, so that a resumed run goes on in
    it. Figures are drawn over ``epoch``. Trouble with W&B costs a warning and less than 20 seconds.

    Args:
        folder: of the run.
        warn: told, once, of what does not work, and of how to upload what lies in the folder.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        self._client: Client | None = None
        self._offline = False
        self._files = folder / FOLDER
        self._online_folder = ""
        self._state: Record = {}

    def open(self, run: RunStart) -> None:
        """Open the W&B run, or go on offline."""
        settings = run.settings
        wanted = {
            "project": settings["wandb_project"],
            "entity": settings["wandb_entity"],
            "sweep": os.environ.get("WANDB_SWEEP_ID"),
        }
        self._state = self._read_state(wanted)
        # A run may go on from before what was sent, when its newest checkpoint is damaged.
        self._state["epoch"] = min(self._state["epoch"], len(run.history))
        start = {
            **wanted,
            "id": self._state["id"],
            "name": self._folder.name,
            "dir": str(self._folder.absolute()),
            "group": settings["wandb_group"],
            "tags": split_tags(settings["wandb_tags"]),
            "notes": settings["wandb_notes"],
            "argv": [mask_passwords(word) for word in sys.argv],
            "pid": os.getpid(),
            "init_seconds": INIT_SECONDS,
            "finish_seconds": FINISH_SECONDS,
        }
        self._open(start, settings["wandb"])

    def started(self, run: RunStart) -> None:
        """Send the settings, and the epochs that the W&B run does not have."""
        if self._client is not None and self._works():
            self._client.send("config", self._config(run))
            for row in run.history:
                self._send_epoch(row)

    def _open(self, start: Record, mode: str) -> None:
        """Start the client; without the service, a second one that does not need it."""
        reason = ""
        for attempt in ("online", "offline") if mode == "online" else ("offline",):
            client = Client(self._files / LOG, offline=attempt == "offline")
            try:
                client.send("start", {**start, "mode": attempt})
                answer = client.answer(LOAD_SECONDS)
                if "loaded" in answer:
                    answer = client.answer(INIT_SECONDS + GRACE_SECONDS)
            except BaseException:
                client.kill()
                raise
            if "ready" in answer:
                ready = answer["ready"]
                self._client, self._offline = client, attempt == "offline"
                self._state["id"] = ready["id"]
                self._write_state()
                self._online_folder = ready["folder"]
                if reason:
                    self._warn(f"warning: W&B: {reason}; the run goes on offline, and its figures go to {self._files}")
                elif not self._offline:
                    self._warn(f"W&B: {ready['url']}")
                return
            client.kill()
            reason = reason or answer.get("error", "its client does not answer")
        self._warn(f"warning: W&B: {reason}; the run goes on without it")

    def epoch_done(self, record: Record) -> None:
        """Send the record of an epoch."""
        self._send_epoch(record)

    def _send_epoch(self, record: Record) -> None:
        if self._client is None or not self._works() or record["epoch"] <= self._state["epoch"]:
            return
        self._client.send("log", numbers(record))
        self._state["epoch"] = record["epoch"]
        self._write_state()

    def finished(self, summary: Record) -> None:
        """Send the final figures."""
        if self._client is None or not self._works():
            return
        test = {key: summary[key] for key in ("test_loss", "test_acc") if key in summary}
        self._client.send("log", {"epoch": summary["epoch"], **test})
        self._client.send("summary", summary)

    def _works(self) -> bool:
        """Whether the client still answers for itself; says once that it does not."""
        assert self._client is not None
        trouble = self._client.trouble()
        if trouble is None:
            return True
        self._client.kill()
        self._client = None
        self._warn(
            f"warning: W&B: {trouble}; the run goes on without it. What it has so far: {self._sync(self._offline)}"
        )
        return False

    def close(self, exit_code: int) -> None:
        """End the W&B run: finished with 0, failed with anything else. Takes at most 8 seconds."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.send("finish", exit_code)
            answer = client.answer(FINISH_SECONDS + GRACE_SECONDS)
        finally:
            client.kill()
        if not answer.get("done"):
            reason = answer.get("error") or f"the service did not take everything in {FINISH_SECONDS:g} s"
            self._warn(f"warning: W&B: {reason}; to upload the rest: {self._sync(self._offline)}")
        elif any(not list(session.glob("*.synced")) for session in self._files.glob(self._offline_folders())):
            self._warn(f"to upload {'the run' if self._offline else 'earlier sessions'} to W&B: {self._sync(True)}")

    # -- what is kept in the folder ----------------------------------------------------------------------------------

    def _read_state(self, wanted: Mapping[str, Any]) -> Record:
        """Return the id of the W&B run and the last epoch that it was given; another project is another run."""
        path = self._folder / STATE
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            state = json.loads(path.read_text(encoding="utf-8"))
            if all(state[key] == value for key, value in wanted.items()):
                return {**wanted, "id": str(state["id"]), "epoch": int(state["epoch"])}
        # The agent of a sweep says which run this is; otherwise the id is made here, so that the run has the same one
        # whether or not the service answers.
        return {**wanted, "id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), "epoch": 0}

    def _write_state(self) -> None:
        write_text(self._folder / STATE, json.dumps(self._state) + "\n")

    def _config(self, run: RunStart) -> Record:
        """Return what W&B shows as the run's settings: the network, the data, and with which code it was trained."""
        environment = dict(run.environment)
        return {
            **{key: value for key, value in run.settings.items() if not key.startswith(("wandb", "tensorboard"))},
            "params": run.params,
            "total_steps": run.total_steps,
            "train_images": run.train_images,
            "val_split": run.val_split,
            "vitctl_version": environment.pop("vitctl"),
            "git_commit": run.git_commit,
            "environment": environment,
        }

    def _offline_folders(self) -> str:
        """Return the pattern of the folders of offline sessions, this one's and earlier ones'."""
        return f"offline-run-*-{self._state['id']}"

    def _sync(self, offline: bool) -> str:
        """Return the command that uploads what offline sessions left, or what is left of the present one."""
        files = shlex.quote(str(self._files))
        if offline:
            return f"wandb sync {files}/{self._offline_folders()}"
        return f"wandb sync --include-online {files}/{self._online_folder}"


class Client:
    """The process that speaks to W&B.

    Nothing here waits for it but :meth:`answer`: what is sent goes through a thread, as a pipe is full at some point.

    Args:
        log: what W&B prints is appended here.
        offline: it shall not use the network at all.

    Raises:
        OSError: the log cannot be written, or the process not be started.
    """

    def __init__(self, log: Path, *, offline: bool) -> None:
        environment = {**os.environ}
        environment.pop("WANDB_SERVICE", None)  # W&B's server is to end with this client, so not another's
        if offline:
            environment["WANDB_ERROR_REPORTING"] = "false"  # W&B's reports about itself
            for name in ("WANDB_BASE_URL", "WANDB_MODE"):  # of no use without the network, and perhaps mistyped
                environment.pop(name, None)
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                # Ctrl-C is for training, which then ends the W&B run in good order.
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Record] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="wandb writer", daemon=True).start()
        threading.Thread(target=self._read, name="wandb reader", daemon=True).start()

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            while line := self._lines.get():
                pipe.write(line.encode())
                pipe.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as pipe:
            for line in pipe:
                self._answers.put(json.loads(line))
        self._answers.put({"error": ENDED})

    def send(self, kind: str, value: Any) -> None:
        """Send a message, sometime soon."""
        self._lines.put(json.dumps([kind, value]) + "\n")

    def answer(self, seconds: float) -> Record:
        """Return the next answer; empty when there is none in time."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return {}

    def trouble(self) -> str | None:
        """Return what went wrong, if anything did since the last look."""
        try:
            return str(self._answers.get_nowait().get("error", ENDED))
        except queue.Empty:
            return None

    def kill(self) -> None:
        """End the process, if it has not ended; W&B's server sees that and ends too."""
        self._lines.put("")
        self._process.kill()
        self._process.wait()


# -- the client process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Be the client: read messages from stdin, answer on stdout, and end with the process that started this one."""
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # W&B and its server, which inherits these, shall neither read the one nor write to the other.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    exit_code = 1  # of a trainer that ended without a word
    try:
        run, seconds = None, FINISH_SECONDS
        for line in commands:
            kind, value = json.loads(line)
            if kind == "start":
                seconds = value["finish_seconds"]
                run = begin(value, lambda: answer(loaded=True))
                answer(ready={"id": run.id, "url": run.url, "folder": Path(run.dir).parent.name})
            elif kind == "finish":
                exit_code = value
                break
            elif run is not None:
                {
                    "config": partial(run.config.update, allow_val_change=True),
                    "log": run.log,
                    "summary": run.summary.update,
                }[kind](value)
        if run is not None:
            end_after(seconds + GRACE_SECONDS)
            with contextlib.suppress(TimeoutError):
                run.finish(exit_code)
                answer(done=True)
                os._exit(0)
        answer(done=False)
    except BaseException as error:  # noqa: BLE001 - the other process is told, whatever it is
        traceback.print_exception(error)
        answer(error=in_words(error))
    # Without the hooks that W&B registered, which wait for a service that may never answer.
    os._exit(1)


def begin(start: Mapping[str, Any], loaded: Callable[[], None]) -> Any:
    """Open the W&B run.

    Args:
        start: what :meth:`WandbRun.started` made.
        loaded: called when W&B's code is loaded, and no more is to be waited for but the service.

    Raises:
        OSError: nobody is logged in, or the service refuses or does not answer in :data:`INIT_SECONDS`.
    """
    import wandb

    loaded()
    # W&B's own "Stop run" button interrupts its client: pass that on.
    signal.signal(signal.SIGINT, lambda *_: os.kill(start["pid"], signal.SIGINT))
    sys.argv = start["argv"]  # the command that W&B shows
    settings = wandb.Settings(
        silent=True,
        console="off",
        # The code is told by version and commit; the repository around the working folder is not the project's to show.
        disable_git=True,
        disable_code=True,
        save_code=False,
        label_disable=True,
        program="vitctl",
        symlink=False,
        init_timeout=start["init_seconds"],
        finish_timeout=start["finish_seconds"],
        finish_timeout_raises=True,
        x_stats_pid=start["pid"],
    )
    known = wandb.setup(settings).settings  # also from the environment and W&B's files
    place: dict[str, Any] = {}
    if start["sweep"] is None:  # a sweep has its own place
        project = start["project"] or known.project or DEFAULT_PROJECT
        place = {"project": project, "entity": start["entity"], "id": start["id"], "resume": "allow"}
    try:
        run = wandb.init(
            mode=start["mode"],
            dir=start["dir"],
            name=start["name"],
            group=start["group"],
            tags=start["tags"] or None,
            notes=start["notes"],
            allow_val_change=True,  # a resumed run may have more epochs
            settings=settings,
            **place,
        )
    except wandb.Error as error:
        host = urlsplit(known.base_url).netloc.rpartition("@")[2]
        raise OSError(in_words(error, host)) from error
    # Not W&B's own step, which may only grow: a resumed run may give an epoch a second time.
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


NO_KEY = "No API key configured"
WORDS = {
    NO_KEY: "nobody is logged in; type wandb login, or set WANDB_API_KEY",
    r"\b401\b": "{host} does not take the API key; type wandb login --relogin, or set WANDB_API_KEY",
    "deadline exceeded|[Tt]imed out|connection refused|no such host|unreachable": "{host} does not answer",
}
"""What W&B's errors say, and a sentence for it."""


def in_words(error: BaseException, host: str = "the service") -> str:
    """Return a sentence for an error; where there is none, its own first line."""
    text = str(error).strip()
    if found := re.match(r"\d+ validation errors? for Settings\n(\w+)\n\s*([^\[\n]+)", text):  # pydantic's words
        return f"WANDB_{found[1].upper()} cannot be used: {found[2].strip()}"
    for pattern, words in WORDS.items():
        if re.search(pattern, text):
            return words.format(host=host)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def end_after(seconds: float) -> None:
    """End this process in so many seconds, whatever it is doing."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
