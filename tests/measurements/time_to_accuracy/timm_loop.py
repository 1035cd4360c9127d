"""timm's networks, loader, transforms, optimizer and scheduler, in a plain loop.

AdamW at 1e-3 with weight decay 0.05, batch 128, cosine schedule with warm-up, label smoothing 0.1, random resized crop
and flip: timm's usual recipe for short runs, with crops that keep at least 60 % of an image, as these are small.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

BATCHES = (128,)
"""Batch sizes to choose from."""
WORKERS = 2
"""Processes of the loader."""
MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
STD = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)


def build(net: str) -> nn.Module:
    """Return a network for 32-px images of ten classes.

    Args:
        net: ``vit_tiny`` (with 4-px patches), ``resnet18``, or ``resnet18-3x3``, which starts with a 3x3 convolution
            without stride or pooling, as is usual for CIFAR.
    """
    if net == "vit_tiny":
        return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    model = timm.create_model("resnet18", num_classes=10)
    if net == "resnet18-3x3":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


class TimmData(Dataset[tuple[Tensor, int]]):
    """Labelled images for timm's loader, which sets ``transform``.

    Args:
        images: uint8 ``[N, 3, 32, 32]``.
        labels: int64 ``[N]``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images: np.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.transform is not None
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class TimmLoop:
    """A run that trains a network of timm.

    Args:
        data: the training images.
        seed: seeds weights, order and augmentation.
        precision: ``fp32`` or ``bf16``.
        batch: images per step.
        steps: length of the run.
        net: as for :func:`build`.
    """

    def __init__(self, data: TimmData, *, seed: int, precision: str, batch: int, steps: int, net: str) -> None:
        torch.manual_seed(seed)
        self.half, self.done = precision == "bf16", 0
        self.model = build(net)
        if net != "vit_tiny":
            self.model.to(memory_format=torch.channels_last)
        self.loader = create_loader(
            data,
            input_size=(3, 32, 32),
            batch_size=batch,
            is_training=True,
            use_prefetcher=False,
            scale=(0.6, 1.0),
            color_jitter=None,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        self.loss = LabelSmoothingCrossEntropy(0.1)
        self.optimizer = create_optimizer_v2(self.model, "adamw", lr=1e-3, weight_decay=0.05)
        self.scheduler = CosineLRScheduler(
            self.optimizer, t_initial=steps, warmup_t=max(1, steps // 20), warmup_lr_init=1e-6
        )
        self.batches = self._endless()

    def step(self) -> None:
        """Take a step."""
        images, labels = next(self.batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.model(images)
        self.loss(logits.float(), labels).backward()
        self.scheduler.step(self.done)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images ``[B, 3, 32, 32]``."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.model((images / 255 - MEAN) / STD).float()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader
