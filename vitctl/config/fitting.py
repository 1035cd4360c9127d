"""Batch size and epochs of small folders of images.

Recipes are made for tens of thousands of images: on 60, ten epochs of batch 128 are ten steps, in which nothing is
learned. In folders, values that were not given are therefore fitted to the number of training images. Named data sets
have recipes of their own, and the runs of sweeps and comparisons must have equal settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from vitctl.config.flag import flag_name
from vitctl.config.train_config import TrainConfig
from vitctl.models import find_model
from vitctl.units import plural

FITTED = ("bs", "epochs")
"""Settings that can be fitted: batch size and epochs."""

STEPS = 300
"""Optimizer steps that a run should have.

Measured on 60 images of discs in three colours, of which the recipe's ten steps classify 50 to 70 % correctly: 300
steps of 8 images reach 95 %, and steps of 16 images no more. The recipe's learning rate suits both.
"""

LEAST_BATCH = 8
"""Smallest batch size to fit: gradients of fewer images are mostly noise."""


def free_settings(config: TrainConfig, given: Container[str]) -> tuple[str, ...]:
    """Return the settings that a new run may fit to the number of its training images.

    Args:
        config: the run's settings, as resolved from the recipe.
        given: names of the settings that file or flags give.
    """
    sized = config.dataset == "folder" and config.limit_train is None
    if not sized or config.epochs is None or config.max_steps or config.max_time:
        return ()
    return tuple(name for name in FITTED if name not in given)


def fit_to_images(config: TrainConfig, images: int, free: Container[str]) -> TrainConfig:
    """Return the settings with about :data:`STEPS` optimizer steps or more.

    The batch size is halved first, down to :data:`LEAST_BATCH`, as more epochs would take more time. BatchNorm cannot
    train on one image, so networks with it get a batch size that leaves no single image for the last step.

    Args:
        config: the settings, with a length in epochs if any setting is free.
        images: number of training images.
        free: names of the settings that may change; see :func:`free_settings`.
    """
    while "bs" in free and config.bs > LEAST_BATCH and _steps(config, images) < STEPS:
        config = dataclasses.replace(config, bs=max(LEAST_BATCH, config.bs // 2))
    if "bs" in free and _single_left(config, images):
        config = dataclasses.replace(config, bs=config.bs + 1)
    if "epochs" in free and _steps(config, images) < STEPS:
        config = dataclasses.replace(config, epochs=-(-STEPS // _steps(config, images, epochs=1)))
    return config


def fitting_note(before: TrainConfig, after: TrainConfig, images: int) -> str:
    """Return a line about the settings that were fitted."""
    changed = [
        f"{flag_name(name)} {getattr(after, name)} instead of {getattr(before, name)}"
        for name in FITTED
        if getattr(after, name) != getattr(before, name)
    ]
    return (
        f"fitted to {plural(images, 'training image')}: {', '.join(changed)}; {plural(_steps(after, images), 'step')}"
    )


def _steps(config: TrainConfig, images: int, epochs: int | None = None) -> int:
    epochs = epochs or config.epochs
    assert epochs is not None
    return epochs * (-(-images // (config.bs * config.accumulate)) - _single_left(config, images))


def _single_left(config: TrainConfig, images: int) -> bool:
    """Return whether an epoch leaves out its last image, which would be a batch of its own."""
    batch = config.bs * config.accumulate
    return find_model(config.net).batchnorm and batch > 1 and images > batch and images % batch == 1
