"""The examination of a machine: description, known faults, live checks, a training round, and what costs speed."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitctl.devices.faults import FAULTS, KnownFault
from vitctl.doctor import round_trip, speed, system
from vitctl.doctor.checks import CHECKS, Difference, names_of, network_check, run_check
from vitctl.doctor.children import Children, Ended
from vitctl.errors import RunFailed
from vitctl.observer import SILENT, Observer

State = Literal["correct", "wrong", "aborted", "failed", "timed out", "not used"]
"""Result of a check."""

FAILED: dict[str, State] = {"raised": "failed", "aborted": "aborted", "timed out": "timed out"}
"""States of checks whose process did not return."""

DESCRIBED = 120.0
"""Seconds in which the server must import torch and describe the machine."""

ROUND = 120.0
"""Seconds for each part of the training round."""

TIMED = 30.0
"""Seconds to measure the training speed of a network on a device."""


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """Result of a check.

    Attributes:
        name: the check.
        state: its result.
        detail: why it is not correct, or empty.
        differences: the measured differences.
        seconds: wall time.
        fault: key of the known fault that it probes, or None.
        avoided: vitctl avoids what it computes, as this version of PyTorch has the fault on this device.
    """

    name: str
    state: State
    detail: str = ""
    differences: Sequence[Difference] = ()
    seconds: float = 0.0
    fault: str | None = None
    avoided: bool = False

    @property
    def off(self) -> bool:
        """Whether training on the device is affected."""
        return self.state not in ("correct", "not used") and not self.avoided


@dataclass(frozen=True)
class Examination:
    """Everything found about a machine.

    Attributes:
        device: torch's name of the device.
        torch: version of torch.
        system: description of the machine; see :func:`vitctl.doctor.system.describe`.
        outcomes: results of the checks, in order.
        brakes: what makes training slow.
        method: how the processes of the checks were started.
        seconds: wall time.
    """

    device: str
    torch: str
    system: dict[str, Any]
    outcomes: Sequence[CheckOutcome]
    brakes: Sequence[speed.Brake]
    method: str
    seconds: float

    @property
    def off(self) -> list[str]:
        """Names of the checks that show that training is affected."""
        return [each.name for each in self.outcomes if each.off]

    def affects(self, fault: KnownFault) -> Literal["yes", "no", "unknown"]:
        """Return whether this version of PyTorch has a fault on this device."""
        known = fault.affects(self.torch, self.device.partition(":")[0])
        return "unknown" if known is None else "yes" if known else "no"

    def seen(self, fault: KnownFault) -> State | None:
        """Return the worst result of the checks that probe a fault, or None without a check."""
        states = [each.state for each in self.outcomes if each.fault == fault.key]
        return next((state for state in states if state != "correct"), states[0] if states else None)

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "ok": not self.off,
            "off": self.off,
            "device": self.device,
            "system": self.system,
            "faults": [
                {
                    "key": fault.key,
                    "problem": fault.problem,
                    "affects": self.affects(fault),
                    "check": self.seen(fault),
                    "remedy": fault.remedy,
                    "threads": list(fault.links),
                }
                for fault in FAULTS
            ],
            "checks": [{**dataclasses.asdict(each), "off": each.off} for each in self.outcomes],
            "speed": [dataclasses.asdict(each) for each in self.brakes],
            "processes": self.method,
            "seconds": round(self.seconds, 1),
        }

    def error(self) -> RunFailed | None:
        """Return the error that names what is wrong, or None if nothing is."""
        if not self.off:
            return None
        return RunFailed(
            f"{self.device} does not train correctly: {'; '.join(self.off)}",
            hint="use --device cpu, and report the output of vitctl doctor"
            if self.device != "cpu"
            else "reinstall torch, and report the output of vitctl doctor if that does not help",
            device=self.device,
        )


def examine(
    device_name: str, *, full: bool, observer: Observer = SILENT, children: Children | None = None
) -> Examination:
    """Examine this machine.

    Args:
        device_name: ``--device``.
        full: also check a step of every network.
        observer: receives what is being done.
        children: starts the processes of the checks.

    Raises:
        RequestError: the device is unknown or not available.
        RunFailed: the machine cannot be described at all.
    """
    start = time.monotonic()
    children = children or Children()
    observer.working("importing torch")
    described = children.run(system.describe, device_name, limit=DESCRIBED)
    if described.value is None:
        raise RunFailed(
            f"a process that only imports torch and lists devices failed: {described.reason}",
            hint="reinstall torch, and report this if that does not help",
        )
    device, version = described.value["device"], described.value["torch"]
    children = usable(children, device)
    outcomes = [check(name, device, version, children, observer) for name in names_of(full)]
    outcomes += training_round(device, children, observer)
    observer.working("looking for what costs speed")
    brakes = children.run(speed.find_brakes, device, limit=TIMED).value or []
    if device != "cpu":
        for net in speed.NETS:
            ours, cpu = (children.run(speed.training_speed, net, each, limit=TIMED).value for each in (device, "cpu"))
            brakes = [*brakes, *speed.slower_than_cpu(net, device, ours, cpu)]
    return Examination(
        device=device,
        torch=version,
        system=described.value["system"],
        outcomes=outcomes,
        brakes=brakes,
        method=children.method,
        seconds=time.monotonic() - start,
    )


def usable(children: Children, device: str) -> Children:
    """Return processes that can use the device: new interpreters if it does not work in forked processes."""
    if device == "cpu" or children.method == "spawn":
        return children
    works = children.run(run_check, "random state", device, limit=60.0).value is not None
    return children if works else Children("spawn")


def check(name: str, device: str, version: str, children: Children, observer: Observer) -> CheckOutcome:
    """Run a check in a process of its own."""
    observer.working(f"checking {name}")
    row = CHECKS.get(name) or network_check(name)
    fault = next((each for each in FAULTS if each.key == row.fault), None)
    avoided = fault is not None and fault.affects(version, device.partition(":")[0]) is not False
    ended = children.run(run_check, name, device, limit=row.seconds)
    return dataclasses.replace(outcome(name, ended), fault=row.fault, avoided=avoided)


def outcome(name: str, ended: Ended[list[Difference]] | Ended[list[Difference] | str]) -> CheckOutcome:
    """Return the result of a check from the end of its process."""
    found = ended.value
    if found is None:
        return CheckOutcome(name=name, state=FAILED[ended.state], detail=ended.reason, seconds=ended.seconds)
    if isinstance(found, str):
        return CheckOutcome(name=name, state="not used", detail=found, seconds=ended.seconds)
    wrong = [each for each in found if each.wrong]
    return CheckOutcome(
        name=name,
        state="wrong" if wrong else "correct",
        detail="; ".join(f"{each.what}: {each.value:.1e}, more than {each.tolerance:g}" for each in wrong),
        differences=found,
        seconds=ended.seconds,
    )


def training_round(device: str, children: Children, observer: Observer) -> list[CheckOutcome]:
    """Train a run, kill one, resume it, and export it; a part that needs one that failed is left out."""
    with tempfile.TemporaryDirectory(prefix="vitctl-doctor-") as runs:

        def part(name: str, function: Callable[..., list[Difference]], *args: str) -> CheckOutcome:
            observer.working(f"checking {name}")
            return outcome(name, children.run(function, runs, *args, limit=ROUND))

        trained = part("training on digits", round_trip.train, "whole", device)
        if trained.off:
            return [trained]
        killed = children.run(round_trip.train_until_killed, runs, "killed", device, limit=ROUND)
        resumed = outcome("resuming a killed run", killed)
        if killed.state == "aborted":  # as intended
            resumed = part("resuming a killed run", round_trip.resume, "killed", "whole", device)
        return [trained, resumed, part("export to ONNX", round_trip.export, "whole")]
