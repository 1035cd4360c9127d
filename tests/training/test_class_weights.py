"""``--class-weights balanced``: weights of scikit-learn, the loss of torch, and figures for uneven classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from tests.conftest import TINY_NET, Cli
from tests.training.test_loop import gradients
from tests.training.test_resume import assert_same
from vitctl.config import resolve_config
from vitctl.errors import RunFailed
from vitctl.training import loop
from vitctl.training.evaluate import balanced_accuracy, uneven
from vitctl.training.loss import balanced_weights, total_weight
from vitctl.training.session import Session
from vitctl.training.setup import open_session

COUNTS = {"train": {"ant": 40, "bee": 10, "cat": 6}, "test": {"ant": 20, "bee": 5, "cat": 5}}
PLAIN = {
    "net": TINY_NET,
    "size": 8,
    "bs": 32,
    "epochs": 2,
    "val": "none",
    "clip_grad": 0.0,
    "class_weights": "balanced",
}
MIXED = {"mixup": 0.8, "cutmix": 1.0}
FLAGS = ["--net", TINY_NET, "--size", 8, "--bs", 16, "--class-weights", "balanced"]


@pytest.fixture
def insects(tmp_path: Path) -> Path:
    """An image folder with uneven classes."""
    random = np.random.default_rng(0)
    for part, classes in COUNTS.items():
        for shade, (name, count) in enumerate(classes.items()):
            folder = tmp_path / "insects" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (8, 8, 3)) + 60 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "insects"


def session(folder: Path, **settings: Any) -> Session:
    opened = open_session(resolve_config({**PLAIN, "dataset": str(folder), **settings}))
    opened.model.train()
    return opened


@pytest.mark.parametrize(
    ("labels", "classes"), [([0] * 7 + [1] * 2 + [2], 3), ([3, 3, 0, 0, 0, 0], 5), ([1, 1], 3), (list(range(10)), 10)]
)
def test_weights_are_those_of_scikit_learn(labels: list[int], classes: int) -> None:
    present = np.unique(labels)
    weights = balanced_weights(torch.tensor(labels), classes)
    expected = np.zeros(classes)
    expected[present] = compute_class_weight("balanced", classes=present, y=np.array(labels))
    assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[torch.tensor(labels)].mean() == pytest.approx(1)


def test_weights_follow_the_images_trained_on(insects: Path) -> None:
    for settings, counts in (({}, [40, 10, 6]), ({"limit_train": 15}, [5, 5, 5]), ({"limit_train": 24}, [9, 9, 6])):
        weights = session(insects, **settings).class_weights
        assert weights is not None
        assert weights.tolist() == pytest.approx([sum(counts) / 3 / count for count in counts])
    assert session(insects, class_weights="none").class_weights is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("pieces", [{}, {"micro_batch": 5}, {"bs": 8, "accumulate": 4}], ids=str)
def test_the_loss_of_a_step_is_torch_s_weighted_mean(
    insects: Path, monkeypatch: pytest.MonkeyPatch, smoothing: float, pieces: dict[str, int]
) -> None:
    opened = session(insects, label_smoothing=smoothing, **pieces)
    images, labels = opened.batches.batch(0, 0)
    assert len(labels) == 32 and len(set(labels.tolist())) == 3
    logits = opened.model(opened.normalize(images))
    loss = F.cross_entropy(logits, labels, weight=opened.class_weights, label_smoothing=smoothing)
    expected = torch.autograd.grad(loss, list(opened.model.parameters()))
    for ours, theirs in zip(gradients(opened, monkeypatch), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert opened.progress.loss_sum / 32 == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("pieces", [{}, {"micro_batch": 5}, {"bs": 8, "accumulate": 4}], ids=str)
def test_the_loss_of_mixed_images_is_that_of_their_parts(
    insects: Path, monkeypatch: pytest.MonkeyPatch, pieces: dict[str, int]
) -> None:
    """Mixed images are as good as one image per part, each counted with its share."""
    opened = session(insects, label_smoothing=0.2, **MIXED, **pieces)
    images, shares = opened.batches.batch(0, 0)
    logits = opened.model(opened.normalize(images))
    every = torch.arange(3).expand(32, 3)
    assert opened.class_weights is not None
    losses = torch.stack(
        [
            F.cross_entropy(logits, each, weight=opened.class_weights, reduction="none", label_smoothing=0.2)
            for each in every.unbind(1)
        ],
        dim=1,
    )  # [32, 3]
    loss = (shares * losses).sum() / (shares * opened.class_weights).sum()
    expected = torch.autograd.grad(loss, list(opened.model.parameters()))
    for ours, theirs in zip(gradients(opened, monkeypatch), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert opened.progress.loss_sum / 32 == pytest.approx(loss.item(), rel=1e-5)


def test_an_unmixed_label_weighs_the_same_in_both_forms() -> None:
    labels, weights = torch.tensor([0, 2, 2, 1]), torch.tensor([0.5, 2.0, 1.0])
    assert total_weight(labels, weights) == total_weight(F.one_hot(labels).float(), weights) == 4.5
    assert total_weight(labels, None) == 4


def test_a_resumed_run_is_bit_identical(cli: Cli, insects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["train", "--dataset", insects, *FLAGS, "--mixup", 0.8, "--mix-off", 0.5, "--epochs", 3]
    assert cli(*argv, "--name", "whole").code == 0
    real, left = loop.train_step, 5

    def interrupted(opened: Session) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RunFailed("the test ends the run")
        real(opened)

    monkeypatch.setattr(loop, "train_step", interrupted)
    assert cli(*argv, "--name", "cut", "--save-every", 1).code == 1
    monkeypatch.setattr(loop, "train_step", real)
    assert cli("train", "--resume", "runs/cut").code == 0
    assert_same(Path("runs/cut"), Path("runs/whole"))


def test_weights_raise_the_accuracy_of_small_classes(insects: Path) -> None:
    """Over the same steps, weighting makes the network predict the small classes more often."""
    predicted = {}
    for weights in ("none", "balanced"):
        opened = session(insects, class_weights=weights, lr=1e-2)
        for epoch in range(4):
            opened.progress.epoch, opened.progress.step_in_epoch = epoch, 0
            for _ in range(opened.steps_per_epoch):
                loop.train_step(opened)
        opened.model.eval()
        with torch.no_grad():
            logits = opened.model(opened.normalize(opened.dataset.train.images[opened.splits.train.index]))
        predicted[weights] = logits.softmax(1)[:, 1:].sum().item()
    assert predicted["balanced"] > predicted["none"] + 2


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for classes in (3, 4, 7):
        labels, predicted = random.integers(0, classes, (2, 50))
        labels[labels == 1] = 0  # a class without images
        expected = 100 * balanced_accuracy_score(labels, np.where(predicted == 1, 0, predicted))
        ours = balanced_accuracy(torch.from_numpy(labels), torch.from_numpy(np.where(predicted == 1, 0, predicted)))
        assert ours == pytest.approx(expected)


@pytest.mark.parametrize(("counts", "expected"), [([10, 10], False), ([15, 10, 0], False), ([16, 10], True)])
def test_classes_are_uneven_if_one_is_much_larger(counts: list[int], expected: bool) -> None:
    assert uneven(torch.tensor(counts)) is expected


def test_uneven_classes_have_a_balanced_accuracy(cli: Cli, insects: Path) -> None:
    argv = ["train", "--dataset", insects, *FLAGS, "--epochs", 2, "--name"]
    summary = cli(*argv, "r", "--json").json()
    scores = cli("eval", "runs/r", "--json").json()
    recalls = [row["recall"] for row in scores["classes"]]
    assert scores["balanced_acc"] == pytest.approx(sum(recalls) / 3) == pytest.approx(summary["test_balanced_acc"])
    assert summary["test_balanced_acc"] != pytest.approx(summary["test_acc"])
    assert f"balanced accuracy {scores['balanced_acc']:.2f} %" in " ".join(cli("eval", "runs/r").out.split())
    # With --val test, the last evaluation is the final test.
    assert "balanced test accuracy" in cli(*argv, "t", "--val", "test").out


def test_even_classes_have_none(cli: Cli, digits_run: Path) -> None:
    scores = cli("eval", digits_run, "--json").json()
    assert scores["balanced_acc"] is None and "balanced" not in cli("eval", digits_run).out
    assert "test_balanced_acc" not in cli("train", "--resume", digits_run, "--json").json()


def test_a_dry_run_reports_the_size_of_each_class(cli: Cli, insects: Path, refused: Callable[..., str]) -> None:
    argv = ["train", "--dry-run", "--dataset", insects, *FLAGS, "--val", "none"]
    assert cli(*argv, "--json").json()["class_images"] == COUNTS["train"]
    shown = cli(*argv)
    assert "ant 40, bee 10, cat 6" in shown.out and "uneven" not in shown.out
    unweighted = cli(*argv, "--class-weights", "none")
    assert "the classes are uneven: --class-weights balanced" in unweighted.out
    even = cli(*argv, "--class-weights", "none", "--limit-train", 6).out
    assert "2 each of 3 classes" in even and "uneven" not in even
    assert "--class-weights" in refused("train", "--dataset", insects, "--class-weights", "square")
