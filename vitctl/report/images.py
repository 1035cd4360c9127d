"""Thumbnails of test images, and the attention of a network over them."""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitctl.data.dataset import Dataset
from vitctl.data.decode import decode_image
from vitctl.data.duplicates import image_digests
from vitctl.data.layout import class_name
from vitctl.data.manifest import MANIFEST, Manifest
from vitctl.data.reading import Reading
from vitctl.errors import RequestError, VitctlError
from vitctl.report.run import Predictions, RunRecord, reason
from vitctl.units import printable

LARGEST = 112
"""Longest side of a thumbnail in pixels; larger images are shrunk, smaller ones stay as they are."""

_PLAIN = 48
"""Longest side up to which thumbnails are PNG, whose pixels are exact."""

_HEAT = np.array([255.0, 120.0, 0.0])
"""Colour of attention, RGB."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Thumbnail:
    """An image of a page.

    Attributes:
        uri: the image as a ``data:`` address.
        width: width in pixels.
        height: height in pixels.
    """

    uri: str
    width: int
    height: int

    @classmethod
    def of(cls, pixels: Pixels) -> Thumbnail:
        """Shrink an image, uint8 ``[C, H, W]``, if it is large."""
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        image.thumbnail((LARGEST, LARGEST))
        content = io.BytesIO()
        kind = "png" if max(image.size) <= _PLAIN else "jpeg"
        image.save(content, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
        data = base64.b64encode(content.getvalue()).decode()
        return cls(f"data:image/{kind};base64,{data}", *image.size)


class ImageReader:
    """Reads the test images of a run, one by one where they have files.

    A folder of a run may come from somewhere else, and a page may be passed on. So a file is shown only if its pixels are
    those that the run recorded, or if the user named the folder with the data.

    Args:
        run: a run with checked settings and predictions for the test images.
        data_dir: folder of the data; None for that of training.
    """

    def __init__(self, run: RunRecord, data_dir: str | None) -> None:
        assert run.config is not None and run.test is not None
        self.config = run.config
        self.predictions: Predictions = run.test
        self.data_dir = data_dir
        self._run = run

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """Return an image as it is stored, and as it was read for the network, both uint8 ``[C, H, W]``.

        Raises:
            VitctlError: the image or the data set is missing, damaged or not that of the run.
        """
        name = self.predictions.names[index]
        if self.predictions.files:
            return self._read_file(index, Path(self.data_dir or self.predictions.source) / name)
        if self._dataset.manifest is not None:
            raise RequestError(
                f"the run read no image files, but {self._dataset.source} has some",
                hint="use --data-dir with the archive of the data",
            )
        test, number = self._dataset.test, name.rpartition("/")[2]
        if not number.isdecimal() or int(number) >= len(test):
            raise RequestError(
                f"{self._dataset.source} has no test image {name!r}", hint="use --data-dir with the data"
            )
        if int(test.labels[int(number)]) != int(self.predictions.labels[index]):
            raise RequestError(
                f"the images of {self._dataset.source} changed since the run", hint="use --data-dir with the data"
            )
        pixels: Pixels = test.images[int(number)].numpy()
        return pixels, pixels

    def _read_file(self, index: int, path: Path) -> tuple[Pixels, Pixels]:
        if not path.is_file():  # a FIFO would never end
            raise RequestError(f"the image {path} is missing", hint="use --data-dir with the folder of the data")
        reading = Reading(self.config.fit, self.config.value_range)
        if self._recorded is not None:
            content = self._recorded_content(index)
            if content is None:
                raise RequestError(
                    f"{path} is not an image of the run", hint="use a run folder that was not changed by hand"
                )
        elif self.data_dir is None:
            raise RequestError(
                f"the run has no record of its images, {MANIFEST}", hint="use --data-dir with the folder of the data"
            )
        elif not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.data_dir)):
            raise RequestError(
                f"the image {path} is outside --data-dir", hint="use a run folder that was not changed by hand"
            )
        else:
            content = None
        stored, prepared = decode_image(path, None, reading), decode_image(path, self.config.size, reading)
        # Some data sets keep their own size.
        if content is not None and content not in (_digest(stored), _digest(prepared)):
            raise RequestError(f"the image {path} changed since the run", hint="use --data-dir with the former images")
        return stored, prepared

    @functools.cached_property
    def _recorded(self) -> dict[str, str] | None:
        """Digest of each test image by its class and path, or None if the run has no manifest."""
        manifest = Manifest.read(self._run.path / MANIFEST)
        if manifest is None:
            return None
        return {printable(name): image.content for name, image in manifest.images.items() if name[:6] != "train/"}

    def _recorded_content(self, index: int) -> str | None:
        """Return the digest of an image when the run used it, or None if there was no such image."""
        recorded, label = self._recorded or {}, int(self.predictions.labels[index])
        parts = printable(class_name(self.predictions.names[index])).split("/")
        keys = (
            f"{part}/{self._run.classes[label]}/{'/'.join(parts[start:])}"
            for start in range(len(parts))  # the manifest has the path below the folder of the class
            for part in ("test", "val")  # a data set without test/ is tested on val/
        )
        return next((recorded[key] for key in keys if key in recorded), None)

    @functools.cached_property
    def _dataset(self) -> Dataset:
        from vitctl.training.setup import load_data

        return load_data(self.config, data_dir=self.data_dir, download=False)


def _digest(pixels: Pixels) -> str:
    return image_digests(pixels[None]).tobytes().hex()


@dataclass(frozen=True)
class Shown:
    """A test image on a page.

    Attributes:
        index: its place among the test images.
        thumbnail: the image; None if it is not available.
        attention: attention over it; None if there is none.
        least: smallest share of the attention that a patch has.
        most: largest share.
    """

    index: int
    thumbnail: Thumbnail | None
    attention: Thumbnail | None = None
    least: float = 0.0
    most: float = 0.0


def most_confident(predictions: Predictions, *, correct: bool) -> list[int]:
    """Return the images that are classified correctly, or those that are not, by descending confidence."""
    rows = np.arange(len(predictions))
    confidence = predictions.probabilities[rows, predictions.predicted]
    chosen = np.flatnonzero((predictions.predicted == predictions.labels) == correct)
    return [int(each) for each in chosen[np.argsort(-confidence[chosen], kind="stable")]]


def show(images: ImageReader, indices: Sequence[int]) -> tuple[list[Shown], str]:
    """Return test images with thumbnails, and why some have none, or an empty text."""
    shown, missing = [], ""
    for index in indices:
        thumbnail = None
        try:
            thumbnail = Thumbnail.of(images.read(index)[0])
        except (VitctlError, OSError) as error:
            missing = missing or reason(error)
            if not images.predictions.files:  # the data set is missing, and is not searched for again
                return [Shown(each, None) for each in indices], missing
        shown.append(Shown(index, thumbnail))
    return shown, missing


def show_attention(
    run: RunRecord, images: ImageReader, indices: Sequence[int], say: Callable[[str], None]
) -> tuple[list[Shown], str]:
    """Return test images with the attention of the network over them, and why there are none, or an empty text.

    Args:
        run: the run, whose last checkpoint is used.
        images: its test images.
        indices: the images to show.
        say: receives warnings.
    """
    import torch

    from vitctl.inference.trained import load_trained
    from vitctl.training.setup import make_normalize

    device = torch.device("cpu")
    try:
        trained = load_trained(run.path, weights="last", device=device, warn=say)
        from vitctl.inference.rollout import attention_map, explainable  # timm is imported here

        if not explainable(trained.model):
            return [], f"attention rollout is defined for vit, cct and hybrid networks, not for {trained.config.net}"
        stored, prepared_images = zip(*map(images.read, indices), strict=True)
        prepared = torch.from_numpy(np.stack(prepared_images))
        normalize = make_normalize(trained.config, trained.mean, trained.std, device)
        maps = attention_map(trained.model, normalize(prepared)).numpy()
    except (VitctlError, OSError) as error:
        return [], reason(error)
    shown = []
    for index, original, pixels, attention in zip(indices, stored, prepared.numpy(), maps, strict=True):
        image = Thumbnail.of(overlay(pixels, attention))
        shown.append(Shown(index, Thumbnail.of(original), image, float(attention.min()), float(attention.max())))
    return shown, ""


def overlay(pixels: Pixels, attention: npt.NDArray[Any]) -> Pixels:
    """Return an image in grey, with its patches in orange from the least to the most attention, uint8 ``[3, H, W]``.

    Args:
        pixels: uint8 ``[C, H, W]``.
        attention: share of each patch, ``[S, S]``.
    """
    height, width = pixels.shape[1:]
    scale = max(1, -(-64 // min(height, width)))  # so that the map is smooth over coarse pixels
    grey = Image.fromarray(pixels.mean(0).astype(np.uint8)).resize(
        (scale * width, scale * height), Image.Resampling.NEAREST
    )
    spread = np.ptp(attention)
    strength = Image.fromarray(((attention - attention.min()) / (spread or 1.0)).astype(np.float32))
    weight = 0.75 * np.asarray(strength.resize(grey.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]  # [H, W, 1]
    blended = (1 - weight) * np.asarray(grey)[..., None] + weight * _HEAT  # [H, W, 3]
    result: Pixels = blended.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return result
