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
from vitctl.config import TrainConfig, split_warmup
from vitctl.data.batches import Normalize, TrainBatches
from vitctl.data.dataset import Dataset, Splits
from vitctl.data.layout import class_name
from vitctl.data.manifest import DATA_SHA256
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.models.count import ForwardCost, count_parameters
from vitctl.models.heads import train_head
from vitctl.optim.flat import FlatParameters
from vitctl.optim.schedule import Schedule
from vitctl.registry import format_spec
from vitctl.training.checkpoint import FORMAT, Checkpoint
from vitctl.training.ema import WeightAverage


@dataclass
class Progress:
    """Progress of a run, stored in its checkpoints.

    Attributes:
        epoch: completed epochs.
        step: optimizer steps taken.
        step_in_epoch: steps taken in the current epoch.
        loss_sum: sum of the losses of the images seen in the current epoch.
        correct: number of correct predictions among them.
        seen: number of these images.
        train_seconds: training time of the current epoch.
        data_seconds: part of it spent on loading and augmenting batches.
        busy_seconds: part of it spent on forward pass, backward pass and optimizer.
        best_val_acc: best held-out accuracy, in percent.
        best_epoch: epoch with that accuracy, counted from 1; 0 for none.
        seconds: wall time of all sessions.
        recorded_step: step of the last record; less than ``step`` until the current epoch is evaluated.
        stopped_early: whether ``--patience`` ended the run.
        first_loss: loss of the first step, before any update; None in checkpoints of earlier versions.
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
    first_loss: float | None = None

    def begin_epoch(self) -> None:
        """Reset the figures of the current epoch."""
        self.step_in_epoch = self.correct = self.seen = 0
        self.loss_sum = self.train_seconds = self.data_seconds = self.busy_seconds = 0.0


class Tally:
    """Sums loss and correct predictions on the device, as reading them at each step would wait for it.

    Attributes:
        count: number of images whose sums were not read yet.
        loss_total: sum of the losses read in this session.
        seen_total: number of their images.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.int64)
        self.count = 0
        self.loss_total = 0.0
        self.seen_total = 0
        self._checked = torch.zeros((), device=device)
        self._finite_steps = torch.zeros((), device=device, dtype=torch.int64)
        self._watched_steps = 0
        self._first_step = 0

    def add(self, loss_sum: torch.Tensor, correct: torch.Tensor, count: int) -> None:
        """Add the sums of a step over its ``count`` images."""
        self.loss_sum += loss_sum
        self.correct += correct
        self.count += count

    def watch(self, step: int, *values: torch.Tensor) -> None:
        """Count the steps before the first whose ``values``, a loss and perhaps a norm, at least 0, are not finite.

        Args:
            step: the step, counted from 1.
            values: float scalars.
        """
        if not self._watched_steps:
            self._first_step = step
        for value in values:
            self._checked += value  # once the sum is not finite, it remains so
        self._finite_steps += self._checked < math.inf
        self._watched_steps += 1

    def read(self, progress: Progress) -> int | None:
        """Wait for the device and move the sums into ``progress``.

        Returns:
            The first step since the last read that :meth:`watch` found not finite, counted from 1; None for none.
        """
        finite = int(self._finite_steps.item()) if self._watched_steps else 0
        failed = self._first_step + finite if finite < self._watched_steps else None
        self._watched_steps = 0
        self._finite_steps.zero_()
        self._checked.zero_()
        loss_sum = self.loss_sum.item()
        progress.loss_sum += loss_sum
        progress.correct += int(self.correct.item())
        progress.seen += self.count
        self.loss_total += loss_sum
        self.seen_total += self.count
        self.count = 0
        self.loss_sum.zero_()
        self.correct.zero_()
        return failed


@dataclass
class Session:
    """Everything that the training loop needs.

    Attributes:
        config: the settings.
        device: device of the network.
        dataset: the data set.
        splits: its training, held-out and test images.
        batches: training batches.
        normalize: converts uint8 images to the network's input.
        model: the network.
        average: moving average of its weights, or None.
        optimizer: the optimizer of its parameters.
        flat: the trained parameters in one buffer, or None where torch has foreach kernels.
        micro_batch: images per forward pass in training.
        eval_batch: images per forward pass in evaluation.
        cost: cost of a forward pass of one image.
        class_weights: weight of each class in the training loss, float32 ``[K]``, or None for equal weights.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        scaler: scaler of the fp16 loss, or None.
        forward: the network as the training step calls it, compiled with ``--compile``.
        schedule: learning-rate schedule.
        total_steps: optimizer steps of the whole run.
        compile_time: seconds that compilation took, or None.
        pretrained: message about the pretrained weights that were loaded, or None.
        progress: progress of the run.
        history: the record of each epoch so far.
        tally: sums not yet read from the device.
        last_saved: newest good checkpoint, or None.
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
    flat: FlatParameters | None = None
    class_weights: torch.Tensor | None = None
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
        """Set the number of optimizer steps, and adapt the learning-rate schedule and the end of mixing to it.

        Args:
            total_steps: the number of steps before the refits of the settings, which this method applies.
        """
        config = self.config
        self.total_steps = final_length(config, total_steps)
        self.batches.mixed_steps = mixed_steps(config, total_steps)
        self.schedule = Schedule(
            kind=config.schedule,
            total_steps=total_steps,
            warmup_steps=warmup_steps(config, total_steps, self.steps_per_epoch),
            warmdown_steps=round(config.warmdown * total_steps),
            steps_per_epoch=self.steps_per_epoch if config.schedule_per == "epoch" else 0,
            refits=tuple((step, length) for step, length in config.refits or ()),
        )

    def refit(self, config: TrainConfig) -> None:
        """Change the number of remaining steps to that of ``config``, which has one more refit than the settings."""
        self.config = config
        self.set_length(self.schedule.total_steps)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context manager for the forward pass in :attr:`precision`."""
        return devices.autocast(self.device, self.precision)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.batches.steps_per_epoch

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps of the current epoch, which may be the last and shorter."""
        return min(self.steps_per_epoch, self.total_steps - self.progress.epoch * self.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Epochs of the run; ``--max-steps`` may shorten the last one."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def one_size(self) -> int:
        """Number of images to which smaller micro-batches are filled up, where every shape costs memory; else 0.

        BatchNorm would include the images that fill them up in its statistics.
        """
        filled = devices.policy_of(self.device).one_shape and not self.batches.drop_single
        return min(self.micro_batch, self.batches.count) if filled else 0

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: the weight average if there is one, else the current weights."""
        return self.average.model if self.average else self.model

    def train_mode(self) -> None:
        """Put the network in training mode, or only its head if the backbone is frozen."""
        if self.config.freeze_backbone:
            train_head(self.model)
        else:
            self.model.train()

    def lr(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0, before scaling by ``lr_scale`` of a parameter group."""
        return self.config.lr * self.schedule.factor(step)

    def checkpoint(self) -> Checkpoint:
        """Return the state for :func:`vitctl.training.checkpoint.save_checkpoint`."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "model": self.model.state_dict(),
            "ema": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": asdict(self.schedule),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "rng": devices.rng_state(self.device),
            "device": str(self.device),
            "precision": self.precision,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "history": copy.deepcopy(self.history),
            "classes": list(self.dataset.classes),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            DATA_SHA256: self.dataset.manifest.digest if self.dataset.manifest else None,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state in ``checkpoint``.

        Raises:
            RequestError: the checkpoint belongs to a run with another network, data set or optimizer.
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
                f"the checkpoint does not match this run: {str(error).splitlines()[0]}", hint=_REPLACE
            ) from error
        devices.set_rng_state(checkpoint["rng"], self.device)
        self.tally = Tally(self.device)  # drops sums of steps taken before
        self._match_epochs()
        self.history = list(checkpoint["history"])
        if self.progress.step < self.total_steps:  # drop the record of a shortened epoch, which will now be completed
            self.history = [row for row in self.history if row["epoch"] <= self.progress.epoch]

    def _match_epochs(self) -> None:
        """Count the epochs again from the steps taken, if an epoch now has another number of images."""
        progress, length = self.progress, self.steps_per_epoch
        if progress.step == progress.epoch * length + progress.step_in_epoch:
            return
        progress.epoch, progress.step_in_epoch = divmod(progress.step, length)
        if not progress.step_in_epoch and progress.recorded_step < progress.step:  # the last epoch is to be evaluated
            progress.epoch, progress.step_in_epoch = progress.epoch - 1, length


_REPLACE = "restore the run's own checkpoint, or delete this one to resume from an older one"


@contextlib.contextmanager
def untouched(session: Session) -> Iterator[None]:
    """Restore buffers and random states, and clear gradients, when the block ends.

    Weights are not restored, so the block must not take an optimizer step.
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
    """Return a short description of the network, the image size and the number of classes."""
    changed = dict(config.net_options)
    if config.net in MODELS:
        options = MODELS[config.net].options
        changed = {name: value for name, value in changed.items() if options[name].default != value}
    return f"{format_spec(config.net, changed)} for {config.size}-px images of {classes} classes"


def check_same_run(config: TrainConfig, classes: list[str], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of a run with another network, data set or optimizer.

    Raises:
        RequestError: the checkpoint belongs to another run.
    """
    stored = TrainConfig.from_dict(checkpoint["config"])
    theirs = describe(stored, len(checkpoint["classes"])), stored.opt, bool(stored.ema)
    ours = describe(config, len(classes)), config.opt, bool(config.ema)
    if theirs != ours:
        names = [f"{net}, --opt {opt}{', with EMA' if ema else ''}" for net, opt, ema in (theirs, ours)]
        raise RequestError(f"the checkpoint holds {names[0]}; this run trains {names[1]}", hint=_REPLACE)
    if list(map(class_name, checkpoint["classes"])) != classes:  # earlier versions stored the folders' names
        raise RequestError(
            "the data set's classes differ from those that the checkpoint was trained on",
            hint=f"restore the data set in {config.data_dir}" if config.data_dir else _REPLACE,
        )


def given_length(config: TrainConfig, steps_per_epoch: int) -> int | None:
    """Return the number of optimizer steps set by ``--epochs`` and ``--max-steps``; None if neither is given."""
    lengths = [config.epochs * steps_per_epoch if config.epochs else None, config.max_steps]
    return min((length for length in lengths if length is not None), default=None)


def final_length(config: TrainConfig, total_steps: int) -> int:
    """Return the number of steps at the end of a run that had ``total_steps`` before the refits of its settings."""
    return config.refits[-1][1] if config.refits else total_steps


def mixed_steps(config: TrainConfig, total_steps: int) -> int:
    """Return the number of steps, from the first, in which mixup and CutMix are applied if they are on.

    Args:
        config: the settings. A refit moves the end of mixing, unless mixing has ended before.
        total_steps: length of the run before the refits.
    """
    end = total_steps - round(config.mix_off * total_steps)
    for step, length in config.refits or ():
        if step < end:
            end = max(step, length - round(config.mix_off * length))
    return end


def warmup_steps(config: TrainConfig, total_steps: int, steps_per_epoch: int) -> int:
    """Return the number of steps over which the learning rate rises, rounded up."""
    count, unit = split_warmup(config.warmup)
    return math.ceil(count * {"": total_steps, "ep": steps_per_epoch, "st": 1}[unit])


def run_length(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps before any refit; with only ``--max-time``, one epoch until it is fitted."""
    return given_length(config, steps_per_epoch) or steps_per_epoch


def piece_sizes(count: int, bs: int, micro_batch: int, *, joined: bool) -> list[int]:
    """Return the sizes of the micro-batches of a step of ``count`` images.

    Args:
        count: images of the step; more than ``bs`` with gradient accumulation.
        bs: batch size; no micro-batch spans two batches.
        micro_batch: maximum number of images in a micro-batch.
        joined: whether a last batch of one image joins the previous batch, as BatchNorm cannot normalise one image.
    """
    full, rest = divmod(count, bs)
    chunks = [bs] * full + ([rest] if rest else [])
    if joined and rest == 1 and full:
        chunks[-2:] = [bs + 1]
        return chunks
    sizes: list[int] = []
    for chunk in chunks:
        sizes += [micro_batch] * (chunk // micro_batch) + ([chunk % micro_batch] if chunk % micro_batch else [])
    return sizes


def parameters(session: Session) -> int:
    """Return the number of the network's parameters."""
    return count_parameters(session.model)


def trainable_parameters(session: Session) -> int:
    """Return the number of parameters that are not frozen."""
    return sum(parameter.numel() for parameter in session.model.parameters() if parameter.requires_grad)
