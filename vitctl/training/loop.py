"""The training loop: epochs, steps, evaluation, checkpoints and the final test."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl import devices
from vitctl.config import ORIGINAL_BATCH
from vitctl.data.batches import fill_up
from vitctl.data.dataset import Subset
from vitctl.errors import Interrupted, NotFinite
from vitctl.observer import Observer, Record, RunStart
from vitctl.process.signals import StopRequest
from vitctl.recipes import Card
from vitctl.training.card import CardWatch
from vitctl.training.checkpoint import Checkpoint
from vitctl.training.diagnosis import LossWatch, warn_at_chance
from vitctl.training.evaluate import PLAIN, Evaluation, Stopped, View, evaluate, tta_views
from vitctl.training.loss import total_weight
from vitctl.training.pace import Pace
from vitctl.training.predictions import write_predictions
from vitctl.training.run_folder import PREDICTIONS, RunFolder, git_commit
from vitctl.training.session import Session, describe, parameters, piece_sizes, trainable_parameters
from vitctl.units import parse_save_every, plural

READ_EVERY = 50
"""Steps between two reads of the loss from an accelerator, as each read waits for the device."""

SMALLEST_SCALE = 2.0**-14
"""Scale of the fp16 loss below which the run fails: it starts at 2^16 and is halved by each step that overflows."""


def fit(
    session: Session,
    folder: RunFolder,
    observer: Observer,
    resume_command: str,
    started: float | None = None,
    card: Card | None = None,
    pace: Pace | None = None,
) -> Record:
    """Train until the run's last step, evaluate on the test set, and return the summary.

    Args:
        session: a new or restored session.
        folder: the run's folder.
        observer: receives every event.
        resume_command: shown if the run is interrupted.
        started: start of this session, as :func:`time.monotonic` counts; None for now.
        card: the recipe's card to compare the run with, or None.
        pace: fits the length to ``--max-time`` again during the run, or None.

    Raises:
        RunFailed: loss or gradient is not finite, or memory or the disk is full; the last good checkpoint is kept. Where
            reads cost time, a last checkpoint is saved of the step before the first whose loss or gradient is not finite.
        Interrupted: a signal arrived, and the state was saved.
    """
    progress, config = session.progress, session.config
    clock, watch, loss_watch = Clock(session, started), CardWatch(session, card), LossWatch(session)
    save_steps, save_seconds = (
        parse_save_every(config.save_every, "--save-every") if config.save_every else (None, None)
    )
    last_save = time.monotonic()
    evaluation: Evaluation | None = None  # of the last epoch, if it was trained in this session
    observer.started(run_start(session, folder.path))
    if not progress.step:
        watch.expect(observer.message)

    def save(*, best: bool = False) -> None:
        nonlocal last_save
        read_tally(session)
        # The loss was computed before the last update, so check the weights too.
        check_finite(session, torch.nn.utils.get_total_norm(p.detach() for p in session.model.parameters()).item())
        session.progress.seconds = clock.seconds()
        session.last_saved = folder.save(session.checkpoint(), keep=config.keep, best=best)
        last_save = time.monotonic()

    def stopped() -> Interrupted:
        assert stop.signum is not None
        return Interrupted(
            f"stopped after step {progress.step:,}; checkpoint saved",
            stop.signum,
            hint=f"resume it: {resume_command}",
            step=progress.step,
        )

    with (
        StopRequest(
            lambda _: observer.message("stopping after this step and saving; press Ctrl-C again to quit immediately")
        ) as stop,
        last_good_saved(session, save) as keep_good,
    ):
        while progress.recorded_step < session.total_steps and not progress.stopped_early:
            session.train_mode()
            while progress.step_in_epoch < session.steps_in_epoch:
                train_step(session)
                if pace and pace.due():
                    pace.refit(folder, observer.message)
                keep_good()
                observer.stepped(clock.record(session.steps_in_epoch))
                loss_watch.step(observer.message)
                due = save_steps is not None and progress.step % save_steps == 0
                due = due or (save_seconds is not None and time.monotonic() - last_save >= save_seconds)
                if stop or (due and progress.step_in_epoch < session.steps_in_epoch):
                    save()
                if stop:
                    raise stopped()

            try:
                row, evaluation = epoch_record(session, observer, stop)
            except Stopped:
                save()  # all steps of the epoch are done; a resumed run continues with its evaluation
                raise stopped() from None
            row["seconds"] = round(clock.seconds(), 3)
            best = session.splits.val_split in ("holdout", "val") and row["val_acc"] > progress.best_val_acc
            if best:
                progress.best_val_acc, progress.best_epoch = row["val_acc"], row["epoch"]
            if config.patience and row["epoch"] - progress.best_epoch >= config.patience:
                progress.stopped_early = True
                observer.message(
                    f"stopping early: held-out accuracy has not improved for {plural(config.patience, 'epoch')}"
                )
            session.history.append(row)
            progress.recorded_step = progress.step
            if progress.step_in_epoch == session.steps_per_epoch:
                progress.epoch += 1
                progress.begin_epoch()
            save(best=best)
            keep_good()
            folder.append_metrics(row)
            observer.epoch_done(row)
            watch.epoch(row, observer.message)
            if stop:
                raise stopped()

        try:
            evaluations = final_evaluations(session, evaluation, observer, stop)
        except Stopped:
            raise stopped() from None
        summary = final_summary(session, folder, evaluations["test"], observer, clock)
        summary |= watch.final(summary, observer.message)
        write_predictions(folder.path / PREDICTIONS, session.dataset, session.splits, evaluations, progress.step)
        folder.write_summary(summary)
    observer.finished(summary)
    return summary


def run_start(session: Session, folder: Path) -> RunStart:
    """Return the description of a new or resumed run for observers."""
    config, splits = session.config, session.splits
    return RunStart(
        folder=folder,
        settings=config.to_dict(),
        network=describe(config, len(session.dataset.classes)),
        params=parameters(session),
        trainable=trainable_parameters(session),
        tokens=session.cost.tokens,
        mflop=session.cost.mflop,
        device=str(session.device),
        device_name=devices.device_label(session.device),
        precision=session.precision,
        micro_batch=session.micro_batch,
        train_images=session.batches.count,
        val_images=len(splits.val.index) if splits.val is not None else 0,
        test_images=len(splits.test.index),
        val_split=splits.val_split,
        skipped=session.dataset.skipped,
        total_steps=session.total_steps,
        epochs=session.epochs,
        step=session.progress.step,
        seconds=session.progress.seconds,
        history=tuple(session.history),
        environment=devices.environment(session.device),
        git_commit=git_commit(),
    )


def train_step(session: Session) -> None:
    """Take one optimizer step.

    Where reads cost time, none waits for the device in most steps, and :func:`read_tally` reads in some. The exception is
    the scaler of fp16 gradients, which reads whether they overflowed, except for torch's fused optimizers.

    Raises:
        RunFailed: memory ran out, or loss or gradient is not finite. The latter is detected before the update on CPU,
            within :data:`READ_EVERY` steps on an accelerator, and always before a checkpoint is saved.
    """
    progress, config, device = session.progress, session.config, session.device
    start = time.perf_counter()
    images, labels = session.batches.batch(progress.epoch, progress.step_in_epoch)
    data_seconds = time.perf_counter() - start

    factor = session.schedule.factor(progress.step)
    for group in session.optimizer.param_groups:
        group["lr"] = config.lr * group.get("lr_scale", 1.0) * factor
    count, weight = len(labels), total_weight(labels, session.class_weights)
    busy_start = time.perf_counter()
    with devices.memory_watched(device, config.bs, session.micro_batch):
        loss_sum, correct, normalize_seconds = add_gradients(session, images, labels, weight)
        update_weights(session, loss_sum)
        session.tally.add(loss_sum * (count / weight), correct, count)
        if devices.policy_of(device).free_reads or not progress.step or (progress.step + 1) % READ_EVERY == 0:
            read_tally(session)
        if not progress.step:
            progress.first_loss = progress.loss_sum / count

    end = time.perf_counter()
    progress.step += 1
    progress.step_in_epoch += 1
    progress.data_seconds += data_seconds + normalize_seconds
    progress.busy_seconds += end - busy_start - normalize_seconds
    progress.train_seconds += end - start


def add_gradients(
    session: Session, images: Tensor, labels: Tensor, weight: Tensor | int
) -> tuple[Tensor, Tensor, float]:
    """Compute the gradients of a batch in micro-batches, whose gradients add up to those of its mean loss.

    Args:
        session: the session, whose gradients are empty.
        images: augmented images, uint8 ``[B, C, H, W]``.
        labels: classes, int64 ``[B]``, or the share of each class, float32 ``[B, K]``.
        weight: sum of the weights of the labels.

    Returns:
        The sum of the losses and the number of correct predictions, both on the device, and the seconds spent on
        normalisation.
    """
    config, scaler = session.config, session.scaler
    sizes = piece_sizes(len(labels), config.bs, session.micro_batch, joined=session.batches.drop_single)
    loss_sum = torch.zeros((), device=session.device)
    correct = torch.zeros((), device=session.device, dtype=torch.int64)
    normalize_seconds = 0.0
    if session.flat:
        session.flat.begin()
    for piece, target in zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True):
        normalize_start = time.perf_counter()
        x = session.normalize(fill_up(piece, session.one_size))
        normalize_seconds += time.perf_counter() - normalize_start
        with session.autocast():
            logits = session.forward(x)
        if len(logits) > len(target):  # without those of images that fill up the piece
            logits = logits[: len(target)]
        loss = F.cross_entropy(
            logits.float(),
            target,
            weight=session.class_weights,
            reduction="sum",
            label_smoothing=config.label_smoothing,
        )
        torch.autograd.backward(scaler.scale(loss / weight) if scaler else loss / weight)
        loss_sum += loss.detach()
        label = target if target.ndim == 1 else target.argmax(1)  # the dominant class of a mixed image
        correct += (logits.detach().argmax(1) == label).sum()
    if session.flat:
        session.flat.end()
    return loss_sum, correct, normalize_seconds


def update_weights(session: Session, loss_sum: Tensor) -> None:
    """Check and clip the gradients, update the weights and their average, and clear the gradients.

    Args:
        session: the session, with the gradients of a batch.
        loss_sum: sum of the losses of the batch, on the device.

    Raises:
        RunFailed: loss or gradient is not finite, where reads do not wait for the device.
    """
    config, scaler, step = session.config, session.scaler, session.progress.step + 1
    if scaler and config.clip_grad:
        scaler.unscale_(session.optimizer)
    watched = [loss_sum]
    if config.clip_grad or not scaler:
        weights = [session.flat.values] if session.flat else list(session.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        watched += [] if scaler else [norm]
    if devices.policy_of(session.device).free_reads:
        check_finite(session, *(value.item() for value in watched))
    else:
        session.tally.watch(step, *watched)
    if config.clip_grad:
        torch.nn.utils.clip_grads_with_norm_(weights, config.clip_grad, norm)
    if scaler:  # if gradients overflowed, it skips the step and halves the scale
        scaler.step(session.optimizer)
        scaler.update()
    else:
        session.optimizer.step()
    session.optimizer.zero_grad()
    if session.average:
        session.average.update(session.model, step)


def read_tally(session: Session) -> None:
    """Read the sums of the last steps from the device.

    Raises:
        SpoiledWeights: loss or gradient of one of these steps is not finite, so all updates since are wrong.
        NotFinite: fp16 gradients overflow at every step.
    """
    failed = session.tally.read(session.progress)
    if failed is not None:
        raise not_finite(session, failed, SpoiledWeights)
    check_finite(session, session.progress.loss_sum)


@contextlib.contextmanager
def last_good_saved(session: Session, save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """When the block raises :class:`SpoiledWeights`, save the state before the first step that spoiled them.

    The steps up to it, at most :data:`READ_EVERY`, are repeated from a copy of the state at the last read, if memory has
    room for one. The alternative, to mask all updates from the failed step on, has a price in every step: fused Adam on
    MPS ignores ``found_inf``, timm's optimizers have no such flag and count steps in Python, and BatchNorm has already
    updated its statistics, so each step would copy all of them.

    Args:
        session: the session of the run.
        save: saves a checkpoint of it.

    Yields:
        A function that copies the state of the session if its sums have been read, to call after each step.
    """
    free_reads = devices.policy_of(session.device).free_reads  # then, such a step is found before its update
    good: Checkpoint | None = None

    def keep_good() -> None:
        nonlocal good
        if not free_reads and not session.tally.count:
            good = None  # frees its memory
            try:
                good = copy.deepcopy(session.checkpoint())
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise

    keep_good()
    try:
        yield keep_good
    except SpoiledWeights as error:
        if good is None:
            raise
        session.restore(good)
        session.train_mode()
        while session.progress.step < error.step - 1:
            train_step(session)
        if session.progress.step:
            save()
        raise not_finite(session, error.step) from error


def check_finite(session: Session, *values: float) -> None:
    """Raise NotFinite if a loss or a gradient's norm is not finite, or if fp16 gradients overflow at every step."""
    step = session.progress.step + 1
    if session.scaler and session.scaler.get_scale() < SMALLEST_SCALE:
        raise NotFinite(
            f"the gradients overflow fp16 at every step, up to step {step}",
            hint=f"use --precision fp32, or a lower --lr such as {session.config.lr / 10:.2g}",
            step=step,
            device=str(session.device),
            batch=session.config.bs,
        )
    if not all(math.isfinite(value) for value in values):
        raise not_finite(session, step)


class SpoiledWeights(NotFinite):
    """A loss or gradient that was not finite when the weights were updated with it."""


def not_finite(session: Session, step: int, kind: type[NotFinite] = NotFinite) -> NotFinite:
    """Return the error for a loss or gradient that is not finite at ``step``, counted from 1."""
    saved = f"last good checkpoint: {session.last_saved}" if session.last_saved else "no checkpoint was saved yet"
    return kind(
        f"loss or gradient is not finite at step {step} (lr {session.lr(step - 1):.3g}); {saved}",
        hint=f"use a lower --lr such as {session.config.lr / 10:.2g}, a longer --warmup, or --clip-grad 1",
        step=step,
        device=str(session.device),
        batch=session.config.bs,
    )


def epoch_record(session: Session, observer: Observer, stop: StopRequest) -> tuple[Record, Evaluation | None]:
    """Evaluate at the end of an epoch, and return the epoch's record and the evaluation, if the run has one.

    Raises:
        Stopped: a signal arrived during the evaluation.
    """
    progress, splits = session.progress, session.splits
    read_tally(session)
    row: Record = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": session.lr(progress.step - 1),  # of the last step
        "train_loss": progress.loss_sum / progress.seen,
        "train_acc": 100 * progress.correct / progress.seen,
    }
    result = None
    if splits.val is not None:
        start = time.perf_counter()
        result = measure(session, splits.val, str(splits.val_split), observer, stop)
        row |= {"val_loss": result.loss, "val_acc": result.acc, "val_split": splits.val_split}
        if session.config.loss_sum:
            row["val_loss_sum"] = result.sum_of_means(ORIGINAL_BATCH)
        row["eval_time"] = round(time.perf_counter() - start, 4)
    row |= {
        "epoch_time": round(progress.train_seconds, 4),
        "images_per_second": round(progress.seen / progress.train_seconds, 2),
        "data_wait": round(progress.data_seconds / progress.train_seconds, 5),
        "overhead": round(1 - progress.busy_seconds / progress.train_seconds, 5),
    }
    return row, result


def measure(
    session: Session,
    subset: Subset,
    what: str,
    observer: Observer,
    stop: StopRequest,
    *,
    views: tuple[View, ...] = (PLAIN,),
) -> Evaluation:
    """Evaluate the averaged weights if there are any, else the current ones.

    Args:
        session: the session.
        subset: the images to evaluate.
        what: part of the data set, for observers.
        observer: receives the progress.
        stop: ends the evaluation when a signal arrives.
        views: if several, also measure with the average of their logits; the first is the image itself.

    Raises:
        Stopped: a signal arrived.
        RunFailed: the loss is not finite, or memory ran out.
    """
    with devices.memory_watched(session.device, session.eval_batch, session.micro_batch):
        result = evaluate(
            session.evaluated_model,
            subset,
            session.normalize,
            session.device,
            session.eval_batch,
            precision=session.precision,
            views=views,
            stop=lambda: bool(stop),
            progress=lambda done, count: observer.evaluating(what, done, count),
        )
    check_finite(session, result.loss)
    return result


def final_evaluations(
    session: Session, last: Evaluation | None, observer: Observer, stop: StopRequest
) -> dict[str, Evaluation]:
    """Return the evaluation of the final weights on the test set, and on the held-out images if there are any.

    Args:
        session: the session.
        last: the evaluation after the last epoch; None if it was in an earlier session, and is repeated if needed.
        observer: receives the progress.
        stop: ends the evaluation when a signal arrives.

    Returns:
        Evaluations by part: ``test`` and ``val``.

    Raises:
        Stopped: a signal arrived.
    """
    splits, views = session.splits, tta_views(session.config.tta, session.config.flips)
    if splits.val_split == "test":
        reused = last if len(views) == 1 else None
        return {"test": reused or measure(session, splits.test, "test", observer, stop, views=views)}
    found = {}
    if splits.val is not None:
        found["val"] = last or measure(session, splits.val, str(splits.val_split), observer, stop)
    found["test"] = measure(session, splits.test, "test", observer, stop, views=views)
    return found


def final_summary(session: Session, folder: RunFolder, test: Evaluation, observer: Observer, clock: Clock) -> Record:
    """Return the run's summary, with the evaluation of the final weights on the test set."""
    progress, splits, config = session.progress, session.splits, session.config
    row = session.history[-1]
    summary: Record = {
        "name": folder.path.name,
        "net": config.net,
        "opt": config.opt,
        "dataset": config.dataset,
        "recipe": config.recipe,
        "seed": config.seed,
        "weights": "ema" if session.average else "last",
        **{key: row[key] for key in ("epoch", "step", "lr", "train_loss", "train_acc")},
        **{key: row[key] for key in ("val_loss", "val_loss_sum", "val_acc", "val_split") if key in row},
    }
    if splits.val_split in ("holdout", "val"):
        summary |= {"best_val_acc": progress.best_val_acc, "best_epoch": progress.best_epoch}
    summary |= {"test_loss": test.loss, "test_acc": test.acc}
    if test.balanced_acc is not None:
        summary |= {"test_balanced_acc": test.balanced_acc}
    if test.averaged is not None:
        summary |= {"test_loss_tta": test.averaged.loss, "test_acc_tta": test.averaged.acc, "tta": config.tta}
    summary |= warn_at_chance(session, test, observer.message)
    epochs = session.history
    trained = sum(row["epoch_time"] for row in epochs)
    summary |= {
        "stopped_early": progress.stopped_early,
        "train_images": session.batches.count,
        "steps_per_epoch": session.steps_per_epoch,
        "val_images": len(splits.val.index) if splits.val is not None else 0,
        "test_images": len(splits.test.index),
        "skipped_images": len(session.dataset.skipped),
        "params": parameters(session),
        "micro_batch": session.micro_batch,
        "precision": session.precision,
        **({"compile_time": round(session.compile_time, 3)} if session.compile_time is not None else {}),
        "epoch_time": round(trained / progress.step * session.steps_per_epoch, 4),  # the last epoch may be shorter
        "images_per_second": round(sum(row["images_per_second"] * row["epoch_time"] for row in epochs) / trained, 2),
        "data_wait": round(sum(row["data_wait"] * row["epoch_time"] for row in epochs) / trained, 5),
        "overhead": round(sum(row["overhead"] * row["epoch_time"] for row in epochs) / trained, 5),
        "seconds": round(clock.seconds(), 3),
        "peak_memory": devices.peak_memory(session.device),
        **devices.environment(session.device),
    }
    return summary


class Clock:
    """Measures the wall time of a run over all its sessions, and the speed of this one.

    Args:
        session: the current session.
        started: start of this session, as :func:`time.monotonic` counts; None for now.
    """

    def __init__(self, session: Session, started: float | None = None) -> None:
        self.session = session
        self.before = session.progress.seconds
        self.start = time.monotonic() if started is None else started
        self.first_step = session.progress.step
        self.trained = 0.0
        self.seen_seconds = session.progress.train_seconds

    def seconds(self) -> float:
        """Return the wall time of the run so far, in seconds."""
        return self.before + time.monotonic() - self.start

    def record(self, steps: int) -> Record:
        """Return the figures so far of the current epoch, which has ``steps`` steps."""
        session, progress = self.session, self.session.progress
        spent = progress.train_seconds
        self.trained += spent - (self.seen_seconds if progress.step_in_epoch > 1 else 0.0)
        self.seen_seconds = spent
        per_step = self.trained / max(1, progress.step - self.first_step)
        evaluations = [row["eval_time"] for row in session.history if "eval_time" in row]
        eta = (session.total_steps - progress.step) * per_step
        if evaluations:
            eta += evaluations[-1] * (session.epochs - progress.epoch)
        return {
            "epoch": progress.epoch + 1,
            "epochs": session.epochs,
            "step": progress.step,
            "step_in_epoch": progress.step_in_epoch,
            "steps": steps,
            "lr": session.lr(progress.step - 1),
            "train_loss": progress.loss_sum / progress.seen if progress.seen else None,
            "train_acc": 100 * progress.correct / progress.seen if progress.seen else None,
            "images_per_second": (progress.seen + session.tally.count) / spent,
            "data_wait": progress.data_seconds / spent,
            "eta": eta,
        }
