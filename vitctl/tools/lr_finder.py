"""The learning-rate range test: a short run with a rising rate, and what its loss says."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Sequence
from pathlib import Path

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.errors import NotFinite, RequestError
from vitctl.files import replacing
from vitctl.observer import Observer, Record
from vitctl.optim import find_optimizer
from vitctl.optim.schedule import RangeTest
from vitctl.tools.plots import check_plot
from vitctl.training.loop import train_step
from vitctl.training.preflight import check_config
from vitctl.training.session import Session
from vitctl.training.setup import open_session

LOW, HIGH, STEPS = 1e-3, 1e3, 200
"""The rates at the first and last step, over that of the settings, and how many steps there are."""

MEMORY = 0.9
"""Share of the running mean of the losses, which says when to stop, kept at each step."""

DIVERGED = 4.0
"""The test ends when that mean is this many times its least value."""

SKIPPED = 5
"""First steps, whose mean is over too few losses to end the test."""

WINDOW = 4
"""How many neighbours on either side a loss is averaged with for the suggestions."""

FALL = 0.02
"""The loss must fall by this share for a suggestion to mean something."""

PLOT_FORMATS = (".png", ".svg", ".pdf")
DEFAULT_PLOT = "lr-finder.png"
EXTRA = "pip install 'vitctl[plots]' brings it"


def find_lr(config: TrainConfig, observer: Observer, plot: Path | None = None, steps: int | None = None) -> Record:
    """Train a few steps with an exponentially rising rate, save nothing, and suggest a rate.

    After Smith 2017 (arXiv 1506.01186): the loss stands, falls and rises as the rate grows from a thousandth of the
    settings' to a thousand times that. The rate suggested is that at which the smoothed loss falls steepest over the
    logarithm of the rate; a tenth of that at which it is least is the other usual choice. What has a rate of its own in
    the optimizer, such as ``adamw_lr`` of Muon, keeps its ratio to the rate under test.

    Args:
        config: the settings; ``lr`` is the middle of the range.
        observer: receives every event.
        plot: where to draw the curve, in one of the formats :data:`PLOT_FORMATS`.
        steps: how many to take, :data:`STEPS` when nobody says.

    Returns:
        ``lr``, ``loss`` and ``smoothed``: a list each, an item a step; ``suggestion``, ``lowest`` (the rate at the least
        smoothed loss) and ``lowest_tenth``, or None where the loss never fell; ``second_lr``: by its name, the
        optimizer's second rate at the suggestion, such as Muon's ``adamw_lr``; ``diverged``; ``steps``; ``seconds``;
        ``plot``; device and versions; the settings under ``config``.

    Raises:
        RequestError: device, data or network cannot be had, or the plot cannot be drawn.
        RunFailed: memory ran out, or the plot could not be written.
    """
    if plot is not None:
        check_plot(plot, "--lr-finder-out", PLOT_FORMATS)
        if not can_draw():
            raise RequestError(f"--lr-finder-out {plot} needs matplotlib, which is not installed; {EXTRA}")
    if not config.lr:
        raise RequestError("--lr-finder looks around --lr, and --lr is 0; leave it out")
    start = time.monotonic()
    steps = steps or STEPS
    if steps <= 2 * SKIPPED:
        raise RequestError(f"--max-steps {steps} are too few for --lr-finder; take {2 * SKIPPED + 1} or more")
    # Images are mixed to the end: where mixing stopped, the loss would fall whatever the rate.
    found_with = dataclasses.replace(
        config, epochs=None, max_time=None, max_steps=steps, patience=None, mix_off=0.0, warmdown=0.0
    )
    check_config(dataclasses.replace(found_with, wandb="disabled", tensorboard=False), observer)
    session = open_session(found_with, observer)
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
        "picture": str(plot) if plot is not None else None,  # the name of earlier versions
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
    """Return, by its name, the optimizer's second rate that went with the suggested one; nothing where it has none."""
    name = find_optimizer(config.opt).second_lr
    if name is None or suggestion is None:
        return {}
    return {name: suggestion * float(str(config.opt_options[name])) / config.lr}


def _rising_run(session: Session, steps: int, observer: Observer) -> tuple[list[float], list[float], bool]:
    """Return rate and loss of each step, and whether the loss ran away before the last."""
    progress = session.progress
    session.train_mode()
    rates: list[float] = []
    losses: list[float] = []
    mean, least = 0.0, math.inf
    begun = time.monotonic()
    for step in range(steps):
        seen_before, sum_before = progress.seen, progress.loss_sum
        try:
            train_step(session)
            session.tally.read(progress)
        except NotFinite:
            return rates, losses, True
        loss = (progress.loss_sum - sum_before) / (progress.seen - seen_before)
        if not math.isfinite(loss):
            return rates, losses, True
        rates.append(session.lr(step))
        losses.append(loss)
        mean = MEMORY * mean + (1 - MEMORY) * loss
        corrected = mean / (1 - MEMORY ** (step + 1))
        least = min(least, corrected)
        if step > SKIPPED and corrected > DIVERGED * least:
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
                "eta": (time.monotonic() - begun) / (step + 1) * (steps - step - 1),
            }
        )
        if progress.step_in_epoch == session.steps_per_epoch:
            progress.epoch += 1
            progress.begin_epoch()
    return rates, losses, False


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the losses averaged with their neighbours by a triangular window, which does not shift the curve."""
    weights = {offset: WINDOW + 1 - abs(offset) for offset in range(-WINDOW, WINDOW + 1)}
    smoothed = []
    for i in range(len(losses)):
        near = {i + offset: weight for offset, weight in weights.items() if 0 <= i + offset < len(losses)}
        smoothed.append(sum(losses[j] * weight for j, weight in near.items()) / sum(near.values()))
    return smoothed


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> dict[str, float | None]:
    """Return ``suggestion``, ``lowest`` and ``lowest_tenth``; see :func:`find_lr`.

    All are None when the least loss is not at least :data:`FALL` below the first: then there is nothing to read off.
    """
    nothing: dict[str, float | None] = {"suggestion": None, "lowest": None, "lowest_tenth": None}
    if not smoothed:
        return nothing
    bottom = min(range(len(smoothed)), key=smoothed.__getitem__)
    if bottom < 2 or smoothed[bottom] > (1 - FALL) * smoothed[0]:
        return nothing
    slopes = {i: (smoothed[i + 1] - smoothed[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) for i in range(1, bottom)}
    steepest = min(slopes, key=slopes.__getitem__)
    return {"suggestion": rates[steepest], "lowest": rates[bottom], "lowest_tenth": rates[bottom] / 10}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(found: Record, path: Path) -> None:
    """Draw loss over rate, with the suggestion and the rate of the settings marked.

    Raises:
        RunFailed: the file could not be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found["lr"], found["loss"], color="0.75", linewidth=1, label="loss of each step")
    axes.plot(found["lr"], found["smoothed"], color="tab:blue", linewidth=2, label="smoothed")
    marks = [
        ("suggestion", found["suggestion"], "tab:green", "-"),
        ("a tenth of the lowest", found["lowest_tenth"], "tab:olive", "--"),
        ("--lr of these settings", found["config"]["lr"], "tab:red", ":"),
    ]
    for label, rate, colour, style in marks:
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=style, label=f"{label}: {rate:.2g}")
    axes.set_xscale("log")
    if found["smoothed"]:
        bottom, top = min(found["smoothed"]), 1.5 * found["smoothed"][0]
        axes.set_ylim(bottom - 0.05 * (top - bottom), top)  # what comes after the loss ran away would flatten the rest
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    config = found["config"]
    axes.set_title(f"{config['net']}, {config['opt']}, {config['dataset']}, batch {config['bs']}")
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])
