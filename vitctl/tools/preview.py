"""Preview of the training images: a contact sheet of the first batch, and the share of blank images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Container
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.data import CROP_DEFAULTS
from vitctl.data.batches import Normalize
from vitctl.files import write_bytes
from vitctl.models import find_model
from vitctl.observer import SILENT, Observer, Record
from vitctl.registry import format_spec
from vitctl.tools.plots import check_plot
from vitctl.training.setup import batch_extras, fitted, make_normalize, open_data, train_batches

FLAG = "--preview-batch"
SUFFIXES = (".png",)

SHOWN = 64
"""Largest number of images on the sheet."""

SHEET_PIXELS = 1 << 24
"""Largest number of pixels of all images on the sheet, before enlarging."""

COUNTED = 2000
"""Number of images to count blank ones in, or all of an epoch: the standard error is 1 point at a share of 20 %."""

CELL = 96
"""Smallest side of an image on the sheet in pixels; smaller images are enlarged by an integer factor."""

GAP, LINE, FONT = 8, 14, 12


def preview_batch(config: TrainConfig, path: Path, observer: Observer = SILENT, free: Container[str] = ()) -> Record:
    """Draw the images of the first step as the network would see them, without training.

    An image is blank if it has a single colour; the padding of a random crop does not count.

    Args:
        config: the settings.
        path: the contact sheet, a PNG file.
        observer: receives download and decoding progress.
        free: settings that may be fitted to the number of training images; see :func:`vitctl.config.free_settings`.

    Returns:
        ``file``; ``shown``, the number of images on the sheet; ``size``, their size in pixels as the network sees them;
        ``classes``, for each the share of each class by name; ``images``, the number of images in which blank ones were
        counted; ``blank_images``, their number, and ``blank``, their share (0-1), before erasing, cutout and mixing;
        ``blank_stored``, the share without augmentation; ``augmentation``, the flags; device and versions; the settings
        under ``config``.

    Raises:
        RequestError: the device or data is not available, or the file cannot be written.
        RunFailed: the disk is full.
    """
    check_plot(path, FLAG, SUFFIXES)
    device = devices.resolve_device(config.device)
    devices.prepare(device, config.threads)
    dataset, splits = open_data(config, observer)
    config = fitted(config, splits, free, observer)
    extras = batch_extras(config, dataset, splits, device)
    batches = train_batches(config, splits, extras, device, drop_single=find_model(config.net).batchnorm)
    normalize = make_normalize(config, dataset.mean, dataset.std, device)

    shown = max(1, min(SHOWN, SHEET_PIXELS // config.size**2))
    images, labels = (each[:shown] for each in batches.batch(0, 0))
    seen = denormalise(normalize(images), normalize)
    shares = class_shares(labels.cpu(), dataset.classes)
    content = contact_sheet(seen, [caption(each) for each in shares], title(config))

    # Count without padding, mixing, erasing and cutout, which would hide blank images.
    batches.padding = batches.mixed_steps = 0
    batches.extras = dataclasses.replace(batches.extras, erase=0.0, cutout=0.0)
    counted, blank, stored = 0, 0, 0
    for step in range(batches.steps_per_epoch):
        images, _ = batches.batch(0, step)
        chosen = batches.order(0)[counted : counted + len(images)]
        counted += len(images)
        blank += int(is_blank(images).sum())
        stored += int(is_blank(splits.train.examples.images[chosen]).sum())
        if counted >= COUNTED:
            break
    write_bytes(path, content)
    return {
        "file": str(path),
        "picture": str(path),  # the key of earlier versions
        "shown": len(seen),
        "size": config.size,
        "classes": shares,
        "images": counted,
        "blank_images": blank,
        "blank": blank / counted,
        "blank_stored": stored / counted,
        "augmentation": describe_augmentation(config),
        "dataset": config.dataset,
        **devices.environment(device),
        "config": config.to_dict(),
    }


def is_blank(images: Tensor) -> Tensor:
    """Return which of ``images``, uint8 ``[B, C, H, W]``, have a single colour, bool ``[B]``."""
    flat = images.flatten(2)  # [B, C, H * W]
    return (flat.amin(2) == flat.amax(2)).all(1)


def denormalise(x: Tensor, normalize: Normalize) -> Tensor:
    """Convert a network's input, float ``[B, C, S, S]``, back to uint8 images on the CPU."""
    return ((x - normalize.offset) / normalize.scale).round().clamp(0, 255).to(torch.uint8).cpu()


def class_shares(labels: Tensor, classes: tuple[str, ...]) -> list[dict[str, float]]:
    """Return the share of each class in each image, largest first.

    Args:
        labels: int64 ``[B]``, or for mixed images float ``[B, K]``.
        classes: names of the K classes.
    """
    if labels.ndim == 1:
        return [{classes[i]: 1.0} for i in labels.tolist()]
    ordered = labels.sort(dim=1, descending=True, stable=True)
    return [
        {classes[i]: round(share, 4) for i, share in zip(indices, values, strict=True) if share > 0}
        for indices, values in zip(ordered.indices.tolist(), ordered.values.tolist(), strict=True)
    ]


def caption(shares: dict[str, float]) -> list[str]:
    """Return the caption of an image, a line per class."""
    if len(shares) == 1:
        return list(shares)
    return [f"{100 * share:.0f}% {name}" for name, share in shares.items()]


def describe_augmentation(config: TrainConfig) -> str:
    """Return the augmentation as command-line flags."""
    shown = {name: value for name, value in config.aug_options.items() if CROP_DEFAULTS.get(name) != value}
    words = [f"--aug {format_spec(config.aug, shown)}"]
    for name in ("erase", "cutout", "mixup", "cutmix", "mix_off"):
        if value := getattr(config, name):
            words.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join(words)


def title(config: TrainConfig) -> str:
    """Return the title of the sheet."""
    return f"{config.dataset}, first step, seed {config.seed}: {describe_augmentation(config)}"


def contact_sheet(images: Tensor, captions: list[list[str]], title: str) -> bytes:
    """Draw images in rows, each above its caption, and return a PNG file.

    Args:
        images: uint8 ``[B, C, H, W]``.
        captions: lines of text for each image.
        title: line at the top.
    """
    height, width = images.shape[2:]
    zoom = -(-CELL // min(height, width))
    cell_height, cell_width = zoom * height, zoom * width
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    lines = max(map(len, captions))
    down, across = cell_height + LINE * lines + GAP, cell_width + GAP
    sheet = Image.new("RGB", (GAP + columns * across, GAP + LINE + GAP + rows * down), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    draw.text((GAP, GAP), fitting(title, font, sheet.width - 2 * GAP), fill="black", font=font)
    for i, (image, words) in enumerate(zip(images, captions, strict=True)):
        top, left = 2 * GAP + LINE + i // columns * down, GAP + i % columns * across
        pixels = image.permute(1, 2, 0).numpy()  # [H, W, C]
        cell = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        sheet.paste(cell.resize((cell_width, cell_height), Image.Resampling.NEAREST).convert("RGB"), (left, top))
        for line, text in enumerate(words):
            place = left, top + cell_height + line * LINE
            draw.text(place, fitting(text, font, cell_width), fill="black", font=font)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Truncate ``text`` to ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
