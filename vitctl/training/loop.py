"""The training loop. It reads downwards: epochs, steps, evaluation, saving, the final test."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from vitctl import devices
from vitctl.config import PREDECESSOR_BATCH
from vitctl.data.dataset import Subset
from vitctl.errors import Interrupted, NotFinite
from vitctl.observer import Observer, Record, RunStart
from vitctl.process.signals import StopRequest
from vitctl.recipes import Card
from vitctl.training.card import CardWatch
from vitctl.training.evaluate import Evaluation, Stopped, evaluate
from vitctl.training.run_folder import RunFolder, git_commit
from vitctl.training.session import Session, describe, learning, parameters, piece_sizes
from vitctl.units import parse_save_every

READ_EVERY = 50
"""Steps between two reads of the loss from an accelerator; each read waits for the device."""

SMALLEST_SCALE = 2.0**-14
"""Scale of an fp16 loss below which every step has overflowed for long: it starts at 2^16 and is halved at each."""


def fit(
    session: Session,
    folder: RunFolder,
    observer: Observer,
    resume_command: str,
    started: float | None = None,
    card: Card | None = None,
) -> Record:
    """Train until the run's last step, then test, and return the summary.

    Args:
        session: new, or restored from a checkpoint.
        folder: of the run.
        observer: receives every event.
        resume_command: printed when the run is stopped.
        started: when the run's time began, by :func:`time.monotonic`; None is now.
        card: the recipe card to compare the run with, or None.

    Raises:
        RunFailed: the loss is not finite, or memory or disk is used up; the last good checkpoint stands.
        Interrupted: SIGINT or SIGTERM came, and the state is saved.
    """
    progress, config = session.progress, session.config
    clock, watch = Clock(session, started), CardWatch(session, card)
    save_steps, save_seconds = (
        parse_save_every(config.save_every, "--save-every") if config.save_every else (None, None)
    )
    last_save = time.monotonic()
    observer.started(run_start(session, folder.path))
    if not progress.step:
        watch.expect(observer.message)

    def save(*, best: bool = False) -> None:
        nonlocal last_save
        session.tally.read(progress)
        check_finite(session, progress.loss_sum)
        # The loss is of the weights before the last step.
        check_finite(session, torch.nn.utils.get_total_norm(p.detach() for p in session.model.parameters()).item())
        progress.seconds = clock.seconds()
        session.last_saved = folder.save(session.checkpoint(), keep=config.keep, best=best)
        last_save = time.monotonic()

    def stopped() -> Interrupted:
        assert stop.signum is not None
        return Interrupted(
            f"stopped at step {progress.step}, and saved; go on with: {resume_command}", stop.signum, step=progress.step
        )

    with StopRequest(
        lambda _: observer.message("stopping after this step and saving; once more quits at once")
    ) as stop:
        while progress.recorded_step < session.total_steps and not progress.stopped_early:
            session.train_mode()
            steps = min(session.steps_per_epoch, session.total_steps - progress.epoch * session.steps_per_epoch)
            while progress.step_in_epoch < steps:
                train_step(session)
                observer.stepped(clock.record(steps))
                due = save_steps is not None and progress.step % save_steps == 0
                due = due or (save_seconds is not None and time.monotonic() - last_save >= save_seconds)
                if stop or (due and progress.step_in_epoch < steps):
                    save()
                if stop:
                    raise stopped()

            try:
                row = epoch_record(session, observer, stop)
            except Stopped:
                save()  # with all steps of the epoch done: the run goes on with its evaluation
                raise stopped() from None
            row["seconds"] = round(clock.seconds(), 3)
            best = session.splits.val_split in ("holdout", "val") and row["val_acc"] > progress.best_val_acc
            if best:
                progress.best_val_acc, progress.best_epoch = row["val_acc"], row["epoch"]
            if config.patience and row["epoch"] - progress.best_epoch >= config.patience:
                progress.stopped_early = True
                observer.message(f"no better held-out accuracy in {config.patience} epochs: stopping early")
            session.history.append(row)
            progress.recorded_step = progress.step
            if progress.step_in_epoch == session.steps_per_epoch:
                progress.epoch += 1
                progress.begin_epoch()
            save(best=best)
            folder.append_metrics(row)
            observer.epoch_done(row)
            watch.epoch(row, observer.message)
            if stop:
                raise stopped()

        try:
            summary = final_summary(session, folder, observer, stop, clock)
        except Stopped:
            raise stopped() from None
        summary |= watch.final(summary, observer.message)
        folder.write_summary(summary)
    observer.finished(summary)
    return summary


def run_start(session: Session, folder: Path) -> RunStart:
    """Describe a run for observers when it starts or resumes."""
    config, splits = session.config, session.splits
    return RunStart(
        folder=folder,
        settings=config.to_dict(),
        network=describe(config, len(session.dataset.classes)),
        params=parameters(session),
        trainable=learning(session),
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
    """Take one optimizer step, in pieces that give the gradient of the whole batch.

    Raises:
        RunFailed: loss or gradient is not finite (found before the update on CPU, within :data:`READ_EVERY` steps on
            an accelerator, and always before anything is saved), or memory ran out.
    """
    progress, config, device, scaler = session.progress, session.config, session.device, session.scaler
    start = time.perf_counter()
    images, labels = session.batches.batch(progress.epoch, progress.step_in_epoch)
    data_seconds = time.perf_counter() - start

    factor = session.schedule.factor(progress.step)
    for group in session.optimizer.param_groups:
        group["lr"] = config.lr * group.get("lr_scale", 1.0) * factor
    count = len(labels)
    sizes = piece_sizes(count, config.bs, session.micro_batch, joined=session.batches.drop_single)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    busy_start, normalize_seconds = time.perf_counter(), 0.0
    with devices.memory_watched(device, config.bs, session.micro_batch):
        for piece, target in zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True):
            normalize_start = time.perf_counter()
            x = session.normalize(piece)
            normalize_seconds += time.perf_counter() - normalize_start
            with session.autocast():
                logits = session.forward(x)
            loss = F.cross_entropy(logits.float(), target, reduction="sum", label_smoothing=config.label_smoothing)
            torch.autograd.backward(scaler.scale(loss / count) if scaler else loss / count)
            loss_sum += loss.detach()
            label = target if target.ndim == 1 else target.argmax(1)  # of a mixed image: that of its greater part
            correct += (logits.detach().argmax(1) == label).sum()

        if scaler and config.clip_grad:
            scaler.unscale_(session.optimizer)
        grads = [p.grad for p in session.model.parameters() if p.grad is not None]
        if config.clip_grad or device.type == "cpu":
            norm = torch.nn.utils.get_total_norm(grads)  # torch takes foreach where the device has it
            if device.type == "cpu":  # reading costs nothing here
                check_finite(session, loss_sum.item(), *([] if scaler else [norm.item()]))
            if config.clip_grad:
                torch.nn.utils.clip_grads_with_norm_(session.model.parameters(), config.clip_grad, norm)
        if scaler:  # a step whose gradients overflowed is left out, and the scale halved
            scaler.step(session.optimizer)
            scaler.update()
        else:
            session.optimizer.step()
        session.optimizer.zero_grad()
        if session.average:
            session.average.update(session.model, progress.step + 1)
        session.tally.add(loss_sum, correct, count)
        if device.type == "cpu" or (progress.step + 1) % READ_EVERY == 0:
            session.tally.read(progress)
            check_finite(session, progress.loss_sum)

    end = time.perf_counter()
    progress.step += 1
    progress.step_in_epoch += 1
    progress.data_seconds += data_seconds + normalize_seconds
    progress.busy_seconds += end - busy_start - normalize_seconds
    progress.train_seconds += end - start


def check_finite(session: Session, *values: float) -> None:
    """Raise NotFinite when a loss or a gradient's norm is infinite or not a number, or fp16 cannot hold the gradients."""
    step = session.progress.step + 1
    if session.scaler and session.scaler.get_scale() < SMALLEST_SCALE:
        message = (
            f"the gradients overflow fp16 at every step (step {step}); try --precision bf16 or fp32, or a lower --lr"
        )
    elif not all(math.isfinite(value) for value in values):
        last = session.last_saved
        saved = f"the last good checkpoint is {last}" if last else "nothing was saved yet"
        message = (
            f"the loss or its gradient is not finite at step {step} (lr {session.lr(step - 1):.3g}); {saved}. "
            f"Try a lower --lr, more --warmup, or --clip-grad 1"
        )
    else:
        return
    raise NotFinite(message, step=step, device=str(session.device), batch=session.config.bs)


def epoch_record(session: Session, observer: Observer, stop: StopRequest) -> Record:
    """Evaluate, and return the record of the epoch whose steps are all taken.

    Raises:
        Stopped: a signal came during the evaluation.
    """
    progress, splits = session.progress, session.splits
    session.tally.read(progress)
    row: Record = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": session.lr(progress.step - 1),  # the one that the last step was taken with
        "train_loss": progress.loss_sum / progress.seen,
        "train_acc": 100 * progress.correct / progress.seen,
    }
    if splits.val is not None:
        start = time.perf_counter()
        result = measure(session, splits.val, str(splits.val_split), observer, stop)
        row |= {"val_loss": result.loss, "val_acc": result.acc, "val_split": splits.val_split}
        if session.config.loss_sum:
            row["val_loss_sum"] = result.sum_of_means(PREDECESSOR_BATCH)
        row["eval_time"] = round(time.perf_counter() - start, 4)
    row |= {
        "epoch_time": round(progress.train_seconds, 4),
        "images_per_second": round(progress.seen / progress.train_seconds, 2),
        "data_wait": round(progress.data_seconds / progress.train_seconds, 5),
        "overhead": round(1 - progress.busy_seconds / progress.train_seconds, 5),
    }
    return row


def measure(
    session: Session, subset: Subset, what: str, observer: Observer, stop: StopRequest, *, mirror: bool = False
) -> Evaluation:
    """Evaluate the weights that count: the average where one is kept; see :func:`vitctl.training.evaluate.evaluate`.

    Raises:
        Stopped: a signal came.
        RunFailed: the loss is not finite.
    """
    with devices.memory_watched(session.device, session.eval_batch, session.micro_batch):
        result = evaluate(
            session.evaluated_model,
            subset,
            session.normalize,
            session.device,
            session.eval_batch,
            precision=session.precision,
            mirror=mirror,
            stop=lambda: bool(stop),
            progress=lambda done, count: observer.evaluating(what, done, count),
        )
    check_finite(session, result.loss)
    return result


def final_summary(session: Session, folder: RunFolder, observer: Observer, stop: StopRequest, clock: Clock) -> Record:
    """Test the last weights, once, and return the final figures.

    Raises:
        Stopped: a signal came during the test.
    """
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
    mirror = config.tta == "flip"
    if splits.val_split == "test" and row["step"] == progress.step and not mirror:
        summary |= {"test_loss": row["val_loss"], "test_acc": row["val_acc"]}  # measured already, with these weights
    else:
        result = measure(session, splits.test, "test", observer, stop, mirror=mirror)
        summary |= {"test_loss": result.loss, "test_acc": result.acc}
        if result.mirrored is not None:
            summary |= {"test_loss_tta": result.mirrored.loss, "test_acc_tta": result.mirrored.acc, "tta": config.tta}
    epochs = session.history
    trained = sum(row["epoch_time"] for row in epochs)
    summary |= {
        "stopped_early": progress.stopped_early,
        "train_images": session.batches.count,
        "val_images": len(splits.val.index) if splits.val is not None else 0,
        "test_images": len(splits.test.index),
        "skipped_images": len(session.dataset.skipped),
        "params": parameters(session),
        "micro_batch": session.micro_batch,
        "precision": session.precision,
        **({"compile_time": round(session.compile_time, 3)} if session.compile_time is not None else {}),
        "epoch_time": round(trained / progress.step * session.steps_per_epoch, 4),  # the last one may be cut short
        "images_per_second": round(sum(row["images_per_second"] * row["epoch_time"] for row in epochs) / trained, 2),
        "data_wait": round(sum(row["data_wait"] * row["epoch_time"] for row in epochs) / trained, 5),
        "overhead": round(sum(row["overhead"] * row["epoch_time"] for row in epochs) / trained, 5),
        "seconds": round(clock.seconds(), 3),
        "peak_memory": devices.peak_memory(session.device),
        **devices.environment(session.device),
    }
    return summary


class Clock:
    """Wall time over all sessions of a run, and how fast this one goes.

    Args:
        session: whose progress is reported.
        started: when the time of this session began, by :func:`time.monotonic`; None is now.
    """

    def __init__(self, session: Session, started: float | None = None) -> None:
        self.session = session
        self.before = session.progress.seconds
        self.start = time.monotonic() if started is None else started
        self.first_step = session.progress.step
        self.trained = 0.0
        self.seen_seconds = session.progress.train_seconds

    def seconds(self) -> float:
        """Return the seconds that the run has taken so far."""
        return self.before + time.monotonic() - self.start

    def record(self, steps: int) -> Record:
        """Return the figures so far of the epoch under way, which has ``steps`` steps."""
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
