"""Runs that do not learn: the warning of a result at chance, its reason, and that of a rising loss."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from tests.conftest import TINY_NET, Cli
from tests.training.test_loop import tiny_session
from vitctl.training import diagnosis
from vitctl.training.diagnosis import (
    REASONS,
    WINDOW,
    LossWatch,
    chance_level,
    is_at_chance,
    probability_of_at_least,
    risen,
)
from vitctl.training.loop import train_step
from vitctl.training.session import Session

FLAGS = ["--net", TINY_NET, "--size", 8, "--bs", 16, "--json"]
CLASSES = "abc"
Draw = Callable[[np.random.Generator, int, int], Any]

IMAGES: dict[str, Draw] = {
    "noise": lambda random, label, i: random.integers(0, 256, (8, 8, 3)),
    "shade": lambda random, label, i: random.integers(0, 200, (8, 8, 3)) + 20 * label,
    "black": lambda random, label, i: np.zeros((8, 8, 3)),
    "same": lambda random, label, i: np.random.default_rng(i).integers(0, 256, (8, 8, 3)),
}
"""Pixels of an image from its label and number."""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a folder of images of a kind."""

    def make(kind: str) -> Path:
        random = np.random.default_rng(0)
        for part in ("train", "test"):
            for label, name in enumerate(CLASSES):
                where = tmp_path / kind / part / name
                where.mkdir(parents=True)
                for i in range(30):
                    Image.fromarray(IMAGES[kind](random, label, i).astype(np.uint8)).save(where / f"{i}.png")
        return tmp_path / kind

    return make


def pairs(*counts: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and predictions with these counts of (label, prediction)."""
    rows = [(label, guess) for label, guess, count in counts for _ in range(count)]
    return torch.tensor(rows)[:, 0], torch.tensor(rows)[:, 1]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_accuracy_at_chance_is_that_of_cohen_s_kappa(classes: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 200)
    predicted = np.where(random.random(200) < 0.4, labels, random.integers(0, classes, 200))
    expected = chance_level(torch.from_numpy(labels), torch.from_numpy(predicted))
    observed = (labels == predicted).mean()
    assert (observed - expected) / (1 - expected) == pytest.approx(cohen_kappa_score(labels, predicted))


@pytest.mark.parametrize(
    ("successes", "trials", "p"),
    [(0, 5, 0.3), (5, 5, 0.3), (21, 60, 1 / 3), (1100, 10_000, 0.1), (3, 3, 1.0), (1, 4, 0.0)],
)
def test_the_binomial_tail_is_that_of_scipy(successes: int, trials: int, p: float) -> None:
    expected = binomtest(successes, trials, p, alternative="greater").pvalue
    assert probability_of_at_least(successes, trials, p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(0, 0, 20), (1, 0, 20), (2, 0, 20)], True),  # always the same class
        ([(0, 1, 90), (1, 1, 10)], True),
        ([(0, 0, 90), (1, 0, 10)], True),  # 90 %, by always predicting the larger class
        ([(0, 0, 90), (0, 1, 5), (1, 1, 5)], False),  # 95 %, and both classes are found
        ([(0, 0, 10), (0, 1, 10), (1, 0, 10), (1, 1, 10)], True),
        ([(0, 1, 20), (1, 0, 20)], True),  # worse than chance
        ([(0, 0, 15), (0, 1, 5), (1, 1, 15), (1, 0, 5)], False),
        ([(0, 0, 1), (1, 1, 1)], False),  # too few images to find anything else
        ([(0, 1, 1), (1, 1, 1)], False),
        ([(0, 1, 50)], False),  # one class, so that any accuracy may be chance
    ],
)
def test_results_at_chance(counts: list[tuple[int, int, int]], expected: bool) -> None:
    assert is_at_chance(*pairs(*counts)) is expected


def test_random_predictions_are_at_chance_as_often_as_the_level_says() -> None:
    torch.manual_seed(0)
    at_chance = sum(is_at_chance(torch.randint(3, (300,)), torch.randint(3, (300,))) for _ in range(300))
    assert 0.91 < at_chance / 300 < 0.99


def warning(text: str) -> str:
    """Return the warning of a result at chance, which must be one short line."""
    (line,) = [line for line in text.splitlines() if "at chance" in line]
    assert line.startswith("warning: test accuracy ") and len(line) <= 100
    return line


@pytest.mark.parametrize(
    ("kind", "flags", "reason", "said"),
    [
        ("black", "--epochs 30", "blank_images", "100 % of images are blank; see --preview-batch b.png"),
        ("same", "--epochs 30", "identical_images", "% of images are in two classes; remove duplicates"),
        ("noise", "--max-steps 6", "few_steps", "the run took only 6 steps; try --max-steps 300"),
        ("noise", "--epochs 1", "few_steps", "the run took only 6 steps; try --epochs 50"),
        ("noise", "--epochs 50 --lr 3", "high_rate", "the loss rose from 1."),
        (
            "noise",
            "--epochs 60 --lr 0.01 --seed 4",
            "only_training",
            "only training images are learned; check the test labels",
        ),
    ],
)
def test_a_result_at_chance_has_a_reason(
    cli: Cli, folder: Callable[[str], Path], kind: str, flags: str, reason: str, said: str
) -> None:
    argv = ["train", "--dataset", folder(kind), *FLAGS, *shlex.split(flags), "--name", "r"]
    result = cli(*argv)
    assert said in warning(result.err)
    found = result.json()["at_chance"]
    assert (found["reason"], found["expected"]) == (reason, pytest.approx(100 / 3, abs=1.5))
    assert f"is at chance: {found['cause']}; {found['advice']}" in result.err
    assert json.loads(Path("runs/r/summary.json").read_text())["at_chance"] == found


def test_the_advice_works(cli: Cli, folder: Callable[[str], Path]) -> None:
    argv = ["train", "--dataset", folder("shade"), *FLAGS]
    for flags in (["--epochs", 1, "--lr", 1e-4], ["--epochs", 50, "--lr", 3]):
        advice = cli(*argv, *flags).json()["at_chance"]["advice"]
        flag, value = advice.removeprefix("try ").split()
        better = (
            dict(zip(flags[::2], flags[1::2], strict=True)) | {flag: value} | ({"--lr": 0.01} if flag != "--lr" else {})
        )
        result = cli(*argv, *(word for pair in better.items() for word in pair))
        assert "at_chance" not in result.json() and "at chance" not in result.err, advice


def test_a_result_above_chance_has_no_warning(cli: Cli, digits_run: Path) -> None:
    (digits_run / "summary.json").unlink()
    result = cli("train", "--resume", digits_run, "--json")
    assert "at_chance" not in result.json() and "at chance" not in result.err


def sampled(**probabilities: Any) -> diagnosis.TrainSample:
    opened = tiny_session(limit_train=20)
    opened.progress.step = 1000
    train = opened.splits.train
    return diagnosis.TrainSample(
        session=opened,
        images=train.examples.images[train.index],
        labels=train.examples.labels[train.index],
        **probabilities,
    )


def test_equal_outputs_and_a_flat_loss_are_the_last_reasons() -> None:
    torch.manual_seed(0)
    for probabilities, name, advice in (
        (torch.full((20, 10), 0.1), "equal_outputs", "try --lr 0.0002"),
        (torch.randn(20, 10).softmax(1), "flat_loss", "try --lr-finder"),
    ):
        sample = sampled(probabilities=probabilities)
        sample.session.history = [{"train_loss": 2.3}]
        sample.session.progress.first_loss = 2.3
        reason = diagnosis.find_reason(sample)
        assert (reason.name, reason.advice) == (name, advice)
    assert len(REASONS) == 5


def test_the_sample_spreads_over_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MAX_SAMPLE", 60)
    opened = tiny_session()
    sample = diagnosis.TrainSample.of(opened)
    assert len(sample.images) == len(sample.labels) == len(sample.probabilities) == 50  # every fourth of 200
    index = opened.splits.train.index[::4]
    assert torch.equal(sample.labels, opened.dataset.train.labels[index])
    torch.testing.assert_close(sample.probabilities.sum(1), torch.ones(50))


@pytest.mark.parametrize(
    ("first", "loss", "expected"), [(2.3, 2.4, False), (2.3, 2.6, True), (0.05, 0.1, False), (6.9, 7.2, False)]
)
def test_small_rises_are_noise(first: float, loss: float, expected: bool) -> None:
    assert risen(first, loss) is expected


def watched(opened: Session, steps: int) -> list[str]:
    """Return the messages of as many steps."""
    watch, said = LossWatch(opened), list[str]()
    for _ in range(steps):
        if opened.progress.step_in_epoch == opened.steps_per_epoch:
            opened.progress.epoch += 1
            opened.progress.begin_epoch()
        train_step(opened)
        watch.step(said.append)
    return said


def test_a_rising_loss_is_reported_once_while_it_happens() -> None:
    opened = tiny_session(lr=3.0, epochs=40, clip_grad=1.0, warmup=0.0)
    assert watched(opened, WINDOW - 1) == []
    opened = tiny_session(lr=3.0, epochs=40, clip_grad=1.0, warmup=0.0)
    (said,) = watched(opened, 4 * WINDOW)
    first = opened.progress.first_loss
    assert first is not None and said.startswith(f"warning: the loss rose from {first:.2f} to ")
    assert said.endswith(f" in {WINDOW} steps; try a lower --lr such as 0.3") and len(said) <= 100


def test_a_falling_loss_ends_the_watch() -> None:
    opened = tiny_session(epochs=40, lr=0.01)
    watch = LossWatch(opened)
    for _ in range(3 * WINDOW):
        if opened.progress.step_in_epoch == opened.steps_per_epoch:
            opened.progress.begin_epoch()
        train_step(opened)
        watch.step(pytest.fail)
    assert not watch.watching


def test_the_first_loss_is_that_of_the_initial_weights_and_is_kept() -> None:
    opened = tiny_session()
    images, labels = opened.batches.batch(0, 0)
    with torch.no_grad():
        logits = opened.model(opened.normalize(images))
    first = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item()
    for _ in range(3):
        train_step(opened)
    assert opened.progress.first_loss == pytest.approx(first, rel=1e-5)
    again = tiny_session()
    again.restore(opened.checkpoint())
    assert again.progress.first_loss == opened.progress.first_loss
    checkpoint = opened.checkpoint()
    del checkpoint["progress"]["first_loss"]  # as in older versions
    again.restore(checkpoint)
    assert again.progress.first_loss is None and not LossWatch(again).watching
