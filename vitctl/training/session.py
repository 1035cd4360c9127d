"""The live objects of a run: device, data, network, optimizer, schedule, weight average."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.data.batches import Normalize, TrainBatches
from vitctl.data.dataset import Dataset, Splits
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.models.count import ForwardCost, count_parameters
from vitctl.models.pretrained import train_head
from vitctl.optim.schedule import Schedule
from vitctl.registry import format_spec
from vitctl.training.checkpoint import FORMAT, Checkpoint
from vitctl.training.ema import WeightAverage


@dataclass
class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        epoch: epochs completed.
        step: optimizer steps taken.
        step_in_epoch: steps taken of the epoch under way.
        loss_sum: of the epoch under way, over its images.
        correct: of the epoch under way.
        seen: images of the epoch under way that ``loss_sum`` and ``correct`` count.
        train_seconds: time of the epoch under way spent training.
        data_seconds: of these, spent getting and augmenting batches.
        busy_seconds: of these, spent in forward, backward and optimizer.
        best_val_acc: the best held-out accuracy, in percent.
        best_epoch: when that was.
        seconds: wall time of all sessions.
        recorded_step: the step of the last record; behind ``step`` while an epoch is under way or not yet evaluated.
        stopped_early: by ``--patience``.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    train_seconds: float = 0.0
    data_seconds: float = 0.0
    busy_seconds: float = 0.0
    best_val_acc: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    recorded_step: int = 0
    stopped_early: bool = False

    def begin_epoch(self) -> None:
        """Zero what counts within an epoch."""
        self.step_in_epoch = self.correct = self.seen = 0
        self.loss_sum = self.train_seconds = self.data_seconds = self.busy_seconds = 0.0


class Tally:
    """Loss and hits since the last read, summed on the device, as reading them each step would wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.int64)
        self.count = 0

    def add(self, loss_sum: torch.Tensor, correct: torch.Tensor, count: int) -> None:
        """Add a step's sums, which stay on the device, over its ``count`` images."""
        self.loss_sum += loss_sum
        self.correct += correct
        self.count += count

    def read(self, progress: Progress) -> None:
        """Move the sums into ``progress``, waiting for the device."""
        progress.loss_sum += self.loss_sum.item()
        progress.correct += int(self.correct.item())
        progress.seen += self.count
        self.count = 0
        self.loss_sum.zero_()
        self.correct.zero_()


@dataclass
class Session:
    """Everything that the loop needs, on its device and ready.

    Attributes:
        config: the settings.
        device: where the work is done.
        dataset: with its images.
        splits: which images train, select and test.
        batches: training batches.
        normalize: from uint8 to the network's input.
        model: the network.
        average: of its weights, or None.
        optimizer: over its parameters.
        schedule: of the learning rate.
        micro_batch: images run at once in training.
        eval_batch: images run at once in evaluation.
        total_steps: length of the run.
        cost: of one image's way through the network.
        precision: of the network's arithmetic: ``fp32``, ``bf16`` or ``fp16``.
        scaler: of the fp16 loss, or None.
        forward: the network as the training step calls it, compiled where that was asked for.
        compile_time: seconds that compiling took; None where nothing is compiled.
        pretrained: what was loaded into the network before training, for the user, or None.
        progress: how far it is.
        history: one record per epoch done.
        tally: figures not yet read from the device.
        last_saved: the newest good checkpoint, or None.
    """

    config: TrainConfig
    device: torch.device
    dataset: Dataset
    splits: Splits
    batches: TrainBatches
    normalize: Normalize
    model: nn.Module
    average: WeightAverage | None
    optimizer: Optimizer
    micro_batch: int
    eval_batch: int
    cost: ForwardCost
    precision: str = "fp32"
    scaler: torch.amp.GradScaler | None = None
    forward: Callable[[torch.Tensor], torch.Tensor] = field(init=False)
    schedule: Schedule = field(init=False)
    total_steps: int = field(init=False)
    compile_time: float | None = None
    pretrained: str | None = None
    progress: Progress = field(default_factory=Progress)
    history: list[dict[str, Any]] = field(default_factory=list)
    tally: Tally = field(init=False)
    last_saved: Path | None = None

    def __post_init__(self) -> None:
        self.tally = Tally(self.device)
        self.forward = self.model
        self.set_length(run_length(self.config, self.steps_per_epoch))

    def set_length(self, total_steps: int) -> None:
        """Make the run ``total_steps`` optimizer steps long, and fit the schedule and the shares of the run to it."""
        config = self.config
        self.total_steps = total_steps
        self.batches.mixed_steps = mixed_steps(config, total_steps)
        self.schedule = Schedule(
            kind=config.schedule,
            total_steps=total_steps,
            warmup_steps=math.ceil(config.warmup * total_steps) if config.warmup else 0,
            warmdown_steps=round(config.warmdown * total_steps),
            steps_per_epoch=self.steps_per_epoch if config.schedule_per == "epoch" else 0,
        )

    def autocast(self) -> torch.autocast:
        """Return the context that the network's forward pass runs in."""
        return devices.autocast(self.device, self.precision)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch."""
        return self.batches.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the run, the last one perhaps cut short by ``--max-steps``."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that are evaluated and exported: the average where one is kept."""
        return self.average.model if self.average else self.model

    def train_mode(self) -> None:
        """Put the network in training mode, or its head alone where the rest is frozen."""
        if self.config.freeze_backbone:
            train_head(self.model)
        else:
            self.model.train()

    def lr(self, step: int) -> float:
        """Return the learning rate at ``step``, counted from 0, of parameters that have no scale of their own."""
        return self.config.lr * self.schedule.factor(step)

    def checkpoint(self) -> Checkpoint:
        """Return the state as :func:`vitctl.training.checkpoint.save_checkpoint` takes it."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "model": self.model.state_dict(),
            "ema": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": asdict(self.schedule),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "rng": devices.rng_state(self.device),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "history": copy.deepcopy(self.history),
            "classes": list(self.dataset.classes),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the state that ``checkpoint`` holds.

        Raises:
            RequestError: the checkpoint is of another network, data set or optimizer.
        """
        check_same_run(self.config, list(self.dataset.classes), checkpoint)
        try:
            self.model.load_state_dict(checkpoint["model"])
            if self.average:
                self.average.model.load_state_dict(checkpoint["ema"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if self.scaler and checkpoint["scaler"]:
                self.scaler.load_state_dict(checkpoint["scaler"])
            self.progress = Progress(**checkpoint["progress"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise RequestError(
                f"the checkpoint does not fit this run ({str(error).splitlines()[0]}); is it another run's?"
            ) from error
        devices.set_rng_state(checkpoint["rng"], self.device)
        self.tally = Tally(self.device)  # steps taken before and not read yet are no part of that state
        self.history = list(checkpoint["history"])
        if self.progress.step < self.total_steps:  # the record of an epoch cut short, which will now be completed
            self.history = [row for row in self.history if row["epoch"] <= self.progress.epoch]


@contextlib.contextmanager
def untouched(session: Session) -> Iterator[None]:
    """Leave what training computes from as it was, whatever runs within: gradients, buffers and random states.

    Weights are not restored: nothing that runs within may take an optimizer step.
    """
    model, device = session.model, session.device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    random = devices.rng_state(device)
    try:
        yield
    finally:
        model.zero_grad()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        devices.set_rng_state(random, device)


def describe(config: TrainConfig, classes: int) -> str:
    """Return network, size and classes in a few words, for messages."""
    changed = dict(config.net_options)
    if config.net in MODELS:
        options = MODELS[config.net].options
        changed = {name: value for name, value in changed.items() if options[name].default != value}
    return f"{format_spec(config.net, changed)} for {config.size}-px images of {classes} classes"


def check_same_run(config: TrainConfig, classes: list[str], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another network, data set or optimizer, saying what it is."""
    stored = TrainConfig.from_dict(checkpoint["config"])
    theirs = describe(stored, len(checkpoint["classes"])), stored.opt, bool(stored.ema)
    ours = describe(config, len(classes)), config.opt, bool(config.ema)
    if theirs != ours:
        names = [f"{net}, --opt {opt}{', with EMA' if ema else ''}" for net, opt, ema in (theirs, ours)]
        raise RequestError(f"the checkpoint is of {names[0]}; this run is {names[1]}: restore the run's own checkpoint")
    if list(checkpoint["classes"]) != classes:
        raise RequestError(
            "the data set's classes are not those that the checkpoint was trained on; was --data-dir changed?"
        )


def given_length(config: TrainConfig, steps_per_epoch: int) -> int | None:
    """Return the optimizer steps that ``--epochs`` and ``--max-steps`` allow; None where neither says."""
    lengths = [config.epochs * steps_per_epoch if config.epochs else None, config.max_steps]
    return min((length for length in lengths if length is not None), default=None)


def mixed_steps(config: TrainConfig, total_steps: int) -> int:
    """Return how many steps, the first of the run, have their images mixed where mixup or CutMix is on."""
    return total_steps - round(config.mix_off * total_steps)


def run_length(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a run; where ``--max-time`` alone says when to stop, an epoch until it is fitted."""
    return given_length(config, steps_per_epoch) or steps_per_epoch


def piece_sizes(count: int, bs: int, micro_batch: int, *, joined: bool) -> list[int]:
    """Return the sizes of the pieces that the ``count`` images of a step are run in.

    Args:
        count: images of the step, up to ``bs`` times the accumulated batches.
        bs: no piece spans two batches.
        micro_batch: the most images in a piece.
        joined: a last batch of one image joins the batch before, as BatchNorm cannot normalise one.
    """
    wholes, rest = divmod(count, bs)
    chunks = [bs] * wholes + ([rest] if rest else [])
    if joined and rest == 1 and wholes:
        chunks[-2:] = [bs + 1]
        return chunks
    sizes: list[int] = []
    for chunk in chunks:
        sizes += [micro_batch] * (chunk // micro_batch) + ([chunk % micro_batch] if chunk % micro_batch else [])
    return sizes


def parameters(session: Session) -> int:
    """Return how many parameters the network has."""
    return count_parameters(session.model)


def learning(session: Session) -> int:
    """Return how many of them learn."""
    return sum(parameter.numel() for parameter in session.model.parameters() if parameter.requires_grad)
