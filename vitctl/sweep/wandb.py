"""The W&B engine: W&B proposes and keeps the trials, its agent starts them, and ``vitctl train`` is what runs.

The file is uploaded with real numbers and named distributions, as W&B's client takes ``1e-4`` for text, and with its
``command`` rewritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitctl.errors import RequestError, RunFailed
from vitctl.files import write_text
from vitctl.observer import Observer
from vitctl.sweep.engine import AgentOptions, SweepOptions
from vitctl.sweep.file import (
    SweepFile,
    check_fixed,
    check_trains,
    length_notes,
    parse_sweep_file,
    read_sweep_file,
    setting_of,
)
from vitctl.sweep.local import creating
from vitctl.sweep.sweep import is_file, now
from vitctl.tracking.wandb import DEFAULT_PROJECT, NO_KEY, in_words

RECORD = "wandb.json"
COMMAND = ["${env}", "${interpreter}", "-m", "vitctl", "train", "${args}"]
COMMAND_WITH_FILE = [*COMMAND[:-1], "--config", "${args_json_file}"]
"""For parameters that have no spelling as flags: those that nest, and ``null``."""


class WandbEngine:
    """Creates sweeps on W&B and runs W&B's agent."""

    def create(self, path: Path, options: SweepOptions, observer: Observer) -> str:
        """Upload a sweep file and return ``entity/project/id``.

        Raises:
            RequestError: the file has mistakes, ``--fixed`` cannot be, or nobody is logged in.
            RunFailed: W&B cannot be reached, or refuses.
        """
        file = read_sweep_file(path)
        document = upload_of(file, options)
        import wandb

        for note in (*file.notes, *length_notes(file, check_fixed(file, options.fixed))):
            observer.message(note)
        with wandb_sentences(), contextlib.redirect_stdout(sys.stderr):
            known = wandb.setup().settings  # from the environment and W&B's files
            id = wandb.sweep(
                document,
                entity=document.get("entity") or known.entity,
                project=document.get("project") or known.project or DEFAULT_PROJECT,
            )
            # W&B's client leaves where the service put it in the environment, for agents.
            place = [os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity, os.environ.get("WANDB_PROJECT")]
        if not all(place):
            raise RunFailed(
                f"the sweep {id} is created, but W&B does not say whose; give entity: in {file.name}, and try again"
            )
        full = "/".join([*map(str, place), id])
        self._keep(full, file, options)
        return full

    def work(self, target: str, options: SweepOptions, asked: AgentOptions, observer: Observer) -> None:
        """Run W&B's agent until the sweep is over; see :class:`~vitctl.sweep.engine.Engine`.

        An id is ``entity/project/id``.
        """
        if is_file(target):
            with creating(options):  # of two that start at once, one creates it
                id = None if asked.new else self._newest(Path(target), options)
                if id is None:
                    id = self.create(Path(target), options, observer)
            observer.message(f"the sweep {id}")
        else:
            if asked.new:
                raise RequestError(f"--new makes a sweep from a file, and {target!r} is an id; name the file")
            if options.runs_dir != SweepOptions().runs_dir:
                raise RequestError("--runs-dir is part of a sweep on W&B when it is created; leave it out")
            if options.fixed or options.run_cap:
                raise RequestError("--fixed and --run-cap are part of a sweep when it is created; leave them out")
            id = target
        import wandb
        from wandb.sdk.sweeps import SweepNotFoundError

        # "${interpreter}" is the first python on the path: this one, so that its vitctl is found.
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        entity, _, rest = id.rpartition("/")[0].partition("/")
        with wandb_sentences(), contextlib.redirect_stdout(sys.stderr):
            try:
                wandb.agent(id.rpartition("/")[2], entity=entity or None, project=rest or None, count=asked.count)
            except SweepNotFoundError:
                raise RequestError(f"W&B has no sweep {id}, or it was deleted") from None

    def _keep(self, id: str, file: SweepFile, options: SweepOptions) -> None:
        """Remember which sweep came from which file."""
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
            raise RunFailed(f"the sweep {id} is created, but {folder} cannot be written: {error}") from error

    def _newest(self, path: Path, options: SweepOptions) -> str | None:
        """Return the id of the newest sweep that was created from a file, or None.

        Raises:
            RequestError: the file was edited since, or another --fixed or --run-cap is given; the difference is named.
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
                f"the sweep {record['id']}, created from {file.name}, differs; --new starts another sweep, {record['id']} in "
                f"place of the file goes on with this one:\n" + "\n".join(f"  {line}" for line in lines)
            )
        return str(record["id"])


def upload_of(file: SweepFile, options: SweepOptions) -> dict[str, Any]:
    """Return what W&B is given: the file with ``--fixed`` as constants, and ``vitctl train`` as its command.

    Raises:
        RequestError: ``--fixed`` cannot be, or ``train`` would refuse a trial.
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
def wandb_sentences() -> Iterator[None]:
    """Turn W&B's errors into one sentence, and keep its client from asking for a key at the terminal.

    Raises:
        RequestError: nobody is logged in; the local engine is offered.
        RunFailed: W&B cannot be reached, or refuses.
    """
    import wandb

    with open(os.devnull, encoding="utf-8") as nobody:
        stdin, sys.stdin = sys.stdin, nobody
        try:
            yield
        except (wandb.Error, OSError, ValueError) as error:  # ValueError: also of settings
            words = in_words(error)
            if words == in_words(OSError(NO_KEY)):
                raise RequestError(
                    f"--engine wandb needs an account: {words}, or leave --engine wandb out: the local engine runs the same "
                    f"file without one"
                ) from error
            raise RunFailed(f"W&B failed: {words}; the local engine runs the same file without it") from error
        finally:
            sys.stdin = stdin
