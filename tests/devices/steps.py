"""Whole training steps of every family of networks, with every optimizer and every kind of option.

Run as a program, it takes each step on the fake accelerator and prints a JSON document for ``test_steps.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from tests.devices import accelerator
from tests.models.test_models import NARROW, small_size
from vitctl import devices
from vitctl.config import resolve_config
from vitctl.devices import precision as precision_module
from vitctl.devices.policy import CUDA, MPS, DevicePolicy, imposed
from vitctl.models import MODELS
from vitctl.observer import SILENT
from vitctl.optim import OPTIMIZERS
from vitctl.process.signals import StopRequest
from vitctl.registry import format_spec
from vitctl.training import loop
from vitctl.training.evaluate import evaluate
from vitctl.training.session import Session
from vitctl.training.setup import open_session

NETS = (
    "vit_small",
    "cait_small",
    "swin",
    "mlpmixer",
    "mobilevit",
    "cct_2",
    "res18",
    "vgg",
    "airbench94",
    "hybrid_tiny",
)
"""A network of every family."""

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"ema": 0.9, "label_smoothing": 0.1},
    {"mixup": 0.2, "cutmix": 1.0},
    {"aug": "randaug"},
    {"aug": "seed-randaug", "erase": 0.3, "cutout": 0.2},
    {"aug": "autoaug", "precision": "bf16"},
    {"accumulate": 2, "class_weights": "balanced", "clip_grad": 0.0},
    {"aug": "trivialaug", "layer_decay": 0.8},
)

POLICIES = {
    "mps": MPS,
    "cuda": dataclasses.replace(CUDA, pinned_copies=False),  # the fake device pins no memory
    "reading": dataclasses.replace(MPS, free_reads=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to take.

    Attributes:
        net: network.
        opt: optimizer.
        options: index into :data:`OPTIONS`.
        policy: key of :data:`POLICIES`.
    """

    net: str
    opt: str
    options: int
    policy: str = "mps"

    def __str__(self) -> str:
        return f"{self.net}-{self.opt}-{self.options}-{self.policy}"


def pairs() -> list[Case]:
    """Return cases that have every pair of a network, an optimizer and options."""
    assert min(len(NETS), len(OPTIMIZERS)) >= len(OPTIONS)  # else a diagonal would miss some
    return [
        Case(net, opt, (i + j) % len(OPTIONS)) for i, net in enumerate(NETS) for j, opt in enumerate(sorted(OPTIMIZERS))
    ]


PLANTED_READ = Case("cct_2", "adamw", 0, "reading")
"""A step that reads its loss, which must fail."""

CASES = [PLANTED_READ, *pairs(), *(Case(net, opt, 0, "cuda") for net, opt in zip(NETS, OPTIMIZERS, strict=False))]


def open_case(net: str, **flags: Any) -> Session:
    """Return a session of a narrow network in training mode that has already taken a step."""
    options = {name: value for name, value in NARROW.items() if name in MODELS[net].options}
    session = open_session(
        resolve_config(
            {
                "dataset": "digits",
                "net": format_spec(net, options),
                "pretrained": "false",
                "size": min(32, small_size(net, **options)),
                "limit_train": 100,
                "limit_test": 16,
                "bs": 8,
                "max_steps": 4,
                **flags,
            }
        )
    )
    session.train_mode()
    session.progress.step = 1  # the first step reads the loss
    return session


@contextlib.contextmanager
def under(policy: DevicePolicy) -> Iterator[None]:
    """Impose a policy, and precisions of which the processor here may have only slow emulations."""
    with imposed(policy), mock.patch.object(precision_module, "_native_precisions", lambda device: ("bf16", "fp16")):
        yield


def step_on_accelerator(case: Case, device: torch.device) -> set[str]:
    """Take a step on the fake accelerator, then evaluate, and return the names of the operations on it."""
    with (
        under(POLICIES[case.policy]),
        accelerator.active() as operations,
        mock.patch.object(devices, "resolve_device", lambda name: device),
        mock.patch.object(devices, "has_fused_optimizers", lambda device: True),
        # torch's inference mode does not support views of tensors that wrap others.
        mock.patch.object(loop, "evaluate", torch.no_grad()(evaluate.__wrapped__)),  # type: ignore[attr-defined]
    ):
        with accelerator.reads_allowed():
            session = open_case(case.net, opt=case.opt, **OPTIONS[case.options])
        loop.train_step(session)
        with accelerator.reads_allowed(), StopRequest(lambda signal: None) as stop:
            loop.measure(session, session.splits.test, "test", SILENT, stop)
    return operations


PLANTS: dict[str, tuple[str, Callable[[torch.Tensor], object]]] = {
    "item": ("ReadBack", lambda x: x.sum().item()),
    "mask": ("ReadBack", lambda x: x[x > 0]),
    "copy to the CPU": ("ReadBack", lambda x: x.cpu()),
    "CPU operand": ("DeviceMismatch", lambda x: x + torch.ones(3)),
    "CPU index": ("DeviceMismatch", lambda x: x[torch.tensor([0, 1])]),
    "float64": ("Float64", lambda x: x.double()),
    "float64 from the CPU": ("Float64", lambda x: torch.ones(3, dtype=torch.float64).to(x.device)),
}
"""Faults on the accelerator: the name of the exception, and a function of a tensor there that must raise it."""


def plant(fault: Callable[[torch.Tensor], object], device: torch.device) -> str | None:
    """Return the name of the exception that a fault raises."""
    with accelerator.active():
        try:
            fault(torch.ones(3, device=device))
        except Exception as raised:  # noqa: BLE001  (the outcome)
            return type(raised).__name__
    return None


def main() -> None:
    """Print the error and the operations of each case, and what each planted fault raises."""
    torch.set_num_threads(1)
    try:
        device = accelerator.create()
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    outcomes: dict[str, Any] = {name: plant(fault, device) for name, (_, fault) in PLANTS.items()}
    for case in CASES:
        error, operations = None, set()
        try:
            operations = step_on_accelerator(case, device)
        except Exception as raised:  # noqa: BLE001  (the outcome of the case)
            error = f"{type(raised).__name__}: {raised}"
        outcomes[str(case)] = {"error": error, "operations": sorted(operations)}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch's threads for the fake device cannot be stopped
