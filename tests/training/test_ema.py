"""The weight average is finite for every network, and bit-identical in a resumed run."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models.test_models import NARROW, build, each_net, images, small_size
from tests.training.test_loop import tiny_session
from tests.training.test_resume import same
from vitctl.models import MODELS
from vitctl.registry import format_spec
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint
from vitctl.training.ema import WeightAverage
from vitctl.training.loop import train_step

MASKED = ("vit_small", "swin", "mobilevit")
"""Two networks with constant buffers of minus infinity, and one with BatchNorm."""


@each_net
def test_the_average_of_any_network_is_finite(net: str) -> None:
    size = small_size(net)
    model = build(net, size, **NARROW).train()
    average = WeightAverage(model, 0.9)
    before = copy.deepcopy(model)
    for step in (1, 2):
        model.zero_grad()
        model(images(4, img_size=size)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        average.update(model, step)
    assert not any(tensor.is_meta for tensor in [*average.model.parameters(), *average.model.buffers()])
    parameters = dict(average.model.named_parameters())
    assert all(value.isfinite().all() for value in parameters.values())
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before.get_parameter(name))]
    assert moved and any(not torch.equal(parameters[name], model.get_parameter(name)) for name in moved)

    statistics = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for key in ("running_mean", "running_var")
    }
    for name, buffer in average.model.named_buffers():
        if name in statistics:
            assert not torch.equal(buffer, model.get_buffer(name)), name  # averaged
        else:
            assert torch.equal(buffer, model.get_buffer(name)), name
    with torch.no_grad():
        assert average.model(images(2, img_size=size)).isfinite().all()


@pytest.mark.parametrize("net", MASKED)
def test_the_average_of_a_resumed_run_is_bit_identical(net: str, tmp_path: Path) -> None:
    narrow = {name: value for name, value in NARROW.items() if name in MODELS[net].options}
    whole, resumed = (tiny_session(net=format_spec(net, narrow), size=small_size(net), bs=4, ema=0.9) for _ in range(2))
    initial = copy.deepcopy(whole.checkpoint()["ema"])
    for step in range(4):
        if step == 2:
            save_checkpoint(whole.checkpoint(), tmp_path / "last.pt")
        train_step(whole)
    expected = copy.deepcopy(whole.checkpoint())
    assert not same(expected["ema"], initial)
    resumed.restore(load_checkpoint(tmp_path / "last.pt"))
    resumed.train_mode()
    for _ in range(2):
        train_step(resumed)
    for key in ("model", "ema", "optimizer", "rng"):
        assert same(resumed.checkpoint()[key], expected[key]), key
    assert whole.average is not None and resumed.average is not None
    assert same(dict(resumed.average.model.named_buffers()), dict(whole.average.model.named_buffers()))
