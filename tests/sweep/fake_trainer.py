"""A fast stand-in for ``vitctl train``: it locks the run folder, writes metrics per epoch, and resumes after a kill.

    python fake_trainer.py CONFIG RUN [key=value ...]

Options: ``seconds`` per epoch; ``fail``, the learning rate above which training fails; ``silent``, to record no metrics;
``die``, to be killed at the ``begin`` or ``end`` of every epoch; ``images``, the digest of the images.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from vitctl.errors import NotFinite, RunBusy, VitctlError
from vitctl.files import Locked, locked
from vitctl.process.failure import ChildReport
from vitctl.process.signals import watch_parent


def objective(settings: dict) -> float:
    """Return a percentage with its maximum at lr 0.001 and weight_decay 0.02."""
    lr, decay = float(settings["lr"]), float(settings.get("weight_decay", 0.02))
    return 60 - 2e6 * (lr - 1e-3) ** 2 - 4e3 * (decay - 0.02) ** 2


def main() -> None:
    watch_parent()
    config, run = Path(sys.argv[1]), Path(sys.argv[2])
    options = dict(word.split("=") for word in sys.argv[3:])
    settings = yaml.safe_load(config.read_text())
    run.mkdir(parents=True, exist_ok=True)
    with lock_of(run):
        session = {"data_sha256": options["images"]} if "images" in options else {}
        (run / "config.json").write_text(json.dumps({"config": settings, "sessions": [session]}))
        (run / "pid").write_text(str(os.getpid()))
        metrics = run / "metrics.jsonl"
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        with open(run / "starts", "a") as starts:
            starts.write(f"{done}\n")
        for epoch in range(done + 1, int(settings.get("epochs", 5)) + 1):
            time.sleep(float(options.get("seconds", 0.02)))
            if "fail" in options and float(settings["lr"]) > float(options["fail"]):
                raise NotFinite("diverged", step=epoch)
            if options.get("die") == "begin":
                os.kill(os.getpid(), signal.SIGKILL)
            value = objective(settings) * (1 - 0.5**epoch)
            if "silent" not in options:
                with open(metrics, "a") as file:
                    file.write(json.dumps({"epoch": epoch, "val_acc": value, "train_loss": 1 / epoch}) + "\n")
            if options.get("die") == "end":
                os.kill(os.getpid(), signal.SIGKILL)
        (run / "summary.json").write_text("{}")


@contextlib.contextmanager
def lock_of(run: Path) -> Iterator[None]:
    """Lock the run folder as ``vitctl train`` does."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run / ".lock"))
        except Locked:
            raise RunBusy("busy", run=run) from None
        yield


report = ChildReport()
try:
    main()
except VitctlError as error:
    report.write(error)
    sys.exit(f"error: {error}")
