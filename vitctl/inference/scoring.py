"""How good a trained network is on a set of images, in detail: what ``vitctl eval`` shows."""

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
from vitctl.errors import RequestError
from vitctl.files import write_text
from vitctl.inference.classifier import Classifier
from vitctl.observer import SILENT, Observer
from vitctl.training.evaluate import logits_of


@dataclass(frozen=True)
class Scores:
    """Figures of a network on a set of images.

    Attributes:
        figures: ``loss`` (mean cross entropy), ``top1``, ``top5`` (percent; top5 is None below 6 classes), the same with
            ``_tta`` at the end where ``tta`` asks for them, ``images``, ``seconds``, ``images_per_second``, and which
            checkpoint, data and device they are of.
        classes: per class ``class, precision, recall, f1, support``; the first three in percent.
        confusion: ``[K][K]`` counts, rows true classes, columns predicted ones.
        labels: int64 ``[n]``.
        probabilities: float ``[n, K]``.
    """

    figures: dict[str, Any]
    classes: list[dict[str, Any]]
    confusion: list[list[int]]
    labels: Tensor
    probabilities: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions, as JSON values."""
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
        part: ``test``, ``val`` (what the run held out) or ``train`` (what it trained on).
        limit: evaluate only this many images.
        tta: ``none``, or ``flip`` to also score the mean of the logits of each image and its mirror image.
        skip_bad_images: leave out images that cannot be read.
        observer: is notified of downloads and decoding.

    Raises:
        RequestError: no such data or part, or data of other classes; or mirrored images are to be looked at, and they
            are not of their class.
    """
    other = dataset not in (None, classifier.provenance.dataset) and dataset in DATASETS and not DATASETS[dataset].flip
    if tta == "flip" and (other or not classifier.provenance.flips):
        name = dataset if other else classifier.provenance.dataset
        raise RequestError(f"--tta flip: mirrored images of {name} are not of their class; leave --tta out")
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
        "checkpoint": str(classifier.path),
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
    """Return ``loss``, ``top1`` and ``top5`` of logits, float ``[n, K]``, with ``suffix`` at the end of each name."""
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
    """Read a data set that ``classifier`` can be measured on: the one it was trained on, or one of the same classes.

    With ``download=False`` what is not on this machine is missing.

    Raises:
        RequestError: the data are not there or damaged, or of other classes or channels.
    """
    data = load_dataset(
        dataset or classifier.provenance.dataset,
        data_dir=data_dir or (classifier.data_dir if dataset in (None, classifier.provenance.dataset) else None),
        size=classifier.size,
        skip_bad_images=skip_bad_images or classifier.skip_bad_images,
        observer=observer,
        download=download,
    )
    if data.train.images.shape[1] != classifier.channels:
        raise RequestError(
            f"{data.source} has images of {data.train.images.shape[1]} channels; the network was trained on "
            f"{classifier.channels}"
        )
    if data.classes != classifier.classes:
        theirs, ours = ", ".join(data.classes[:5]), ", ".join(classifier.classes[:5])
        raise RequestError(
            f"{data.source} has {len(data.classes)} classes ({theirs}, ...); the network was trained on "
            f"{len(classifier.classes)} others ({ours}, ...)"
        )
    return data


def part_for(classifier: Classifier, data: Dataset, part: str, limit: int | None) -> Subset:
    """Return the images of a part: ``test``, ``val`` (what training held out) or ``train`` (what it saw).

    Args:
        classifier: says what was held out.
        data: the data set.
        part: which.
        limit: that many images only.

    Raises:
        RequestError: nothing was held out.
    """
    if part == "val" and classifier.provenance.val != "holdout":
        raise RequestError(
            f"the run trained on every training image (--val {classifier.provenance.val}): it has no held-out part"
        )
    if part == "train":
        limit = min((each for each in (limit, classifier.provenance.limit_train) if each is not None), default=None)
    splits = split(
        data,
        val="none"
        if part == "test"
        else classifier.provenance.val,  # a data set with few images a class has test images too
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
    """Return precision, recall and F1 per class in percent, and the confusion matrix, by scikit-learn.

    Args:
        labels: int64 ``[n]``.
        predicted: int64 ``[n]``.
        classes: names of the K classes. One that no image has, or that is never predicted, scores 0.
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
    """Write the figures per class as CSV.

    Raises:
        RunFailed: the file cannot be written.
    """
    _write_csv(path, [list(scores.classes[0]), *[list(row.values()) for row in scores.classes]])


def write_predictions(scores: Scores, path: Path) -> None:
    """Write a line per image as CSV: its place in the part, its class, the predicted one, and the probability of that.

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
