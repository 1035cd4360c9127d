"""Each operation compared with torchvision and the original scripts, both of which call Pillow."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as v1
import torchvision.transforms.v2.functional as v2
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from tests.data.augmenting import SHAPES, applied, from_pil, greatest_difference, make_images, policy, to_pil
from vitctl.data import kernels
from vitctl.data.augment import CUTOUT_COLOUR, seed_cutout_boxes
from vitctl.data.policies import Operation

CLOSE = 1
"""Grey levels."""


def allowed(operation: Operation) -> int:
    """Return the allowed difference from Pillow: autocontrast may differ where Pillow's floats fall short of a level."""
    return CLOSE if operation.name == "autocontrast" else 0


STILL = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def by_torchvision(tv: ModuleType, image: Any, operation: Operation) -> Any:
    """Apply an operation as torchvision's RandAugment, TrivialAugmentWide and AutoAugment do."""
    name, value = operation
    slant = math.degrees(math.atan(value))
    by_name = {
        "identity": lambda: image,
        "shear_x": lambda: tv.affine(image, **{**STILL, "shear": [slant, 0.0]}, center=[0, 0]),
        "shear_y": lambda: tv.affine(image, **{**STILL, "shear": [0.0, slant]}, center=[0, 0]),
        "translate_x": lambda: tv.affine(image, **{**STILL, "translate": [int(value), 0]}),
        "translate_y": lambda: tv.affine(image, **{**STILL, "translate": [0, int(value)]}),
        "rotate": lambda: tv.rotate(image, value),
        "brightness": lambda: tv.adjust_brightness(image, value),
        "color": lambda: tv.adjust_saturation(image, value),
        "contrast": lambda: tv.adjust_contrast(image, value),
        "sharpness": lambda: tv.adjust_sharpness(image, value),
        "posterize": lambda: tv.posterize(image, int(value)),
        "solarize": lambda: tv.solarize(image, value),
        "autocontrast": lambda: tv.autocontrast(image),
        "equalize": lambda: tv.equalize(image),
        "invert": lambda: tv.invert(image),
    }
    return by_name[name]()


def by_original(image: Image.Image, operation: Operation, draw: Any) -> Image.Image:
    """Apply an operation as in the original scripts' RandAugment; ``draw(high)`` draws the position of cutout."""
    name, value = operation
    moved = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, -value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -value),
    }
    if name in moved:
        return image.transform(image.size, Image.Transform.AFFINE, moved[name])
    if name == "cutout":
        width, height = image.size
        left, top = int(max(0, draw(width) - value / 2)), int(max(0, draw(height) - value / 2))
        box = (left, top, min(width, left + value), min(height, top + value))
        image = image.copy()
        ImageDraw.Draw(image).rectangle(box, CUTOUT_COLOUR)
        return image
    if name == "solarize_add":
        lighter = (np.array(image).astype(int) + value).clip(0, 255).astype(np.uint8)
        return ImageOps.solarize(Image.fromarray(lighter), 128)
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(value),
        "posterize": lambda: ImageOps.posterize(image, int(value)),
        "solarize": lambda: ImageOps.solarize(image, value),
        "color": lambda: ImageEnhance.Color(image).enhance(value),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
    }[name]()


def cases(shape: tuple[int, int]) -> list[Operation]:
    """Return every operation of torchvision's policies, at several strengths."""
    found = [op for m in (0, 9, 14, 30) for op in policy("randaug", shape, m=m).operations]
    found += policy("autoaug", shape).operations + policy("trivialaug", shape).operations[::7]
    return sorted(set(found))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_operation_matches_torchvision_on_pil_images(shape: tuple[int, int, int]) -> None:
    operations = cases(shape[1:])
    assert {op.name for op in operations} >= {*MOVES, "equalize", "autocontrast", "invert", "sharpness", "identity"}
    for image in make_images(shape):
        ours = applied(image.expand(len(operations), *shape), operations)
        pil = to_pil(image)
        for result, operation in zip(ours, operations, strict=True):
            expected = from_pil(by_torchvision(v1, pil, operation))
            assert greatest_difference(result, expected) <= allowed(operation), operation


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_operation_matches_torchvision_on_tensors(shape: tuple[int, int, int]) -> None:
    """On tensors, torchvision itself differs from Pillow in the unrounded mean of contrast and in ties of rotations."""
    for image in make_images(shape):
        for operation in cases(shape[1:]):
            result = applied(image[None], [operation])[0]
            expected = by_torchvision(v2, image, operation)
            difference = (result.int() - expected.int()).abs()
            if operation.name == "rotate":  # ties between two source pixels
                assert (difference > CLOSE).float().mean() < 0.05, operation
            else:
                assert difference.max() <= (2 if operation.name == "contrast" else CLOSE), operation


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] == 3], ids=str)
@pytest.mark.parametrize("m", [3, 14, 30])
def test_each_operation_matches_the_original_scripts(shape: tuple[int, int, int], m: int) -> None:
    operations = policy("seed-randaug", shape[1:], m=m).operations
    assert len({operation.name for operation in operations}) == 16
    generator = np.random.default_rng(m)
    for image in make_images(shape):
        places = generator.random((len(operations), 2))
        ours = applied(image.expand(len(operations), *shape), operations, torch.from_numpy(places))
        for result, operation, (down, across) in zip(ours, operations, places, strict=True):
            # the original scripts call numpy's uniform(high), which is between high and 1
            where = iter((across, down))
            expected = by_original(to_pil(image), operation, lambda high, w=where: high + (1 - high) * next(w))
            assert greatest_difference(result, from_pil(expected)) <= allowed(operation), operation


def test_the_original_cutout_fills_grey_images_with_the_luma_of_its_colour() -> None:
    black = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    result = applied(black, [Operation("cutout", 18.0)], torch.full((1, 2), 0.5, dtype=torch.float64))
    assert set(result.unique().tolist()) == {0, Image.new("RGB", (1, 1), CUTOUT_COLOUR).convert("L").getpixel((0, 0))}


def test_boxes_of_the_original_cutout_are_clipped_to_the_image() -> None:
    centres = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.0]], dtype=torch.float64)
    boxes = seed_cutout_boxes(torch.tensor([18.0, 18.0, 100.0], dtype=torch.float64), centres, 32, 40)
    # from 32 - 9 to the far edge; from 1.03 - 9, clipped to 0, over 18 pixels and one more
    assert boxes.tolist() == [[23, 31, 32, 40], [0, 0, 19, 19], [0, 0, 32, 40]]


@pytest.mark.parametrize(
    "operation", [Operation("posterize", 8), Operation("brightness", 1.0), Operation("rotate", 0.0)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operations_without_strength_change_nothing(shape: tuple[int, int, int], operation: Operation) -> None:
    images = make_images(shape)
    assert torch.equal(applied(images, [operation] * len(images)), images)


def test_pixels_from_outside_the_image_are_black() -> None:
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for operation, part in ((Operation("translate_x", 4.0), 28 / 32), (Operation("shear_y", -0.3), None)):
        result = applied(white, [operation])
        assert set(result.unique().tolist()) == {0, 255}
        if part:
            assert (result == 255).float().mean() == part
    # positive translations move to the right, as in torchvision
    assert not applied(white, [Operation("translate_x", 4.0)])[..., :4].any()


def smoothed_by_loops(images: Tensor, factor: float) -> Tensor:
    """Return Pillow's 3x3 smoothing, blended with the images; computed pixel by pixel."""
    smoothed = images.double().clone()
    H, W = images.shape[2:]
    weights = [[1, 1, 1], [1, 5, 1], [1, 1, 1]]
    for y in range(1, H - 1):
        for x in range(1, W - 1):
            near = images[..., y - 1 : y + 2, x - 1 : x + 2].double()
            smoothed[..., y, x] = ((near * torch.tensor(weights)).sum((-1, -2)) / 13 + 0.5).floor()
    return (smoothed + factor * (images - smoothed)).clamp(0, 255).floor()


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 3, 3), (3, 2, 5), (1, 1, 1)], ids=str)
def test_smoothing_keeps_borders_and_works_for_every_size(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kernels.smooth(images), smoothed_by_loops(images, 0.0).float())
    result = applied(images, [Operation("sharpness", 1.5)] * 4)
    assert torch.equal(result, smoothed_by_loops(images, 1.5).to(torch.uint8))
