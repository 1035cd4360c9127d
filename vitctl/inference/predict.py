"""Classification of single images."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitctl import units
from vitctl.cpus import available_cpus
from vitctl.data.decode import UnreadableImage, decode_image
from vitctl.data.reading import Reading
from vitctl.data.tree import HEIF_HINT, find_images
from vitctl.errors import RequestError
from vitctl.files import write_text
from vitctl.inference.classifier import Classifier
from vitctl.observer import SILENT, Observer
from vitctl.training.evaluate import Progress


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of an image.

    Attributes:
        image: path of the image.
        top: class names and probabilities, the most likely first; empty if the image cannot be read.
        error: reason why the image cannot be read, or None.
    """

    image: str
    top: list[tuple[str, float]]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        if self.error is not None:
            return {"image": self.image, "picture": self.image, "error": self.error}
        return {
            "image": self.image,
            "picture": self.image,
            "top": [{"class": name, "probability": p} for name, p in self.top],
        }


def collect(places: Sequence[Path], observer: Observer = SILENT) -> list[Path]:
    """Return the given files, and all images in the given folders and their subfolders, sorted by path.

    Args:
        places: files and folders.
        observer: receives the number of files that were skipped in folders.

    Raises:
        RequestError: a path does not exist, or a folder contains no images.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside, skipped = find_images(place)
            if not inside:
                heif = any(HEIF_HINT in each for each in skipped)
                raise RequestError(
                    f"{place} contains no images{' that Pillow reads' if heif else ''}",
                    hint="run pip install pillow-heif" if heif else "use a folder with images, or the paths of images",
                )
            for line in skipped:
                observer.message(line)
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise RequestError(
                f"{place} is not a file or folder" if place.exists() else f"{place} not found",
                hint="use the path of an image or of a folder with images",
            )
    return found


def predict(
    classifier: Classifier, images: Sequence[Path], *, top: int, progress: Progress | None = None
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order; images are decoded on all cores.

    Images are prepared as in training: rotated upright, and made square and 8-bit in the same way.

    Args:
        classifier: the trained network.
        images: paths of the images.
        top: number of classes per image.
        progress: receives the number of images done.
    """
    paths = iter(images)
    done = 0
    with ThreadPoolExecutor(available_cpus()) as pool:
        while batch := list(islice(paths, classifier.batch)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in training, Pillow's warnings about broken palettes or dates
                decoded = list(pool.map(lambda path: _decode(path, classifier), batch))
            readable = [image for image in decoded if not isinstance(image, str)]
            logits = classifier.logits(torch.from_numpy(np.stack(readable))) if readable else torch.empty(0, top)
            tops = iter(most_likely(logits, classifier.classes, top))
            for path, image in zip(batch, decoded, strict=True):
                if isinstance(image, str):
                    yield Prediction(printable(path), [], image)
                else:
                    yield Prediction(printable(path), next(tops))
            done += len(batch)
            if progress:
                progress(done, len(images))


def printable(path: Path) -> str:
    """Return a path as text, with invalid UTF-8 and unprintable characters escaped."""
    return units.printable(str(path))


def _decode(path: Path, classifier: Classifier) -> npt.NDArray[np.uint8] | str:
    """Return an image, uint8 ``[C, size, size]``, or the reason why it cannot be read."""
    try:
        return prepare_image(path, classifier)
    except UnreadableImage as error:
        return error.reason


def prepare_image(source: str | os.PathLike[str] | Image.Image, classifier: Classifier) -> npt.NDArray[np.uint8]:
    """Return an image as the network's training images were prepared, uint8 ``[C, size, size]``.

    Raises:
        UnreadableImage: the image cannot be read.
    """
    data = classifier.provenance
    image = decode_image(source, classifier.size, Reading(data.fit, data.value_range))  # [3, size, size]
    if classifier.channels == 3:
        return image
    grey = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
    return np.asarray(grey)[None]  # [1, size, size]


def most_likely(logits: Tensor, classes: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """Return the ``top`` most likely classes of each image with their probabilities.

    Args:
        logits: float ``[B, K]``.
        classes: names of the K classes.
        top: number of classes per image.
    """
    best = logits.double().softmax(1).topk(min(top, len(classes)))
    return [
        [(classes[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def write_csv(predictions: Sequence[Prediction], top: int, path: Path) -> None:
    """Write a CSV line per image: ``image, class_1, probability_1, ..., error, picture``.

    The column ``picture`` repeats ``image`` for readers of files from earlier versions.

    Raises:
        RunFailed: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(1, top + 1)
    writer.writerow(
        ["image", *[f"{what}_{rank}" for rank in ranks for what in ("class", "probability")], "error", "picture"]
    )
    for each in predictions:
        cells = [cell for name, p in each.top for cell in (name, f"{p:.6f}")]
        writer.writerow([each.image, *cells, *[""] * (2 * top - len(cells)), each.error or "", each.image])
    write_text(path, text.getvalue())
