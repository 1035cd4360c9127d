"""Properties of every data set, and the split into training, validation and test images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vitctl.data import DATASETS
from vitctl.data.dataset import Dataset, Examples, Splits, load_dataset, split
from vitctl.errors import RequestError

LoadSmall = Callable[[str], Dataset]


def parts(dataset: Dataset) -> list[Examples]:
    return [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]


@pytest.mark.parametrize("name", DATASETS)
class TestContract:
    def test_types_and_shapes_are_as_documented(self, name: str, load_small: LoadSmall) -> None:
        dataset = load_small(name)
        channels, side = len(dataset.mean), dataset.train.images.shape[-1]
        for part in parts(dataset):
            assert part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64
            assert part.images.shape == (len(part), channels, side, side)
            assert part.images.device.type == "cpu" and part.images.is_contiguous()
            assert len(part) > 0 and part.labels.shape == (len(part),)
            assert part.labels.min() >= 0 and part.labels.max() < len(dataset.classes)
        assert channels in (1, 3) and len(dataset.std) == channels
        assert all(0 < mean < 1 for mean in dataset.mean) and all(0 < std < 1 for std in dataset.std)

    def test_name_source_and_classes_are_set(self, name: str, load_small: LoadSmall) -> None:
        dataset = load_small(name)
        assert dataset.name == name and dataset.source and dataset.skipped == ()
        assert isinstance(dataset.classes, tuple) and len(set(dataset.classes)) == len(dataset.classes) >= 2

    def test_every_class_has_training_images(self, name: str, load_small: LoadSmall) -> None:
        dataset = load_small(name)
        assert set(dataset.train.labels.tolist()) == set(range(len(dataset.classes)))

    def test_no_test_image_is_a_training_image(self, name: str, load_small: LoadSmall) -> None:
        dataset = load_small(name)
        trained = {image.numpy().tobytes() for image in dataset.train.images}
        assert not any(image.numpy().tobytes() in trained for image in dataset.test.images)

    def test_loading_twice_gives_the_same_data(self, name: str, load_small: LoadSmall) -> None:
        first = load_small(name)
        torch.manual_seed(7)
        second = load_small(name)
        for a, b in zip(parts(first), parts(second), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert (first.mean, first.std, first.classes) == (second.mean, second.std, second.classes)

    def test_held_out_images_come_from_the_training_set(self, name: str, load_small: LoadSmall) -> None:
        dataset = load_small(name)
        splits = divide(dataset)
        assert splits.val is not None and splits.val_split == "holdout"
        assert len(splits.train) + len(splits.val) == len(dataset.train)


def test_an_unknown_data_set_gets_suggestions() -> None:
    with pytest.raises(RequestError, match=r"unknown --dataset 'cifar1'\nhint: did you mean cifar10"):
        load_dataset("cifar1", data_dir=None, size=32, skip_bad_images=False)


class TestDigits:
    def test_a_fifth_of_each_class_is_the_test_set(self, load_small: LoadSmall) -> None:
        digits = load_small("digits")
        assert len(digits.train) + len(digits.test) == 1797
        assert int(digits.train.images.max()) == 255 and int(digits.train.images.min()) == 0
        share = digits.test.labels.bincount() / torch.cat([digits.test.labels, digits.train.labels]).bincount()
        assert ((share - 0.2).abs() < 0.005).all()

    def test_pixels_have_17_levels(self, load_small: LoadSmall) -> None:
        values = {round(255 * k / 16) for k in range(17)}
        assert set(load_small("digits").test.images.unique().tolist()) == values

    def test_the_test_set_never_changes(self, load_small: LoadSmall) -> None:
        # Results of different versions of vitctl are comparable only on the same images.
        content = load_small("digits").test.images.numpy().tobytes()
        assert hashlib.sha256(content).hexdigest()[:16] == "d34b20f265b6f2a7"

    def test_mean_and_standard_deviation_are_those_of_train(self, load_small: LoadSmall) -> None:
        digits = load_small("digits")
        values = digits.train.images.double() / 255
        assert digits.mean == pytest.approx([values.mean().item()], rel=1e-12)
        assert digits.std == pytest.approx([values.std(correction=0).item()], rel=1e-12)

    def test_a_data_dir_is_refused(self) -> None:
        with pytest.raises(RequestError, match="--data-dir /x does nothing with --dataset digits\nhint: remove --data"):
            load_dataset("digits", data_dir="/x", size=8, skip_bad_images=False)


def make(train: list[int], test: list[int], val: list[int] | None = None) -> Dataset:
    """Return a data set with these numbers of images per class, with the classes interleaved."""

    def images(counts: list[int]) -> Examples:
        turns = sorted((place, label) for label, count in enumerate(counts) for place in range(count))
        labels = torch.tensor([label for _, label in turns])
        return Examples(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)

    return Dataset(
        name="made",
        classes=tuple("abcdefghij"[: len(train)]),
        mean=(0.5,),
        std=(0.5,),
        train=images(train),
        val=None if val is None else images(val),
        test=images(test),
        source="memory",
    )


def divide(
    dataset: Dataset,
    val: str = "holdout",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    holdout_by: str = "position",
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> Splits:
    return split(
        dataset,
        val=val,
        val_fraction=val_fraction,
        split_seed=split_seed,
        holdout_by=holdout_by,
        limit_train=limit_train,
        limit_test=limit_test,
    )


def per_class(subset: object) -> list[int]:
    return subset.examples.labels[subset.index].bincount().tolist()  # type: ignore[attr-defined]


class TestSplit:
    @pytest.mark.parametrize("seed", [0, 1, 2**40])
    @pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.9])
    def test_held_out_images_are_stratified_and_not_trained_on(self, seed: int, fraction: float) -> None:
        counts = [100, 37, 5, 2]
        dataset = make(counts, [3, 3, 3, 3])
        splits = divide(dataset, val_fraction=fraction, split_seed=seed)
        assert splits.val is not None
        assert per_class(splits.val) == [min(max(1, int(n * fraction + 0.5)), n - 1) for n in counts]
        assert torch.cat([splits.train.index, splits.val.index]).sort().values.tolist() == list(range(144))
        for subset in (splits.train, splits.val, splits.test):
            assert subset.index.dtype == torch.int64
            assert (subset.index.diff() > 0).all()

    def test_the_choice_is_the_first_images_by_hash(self) -> None:
        dataset = make([30, 20], [1, 1])
        splits = divide(dataset, val_fraction=0.2, split_seed=3)
        expected = []
        for label, count in ((0, 6), (1, 4)):
            members = [i for i, l in enumerate(dataset.train.labels.tolist()) if l == label]
            members.sort(key=lambda i: hashlib.sha256(f"3:{i}".encode()).hexdigest())
            expected += members[:count]
        assert splits.val is not None
        assert splits.val.index.tolist() == sorted(expected)

    def test_the_choice_depends_only_on_the_seed(self) -> None:
        dataset = make([50, 50], [5, 5])
        torch.manual_seed(0)
        first = divide(dataset)
        torch.manual_seed(1)
        again, other = divide(dataset), divide(dataset, split_seed=1)
        assert first.val and again.val and other.val
        assert torch.equal(first.val.index, again.val.index)
        assert not torch.equal(first.val.index, other.val.index)

    @pytest.mark.parametrize("counts", [[5, 1], [5, 0]])
    def test_a_class_that_is_too_small_is_named(self, counts: list[int]) -> None:
        with pytest.raises(RequestError, match=rf"class 'b' has {counts[1]} training image.*\nhint: .*--val none"):
            divide(make(counts, [1, 1]))
        assert len(divide(make(counts, [1, 1]), val="none").train) == sum(counts)

    def test_the_data_sets_own_validation_set_replaces_held_out_images(self) -> None:
        dataset = make([5, 1], [2, 2], val=[3, 4])
        splits = divide(dataset)
        assert splits.val_split == "val" and splits.val is not None and splits.val.examples is dataset.val
        assert len(splits.train) == 6 and len(splits.val) == 7

    @pytest.mark.parametrize("own", [None, [3, 4]])
    def test_val_test_validates_on_the_test_set(self, own: list[int] | None) -> None:
        dataset = make([5, 5], [2, 2], val=own)
        splits = divide(dataset, val="test")
        assert splits.val_split == "test" and splits.val is splits.test
        assert splits.test.examples is dataset.test and len(splits.train) == 10 and len(splits.test) == 4

    @pytest.mark.parametrize("own", [None, [3, 4]])
    def test_val_none_leaves_no_validation_images(self, own: list[int] | None) -> None:
        splits = divide(make([5, 5], [2, 2], val=own), val="none")
        assert splits.val is None and splits.val_split is None and len(splits.train) == 10

    def test_an_unknown_protocol_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match="perhaps"):
            divide(make([5, 5], [2, 2]), val="perhaps")


def with_identities(dataset: Dataset) -> Dataset:
    """Return the data set with an identity for each image: its class, and its number in the class."""

    def named(part: Examples) -> Examples:
        seen: dict[str, int] = {}
        names = []
        for name in (dataset.classes[label] for label in part.labels.tolist()):
            seen[name] = seen.get(name, -1) + 1
            names.append(f"{name}/{seen[name]}.png")
        return replace(part, identities=tuple(names))

    return replace(dataset, train=named(dataset.train), test=named(dataset.test))


def without(part: Examples, *identities: str) -> Examples:
    kept = [i for i, identity in enumerate(part.identities) if identity not in identities]
    return Examples(part.images[kept], part.labels[kept], identities=tuple(part.identities[i] for i in kept))


def held_out(dataset: Dataset, **options: Any) -> set[str]:
    splits = divide(dataset, holdout_by="identity", **options)
    assert splits.val is not None and splits.val_split == "holdout"
    assert torch.cat([splits.train.index, splits.val.index]).sort().values.tolist() == list(range(len(dataset.train)))
    return {dataset.train.identities[i] for i in splits.val.index.tolist()}


class TestHoldOutByIdentity:
    DATASET = with_identities(make([300, 200], [20, 20]))

    def test_an_image_is_held_out_if_its_hash_is_below_the_fraction(self) -> None:
        def position(identity: str) -> float:
            return int(hashlib.sha256(f"3:{identity}".encode()).hexdigest()[:16], 16) / 2**64

        expected = {identity for identity in self.DATASET.train.identities if position(identity) < 0.2}
        assert 70 < len(expected) < 130
        assert held_out(self.DATASET, val_fraction=0.2, split_seed=3) == expected

    def test_added_and_removed_images_move_no_others(self) -> None:
        removed = {"a/0.png", "a/17.png", "b/5.png"}
        fewer = replace(self.DATASET, train=without(self.DATASET.train, *removed))
        assert held_out(fewer) == held_out(self.DATASET) - removed

    @pytest.mark.parametrize("fraction", [0.001, 0.9])
    def test_every_class_has_images_on_both_sides(self, fraction: float) -> None:
        dataset = with_identities(make([2] * 10, [1] * 10))
        assert sorted(identity[0] for identity in held_out(dataset, val_fraction=fraction)) == list("abcdefghij")

    def test_images_without_identity_are_chosen_by_position(self) -> None:
        dataset = make([30, 20], [1, 1])
        by_identity, by_position = divide(dataset, holdout_by="identity"), divide(dataset)
        assert by_identity.val and by_position.val and torch.equal(by_identity.val.index, by_position.val.index)

    def test_limits_prefer_the_same_images_if_others_are_removed(self) -> None:
        def limited(dataset: Dataset) -> set[str]:
            train = divide(dataset, holdout_by="identity", limit_train=40).train
            return {dataset.train.identities[i] for i in train.index.tolist()}

        kept = limited(self.DATASET)
        unused = next(identity for identity in self.DATASET.train.identities if identity not in kept)
        assert limited(replace(self.DATASET, train=without(self.DATASET.train, unused))) == kept


class TestLimits:
    def test_limited_training_images_are_spread_evenly(self) -> None:
        dataset = make([40, 20, 3], [1, 1, 1])
        assert per_class(divide(dataset, "none", limit_train=9).train) == [3, 3, 3]
        assert per_class(divide(dataset, "none", limit_train=11).train) == [4, 4, 3]
        assert per_class(divide(dataset, "none", limit_train=33).train) == [15, 15, 3]
        assert per_class(divide(dataset, "none", limit_train=2).train) == [1, 1]

    def test_limited_test_and_validation_images_keep_class_shares(self) -> None:
        dataset = make([50, 50], [90, 10], val=[30, 60])
        splits = divide(dataset, limit_test=30)
        assert splits.val is not None
        assert per_class(splits.test) == [27, 3] and per_class(splits.val) == [10, 20]

    def test_held_out_images_are_limited_too(self) -> None:
        splits = divide(make([100, 100], [50, 50]), val_fraction=0.3, limit_test=10)
        whole = divide(make([100, 100], [50, 50]), val_fraction=0.3)
        assert splits.val is not None and whole.val is not None
        assert per_class(splits.val) == [5, 5] and per_class(splits.test) == [5, 5] and len(splits.train) == 140
        assert set(splits.val.index.tolist()) <= set(whole.val.index.tolist())

    def test_limiting_training_images_changes_nothing_else(self) -> None:
        dataset = make([50, 50], [5, 5])
        whole, some, more = divide(dataset), divide(dataset, limit_train=20), divide(dataset, limit_train=40)
        assert whole.val and some.val
        assert torch.equal(whole.val.index, some.val.index)
        chosen = [set(splits.train.index.tolist()) for splits in (some, more, whole)]
        assert len(chosen[0]) == 20 and chosen[0] < chosen[1] < chosen[2]

    @pytest.mark.parametrize("limit", [90, 91, 10**9])
    def test_a_limit_above_the_number_of_images_has_no_effect(self, limit: int) -> None:
        splits = divide(make([50, 50], [5, 5]), limit_train=limit, limit_test=limit)
        assert len(splits.train) == 90 and len(splits.test) == 10

    def test_limited_images_depend_only_on_the_seed(self) -> None:
        dataset = make([50, 50], [50, 50])
        for limits in ({"limit_train": 10}, {"limit_test": 10}):
            a, b, c = (divide(dataset, "test", split_seed=seed, **limits) for seed in (0, 0, 1))
            assert torch.equal(a.train.index, b.train.index) and torch.equal(a.test.index, b.test.index)
            assert not (torch.equal(a.train.index, c.train.index) and torch.equal(a.test.index, c.test.index))
