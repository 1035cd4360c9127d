"""Learning-rate range test: a short run with a rising learning rate, from whose loss a rate is suggested."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Container, Sequence
from pathlib import Path

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.errors import NotFinite, RequestError
from vitctl.files import write_bytes
from vitctl.observer import Observer, Record
from vitctl.optim import find_optimizer
from vitctl.optim.schedule import RangeTest
from vitctl.report import drawing
from vitctl.report.chart import Chart, Dash, Line, Tone
from vitctl.tools.plots import check_plot
from vitctl.training.loop import read_tally, train_step
from vitctl.training.preflight import check_config
from vitctl.training.session import Session
from vitctl.training.setup import fitted, open_data, open_session

LOW, HIGH, STEPS = 1e-3, 1e3, 200
"""Learning rates at the first and last step, as multiples of the configured one, and the default number of steps."""

AVERAGE_DECAY = 0.9
"""Decay of the moving average of the loss that detects divergence."""

DIVERGENCE_FACTOR = 4.0
"""The test stops when the moving average exceeds its minimum by this factor."""

MIN_STEPS = 5
"""Number of first steps at which the test does not stop, because the average has too few losses."""

WINDOW = 4
"""Number of neighbours on each side for smoothing the loss."""

MIN_FALL = 0.02
"""Smallest relative fall of the loss that permits a suggestion."""

PLOT_FORMATS = (".png", ".svg", ".pdf")
DEFAULT_PLOT = "lr-finder.png"


def find_lr(
    config: TrainConfig,
    observer: Observer,
    plot: Path | None = None,
    steps: int | None = None,
    free: Container[str] = (),
) -> Record:
    """Train for a few steps with an exponentially rising learning rate, without saving anything, and suggest a rate.

    After Smith 2017 (arXiv 1506.01186). The rate rises from a thousandth of the configured one to a thousand times it;
    the loss is flat at first, then falls, then rises. The suggestion is the rate at which the smoothed loss falls
    fastest over the logarithm of the rate; a tenth of the rate at the lowest loss is the other common choice. A second
    rate of the optimizer, such as ``adamw_lr`` of Muon, keeps its ratio to the rate under test.

    Args:
        config: the settings; ``lr`` is the middle of the range.
        observer: receives events and messages.
        plot: path of a plot of the loss, in one of the :data:`PLOT_FORMATS`.
        steps: number of steps; None for :data:`STEPS`.
        free: settings that may be fitted to the number of training images; see :func:`vitctl.config.free_settings`.

    Returns:
        ``lr``, ``loss`` and ``smoothed``: lists with a value per step; ``suggestion``, ``lowest`` (the rate at the
        lowest smoothed loss) and ``lowest_tenth``, or None if the loss did not fall; ``second_lr``: the optimizer's
        second rate at the suggestion, by name; ``diverged``; ``steps``; ``seconds``; ``plot``; device and versions; the
        settings under ``config``.

    Raises:
        RequestError: the device, data or network is not available, or the plot cannot be drawn.
        RunFailed: memory ran out, or the plot could not be written.
    """
    if plot is not None:
        check_plot(plot, "--lr-finder-out", PLOT_FORMATS)
    if not config.lr:
        raise RequestError(
            "--lr 0 does not work with --lr-finder, which tests rates around --lr",
            hint="use --lr with a number above 0, or remove it",
        )
    start = time.monotonic()
    steps = steps or STEPS
    if steps <= 2 * MIN_STEPS:
        raise RequestError(
            f"--max-steps {steps} is too small for --lr-finder", hint=f"use --max-steps {2 * MIN_STEPS + 1} or more"
        )
    check_config(dataclasses.replace(config, wandb="disabled", tensorboard=False), observer)
    data = open_data(config, observer)
    config = fitted(config, data[1], free, observer)
    # Mix images to the end: the loss would fall at any rate when mixing stops.
    found_with = dataclasses.replace(
        config,
        epochs=None,
        max_time=None,
        refits=None,
        max_steps=steps,
        patience=None,
        mix_off=0.0,
        warmup=0.0,
        warmdown=0.0,
    )
    session = open_session(found_with, observer, data=data)
    session.schedule = RangeTest("range", steps, low=LOW, high=HIGH)
    rates, losses, diverged = _rising_run(session, steps, observer)
    smoothed = smooth(losses)
    found = suggest(rates, smoothed)
    document: Record = {
        **found,
        "diverged": diverged,
        "steps": len(losses),
        "seconds": round(time.monotonic() - start, 3),
        "plot": str(plot) if plot is not None else None,
        "picture": str(plot) if plot is not None else None,  # the key of earlier versions
        "net": config.net,
        "opt": config.opt,
        "second_lr": _second_lr(config, found["suggestion"]),
        **devices.environment(session.device),
        "lr": rates,
        "loss": losses,
        "smoothed": smoothed,
        "config": config.to_dict(),
    }
    if plot is not None:
        draw(document, plot)
    return document


def _second_lr(config: TrainConfig, suggestion: float | None) -> dict[str, float]:
    """Return the optimizer's second rate at the suggestion, by name; empty if it has none."""
    name = find_optimizer(config.opt).second_lr
    if name is None or suggestion is None:
        return {}
    return {name: suggestion * float(str(config.opt_options[name])) / config.lr}


def _rising_run(session: Session, steps: int, observer: Observer) -> tuple[list[float], list[float], bool]:
    """Return the learning rate and loss of each step, and whether the loss diverged."""
    progress = session.progress
    session.train_mode()
    rates: list[float] = []
    losses: list[float] = []
    mean, least = 0.0, math.inf
    start = time.monotonic()
    for step in range(steps):
        seen_before, sum_before = progress.seen, progress.loss_sum
        try:
            train_step(session)
            read_tally(session)
        except NotFinite:
            return rates, losses, True
        loss = (progress.loss_sum - sum_before) / (progress.seen - seen_before)
        rates.append(session.lr(step))
        losses.append(loss)
        mean = AVERAGE_DECAY * mean + (1 - AVERAGE_DECAY) * loss
        corrected = mean / (1 - AVERAGE_DECAY ** (step + 1))
        least = min(least, corrected)
        if step > MIN_STEPS and corrected > DIVERGENCE_FACTOR * least:
            return rates, losses, True
        observer.stepped(
            {
                "epoch": 1,
                "epochs": 1,
                "step_in_epoch": step + 1,
                "steps": steps,
                "lr": rates[-1],
                "train_loss": corrected,
                "train_acc": 100 * progress.correct / progress.seen,
                "images_per_second": progress.seen / progress.train_seconds,
                "data_wait": progress.data_seconds / progress.train_seconds,
                "eta": (time.monotonic() - start) / (step + 1) * (steps - step - 1),
            }
        )
        if progress.step_in_epoch == session.steps_per_epoch:
            progress.epoch += 1
            progress.begin_epoch()
    return rates, losses, False


def smooth(losses: Sequence[float]) -> list[float]:
    """Smooth with a centred triangular window, which does not shift the curve."""
    weights = {offset: WINDOW + 1 - abs(offset) for offset in range(-WINDOW, WINDOW + 1)}
    smoothed = []
    for i in range(len(losses)):
        near = {i + offset: weight for offset, weight in weights.items() if 0 <= i + offset < len(losses)}
        smoothed.append(sum(losses[j] * weight for j, weight in near.items()) / sum(near.values()))
    return smoothed


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> dict[str, float | None]:
    """Return ``suggestion``, ``lowest`` and ``lowest_tenth``; see :func:`find_lr`.

    All are None unless the loss falls by at least the share :data:`MIN_FALL`.
    """
    nothing: dict[str, float | None] = {"suggestion": None, "lowest": None, "lowest_tenth": None}
    if not smoothed:
        return nothing
    bottom = min(range(len(smoothed)), key=smoothed.__getitem__)
    if bottom < 2 or smoothed[bottom] > (1 - MIN_FALL) * smoothed[0]:
        return nothing
    slopes = {i: (smoothed[i + 1] - smoothed[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) for i in range(1, bottom)}
    steepest = min(slopes, key=slopes.__getitem__)
    return {"suggestion": rates[steepest], "lowest": rates[bottom], "lowest_tenth": rates[bottom] / 10}


def draw(found: Record, path: Path) -> None:
    """Plot the loss over the learning rate, and mark the suggestion and the configured rate.

    Raises:
        RunFailed: the file could not be written.
    """
    config, rates = found["config"], found["lr"]
    marks = [
        Line(label="loss of each step", x=rates, y=found["loss"], tone="bar"),
        Line(label="smoothed", x=rates, y=found["smoothed"], tone=0),
    ]
    if found["smoothed"]:
        bottom, top = min(found["smoothed"]), 1.5 * found["smoothed"][0]  # a diverging loss would flatten the rest
    else:
        bottom, top = 0.0, 1.0
    bottom -= 0.05 * (top - bottom)
    lines: list[tuple[str, float | None, Tone, Dash]] = [
        ("suggestion", found["suggestion"], 2, "solid"),
        ("a tenth of the rate at the lowest loss", found["lowest_tenth"], 3, "dashed"),
        ("configured --lr", config["lr"], 1, "dotted"),
    ]
    marks += [
        Line(label=f"{label}: {rate:.2g}", x=[rate, rate], y=[bottom, top], tone=tone, dash=dash)
        for label, rate, tone, dash in lines
        if rate is not None
    ]
    chart = Chart(
        id="lr-finder",
        title=f"{config['net']}, {config['opt']}, {config['dataset']}, batch {config['bs']}",
        description="training loss over the learning rate",
        x="learning rate",
        y="training loss",
        x_log=True,
        y_range=(bottom, top),
        marks=marks,
        width=640,
        height=400,
    )
    write_bytes(path, drawing.render([chart], path.suffix.lower().removeprefix(".")))
