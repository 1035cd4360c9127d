"""Initialisation of a network from training images: which images, where it happens and where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Cli
from tests.training.test_resume import assert_same
from vitctl.config import TrainConfig, resolve_config
from vitctl.data.batches import Normalize
from vitctl.data.dataset import Dataset, Splits
from vitctl.models import MODELS, whitening
from vitctl.models.whitening import whitening_filters
from vitctl.training import setup
from vitctl.training.session import Session
from vitctl.training.setup import open_data, open_session

NET = "airbench94:width=8,width_ratio=1"
FLAGS = ["--dataset", "digits", "--net", NET, "--limit-train", 100, "--limit-test", 30, "--bs", 32, "--size", 8]


def config_of(**settings: Any) -> TrainConfig:
    return resolve_config({"dataset": "digits", "net": NET, "limit_train": 100, "max_steps": 2, "size": 8, **settings})


def filters(session: Session) -> Tensor:
    return session.model.get_parameter("stem.whiten.weight").detach()


def expected(data: tuple[Dataset, Splits], size: int) -> Tensor:
    """Return the filters of all training images."""
    dataset, splits = data
    images = splits.train.examples.images[splits.train.index]
    normalize = Normalize(dataset.mean, dataset.std, size, torch.device("cpu"))
    return whitening_filters(normalize(images), 2).float()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Replace the initialisation by one that only records the images."""
    calls: list[Tensor] = []

    def record(model: nn.Module, images: Tensor) -> None:
        assert torch.get_num_threads() == 1
        calls.append(images)

    monkeypatch.setattr(whitening, "whiten", record)
    return calls


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [8, 12])
def test_filters_are_those_of_the_training_images_at_the_networks_size(size: int) -> None:
    config = config_of(size=size)
    torch.testing.assert_close(filters(open_session(config)), expected(open_data(config), size), rtol=0, atol=0)


def test_only_training_images_count() -> None:
    config = config_of(val_fraction=0.2)
    dataset, splits = open_data(config)

    def changed(index: Tensor) -> tuple[Dataset, Splits]:
        images = dataset.train.images.clone()
        images[index, :, ::2] = 255
        train = dataclasses.replace(dataset.train, images=images)
        test = dataclasses.replace(dataset.test, images=255 - dataset.test.images)
        return dataclasses.replace(dataset, train=train, test=test), dataclasses.replace(
            splits, train=dataclasses.replace(splits.train, examples=train)
        )

    assert splits.val is not None
    usual = filters(open_session(config, data=(dataset, splits)))
    assert torch.equal(filters(open_session(config, data=changed(splits.val.index))), usual)
    assert not torch.equal(filters(open_session(config, data=changed(splits.train.index[:1]))), usual)


def test_neither_seed_nor_threads_nor_batches_nor_precision_matter(two_threads: None) -> None:
    usual = open_session(config_of())
    for settings in ({"seed": 5}, {"bs": 7, "aug": "randaug"}, {"precision": "bf16"}, {"threads": 1}):
        other = open_session(config_of(**settings))
        assert torch.equal(filters(other), filters(usual))


def test_other_weights_and_the_random_state_are_those_without_it(seen: list[Tensor]) -> None:
    with_it, state = open_session(config_of()), torch.get_rng_state()
    without = open_session(config_of(), pretrained=False)
    assert len(seen) == 1 and torch.equal(torch.get_rng_state(), state)
    for name, value in with_it.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name


def test_images_of_a_sorted_set_are_spread_over_all_classes(
    seen: list[Tensor], two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(limit_train=None, val="none")
    dataset, splits = open_data(config)
    order = splits.train.index[splits.train.examples.labels[splits.train.index].argsort(stable=True)]
    data = dataset, dataclasses.replace(splits, train=dataclasses.replace(splits.train, index=order))
    monkeypatch.setattr(setup, "INIT_PIXELS", 100 * 8 * 8 + 1)
    open_session(config, data=data)
    assert torch.get_num_threads() == 2
    normalize = Normalize(dataset.mean, dataset.std, 8, torch.device("cpu"))
    every = normalize(splits.train.examples.images[order])
    places = [int((every == image).flatten(1).all(1).nonzero()[0, 0]) for image in seen[0]]
    assert places == sorted(places) and len(seen[0]) == 100
    assert splits.train.examples.labels[order][places].bincount(minlength=10).min() >= 9


def test_the_frozen_filters_survive_training_and_resuming(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [*FLAGS, "--epochs", 2, "--ema", 0.9, "--opt", "muon", "--schedule", "constant"]
    assert cli("train", *run, "--name", "whole").code == 0
    initial = filters(open_session(config_of(epochs=2, max_steps=None)))
    checkpoint = torch.load(Path("runs/whole/checkpoints/last.pt"), weights_only=False)
    for weights in (checkpoint["model"], checkpoint["ema"]):
        assert torch.equal(weights["stem.whiten.weight"], initial)
    assert checkpoint["model"]["stem.whiten.bias"].any()
    assert cli("train", *run, "--name", "cut", "--max-steps", 4).code == 0
    monkeypatch.setattr(whitening, "whiten", None)  # a checkpoint has the filters
    assert cli("train", "--resume", "runs/cut", "--epochs", 2).code == 0
    assert_same(Path("runs/cut"), Path("runs/whole"))
    assert cli("eval", "runs/cut").code == 0
    assert cli("train", *run, "--name", "tuned", "--max-steps", 1, "--pretrained", "runs/whole").code == 0


@pytest.mark.parametrize(
    ("mode", "times"),
    [
        (["train", "--dry-run"], 0),
        (["train", "--lr-finder", "--max-steps", 21], 1),
        (["train", "--epochs", 1], 1),
        (["compare-optimizers", "adamw", "sgd", "--epochs", 1, "--seeds", 1], 2),
    ],
)
def test_modes_whose_result_depends_on_the_weights_initialise_them(
    cli: Cli, seen: list[Tensor], mode: list[Any], times: int
) -> None:
    assert cli(*mode, *FLAGS).code == 0
    assert len(seen) == times


def test_every_row_names_a_function_of_model_and_images() -> None:
    for entry in MODELS.values():
        assert not entry.data_init or callable(setup.load_target(entry.data_init))
