"""Operations of automatic augmentation on batches, with one parameter per image.

The results are those of Pillow, which torchvision and the original scripts use: nearest-neighbour sampling, black
outside the source image, and truncation to integer grey levels. Integer arithmetic is used wherever Pillow uses it, so
that results do not depend on the device. Autocontrast also uses integers, unlike Pillow, and is one level brighter where
Pillow's rounding error falls short of a level.

Letters in shapes: b images, C channels (1 or 3), H height, W width, P = H * W.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GREY_WEIGHTS = (19595, 38470, 7471)
"""Weights of red, green and blue in ITU-R 601 luma, in 65536ths."""


def affine_matrix(name: str, value: float, height: int, width: int) -> tuple[float, ...]:
    """Return ``(a, b, c, d, e, f)``, which map (x, y) in the result to (ax + by + c, dx + ey + f) in the source.

    Args:
        name: name of the operation.
        value: for ``rotate``, degrees counter-clockwise about the centre; for ``shear_x`` and ``shear_y``, a factor about
            the upper left corner; for ``translate_x`` and ``translate_y``, pixels to the right or down.
        height: image height.
        width: image width.
    """
    if name == "shear_x":
        return 1, value, 0, 0, 1, 0
    if name == "shear_y":
        return 1, 0, 0, value, 1, 0
    if name == "translate_x":
        return 1, 0, -value, 0, 1, 0
    if name == "translate_y":
        return 1, 0, 0, 0, 1, -value
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def fixed_point(matrix: tuple[float, ...]) -> list[int]:
    """Return an affine matrix in 65536ths, with offsets at the centre of the first pixel, rounded as by Pillow."""
    a, b, c, d, e, f = matrix
    return [math.floor(v * 65536 + 0.5) for v in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]


def source_pixels(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the source pixel of each pixel of the result.

    Args:
        matrices: int32 ``[b, 6]``, from :func:`fixed_point`.
        height: image height.
        width: image width.

    Returns:
        Index into the flattened source, int64 ``[b, P]``; and 1 if it is inside the source, else 0, uint8 ``[b, P]``.
    """
    a, b, c, d, e, f = (column.view(-1, 1, 1) for column in matrices.unbind(1))  # each [b, 1, 1]
    x = torch.arange(width, dtype=torch.int32, device=matrices.device)
    y = torch.arange(height, dtype=torch.int32, device=matrices.device)[:, None]
    column = (a * x + (b * y + c)) >> 16  # [b, H, W]
    row = (d * x + (e * y + f)) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row * width + column) * inside
    return place.flatten(1).long(), inside.flatten(1).to(torch.uint8)


def warp(images: Tensor, place: Tensor, inside: Tensor) -> Tensor:
    """Move every pixel to the result from its source pixel, or from black.

    Args:
        images: uint8 ``[b, C, H, W]``.
        place: int64 ``[b, P]``, from :func:`source_pixels`.
        inside: uint8 ``[b, P]``, from :func:`source_pixels`.
    """
    b, C, H, W = images.shape
    moved = images.view(b, C, H * W).gather(2, place[:, None].expand(b, C, H * W))
    return moved.mul_(inside[:, None]).view(b, C, H, W)


def apply_table(images: Tensor, table: Tensor) -> Tensor:
    """Look up every grey level in the table of its image and channel, uint8 ``[b, C, 256]``."""
    b, C, H, W = images.shape
    return table.gather(2, images.view(b, C, H * W).long()).view(b, C, H, W)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Interpolate from ``other`` (``factor`` 0) to ``images`` (``factor`` 1), and extrapolate above 1.

    Args:
        images: ``[b, ...]``, of any type.
        other: float32, broadcastable to the shape of ``images``.
        factor: float32, broadcastable to the shape of ``images``.

    Returns:
        uint8, in the shape of ``images``.
    """
    return (images - other).mul_(factor).add_(other).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return the luma of images, int32 ``[b, 1, H, W]``."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    r, g, b = GREY_WEIGHTS
    return ((red * r + green * g + blue * b + 32768) >> 16)[:, None]


def smooth(images: Tensor) -> Tensor:
    """Return the weighted 3x3 mean of images, with centre weight 5, float32 ``[b, C, H, W]``; borders do not change."""
    x = images.float()
    across = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    total.add_(x[..., 1:-1, 1:-1], alpha=4)
    x[..., 1:-1, 1:-1] = total.add_(6.5).mul_(1 / 13).floor_()  # totals are integers, and 13 is odd: no ties
    return x


def levels(device: torch.device) -> Tensor:
    """Return all grey levels, int32 ``[256]``."""
    return torch.arange(256, dtype=torch.int32, device=device)


def contrast_tables(luma: Tensor, factor: Tensor) -> Tensor:
    """Return tables that scale the distance of grey levels from an image's mean, uint8 ``[b, 1, 256]``.

    Args:
        luma: int32 ``[b, 1, H, W]``, from :func:`grey`.
        factor: float32 ``[b]``.
    """
    count = luma[0].numel()
    mean = (2 * luma.flatten(2).sum(2, dtype=torch.int64) + count) // (2 * count)  # [b, 1]
    return blend(levels(luma.device), mean[..., None].float(), factor.view(-1, 1, 1))


def autocontrast_tables(images: Tensor) -> Tensor:
    """Return tables that stretch each channel to the full range of grey levels, uint8 ``[b, C, 256]``."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).int(), flat.amax(2, keepdim=True).int()  # [b, C, 1]
    stretched = (levels(images.device) - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched.clamp(0, 255), levels(images.device)).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """Return tables that equalize the histogram of each channel, uint8 ``[b, C, 256]``."""
    b, C, H, W = images.shape
    count = torch.zeros(b, C, 256, dtype=torch.int32, device=images.device)
    flat = images.view(b, C, H * W)
    count.scatter_add_(2, flat.long(), torch.ones_like(flat, dtype=torch.int32))
    # Pillow excludes the brightest level that occurs from the sum, and spreads the others over 255 steps.
    step = (H * W - count.gather(2, flat.amax(2, keepdim=True).long())) // 255  # [b, C, 1]
    below = count.cumsum(2, dtype=torch.int32) - count
    table = torch.div(below + step // 2, step.clamp(min=1), rounding_mode="trunc").clamp(max=255)
    return torch.where(step > 0, table, levels(images.device)).to(torch.uint8)


def fixed_table(name: str, value: float) -> Tensor:
    """Return the table of an operation that is the same for every image, uint8 ``[256]``, on the CPU.

    Args:
        name: name of the operation.
        value: for ``brightness``, a factor; for ``posterize``, the number of bits to keep; for ``solarize``, the lowest
            level to invert; for ``solarize_add``, the value to add before solarizing at 128; unused for ``invert``.
    """
    level = levels(torch.device("cpu"))
    if name == "brightness":
        return blend(level, torch.zeros(()), torch.tensor(value, dtype=torch.float32))
    if name == "posterize":
        return level.bitwise_and(~((1 << 8 - int(value)) - 1)).to(torch.uint8)
    if name == "solarize_add":
        level, value = (level + value).clamp(0, 255).int(), 128
    if name == "invert":
        value = 0
    return torch.where(level < value, level, 255 - level).to(torch.uint8)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the masks of boxes, bool ``[b, 1, H, W]``.

    Args:
        boxes: int ``[b, 4]``: top, left, bottom, right; bottom and right are exclusive.
        height: image height.
        width: image width.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # each [b, 1]
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # [b, H], [b, W]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def fill_boxes(images: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Fill one box per image.

    Args:
        images: uint8 ``[b, C, H, W]``.
        boxes: int ``[b, 4]``, as in :func:`inside_boxes`.
        colour: uint8 ``[C]``.
    """
    return torch.where(inside_boxes(boxes, *images.shape[2:]), colour.view(1, -1, 1, 1), images)
