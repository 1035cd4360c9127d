"""Fabricated run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitctl.config import resolve_config

DIGITS = [str(digit) for digit in range(10)]


def make_run(
    folder: Path,
    *,
    epochs: int = 5,
    classes: Sequence[str] = DIGITS,
    images: int = 200,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    finished: bool = True,
    predictions: bool = True,
    **summary: Any,
) -> Path:
    """Write the folder of a run that was never trained: its predictions are those of a network of middling quality."""
    random = np.random.default_rng(seed)
    config = resolve_config({"dataset": "digits", "net": "cct_2", "seed": seed, **(settings or {})})
    folder.mkdir(parents=True)
    session = {"command": "vitctl train --dataset digits", "torch": "2.14.1", "vitctl": "0.1.0", "device": "cpu"}
    document = {"format": 1, "config": config.to_dict(), "sessions": [session]}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": 1e-3 * (1 - epoch / epochs),
            "train_loss": 2.3 / epoch + random.uniform(0, 0.1),
            "train_acc": 100 - 80 / epoch,
            "val_loss": 2.4 / epoch,
            "val_acc": 95 - 80 / epoch + random.uniform(0, 2),
            "val_split": "holdout",
            "epoch_time": 1.5,
            "images_per_second": 1000 + random.uniform(0, 99),
            "data_wait": 0.01,
            "seconds": 1.5 * epoch,
        }
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not finished:
        return folder
    arrays: dict[str, Any] = {"classes": np.array(classes), "source": np.array("digits"), "step": np.array(10 * epochs)}
    for part in ("test", "val"):
        labels = random.integers(len(classes), size=images)
        logits = random.normal(size=(images, len(classes)))
        logits[np.arange(images), labels] += 2.5
        shares = np.exp(2 * logits)
        shares /= shares.sum(1, keepdims=True)
        names = np.array([f"{'test' if part == 'test' else 'train'}/{i}" for i in range(images)])
        arrays |= {
            f"{part}_probabilities": shares.astype(np.float16),
            f"{part}_predicted": shares.argmax(1),
            f"{part}_ranks": (shares > shares[np.arange(images), labels][:, None]).sum(1),
            f"{part}_losses": -np.log(shares[np.arange(images), labels]).astype(np.float32),
            f"{part}_labels": labels,
            f"{part}_paths": names,
            f"{part}_identities": names,
        }
    if predictions:
        np.savez_compressed(folder / "predictions.npz", **arrays)
    accuracy = 100 * float((arrays["test_predicted"] == arrays["test_labels"]).mean())
    final = {
        "step": 10 * epochs,
        "epoch": epochs,
        "test_acc": accuracy,
        "stopped_early": False,
        "seconds": 9.0,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(final), encoding="utf-8")
    return folder
