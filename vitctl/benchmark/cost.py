"""What an optimizer costs beside the network: the time of its step, its state, and whose implementation runs."""

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
"""Steps that are timed, and those before them: state is made in the first."""

SMALL_LR = 1e-6
"""The rate of the steps that are timed: the time does not depend on it, and the weights stay sane."""


@dataclass(frozen=True)
class OptimizerCost:
    """What an optimizer costs.

    Attributes:
        source: whose implementation runs, such as ``torch.optim.AdamW (fused)``.
        step_time: seconds of a step, median.
        low: its lower quartile.
        high: its upper quartile.
        state_bytes: of what it keeps between steps.
    """

    source: str
    step_time: float
    low: float
    high: float
    state_bytes: int


def measure_costs(configs: Mapping[str, TrainConfig], observer: Observer = SILENT) -> dict[str, OptimizerCost]:
    """Measure each optimizer on the same network and gradients, in turn, so that a machine that slows down slows all alike.

    Args:
        configs: by a name for each; network, data and device are the first one's.
        observer: is notified of downloads and decoding.

    Raises:
        RequestError: device, data or network cannot be had as asked.
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
    """Return the size of the tensors that ``optimizer`` keeps between steps; views of one storage count once."""
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
    """Return whose implementation of ``opt`` runs, with its version where it is no part of torch."""
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
