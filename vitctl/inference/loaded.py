"""A trained network for use from Python, as :func:`vitctl.load` returns it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitctl import devices
from vitctl.config import TrainConfig, find_run
from vitctl.errors import RequestError, VitctlWarning
from vitctl.inference.classifier import classifier_of
from vitctl.inference.predict import most_likely, prepare_image
from vitctl.inference.trained import Trained, load_trained
from vitctl.registry import unknown
from vitctl.training.setup import make_normalize

ImageFile = str | os.PathLike[str] | Image.Image
"""An image of any size: its path, or an image of Pillow."""

Images = ImageFile | Iterable[ImageFile] | npt.NDArray[np.uint8] | Tensor
"""One or several images: files, or pixels as uint8 ``[C, H, W]`` or ``[B, C, H, W]`` with ``H == W``."""


class LoadedModel:
    """A trained network with its preprocessing and its classes.

    Every method takes one or several images (:data:`Images`). Those given by path or as Pillow's are set upright, made
    square and 8-bit as in training; an image by path gives the figures of ``vitctl predict``. Pixels are uint8 with the
    channels first, and square; another size than the network's is resized as that of a data set in training. The
    methods raise :class:`vitctl.errors.RequestError` for images that cannot be read or have another shape or type.

    Attributes:
        model: the network in eval mode on ``device``, from normalised float32 ``[B, C, size, size]`` to logits
            ``[B, K]``.
        classes: names of the K classes, in the order of the logits.
        settings: settings of the run, such as ``settings.net`` and ``settings.lr``.
        size: side of the network's input in pixels.
        channels: number of channels C of its input.
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel of images scaled to 0-1.
        device: the device of the model.
        precision: precision in which :meth:`logits` runs the model: ``fp32``, ``bf16`` or ``fp16``.
        epoch: number of epochs trained.
        weights: ``ema`` for averaged weights, else ``model``.
        path: the checkpoint.
    """

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.model = trained.model
        self.classes: tuple[str, ...] = trained.classes
        self.settings: TrainConfig = trained.config
        self.size: int = trained.config.size
        self.channels = len(trained.mean)
        self.mean, self.std = trained.mean, trained.std
        self.device = device
        self.precision = trained.precision
        self.epoch, self.weights, self.path = trained.epoch, trained.weights, trained.path
        self._classifier = classifier_of(trained, device)
        self._normalize = make_normalize(trained.config, trained.mean, trained.std, device)

    def __repr__(self) -> str:
        return f"<{self.settings.net} of {self.path}: {len(self.classes)} classes, {self.channels}x{self.size}x{self.size}>"

    def preprocess(self, images: Images) -> Tensor:
        """Return the network's input for images: normalised float32 ``[B, C, size, size]`` on ``device``."""
        return self._normalize(self._pixels(images).to(self.device))

    def logits(self, images: Images) -> Tensor:
        """Return the logits of images, float32 ``[B, K]`` on the CPU, computed in ``precision`` without gradients."""
        pieces = torch.split(self._pixels(images), self._classifier.batch)
        return torch.cat([self._classifier.logits(piece) for piece in pieces])

    def predict(self, images: Images, top: int = 5) -> list[list[tuple[str, float]]]:
        """Return the most likely classes of each image with their probabilities from 0 to 1, the most likely first.

        Args:
            images: one or several images.
            top: number of classes per image.
        """
        return most_likely(self.logits(images), self.classes, top)

    def _pixels(self, images: Images) -> Tensor:
        """Return images as uint8 ``[B, C, H, W]``."""
        if isinstance(images, (np.ndarray, Tensor)):
            return self._checked(torch.as_tensor(images))
        several = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else list(images)
        for each in several:
            if not isinstance(each, (str, os.PathLike, Image.Image)):
                raise RequestError(
                    f"an image is of the type {type(each).__name__}",
                    hint="use paths, Pillow's images, or one uint8 array or tensor [B, C, H, W]",
                )
        if not several:
            raise RequestError("no images", hint="use at least one image")
        return torch.from_numpy(np.stack([prepare_image(each, self._classifier) for each in several]))

    def _checked(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8:
            raise RequestError(
                f"pixels are {str(pixels.dtype).removeprefix('torch.')}, not uint8",
                hint="use 8-bit pixels from 0 to 255, or loaded.model for normalised images",
            )
        batch = pixels[None] if pixels.ndim == 3 else pixels  # [C, H, W] -> [1, C, H, W]
        if batch.ndim != 4 or batch.shape[1] != self.channels or not batch.numel():
            raise RequestError(
                f"pixels have the shape {list(pixels.shape)}, not [B, {self.channels}, H, W]",
                hint="use channels first, as array.transpose(2, 0, 1) returns, or use Image.fromarray(array)",
            )
        if batch.shape[2] != batch.shape[3]:
            raise RequestError(
                f"pixels have the shape {list(pixels.shape)}, which is not square",
                hint="use paths or Pillow's images, which are made square as in training",
            )
        return batch


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu", weights: str = "last") -> LoadedModel:
    """Load a trained network; see :func:`vitctl.load`."""
    if weights not in ("last", "best"):
        raise unknown("weights", weights, ("last", "best"))
    place = devices.resolve_device(str(device), "device")
    trained = load_trained(find_run(Path(path).expanduser()), weights=weights, device=place, warn=_warn)
    return LoadedModel(trained, place)


def _warn(message: str) -> None:
    warnings.warn(message.removeprefix("warning: "), VitctlWarning, stacklevel=6)  # shown at the call of vitctl.load
