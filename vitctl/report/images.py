"""Thumbnails of test images, and the attention of a network over them."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.decode import decode_image
from vitctl.data.reading import Reading
from vitctl.errors import RequestError, VitctlError
from vitctl.report.run import Predictions, RunRecord, reason

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

    Args:
        run: a run with checked settings and predictions for the test images.
        data_dir: folder of the data; None for that of training.
    """

    def __init__(self, run: RunRecord, data_dir: str | None) -> None:
        assert run.config is not None and run.test is not None
        self.config = run.config
        self.predictions: Predictions = run.test
        self.data_dir = data_dir

    def original(self, index: int) -> Pixels:
        """Return an image as it is stored, uint8 ``[C, H, W]``.

        Raises:
            VitctlError: the image or the data set is missing or damaged.
        """
        return self._read(index, None)

    def prepared(self, index: int) -> Pixels:
        """Return an image as it was read for the network, uint8 ``[C, H, W]``.

        Raises:
            VitctlError: the image or the data set is missing or damaged.
        """
        return self._read(index, self.config.size)

    def _read(self, index: int, size: int | None) -> Pixels:
        name = self.predictions.names[index]
        if self.predictions.files:
            reading = Reading(self.config.fit, self.config.value_range)
            return decode_image(Path(self.data_dir or self.predictions.source) / name, size, reading)
        images, number = self._dataset.test.images, name.rpartition("/")[2]
        if not number.isdecimal() or int(number) >= len(images):
            raise RequestError(
                f"{self._dataset.source} has no test image {name!r}", hint="use --data-dir with the data"
            )
        pixels: Pixels = images[int(number)].numpy()
        return pixels

    @functools.cached_property
    def _dataset(self) -> Dataset:
        config = self.config
        return load_dataset(
            config.dataset,
            data_dir=self.data_dir or config.data_dir,
            size=config.size,
            skip_bad_images=config.skip_bad_images,
            download=False,
            labels=config.labels,
            test_fraction=config.test_fraction,
            fit=config.fit,
            value_range=config.value_range,
        )


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
            thumbnail = Thumbnail.of(images.original(index))
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

    from vitctl.inference.rollout import attention_map, explainable  # timm is imported here
    from vitctl.inference.trained import load_trained
    from vitctl.training.setup import make_normalize

    device = torch.device("cpu")
    try:
        trained = load_trained(run.path, weights="last", device=device, warn=say)
        if not explainable(trained.model):
            return [], f"attention rollout is defined for vit, cct and hybrid networks, not for {trained.config.net}"
        stored = [images.original(index) for index in indices]
        prepared = torch.from_numpy(np.stack([images.prepared(index) for index in indices]))
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
