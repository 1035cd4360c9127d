"""The training step and loop: gradients, figures, and failures that end a run."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import TINY, TINY_NET, Cli
from tests.models.test_models import NARROW, small_size
from vitctl.cli.progress import ProgressLines
from vitctl.config import resolve_config
from vitctl.errors import NotFinite, RequestError, RunFailed
from vitctl.models import MODELS, build_model
from vitctl.observer import SILENT
from vitctl.registry import format_spec
from vitctl.training import budget, loop, setup, start
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.ema import WeightAverage
from vitctl.training.session import Progress, Session, Tally, piece_sizes
from vitctl.training.setup import batch_pieces, open_session

Refused = Callable[..., str]


def tiny_session(**more: Any) -> Session:
    flags = {
        "dataset": "digits",
        "net": TINY_NET,
        "size": 8,
        "limit_train": 200,
        "limit_test": 50,
        "bs": 64,
        "epochs": 2,
        "clip_grad": 0.0,
        **more,
    }
    opened = open_session(resolve_config(flags))
    opened.model.train()
    return opened


def gradients(opened: Session, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the gradients of one step, which the step then clears."""
    taken: list[torch.Tensor] = []

    def keep(*args: object, **kwargs: object) -> None:
        taken.extend(p.grad.clone() for p in opened.model.parameters() if p.grad is not None)

    monkeypatch.setattr(opened.optimizer, "step", keep)
    loop.train_step(opened)
    return taken


@pytest.mark.parametrize(
    "net", [TINY_NET, "vit_small:embed_dim=32,depth=2,num_heads=2,head_dim=8,dropout=0,emb_dropout=0"]
)
@pytest.mark.parametrize("pieces", [{"micro_batch": 7}, {"micro_batch": 32}, {"bs": 16, "accumulate": 4}])
def test_micro_batches_give_the_gradient_of_the_batch(
    net: str, pieces: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(tiny_session(net=net, micro_batch=64), monkeypatch)
    cut = gradients(tiny_session(net=net, **pieces), monkeypatch)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_matches_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tiny_session(
        opt="sgd:momentum=0,nesterov=false", weight_decay=0.0, clip_grad=0.1, label_smoothing=0.2, warmup=0.5
    )
    before = [p.detach().clone() for p in opened.model.parameters()]
    images, labels = opened.batches.batch(0, 0)
    loss = F.cross_entropy(opened.model(opened.normalize(images)), labels, label_smoothing=0.2)
    grads = torch.autograd.grad(loss, list(opened.model.parameters()))
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
    scale = min(1.0, 0.1 / (norm.item() + 1e-6))
    loop.train_step(opened)
    lr = opened.lr(0)
    assert 0 < lr < opened.config.lr  # warm-up
    for old, grad, new in zip(before, grads, opened.model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - lr * scale * grad, rtol=1e-4, atol=1e-6)
    assert opened.progress.loss_sum == pytest.approx(loss.item() * 64, rel=1e-4)


@pytest.mark.parametrize(
    ("count", "bs", "micro", "joined", "sizes"),
    [
        (64, 64, 16, False, [16, 16, 16, 16]),
        (50, 64, 16, False, [16, 16, 16, 2]),
        (100, 64, 24, False, [24, 24, 16, 24, 12]),
        (129, 64, 64, True, [64, 65]),
        (129, 64, 64, False, [64, 64, 1]),
        (1, 64, 64, True, [1]),
    ],
)
def test_sizes_of_micro_batches(count: int, bs: int, micro: int, joined: bool, sizes: list[int]) -> None:
    assert piece_sizes(count, bs, micro, joined=joined) == sizes


def test_batchnorm_sees_full_batches() -> None:
    opened = tiny_session(net="res18", bs=64)
    assert opened.micro_batch == 64 and opened.batches.drop_single


def test_the_automatic_micro_batch_depends_only_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_session(net="vit_small", size=32, bs=512, limit_train=600).micro_batch == 32
    assert tiny_session(net="cct_2", size=32, bs=128).micro_batch == 64
    monkeypatch.setattr(setup, "CACHE_FLOATS", 1 << 18)
    assert tiny_session(net="cct_2", size=32, bs=128).micro_batch == 8


def test_the_average_follows_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.9)
    expected = {key: value.clone().double() for key, value in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        model.train()(torch.randn(4, 3))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            expected[key] = (
                value.double() if not value.is_floating_point() else expected[key] * decay + value * (1 - decay)
            )
    for key, value in average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_the_weight_average_is_evaluated_and_loaded(cli: Cli, tmp_path: Path) -> None:
    with_average = cli("train", *TINY, "--epochs", 2, "--ema", 0.99, "--name", "e", "--json").json()
    without = cli("train", *TINY, "--epochs", 2, "--name", "w", "--json").json()
    assert with_average["train_loss"] == without["train_loss"]  # training itself does not change
    assert with_average["test_loss"] != without["test_loss"] and with_average["weights"] == "ema"
    checkpoint = load_checkpoint(tmp_path / "runs" / "e" / "checkpoints" / "last.pt")
    assert not torch.equal(checkpoint["ema"]["head.weight"], checkpoint["model"]["head.weight"])
    scores = cli("eval", "runs/e", "--limit", 100, "--json").json()
    assert scores["loss"] == pytest.approx(with_average["test_loss"], rel=1e-5) and scores["weights"] == "ema"


def test_the_figures_of_an_epoch_are_means(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> None:
    """With a learning rate of zero, training figures match an evaluation of the same unaugmented images."""
    cli(
        "train",
        *TINY,
        "--lr",
        0,
        "--aug",
        "none",
        "--label-smoothing",
        0,
        "--epochs",
        1,
        "--val",
        "none",
        "--name",
        "r",
    )
    row = load_checkpoint(tmp_path / "runs" / "r" / "checkpoints" / "last.pt")["history"][0]
    opened = tiny_session(val="none")
    opened.model.eval()
    index = opened.splits.train.index
    with torch.no_grad():
        logits = opened.model(opened.normalize(opened.splits.train.examples.images[index]))
    labels = opened.splits.train.examples.labels[index]
    assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert row["train_acc"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)


def test_epoch_time_is_that_of_a_full_epoch(cli: Cli, tmp_path: Path) -> None:
    summary = cli("train", *TINY, "--max-steps", 6, "--name", "r", "--json").json()  # 4 steps per epoch
    rows = load_checkpoint(tmp_path / "runs" / "r" / "checkpoints" / "last.pt")["history"]
    assert [row["step"] for row in rows] == [4, 6]
    assert summary["epoch_time"] == pytest.approx(sum(row["epoch_time"] for row in rows) * 4 / 6, abs=2e-4)


@pytest.mark.parametrize("step", [1, 6])
def test_a_nonfinite_loss_ends_the_run_before_the_update(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    real, calls = F.cross_entropy, 0

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += "label_smoothing" in kwargs  # only in training steps, not in evaluation
        return real(*args, **kwargs) * (float("nan") if calls == step else 1)

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    sentence = refused("train", *TINY, "--epochs", 3, "--micro-batch", 64, "--name", "r", code=1)
    assert f"not finite at step {step} (lr " in sentence and "--lr" in sentence
    saved = tmp_path / "runs" / "r" / "checkpoints" / "last.pt"
    if step == 1:
        assert "no checkpoint was saved yet" in sentence and not saved.exists()
    else:
        assert str(Path("runs/r/checkpoints/last.pt")) in sentence
        assert all(torch.isfinite(value).all() for value in load_checkpoint(saved)["model"].values())


def test_a_huge_learning_rate_ends_the_run(refused: Refused) -> None:
    sentence = refused(
        "train", *TINY, "--epochs", 5, "--lr", 1e30, "--clip-grad", 0, "--warmup", 0, "--opt", "sgd", code=1
    )
    assert "not finite" in sentence


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_gradients_are_clipped_on_a_device_without_foreach_kernels(
    monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    """On MPS, torch refuses ``foreach=True`` and uses slower kernels by default."""
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_device_has_foreach_support", lambda _: False)
    found = torch.cat([grad.flatten() for grad in gradients(tiny_session(clip_grad=clip), monkeypatch)])
    monkeypatch.undo()
    usual = torch.cat([grad.flatten() for grad in gradients(tiny_session(clip_grad=clip), monkeypatch)])
    assert torch.allclose(found, usual, rtol=1e-5, atol=0)
    assert usual.norm().item() == pytest.approx(clip, rel=1e-4) if clip else usual.norm() > 0.1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nonfinite_weights_are_not_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str) -> None:
    """The loss does not show them: it was computed before the last update. Gradients are checked only on CPU."""
    trained = tiny_session(epochs=1, val="none", clip_grad=0.0)
    folder = start.RunFolder.create(tmp_path, "a", trained.config)
    step = loop.train_step

    def spoiled(session: Session) -> None:
        step(session)
        if session.progress.step == session.total_steps:
            with torch.no_grad():
                next(session.model.parameters()).fill_(math.nan)
            session.device = torch.device(device)  # nothing is computed on it before the checkpoint is saved

    monkeypatch.setattr(loop, "train_step", spoiled)
    with pytest.raises(RunFailed, match="is not finite"):
        loop.fit(trained, folder, ProgressLines(), "")
    assert not list((tmp_path / "a/checkpoints").glob("*.pt"))


@pytest.mark.parametrize(("net", "size", "expected"), [("cct_2", 32, 1000), ("vit_timm", 384, 151)])
def test_the_evaluation_batch_of_an_accelerator_is_limited_by_memory(net: str, size: int, expected: int) -> None:
    config = resolve_config({"net": net, "size": size, "pretrained": "false"})

    def build() -> nn.Module:
        return build_model(config.net, config.net_options, img_size=size, in_chans=3, num_classes=10)

    cuda = torch.device("cuda")
    assert batch_pieces(config, cuda, build, 3, False) == (config.bs, expected)
    few = dataclasses.replace(config, micro_batch="16")
    assert batch_pieces(few, cuda, build, 3, False) == (16, 64)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_suggests_a_smaller_batch(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.autograd, "backward", full)
    said = refused("train", *TINY, "--epochs", 1, code=1)
    assert "out of memory on cpu with --bs 64 and micro-batches of 64" in said and "use --micro-batch 32" in said


def test_other_errors_are_not_reported_as_out_of_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a real bug")

    monkeypatch.setattr(torch.autograd, "backward", broken)
    result = cli("train", *TINY, "--epochs", 1)
    assert result.code == 1 and "unexpected RuntimeError: a real bug" in result.err


def test_the_tally_keeps_sums_on_the_device_until_they_are_read() -> None:
    tally, progress = Tally(torch.device("cpu")), Progress()
    for _ in range(3):
        tally.add(torch.tensor(2.5), torch.tensor(4), 10)
    assert (progress.loss_sum, progress.correct, progress.seen) == (0, 0, 0)
    tally.read(progress)
    tally.read(progress)
    assert (progress.loss_sum, progress.correct, progress.seen) == (7.5, 12, 30)


@pytest.mark.parametrize("net", MODELS)
def test_every_network_trains_through_the_command(cli: Cli, net: str) -> None:
    narrow = {name: value for name, value in NARROW.items() if name in MODELS[net].options}
    summary = cli(
        "train", "--dataset", "digits", "--net", format_spec(net, narrow), "--size", small_size(net), "--limit-train", 32, "--limit-test", 20,
        "--bs", 16, "--max-steps", 2, "--pretrained", "false", "--json",
    ).json()  # fmt: skip
    assert summary["step"] == 2 and summary["net"] == net


def test_resuming_in_another_environment_causes_a_warning() -> None:
    said: list[str] = []
    now = {"torch": "2.15", "device_name": "x", "threads": 2}
    start.warn_of_differences([{**now}], now, said.append, dropout=True)
    assert said == []
    start.warn_of_differences([{**now, "threads": 4, "torch": "2.14"}], now, said.append, dropout=True)
    assert "torch 2.14 -> 2.15, threads 4 -> 2: the last bits of the result may differ" in said[0]
    for dropout, what in ((True, "dropout masks"), (False, "the last bits of the result")):
        start.warn_of_differences([{**now, "micro_batch": 8}], {**now, "micro_batch": 4}, said.append, dropout=dropout)
        assert said[-1].startswith(f"warning: micro_batch 8 -> 4: {what} may differ")
    rates = {"vit": True, "cct_2": False, "vit:dropout=0,emb_dropout=0": False, "cct_2:drop_path_rate=0.1": True}
    assert {net: start.has_dropout(resolve_config({"net": net})) for net in rates} == rates


def test_the_summary_says_how_often_the_test_set_was_used(cli: Cli) -> None:
    assert "tested after every epoch" in cli("train", *TINY, "--epochs", 1, "--val", "test").out
    assert "tested once" in cli("train", *TINY, "--epochs", 1).out


def test_a_warmdown_without_effect_is_refused(cli: Cli, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*TINY, "--schedule", "constant", "--schedule-per", "epoch", "--epochs", 4]  # 4 steps per epoch
    for share in (0.001, 0.25):
        assert "begins in the last epoch" in refused("train", *argv, "--warmdown", share)
    assert cli("train", *argv, "--warmdown", 0.5).code == 0
    assert "begins in the last epoch" in refused("train", *argv, "--warmdown", 0.25, "--dry-run")
    # With --max-time, the number of epochs is known only after the speed was measured.
    monkeypatch.setattr(budget, "MEASURED_SECONDS", (0.01, 0.01))
    assert cli("train", *argv[:-2], "--warmdown", 0.5, "--max-time", "1h", "--dry-run").code == 0


def test_a_warmdown_without_effect_in_an_extended_run_is_refused(cli: Cli, refused: Refused) -> None:
    argv = [*TINY, "--schedule", "constant", "--schedule-per", "epoch", "--warmdown", 0.3]
    # The last epoch has one step, so the warm-down of 3 steps begins before it.
    assert cli("train", *argv, "--max-steps", 9, "--name", "r").code == 0
    assert "begins in the last epoch" in refused("train", "--resume", "runs/r", "--max-steps", 12)
    for command in ("bench-device", "compare-optimizers"):
        words = ["cpu"] if command == "bench-device" else ["adam", "adamw"]
        assert "begins in the last epoch" in refused(command, *words, *argv, "--epochs", 1)


@pytest.mark.parametrize("values", [(1.0, math.nan), (math.inf, 1.0), (math.nan,)])
def test_one_nonfinite_value_ends_the_run(values: tuple[float, ...]) -> None:
    trained = tiny_session()
    loop.check_finite(trained, 1.0, 2.0)
    with pytest.raises(NotFinite) as failed:
        loop.check_finite(trained, *values)
    assert (failed.value.step, failed.value.device, failed.value.batch) == (1, "cpu", trained.config.bs)


def test_the_record_has_the_learning_rate_of_the_epoch_s_last_step(tmp_path: Path) -> None:
    trained = tiny_session(epochs=2, schedule="linear", warmup=0.0)
    folder = start.RunFolder.create(tmp_path, "a", trained.config)
    loop.fit(trained, folder, SILENT, "")
    expected = [trained.config.lr * trained.schedule.factor(row["step"] - 1) for row in trained.history]
    assert [row["lr"] for row in trained.history] == expected and len(set(expected)) == 2


def test_a_warmup_in_epochs_or_steps_does_not_depend_on_the_length() -> None:
    for epochs in (3, 6):
        opened = tiny_session(epochs=epochs, warmup="1.5ep")
        assert opened.schedule.warmup_steps == math.ceil(1.5 * opened.steps_per_epoch)
        assert tiny_session(epochs=epochs, warmup="5st").schedule.warmup_steps == 5
        assert opened.schedule.factor(0) == pytest.approx(1 / opened.schedule.warmup_steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": "8st"}, "--warmup 8st takes the whole run of 8 steps"),
        ({"warmup": "2ep", "max_steps": 6}, "--warmup 2ep takes the whole run of 6 steps"),
        (
            {"warmup": "6st", "warmdown": 0.5, "schedule": "constant"},
            "--warmup 6st and --warmdown 0.5 overlap in 8 steps",
        ),
        ({"warmup": "4st", "schedule_per": "epoch"}, "--warmup 4st ends in the first epoch and does nothing with"),
    ],
)
def test_a_warmup_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}.*\nhint: use "):
        tiny_session(epochs=None if "max_steps" in settings else 2, **settings)
