"""Flattened parameters: few operations, the same updates, and state dicts that other paths load."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adan_pytorch import Adan as Package
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.optim.test_adan import gradients, groups, parameters, step
from tests.training.test_loop import tiny_session
from vitctl import devices
from vitctl.devices.policy import CPU, imposed
from vitctl.models import MODELS, build_model
from vitctl.optim.adan import Adan
from vitctl.optim.flat import ALIGNMENT, flatten, flatten_parameters
from vitctl.optim.groups import param_groups
from vitctl.optim.muon import Muon
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint
from vitctl.training.ema import WeightAverage
from vitctl.training.loop import train_step
from vitctl.training.session import Session, Tally

FLAT = replace(CPU, foreach=False)
VIT = "vit_small:embed_dim=16,depth=2,num_heads=2,head_dim=8,dropout=0,emb_dropout=0"


class KernelCounter(TorchDispatchMode):
    """Counts operations, and those on lists of tensors once per tensor, as they run without foreach kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += len(args[0]) if "_foreach" in func.name() else 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], object]) -> int:
    with KernelCounter() as counter:
        function()
    return counter.count


def vit_small() -> nn.Module:
    options = MODELS["vit_small"].resolve_options({}, "vit_small")
    return build_model("vit_small", options, img_size=32, in_chans=3, num_classes=10)


def test_a_step_of_vit_small_takes_few_operations() -> None:
    model = vit_small()
    optimizer = Adan(param_groups(model, 0.02))
    flat = flatten_parameters(optimizer)
    average = WeightAverage(model, 0.9, flat)
    tally = Tally(torch.device("cpu"))
    flat.begin()
    loss = model(torch.randn(1, 3, 32, 32)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    flat.end()

    def clip() -> None:
        norm = torch.nn.utils.get_total_norm([flat.grads])
        tally.watch(1, loss.detach(), norm)
        torch.nn.utils.clip_grads_with_norm_([flat.values], 1.0, norm)

    optimizer.step()  # creates the state
    assert operations(optimizer.step) <= 40
    assert operations(clip) <= 15
    assert operations(lambda: average.update(model, 1)) <= 10
    assert operations(Adan(param_groups(vit := vit_small(), 0.02)).step) == 2  # without gradients; profiling only
    assert operations(lambda: WeightAverage(vit, 0.9).update(vit, 1)) > 80


def test_tensors_in_a_buffer_keep_shape_values_and_identity() -> None:
    tensors = [nn.Parameter(torch.randn(shape)) for shape in [(3, 5), (), (70,)]]
    before = [tensor.detach().clone() for tensor in tensors]
    buffer = flatten(tensors)
    assert buffer.numel() == 4 * ALIGNMENT
    assert all(torch.equal(a, b) and a.shape == b.shape for a, b in zip(tensors, before, strict=True))
    buffer.fill_(2)
    assert all((tensor == 2).all() for tensor in tensors)
    assert all(tensor.data_ptr() % (4 * ALIGNMENT) == buffer.data_ptr() % (4 * ALIGNMENT) for tensor in tensors)
    with pytest.raises(ValueError, match="same dtype"):
        flatten([torch.zeros(1), torch.zeros(1, dtype=torch.float64)])


def muon(params: list[nn.Parameter]) -> Muon:
    """Return Muon for parameters of the shapes in tests/optim/test_adan.py."""
    return Muon([
        {"params": [params[0], params[4]], "weight_decay": 0.1, "parts": 1},
        {"params": params[1:2], "parts": 0, "lr": 1e-3},
        {"params": params[2:3], "lr": 0.01, "parts": 1},
        {"params": params[3:4], "weight_decay": 0.1, "parts": 0},
    ])  # fmt: skip


@pytest.mark.parametrize("build", [lambda params: Adan(groups(params), lr=1e-2), muon], ids=["adan", "muon"])
def test_parameters_without_gradients_in_some_steps_are_left_as_they_are(build: Any) -> None:
    separate, together = parameters(), parameters()
    one, other = build(separate), build(together)
    flat = flatten_parameters(other)
    for i, grads in enumerate(gradients(30)):
        flat.begin()
        for j, (p, q, grad) in enumerate(zip(separate, together, grads, strict=True)):
            present = i % (j + 1) == 0
            p.grad = grad.clone() if present else None
            if present:
                (q * grad).sum().backward()  # type: ignore[no-untyped-call]
        flat.end()
        assert [q.grad is None for q in together] == [p.grad is None for p in separate]
        one.step()
        other.step()
    for p, q in zip(separate, together, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert one.state[p].keys() == other.state[q].keys()


@pytest.mark.parametrize("flat_first", [True, False])
def test_state_dicts_can_be_exchanged_with_adan_pytorch(flat_first: bool) -> None:
    params, reference = parameters(), parameters()
    uninterrupted = Package(groups(reference), lr=1e-2)
    order: list[Any] = [Adan, Package] if flat_first else [Package, Adan]
    state: dict[str, Any] | None = None
    stream = list(gradients(20))
    for kind, part in zip(order, (stream[:10], stream[10:]), strict=True):
        optimizer = kind(groups(params), lr=1.0)
        if kind is Adan:
            flatten_parameters(optimizer)
        if state is None:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] if group["lr"] != 1.0 else 1e-2
        else:
            optimizer.load_state_dict(state)
        for grads in part:
            step(optimizer, params, grads)
            step(uninterrupted, reference, grads)
        state = copy.deepcopy(optimizer.state_dict())
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def session(flat: bool, **settings: Any) -> Session:
    """Return a session after which the policy has no influence: it decides how parameters are stored when it opens."""
    with imposed(FLAT) if flat else contextlib.nullcontext():
        opened = tiny_session(clip_grad=0.5, ema=0.9, **settings)
    assert (opened.flat is not None) == flat
    opened.train_mode()
    return opened


def steps(session: Session, count: int) -> Session:
    for _ in range(count):
        train_step(session)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.epoch += 1
            session.progress.begin_epoch()
    return session


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors in nested dictionaries and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


CASES: list[dict[str, Any]] = [
    {"opt": "adan", "net": VIT, "layer_decay": 0.7},
    {"opt": "muon", "net": VIT, "weight_decay": 0.1, "micro_batch": 8},
    {"opt": "muon_sgd:renormalize=all", "net": VIT, "lr_scale": {"head": 0.5, "norm_bias": 8.0}},
    {"opt": "adamw", "net": VIT},
    {"opt": "lion", "net": VIT},
    {"opt": "sgd", "net": "res18:width=8", "bs": 16, "lr": 0.01},  # BatchNorm
]


@pytest.mark.parametrize("settings", CASES, ids=lambda each: each["opt"] + "-" + each.get("net", "").partition(":")[0])
def test_a_run_on_flat_parameters_matches_and_continues_one_on_separate_ones(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "matmul_dtype", lambda device, dtype: dtype)  # bf16 would round away the agreement
    settings = {"bs": 32, **settings}
    saved, whole = {}, {}
    for flat in (False, True):
        whole[flat] = steps(session(flat, **settings), 4)
        saved[flat] = tmp_path / f"{flat}.pt"
        save_checkpoint(whole[flat].checkpoint(), saved[flat])
        steps(whole[flat], 4)
    assert not all(map(torch.equal, *(tensors(load_checkpoint(saved[True])[key]) for key in ("model", "ema"))))
    for flat in (False, True):
        for source in (False, True):  # of the checkpoint
            resumed = session(flat, **settings)
            resumed.restore(load_checkpoint(saved[source]))
            resumed.train_mode()
            steps(resumed, 4)
            for key in ("model", "ema", "optimizer"):
                ours, theirs = (tensors(each.checkpoint()[key]) for each in (resumed, whole[False]))
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4 if key == "optimizer" else 1e-6, atol=1e-6)
                if source == flat:  # bit-identical
                    assert all(map(torch.equal, ours, tensors(whole[flat].checkpoint()[key])))


def test_frozen_parameters_and_other_buffers_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model[0].requires_grad_(False)
    plain = copy.deepcopy(model)
    averages = []
    for each in (model, plain):
        optimizer = Adan(param_groups(each, 0.1), lr=0.1)
        flat = flatten_parameters(optimizer) if each is model else None
        average = WeightAverage(each, 0.9, flat)
        torch.manual_seed(1)
        for i in range(5):
            if flat:
                flat.begin()
            each(torch.randn(8, 3)).square().mean().backward()
            if flat:
                flat.end()
            optimizer.step()
            optimizer.zero_grad()
            average.update(each, i + 1)
        averages.append(average.model)
    for ours, theirs in ((model, plain), averages):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)
    assert model[1].num_batches_tracked == averages[0][1].num_batches_tracked == 5
    assert model[0].weight.grad is None and model[0].weight.untyped_storage().nbytes() == 4 * 12
