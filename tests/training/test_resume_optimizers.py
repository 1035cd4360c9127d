"""Resuming is bit-identical with every optimizer and every learning-rate schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY_NET
from vitctl.config import resolve_config
from vitctl.optim import OPTIMIZERS
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint
from vitctl.training.loop import train_step
from vitctl.training.session import Session
from vitctl.training.setup import open_session

STEPS = 7


def session(**settings: Any) -> Session:
    flags = {"dataset": "digits", "net": TINY_NET, "size": 8, "limit_train": 200, "limit_test": 50, "bs": 64, "seed": 3}
    return open_session(resolve_config({**flags, "max_steps": 2 * STEPS, **settings}))


def steps(session: Session, count: int) -> None:
    session.model.train()
    for _ in range(count):
        train_step(session)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.epoch += 1
            session.progress.begin_epoch()


def state(session: Session) -> list[torch.Tensor]:
    moments = [
        value
        for states in session.optimizer.state_dict()["state"].values()
        for _, value in sorted(states.items())
        if isinstance(value, torch.Tensor)
    ]
    return [*session.model.state_dict().values(), *moments]


SETTINGS: list[dict[str, Any]] = [
    *({"opt": opt} for opt in [*OPTIMIZERS, "timm/lamb", "timm/adafactorbv"]),
    {"opt": "muon", "net": "vit_small:depth=1,embed_dim=16,num_heads=2,head_dim=8"},
    {"opt": "adan", "schedule": "onecycle", "recipe": "seed"},
    {"opt": "sgd", "schedule": "constant", "warmdown": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: "-".join(map(str, each.values())).partition(":")[0])
def test_resume_is_bit_identical(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = session(**settings)
    steps(whole, STEPS)
    save_checkpoint(whole.checkpoint(), tmp_path / "last.pt")
    steps(whole, STEPS)

    resumed = session(**settings)
    untrained = [value.clone() for value in state(resumed)]
    resumed.restore(load_checkpoint(tmp_path / "last.pt"))
    steps(resumed, STEPS)
    ours, theirs = state(resumed), state(whole)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(untrained, theirs, strict=False))
    assert resumed.progress.loss_sum == whole.progress.loss_sum


def test_parameter_groups_keep_their_own_learning_rates() -> None:
    muon = session(opt="muon:lr=0.03,adamw_lr=1e-3", schedule="linear", warmup=0.5)
    steps(muon, 2)
    factor = muon.schedule.factor(1)
    rates = {group["parts"]: group["lr"] for group in muon.optimizer.param_groups}
    assert rates[1] == pytest.approx(0.03 * factor) and rates[0] == pytest.approx(1e-3 * factor)


def test_doubtful_betas_cause_a_warning(cli: Any) -> None:
    argv = ["train", "--dataset", "digits", "--net", TINY_NET, "--size", 8, "--limit-train", 100, "--max-steps", 1]
    result = cli(*argv, "--opt", "adan:beta1=0.98")
    assert result.code == 0
    assert [line for line in result.err.splitlines() if line.startswith("warning: --opt adan: beta1=0.98")]
    assert "warning: --opt" not in cli(*argv, "--opt", "adan").err
