"""Evaluation of a trained network on a set of images, for ``vitctl eval``."""

from __future__ import annotations

import csv
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl import devices
from vitctl.data import DATASETS
from vitctl.data.dataset import Dataset, Subset, load_dataset, split
from vitctl.data.layout import class_name
from vitctl.errors import RequestError
from vitctl.files import write_text
from vitctl.inference.classifier import Classifier
from vitctl.observer import SILENT, Observer
from vitctl.training.evaluate import logits_of
from vitctl.units import escaped


@dataclass(frozen=True)
class Scores:
    """Results of a network on a set of images.

    Attributes:
        figures: ``loss`` (mean cross entropy), ``top1`` and ``top5`` (percent; top5 is None for fewer than 6 classes),
            the same with the suffix ``_tta`` under test-time augmentation, ``images``, ``seconds``,
            ``images_per_second``, and the checkpoint, data and device.
        classes: ``class, precision, recall, f1, support`` of each class; precision, recall and F1 in percent.
        confusion: confusion matrix, ``[K][K]`` counts with a row per true class and a column per predicted class.
        labels: true classes, int64 ``[n]``.
        probabilities: predicted probabilities, float ``[n, K]``.
    """

    figures: dict[str, Any]
    classes: list[dict[str, Any]]
    confusion: list[list[int]]
    labels: Tensor
    probabilities: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the predictions of single images, as JSON values."""
        return {**self.figures, "classes": self.classes, "confusion": self.confusion}


def score_classifier(
    classifier: Classifier,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    part: str = "test",
    limit: int | None = None,
    tta: str = "none",
    skip_bad_images: bool = False,
    observer: Observer = SILENT,
) -> Scores:
    """Evaluate a classifier on a part of a data set.

    Args:
        classifier: a checkpoint's network, or an exported file.
        dataset: name of the data set; None for that of training.
        data_dir: folder of the data; None for that of training.
        part: ``test``, ``val`` (the held-out images) or ``train`` (the images trained on).
        limit: maximum number of images.
        tta: ``none``, or ``flip`` to also evaluate the mean of the logits of each image and its mirror image.
        skip_bad_images: skip images that cannot be read.
        observer: receives the progress of downloads, decoding and evaluation.

    Raises:
        RequestError: the data or the part are not available, or have other classes; or ``tta`` is ``flip`` for a data
            set in which a mirrored image may have another class.
    """
    other = dataset not in (None, classifier.provenance.dataset) and dataset in DATASETS and not DATASETS[dataset].flip
    if tta == "flip" and (other or not classifier.provenance.flips):
        name = dataset if other else classifier.provenance.dataset
        raise RequestError(f"--tta flip: mirrored images of {name} may have another class", hint="remove --tta")
    data = load_data_for(
        classifier, dataset=dataset, data_dir=data_dir, skip_bad_images=skip_bad_images, observer=observer
    )
    subset = part_for(classifier, data, part, limit)
    start = time.perf_counter()
    outputs: list[Tensor] = []
    mirrored: list[Tensor] = []
    for plain, both, _ in logits_of(
        classifier.logits,
        subset,
        classifier.batch,
        mirror=tta == "flip",
        progress=functools.partial(observer.evaluating, part),
    ):
        outputs.append(plain)
        mirrored += [] if both is None else [both]
    seconds = time.perf_counter() - start
    logits = torch.cat(outputs)  # [n, K]
    labels = subset.examples.labels[subset.index]
    figures = {
        "checkpoint": escaped(str(classifier.path)),
        "net": classifier.net,
        "weights": classifier.weights,
        "epoch": classifier.epoch,
        "dataset": data.name,
        "split": part,
        "images": len(labels),
        **_headline(logits, labels),
        **({"tta": tta, **_headline(torch.cat(mirrored), labels, "_tta")} if mirrored else {}),
        "skipped_images": len(data.skipped),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(labels) / seconds, 1),
        "engine": classifier.engine,
        **devices.environment(classifier.device),
    }
    rows, confusion = classification(labels, logits.argmax(1), classifier.classes)
    return Scores(figures, rows, confusion, labels, logits.double().softmax(1))


def _headline(logits: Tensor, labels: Tensor, suffix: str = "") -> dict[str, float | None]:
    """Return ``loss``, ``top1`` and ``top5`` of logits, float ``[n, K]``, with ``suffix`` appended to each name."""
    return {
        f"loss{suffix}": F.cross_entropy(logits.double(), labels).item(),
        f"top1{suffix}": 100 * (logits.argmax(1) == labels).double().mean().item(),
        f"top5{suffix}": 100 * (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
        if logits.shape[1] > 5
        else None,
    }


def load_data_for(
    classifier: Classifier,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    skip_bad_images: bool = False,
    observer: Observer = SILENT,
    download: bool = True,
) -> Dataset:
    """Load the classifier's data set, or another one with the same classes.

    Raises:
        RequestError: the data are missing (and ``download`` is False) or damaged, or have other classes or channels.
    """
    data = load_dataset(
        dataset or classifier.provenance.dataset,
        data_dir=data_dir or (classifier.data_dir if dataset in (None, classifier.provenance.dataset) else None),
        size=classifier.size,
        skip_bad_images=skip_bad_images or classifier.skip_bad_images,
        observer=observer,
        download=download,
        fit=classifier.provenance.fit,
        value_range=classifier.provenance.value_range,
    )
    own = classifier.provenance.dataset
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
    splits = split(
        data,
        val="none"
        if part == "test"
        else classifier.provenance.val,  # holding out may fail on small data sets, and test images do not depend on it
        val_fraction=classifier.provenance.val_fraction,
        split_seed=classifier.provenance.split_seed,
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
        classes: names of the K classes. A class without images, or without predictions, scores 0.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), labels=every, zero_division=0
    )
    rows = [
        {
            "class": name,
            "precision": 100 * float(precision[i]),
            "recall": 100 * float(recall[i]),
            "f1": 100 * float(f1[i]),
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
    """Write a CSV line per image: index in the part, true class, predicted class and its probability.

    Raises:
        RunFailed: the file cannot be written.
    """
    classes = [row["class"] for row in scores.classes]
    best = scores.probabilities.max(1)
    lines = zip(scores.labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    rows = [[i, classes[label], classes[guess], f"{p:.6f}"] for i, (label, guess, p) in enumerate(lines)]
    _write_csv(path, [["index", "label", "predicted", "probability"], *rows])


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    import io

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
