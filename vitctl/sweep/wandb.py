"""The W&B engine: W&B proposes and stores the trials, and its agent runs ``vitctl train`` for each.

The sweep file is uploaded with a new ``command``, named distributions and parsed numbers, because W&B's client reads
``1e-4`` as text.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitctl.config import setting_of
from vitctl.errors import RequestError, RunFailed
from vitctl.files import write_text
from vitctl.observer import Observer
from vitctl.sweep.engine import AgentOptions, SweepOptions
from vitctl.sweep.file import (
    SweepFile,
    check_fixed,
    check_trains,
    parse_sweep_file,
    read_sweep_file,
)
from vitctl.sweep.local import creating, indented, new_needs_file
from vitctl.sweep.notes import notes_of
from vitctl.sweep.sweep import is_file, now
from vitctl.tracking.wandb import DEFAULT_PROJECT, NO_KEY, plain_message

RECORD = "wandb.json"
COMMAND = ["${env}", "${interpreter}", "-m", "vitctl", "train", "${args}"]
COMMAND_WITH_FILE = [*COMMAND[:-1], "--config", "${args_json_file}"]
"""Command for parameters that flags cannot express: nested ones and ``null``."""


class WandbEngine:
    """Creates sweeps on W&B and runs W&B's agent."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Upload a sweep file and return ``entity/project/id``.

        Raises:
            RequestError: the file has mistakes, ``--fixed`` is invalid, or the user is not logged in.
            RunFailed: W&B cannot be reached, or refuses the sweep.
        """
        file = read_sweep_file(path)
        document = upload_of(file, options)
        import wandb

        for note in notes_of(file, check_fixed(file, options.fixed), options.run_cap or file.run_cap):
            observer.message(note)
        with translated_wandb_errors(), contextlib.redirect_stdout(sys.stderr):
            known = wandb.setup().settings  # including the environment and W&B's files
            id = wandb.sweep(
                document,
                entity=document.get("entity") or known.entity,
                project=document.get("project") or known.project or DEFAULT_PROJECT,
            )
            # W&B's client stores the sweep's entity and project in the environment.
            place = [os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity, os.environ.get("WANDB_PROJECT")]
        if not all(place):
            raise RunFailed(
                f"W&B created sweep {id} but did not report its entity or project",
                hint=f"add entity: and project: to {file.name}, and try again",
            )
        full = "/".join([*map(str, place), id])
        self._keep(full, file, options)
        return full

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run W&B's agent until the sweep is over; see :class:`~vitctl.sweep.engine.Engine`.

        Ids have the form ``entity/project/id``.
        """
        if is_file(target):
            with creating(options):  # if two agents start at the same time, only one creates the sweep
                id = None if asked.new else self._newest(Path(target), options)
                if id is None:
                    id = self.create(Path(target), options, observer)
            observer.message(f"sweep {id}")
        else:
            if asked.new:
                raise new_needs_file(target)
            given = {
                "--runs-dir": options.runs_dir != SweepOptions().runs_dir,
                "--fixed": options.fixed,
                "--run-cap": options.run_cap,
            }
            if flags := " and ".join(flag for flag, value in given.items() if value):
                raise RequestError(f"{flags} cannot change an existing W&B sweep", hint=f"remove {flags}")
            id = target
        import wandb
        from wandb.sdk.sweeps import SweepNotFoundError

        # "${interpreter}" is the first python on the path, which must be the one that has vitctl.
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        entity, _, rest = id.rpartition("/")[0].partition("/")
        with translated_wandb_errors(), contextlib.redirect_stdout(sys.stderr):
            try:
                wandb.agent(id.rpartition("/")[2], entity=entity or None, project=rest or None, count=asked.count)
            except SweepNotFoundError:
                raise RequestError(
                    f"W&B sweep {id} not found", hint="use an existing id of the form ENTITY/PROJECT/ID"
                ) from None

    def _keep(self, id: str, file: SweepFile, options: SweepOptions) -> None:
        """Record which file a sweep was created from."""
        folder = options.runs_dir / "sweeps" / id.replace("/", "-")
        record = {
            "id": id,
            "file": file.name,
            "created": now(),
            "fixed": dict(options.fixed),
            "run_cap": options.run_cap or file.run_cap,
            "text": file.text,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        except (OSError, RunFailed) as error:
            reason = error.message if isinstance(error, RunFailed) else f"cannot create {folder}: {error.strerror}"
            raise RunFailed(
                f"created sweep {id} on W&B, but {reason}", hint=f"run an agent with its id: vitctl sweep agent {id}"
            ) from error

    def _newest(self, path: Path, options: SweepOptions) -> str | None:
        """Return the id of the newest sweep of a file, or None.

        Raises:
            RequestError: the file was edited after the sweep was created, or ``--fixed`` or ``--run-cap`` differs.
        """
        file = read_sweep_file(path)
        records: list[dict[str, Any]] = []
        for place in options.runs_dir.glob(f"sweeps/*/{RECORD}"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                record = dict(json.loads(place.read_text(encoding="utf-8")))
                if record.get("file") == file.name and {"id", "created", "text"} <= record.keys():
                    records.append(record)
        if not records:
            return None
        record = max(records, key=lambda record: str(record["created"]))
        lines = parse_sweep_file(record["text"], file.name).difference(file)
        fixed = record.get("fixed", {})
        if options.fixed:
            lines += [
                f"--fixed {key}: {fixed.get(key)} -> {options.fixed.get(key)}"
                for key in sorted({*fixed, *options.fixed})
                if fixed.get(key) != options.fixed.get(key)
            ]
        if options.run_cap is not None and options.run_cap != record.get("run_cap"):
            lines.append(f"--run-cap: {record.get('run_cap')} -> {options.run_cap}")
        if lines:
            raise RequestError(
                f"{file.name} or the options differ from those of sweep {record['id']}:\n{indented(lines)}",
                hint=f"add --new to create another sweep, or continue this one: vitctl sweep agent {record['id']}",
            )
        return str(record["id"])


def upload_of(file: SweepFile, options: SweepOptions) -> dict[str, Any]:
    """Return the document to upload: the file with ``--fixed`` as constants and ``vitctl train`` as the command.

    Raises:
        RequestError: ``--fixed`` is invalid, or ``train`` would refuse a trial.
    """
    fixed = check_fixed(file, options.fixed)
    check_trains(file, fixed)
    document = json.loads(json.dumps(file.document))
    document.pop("controller", None)
    parameters = {name: node for name, node in document["parameters"].items() if setting_of(name) not in fixed}
    parameters |= {name: {"distribution": "constant", "value": value} for name, value in fixed.items()}
    nested = any("parameters" in node for node in parameters.values())
    nulls = any(None in [node.get("value", 0), *node.get("values", ())] for node in parameters.values())
    command = list(COMMAND_WITH_FILE if nested or nulls else COMMAND)
    if options.runs_dir != SweepOptions().runs_dir:
        command[5:5] = ["--runs-dir", str(options.runs_dir.absolute())]
    document |= {
        "parameters": parameters,
        "program": "vitctl",
        "command": command,
    }
    if "metric" not in document:
        document["metric"] = {"name": file.metric.name, "goal": file.metric.goal}
    document.setdefault("name", file.title)
    if options.run_cap is not None:
        document["run_cap"] = options.run_cap
    return dict(document)


@contextlib.contextmanager
def translated_wandb_errors() -> Iterator[None]:
    """Raise W&B's errors as vitctl's, and keep its client from asking for an API key on stdin.

    Raises:
        RequestError: the user is not logged in.
        RunFailed: W&B cannot be reached, or refuses the request.
    """
    import wandb

    with open(os.devnull, encoding="utf-8") as empty:
        stdin, sys.stdin = sys.stdin, empty
        try:
            yield
        except (wandb.Error, OSError, ValueError) as error:  # W&B raises ValueError for bad settings
            words = plain_message(error)
            if words == plain_message(OSError(NO_KEY)):
                raise RequestError(
                    "not logged in to W&B",
                    hint="run wandb login, or set WANDB_API_KEY; --engine local needs no account",
                ) from error
            raise RunFailed(
                f"W&B failed: {words}", hint="use --engine local to run a sweep file without W&B"
            ) from error
        finally:
            sys.stdin = stdin
