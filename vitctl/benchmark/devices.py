"""Measure the cost of a training step, the one that ``train`` takes, on several devices in turn."""

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
from vitctl.benchmark.parity import TOLERANCES, arithmetic, logits_and_gradients, relative_difference, step_batch
from vitctl.benchmark.report import format_seconds
from vitctl.config import ORIGINAL_BATCH, TrainConfig
from vitctl.data.dataset import Dataset, Examples, Splits, Subset
from vitctl.errors import RequestError, RunFailed
from vitctl.observer import SILENT, Observer
from vitctl.registry import or_list
from vitctl.training.evaluate import evaluate
from vitctl.training.loop import train_step
from vitctl.training.preflight import check_config
from vitctl.training.session import Session, untouched
from vitctl.training.setup import open_data, open_session
from vitctl.training.start import start_run
from vitctl.units import plural

EPOCH, TESTED = 50_000, 1_000
"""Number of generated training images, the same as CIFAR's, and of generated test images."""

MIN_STEPS, LONG_STEP = 3, 5.0
"""Minimum number of measured steps; seconds above which a step is long, so that only one micro-batch warms up."""

WARM_UP = 2
"""Steps that are not counted if steps are short."""

MIN_SECONDS = 10.0
"""Minimum seconds before a median counts as stable, as a machine's speed changes from second to second."""

STABLE = 0.005
"""Relative error below which a median is stable, estimated as the interquartile range over the root of the count."""

GEMM_SECONDS = 0.3
"""Seconds for which matrix products of each shape are timed."""

clock = time.perf_counter
"""Clock for measuring, in seconds; tests replace it."""


def generated_data(config: TrainConfig) -> tuple[Dataset, Splits]:
    """Generate random images that replace CIFAR's, the same for every device.

    Images are uint8 ``[n, 3, 32, 32]`` and labels int64. There are ``--limit-train`` training images, at most
    :data:`EPOCH`, and :data:`TESTED` test images.
    """
    classes = GENERATED[config.dataset]
    generator = torch.Generator().manual_seed(config.seed)

    def generate(count: int) -> Examples:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Examples(images, torch.randint(0, classes, (count,), generator=generator))

    train = generate(min(EPOCH, config.limit_train or EPOCH))
    return dataset_of(config.dataset, classes, train, generate(TESTED))


def dataset_of(name: str, classes: int, train: Examples, test: Examples) -> tuple[Dataset, Splits]:
    """Make a data set called ``name``, without held-out images, from uint8 images ``[n, 3, 32, 32]``."""
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
    """Return the data to measure on: generated images instead of CIFAR, and other data sets themselves.

    Raises:
        RequestError: the data is not available.
    """
    return generated_data(config) if config.dataset in GENERATED else open_data(config, observer)


class Lane:
    """A device under measurement, with a training session of its own that is never saved.

    Args:
        label: name of the device in the report.
        config: settings, including the device.
        data: the data to train on.
        observer: receives messages about compilation.

    Attributes:
        cold_start: extra seconds that the first micro-batch took.
        micro_batch_time: seconds of a warm micro-batch, forward and backward.
        taken: steps taken, including those that are not counted.
        first: seconds of the first step, including :attr:`cold_start`.
        steps: seconds of each counted step.
        pieces: seconds of each micro-batch of the counted steps.
        splits: seconds of each of :data:`PARTS`, for each step whose parts were timed.
        validation: seconds of each evaluation of 100 images.
        spent: seconds measured in total.
    """

    def __init__(self, label: str, config: TrainConfig, data: tuple[Dataset, Splits], observer: Observer) -> None:
        self.label = label
        self.session = open_session(config, observer, pretrained=False, data=data)
        self.device = self.session.device
        self.initial_weights = {
            name: value.detach().cpu().clone() for name, value in self.session.model.state_dict().items()
        }
        self.session.set_length(max(self.session.total_steps, 10_000))
        self.cold_start = 0.0
        self.micro_batch_time = 0.0
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
        """Whether the device runs asynchronously, so that reading the clock in the middle of a step slows it."""
        return not devices.policy_of(self.device).free_reads

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of a step."""
        return -(-self.session.batches.batch_size // self.session.micro_batch)

    @property
    def long(self) -> bool:
        """Whether steps are too long to spend complete ones on the warm-up."""
        return self.micro_batch_time * self.micro_batches > LONG_STEP

    def memory(self) -> AbstractContextManager[None]:
        """Return a context that turns running out of memory into :class:`vitctl.errors.OutOfMemory`."""
        session = self.session
        return devices.memory_watched(self.device, session.batches.batch_size, session.micro_batch)

    def warm_up(self) -> None:
        """Run one micro-batch forward and backward, twice, without changing the state of training."""
        images, labels = self.session.batches.batch(0, 0)
        with untouched(self.session):
            first, self.micro_batch_time = (run_micro_batch(self.session, images, labels) for _ in range(2))
        self.cold_start = max(0.0, first - self.micro_batch_time)
        self.spent += first + self.micro_batch_time

    def step(self) -> None:
        """Take one step and record its time; the first :data:`WARM_UP` are recorded only if steps are long."""
        seconds, stopwatch = self._take(timed_parts=not self.asynchronous)
        self.spent += seconds
        self.taken += 1
        if self.taken == 1:
            self.first = seconds + self.cold_start
        if self.long or self.taken > WARM_UP:
            self.steps.append(seconds)
            if stopwatch:
                self._record_parts(stopwatch, seconds)

    def time_parts(self) -> None:
        """Time the parts of further steps on an asynchronous device, where :meth:`step` cannot."""
        for _ in range(MIN_STEPS if self.asynchronous else 0):
            seconds, stopwatch = self._take(timed_parts=True)
            assert stopwatch is not None
            self._record_parts(stopwatch, seconds)

    def _take(self, *, timed_parts: bool) -> tuple[float, _Stopwatch | None]:
        """Take a step over a full batch, and return its seconds and, with ``timed_parts``, the times of its parts."""
        session, progress = self.session, self.session.progress
        if progress.step_in_epoch >= max(1, session.batches.count // session.batches.batch_size):
            progress.epoch += 1  # skips the last step of an epoch, which may have fewer images
            progress.begin_epoch()
        devices.synchronize(self.device)
        start = clock()
        with self._timed_calls() if timed_parts else contextlib.nullcontext() as stopwatch:
            train_step(session)
            devices.synchronize(self.device)
        return clock() - start, stopwatch

    def _record_parts(self, stopwatch: _Stopwatch, seconds: float) -> None:
        parts = {name: sum(stopwatch.times[name]) for name in ("data", "forward", "optimizer")}
        parts["backward"] = seconds - sum(parts.values())
        self.splits.append(parts)
        self.pieces += [after - before for before, after in pairwise(stopwatch.starts)]

    @contextlib.contextmanager
    def _timed_calls(self) -> Iterator[_Stopwatch]:
        """Time the session's calls of batches, normalization, network and optimizer."""
        session, stopwatch = self.session, _Stopwatch(self.device)
        batch, normalize, forward, step = (
            session.batches.batch,
            session.normalize,
            session.forward,
            session.optimizer.step,
        )
        session.batches.batch = stopwatch.timed("data", batch)  # type: ignore[method-assign]
        session.normalize = stopwatch.timed("data", normalize)
        session.forward = stopwatch.timed("forward", forward)
        session.optimizer.step = stopwatch.timed("optimizer", step)  # type: ignore[method-assign]
        try:
            yield stopwatch
        finally:
            session.batches.batch = batch  # type: ignore[method-assign]
            session.normalize = normalize
            session.forward = forward
            session.optimizer.step = step  # type: ignore[method-assign]

    def validate(self) -> None:
        """Time the evaluation of 100 images."""
        session, index = self.session, self.session.splits.test.index[:ORIGINAL_BATCH]
        subset = Subset(session.splits.test.examples, index)
        devices.synchronize(self.device)
        start = clock()
        evaluate(session.model, subset, session.normalize, self.device, session.eval_batch, precision=session.precision)
        devices.synchronize(self.device)
        self.validation.append((clock() - start) * ORIGINAL_BATCH / len(index))
        session.train_mode()

    def done(self, budget: float) -> bool:
        """Return whether the median is stable, or another step would exceed ``budget`` seconds."""
        if len(self.steps) < MIN_STEPS:
            return False
        quartiles = Quartiles.of(self.steps)
        stable = len(self.steps) >= 12 and quartiles.spread / len(self.steps) ** 0.5 < STABLE
        stable = stable and self.spent >= min(budget, MIN_SECONDS)
        return stable or self.spent + quartiles.median > budget

    # -- results -----------------------------------------------------------------------------------------------------

    def parity(self, reference: tuple[Tensor, Tensor]) -> Parity:
        """Compare a step's logits and gradients with ``reference``, from :func:`reference_of`.

        In evaluation mode, that is, without dropout and with BatchNorm's running averages, devices differ only in their
        arithmetic.
        """
        session = self.session
        session.model.eval()
        ours = logits_and_gradients(session, *step_batch(session))
        session.train_mode()
        logits, gradients = (relative_difference(mine, theirs) for mine, theirs in zip(ours, reference, strict=True))
        return Parity(logits, gradients, TOLERANCES[arithmetic(session)])

    def figures(self, gemm: float, parity: Parity) -> Figures:
        """Return the measurements.

        Args:
            gemm: result of :func:`gemm_peak`.
            parity: result of :meth:`parity`.
        """
        session = self.session
        step = Quartiles.of(self.steps)
        if self.long and len(self.pieces) > 1:
            # A few steps give no useful quartiles; their many micro-batches do.
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


def run_micro_batch(session: Session, images: Tensor, labels: Tensor) -> float:
    """Run the first micro-batch of a batch forward and backward, and return the seconds; gradients accumulate."""
    images, labels = images[: session.micro_batch], labels[: session.micro_batch]
    devices.synchronize(session.device)
    start = clock()
    with session.autocast():
        logits = session.forward(session.normalize(images))
    torch.autograd.backward(F.cross_entropy(logits.float(), labels))
    devices.synchronize(session.device)
    return clock() - start


class _Stopwatch:
    """Times calls of functions by name.

    Attributes:
        times: seconds of each call.
        starts: when each call of ``forward`` started.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: dict[str, list[float]] = {name: [] for name in ("data", "forward", "optimizer")}
        self.starts: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Any:
        """Return a wrapper of ``function`` that adds the time of each call to ``times[name]``."""

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


def reference_of(lane: Lane, config: TrainConfig, data: tuple[Dataset, Splits]) -> tuple[tuple[Tensor, Tensor], float]:
    """Return the logits and gradients of a lane's initial weights, in fp32 on the CPU, and the seconds they took."""
    on_cpu = dataclasses.replace(config, device="cpu", precision="fp32", compile=False, micro_batch="auto")
    session = open_session(on_cpu, pretrained=False, data=data)
    session.model.load_state_dict(lane.initial_weights)
    session.model.eval()
    start = clock()
    return logits_and_gradients(session, *step_batch(session)), clock() - start


def gemm_peak(session: Session, seconds: float, shapes: int = 4) -> float:
    """Return the highest GFLOP/s of matrix products with the shapes that cost the network most.

    A linear layer on tokens ``[B, N, K]`` is a product of ``[B N, K]`` and ``[K, M]``. A convolution is a product of its
    unfolded input and its kernels (im2col), one for each group.

    Args:
        session: provides the network, the micro-batch, the precision and the device.
        seconds: how long each shape is timed.
        shapes: number of shapes to time.
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
    """Look up the devices to measure.

    Args:
        names: names from the command line; empty for all available devices.
        skip_unavailable: skip unavailable devices instead of refusing them.

    Returns:
        torch's name of each available device, and why each other device is missing, both by the name in ``names``.

    Raises:
        RequestError: a name is unknown or given twice, or a device is not available and not skipped, or all are skipped.
    """
    chosen: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names or devices.available_devices():
        try:
            device = str(devices.resolve_device(name, "device"))
        except devices.DeviceUnavailable as error:
            if not skip_unavailable:
                skip = ", or add --skip-unavailable to measure only the available devices" if len(names) > 1 else ""
                raise RequestError(error.message, hint=f"{error.hint}{skip}") from None
            device, missing[name] = name, "not available"
        if name in chosen or device in chosen.values():
            raise RequestError(f"device {device} is given twice", hint=f"use {device} only once")
        chosen[name] = device
    if len(missing) == len(chosen):
        raise RequestError(
            f"none of {', '.join(names)} is available on this machine",
            hint=f"use {or_list(devices.available_devices())}",
        )
    return {name: device for name, device in chosen.items() if name not in missing}, missing


def open_lanes(
    config: TrainConfig,
    names: Sequence[tuple[str, str]],
    observer: Observer = SILENT,
) -> list[Lane]:
    """Open a lane for each ``(label, device)`` of ``names``, all with the same weights and batches.

    Raises:
        RequestError: the data, the network or the precision is not available.
    """
    data = bench_data(config, observer)
    return [Lane(label, dataclasses.replace(config, device=device), data, observer) for label, device in names]


def measure_lanes(lanes: Sequence[Lane], budget: float, message: Callable[[str], None]) -> list[Figures]:
    """Measure all lanes, one step of each in turn, so that a machine that slows down affects all alike.

    Args:
        lanes: result of :func:`open_lanes`.
        budget: seconds for each lane.
        message: receives progress messages.

    Raises:
        OutOfMemory: a device is out of memory.
    """
    first = lanes[0]
    for lane in lanes:  # before anything else runs on the device, so that the first micro-batch is a cold start
        with lane.memory():
            lane.warm_up()
        seconds = format_seconds(lane.micro_batches * lane.micro_batch_time)
        parts = f" ({lane.micro_batches} micro-batches)" if lane.micro_batches > 1 else ""
        message(f"{lane.label}: warmed up; a step takes about {seconds}{parts}")
    with first.memory():
        reference, cpu_step = reference_of(first, first.session.config, (first.session.dataset, first.session.splits))
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
                median = format_seconds(statistics.median(lane.steps))
                message(f"{lane.label}: {plural(len(lane.steps), 'step')} measured, median {median}")
        left = [lane for lane in left if not lane.done(budget)]
        turn += 1
    others = watch.others()
    for lane in lanes:
        with lane.memory():
            lane.time_parts()
    figures = [lane.figures(gemm, parity) for lane, gemm, parity in zip(lanes, gemms, parities, strict=True)]
    return [dataclasses.replace(each, others=others, cpu_step=cpu_step) for each in figures]


def bench_devices(
    plan: DevicePlan,
    chosen: Mapping[str, str],
    runs_dir: Path,
    observer: Observer,
) -> dict[str, Figures]:
    """Measure devices, then train a run on each if the plan includes that, and return the figures by name.

    Args:
        plan: what to measure.
        chosen: devices by name, from :func:`choose_devices`.
        runs_dir: folder for the training runs.
        observer: receives every event.

    Raises:
        RequestError: the data, the network or the precision is not available.
        OutOfMemory: a device ran out of memory during the measurement. If a run fails, its figures give the reason.
        Interrupted: see :func:`vitctl.training.start.start_run`.
    """
    if plan.trains:  # refuse what a run would refuse before the measurement starts
        for device in chosen.values():
            check_config(dataclasses.replace(plan.config, device=device), SILENT)  # each run prints its own warnings
        open_data(plan.config, observer)
    lanes = open_lanes(plan.config, list(chosen.items()), observer)
    measured = {each.label: each for each in measure_lanes(lanes, plan.seconds, observer.message)}
    del lanes
    for name, device in chosen.items() if plan.trains else ():
        config = dataclasses.replace(plan.config, device=device)
        try:
            measured[name].trained = start_run(config, runs_dir, None, observer)
        except RunFailed as error:  # the other figures are still useful
            observer.message(f"warning: {name}: {error.message}")
            measured[name].failed = error.message
    return measured
