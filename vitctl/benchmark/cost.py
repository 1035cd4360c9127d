"""Cost of an optimizer: the time of a step, the size of its state, and the implementation that runs."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.observer import SILENT, Observer
from vitctl.optim import find_optimizer
from vitctl.optim.build import build_optimizer
from vitctl.training.setup import open_session

ROUNDS, WARM_UP = 15, 3
"""Timed steps, and untimed steps before them; the first step allocates the optimizer's state."""

SMALL_LR = 1e-6
"""Learning rate of the timed steps, small so that the weights stay finite; it does not affect the time."""


@dataclass(frozen=True)
class OptimizerCost:
    """Cost of an optimizer.

    Attributes:
        source: the implementation, such as ``torch.optim.AdamW (fused)``.
        step_time: median seconds per step.
        low: lower quartile of the seconds per step.
        high: upper quartile of the seconds per step.
        state_bytes: size of the state that is kept between steps.
    """

    source: str
    step_time: float
    low: float
    high: float
    state_bytes: int


def measure_costs(configs: Mapping[str, TrainConfig], observer: Observer = SILENT) -> dict[str, OptimizerCost]:
    """Measure optimizers on the same network and gradients.

    The optimizers take turns, so that a machine that slows down affects all alike.

    Args:
        configs: settings by label; network, data and device are those of the first.
        observer: receives download and decoding progress.

    Raises:
        RequestError: the device, the data or the network is not available.
    """
    config = dataclasses.replace(next(iter(configs.values())), compile=False)
    session = open_session(config, observer, pretrained=False)
    device = session.device
    session.train_mode()
    images, labels = session.batches.batch(0, 0)
    images, labels = images[: session.micro_batch], labels[: session.micro_batch]
    with devices.memory_watched(device, session.batches.batch_size, session.micro_batch), session.autocast():
        logits = session.model(session.normalize(images))
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
    grads = [parameter.grad for parameter in session.model.parameters()]

    optimizers: dict[str, Optimizer] = {}
    for name, config in configs.items():
        model = copy.deepcopy(session.model)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = None if grad is None else grad.clone()
        optimizers[name] = build_optimizer(
            config.opt,
            config.opt_options,
            model,
            lr=SMALL_LR,
            weight_decay=config.weight_decay,
            decay_all=config.decay_all,
            layer_decay=config.layer_decay,
            lr_scale=config.lr_scale,
        )
    times: dict[str, list[float]] = {name: [] for name in configs}
    for i in range(WARM_UP + ROUNDS):
        order = list(optimizers.items())
        for name, optimizer in order if i % 2 else reversed(order):
            devices.synchronize(device)
            start = time.perf_counter()
            optimizer.step()
            devices.synchronize(device)
            times[name].append(time.perf_counter() - start)
    costs = {}
    for name, optimizer in optimizers.items():
        low, median, high = statistics.quantiles(times[name][WARM_UP:], n=4, method="inclusive")
        costs[name] = OptimizerCost(source(configs[name].opt, optimizer), median, low, high, state_bytes(optimizer))
    return costs


def state_bytes(optimizer: Optimizer) -> int:
    """Return the size in bytes of the tensors in the optimizer's state; a storage shared by views counts once."""
    storages: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for each in value.values():
                visit(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                visit(each)

    visit(dict(optimizer.state))
    return sum(storages.values())


def source(opt: str, optimizer: Optimizer) -> str:
    """Return the name of the implementation of ``opt``, with the version of its package if that is not torch."""
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim"):
        fused = any(group.get("fused") for group in optimizer.param_groups)
        return f"torch.optim.{kind.__name__}{' (fused)' if fused else ''}"
    package = find_optimizer(opt).source
    if package == "vitctl":
        return f"vitctl's {kind.__name__}"
    try:
        return f"{package} {importlib.metadata.version(package)} {kind.__name__}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} {kind.__name__}"
