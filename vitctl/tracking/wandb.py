"""W&B: a run's metrics, sent by a separate client process.

W&B's client prompts, retries for minutes, prints, hooks ``sys.exit`` and starts its own server. To keep all of that out
of the training process, :func:`main` runs in a process of its own. It receives metrics through a pipe and is killed if it
takes too long; W&B's server then ends by itself. Data not uploaded by then remain in the run's folder for ``wandb sync``.
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
"""Time limit for importing W&B, which takes about a second from a local disk."""

INIT_SECONDS = 6.0
"""Time limit for reaching the service; after it, the run continues offline."""

FINISH_SECONDS = 6.0
"""Time limit for uploading the last metrics; after it, the rest is left to ``wandb sync``."""

GRACE_SECONDS = 2.0
"""Time added to these limits before the client is killed."""

ENDED = "the client process ended unexpectedly"
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
"""Program of the client process; it imports this copy of vitctl, and nothing from the working folder."""

COMMAND = (sys.executable, "-P", "-c", PROGRAM)


class WandbRun(Tracker):
    """Sends a run's metrics to W&B, or to W&B's offline files in the run's folder.

    The W&B run has the name of the run's folder. Its id is stored there in ``wandb.json``, so that a resumed run
    continues the same W&B run. Metrics are plotted over ``epoch``. A failure of W&B costs the run a warning and less than
    20 seconds.

    Args:
        folder: the run's folder.
        warn: receives the W&B run's address, warnings, and the command that uploads offline data.
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
        """Open the W&B run, or continue offline."""
        settings = run.settings
        wanted = {
            "project": settings["wandb_project"],
            "entity": settings["wandb_entity"],
            "sweep": os.environ.get("WANDB_SWEEP_ID"),
        }
        self._state = self._read_state(wanted)
        # If the newest checkpoint is damaged, a run resumes before the last epoch that was sent.
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
        """Send the settings, and the epochs that have not been sent."""
        if self._client is not None and self._works():
            self._client.send("config", self._config(run))
            for row in run.history:
                self._send_epoch(row)

    def _open(self, start: Record, mode: str) -> None:
        """Start the client; if it cannot reach the service, start another one offline."""
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
                    self._warn(f"warning: W&B: {reason}\nthe run continues offline; its metrics go to {self._files}")
                elif not self._offline:
                    self._warn(f"W&B: {ready['url']}")
                return
            client.kill()
            reason = reason or answer.get("error", "the client process does not respond")
        self._warn(f"warning: W&B: {reason}\nthe run continues without W&B")

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
        """Send the final metrics."""
        if self._client is None or not self._works():
            return
        test = {key: summary[key] for key in ("test_loss", "test_acc") if key in summary}
        self._client.send("log", {"epoch": summary["epoch"], **test})
        self._client.send("summary", summary)

    def _works(self) -> bool:
        """Return whether the client still works; if not, warn and drop it."""
        assert self._client is not None
        error = self._client.error()
        if error is None:
            return True
        self._client.kill()
        self._client = None
        self._warn(
            f"warning: W&B: {error}; the run continues without it\n"
            f"to upload the metrics so far: {self._sync(self._offline)}"
        )
        return False

    def close(self, exit_code: int) -> None:
        """End the W&B run, as finished if ``exit_code`` is 0, else as failed; this takes at most 8 seconds."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.send("finish", exit_code)
            answer = client.answer(FINISH_SECONDS + GRACE_SECONDS)
        finally:
            client.kill()
        if not answer.get("done"):
            reason = answer.get("error") or f"the upload did not finish within {FINISH_SECONDS:g} s"
            self._warn(f"warning: W&B: {reason}\nto upload the rest: {self._sync(self._offline)}")
        elif any(not list(session.glob("*.synced")) for session in self._files.glob(self._offline_folders())):
            self._warn(f"to upload {'the run' if self._offline else 'earlier sessions'} to W&B: {self._sync(True)}")

    # -- files in the run's folder -----------------------------------------------------------------------------------

    def _read_state(self, wanted: Mapping[str, Any]) -> Record:
        """Return the id of the W&B run and the last epoch sent; another project, entity or sweep gets a new id."""
        path = self._folder / STATE
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            state = json.loads(path.read_text(encoding="utf-8"))
            if all(state[key] == value for key, value in wanted.items()):
                return {**wanted, "id": str(state["id"]), "epoch": int(state["epoch"])}
        # W&B's sweep agent chooses the id. Otherwise it is chosen here, to be the same online and offline.
        return {**wanted, "id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), "epoch": 0}

    def _write_state(self) -> None:
        write_text(self._folder / STATE, json.dumps(self._state) + "\n")

    def _config(self, run: RunStart) -> Record:
        """Return the config of the W&B run: settings, sizes of network and data, and the version of the code."""
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
        """Return a pattern for the folders of all offline sessions of the run."""
        return f"offline-run-*-{self._state['id']}"

    def _sync(self, offline: bool) -> str:
        """Return the command that uploads the offline sessions, or the rest of the present online session."""
        files = shlex.quote(str(self._files))
        if offline:
            return f"wandb sync {files}/{self._offline_folders()}"
        return f"wandb sync --include-online {files}/{self._online_folder}"


class Client:
    """The client process.

    Only :meth:`answer` waits for it. Messages are sent by a thread, as writing to a full pipe would block.

    Args:
        log: file to which W&B's output is appended.
        offline: never use the network.

    Raises:
        OSError: the log cannot be written, or the process cannot be started.
    """

    def __init__(self, log: Path, *, offline: bool) -> None:
        environment = {**os.environ}
        environment.pop("WANDB_SERVICE", None)  # use no other server, as this one must end with the client
        if offline:
            environment["WANDB_ERROR_REPORTING"] = "false"  # it would use the network
            for name in ("WANDB_BASE_URL", "WANDB_MODE"):  # unused offline, but an invalid value would be an error
                environment.pop(name, None)
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                # Ctrl-C must reach only the training process, which then ends the W&B run properly.
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
        """Queue a message for sending."""
        self._lines.put(json.dumps([kind, value]) + "\n")

    def answer(self, seconds: float) -> Record:
        """Return the next answer, or an empty one after ``seconds``."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return {}

    def error(self) -> str | None:
        """Return an error that the client reported since the last call, or None."""
        try:
            return str(self._answers.get_nowait().get("error", ENDED))
        except queue.Empty:
            return None

    def kill(self) -> None:
        """Kill the process if it is running; W&B's server then ends too."""
        self._lines.put("")
        self._process.kill()
        self._process.wait()


# -- the client process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Run the client: read messages from stdin, write answers to stdout, and end with the parent process."""
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # W&B and its server inherit stdin and stdout, but must not use the pipes.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    exit_code = 1  # if the training process ends without a finish message
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
    except BaseException as error:  # noqa: BLE001 - any error is reported to the parent process
        traceback.print_exception(error)
        answer(error=plain_message(error))
    # Skip W&B's exit hooks, which wait for a service that may never respond.
    os._exit(1)


def begin(start: Mapping[str, Any], loaded: Callable[[], None]) -> Any:
    """Open the W&B run.

    Args:
        start: the start message, see :meth:`WandbRun.open`.
        loaded: called once W&B is imported.

    Raises:
        OSError: not logged in, or the service rejects the request or does not respond within :data:`INIT_SECONDS`.
    """
    import wandb

    loaded()
    # W&B's "Stop run" button interrupts the client: forward the signal to the training process.
    signal.signal(signal.SIGINT, lambda *_: os.kill(start["pid"], signal.SIGINT))
    sys.argv = start["argv"]  # the command that W&B shows
    settings = wandb.Settings(
        silent=True,
        console="off",
        # The config has vitctl's version and commit; a repository around the working folder may be unrelated.
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
    known = wandb.setup(settings).settings  # includes those from the environment and W&B's files
    target: dict[str, Any] = {}
    if start["sweep"] is None:  # a sweep determines project, entity and id
        project = start["project"] or known.project or DEFAULT_PROJECT
        target = {"project": project, "entity": start["entity"], "id": start["id"], "resume": "allow"}
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
            **target,
        )
    except wandb.Error as error:
        host = urlsplit(known.base_url).netloc.rpartition("@")[2]
        raise OSError(plain_message(error, host)) from error
    # W&B's own step can only increase, but a resumed run may log an epoch again.
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


NO_KEY = "No API key configured"
WORDS = {
    NO_KEY: "not logged in; run wandb login, or set WANDB_API_KEY",
    r"\b401\b": "{host} rejects the API key; run wandb login --relogin, or set WANDB_API_KEY",
    "deadline exceeded|[Tt]imed out|connection refused|no such host|unreachable": "{host} does not respond",
}
"""Patterns of W&B's error messages, and plain messages for them."""


def plain_message(error: BaseException, host: str = "the service") -> str:
    """Return a plain message for an error of W&B; by default, the first line of its own."""
    text = str(error).strip()
    if found := re.match(r"\d+ validation errors? for Settings\n(\w+)\n\s*([^\[\n]+)", text):  # from pydantic
        return f"WANDB_{found[1].upper()} is invalid: {found[2].strip()}"
    for pattern, words in WORDS.items():
        if re.search(pattern, text):
            return words.format(host=host)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def end_after(seconds: float) -> None:
    """Exit this process after ``seconds``, whatever it is doing."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
