"""What the folder of a training run holds, read without changing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitctl.config import TrainConfig
from vitctl.data.layout import class_name
from vitctl.errors import VitctlError
from vitctl.files import is_locked
from vitctl.models.sources import LAST
from vitctl.process.failure import Failure
from vitctl.report.metrics import Floats, Ints
from vitctl.runs.stored import LOCK, METRICS, SUMMARY
from vitctl.training.predictions import read_predictions
from vitctl.training.run_folder import PREDICTIONS, RunFolder
from vitctl.units import plural, printable

State = Literal["finished", "stopped early", "under way", "interrupted", "failed", "not started"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """What a network predicted for the images of a part.

    Attributes:
        labels: true classes, ``[n]``.
        predicted: predicted classes, ``[n]``.
        probabilities: ``[n, K]``; rows sum to 1.
        losses: loss of each image, ``[n]``.
        names: path of each image below :attr:`source`, or ``PART/INDEX`` for images without files.
        source: the data set's folder or origin.
        files: whether the images have files.
    """

    labels: Ints
    predicted: Ints
    probabilities: Floats
    losses: Floats
    names: list[str]
    source: str
    files: bool

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class RunRecord:
    """A training run as its folder describes it.

    Attributes:
        path: the folder.
        name: name of the folder, printable.
        settings: stored settings by name.
        config: the same, checked; None if this version of vitctl does not know them.
        sessions: command, versions and device of each session.
        history: record of each epoch.
        summary: the final figures; empty unless the run has finished.
        failure: why it failed, or None.
        state: how far it is.
        classes: names of the classes, printable; empty if the folder does not hold them.
        test: predictions for the test images, or None.
        held_out: predictions for the held-out images, or None.
        notes: what is missing or damaged, in sentences.
    """

    path: Path
    name: str
    settings: Record
    config: TrainConfig | None
    sessions: list[Record]
    history: list[Record]
    summary: Record
    failure: Failure | None
    state: State
    classes: list[str] = field(default_factory=list)
    test: Predictions | None = None
    held_out: Predictions | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def environment(self) -> Record:
        """Command, versions and device of the last session; empty without sessions."""
        return self.sessions[-1] if self.sessions else {}


def read_run(path: Path) -> RunRecord:
    """Read the folder of a run.

    Raises:
        RequestError: ``path`` is not the folder of a run, or its ``config.json`` is damaged.
    """
    folder = RunFolder.open(path)
    document = folder.read_document()
    notes: list[str] = []
    try:
        config = TrainConfig.from_dict(document["config"])
    except (VitctlError, TypeError) as error:
        config = None
        notes.append(f"Another version of vitctl wrote the settings: {reason(error)}.")
    if document["config"].get("val") == "test":
        notes.append(
            "The test images were evaluated after every epoch (--val test), so choices may have been made on them."
        )
    history = _read_history(folder.path / METRICS, notes)
    summary = folder.read_summary() or {}
    if not summary and (folder.path / SUMMARY).exists():
        notes.append("summary.json is damaged, so the final figures are missing.")
    failure = folder.read_failure()
    run = RunRecord(
        path=folder.path,
        name=printable(folder.path.resolve().name),
        settings=document["config"],
        config=config,
        sessions=[each for each in document["sessions"] if isinstance(each, dict)],
        history=history,
        summary=summary,
        failure=failure,
        state=_state(folder, summary, failure, history),
        notes=notes,
    )
    _add_predictions(run)
    return run


def reason(error: Exception) -> str:
    """Return why something is missing as a clause, with the hint of an expected error."""
    if isinstance(error, VitctlError):
        return "; ".join(filter(None, (error.message, error.hint)))
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _state(folder: RunFolder, summary: Record, failure: Failure | None, history: list[Record]) -> State:
    if summary:
        return "stopped early" if summary.get("stopped_early") else "finished"
    if is_locked(folder.path / LOCK):
        return "under way"
    if failure is not None:
        return "failed"
    return "interrupted" if history or (folder.checkpoints / LAST).exists() else "not started"


def _read_history(path: Path, notes: list[str]) -> list[Record]:
    """Return the epochs' records in order; a line that is not one is skipped and noted."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read: {reason(error)}.")
        return []
    records: dict[int, Record] = {}
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records[int(record["epoch"])] = record
        except (ValueError, TypeError, KeyError):
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        verb = "was" if len(damaged) == 1 else "were"
        notes.append(f"metrics.jsonl is damaged: {plural(len(damaged), 'line')} ({shown}) {verb} skipped.")
    return [records[epoch] for epoch in sorted(records)]


def _add_predictions(run: RunRecord) -> None:
    path = run.path / PREDICTIONS
    step = run.summary.get("step")
    stored = read_predictions(path, int(step)) if isinstance(step, int) else None
    if stored is None:
        if run.summary:
            found = "does not belong to the final weights or is damaged" if path.exists() else "is missing"
            run.notes.append(f"predictions.npz {found}; add --evaluate to evaluate the test images again.")
        return
    run.classes = [printable(class_name(str(name))) for name in stored["classes"].tolist()]
    for part, name in (("test", "test"), ("val", "held_out")):
        if f"{part}_labels" in stored:
            names = stored[f"{part}_paths"].tolist()
            probabilities = stored[f"{part}_probabilities"].astype(np.float64)
            sums = probabilities.sum(1, keepdims=True)
            predictions = Predictions(
                labels=stored[f"{part}_labels"],
                predicted=stored[f"{part}_predicted"],
                probabilities=probabilities / sums,
                losses=stored[f"{part}_losses"].astype(np.float64),
                names=names,
                source=str(stored["source"]),
                files=stored[f"{part}_identities"].tolist() != names,
            )
            setattr(run, name, predictions)


def evaluate_run(run: RunRecord, device: str, data_dir: str | None, say: Callable[[str], None]) -> None:
    """Evaluate the last checkpoint of a run whose folder holds no predictions, and add them.

    Args:
        run: the run, which is changed.
        device: as for ``--device``.
        data_dir: folder of the data; None for that of training.
        say: receives warnings.

    Raises:
        RequestError: the run has no checkpoint, or its data are not available or changed.
    """
    from vitctl import devices
    from vitctl.inference.classifier import classifier_of
    from vitctl.inference.scoring import score_classifier
    from vitctl.inference.trained import load_trained

    chosen = devices.resolve_device(device)
    devices.prepare(chosen, None)
    trained = load_trained(run.path, weights="last", device=chosen, warn=say)
    classifier = classifier_of(trained, chosen)
    run.classes = [printable(name) for name in classifier.classes]
    parts = [("test", "test"), ("val", "held_out")] if classifier.provenance.val == "holdout" else [("test", "test")]
    for part, name in parts:
        scores = score_classifier(classifier, data_dir=data_dir, part=part, limit=trained.config.limit_test)
        probabilities = scores.probabilities.numpy()
        labels = scores.labels.numpy()
        predictions = Predictions(
            labels=labels,
            predicted=probabilities.argmax(1),
            probabilities=probabilities,
            losses=-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(float).tiny)),
            names=scores.images,
            source="",
            files=scores.has_files,
        )
        setattr(run, name, predictions)
    say(f"evaluated {run.path}: {plural(len(scores.labels), 'image')}")
