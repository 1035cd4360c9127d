"""What a training step costs on each of several devices, measured in turns with the very step that ``train`` takes."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl import devices
from vitctl.benchmark.device_plan import GENERATED, DevicePlan
from vitctl.benchmark.figures import PARTS, Figures, Parity, Quartiles
from vitctl.config import PREDECESSOR_BATCH, TrainConfig
from vitctl.data.dataset import Dataset, Examples, Splits, Subset
from vitctl.errors import RequestError, RunFailed
from vitctl.observer import SILENT, Observer
from vitctl.training.evaluate import evaluate
from vitctl.training.loop import train_step
from vitctl.training.preflight import check_config
from vitctl.training.session import Session, untouched
from vitctl.training.setup import open_data, open_session
from vitctl.training.start import start_run

EPOCH, TESTED = 50_000, 1_000
"""Generated images of an epoch, as many as CIFAR's, and to validate on."""

LEAST_STEPS, LONG_STEP = 3, 5.0
"""Steps measured on any device, whatever they take; and seconds from which a step is warmed up by one piece of it."""

WARM_UP = 2
"""Steps that do not count, where a step is short."""

LEAST_SECONDS = 10.0
"""Measured before a median counts as stable, as machines change their speed from second to second."""

STABLE = 0.005
"""The median is taken to stand when its error, about the interquartile range over the root of the count, is this share of it."""

GEMM_SECONDS = 0.3
"""Seconds for which matrix products of each shape are timed."""

clock = time.perf_counter
"""Clock for measuring, in seconds; tests replace it."""

PARITY_IMAGES = 16
TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1, "fp16": 2e-2}
"""Greatest difference of logits and of gradients to those of fp32 on a CPU, relative to their size (Euclidean norm)."""


def generated_data(config: TrainConfig) -> tuple[Dataset, Splits]:
    """Return random images in the place of CIFAR's: :data:`EPOCH` to train on, or ``--limit-train``, and :data:`TESTED` to test.

    uint8 ``[n, 3, 32, 32]``, labels int64; the same for every device.
    """
    classes = GENERATED[config.dataset]
    generator = torch.Generator().manual_seed(config.seed)

    def generate(count: int) -> Examples:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Examples(images, torch.randint(0, classes, (count,), generator=generator))

    train = generate(min(EPOCH, config.limit_train or EPOCH))
    return dataset_of(config.dataset, classes, train, generate(TESTED))


def dataset_of(name: str, classes: int, train: Examples, test: Examples) -> tuple[Dataset, Splits]:
    """Return images uint8 ``[n, 3, 32, 32]`` as the data set called ``name``: nothing is held out."""
    dataset = Dataset(
        name=name,
        classes=tuple(map(str, range(classes))),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        train=train,
        val=None,
        test=test,
        source="generated",
    )
    parts = (Subset(each, torch.arange(len(each))) for each in (train, test))
    return dataset, Splits(train=next(parts), val=None, test=next(parts), val_split=None)


def bench_data(config: TrainConfig, observer: Observer = SILENT) -> tuple[Dataset, Splits]:
    """Return generated images in the place of CIFAR's, and other data sets as they are.

    Raises:
        RequestError: the data cannot be had as asked.
    """
    return generated_data(config) if config.dataset in GENERATED else open_data(config, observer)


class Lane:
    """A device under measurement, with a run of its own that is never saved.

    Args:
        label: what it is called.
        config: the settings, its device among them.
        data: what it trains on.
        observer: is notified of compilation.
    """

    def __init__(self, label: str, config: TrainConfig, data: tuple[Dataset, Splits], observer: Observer) -> None:
        self.label = label
        self.session = open_session(config, observer, pretrained=False, data=data)
        self.device = self.session.device
        self.initial_weights = {
            name: value.detach().cpu().clone() for name, value in self.session.model.state_dict().items()
        }
        self.session.set_length(max(self.session.total_steps, 10_000))
        self.cold = 0.0
        self.piece = 0.0
        self.taken = 0
        self.first = 0.0
        self.steps: list[float] = []
        self.pieces: list[float] = []
        self.splits: list[dict[str, float]] = []
        self.validation: list[float] = []
        self.spent = 0.0
        self.session.train_mode()

    # -- measuring ---------------------------------------------------------------------------------------------------

    @property
    def asynchronous(self) -> bool:
        """Whether the device runs on its own, so that looking at the clock in the middle of a step holds it up."""
        return self.device.type != "cpu"

    @property
    def count(self) -> int:
        """Pieces of a step."""
        return -(-self.session.batches.batch_size // self.session.micro_batch)

    @property
    def long(self) -> bool:
        """Whether a step takes so long that whole ones are too much to warm up with."""
        return self.piece * self.count > LONG_STEP

    def memory(self) -> AbstractContextManager[None]:
        """Return what turns running out of memory into a sentence."""
        session = self.session
        return devices.memory_watched(self.device, session.batches.batch_size, session.micro_batch)

    def warm_up(self) -> None:
        """Run one micro-batch forward and backward, twice; what training computes from is left as it was."""
        images, labels = self.session.batches.batch(0, 0)
        with untouched(self.session):
            first, self.piece = (run_piece(self.session, images, labels) for _ in range(2))
        self.cold = max(0.0, first - self.piece)
        self.spent += first + self.piece

    def step(self) -> None:
        """Take one step of the run; the first :data:`WARM_UP` count only where a step is long."""
        seconds, watch = self._take(watched=not self.asynchronous)
        self.spent += seconds
        self.taken += 1
        if self.taken == 1:
            self.first = seconds + self.cold
        if self.long or self.taken > WARM_UP:
            self.steps.append(seconds)
            if watch:
                self._note(watch, seconds)

    def split(self) -> None:
        """Take further steps apart where those that are timed whole could not be."""
        for _ in range(LEAST_STEPS if self.asynchronous else 0):
            seconds, watch = self._take(watched=True)
            assert watch is not None
            self._note(watch, seconds)

    def _take(self, *, watched: bool) -> tuple[float, _Watch | None]:
        """Take a step over a whole batch, and return its seconds and, where it is watched, its parts."""
        session, progress = self.session, self.session.progress
        if progress.step_in_epoch >= max(1, session.batches.count // session.batches.batch_size):
            progress.epoch += 1  # an epoch's last step may be over fewer images: left out
            progress.begin_epoch()
        devices.synchronize(self.device)
        start = clock()
        with self._watched() if watched else contextlib.nullcontext() as watch:
            train_step(session)
            devices.synchronize(self.device)
        return clock() - start, watch

    def _note(self, watch: _Watch, seconds: float) -> None:
        parts = {name: sum(watch.times[name]) for name in ("data", "forward", "optimizer")}
        parts["backward"] = seconds - sum(parts.values())
        self.splits.append(parts)
        self.pieces += [after - before for before, after in pairwise(watch.starts)]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[_Watch]:
        """Time the parts of a step: its calls of batches, normalization, network and optimizer."""
        session, watch = self.session, _Watch(self.device)
        batch, normalize, forward, step = (
            session.batches.batch,
            session.normalize,
            session.forward,
            session.optimizer.step,
        )
        session.batches.batch = watch.timed("data", batch)  # type: ignore[method-assign]
        session.normalize = watch.timed("data", normalize)
        session.forward = watch.timed("forward", forward)
        session.optimizer.step = watch.timed("optimizer", step)  # type: ignore[method-assign]
        try:
            yield watch
        finally:
            session.batches.batch = batch  # type: ignore[method-assign]
            session.normalize = normalize
            session.forward = forward
            session.optimizer.step = step  # type: ignore[method-assign]

    def validate(self) -> None:
        """Evaluate 100 images, timed."""
        session, index = self.session, self.session.splits.test.index[:PREDECESSOR_BATCH]
        subset = Subset(session.splits.test.examples, index)
        devices.synchronize(self.device)
        start = clock()
        evaluate(session.model, subset, session.normalize, self.device, session.eval_batch, precision=session.precision)
        devices.synchronize(self.device)
        self.validation.append((clock() - start) * PREDECESSOR_BATCH / len(index))
        session.train_mode()

    def done(self, budget: float) -> bool:
        """Whether enough steps are measured for a stable median, or as many as ``budget`` seconds allow."""
        if len(self.steps) < LEAST_STEPS:
            return False
        quartiles = Quartiles.of(self.steps)
        stable = len(self.steps) >= 12 and quartiles.spread / len(self.steps) ** 0.5 < STABLE
        stable = stable and self.spent >= min(budget, LEAST_SECONDS)
        return stable or self.spent + quartiles.median > budget

    # -- results -----------------------------------------------------------------------------------------------------

    def parity(self, reference: tuple[Tensor, Tensor]) -> Parity:
        """Return how far logits and gradients are from ``reference``, which :func:`logits_and_gradients` gave on a CPU."""
        session = self.session
        images, labels = parity_batch(session)
        ours = logits_and_gradients(session.model, session, images, labels, session.precision)
        logits, gradients = (
            float((mine - theirs).norm() / theirs.norm().clamp_min(1e-30))
            for mine, theirs in zip(ours, reference, strict=True)
        )
        kind = session.precision
        if kind == "fp32" and self.device.type == "cuda" and session.config.precision != "fp32":
            kind = "tf32"
        return Parity(logits, gradients, TOLERANCES[kind])

    def figures(self, gemm: float, parity: Parity) -> Figures:
        """Return what was measured."""
        session = self.session
        step = Quartiles.of(self.steps)
        if self.long and len(self.pieces) > 1:
            # Few steps say little about how far they scatter; their many pieces do.
            share = Quartiles.of(self.pieces)
            step = dataclasses.replace(
                step,
                low=step.median * share.low / share.median,
                high=step.median * share.high / share.median,
            )
        count = min(session.batches.batch_size, session.batches.count)
        speed = count / step.median
        return Figures(
            label=self.label,
            device=str(self.device),
            device_name=devices.device_label(self.device),
            batch=count,
            epoch_images=session.batches.count,
            micro_batch=session.micro_batch,
            precision=session.precision,
            threads=torch.get_num_threads(),
            initial=self.first,
            steps=self.steps,
            pieces=self.pieces if self.long else [],
            step=step,
            validation=Quartiles.of(self.validation),
            split={name: statistics.median(parts[name] for parts in self.splits) for name in PARTS},
            images_per_second=speed,
            gflops=3 * session.cost.mflop * speed / 1000,
            gemm_gflops=gemm,
            peak_memory=devices.peak_memory(self.device),
            compile_time=session.compile_time,
            parity=parity,
            epoch_time=step.median * session.batches.count / count,
        )


def run_piece(session: Session, images: Tensor, labels: Tensor) -> float:
    """Run the first micro-batch of a batch forward and backward, and return the seconds; gradients are added up."""
    images, labels = images[: session.micro_batch], labels[: session.micro_batch]
    devices.synchronize(session.device)
    start = clock()
    with session.autocast():
        logits = session.forward(session.normalize(images))
    torch.autograd.backward(F.cross_entropy(logits.float(), labels))
    devices.synchronize(session.device)
    return clock() - start


class _Watch:
    """Times of the calls of some functions."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: dict[str, list[float]] = {name: [] for name in ("data", "forward", "optimizer")}
        self.starts: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Any:
        """Return ``function``, timed under ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            devices.synchronize(self._device)
            start = clock()
            result = function(*args, **kwargs)
            devices.synchronize(self._device)
            self.times[name].append(clock() - start)
            if name == "forward":
                self.starts.append(start)
            return result

        return call


def parity_batch(session: Session) -> tuple[Tensor, Tensor]:
    """Return uint8 ``[n, C, H, W]`` images and int64 ``[n]`` labels on the CPU, the same for every device."""
    examples, index = session.splits.test.examples, session.splits.test.index[:PARITY_IMAGES]
    return examples.images[index], examples.labels[index]


def logits_and_gradients(
    model: nn.Module, session: Session, images: Tensor, labels: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Return logits, and the gradients of all parameters in a row, both float64 and flat on the CPU.

    Dropout is off and BatchNorm uses its averages, so that nothing but arithmetic tells devices apart.
    """
    device = next(model.parameters()).device
    model.eval()
    x = session.normalize(images.to(device))
    with devices.autocast(device, precision):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), labels.to(device))
    grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    session.train_mode()
    flat = torch.cat([grad.detach().cpu().double().flatten() for grad in grads if grad is not None])
    return logits.detach().cpu().double().flatten(), flat


def reference_of(lane: Lane, config: TrainConfig, data: tuple[Dataset, Splits]) -> tuple[Tensor, Tensor]:
    """Return logits and gradients of the initial weights of ``lane`` in fp32 on the CPU."""
    on_cpu = dataclasses.replace(config, device="cpu", precision="fp32", compile=False)
    session = open_session(on_cpu, pretrained=False, data=data)
    session.model.load_state_dict(lane.initial_weights)
    images, labels = parity_batch(session)
    return logits_and_gradients(session.model, session, images, labels, "fp32")


def gemm_peak(session: Session, seconds: float, shapes: int = 4) -> float:
    """Return the GFLOP/s that matrix products reach at most on the device, of the shapes that cost the network most.

    A linear layer on tokens ``[B, N, K]`` is a product of ``[B N, K]`` and ``[K, M]``; a convolution that of its unfolded input
    with its kernels (im2col), a group at a time.

    Args:
        session: whose network, micro-batch and precision.
        seconds: how long each shape is timed.
        shapes: how many different ones are tried.
    """
    found: dict[tuple[int, int, int], float] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            m, k, n = output.numel() // module.out_features, module.in_features, module.out_features
        elif isinstance(module, nn.Conv2d):
            n, k = module.out_channels // module.groups, module.weight[0].numel()
            m = output.numel() // module.out_channels
        else:
            return
        found[(m, k, n)] = found.get((m, k, n), 0.0) + 2.0 * m * k * n

    hooks = [module.register_forward_hook(note) for module in session.model.modules()]
    images, _ = session.batches.batch(0, 0)
    try:
        session.model.eval()
        with torch.no_grad(), session.autocast():
            session.model(session.normalize(images[: session.micro_batch]))
    finally:
        session.train_mode()
        for hook in hooks:
            hook.remove()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(session.precision, torch.float32)
    best = 0.0
    for m, k, n in sorted(found, key=lambda shape: -found[shape])[:shapes]:
        a = torch.randn(m, k, device=session.device).to(dtype)
        b = torch.randn(k, n, device=session.device).to(dtype)
        torch.mm(a, b)
        devices.synchronize(session.device)
        times: list[float] = []
        end = clock() + seconds
        while len(times) < 3 or clock() < end:
            start = clock()
            torch.mm(a, b)
            devices.synchronize(session.device)
            times.append(clock() - start)
        best = max(best, 2.0 * m * k * n / statistics.median(times) / 1e9)
    return best


def choose_devices(names: Sequence[str], skip_unavailable: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return torch's name of each device that is here, and why the others are not, both by the name asked for.

    Args:
        names: of devices; none means all that are here.
        skip_unavailable: do not refuse those that are not here.

    Raises:
        RequestError: an unknown name, one given twice, one that is not here unless those are skipped, or none that is.
    """
    chosen: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names or devices.available_devices():
        try:
            device = str(devices.resolve_device(name, "device"))
        except devices.DeviceUnavailable as error:
            if not skip_unavailable:
                raise RequestError(f"{error}; --skip-unavailable leaves it out") from None
            device, missing[name] = name, "not available here"
        if name in chosen or device in chosen.values():
            raise RequestError(f"device {device} is named twice; each is measured once")
        chosen[name] = device
    if len(missing) == len(chosen):
        there = ", ".join(devices.available_devices())
        raise RequestError(f"none of {', '.join(names)} is available here; available: {there}")
    return {name: device for name, device in chosen.items() if name not in missing}, missing


def open_lanes(
    config: TrainConfig,
    names: Sequence[tuple[str, str]],
    observer: Observer = SILENT,
) -> list[Lane]:
    """Return a lane for each ``(label, device)`` of ``names``; all have the same weights and see the same batches.

    Raises:
        RequestError: data, network or precision cannot be had as asked.
    """
    data = bench_data(config, observer)
    return [Lane(label, dataclasses.replace(config, device=device), data, observer) for label, device in names]


def measure_lanes(lanes: Sequence[Lane], budget: float, message: Callable[[str], None]) -> list[Figures]:
    """Measure all lanes in turns, a step of each at a time, so that a machine that slows down slows all alike.

    Args:
        lanes: from :func:`open_lanes`.
        budget: seconds for each.
        message: told how it goes.

    Raises:
        RunFailed: memory ran out.
    """
    first = lanes[0]
    for lane in lanes:  # before anything else runs on the device: the first piece is to be a cold one
        with lane.memory():
            lane.warm_up()
        message(f"{lane.label}: warm; a step is {lane.count} pieces of about {lane.piece:.2f} s")
    with first.memory():
        reference = reference_of(first, first.session.config, (first.session.dataset, first.session.splits))
    parities, gemms = [], []
    for lane in lanes:
        with lane.memory():
            parities.append(lane.parity(reference))
            gemms.append(gemm_peak(lane.session, GEMM_SECONDS))
    left, turn, watch = list(lanes), 0, devices.CpuWatch()
    while left:
        for lane in left if turn % 2 == 0 else left[::-1]:
            with lane.memory():
                lane.step()
                if len(lane.validation) < 5:
                    lane.validate()
            if len(lane.steps) in (1, 3, 10, 30, 100):
                message(f"{lane.label}: {len(lane.steps)} steps, {statistics.median(lane.steps):.3f} s each")
        left = [lane for lane in left if not lane.done(budget)]
        turn += 1
    others = watch.others()
    for lane in lanes:
        with lane.memory():
            lane.split()
    figures = [lane.figures(gemm, parity) for lane, gemm, parity in zip(lanes, gemms, parities, strict=True)]
    return [dataclasses.replace(each, others=others) for each in figures]


def bench_devices(
    plan: DevicePlan,
    chosen: Mapping[str, str],
    runs_dir: Path,
    observer: Observer,
) -> dict[str, Figures]:
    """Measure devices, train on each of them where ``plan`` says so, and return the figures by name.

    Args:
        plan: what is measured.
        chosen: devices by name, from :func:`choose_devices`.
        runs_dir: of the training runs.
        observer: receives every event.

    Raises:
        RequestError: data, network or precision cannot be had as asked.
        RunFailed: memory ran out while measuring. A training that fails is told in the figures.
        Interrupted: see :func:`vitctl.training.start.start_run`.
    """
    if plan.trains:  # what training would be refused for, before the measuring
        for device in chosen.values():
            check_config(dataclasses.replace(plan.config, device=device), SILENT)  # each run reports its doubts
        open_data(plan.config, observer)
    lanes = open_lanes(plan.config, list(chosen.items()), observer)
    measured = {each.label: each for each in measure_lanes(lanes, plan.seconds, observer.message)}
    del lanes
    for name, device in chosen.items() if plan.trains else ():
        config = dataclasses.replace(plan.config, device=device)
        try:
            measured[name].trained = start_run(config, runs_dir, None, observer)
        except RunFailed as error:  # the others' figures are of use without it
            observer.message(f"warning: {name}: {error}")
            measured[name].failed = str(error)
    return measured
