"""A small round on digits: train, kill, resume and export."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from vitctl.config import resolve_config
from vitctl.doctor.checks import NETWORK, Difference
from vitctl.export.request import TOLERANCE
from vitctl.observer import SILENT, Observer, Record
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.start import resume_run, start_run

NET = "cct_2:embed_dim=16,depth=1,num_heads=2,conv_width=8"
SETTINGS = {"dataset": "digits", "net": NET, "size": 8, "bs": 64, "epochs": 2, "limit_train": 400, "save_every": "2"}
KILLED_AT = 5
"""Step after which the process is killed, between two checkpoints."""

CLASSES = 10


class _Killed(Observer):
    """Kills the process after :data:`KILLED_AT` steps."""

    def stepped(self, record: Record) -> None:
        """Receive the figures of a step."""
        if record["step"] == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def train(runs: str, name: str, device: str, *, killed: bool = False) -> list[Difference]:
    """Train a run, and return its loss beside that of guessing."""
    config = resolve_config({**SETTINGS, "device": device, "lr": 0.01})
    summary = start_run(config, Path(runs), name, _Killed() if killed else SILENT)
    guessing = float(torch.tensor(CLASSES).log())
    return [Difference("training loss, of at most that of guessing", summary["train_loss"], guessing)]


def train_until_killed(runs: str, name: str, device: str) -> list[Difference]:
    """Train a run, and end this process without a warning."""
    return train(runs, name, device, killed=True)


def resume(runs: str, name: str, other: str, device: str) -> list[Difference]:
    """Resume the run ``name``, and compare its weights with those of the run ``other``, which was not interrupted."""
    resume_run(Path(runs) / name, {}, SILENT)
    after, expected = (
        load_checkpoint(Path(runs) / each / "checkpoints" / "last.pt")["model"] for each in (name, other)
    )
    differences = [float((after[key].double() - expected[key].double()).abs().max()) for key in expected]
    # An accelerator may add up in an order that changes from run to run.
    return [Difference("weights after resuming", max(differences), 0 if device == "cpu" else NETWORK)]


def export(runs: str, name: str) -> list[Difference]:
    """Export a run to ONNX, and compare the outputs."""
    from vitctl.export import pipeline  # only this process loads ONNX
    from vitctl.export.request import ExportRequest

    report = pipeline.export(ExportRequest(path=Path(runs) / name, verify_on=100), SILENT)
    return [Difference("logits of the exported file", report["files"][0]["max_difference"], TOLERANCE)]
