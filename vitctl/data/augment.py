"""Apply an augmentation policy to batches: images are sorted by kind of operation, and each kind runs once.

Letters in shapes: B images of a batch, b images that share a kind of operation, C channels, P pixels per image.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vitctl.data import kernels
from vitctl.data.policies import Operation, Policy
from vitctl.devices import policy_of, to_device

_KINDS = {
    "identity": 0,
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), 1),
    **dict.fromkeys(("brightness", "posterize", "solarize", "solarize_add", "invert"), 2),
    "autocontrast": 3,
    "equalize": 4,
    "contrast": 5,
    "color": 6,
    "sharpness": 7,
    "cutout": 8,
}
"""Kind of each operation. Neighbouring kinds share work: 2-5 use lookup tables, 5-6 the luma, and 6-7 blending."""

_STORED_PLACES = 1 << 20
"""Largest number of source pixel indices to keep (8 MiB); for larger images they are computed at every step."""

_CACHE_BYTES = 1 << 20
"""Bytes of images to process at once on the CPU, so that intermediate results stay in its cache."""

CUTOUT_COLOUR = (125, 123, 114)
"""Fill colour of the original scripts' cutout, about ImageNet's mean."""


class Augment:
    """Applies a policy to batches.

    Args:
        policy: draws the operations.
        shape: channels (1 or 3), height and width of the images.
        device: device of the images.

    Attributes:
        before_crop: whether to apply it before crop and flip.
    """

    def __init__(self, policy: Policy, shape: tuple[int, int, int], device: torch.device) -> None:
        self.policy, self.device, self.before_crop = policy, device, policy.before_crop
        self.channels, self.height, self.width = shape
        operations = policy.operations
        self.kinds = torch.tensor([_KINDS[operation.name] for operation in operations])  # on the CPU
        self.exact = torch.tensor([operation.value for operation in operations], dtype=torch.float64)  # on the CPU
        self.values = self.exact.float().to(device)
        self.tables = torch.stack([self._fixed_table(operation) for operation in operations]).to(device)
        self.matrices = torch.tensor([self._matrix(operation) for operation in operations], dtype=torch.int32).to(
            device
        )
        self.places: tuple[Tensor, Tensor] | None = None
        if len(operations) * self.height * self.width <= _STORED_PLACES:
            self.places = kernels.source_pixels(self.matrices, self.height, self.width)
        colour = torch.tensor(CUTOUT_COLOUR, dtype=torch.uint8).view(1, 3, 1, 1)
        self.colour = (colour if self.channels == 3 else kernels.grey(colour).to(torch.uint8)).flatten().to(device)

    @staticmethod
    def _fixed_table(operation: Operation) -> Tensor:
        if _KINDS[operation.name] == 2:
            return kernels.fixed_table(*operation)
        return torch.arange(256, dtype=torch.uint8)

    def _matrix(self, operation: Operation) -> list[int]:
        moved = operation if _KINDS[operation.name] == 1 else Operation("translate_x", 0.0)
        return kernels.fixed_point(kernels.affine_matrix(*moved, self.height, self.width))

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment a batch with operations that depend only on ``seed``.

        Args:
            images: uint8 ``[B, C, H, W]`` on the device; not modified.
            seed: seeds this batch.

        Returns:
            uint8 ``[B, C, H, W]``.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = self.policy.draw(len(images), generator)
        centres = torch.rand(self.policy.length, len(images), 2, generator=generator, dtype=torch.float64)
        if policy_of(self.device).one_pass:
            return self.apply(images, drawn, centres)
        piece = max(1, _CACHE_BYTES // images[0].numel())
        pieces = zip(
            torch.split(images, piece), torch.split(drawn, piece, 1), torch.split(centres, piece, 1), strict=True
        )
        return torch.cat([self.apply(*each) for each in pieces])

    def apply(self, images: Tensor, drawn: Tensor, centres: Tensor) -> Tensor:
        """Apply the drawn operations in sequence.

        Args:
            images: uint8 ``[B, C, H, W]`` on the device; not modified.
            drawn: int64 ``[length, B]`` on the CPU, indices into the policy's operations.
            centres: float64 ``[length, B, 2]`` on the CPU, positions of cutout (y, x) between 0 and 1.

        Returns:
            uint8 ``[B, C, H, W]``.
        """
        place = torch.arange(len(images))  # original index of each sorted image
        for operations, where in zip(drawn, centres, strict=True):
            kinds = self.kinds[operations[place]]
            order = kinds.argsort(stable=True)
            counts = kinds.bincount(minlength=len(set(_KINDS.values()))).tolist()
            place = place[order]
            images = images.index_select(0, to_device(order, self.device))
            self._apply_sorted(images, operations[place], where[place], counts)
        return images.index_select(0, to_device(place.argsort(), self.device))

    def _apply_sorted(self, images: Tensor, drawn: Tensor, centres: Tensor, counts: list[int]) -> None:
        """Apply one operation to each image, in place.

        Args:
            images: uint8 ``[B, C, H, W]``, sorted by kind of operation.
            drawn: int64 ``[B]`` on the CPU, indices into the policy's operations.
            centres: float64 ``[B, 2]`` on the CPU.
            counts: number of images of each kind.
        """
        spans = [slice(*ends) for ends in pairwise(accumulate(counts, initial=0))]
        _, affine, fixed, auto, equal, contrast, color, sharp, cutout = spans
        on_device = to_device(drawn, self.device)
        if counts[1]:
            images[affine] = kernels.warp(images[affine], *self._source(on_device[affine]))
        luma = kernels.grey(images[contrast.start : color.stop])  # int32 [b, 1, H, W]
        tables = [self.tables[on_device[fixed], None].expand(-1, self.channels, -1)] if counts[2] else []
        if counts[3]:
            tables.append(kernels.autocontrast_tables(images[auto]))
        if counts[4]:
            tables.append(kernels.equalize_tables(images[equal]))
        if counts[5]:
            stretched = kernels.contrast_tables(luma[: counts[5]], self.values[on_device[contrast]])
            tables.append(stretched.expand(-1, self.channels, -1))
        if tables:
            looked_up = slice(fixed.start, contrast.stop)
            images[looked_up] = kernels.apply_table(images[looked_up], torch.cat(tables))
        if counts[6]:
            factor = self.values[on_device[color]].view(-1, 1, 1, 1)
            images[color] = kernels.blend(images[color], luma[counts[5] :].float(), factor)
        if counts[7]:
            factor = self.values[on_device[sharp]].view(-1, 1, 1, 1)
            images[sharp] = kernels.blend(images[sharp], kernels.smooth(images[sharp]), factor)
        if counts[8]:
            boxes = seed_cutout_boxes(self.exact[drawn[cutout]], centres[cutout], self.height, self.width)
            images[cutout] = kernels.fill_boxes(images[cutout], to_device(boxes, self.device), self.colour)

    def _source(self, operations: Tensor) -> tuple[Tensor, Tensor]:
        if self.places is not None:
            place, inside = self.places
            return place.index_select(0, operations), inside.index_select(0, operations)
        return kernels.source_pixels(self.matrices.index_select(0, operations), self.height, self.width)


def seed_cutout_boxes(sides: Tensor, centres: Tensor, height: int, width: int) -> Tensor:
    """Return the boxes of the original scripts' cutout, int64 ``[b, 4]``.

    A box starts half a side above and to the left of its centre, clipped to the image, and ends a full side further,
    both ends included. A centre of 0 is at the far edge of an axis, and a centre of 1 at coordinate 1.

    Args:
        sides: float64 ``[b]``, in pixels.
        centres: float64 ``[b, 2]``, positions (y, x) between 0 and 1.
        height: image height.
        width: image width.
    """
    size = torch.tensor([height, width], dtype=torch.float64)
    start = (size + (1 - size) * centres - sides[:, None] / 2).clamp(min=0).long()  # [b, 2]
    stop = (start + sides[:, None]).long() + 1
    return torch.cat([start, torch.minimum(stop, size.long())], 1)
