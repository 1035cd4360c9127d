"""Training batches: order, crops and flips, and normalisation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from vitctl.data.batches import (
    Draws,
    Normalize,
    TrainBatches,
    crop_and_flip,
    derive_seed,
    draw,
    epoch_order,
    first_epoch_flips,
)

CPU = torch.device("cpu")


def make_images(count: int = 20, channels: int = 3, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 5


def batches(**more: object) -> TrainBatches:
    images, labels = make_images()
    options: dict[str, Any] = {"batch_size": 6, "device": CPU, "seed": 3, "augment": True, "flip": True, **more}
    return TrainBatches(images, labels, options.pop("index", torch.arange(0, 20, 2)), **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (24, 40)])
def test_each_image_is_padded_cropped_and_mirrored_as_drawn(channels: int, height: int, width: int) -> None:
    images = make_images(16, channels, 40)[0][:, :, :height, :width].contiguous()
    for padding in (0, width // 8, min(height, width) - 1):
        draws = draw(16, padding, True, seed=1, epoch=2, step=3)
        for mode in ("constant", "reflect"):
            result = crop_and_flip(images, draws, padding, reflect=mode == "reflect")
            sides = [(0, 0), (padding, padding), (padding, padding)]
            for i, image in enumerate(images):  # NumPy and torchvision do one image at a time
                padded = torch.from_numpy(np.pad(image.numpy(), sides, mode))  # type: ignore[call-overload]
                expected = tv.crop(padded, int(draws.top[i]), int(draws.left[i]), height, width)
                if draws.mirror[i]:
                    expected = tv.horizontal_flip(expected)
                assert torch.equal(result[i], expected)


def test_draws_are_uniform_and_reach_both_ends() -> None:
    draws = draw(90_000, 4, True, seed=0, epoch=0, step=0)
    for offsets in (draws.top, draws.left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        # chi-square with 8 degrees of freedom: 26.1 is its 0.999 quantile
        assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 26.1
    assert abs(draws.mirror.float().mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws.top.numpy(), draws.left.numpy())[0, 1]) < 0.02


def test_images_are_not_flipped_where_mirrored_images_change_their_class() -> None:
    assert not draw(1000, 1, False, 0, 0, 0).mirror.any()


def sides_seen(source: TrainBatches, epoch: int) -> dict[int, bool]:
    """Return by index whether each image is mirrored in an epoch, found by its pixels; crops must not move it."""
    seen = torch.cat([source.batch(epoch, step)[0] for step in range(source.steps_per_epoch)])
    sides = {}
    for shown, index in zip(seen, source.order(epoch).tolist(), strict=True):
        image = source.images[index]
        assert torch.equal(shown, image) or torch.equal(shown, image.flip(-1))
        sides[index] = not torch.equal(shown, image)
    return sides


def test_an_alternating_flip_mirrors_each_image_every_other_epoch() -> None:
    source = batches(alternate=True, padding=0)
    first, second, third = (sides_seen(source, epoch) for epoch in range(3))
    assert first == third and all(first[index] != second[index] for index in first)
    assert len(set(first.values())) == 2


@pytest.mark.parametrize("more", [{"batch_size": 1}, {"batch_size": 10}, {"index": torch.tensor([16, 2, 8])}], ids=str)
def test_the_side_of_an_alternating_flip_depends_only_on_seed_and_image(more: dict[str, Any]) -> None:
    sides = [sides_seen(batches(alternate=True, padding=0), epoch) for epoch in range(2)]
    for epoch in (1, 0):  # a batch does not depend on earlier ones
        others = sides_seen(batches(alternate=True, padding=0, **more), epoch)
        assert others == {index: sides[epoch][index] for index in others}


def test_alternating_flips_are_fair_and_independent_of_other_draws() -> None:
    flips = first_epoch_flips(40_000, 0)
    assert abs(flips.float().mean() - 0.5) < 0.01
    assert torch.equal(first_epoch_flips(100, 0), flips[:100])  # more images change no others
    for seed in range(1, 4):
        assert abs((first_epoch_flips(40_000, seed) == flips).float().mean() - 0.5) < 0.01
    for epoch in range(8):  # an image's place in an epoch does not tell its side
        half = epoch_order(40_000, 0, epoch)[:20_000]
        assert abs(flips[half].float().mean() - 0.5) < 0.015


def test_crops_do_not_depend_on_the_kind_of_flip() -> None:
    random, alternating, still = batches(), batches(alternate=True), batches(flip=False)
    for epoch in range(2):
        plain = still.batch(epoch, 0)[0]
        for source in (random, alternating):
            images = source.batch(epoch, 0)[0]
            drawn = draw(6, 4, True, 3, epoch, 0)
            mirror = drawn.mirror
            if source is alternating:
                mirror = first_epoch_flips(20, 3)[source.order(epoch)[:6]] ^ bool(epoch)
            assert torch.equal(images[~mirror], plain[~mirror])
            flipped = Draws(drawn.top, drawn.left, mirror)
            assert torch.equal(images, crop_and_flip(source.images[source.order(epoch)[:6]], flipped, 4))


def test_images_are_never_mirrored_where_that_changes_their_class() -> None:
    assert not any(sides_seen(batches(alternate=True, flip=False, padding=0), 0).values())


def test_the_order_is_a_permutation_determined_by_seed_and_epoch() -> None:
    assert torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    assert torch.equal(epoch_order(50, 1, 2).sort().values, torch.arange(50))
    assert len({tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}) == 16


def test_derived_seeds_are_distinct() -> None:
    seeds = {derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_an_epoch_has_every_image_of_the_index_once() -> None:
    plain = batches(augment=False)
    images, _ = make_images()
    seen = torch.cat([plain.batch(0, step)[0] for step in range(plain.steps_per_epoch)])
    assert plain.steps_per_epoch == 2 and len(seen) == 10
    expected = images[::2].flatten(1).double().sum(1).sort().values
    assert torch.equal(seen.flatten(1).double().sum(1).sort().values, expected)


def test_a_batch_does_not_depend_on_earlier_batches() -> None:
    straight, jumped = batches(), batches()
    for epoch in range(2):
        for step in range(2):
            straight.batch(epoch, step)
    images, labels = straight.batch(2, 1)
    again, same = jumped.batch(2, 1)
    assert torch.equal(images, again) and torch.equal(labels, same)


def test_steps_and_epochs_have_different_draws() -> None:
    source = batches(batch_size=10)
    assert not torch.equal(source.batch(0, 0)[0], source.batch(1, 0)[0])
    first, second = draw(10, 4, True, 3, 0, 0), draw(10, 4, True, 3, 0, 1)
    assert not torch.equal(first.top, second.top)


def test_a_last_batch_of_one_image_is_dropped_on_request() -> None:
    assert batches(batch_size=9).steps_per_epoch == 2
    dropped = batches(batch_size=9, drop_single=True)
    assert (dropped.steps_per_epoch, dropped.count) == (1, 9)
    assert len(dropped.order(0)) == 9


def test_normalize_matches_torchvision() -> None:
    images, _ = make_images(4)
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)
    expected = tv.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(Normalize(mean, std, 32, CPU)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [16, 48])
def test_resizing_matches_torchvision(side: int) -> None:
    images, _ = make_images(4)
    expected = tv.resize(tv.normalize(images.float() / 255, [0.5] * 3, [0.2] * 3), [side, side], antialias=True)
    result = Normalize((0.5,) * 3, (0.2,) * 3, side, CPU)(images)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_memory_mapped_images_give_the_same_batches(tmp_path: Path) -> None:
    images, labels = make_images()
    images.numpy().tofile(tmp_path / "images")
    mapped = torch.from_numpy(np.memmap(tmp_path / "images", np.uint8, "c", shape=tuple(images.shape)))
    a = TrainBatches(mapped, labels, torch.arange(20), batch_size=5, device=CPU, seed=0, augment=True, flip=True)
    b = TrainBatches(images, labels, torch.arange(20), batch_size=5, device=CPU, seed=0, augment=True, flip=True)
    assert torch.equal(a.batch(1, 2)[0], b.batch(1, 2)[0])


def test_a_centred_crop_without_flip_changes_nothing() -> None:
    images, _ = make_images()
    still = Draws(torch.full((20,), 4), torch.full((20,), 4), torch.zeros(20, dtype=torch.bool))
    assert torch.equal(crop_and_flip(images, still, 4), images)


def test_order_depends_on_seed_and_epoch() -> None:
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40)

    def order(seed: int, epoch: int) -> list[int]:
        batches = TrainBatches(
            images, labels, torch.arange(40), batch_size=8, device=CPU, seed=seed, augment=False, flip=False
        )
        return batches.order(epoch).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_crops_and_flips_depend_on_seed_epoch_and_step() -> None:
    def drawn(seed: int, epoch: int, step: int) -> tuple[int, ...]:
        draws = draw(32, 4, True, seed, epoch, step)
        return (*draws.top.tolist(), *draws.left.tolist(), *draws.mirror.tolist())

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({drawn(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1)}) == 8
