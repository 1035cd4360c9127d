"""Training batches without worker processes: uint8 pictures on the device, cropped and flipped there.

Which pictures make up a batch depends on (seed, epoch) alone, and what is done to each of them on (seed, epoch, step)
alone: both are drawn on the CPU for the whole batch. So samples and draws are the same on any device, for any
micro-batch, and after any resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl.devices import fits


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part, so that neighbouring seeds give unrelated streams."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``count`` pictures for an epoch, int64 ``[count]``, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


@dataclass(frozen=True)
class Draws:
    """What is done to each picture of a batch.

    Attributes:
        top: int64 ``[B]``, first row of the crop in the padded picture.
        left: int64 ``[B]``, first column.
        mirror: bool ``[B]``, flip left and right.
    """

    top: Tensor
    left: Tensor
    mirror: Tensor


def draw(count: int, padding: int, flip: bool, seed: int, epoch: int, step: int) -> Draws:
    """Draw crop offsets and flips for the ``count`` pictures of a step, on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, step))
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    coins = torch.rand(count, generator=generator) < 0.5
    return Draws(top=offsets[0], left=offsets[1], mirror=coins if flip else torch.zeros_like(coins))


def crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Pad by zeros, crop back to size at each picture's own offset, and mirror those drawn.

    Args:
        images: uint8 ``[B, C, H, W]``.
        draws: on the same device.
        padding: pixels added on every side.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    B, C, H, W = images.shape
    wide = W + 2 * padding
    padded = F.pad(images, (padding,) * 4)
    rows = torch.arange(H, device=images.device)
    columns = torch.arange(W, device=images.device)
    y = draws.top[:, None] + rows  # [B, H]
    x = draws.left[:, None] + torch.where(draws.mirror[:, None], W - 1 - columns, columns)  # [B, W]
    # One gather over flat pictures: several times faster than indexing by rows and columns.
    pixel = (y[:, :, None] * wide + x[:, None, :]).view(B, 1, H * W).expand(B, C, H * W)
    return padded.view(B, C, -1).gather(2, pixel).view(B, C, H, W)


class TrainBatches:
    """The batches of a training set.

    Args:
        images: uint8 ``[n, C, H, W]``; may be memory-mapped.
        labels: int64 ``[n]``.
        index: int64 ``[m]``, which of them are trained on.
        batch_size: pictures per step; the last batch of an epoch may be smaller.
        device: where batches are wanted. Pictures move there once if they fit, else batch by batch.
        seed: of order and draws.
        augment: crop at random offsets, and flip.
        flip: mirrored pictures keep their class.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        batch_size: int,
        device: torch.device,
        seed: int,
        augment: bool,
        flip: bool,
        drop_single: bool = False,
    ) -> None:
        self.index, self.batch_size, self.device, self.seed = index, batch_size, device, seed
        self.augment, self.flip, self.drop_single = augment, flip, drop_single
        self.padding = images.shape[-1] // 8  # 4 of 32 pixels, as is usual for CIFAR; 1 of 8
        self.resident = fits(device, images.numel())
        self.images = images.to(device) if self.resident else images
        self.labels = labels
        self.count = len(index)
        if drop_single and self.count % batch_size == 1 and self.count > 1:
            self.count -= 1  # BatchNorm cannot normalise one picture
        self.steps_per_epoch = -(-self.count // batch_size)
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the pictures of an epoch in order, int64 ``[count]`` into the data set, on the CPU."""
        if self._order is None or self._order[0] != epoch:
            permutation = epoch_order(len(self.index), self.seed, epoch)
            self._order = epoch, self.index[permutation][: self.count]
        return self._order[1]

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step of an epoch, both counted from 0.

        Returns:
            Augmented pictures, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``, on the device.
        """
        chosen = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        labels = self.labels[chosen].to(self.device)
        images = self.images[chosen.to(self.images.device)].to(self.device)
        if not self.augment:
            return images, labels
        draws = draw(len(chosen), self.padding, self.flip, self.seed, epoch, step)
        on_device = Draws(draws.top.to(self.device), draws.left.to(self.device), draws.mirror.to(self.device))
        return crop_and_flip(images, on_device, self.padding), labels


class Normalize:
    """Turn uint8 pictures into what a network sees.

    Args:
        mean: per channel, of pictures scaled to 0-1.
        std: likewise.
        img_size: side of the network's input; other pictures are resized (bilinear, antialiased).
        device: where the pictures are.
        channels_last: put the channels innermost, which some convolutional networks are faster with.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        img_size: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.img_size, self.channels_last = img_size, channels_last
        shape = (1, len(mean), 1, 1)
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.scale = scale.to(torch.float32).view(shape).to(device)
        self.offset = offset.to(torch.float32).view(shape).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 ``[B, C, img_size, img_size]`` for uint8 ``[B, C, H, W]``."""
        x = torch.addcmul(self.offset, images.float(), self.scale)
        if x.shape[-1] != self.img_size or x.shape[-2] != self.img_size:
            x = F.interpolate(x, (self.img_size, self.img_size), mode="bilinear", antialias=True)
        # The weights stay in rows: convolutions take their layout from the pictures, and fused optimizers, which walk a
        # parameter and its state in memory order, would mistake any other.
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
