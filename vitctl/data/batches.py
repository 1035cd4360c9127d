"""Training batches without worker processes: uint8 images are augmented on the device.

The images of a batch depend only on (seed, epoch), and their augmentation only on (seed, epoch, step); an alternating
flip depends on (seed, epoch) and the image. All are drawn on the CPU for the complete batch, so they are the same on every
device, for every micro-batch size, and after resuming.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl.data import kernels, mixing
from vitctl.data.augment import Augment
from vitctl.devices import fits, to_device

POLICY, ERASE, CUTOUT, MIX, FLIP = 1, 2, 3, 4, 5
"""Purposes of derived seeds, so that each augmentation draws independently of the others."""


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed, a hash of ``parts``: similar parts give unrelated seeds."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``count`` images for an epoch, int64 ``[count]``, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Augmentation besides crop and flip.

    Attributes:
        policy: automatic augmentation, or None.
        erase: probability of random erasing.
        cutout: side of cutout's box relative to the image's side; 0 disables it.
        colour: fill colour of random erasing and cutout, one uint8 value per channel.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
        classes: number of classes, K.
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
    """Crop offsets and flips of a batch.

    Attributes:
        top: int64 ``[B]``, first row of the crop in the padded image.
        left: int64 ``[B]``, first column.
        mirror: bool ``[B]``, whether to flip horizontally.
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


def first_epoch_flips(count: int, seed: int) -> Tensor:
    """Draw which of ``count`` images an alternating flip mirrors in even epochs, bool ``[count]``, on the CPU.

    It mirrors the others in odd epochs, so that two epochs show both sides of each image (Jordan 2024, arXiv 2404.00498).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, 0, FLIP))
    return torch.randint(0, 2, (count,), generator=generator).bool()


def reflected(index: Tensor, size: int) -> Tensor:
    """Map indices up to ``size - 1`` outside of an axis back inside, reflected at its first and last pixel."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def crop_and_flip(images: Tensor, draws: Draws, padding: int, *, reflect: bool = False) -> Tensor:
    """Pad images, crop each to its size at its own offset, and flip it if drawn.

    Args:
        images: uint8 ``[B, C, H, W]``.
        draws: offsets and flips, on the same device.
        padding: pixels added on each side, fewer than height and width.
        reflect: pad with the reflected image instead of zeros.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    B, C, H, W = images.shape
    rows = torch.arange(H, device=images.device)
    columns = torch.arange(W, device=images.device)
    y = draws.top[:, None] + rows  # [B, H]
    x = draws.left[:, None] + torch.where(draws.mirror[:, None], W - 1 - columns, columns)  # [B, W]
    if reflect:
        y, x = reflected(y - padding, H), reflected(x - padding, W)
    else:
        images = F.pad(images, (padding,) * 4)
    # One gather over flat images: several times faster than indexing by rows and columns.
    pixel = ((y * images.shape[3])[:, :, None] + x[:, None, :]).view(B, 1, H * W).expand(B, C, H * W)
    return images.flatten(2).gather(2, pixel).view(B, C, H, W)


class TrainBatches:
    """The batches of a training set.

    Args:
        images: uint8 ``[n, C, H, W]``; may be memory-mapped.
        labels: int64 ``[n]``.
        index: int64 ``[m]``, the images to train on.
        batch_size: images per step; the last batch of an epoch may be smaller.
        device: device of the batches; all images are moved there at once if they fit, else batch by batch.
        seed: seeds the order of the images and the augmentation.
        augment: whether to crop at random offsets, and to flip if ``flip``.
        flip: whether mirrored images keep their class.
        padding: pixels to pad on each side before the crop; None for an eighth of the width.
        reflect: pad with the reflected image instead of zeros.
        alternate: mirror each image in every other epoch instead of at random.
        drop_single: drop a last batch of one image.
        extras: further augmentation.

    Attributes:
        mixed_steps: number of steps from the start of the run that use mixup or CutMix; None for all.
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
        padding: int | None = None,
        reflect: bool = False,
        alternate: bool = False,
        drop_single: bool = False,
        extras: Extras | None = None,
    ) -> None:
        self.index, self.batch_size, self.device, self.seed = index, batch_size, device, seed
        self.augment, self.flip, self.drop_single = augment, flip, drop_single
        self.extras = extras or Extras()
        self.mixed_steps: int | None = None
        self.colour = torch.tensor(self.extras.colour, dtype=torch.uint8).to(device)
        # An eighth is 4 of 32 pixels, as is usual for CIFAR.
        self.padding, self.reflect = images.shape[-1] // 8 if padding is None else padding, reflect
        self.alternating = first_epoch_flips(len(images), seed) if flip and alternate else None
        self.resident = fits(device, images.numel())
        self.images = images.to(device) if self.resident else images
        self.labels = labels
        self.count = len(index)
        if drop_single and self.count % batch_size == 1 and self.count > 1:
            self.count -= 1  # BatchNorm cannot normalise one image
        self.steps_per_epoch = -(-self.count // batch_size)
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the order of the images in an epoch, int64 ``[count]``, indices into the data set, on the CPU."""
        if self._order is None or self._order[0] != epoch:
            permutation = epoch_order(len(self.index), self.seed, epoch)
            self._order = epoch, self.index[permutation][: self.count]
        return self._order[1]

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of ``epoch`` and ``step``, both counted from 0.

        Returns:
            Augmented images, uint8 ``[B, C, H, W]``, and labels, both on the device. Labels are int64 ``[B]``, or the
            share of each class, float32 ``[B, K]``, if images are mixed.
        """
        chosen = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        labels = to_device(self.labels[chosen], self.device)
        images = to_device(self.images.index_select(0, to_device(chosen, self.images.device)), self.device)
        policy = self.extras.policy
        if policy is not None and policy.before_crop:
            images = policy(images, derive_seed(self.seed, epoch, step, POLICY))
        if self.augment:
            draws = draw(len(chosen), self.padding, self.flip, self.seed, epoch, step)
            if self.alternating is not None:
                draws = replace(draws, mirror=self.alternating[chosen] ^ bool(epoch % 2))
            on_device = Draws(*(to_device(each, self.device) for each in (draws.top, draws.left, draws.mirror)))
            images = crop_and_flip(images, on_device, self.padding, reflect=self.reflect)
        if policy is not None and not policy.before_crop:
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
        """Return whether a step uses mixup or CutMix."""
        if not self.extras.mixup and not self.extras.cutmix:
            return False
        return self.mixed_steps is None or epoch * self.steps_per_epoch + step < self.mixed_steps

    def _paint_over(self, images: Tensor, epoch: int, step: int) -> Tensor:
        """Apply random erasing and cutout."""
        B, _, H, W = images.shape
        for share, purpose, boxes in (
            (self.extras.erase, ERASE, mixing.erase_boxes),
            (self.extras.cutout, CUTOUT, mixing.cutout_boxes),
        ):
            if share:
                drawn = boxes(B, H, W, share, derive_seed(self.seed, epoch, step, purpose))
                images = kernels.fill_boxes(images, to_device(drawn, self.device), self.colour)
        return images


def fill_up(images: Tensor, size: int) -> Tensor:
    """Append copies of the first of ``images``, ``[B, ...]``, until there are at least ``size``."""
    missing = size - len(images)
    return images if missing <= 0 else torch.cat([images, images[:1].expand(missing, *images.shape[1:])])


def scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], white: int = 255) -> tuple[Tensor, Tensor]:
    """Return the scale and offset, float32 ``[1, C, 1, 1]`` each, that normalise images in one multiply-add.

    Args:
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel of images scaled to 0-1.
        white: largest pixel value of the images to normalise.
    """
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (white * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    return scale.float().view(1, -1, 1, 1), offset.float().view(1, -1, 1, 1)


def normalized(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Normalise images of any type to float32 ``[B, C, H, W]`` with the result of :func:`scale_and_offset`."""
    return torch.addcmul(offset, images.float(), scale)


class Normalize:
    """Converts uint8 images to network input.

    Args:
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel of images scaled to 0-1.
        img_size: side of the network's input; images of other sizes are resized (bilinear, antialiased).
        device: device of the images.
        channels_last: use the channels-last memory format, in which some convolutional networks are faster.
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
        # Weights stay contiguous: convolutions follow the layout of the images, and fused optimizers, which traverse a
        # parameter and its state in memory order, would mix up other layouts.
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
