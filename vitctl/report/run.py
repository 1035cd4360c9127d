"""A stored run with its history and predictions, for a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitctl.config import TrainConfig
from vitctl.data.layout import class_name
from vitctl.errors import VitctlError
from vitctl.files import reason_of
from vitctl.models.sources import CHECKPOINTS, LAST
from vitctl.process.failure import Failure
from vitctl.report.metrics import Floats, Ints
from vitctl.runs.stored import StoredRun, read_run
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


def read_run_record(path: Path) -> RunRecord:
    """Read the folder of a run without changing it.

    Raises:
        RequestError: ``path`` is not the folder of a run, or its ``config.json`` is damaged.
    """
    folder = RunFolder.open(path)
    settings = folder.read_document()["config"]
    stored = read_run(folder.path)
    assert stored is not None  # as its settings were read
    notes = [f"{note}." for note in stored.notes]
    try:
        config = TrainConfig.from_dict(settings)
    except (VitctlError, TypeError, ValueError, AttributeError) as error:
        config = None
        notes.append(f"Another version of vitctl wrote the settings: {reason(error)}.")
    if settings.get("val") == "test":
        notes.append(
            "The test images were evaluated after every epoch (--val test), so choices may have been made on them."
        )
    history, damage = stored.read_history()
    notes += [f"{damage}."] if damage else []
    run = RunRecord(
        path=folder.path,
        name=printable(folder.path.resolve().name),
        settings=settings,
        config=config,
        sessions=stored.sessions,
        history=history,
        summary=stored.summary,
        failure=stored.failure,
        state=_state(stored, history),
        notes=notes,
    )
    _add_predictions(run)
    return run


def reason(error: Exception) -> str:
    """Return why something is missing as a clause, with the hint of an expected error."""
    if isinstance(error, VitctlError):
        return "; ".join(filter(None, (error.message, error.hint)))
    return reason_of(error)


def _state(run: StoredRun, history: list[Record]) -> State:
    if run.state == "finished":
        return "stopped early" if run.summary.get("stopped_early") else "finished"
    if run.state == "running":
        return "under way"
    if run.state == "failed":
        return "failed"
    return "interrupted" if history or (run.path / CHECKPOINTS / LAST).exists() else "not started"


def _add_predictions(run: RunRecord) -> None:
    path = run.path / PREDICTIONS
    step = run.summary.get("step")
    stored = read_predictions(path, step) if isinstance(step, int) else None
    if stored is None or not _are_valid(stored):
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


def _are_valid(stored: Mapping[str, Any]) -> bool:
    """Return whether the arrays of ``predictions.npz`` have the right types, shapes and ranges."""
    classes = stored.get("classes")
    if classes is None or classes.ndim != 1 or classes.dtype.kind != "U" or "source" not in stored:
        return False
    for part in ("test", "val"):
        names = [f"{part}_{name}" for name in ("labels", "predicted", "probabilities", "losses", "paths", "identities")]
        if part == "val" and names[0] not in stored:
            continue
        if any(name not in stored for name in names):
            return False
        labels, predicted, probabilities, losses, paths, identities = (stored[name] for name in names)
        if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
            return False
        if any(each.shape != labels.shape for each in (predicted, losses, paths, identities)):
            return False
        if paths.dtype.kind != "U" or probabilities.dtype.kind != "f" or losses.dtype.kind != "f":
            return False
        if any(each.dtype.kind not in "iu" or not _within(each, 0, len(classes) - 1) for each in (labels, predicted)):
            return False
        if not _within(probabilities, 0, 1) or not (probabilities.sum(1, dtype=np.float64) > 0).all():
            return False
    return True


def _within(values: npt.NDArray[Any], low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).all())  # not so for NaN


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
