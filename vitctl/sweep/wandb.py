"""The W&B engine: W&B proposes and keeps the trials, its agent starts them, and ``vitctl train`` is what runs.

The file is uploaded with real numbers and named distributions, as W&B's client takes ``1e-4`` for text, and with its
``command`` rewritten.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from vitctl.errors import RequestError, RunFailed
from vitctl.sweep.file import SweepFile, check_fixed, check_trains, parse_sweep_file, read_sweep_file, setting_of
from vitctl.sweep.local import SweepOptions
from vitctl.sweep.sweep import is_file, now

RECORD = "wandb.json"
COMMAND = ["${env}", "${interpreter}", "-m", "vitctl", "train", "${args}"]
COMMAND_WITH_FILE = [*COMMAND[:-1], "--config", "${args_json_file}"]
"""For parameters that have no spelling as flags: those that nest, and ``null``."""

Say = Callable[[str], None]


class WandbEngine:
    """Creates sweeps on W&B and runs W&B's agent."""

    def create(self, path: Path, options: SweepOptions, say: Say) -> str:
        """Upload a sweep file and return ``entity/project/id``.

        Raises:
            RequestError: the file has mistakes, ``--fixed`` cannot be, or nobody is logged in.
            RunFailed: W&B cannot be reached, or refuses.
        """
        file = read_sweep_file(path)
        document = upload_of(file, options)
        check_login()
        import wandb

        for note in file.notes:
            if "val_acc, maximized" in note or "goal" in note or "exponents" in note:
                say(note)
        entity = document.get("entity") or os.environ.get("WANDB_ENTITY")
        project = document.get("project") or os.environ.get("WANDB_PROJECT") or "vitctl"
        with wandb_sentences(), contextlib.redirect_stdout(sys.stderr):
            id = wandb.sweep(document, entity=entity, project=project)
            entity = entity or wandb.Api().default_entity
        full = f"{entity}/{project}/{id}" if entity else str(id)
        self._keep(full, file, options)
        return full

    def agent(self, target: str, options: SweepOptions, *, count: int | None, new: bool, say: Say) -> None:
        """Run W&B's agent until the sweep is over.

        Args:
            target: ``entity/project/id``, or the file whose newest sweep is meant; it is created when there is none.
            options: of a sweep that is created.
            count: begin at most so many trials.
            new: create one, whatever there is.
            say: told of what is done.

        Raises:
            RequestError: no such sweep, the file was edited since, or nobody is logged in.
            RunFailed: W&B cannot be reached, or refuses.
        """
        if is_file(target):
            id = None if new else self._newest(Path(target), options)
            if id is None:
                id = self.create(Path(target), options, say)
            say(f"the sweep {id}")
        else:
            if new:
                raise RequestError(f"--new makes a sweep from a file, and {target!r} is an id; name the file")
            if options.fixed or options.run_cap:
                raise RequestError("--fixed and --run-cap are part of a sweep when it is created; leave them out")
            id = target
        check_login()
        import wandb
        from wandb.sdk.sweeps import SweepNotFoundError

        # "${interpreter}" is the first python on the path: this one, so that its vitctl is found.
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        entity, _, rest = id.rpartition("/")[0].partition("/")
        with wandb_sentences(), contextlib.redirect_stdout(sys.stderr):
            try:
                wandb.agent(id.rpartition("/")[2], entity=entity or None, project=rest or None, count=count)
            except SweepNotFoundError:
                raise RequestError(f"W&B has no sweep {id}, or it was deleted") from None

    def _keep(self, id: str, file: SweepFile, options: SweepOptions) -> None:
        """Remember which sweep came from which file."""
        folder = options.runs_dir / "sweeps" / id.replace("/", "-")
        record = {"id": id, "file": file.name, "created": now(), "fixed": dict(options.fixed), "text": file.text}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"the sweep {id} is created, but {folder} cannot be written: {error.strerror}") from error

    def _newest(self, path: Path, options: SweepOptions) -> str | None:
        """Return the id of the newest sweep that was created from a file, or None.

        Raises:
            RequestError: the file was edited since, or another --fixed is given; the difference is named.
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
    document |= {
        "parameters": parameters,
        "program": "vitctl",
        "command": list(COMMAND_WITH_FILE if nested or nulls else COMMAND),
    }
    if "metric" not in document:
        document["metric"] = {"name": file.metric.name, "goal": file.metric.goal}
    document.setdefault("name", file.title)
    if options.run_cap is not None:
        document["run_cap"] = options.run_cap
    return dict(document)


def check_login() -> None:
    """Refuse when nobody is logged in to W&B, without asking at the terminal.

    Raises:
        RequestError: there are no credentials; the local engine is offered.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if name is not None:
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                if netrc.netrc(os.path.expanduser(name)).authenticators(host):
                    return
    raise RequestError(
        f"--engine wandb needs an account, and nobody is logged in to {host}; type wandb login, or leave --engine wandb out: "
        f"the local engine runs the same file without one"
    )


@contextlib.contextmanager
def wandb_sentences() -> Iterator[None]:
    """Turn W&B's errors into one sentence.

    Raises:
        RunFailed: W&B cannot be reached, or refuses.
    """
    import wandb

    try:
        yield
    except (wandb.Error, OSError, ValueError) as error:
        text = str(error).strip().splitlines()
        raise RunFailed(
            f"W&B failed: {text[0] if text else type(error).__name__}; the local engine runs the same file without it"
        ) from error
