"""The operations of automatic augmentation, each over a whole batch with a parameter per image.

They compute what Pillow computes, which torchvision's and the predecessor's augmentations call: nearest neighbour and
black where an image is moved out of its frame, results cut off to whole grey levels. Where Pillow works in whole
numbers so does this, so that the images do not depend on the device; autocontrast works in whole numbers where Pillow
does not, and is a level brighter where Pillow's rounding errors fall short of one.

Letters in shapes: b images, C channels (1 or 3), H and W their height and width, P = H * W.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GREY_WEIGHTS = (19595, 38470, 7471)
"""Red, green and blue in ITU-R 601 luma, of 65536."""


def affine_matrix(name: str, value: float, height: int, width: int) -> tuple[float, ...]:
    """Return ``(a, b, c, d, e, f)``, which take the point (x, y) of the result to (ax + by + c, dx + ey + f) of the source.

    Args:
        name: ``rotate`` (degrees, counter-clockwise, about the centre), ``shear_x``, ``shear_y`` (a factor, about the upper
            left corner), ``translate_x`` or ``translate_y`` (pixels to the right, or down).
        value: how far.
        height: of the image.
        width: of the image.
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
    """Return an affine matrix in 65536ths, its offsets moved to the centre of the first pixel, as Pillow rounds it."""
    a, b, c, d, e, f = matrix
    return [math.floor(v * 65536 + 0.5) for v in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]


def source_pixels(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return which pixel each pixel of the result is taken from.

    Args:
        matrices: int32 ``[b, 6]``, of :func:`fixed_point`.
        height: of the images.
        width: of the images.

    Returns:
        int64 ``[b, P]``, a place in the flat source; and uint8 ``[b, P]``, 1 where that lies in the frame.
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
    """Take every pixel from where :func:`source_pixels` says, or black.

    Args:
        images: uint8 ``[b, C, H, W]``.
        place: int64 ``[b, P]``.
        inside: uint8 ``[b, P]``.
    """
    b, C, H, W = images.shape
    moved = images.view(b, C, H * W).gather(2, place[:, None].expand(b, C, H * W))
    return moved.mul_(inside[:, None]).view(b, C, H, W)


def apply_table(images: Tensor, table: Tensor) -> Tensor:
    """Replace every grey level by what its image's and channel's table, uint8 ``[b, C, 256]``, has for it."""
    b, C, H, W = images.shape
    return table.gather(2, images.view(b, C, H * W).long()).view(b, C, H, W)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Go from ``other`` to ``images`` by ``factor``: 0 is ``other``, 1 is ``images``, and more than 1 goes beyond.

    Args:
        images: any numbers, ``[b, ...]``.
        other: float32, of a shape that broadcasts to that of ``images``.
        factor: float32, likewise.

    Returns:
        uint8, of the shape of ``images``.
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
    """Return images under a 3x3 mean whose centre counts five times, float32 ``[b, C, H, W]``; the rim stays as it is."""
    x = images.float()
    across = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    total.add_(x[..., 1:-1, 1:-1], alpha=4)
    x[..., 1:-1, 1:-1] = total.add_(6.5).mul_(1 / 13).floor_()  # whole numbers until here; 13 leaves no ties to round
    return x


def levels(device: torch.device) -> Tensor:
    """Return the grey levels, int32 ``[256]``."""
    return torch.arange(256, dtype=torch.int32, device=device)


def contrast_tables(luma: Tensor, factor: Tensor) -> Tensor:
    """Return tables that move grey levels away from an image's mean, uint8 ``[b, 1, 256]``.

    Args:
        luma: int32 ``[b, 1, H, W]``, of :func:`grey`.
        factor: float32 ``[b]``.
    """
    count = luma[0].numel()
    mean = (2 * luma.flatten(2).sum(2, dtype=torch.int64) + count) // (2 * count)  # [b, 1]
    return blend(levels(luma.device), mean[..., None].float(), factor.view(-1, 1, 1))


def autocontrast_tables(images: Tensor) -> Tensor:
    """Return tables that stretch each channel over all grey levels, uint8 ``[b, C, 256]``."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).int(), flat.amax(2, keepdim=True).int()  # [b, C, 1]
    stretched = (levels(images.device) - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched.clamp(0, 255), levels(images.device)).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """Return tables that make every grey level about as frequent, uint8 ``[b, C, 256]``."""
    b, C, H, W = images.shape
    count = torch.zeros(b, C, 256, dtype=torch.int32, device=images.device)
    flat = images.view(b, C, H * W)
    count.scatter_add_(2, flat.long(), torch.ones_like(flat, dtype=torch.int32))
    # Pillow leaves the brightest level that there is out of the sum, and stretches the others over 255 steps.
    step = (H * W - count.gather(2, flat.amax(2, keepdim=True).long())) // 255  # [b, C, 1]
    below = count.cumsum(2, dtype=torch.int32) - count
    table = torch.div(below + step // 2, step.clamp(min=1), rounding_mode="trunc").clamp(max=255)
    return torch.where(step > 0, table, levels(images.device)).to(torch.uint8)


def fixed_table(name: str, value: float) -> Tensor:
    """Return what becomes of each grey level where that hangs on no image, uint8 ``[256]``, on the CPU.

    Args:
        name: ``brightness`` (a factor), ``posterize`` (bits kept), ``solarize`` (the level from which on levels are
            inverted), ``solarize_add`` (levels added before solarizing at 128) or ``invert``.
        value: by how much.
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
    """Return where boxes are, bool ``[b, 1, H, W]``.

    Args:
        boxes: int ``[b, 4]``: first row, first column, and the row and column after the last.
        height: of the images.
        width: of the images.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # each [b, 1]
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # [b, H], [b, W]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def fill_boxes(images: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Paint a box of each image.

    Args:
        images: uint8 ``[b, C, H, W]``.
        boxes: int ``[b, 4]``, as :func:`inside_boxes` takes them.
        colour: uint8 ``[C]``.
    """
    return torch.where(inside_boxes(boxes, *images.shape[2:]), colour.view(1, -1, 1, 1), images)
