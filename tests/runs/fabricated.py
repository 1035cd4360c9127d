"""Run folders without training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitctl.config import resolve_config
from vitctl.data.manifest import ImageEntry, Manifest

SETTINGS = resolve_config({"net": "vit_small", "opt": "adamw", "dataset": "digits", "epochs": 3}).to_dict()

SESSION = {
    "command": "vitctl train --net vit_small",
    "started": "2026-11-30T08:05:00+00:00",
    "step": 0,
    "git_commit": "1" * 40,
    "vitctl": "0.1.0",
    "torch": "2.14.1",
    "python": "3.11.7",
    "platform": "Linux",
    "device": "cpu",
    "device_name": "a processor",
    "threads": 2,
    "cpus": 4,
    "micro_batch": 64,
    "precision": "fp32",
    "compiled": False,
}

Record = dict[str, Any]


def epoch_record(epoch: int, **more: Any) -> Record:
    """Return the record of an epoch."""
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 0.0001,
        "train_loss": 2.0 / epoch,
        "train_acc": 50.0 + epoch,
        "val_loss": 2.5 / epoch,
        "val_acc": 40.0 + epoch,
        "val_split": "holdout",
        "epoch_time": 9.0,
        "images_per_second": 150.0,
        "seconds": 10.0 * epoch,
        **more,
    }


def make_run(
    path: Path,
    *,
    epochs: int = 3,
    test_acc: float | None = 80.0,
    settings: Mapping[str, Any] | None = None,
    session: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    images: Mapping[str, str] | None = None,
    age: int = 0,
) -> Path:
    """Write the folder of a run, and return it.

    Args:
        path: the folder.
        epochs: epochs in ``metrics.jsonl``.
        test_acc: test accuracy of the summary; None for a run that has not finished.
        settings: settings that differ from :data:`SETTINGS`.
        session: fields that differ from :data:`SESSION`.
        summary: further fields of the summary.
        images: digest of the pixels of each image, for a manifest.
        age: seconds since the run started.
    """
    (path / "checkpoints").mkdir(parents=True)
    (path / ".lock").touch()
    manifest = Manifest.of((name, ImageEntry(1, content)) for name, content in (images or {}).items())
    if images:
        manifest.write(path / "data.json.gz")
    last = {**SESSION, **({"data_sha256": manifest.digest} if images else {}), **(session or {})}
    document = {"format": 1, "config": {**SETTINGS, **(settings or {})}, "sessions": [last]}
    (path / "config.json").write_text(json.dumps(document))
    os.utime(path / "config.json", (1e9 - age, 1e9 - age))
    rows = [epoch_record(epoch) for epoch in range(1, epochs + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if test_acc is not None:
        document = {
            "name": path.name,
            "net": document["config"]["net"],
            "lr": 0.0001,
            "epoch": epochs,
            "test_acc": test_acc,
            "test_loss": 0.5,
            "val_acc": 40.0 + epochs,
            "seconds": 10.0 * epochs,
            "train_images": 1000,
            "test_images": 200,
            **(summary or {}),
        }
        (path / "summary.json").write_text(json.dumps(document))
    return path
