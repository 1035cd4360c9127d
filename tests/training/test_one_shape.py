"""Where every shape costs memory: micro-batches of one shape, and the same figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.test_loop import tiny_session
from vitctl.data.batches import fill_up
from vitctl.devices.policy import CPU, MPS, imposed
from vitctl.training.evaluate import Evaluation, evaluate, tta_views
from vitctl.training.loop import train_step
from vitctl.training.loss import balanced_weights
from vitctl.training.session import Session

ONE_SHAPE = dataclasses.replace(CPU, one_shape=True)
POLICIES = {"one_shape": ONE_SHAPE, "mps": MPS}


def session(**settings: Any) -> Session:
    """Return a session whose epoch ends with a batch of 8 images."""
    opened = tiny_session(
        **{"val": "none", "limit_train": 200, "clip_grad": 1.0, "lr": 1e-4, "opt": "sgd", "micro_batch": 64, **settings}
    )
    if settings.get("class_weights") == "balanced":  # digits are even, so make the weights differ
        opened.class_weights = balanced_weights(torch.tensor([0, *range(10), *[3] * 5]), 10)
    return opened


def shapes_of(model: nn.Module) -> set[tuple[int, ...]]:
    """Return the set to which the shapes of the network's inputs will be added."""
    shapes: set[tuple[int, ...]] = set()
    model.register_forward_pre_hook(lambda module, inputs: shapes.add(tuple(inputs[0].shape)))
    return shapes


def epoch(opened: Session) -> Session:
    opened.train_mode()
    for _ in range(opened.steps_per_epoch):
        train_step(opened)
    opened.tally.read(opened.progress)
    return opened


CASES: list[dict[str, Any]] = [
    {},
    {"micro_batch": 24, "label_smoothing": 0.2},
    {"bs": 48, "accumulate": 3, "micro_batch": 32, "class_weights": "balanced", "label_smoothing": 0.2},
    {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.2, "class_weights": "balanced"},
    {"aug": "randaug", "erase": 0.5, "mixup": 0.8},
    {"limit_train": 40},
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_last_batch_is_filled_up_without_effect(settings: dict[str, Any], policy: str) -> None:
    with imposed(POLICIES[policy]):
        filled = session(**settings)
        shapes = shapes_of(filled.model)
        epoch(filled)
    assert len(shapes) == 1
    plain = session(**settings)
    varied = shapes_of(plain.model)
    epoch(plain)
    assert len(varied) > 1 or settings.get("limit_train") == 40
    for p, q in zip(filled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert filled.progress.loss_sum == pytest.approx(plain.progress.loss_sum, rel=1e-5)
    assert (filled.progress.correct, filled.progress.seen) == (plain.progress.correct, plain.progress.seen)
    assert plain.progress.seen == settings.get("limit_train", 200)


def test_batchnorm_sees_only_the_images_of_the_batch() -> None:
    with imposed(ONE_SHAPE):
        opened = session(net="res18:width=8")
        shapes = shapes_of(opened.model)
        epoch(opened)
    assert {shape[0] for shape in shapes} == {64, 8}


@pytest.mark.parametrize("net", [None, "res18:width=8"])
@pytest.mark.parametrize(("batch", "expected"), [(64, 50), (30, 25), (20, 17), (13, 13)])
def test_evaluation_uses_batches_of_one_shape(net: str | None, batch: int, expected: int) -> None:
    opened = session(**({"net": net} if net else {}))

    def run() -> Evaluation:
        return evaluate(
            opened.model, opened.splits.test, opened.normalize, opened.device, batch, views=tta_views("crops", True)
        )

    plain = run()
    shapes = shapes_of(opened.model)
    with imposed(ONE_SHAPE):
        filled = run()
    assert {shape[0] for shape in shapes} == {expected}
    for ours, theirs in ((filled, plain), (filled.averaged, plain.averaged)):
        assert ours is not None and theirs is not None and len(ours.losses) == 50
        torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours.predicted, theirs.predicted) and torch.equal(ours.labels, theirs.labels)


def test_images_are_filled_up_with_the_first() -> None:
    images = torch.arange(6).view(2, 3)
    assert fill_up(images, 4).tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [0, 1, 2]]
    assert fill_up(images, 2) is images and fill_up(images, 0) is images
