"""Policies on batches: each image gets the operations drawn for it, wherever it is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.data.augmenting import CPU, POLICIES, SHAPES, applied, make_images, policy
from vitctl.data import AUGMENTATIONS, augment
from vitctl.data.augment import Augment
from vitctl.data.batches import POLICY, Extras, TrainBatches, crop_and_flip, derive_seed, draw
from vitctl.tools.preview import is_blank

META = torch.device("meta")


def draws(made: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the draws of a batch: operations, and positions of cutout."""
    generator = torch.Generator().manual_seed(seed)
    return made.draw(count, generator), torch.rand(made.length, count, 2, generator=generator, dtype=torch.float64)


def soft(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return smooth random images, which most operations change."""
    C, H, W = shape
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, C, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(small, (H, W), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_each_image_gets_the_operations_drawn_for_it(name: str, shape: tuple[int, int, int]) -> None:
    made = policy(name, shape[1:])
    images = torch.cat([make_images(shape), soft(50, shape)])
    before = images.clone()
    result = Augment(made, shape, CPU)(images, seed=3)
    assert torch.equal(images, before) and result.dtype == torch.uint8 and result.shape == images.shape
    drawn, centres = draws(made, len(images), seed=3)
    for i, image in enumerate(images):
        expected = image[None]
        for turn in range(made.length):
            expected = applied(expected, [made.operations[drawn[turn, i]]], centres[turn, i][None])
        assert torch.equal(result[i], expected[0]), [made.operations[each[i]] for each in drawn]
    assert not torch.equal(result, images)


@pytest.mark.parametrize("name", POLICIES)
def test_chunks_and_cached_pixel_indices_give_identical_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3, 32, 32)
    images = soft(70, shape)
    stored = Augment(policy(name), shape, CPU)
    assert stored.places is not None
    expected = stored(images, 5)
    monkeypatch.setattr(augment, "_CACHE_BYTES", 9 * images[0].numel())
    assert torch.equal(stored(images, 5), expected)
    monkeypatch.setattr(augment, "_STORED_PLACES", 0)
    computed = Augment(policy(name), shape, CPU)
    assert computed.places is None and torch.equal(computed(images, 5), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_equal_seeds_give_equal_images_and_others_differ(name: str) -> None:
    made = Augment(policy(name), (3, 32, 32), CPU)
    images = soft(40, (3, 32, 32))
    assert torch.equal(made(images, 1), made(images, 1))
    assert not torch.equal(made(images, 1), made(images, 2))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_few_images_leave_most_kinds_of_operation_empty(name: str, count: int) -> None:
    made = Augment(policy(name), (3, 32, 32), CPU)
    for seed in range(40):
        assert made(soft(count, (3, 32, 32)), seed).shape == (count, 3, 32, 32)


class Watch(TorchDispatchMode):
    """Counts operations, and checks that those on the device need no synchronization and no float64."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        result = function(*args, **(kwargs or {}))
        given = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in torch.utils._pytree.tree_leaves(result) if isinstance(each, Tensor)]
        if any(each.is_meta for each in [*given, *made]):
            copies = "copy" in str(function)
            assert copies or all(each.is_meta or each.ndim == 0 for each in given), f"{function} mixes devices"
            assert all(each.dtype != torch.float64 for each in made), f"{function} makes float64 on the device"
            assert not (kwargs or {}).get("non_blocking"), "a copy without synchronization"
        return result


def batches(name: str, device: torch.device, *, count: int = 300, batch_size: int = 300, **extras: Any) -> TrainBatches:
    """Return batches with the augmentation ``name`` and ``extras``."""
    images = soft(count, (3, 32, 32))
    made = Augment(policy(name), (3, 32, 32), device) if AUGMENTATIONS[name].target else None
    return TrainBatches(
        images,
        torch.arange(count) % 5,
        torch.arange(count),
        batch_size=batch_size,
        device=device,
        seed=3,
        augment=AUGMENTATIONS[name].crop,
        flip=True,
        extras=Extras(policy=made, colour=(1, 2, 3), classes=5, **extras),
    )


EVERYTHING = {"erase": 0.5, "cutout": 0.25, "mixup": 0.8, "cutmix": 1.0}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_devices_are_not_read_or_mixed_and_use_no_float64(name: str) -> None:
    """The ``meta`` device has no values, so that reading any would fail, and it differs from the CPU of the draws."""
    source = batches(name, META, **EVERYTHING)
    with Watch():
        images, labels = source.batch(1, 0)
    assert images.is_meta and images.shape == (300, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.is_meta and labels.shape == (300, 5) and labels.dtype == torch.float32


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_number_of_operations_does_not_depend_on_the_batch_size(name: str) -> None:
    counts = []
    for count in (150, 300):
        source = batches(name, CPU, batch_size=count, **EVERYTHING)
        source.batch(0, 0)
        with Watch() as watch:
            source.batch(0, 0)
        counts.append(watch.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_samples_depend_only_on_seed_epoch_and_step(name: str) -> None:
    straight, jumped = (batches(name, CPU, count=100, batch_size=40, **EVERYTHING) for _ in range(2))
    seen = {(epoch, step): straight.batch(epoch, step) for epoch in range(2) for step in range(3)}
    for place in ((1, 2), (0, 1)):  # in another order, and without earlier steps
        images, labels = jumped.batch(*place)
        assert torch.equal(images, seen[place][0]) and torch.equal(labels, seen[place][1])
    for one, other in (((0, 0), (1, 0)), ((0, 0), (0, 1))):
        assert not torch.equal(seen[one][0], seen[other][0])


@pytest.mark.parametrize("extra", EVERYTHING)
def test_extras_do_not_affect_other_draws(extra: str) -> None:
    """Random erasing and mixing do not change the order, crops, flips and operations of the policy."""
    plain = batches("randaug", CPU)
    more = batches("randaug", CPU, **{extra: EVERYTHING[extra]})
    images, changed = plain.batch(0, 0)[0], more.batch(0, 0)[0]
    same = (images == changed).float().mean()
    assert 0 < same < 1
    if extra in ("erase", "cutout", "cutmix"):  # pixels outside the boxes do not change
        assert same > 0.4


@pytest.mark.parametrize("name", POLICIES)
def test_only_the_original_policy_is_applied_before_crop_and_flip(name: str) -> None:
    source = batches(name, CPU, count=100, batch_size=40)
    made = policy(name)
    images = source.images[source.order(1)[40:80]]
    drawn = draw(40, 4, True, source.seed, 1, 1)
    augmented, seed = Augment(made, (3, 32, 32), CPU), derive_seed(source.seed, 1, 1, POLICY)
    if name == "seed-randaug":
        expected = crop_and_flip(augmented(images, seed), drawn, 4)
    else:
        expected = augmented(crop_and_flip(images, drawn, 4), seed)
    assert torch.equal(source.batch(1, 1)[0], expected)


def test_only_the_original_policy_blanks_images() -> None:
    """The original scripts' ranges leave 23 % of images with a single colour, and the other policies' none."""
    images = soft(4000, (3, 32, 32))
    assert not is_blank(images).any()
    share = {
        name: sum(int(is_blank(Augment(policy(name), (3, 32, 32), CPU)(images, seed)).sum()) for seed in range(5))
        / 20_000
        for name in POLICIES
    }
    # 1 - (14 / 16)^2 = 23.4 % are translated out of view; cutout then fills a box in one of 16 of them, 0.7 %
    assert share.pop("seed-randaug") == pytest.approx(0.227, abs=0.01)
    assert all(each < 0.001 for each in share.values()), share


def test_blank_images_have_a_single_colour() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = 200  # one colour, not grey
    images[1, :, 0, 3] = 9
    images[2, 1, 4, 4] = 9
    assert is_blank(images).tolist() == [True, False, False, True]
