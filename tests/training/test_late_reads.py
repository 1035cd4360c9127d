"""Where reads cost time: none in a step, and a failed step is found later, with the weights before it saved."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import TINY_NET
from tests.training.test_loop import tiny_session
from tests.training.test_resume import same
from vitctl.devices.policy import CPU, MPS, imposed
from vitctl.errors import NotFinite
from vitctl.observer import SILENT
from vitctl.optim import OPTIMIZERS
from vitctl.training import loop
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.run_folder import RunFolder
from vitctl.training.session import Progress, Session, Tally

LATE = dataclasses.replace(CPU, free_reads=False)
BAD_STEP = 7
VIT = "vit_small:embed_dim=16,depth=1,num_heads=2,head_dim=8"


class NoReads(TorchDispatchMode):
    """Refuses operations that wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.equal,
        ), func
        return func(*args, **(kwargs or {}))


def session(**settings: Any) -> Session:
    """Return a session with 60 steps per epoch."""
    return tiny_session(**{"bs": 2, "limit_train": 120, "val": "none", "epochs": 1, "ema": 0.9, **settings})


def nan_loss(opened: Session, logits: Tensor) -> Tensor:
    return logits * math.nan


def nan_gradient(opened: Session, logits: Tensor) -> Tensor:
    return logits + torch.sqrt(0 * next(opened.model.parameters()).sum())


def fail_at(opened: Session, step: int, fail: Callable[[Session, Tensor], Tensor]) -> None:
    """Make the forward pass of ``step``, counted from 1, give a loss or gradient that is not finite."""

    def forward(x: Tensor) -> Tensor:
        logits: Tensor = opened.model(x)
        return fail(opened, logits) if opened.progress.step + 1 == step else logits

    opened.forward = forward


CASES: list[dict[str, Any]] = [
    *({"opt": opt} for opt in OPTIMIZERS if opt != "muon"),
    {"opt": "muon", "net": VIT, "clip_grad": 1.0},
    {"opt": "timm/lamb", "accumulate": 2, "limit_train": 240},
    {"opt": "sgd", "net": "res18:width=8"},
]


@pytest.mark.parametrize(
    "settings", CASES, ids=lambda each: f"{each['opt']}-{each.get('net', 'cct')}".partition(":")[0]
)
@pytest.mark.parametrize("policy", [LATE, MPS], ids=["foreach", "mps"])
def test_the_state_before_a_failed_step_is_saved(settings: dict[str, Any], policy: Any, tmp_path: Path) -> None:
    fail = nan_gradient if policy is MPS else nan_loss
    with imposed(policy):
        good = session(**settings)
        for _ in range(BAD_STEP - 1):
            loop.train_step(good)
        good.tally.read(good.progress)
        expected = copy.deepcopy(good.checkpoint())
        opened = session(**settings)
        fail_at(opened, BAD_STEP, fail)
        with pytest.raises(NotFinite, match=rf"at step {BAD_STEP} .*last\.pt") as error:
            loop.fit(opened, RunFolder.create(tmp_path, "r", opened.config), SILENT, "")
    assert error.value.step == BAD_STEP
    saved = load_checkpoint(tmp_path / "r/checkpoints/last.pt")
    for key in ("model", "ema", "optimizer", "rng", "epoch", "step"):
        assert same(saved[key], expected[key]), key
    assert all(saved["progress"][key] == expected["progress"][key] for key in ("step_in_epoch", "seen", "loss_sum"))


def test_a_failed_step_is_found_at_the_next_read(tmp_path: Path) -> None:
    assert loop.READ_EVERY == 50
    with imposed(LATE):
        opened = session()
        fail_at(opened, BAD_STEP, nan_gradient)
        for _ in range(loop.READ_EVERY - 1):
            loop.train_step(opened)
        with pytest.raises(NotFinite, match=f"at step {BAD_STEP} "):
            loop.train_step(opened)


@pytest.mark.parametrize(("step", "saved"), [(1, False), (2, True), (52, True)])
def test_nothing_is_saved_before_the_first_step(step: int, saved: bool, tmp_path: Path) -> None:
    with imposed(LATE):
        opened = session()
        fail_at(opened, step, nan_loss)
        with pytest.raises(NotFinite, match=f"at step {step} .*{'last good' if saved else 'no checkpoint'}"):
            loop.fit(opened, RunFolder.create(tmp_path, "r", opened.config), SILENT, "")
    assert (tmp_path / "r/checkpoints/last.pt").exists() == saved


def test_a_failed_step_of_a_later_epoch_and_between_two_saves_is_found(tmp_path: Path) -> None:
    with imposed(LATE):
        opened = session(limit_train=10, epochs=3, save_every="2")  # 5 steps per epoch
        fail_at(opened, 8, nan_loss)
        with pytest.raises(NotFinite, match="at step 8 "):
            loop.fit(opened, RunFolder.create(tmp_path, "r", opened.config), SILENT, "")
    saved = load_checkpoint(tmp_path / "r/checkpoints/last.pt")
    assert (saved["step"], saved["epoch"], saved["progress"]["step_in_epoch"]) == (7, 1, 2)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_step_reads_nothing(opt: str) -> None:
    net = VIT if opt == "muon" else TINY_NET
    for policy in (LATE, MPS):
        with imposed(policy):
            opened = session(opt=opt, net=net, clip_grad=1.0, mixup=0.5, label_smoothing=0.1)
            loop.train_step(opened)
            with NoReads():
                loop.train_step(opened)
            with pytest.raises(AssertionError), NoReads():
                opened.tally.read(opened.progress)


def test_the_tally_counts_finite_steps() -> None:
    tally, progress = Tally(torch.device("cpu")), Progress()
    values = {1: (1.0, 2.0), 2: (0.0, 0.0), 3: (1.0, math.inf), 4: (1.0, 1.0), 5: (math.nan, 1.0)}
    for step in (1, 2):
        tally.watch(step, *map(torch.tensor, values[step]))
    assert tally.read(progress) is None
    for step in (2, 3, 4):
        tally.watch(step, *map(torch.tensor, values[step]))
    assert tally.read(progress) == 3
    assert tally.read(progress) is None
    tally.watch(5, *map(torch.tensor, values[5]))
    assert tally.read(progress) == 5
