"""Live checks: each accepts a correct device, and finds a fault planted in what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitctl import devices
from vitctl.devices.faults import FAULTS
from vitctl.doctor import checks
from vitctl.doctor.checks import CHECKS, Difference, run_check
from vitctl.models import MODELS
from vitctl.training import loop

SLOW = ("linear, 65,537 images", "optimizers", "step of cct_2", "step of vit_small", "memory over 200 steps")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BATCH", 32)


def correct(name: str) -> bool:
    found = run_check(name, "cpu")
    return isinstance(found, str) or not any(each.wrong for each in found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CHECKS]
)
def test_this_machine_is_correct(name: str) -> None:
    assert correct(name)


def in_fp32(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function whose result is changed for fp32, as by a faulty kernel; the reference is float64."""

    def call(*args: Any, **more: Any) -> Any:
        out = function(*args, **more)
        return change(out) if out.dtype == torch.float32 else out

    return call


def one_percent(out: torch.Tensor) -> torch.Tensor:
    return out * 1.01


def one_row(out: torch.Tensor) -> torch.Tensor:
    """Make the gradient of the last row vanish, as in a sum that is cut off."""
    return torch.cat([out[:-1], out[-1:].detach()])


@pytest.mark.parametrize(
    ("name", "place", "change"),
    [
        ("linear, 32,766 tokens", "linear", one_percent),
        ("linear, 33,280 tokens", "linear", one_row),
        ("convolution and pooling", "max_pool2d", one_percent),
        ("convolution and pooling, channels-last", "batch_norm", one_row),
        ("attention, width 64", "scaled_dot_product_attention", one_row),
        ("attention, width 64, permuted", "scaled_dot_product_attention", lambda out: out * float("nan")),
        ("LayerNorm", "layer_norm", one_percent),
        ("LayerNorm, frozen input", "layer_norm", one_row),
        ("step in bf16", "cross_entropy", lambda out: out * 1.2),
    ],
)
def test_a_faulty_kernel_is_found(monkeypatch: pytest.MonkeyPatch, name: str, place: str, change: Any) -> None:
    if name == "step in bf16" and "bf16" not in devices.half_precisions(torch.device("cpu")):
        pytest.skip("needs bf16 instructions")
    monkeypatch.setattr(F, place, in_fp32(getattr(F, place), change))
    assert not correct(name)


def test_a_faulty_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        devices, "to_device", lambda tensor, device: tensor.contiguous().view(tensor.shape).clone().fill_(0)
    )
    assert not correct("copies")


def test_a_random_state_that_is_not_restored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "set_rng_state", lambda state, device: None)
    assert not correct("random state")


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_faulty_optimizer_is_found_by_name(monkeypatch: pytest.MonkeyPatch, opt: str) -> None:
    build = checks.build_optimizer

    def faulty(name: str, options: Any, model: Any, *, lr: float, weight_decay: float) -> Any:
        wrong = name == opt and next(model.parameters()).dtype == torch.float32
        return build(name, options, model, lr=lr * (1.05 if wrong else 1.0), weight_decay=weight_decay)

    monkeypatch.setattr(checks, "build_optimizer", faulty)
    monkeypatch.setattr(checks, "OPTIMIZERS", {name: checks.OPTIMIZERS[name] for name in ("sgd", "adamw")})
    found = run_check("optimizers", "cpu")
    assert isinstance(found, list) and [each.what for each in found if each.wrong] == [opt]


def test_an_ignored_scale_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ignoring(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            del self.grad_scale, self.found_inf
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Ignoring)
    found = run_check("fused AdamW, scaled gradients", "cpu")
    assert isinstance(found, list) and [each.wrong for each in found] == [True, True]


def test_growing_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter(range(0, 1 << 40, 1 << 27))
    monkeypatch.setattr(devices, "peak_memory", lambda device: next(used))
    monkeypatch.setattr(checks, "train_step", lambda session: None)
    assert not correct("memory over 200 steps")


def test_a_step_that_clips_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def faulty(session: Any) -> None:
        calls.append(session)
        if len(calls) > 3:  # the device's steps follow those of the reference
            for group in session.optimizer.param_groups:
                group["lr_scale"] = 1.1
        loop.train_step(session)

    monkeypatch.setattr(checks, "train_step", faulty)
    assert not correct("steps with clipping and EMA")


def test_precisions_that_the_device_lacks_are_not_used() -> None:
    if "fp16" not in devices.half_precisions(torch.device("cpu")):
        assert run_check("step in fp16", "cpu") == "cpu has no instructions for fp16"


@pytest.mark.parametrize("net", [pytest.param(net, marks=pytest.mark.slow if net != "cvt" else ()) for net in MODELS])
def test_every_network_has_a_check(net: str) -> None:
    assert correct(net)


def test_nan_is_wrong() -> None:
    assert Difference("x", float("nan"), 1.0).wrong and not Difference("x", 0.0, 0.0).wrong


def test_faults_that_checks_name_are_known() -> None:
    assert {each.fault for each in CHECKS.values()} - {None} <= {fault.key for fault in FAULTS}
