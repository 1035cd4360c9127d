"""What a trained network, or an exported file, says of single images."""

from __future__ import annotations

import csv
import io
import os
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

from vitctl.data.folder import UnreadableImage, decode_image, find_images
from vitctl.errors import RequestError
from vitctl.files import write_text
from vitctl.inference.classifier import Classifier
from vitctl.training.evaluate import Progress


@dataclass(frozen=True)
class Prediction:
    """What is said of an image.

    Attributes:
        image: its path.
        top: class names and probabilities, the likeliest first; empty where it cannot be read.
        error: why it cannot be read, or None.
    """

    image: str
    top: list[tuple[str, float]]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        if self.error is not None:
            return {"image": self.image, "picture": self.image, "error": self.error}
        return {
            "image": self.image,
            "picture": self.image,
            "top": [{"class": name, "probability": p} for name, p in self.top],
        }


def collect(places: Sequence[Path]) -> list[Path]:
    """Return the images that are meant: files as they are named, and all in and below folders, by path.

    Raises:
        RequestError: something is not there, or a folder has no images.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = find_images(place)
            if not inside:
                raise RequestError(f"{place} has no images in it")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise RequestError(f"the image {place} is {'no file' if place.exists() else 'not there'}")
    return found


def predict(
    classifier: Classifier, images: Sequence[Path], *, top: int, progress: Progress | None = None
) -> Iterator[Prediction]:
    """Yield what ``classifier`` says of each image, in order; images are decoded on all cores.

    Each is set upright, its shorter side resized, and the middle cut out, as images of a folder are in training.

    Args:
        classifier: what is asked.
        images: paths.
        top: how many classes to name.
        progress: told how many images are done.
    """
    waiting = iter(images)
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(waiting, classifier.batch)):
            decoded = list(pool.map(lambda path: _decode(path, classifier), batch))
            likeliest = iter(_likeliest(classifier, [image for image in decoded if not isinstance(image, str)], top))
            for path, image in zip(batch, decoded, strict=True):
                if isinstance(image, str):
                    yield Prediction(_name(path), [], image)
                else:
                    yield Prediction(_name(path), next(likeliest))
            done += len(batch)
            if progress:
                progress(done, len(images))


def _name(path: Path) -> str:
    """Return a path as text that can be written anywhere: what is no UTF-8, and what steers terminals, as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _decode(path: Path, classifier: Classifier) -> npt.NDArray[np.uint8] | str:
    """Return an image, uint8 ``[C, size, size]``, or why it cannot be read."""
    try:
        image = decode_image(path, classifier.size)  # [3, size, size]
    except UnreadableImage as error:
        return error.reason
    if classifier.channels == 3:
        return image
    grey = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
    return np.asarray(grey)[None]  # [1, size, size]


def _likeliest(classifier: Classifier, images: list[npt.NDArray[np.uint8]], top: int) -> list[list[tuple[str, float]]]:
    """Return for each image its likeliest classes with their probabilities."""
    if not images:
        return []
    probabilities = classifier.logits(torch.from_numpy(np.stack(images))).double().softmax(1)  # [B, K]
    best = probabilities.topk(min(top, len(classifier.classes)))
    return [
        [(classifier.classes[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def write_csv(predictions: Sequence[Prediction], top: int, path: Path) -> None:
    """Write a line per image: ``image, class_1, probability_1, ..., error, picture``; the last repeats the path under its
    name in earlier versions.

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
