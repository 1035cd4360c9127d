"""Dry run: measure a few training steps and estimate the cost of the complete run."""

from __future__ import annotations

import time
from collections.abc import Container

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.observer import SILENT, Observer, Record
from vitctl.training.budget import TimePlan
from vitctl.training.evaluate import tta_views, uneven
from vitctl.training.loop import train_step
from vitctl.training.preflight import check_config
from vitctl.training.session import parameters
from vitctl.training.setup import open_session
from vitctl.training.threads import settle_threads


def dry_run(
    config: TrainConfig,
    observer: Observer = SILENT,
    steps: int = 3,
    free: Container[str] = (),
) -> Record:
    """Take a few training steps without saving anything, and estimate the cost of the complete run.

    Args:
        config: the settings.
        observer: receives events and messages.
        steps: number of timed steps.
        free: settings that may be fitted to the number of training images; see :func:`vitctl.config.free_settings`.

    Returns:
        ``params``, ``mflop`` (forward pass of one image), ``tokens``, ``train_images``, ``class_images`` (training
        images of each class), ``uneven_classes`` (whether these differ much), ``steps_per_epoch``, ``total_steps``,
        ``micro_batch``, ``step_time`` (median, in seconds), ``images_per_second``, ``eta`` (seconds for the complete
        run, with evaluations), ``peak_memory`` (bytes), and the settings under ``config``.

    Raises:
        RequestError: the device, data or network is not available.
        RunFailed: memory ran out, or the loss is not finite.
    """
    started = time.monotonic()
    check_config(config, observer)
    watch = devices.CpuWatch()
    session = open_session(config, observer, pretrained=False, free=free)
    settle_threads(session, watch, observer)
    config = session.config
    if config.max_time and config.refits is None:
        TimePlan(session, started).fit()
    session.train_mode()
    times: list[float] = []
    for _ in range(1 + min(steps, session.total_steps)):  # the first step is a warm-up
        start = time.perf_counter()
        train_step(session)
        devices.synchronize(session.device)
        times.append(time.perf_counter() - start)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.begin_epoch()
    step_time = sorted(times[1:])[len(times[1:]) // 2]
    batch = session.batches.batch_size if session.steps_per_epoch > 1 else session.batches.count
    evaluated = len(session.splits.val.index) * session.epochs if session.splits.val is not None else 0
    evaluated += len(session.splits.test.index) * len(tta_views(config.tta, config.flips))
    eta = session.total_steps * step_time + evaluated * step_time / batch / 3  # a step costs about 3 forward passes

    train = session.splits.train
    class_images = train.examples.labels[train.index].bincount(minlength=len(session.dataset.classes))

    return {
        "net": config.net,
        "params": parameters(session),
        "mflop": round(session.cost.mflop, 1),
        "tokens": session.cost.tokens,
        "train_images": session.batches.count,
        "class_images": dict(zip(session.dataset.classes, class_images.tolist(), strict=True)),
        "uneven_classes": uneven(class_images),
        "steps_per_epoch": session.steps_per_epoch,
        "total_steps": session.total_steps,
        "micro_batch": session.micro_batch,
        "precision": session.precision,
        **({"compile_time": round(session.compile_time, 3)} if session.compile_time is not None else {}),
        "step_time": round(step_time, 4),
        "images_per_second": round(batch / step_time, 1),
        "data_wait": round(session.progress.data_seconds / max(1e-9, session.progress.train_seconds), 4),
        "eta": round(eta, 1),
        "peak_memory": devices.peak_memory(session.device),
        **devices.environment(session.device),
        "config": config.to_dict(),
    }
