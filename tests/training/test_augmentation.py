"""Augmentation in training: loss and accuracy of mixed images, crops, resuming, ``--tta`` and ``--loss-sum``."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from tests.conftest import TINY, TINY_NET, Cli
from tests.training.test_resume_optimizers import STEPS, session, state, steps
from vitctl.config import TrainConfig, resolve_config
from vitctl.data import AUGMENTATIONS, CROP_DEFAULTS, mixing
from vitctl.data.batches import MIX, POLICY, crop_and_flip, derive_seed, draw, first_epoch_flips
from vitctl.inference.trained import load_trained
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint
from vitctl.training.evaluate import evaluate, tta_views
from vitctl.training.loop import ORIGINAL_BATCH, train_step
from vitctl.training.session import Session

Refused = Callable[..., str]

MIXED = {"mixup": 0.8, "cutmix": 1.0}
SETTINGS: list[dict[str, Any]] = [
    *({"aug": name} for name in AUGMENTATIONS),
    *({"aug": name, **MIXED, "erase": 0.5, "cutout": 0.3} for name in AUGMENTATIONS),
    *({name: 0.7} for name in ("mixup", "cutmix", "erase", "cutout")),
    {"aug": "randaug:padding=2,padding_mode=reflect,flip=alternate", "flip": "on"},
    {**MIXED, "mix_off": 0.6},  # mixing ends after the checkpoint and before the end of the run
]


@pytest.mark.parametrize(
    "settings",
    # Each augmentation is also tested together with mixing.
    [pytest.param(each, marks=pytest.mark.slow) if each.keys() == {"aug"} else each for each in SETTINGS],
    ids=lambda each: "-".join(f"{k}={v}" for k, v in each.items()),
)
def test_resume_within_an_epoch_is_bit_identical(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = session(**settings)
    assert whole.total_steps == 2 * STEPS and STEPS % whole.steps_per_epoch
    steps(whole, STEPS)
    save_checkpoint(whole.checkpoint(), tmp_path / "last.pt")
    steps(whole, STEPS)
    resumed = session(**settings)
    resumed.restore(load_checkpoint(tmp_path / "last.pt"))
    steps(resumed, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(state(resumed), state(whole), strict=True))
    ours, theirs = (dataclasses.asdict(each.progress) for each in (resumed, whole))
    for key in ("loss_sum", "correct", "seen", "step", "epoch"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    "settings", SETTINGS[len(AUGMENTATIONS) : 2 * len(AUGMENTATIONS)], ids=lambda each: each["aug"]
)
def test_augmentation_does_not_depend_on_micro_batches(settings: dict[str, Any]) -> None:
    sessions = [
        session(**settings, bs=64, micro_batch=64),
        session(**settings, bs=64, micro_batch=8),
        session(**settings, bs=16, accumulate=4),
    ]
    batches = [each.batches.batch(1, 2) for each in sessions]
    for images, labels in batches[1:]:
        assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])
    for each in sessions:
        steps(each, 1)
        assert each.progress.loss_sum == pytest.approx(sessions[0].progress.loss_sum, rel=1e-5)


def drawn_mix(opened: Session, step: int) -> mixing.MixDraws:
    """Return the random mixing of the images in a step of the first epoch."""
    images, _ = opened.batches.batch(0, step)
    config = opened.config
    return mixing.draw_mix(
        *(images.shape[0], *images.shape[2:]),
        mixup=config.mixup,
        cutmix=config.cutmix,
        seed=derive_seed(config.seed, 0, step, MIX),
    )


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, MIXED], ids=lambda each: "+".join(each))
def test_loss_and_accuracy_of_mixed_images(settings: dict[str, Any]) -> None:
    """The loss matches timm's smoothed targets; the class of an image's larger part is the correct prediction."""
    opened = session(**settings, label_smoothing=0.2)
    images, shares = opened.batches.batch(0, 0)
    draws = drawn_mix(opened, 0)
    labels = opened.batches.labels[opened.batches.order(0)[:64]]
    opened.model.eval()  # even if the network should get dropout
    logits = opened.model(opened.normalize(images))
    # timm mixes each image with the one at the same position from the end, so append the partners in reverse
    pairs = torch.cat([labels, labels[draws.partner].flip(0)])
    target = mixup_target(pairs, 10, lam=draws.share.repeat(2)[:, None], smoothing=0.2)[:64]
    expected = SoftTargetCrossEntropy()(logits, target)
    larger = torch.where(draws.share >= 0.5, labels, labels[draws.partner])
    correct = (logits.argmax(1) == larger).sum()
    steps(opened, 1)
    assert opened.progress.loss_sum / 64 == pytest.approx(expected.item(), rel=1e-5)
    assert opened.progress.correct == correct
    assert torch.equal(shares.argmax(1), larger)


def test_mix_off_ends_mixing() -> None:
    opened = session(**MIXED, mix_off=0.4)  # of 14 steps, the last round(5.6) are without mixing
    kinds = [opened.batches.batch(*divmod(step, opened.steps_per_epoch))[1].dtype for step in range(opened.total_steps)]
    assert kinds == [torch.float32] * 8 + [torch.int64] * 6
    steps(opened, opened.total_steps)
    plain = session()
    images, labels = opened.batches.batch(2, 1)
    assert torch.equal(images, plain.batches.batch(2, 1)[0]) and torch.equal(labels, plain.batches.batch(2, 1)[1])


def test_an_extended_run_reports_that_mixing_is_on_again(cli: Cli) -> None:
    argv = ["train", *TINY, "--limit-train", 100, "--mixup", "--mix-off", 0.5, "--epochs", 4, "--name", "m"]
    assert cli(*argv).code == 0
    longer = cli("train", "--resume", "runs/m", "--epochs", 12)
    assert longer.code == 0 and re.search(
        r"mixup and CutMix are on again until step \d+ \(--mix-off 0\.5\)", longer.err
    )
    assert "on again" not in cli("train", "--resume", "runs/m", "--epochs", 13).err


def test_mixing_that_had_not_ended_is_not_reported(cli: Cli) -> None:
    argv = ["train", *TINY, "--limit-train", 100, "--mixup", "--mix-off", 0.4, "--max-steps", 4, "--name", "m"]
    stored = cli(*argv)
    assert stored.code == 0
    document = json.loads(Path("runs/m/config.json").read_text())
    document["config"]["max_steps"] = 40  # as if it had been interrupted after its fourth step
    Path("runs/m/config.json").write_text(json.dumps(document))
    longer = cli("train", "--resume", "runs/m", "--max-steps", 50)
    assert longer.code == 0 and "stretched" in longer.err and "on again" not in longer.err


def test_flip_can_be_set(cli: Cli, refused: Refused) -> None:
    def flips(dataset: str) -> list[bool]:
        return [resolve_config({"dataset": dataset, "flip": flip}).flips for flip in ("auto", "on", "off")]

    assert flips("cifar10") == [True, True, False] and flips("digits") == [False, True, False]
    on, off = session(flip="on").batches, session(flip="off").batches
    assert not torch.equal(on.batch(0, 0)[0], off.batch(0, 0)[0])
    assert torch.equal(session().batches.batch(0, 0)[0], off.batch(0, 0)[0])
    assert "--tta flip" in refused("train", *TINY, "--tta", "flip")
    assert "conflicts with --flip off" in refused("train", "--dataset", "cifar10", "--flip", "off", "--tta", "flip")
    assert "does nothing with --aug none" in refused("train", *TINY, "--aug", "none", "--flip", "on")


ALTERNATE = "padding=2,padding_mode=reflect,flip=alternate"


@pytest.mark.parametrize("aug", [name for name, entry in AUGMENTATIONS.items() if entry.crop])
def test_every_augmentation_that_crops_has_the_options_of_the_crop(aug: str) -> None:
    opened, plain = session(aug=f"{aug}:{ALTERNATE}", flip="on"), session(aug=aug, flip="on")
    source = opened.batches
    assert not torch.equal(source.batch(0, 0)[0], plain.batches.batch(0, 0)[0])
    images, policy = source.images[source.order(1)[:64]], source.extras.policy
    drawn = draw(64, 2, True, 3, 1, 0)
    flips = first_epoch_flips(len(source.images), 3)[source.order(1)[:64]]
    drawn = dataclasses.replace(drawn, mirror=~flips)

    def augmented(images: Tensor) -> Tensor:
        return policy(images, derive_seed(3, 1, 0, POLICY)) if policy else images

    cropped = crop_and_flip(augmented(images) if aug == "seed-randaug" else images, drawn, 2, reflect=True)
    assert torch.equal(source.batch(1, 0)[0], cropped if aug == "seed-randaug" else augmented(cropped))


@pytest.mark.parametrize("aug", ["basic", "randaug"])
def test_runs_from_before_the_options_of_the_crop_resume(cli: Cli, refused: Refused, tmp_path: Path, aug: str) -> None:
    cli("train", *TINY, "--limit-train", 100, "--aug", aug, "--epochs", 1, "--name", "r")
    path = tmp_path / "runs" / "r" / "config.json"
    document = json.loads(path.read_text())
    now = TrainConfig.from_dict(document["config"])
    document["config"]["aug_options"] = {k: v for k, v in now.aug_options.items() if k not in CROP_DEFAULTS}
    path.write_text(json.dumps(document))
    assert TrainConfig.from_dict(document["config"]) == now
    assert "cannot change --aug" in refused("train", "--resume", "runs/r", "--aug", f"{aug}:flip=alternate")
    assert cli("train", "--resume", "runs/r", "--aug", f"{aug}:flip=random,padding=-1", "--epochs", 2).code == 0


@pytest.mark.parametrize(("padding", "mode"), [(8, "reflect"), (8, "zeros"), (100, "reflect")])
def test_padding_must_be_less_than_the_side_of_the_images(refused: Refused, padding: int, mode: str) -> None:
    argv = ["train", *TINY, "--epochs", 1, "--aug"]
    sentence = refused(*argv, f"basic:padding={padding},padding_mode={mode}")
    assert f"--aug basic:padding={padding} needs images of more than {padding} pixels a side" in sentence
    assert "hint: use padding=7 or less: these are 8 x 8" in sentence
    session(aug=f"basic:padding=7,padding_mode={mode}").batches.batch(0, 0)


def test_a_flip_of_aug_needs_images_that_are_flipped(refused: Refused) -> None:
    sentence = refused("train", *TINY, "--aug", "basic:flip=alternate")
    assert "mirrored images of digits may have another class" in sentence
    assert "hint: remove flip=alternate, or use --flip on" in sentence
    off = ["train", "--dataset", "cifar10", "--flip", "off", "--aug", "randaug:flip=alternate"]
    assert "--aug randaug:flip=alternate does nothing with --flip off" in refused(*off)
    # a file or a recipe may serve data sets of both kinds
    config = resolve_config({"dataset": "digits"}, {"aug": "randaug:flip=alternate"})
    assert config.aug_options["flip"] == "alternate" and not config.flips
    assert resolve_config({"dataset": "digits", "flip": "on", "aug": "basic:flip=alternate"}).flips


def test_a_padding_mode_needs_padding(refused: Refused) -> None:
    sentence = refused("train", *TINY, "--aug", "basic:padding=0,padding_mode=reflect")
    assert "--aug basic:padding_mode=reflect does nothing with padding=0" in sentence
    assert "hint: remove padding_mode=reflect, or use padding=2" in sentence
    # a recipe's mode may serve other paddings
    config = resolve_config({"recipe": "fast", "aug": "basic:padding=0"})
    assert config.aug_options["padding"] == 0


def test_a_network_learns_from_mixed_and_augmented_images(cli: Cli) -> None:
    argv = ["train", *TINY, "--limit-train", 1000, "--limit-test", 300, "--lr", 0.01, "--epochs", 8, "--json"]
    mixed = cli(*argv, "--aug", "randaug", "--mixup", "--cutmix", "--erase", 0.25, "--mix-off", 0.25).json()
    assert mixed["test_acc"] > 50 and mixed["train_acc"] > 40


def scenes(root: Path) -> None:
    """Write a data set of two classes: noise with different means, brighter on the left."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 45)):
        for shade, name in ((90, "dark"), (110, "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.normal(shade + np.linspace(40, -40, 8)[None, :, None], 60, (8, 8, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")


NET = ["--net", TINY_NET, "--size", 8, "--bs", 16]


def independent_logits(model: nn.Module, x: Tensor, tta: str, mirror: bool = True) -> Tensor:
    """Return the logits of airbench94's test-time augmentation for float images, ``[B, C, H, W]``."""

    def infer(views: Tensor) -> Tensor:
        return (model(views) + model(views.flip(3))) / 2 if mirror else model(views)

    with torch.no_grad():
        if tta == "flip":
            return infer(x)
        padded = F.pad(x, (1, 1, 1, 1), "reflect")
        return 0.5 * infer(x) + 0.25 * infer(padded[:, :, :-2, :-2]) + 0.25 * infer(padded[:, :, 2:, 2:])


@pytest.mark.parametrize(("tta", "val"), [("flip", "holdout"), ("flip", "test"), ("crops", "holdout")])
def test_tta_adds_separate_figures(cli: Cli, tmp_path: Path, tta: str, val: str) -> None:
    scenes(tmp_path / "scenes")
    argv = ["train", "--dataset", "scenes", *NET, "--epochs", 2, "--val", val, "--json"]
    plain = cli(*argv, "--name", "plain").json()
    both = cli(*argv, "--name", "both", "--tta", tta).json()
    assert "test_acc_tta" not in plain and "tta" not in plain
    assert (both["test_acc"], both["test_loss"]) == (plain["test_acc"], plain["test_loss"])
    assert both["tta"] == tta and both["test_loss_tta"] != both["test_loss"]
    # an independent computation
    trained = load_trained(tmp_path / "runs" / "both", weights="last", device=torch.device("cpu"), warn=print)
    pixels, labels = [], []
    for i, name in enumerate(("dark", "light")):
        for path in sorted((tmp_path / "scenes" / "test" / name).iterdir()):
            pixels.append(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
            labels.append(i)
    x = (torch.stack(pixels) / 255 - torch.tensor(trained.mean).view(3, 1, 1)) / torch.tensor(trained.std).view(3, 1, 1)
    logits = independent_logits(trained.model, x, tta)
    answer = torch.tensor(labels)
    assert both["test_acc_tta"] == pytest.approx(100 * (logits.argmax(1) == answer).double().mean().item())
    assert both["test_loss_tta"] == pytest.approx(F.cross_entropy(logits, answer).item(), rel=1e-4)

    scores = cli("eval", "runs/plain", "--tta", tta, "--json").json()
    assert scores["top1"] == pytest.approx(plain["test_acc"])
    assert scores["top1_tta"] == pytest.approx(both["test_acc_tta"])
    assert scores["loss_tta"] == pytest.approx(both["test_loss_tta"], rel=1e-4) and scores["tta"] == tta
    without = cli("eval", "runs/plain", "--json").json()
    assert "top1_tta" not in without and "tta" not in without and without["top1"] == scores["top1"]
    for command in (("eval", "runs/plain", "--tta", tta), (*argv[:-1], "--tta", tta)):
        assert f"with --tta {tta}" in cli(*command).out


@pytest.mark.parametrize("flip", ["auto", "on"])
def test_tta_crops_mirrors_only_images_that_keep_their_class(cli: Cli, tmp_path: Path, flip: str) -> None:
    argv = ["train", *TINY, "--epochs", 4, "--lr", 0.02, "--flip", flip, "--name", "r", "--json"]
    summary = cli(*argv, "--tta", "crops").json()
    trained = load_trained(tmp_path / "runs" / "r", weights="last", device=torch.device("cpu"), warn=print)
    test = session(limit_test=summary["test_images"]).splits.test
    x = (test.examples.images[test.index] / 255 - trained.mean[0]) / trained.std[0]
    losses = [
        F.cross_entropy(independent_logits(trained.model, x, "crops", mirror), test.examples.labels[test.index]).item()
        for mirror in (False, True)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert summary["test_loss_tta"] == pytest.approx(losses[flip == "on"], rel=1e-4)
    scores = cli("eval", "runs/r", "--limit", len(x), "--tta", "crops", "--json").json()
    assert scores["loss_tta"] == pytest.approx(summary["test_loss_tta"], rel=1e-4)


def test_tta_flip_is_refused_if_mirroring_may_change_the_class(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    sentence = "may have another class"
    assert sentence in refused("train", *TINY, "--epochs", 1, "--tta", "flip")
    assert not (tmp_path / "runs").exists()
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    assert f"{sentence}\nhint: use --tta crops" in refused("eval", "runs/r", "--tta", "flip")
    assert "did you mean flip" in refused("eval", "runs/r", "--tta", "flop")
    # The run's own --flip applies to vitctl eval too.
    assert cli("train", *TINY, "--epochs", 1, "--flip", "on", "--tta", "flip", "--name", "on").code == 0
    assert "with --tta flip" in cli("eval", "runs/on", "--tta", "flip").out
    scenes(tmp_path / "letters")
    cli("train", "--dataset", "letters", *NET, "--epochs", 1, "--flip", "off", "--name", "off")
    assert sentence in refused("eval", "runs/off", "--tta", "flip")
    assert "did you mean flip" in refused("train", *TINY, "--tta", "flop")


def test_a_finished_run_is_not_tested_again(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    scenes(tmp_path / "scenes")
    cli("train", "--dataset", "scenes", *NET, "--epochs", 1, "--name", "r")
    assert "vitctl eval runs/r --tta flip" in refused("train", "--resume", "runs/r", "--tta", "flip")
    longer = cli("train", "--resume", "runs/r", "--epochs", 2, "--tta", "flip", "--json").json()
    assert "test_acc_tta" in longer


@pytest.mark.parametrize("limit", [359, 300, 70])
def test_the_loss_sum_is_that_of_the_original_scripts(cli: Cli, tmp_path: Path, limit: int) -> None:
    """It sums the mean loss of consecutive batches of 100; a smaller last batch counts as much."""
    argv = ["train", *TINY[:6], "--limit-train", 100, "--limit-test", limit, "--epochs", 1, "--name", "r", "--json"]
    summary = cli(*argv, "--recipe", "seed", "--net", TINY_NET).json()
    trained = load_trained(tmp_path / "runs" / "r", weights="last", device=torch.device("cpu"), warn=print)
    opened = session(limit_train=100, limit_test=limit, recipe="seed", net=TINY_NET)
    subset = opened.splits.test
    assert len(subset) == limit
    total = 0.0
    with torch.no_grad():
        for chosen in subset.index.split(100):
            logits = trained.model(opened.normalize(subset.examples.images[chosen]))
            total += F.cross_entropy(logits, subset.examples.labels[chosen]).item()
    assert summary["val_loss_sum"] == pytest.approx(total, rel=1e-5)
    row = load_checkpoint(tmp_path / "runs" / "r" / "checkpoints" / "last.pt")["history"][0]
    assert row["val_loss_sum"] == summary["val_loss_sum"] and row["val_split"] == "test"
    if limit % 100 == 0:
        assert total == pytest.approx(summary["val_loss"] * limit / ORIGINAL_BATCH, rel=1e-5)


def test_loss_sum_is_a_setting(cli: Cli) -> None:
    argv = ["train", *TINY, "--epochs", 1, "--json"]
    assert "val_loss_sum" not in cli(*argv).json() and "val_loss_sum" not in cli(*argv, "--val", "test").json()
    held_out = cli(*argv, "--loss-sum").json()
    assert held_out["val_split"] == "holdout"
    assert held_out["val_loss_sum"] == pytest.approx(
        held_out["val_loss"] * math.ceil(held_out["val_images"] / 100), rel=0.2
    )
    assert "val_loss_sum" not in cli(*argv, "--recipe", "seed", "--no-loss-sum").json()
    assert cli(*argv, "--recipe", "seed", "--val", "none").code == 0


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    opened = session()
    steps(opened, 3)
    arguments = opened.model, opened.splits.test, opened.normalize, opened.device
    whole, pieces = evaluate(*arguments, 50, views=tta_views("flip", True)), evaluate(*arguments, 7)
    assert whole.averaged is not None and pieces.averaged is None
    torch.testing.assert_close(whole.losses, pieces.losses, rtol=1e-4, atol=1e-5)
    assert whole.acc == pytest.approx(pieces.acc) and whole.losses.shape == (50,)
    assert whole.sum_of_means(50) == pytest.approx(whole.loss) and opened.model.training


def test_the_network_sees_augmented_images() -> None:
    seen: list[Tensor] = []
    for aug in AUGMENTATIONS:
        opened = session(aug=aug)
        opened.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        opened.train_mode()
        train_step(opened)
    assert len(seen) == len(AUGMENTATIONS)
    for i, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:i])


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--aug", "randaugment"], "unknown --aug 'randaugment'\nhint: did you mean randaug"),
        (["--aug", "randaug:n=2,k=3"], "--aug randaug has no option 'k'"),
        (["--aug", "randaug:m=31"], "--aug randaug:m=31 is too large\nhint: use a value from 0 to 30"),
        (["--aug", "randaug:m=-1"], "--aug randaug:m=-1 is too small\nhint: use a value from 0 to 30"),
        (["--aug", "randaug:m=9.5"], "--aug randaug:m takes a whole number"),
        (["--aug", "randaug:n=0"], "--aug randaug:n=0 is too small\nhint: use a value from 1 to 16"),
        (["--aug", "seed-randaug:m=40"], "--aug seed-randaug:m=40 is too large"),
        (["--aug", "autoaug:m=3"], "--aug autoaug has no option 'm'"),
        (["--aug", "basic:m=3"], "--aug basic has no option 'm'"),
        (["--aug", "randaug:"], "use --aug NAME or --aug NAME:key=value"),
        (["--aug", ""], "--aug"),
        (["--mixup", "-0.5"], "--mixup -0.5 is too small\nhint: use a value from 0 to 1e+06"),
        (["--mixup", "nan"], "--mixup takes a number"),
        (["--mixup", "some"], "--mixup takes a number"),
        (["--cutmix=-1"], "--cutmix -1 is too small\nhint: use a value from 0 to 1e+06"),
        (["--cutmix", "inf"], "--cutmix takes a number"),
        (
            ["--mixup", "0.8", "--limit-train", "1"],
            "--mixup 0.8 mixes classes, but all training images (1) are of class",
        ),
        (["--mixup", "--bs", "1"], "--mixup 0.8 needs several images per step"),
        (["--recipe", "strong", "--bs", "1"], "use --bs 2 or more, or --mixup 0"),
        (["--mix-off", "0.4"], "--mix-off 0.4 does nothing"),
        (["--mix-off", "0.4", "--mixup", "0"], "without --mixup or --cutmix"),
        (["--mixup", "--mix-off", "1"], "--mix-off 1 is too large\nhint: use a value of at least 0 and less than 1"),
        (["--erase", "1.5"], "--erase 1.5 is too large\nhint: use a value from 0 to 1"),
        (["--cutout", "-0.1"], "--cutout -0.1 is too small\nhint: use a value from 0 to 1"),
        (["--noaug", "--aug", "randaug"], "--noaug means --aug basic"),
        (["--val", "none", "--loss-sum"], "--loss-sum does nothing with --val none"),
    ],
)
def test_an_invalid_augmentation_is_refused_before_anything_is_written(
    refused: Refused, tmp_path: Path, argv: list[str], sentence: str
) -> None:
    assert sentence in refused("train", *TINY, "--epochs", 1, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--mixup"], {"mixup": 0.8, "cutmix": 0.0}),
        (["--mixup", "--cutmix"], {"mixup": 0.8, "cutmix": 1.0}),
        (["--mixup=true", "--cutmix=True"], {"mixup": 0.8, "cutmix": 1.0}),
        (["--mixup", "0.2", "--cutmix=0.5"], {"mixup": 0.2, "cutmix": 0.5}),
        (["--mixup=false"], {"mixup": 0.0}),
        (["--mixup", "1"], {"mixup": 1.0}),
        (["--mixup", "-c", "settings.yaml"], {"mixup": 0.8, "erase": 0.125}),
        (["--mixup", "--mix-off", "0.4"], {"mixup": 0.8, "mix_off": 0.4}),
        (["--aug", "randaug:m=5"], {"aug": "randaug", "aug_options": {"n": 2, "m": 5, **CROP_DEFAULTS}}),
        (["--aug", "none"], {"aug": "none", "aug_options": {}}),
        (["--noaug"], {"aug": "basic"}),
        (
            ["--recipe", "seed"],
            {"aug": "seed-randaug", "aug_options": {"n": 2, "m": 14, **CROP_DEFAULTS}, "loss_sum": True},
        ),
        (["--recipe", "seed", "--aug", "basic"], {"aug": "basic", "aug_options": CROP_DEFAULTS}),
    ],
)
def test_flags_set_the_augmentation(cli: Cli, tmp_path: Path, argv: list[str], expected: dict[str, Any]) -> None:
    import yaml

    (tmp_path / "settings.yaml").write_text("erase: 0.125\n")
    printed = cli("train", *argv, "--print-config")
    assert printed.code == 0, printed.err
    settings = yaml.safe_load(printed.out)
    assert {key: settings[key] for key in expected} == expected
    (tmp_path / "printed.yaml").write_text(printed.out)
    again = cli("train", "-c", "printed.yaml", "--print-config")
    assert yaml.safe_load(again.out) == settings


def test_a_flag_without_a_value_means_the_recipe_s_value(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    from vitctl import recipes

    mixing_recipe = dataclasses.replace(
        recipes.RECIPES["default"],
        by_net={},
        settings={**recipes.RECIPES["default"].settings, "aug": "randaug:m=7", "mixup": 0.3, "mix_off": 0.4},
    )
    monkeypatch.setitem(recipes.RECIPES, "default", mixing_recipe)

    def settings(*argv: object) -> Any:
        printed = cli("train", *argv, "--print-config")
        assert printed.code == 0, printed.err
        return yaml.safe_load(printed.out)

    assert settings()["mixup"] == settings("--mixup")["mixup"] == 0.3
    assert settings("--mixup", "--cutmix")["cutmix"] == 1.0
    assert settings()["aug_options"] == {"n": 2, "m": 7, **CROP_DEFAULTS} and settings()["mix_off"] == 0.4
    off = settings("--mixup", 0)
    assert (off["mixup"], off["mix_off"]) == (0.0, 0.0)
    assert settings("--aug", "randaug")["aug_options"] == {"n": 2, "m": 9, **CROP_DEFAULTS}


def test_resume_keeps_the_augmentation(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--aug", "randaug:m=5", "--mixup", "--name", "r")
    sentence = refused("train", "--resume", "runs/r", "--aug", "randaug:m=6", "--erase", 0.5, "--epochs", 2)
    assert "--aug randaug:m=6" in sentence and "--erase 0.5" in sentence and "--mixup" not in sentence
    same = cli("train", "--resume", "runs/r", "--aug", "randaug:m=5", "--mixup", "--epochs", 2)
    assert same.code == 0, same.err
