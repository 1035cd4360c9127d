"""Evaluation of a trained network on a set of images, for ``vitctl eval``."""

from __future__ import annotations

import csv
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl import devices
from vitctl.data import DATASETS
from vitctl.data.dataset import Dataset, Subset, image_names, load_dataset, split
from vitctl.data.layout import Undivided, class_name
from vitctl.data.manifest import MANIFEST, Manifest, require_unchanged
from vitctl.errors import RequestError
from vitctl.files import write_text
from vitctl.inference.classifier import Classifier
from vitctl.inference.predict import printable
from vitctl.observer import SILENT, Observer
from vitctl.training.evaluate import balanced_accuracy, logits_of, tta_views, uneven
from vitctl.training.predictions import read_predictions
from vitctl.training.run_folder import PREDICTIONS
from vitctl.units import escaped, plural

_TOP = 3
"""Classes per image in the table of predictions."""


@dataclass(frozen=True)
class Scores:
    """Results of a network on a set of images.

    Attributes:
        figures: ``loss`` (mean cross entropy), ``top1`` and ``top5`` (percent; top5 is None for fewer than 6 classes),
            ``balanced_acc`` (mean recall in percent; None if the classes are about equally large), the same with the
            suffix ``_tta`` under test-time augmentation, ``images``, ``seconds``, ``images_per_second``, and the
            checkpoint, data and device. Speed and device are None for stored predictions.
        classes: ``class, precision, recall, f1, support`` of each class; precision, recall and F1 in percent, or
            None for a class without images.
        confusion: confusion matrix, ``[K][K]`` counts with a row per true class and a column per predicted class.
        labels: true classes, int64 ``[n]``.
        probabilities: predicted probabilities, float ``[n, K]``.
        images: path of each image, or ``PART/INDEX`` in the data set for images without files.
        has_files: whether the images have files.
    """

    figures: dict[str, Any]
    classes: list[dict[str, Any]]
    confusion: list[list[int]]
    labels: Tensor
    probabilities: Tensor
    images: list[str]
    has_files: bool

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the predictions of single images, as JSON values."""
        return {**self.figures, "classes": self.classes, "confusion": self.confusion}


def score_classifier(
    classifier: Classifier,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    labels: str | None = None,
    part: str = "test",
    limit: int | None = None,
    accept_data: bool = False,
    tta: str = "none",
    skip_bad_images: bool = False,
    observer: Observer = SILENT,
) -> Scores:
    """Evaluate a classifier on a part of a data set.

    Args:
        classifier: a checkpoint's network, or an exported file.
        dataset: name of the data set; None for that of training.
        data_dir: folder of the data; None for that of training.
        labels: CSV file with the labels of a folder's images; None for that of training, if it exists there.
        part: ``test``, ``val`` (the held-out images) or ``train`` (the images trained on).
        limit: maximum number of images.
        accept_data: evaluate ``val`` or ``train`` even if the training data changed.
        tta: ``none``, or ``flip`` or ``crops`` to also evaluate the average of the logits of several views, see
            :func:`~vitctl.training.evaluate.tta_views`.
        skip_bad_images: skip images that cannot be read.
        observer: receives the progress of downloads, decoding and evaluation.

    Raises:
        RequestError: the data or the part are not available, have other classes, or changed; or ``tta`` is ``flip`` for
            a data set in which a mirrored image may have another class.
    """
    other = dataset not in (None, classifier.provenance.dataset) and dataset in DATASETS and not DATASETS[dataset].flip
    flips = classifier.provenance.flips and not other
    if tta == "flip" and not flips:
        name = dataset if other else classifier.provenance.dataset
        raise RequestError(f"--tta flip: mirrored images of {name} may have another class", hint="use --tta crops")
    data = load_data_for(
        classifier,
        dataset=dataset,
        data_dir=data_dir,
        labels=labels,
        only_test=part == "test",
        skip_bad_images=skip_bad_images,
        observer=observer,
    )
    manifest = classifier.path.parent.parent / MANIFEST  # missing unless the checkpoint is in a run's folder
    if part == "test" and data_dir is not None and data.manifest is not None:
        seen = data.manifest.seen_in(Manifest.read(manifest) or Manifest({}))
        if seen:
            observer.message(
                f"warning: {seen:,} of {plural(len(data.test), 'image')} equal images that the run trained on or held out"
            )
    accepted = None
    if part != "test" and data.name == classifier.provenance.dataset:
        accepted = require_unchanged(
            data.manifest,
            classifier.provenance.data_sha256,
            manifest,
            data.source,
            accept=accept_data,
            hint="restore them, or add --accept-data, or use --split test",
        )
    subset = part_for(classifier, data, part, limit)
    start = time.perf_counter()
    outputs: list[Tensor] = []
    averaged: list[Tensor] = []
    for plain, average, _ in logits_of(
        classifier.logits,
        subset,
        classifier.batch,
        views=tta_views(tta, flips),
        progress=functools.partial(observer.evaluating, part),
    ):
        outputs.append(plain)
        averaged += [] if average is None else [average]
    seconds = time.perf_counter() - start
    logits = torch.cat(outputs)  # [n, K]
    truth = subset.examples.labels[subset.index]
    figures = {
        **_identity(classifier, data.name, part, len(truth)),
        **_headline(logits, truth),
        **({"tta": tta, **_headline(torch.cat(averaged), truth, "_tta")} if averaged else {}),
        "skipped_images": len(data.skipped),
        **({"accepted_data": accepted} if accepted else {}),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(truth) / seconds, 1),
        "engine": classifier.engine,
        **devices.environment(classifier.device),
    }
    rows, confusion = classification(truth, logits.argmax(1), classifier.classes)
    names = image_names(data, subset.examples, subset.index.tolist())
    has_files = bool(subset.examples.paths)
    images = _full_paths(data.source, names) if has_files else names
    return Scores(figures, rows, confusion, truth, logits.double().softmax(1), images, has_files)


def _full_paths(source: str, names: list[str]) -> list[str]:
    return [printable(Path(source) / name) for name in names]


def _identity(classifier: Classifier, dataset: str, part: str, images: int) -> dict[str, Any]:
    """Return the figures that identify checkpoint and data."""
    return {
        "checkpoint": escaped(str(classifier.path)),
        "net": classifier.net,
        "weights": classifier.weights,
        "epoch": classifier.epoch,
        "dataset": dataset,
        "split": part,
        "images": images,
    }


def stored_scores(classifier: Classifier, part: str) -> Scores | None:
    """Return the scores that a run stored when it ended, without reading its data again.

    Their loss, accuracies and predictions are exact; the probabilities were rounded to half precision.

    Args:
        classifier: the network of a checkpoint.
        part: ``test`` or ``val``.

    Returns:
        The scores, or None if the run stored none of these weights, or only of some images.
    """
    trained = classifier.trained
    if trained is None or trained.config.limit_test is not None:
        return None
    path = classifier.path.parent.parent / PREDICTIONS
    stored = read_predictions(path, trained.step)
    if stored is None or f"{part}_labels" not in stored:
        return None
    truth, predicted, ranks, losses, probabilities = (
        torch.from_numpy(stored[f"{part}_{name}"])
        for name in ("labels", "predicted", "ranks", "losses", "probabilities")
    )
    figures = {
        **_identity(classifier, classifier.provenance.dataset, part, len(truth)),
        "loss": losses.double().mean().item(),
        **_accuracies(truth, predicted, ranks, len(classifier.classes)),
        "skipped_images": None,
        "seconds": None,
        "images_per_second": None,
        "engine": f"{path.name}, stored when the run ended",
        **dict.fromkeys(devices.environment(classifier.device)),
    }
    rows, confusion = classification(truth, predicted, classifier.classes)
    # The predicted class first, also where rounding made probabilities equal.
    probabilities = probabilities.double().scatter_add(
        1, predicted[:, None], torch.full((len(truth), 1), 1e-9).double()
    )
    names = stored[f"{part}_paths"].tolist()
    has_files = stored[f"{part}_identities"].tolist() != names
    images = _full_paths(str(stored["source"]), names) if has_files else names
    return Scores(figures, rows, confusion, truth, probabilities, images, has_files)


def _headline(logits: Tensor, labels: Tensor, suffix: str = "") -> dict[str, float | None]:
    """Return loss and accuracies as in :class:`Scores`, with ``suffix`` appended to each name.

    Args:
        logits: float ``[n, K]``.
        labels: true classes, int64 ``[n]``.
        suffix: end of the names.
    """
    loss = F.cross_entropy(logits.double(), labels).item()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    accuracies = _accuracies(labels, logits.argmax(1), ranks, logits.shape[1])
    return {f"{name}{suffix}": value for name, value in {"loss": loss, **accuracies}.items()}


def _accuracies(labels: Tensor, predicted: Tensor, ranks: Tensor, classes: int) -> dict[str, float | None]:
    """Return the accuracies of :class:`Scores`; ``ranks`` as in :class:`~vitctl.training.evaluate.Evaluation`."""
    return {
        "top1": 100 * (predicted == labels).double().mean().item(),
        "top5": 100 * (ranks < 5).double().mean().item() if classes > 5 else None,
        "balanced_acc": balanced_accuracy(labels, predicted) if uneven(labels.bincount()) else None,
    }


def load_data_for(
    classifier: Classifier,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    labels: str | None = None,
    only_test: bool = False,
    skip_bad_images: bool = False,
    observer: Observer = SILENT,
    download: bool = True,
) -> Dataset:
    """Load the classifier's data set, or another one with the same classes.

    Of another folder with ``only_test``, only the test images are read, and classes may be missing. If the folder is
    not divided, all images are test images, unless it has the training data: then those that ``--test-fraction`` chose.

    Raises:
        RequestError: the data are missing (and ``download`` is False) or damaged, or have other classes or channels.
    """
    own = classifier.provenance.dataset
    name = dataset or own
    if labels is not None and name != "folder":
        raise RequestError(f"--labels does nothing with {name}", hint="remove --labels, or use --dataset DIR")
    load = functools.partial(
        load_dataset,
        name,
        data_dir=data_dir or (classifier.data_dir if name == own else None),
        labels=labels or (_own_labels(classifier, data_dir) if name == own else None),
        size=classifier.size,
        skip_bad_images=skip_bad_images or classifier.skip_bad_images,
        download=download,
        fit=classifier.provenance.fit,
        value_range=classifier.provenance.value_range,
    )
    fraction = classifier.provenance.test_fraction
    if only_test and name == "folder" and data_dir is not None:
        divided = dataset is None or _same_folder(data_dir, classifier.data_dir)
        if fraction is not None and not divided:
            divided = _has_images(load, fraction, classifier.provenance.data_sha256)
        data = load(test_classes=classifier.classes, test_fraction=fraction if divided else None, observer=observer)
    else:
        try:
            data = load(test_fraction=fraction, observer=observer)
        except Undivided as error:
            raise RequestError(error.message, hint="use --split test to evaluate on these images") from error
    hint = f"use --dataset {own}" if dataset not in (None, own) else f"use --data-dir with the images of {own}"
    if data.train.images.shape[1] != classifier.channels:
        raise RequestError(
            f"{data.source} has images with {data.train.images.shape[1]} channels, but the network was trained on "
            f"{classifier.channels}",
            hint=hint,
        )
    if data.classes != tuple(map(class_name, classifier.classes)):  # earlier versions exported the folders' names
        theirs, ours = ", ".join(data.classes[:5]), ", ".join(classifier.classes[:5])
        raise RequestError(
            f"{data.source} has {len(data.classes)} classes ({theirs}, ...), but the network was trained on "
            f"{len(classifier.classes)} others ({ours}, ...)",
            hint=hint,
        )
    return data


def _has_images(load: Callable[..., Dataset], fraction: float, digest: str) -> bool:
    """Return whether the data set is a copy of the one with the digest, divided by ``fraction``."""
    try:
        manifest = load(test_fraction=fraction).manifest
    except RequestError:  # other classes, or a test set
        return False
    return manifest is not None and manifest.digest == digest


def _same_folder(folder: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(folder) == os.path.realpath(other)


def _own_labels(classifier: Classifier, data_dir: str | None) -> str | None:
    """Return the file with the labels of the training data, unless the data are in another folder without it."""
    if classifier.labels is None or data_dir is None:
        return classifier.labels
    inside = not Path(classifier.labels).is_absolute() and (Path(data_dir) / classifier.labels).is_file()
    return classifier.labels if inside else None


def part_for(classifier: Classifier, data: Dataset, part: str, limit: int | None) -> Subset:
    """Return a part of a data set: ``test``, ``val`` (the held-out images) or ``train`` (the images trained on).

    Args:
        classifier: the trained network; its provenance determines the held-out images.
        data: the data set.
        part: name of the part.
        limit: maximum number of images.

    Raises:
        RequestError: the part is ``val``, and no images were held out.
    """
    if part == "val" and classifier.provenance.val != "holdout":
        raise RequestError(
            f"--split val: the run has no held-out images, as it was trained with --val {classifier.provenance.val}",
            hint="use --split test or --split train",
        )
    if part == "train":
        limit = min((each for each in (limit, classifier.provenance.limit_train) if each is not None), default=None)
    # Test images do not depend on the held-out ones, and a small data set may have too few images to hold out any.
    val = "none" if part == "test" else classifier.provenance.val
    splits = split(
        data,
        val=val,
        val_fraction=classifier.provenance.val_fraction,
        split_seed=classifier.provenance.split_seed,
        holdout_by=classifier.provenance.holdout_by,
        limit_train=limit if part == "train" else None,
        limit_test=limit if part != "train" else None,
    )
    chosen = {"train": splits.train, "val": splits.val, "test": splits.test}[part]
    assert chosen is not None
    return chosen


def classification(
    labels: Tensor, predicted: Tensor, classes: tuple[str, ...]
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return precision, recall and F1 of each class in percent, and the confusion matrix, from scikit-learn.

    Args:
        labels: true classes, int64 ``[n]``.
        predicted: predicted classes, int64 ``[n]``.
        classes: names of the K classes. A class without predictions scores 0, and one without images None.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), labels=every, zero_division=0
    )
    rows = [
        {
            "class": name,
            "precision": 100 * float(precision[i]) if support[i] else None,
            "recall": 100 * float(recall[i]) if support[i] else None,
            "f1": 100 * float(f1[i]) if support[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]
    return rows, confusion_matrix(labels.numpy(), predicted.numpy(), labels=every).tolist()


def write_class_table(scores: Scores, path: Path) -> None:
    """Write the metrics of each class as CSV.

    Raises:
        RunFailed: the file cannot be written.
    """
    _write_csv(path, [list(scores.classes[0]), *[list(row.values()) for row in scores.classes]])


def write_predictions(scores: Scores, path: Path) -> None:
    """Write a CSV line per image: its index among those evaluated, classes, path, and the most likely classes.

    The columns are ``index, label, predicted, probability, image, class_1, probability_1, ...``, for up to
    :data:`_TOP` classes; the last ones are named as in the table of ``vitctl predict``.

    Raises:
        RunFailed: the file cannot be written.
    """
    classes = [row["class"] for row in scores.classes]
    ranks = range(min(_TOP, len(classes)))
    # Stable, so that among equal probabilities the first class is predicted, as argmax does.
    values, indices = (each[:, : len(ranks)] for each in scores.probabilities.sort(dim=1, descending=True, stable=True))
    rows: list[list[Any]] = [
        ["index", "label", "predicted", "probability", "image"]
        + [f"{what}_{rank + 1}" for rank in ranks for what in ("class", "probability")]
    ]
    lines = zip(scores.labels.tolist(), scores.images, indices.tolist(), values.tolist(), strict=True)
    for i, (label, image, guesses, probabilities) in enumerate(lines):
        top = [(classes[guess], f"{p:.6f}") for guess, p in zip(guesses, probabilities, strict=True)]
        rows.append([i, classes[label], *top[0], image, *[cell for pair in top for cell in pair]])
    _write_csv(path, rows)


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    import io

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
