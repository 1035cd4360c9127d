"""Training batches without worker processes: uint8 images on the device, augmented there.

Which images make up a batch depends on (seed, epoch) alone, and what is done to each of them on (seed, epoch, step)
alone: both are drawn on the CPU for the whole batch. So samples and draws are the same on any device, for any
micro-batch, and after any resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl.data import kernels, mixing
from vitctl.data.augment import Augment
from vitctl.devices import fits, to_device

POLICY, ERASE, CUTOUT, MIX = 1, 2, 3, 4
"""What a further seed is derived for, so that what one of them draws does not hang on the others."""


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part, so that neighbouring seeds give unrelated streams."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``count`` images for an epoch, int64 ``[count]``, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is done to a batch besides crop and flip.

    Attributes:
        policy: an automatic augmentation, or None.
        erase: probability of a random box painted over.
        cutout: side of a box painted over in every image, as a share of the image's; 0 is none.
        colour: that boxes are painted in, a grey level per channel.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        classes: of the data set, K.
    """

    policy: Augment | None = None
    erase: float = 0.0
    cutout: float = 0.0
    colour: tuple[int, ...] = (0,)
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0


@dataclass(frozen=True)
class Draws:
    """Where an image is cropped, and whether it is flipped.

    Attributes:
        top: int64 ``[B]``, first row of the crop in the padded image.
        left: int64 ``[B]``, first column.
        mirror: bool ``[B]``, flip left and right.
    """

    top: Tensor
    left: Tensor
    mirror: Tensor


def draw(count: int, padding: int, flip: bool, seed: int, epoch: int, step: int) -> Draws:
    """Draw crop offsets and flips for the ``count`` images of a step, on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, step))
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    coins = torch.rand(count, generator=generator) < 0.5
    return Draws(top=offsets[0], left=offsets[1], mirror=coins if flip else torch.zeros_like(coins))


def crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Pad by zeros, crop back to size at each image's own offset, and mirror those drawn.

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
    # One gather over flat images: several times faster than indexing by rows and columns.
    pixel = (y[:, :, None] * wide + x[:, None, :]).view(B, 1, H * W).expand(B, C, H * W)
    return padded.view(B, C, -1).gather(2, pixel).view(B, C, H, W)


class TrainBatches:
    """The batches of a training set.

    Args:
        images: uint8 ``[n, C, H, W]``; may be memory-mapped.
        labels: int64 ``[n]``.
        index: int64 ``[m]``, which of them are trained on.
        batch_size: images per step; the last batch of an epoch may be smaller.
        device: where batches are wanted. Images move there once if they fit, else batch by batch.
        seed: of order and draws.
        augment: crop at random offsets, and flip.
        flip: mirrored images keep their class.
        drop_single: leave out a last batch of one image.
        extras: what is done besides.

    Attributes:
        mixed_steps: first steps of the run, whose images are mixed where ``extras`` says so; None is all.
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
        extras: Extras | None = None,
    ) -> None:
        self.index, self.batch_size, self.device, self.seed = index, batch_size, device, seed
        self.augment, self.flip, self.drop_single = augment, flip, drop_single
        self.extras = extras or Extras()
        self.mixed_steps: int | None = None
        self.colour = torch.tensor(self.extras.colour, dtype=torch.uint8).to(device)
        self.padding = images.shape[-1] // 8  # 4 of 32 pixels, as is usual for CIFAR; 1 of 8
        self.resident = fits(device, images.numel())
        self.images = images.to(device) if self.resident else images
        self.labels = labels
        self.count = len(index)
        if drop_single and self.count % batch_size == 1 and self.count > 1:
            self.count -= 1  # BatchNorm cannot normalise one image
        self.steps_per_epoch = -(-self.count // batch_size)
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the images of an epoch in order, int64 ``[count]`` into the data set, on the CPU."""
        if self._order is None or self._order[0] != epoch:
            permutation = epoch_order(len(self.index), self.seed, epoch)
            self._order = epoch, self.index[permutation][: self.count]
        return self._order[1]

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step of an epoch, both counted from 0.

        Returns:
            Augmented images, uint8 ``[B, C, H, W]``, and labels, on the device: int64 ``[B]``, or where images are
            mixed the share of each class, float32 ``[B, K]``.
        """
        chosen = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        labels = to_device(self.labels[chosen], self.device)
        images = to_device(self.images.index_select(0, to_device(chosen, self.images.device)), self.device)
        policy = self.extras.policy
        if policy is not None and policy.first:
            images = policy(images, derive_seed(self.seed, epoch, step, POLICY))
        if self.augment:
            draws = draw(len(chosen), self.padding, self.flip, self.seed, epoch, step)
            on_device = Draws(*(to_device(each, self.device) for each in (draws.top, draws.left, draws.mirror)))
            images = crop_and_flip(images, on_device, self.padding)
        if policy is not None and not policy.first:
            images = policy(images, derive_seed(self.seed, epoch, step, POLICY))
        images = self._paint_over(images, epoch, step)
        if not self.mixes(epoch, step):
            return images, labels
        mixup, cutmix = self.extras.mixup, self.extras.cutmix
        B, _, H, W = images.shape
        drawn = mixing.draw_mix(B, H, W, mixup=mixup, cutmix=cutmix, seed=derive_seed(self.seed, epoch, step, MIX))
        drawn = drawn.to(self.device)
        images = mixing.mix(images, drawn, mixup=mixup > 0, cutmix=cutmix > 0)
        return images, mixing.mixed_labels(labels, drawn, self.extras.classes)

    def mixes(self, epoch: int, step: int) -> bool:
        """Whether the images of a step are mixed."""
        if not self.extras.mixup and not self.extras.cutmix:
            return False
        return self.mixed_steps is None or epoch * self.steps_per_epoch + step < self.mixed_steps

    def _paint_over(self, images: Tensor, epoch: int, step: int) -> Tensor:
        """Paint over the boxes of random erasing and cutout."""
        B, _, H, W = images.shape
        for share, purpose, boxes in (
            (self.extras.erase, ERASE, mixing.erase_boxes),
            (self.extras.cutout, CUTOUT, mixing.cutout_boxes),
        ):
            if share:
                drawn = boxes(B, H, W, share, derive_seed(self.seed, epoch, step, purpose))
                images = kernels.fill_boxes(images, to_device(drawn, self.device), self.colour)
        return images


def scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], white: int = 255) -> tuple[Tensor, Tensor]:
    """Return scale and offset, float32 ``[1, C, 1, 1]`` each, that normalise images in one multiply-add.

    Args:
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel, likewise.
        white: largest pixel value.
    """
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (white * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    return scale.float().view(1, -1, 1, 1), offset.float().view(1, -1, 1, 1)


def normalized(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Normalise images of any type to float32 ``[B, C, H, W]`` with the result of :func:`scale_and_offset`."""
    return torch.addcmul(offset, images.float(), scale)


class Normalize:
    """Turn uint8 images into what a network sees.

    Args:
        mean: per channel, of images scaled to 0-1.
        std: likewise.
        img_size: side of the network's input; other images are resized (bilinear, antialiased).
        device: where the images are.
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
        self.scale, self.offset = (each.to(device) for each in scale_and_offset(mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 ``[B, C, img_size, img_size]`` for uint8 ``[B, C, H, W]``."""
        x = normalized(images, self.scale, self.offset)
        if x.shape[-1] != self.img_size or x.shape[-2] != self.img_size:
            x = F.interpolate(x, (self.img_size, self.img_size), mode="bilinear", antialias=True)
        # The weights stay in rows: convolutions take their layout from the images, and fused optimizers, which walk a
        # parameter and its state in memory order, would mistake any other.
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
