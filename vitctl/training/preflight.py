"""Checks of the settings before work starts, and of the session once its length is set."""

from __future__ import annotations

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.models.pretrained import locate
from vitctl.observer import Observer
from vitctl.optim import doubtful_betas
from vitctl.tracking.trackers import check_trackers
from vitctl.training.session import Session


def check_config(config: TrainConfig, observer: Observer, *, weights: bool = True) -> None:
    """Refuse settings that this machine does not support, before any data are read.

    Args:
        config: the settings.
        observer: receives warnings about settings that are valid but probably a mistake.
        weights: whether to check that pretrained weights are available.

    Raises:
        RequestError: a package, device, precision or weights file is not available.
    """
    check_trackers(config)
    devices.resolve_precision(config.precision, devices.resolve_device(config.device))
    if weights and config.pretrained != "false":
        locate(config.net, config.pretrained)
    if warning := doubtful_betas(config.opt, config.opt_options):
        observer.message(f"warning: {warning}")


def check_length(session: Session) -> None:
    """Refuse a warm-down that begins in the last epoch if the learning rate changes only between epochs.

    Raises:
        RequestError: the run is too short for its warm-down.
    """
    config, schedule = session.config, session.schedule
    last_epoch = (session.total_steps - 1) % session.steps_per_epoch + 1
    if config.warmdown and config.schedule_per == "epoch" and schedule.warmdown_steps <= last_epoch:
        raise RequestError(
            f"--warmdown {config.warmdown:g} begins in the last epoch and does nothing with --schedule-per epoch",
            hint="use --schedule-per step, or a larger --warmdown",
        )
