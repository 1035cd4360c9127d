"""Checks of the settings before work starts, and of the session once its length is set."""

from __future__ import annotations

from pathlib import Path

from vitctl import devices
from vitctl.config import TrainConfig, split_warmup
from vitctl.errors import RequestError
from vitctl.observer import Observer
from vitctl.optim import doubtful_betas
from vitctl.tracking.trackers import check_trackers
from vitctl.training.session import Session
from vitctl.units import plural


def check_config(config: TrainConfig, observer: Observer, *, weights: bool = True) -> None:
    """Refuse settings that this machine does not support, before any data are read.

    Args:
        config: the settings.
        observer: receives warnings about settings that are valid but probably a mistake.
        weights: whether to check that pretrained weights are available.

    Raises:
        RequestError: a package, device, precision or weights file is not available, or the device cannot compile.
    """
    check_trackers(config)
    device = devices.resolve_device(config.device)
    devices.resolve_precision(config.precision, device)
    if config.compile and not devices.policy_of(device).compiles:
        raise RequestError(
            f"--compile does not work on {device}: networks compiled by PyTorch compute wrong sums there",
            hint="remove --compile, or use --device cpu",
        )
    if weights:
        locate_weights(config)
    if warning := doubtful_betas(config.opt, config.opt_options):
        observer.message(f"warning: {warning}")


def locate_weights(config: TrainConfig) -> Path | None:
    """Return the file of the pretrained weights, downloaded if necessary, or None if the settings request none.

    Raises:
        RequestError: the file is not available.
    """
    if config.pretrained == "false":
        return None
    from vitctl.models.pretrained import locate  # imports timm, which takes seconds

    return locate(config.net, config.pretrained)


def check_length(session: Session) -> None:
    """Refuse a warm-up or warm-down that has no effect in a run of this length, or takes all of it.

    Raises:
        RequestError: the run is too short, or the learning rate changes too rarely.
    """
    config, schedule = session.config, session.schedule
    if split_warmup(config.warmup)[1]:
        if (
            schedule.warmup_steps >= session.total_steps
            or schedule.warmup_steps + schedule.warmdown_steps > session.total_steps
        ):
            rest = f" and --warmdown {config.warmdown:g} overlap in" if config.warmdown else " takes the whole run of"
            raise RequestError(
                f"--warmup {config.warmup}{rest} {plural(session.total_steps, 'step')}",
                hint="use a shorter --warmup, or --warmup 0.05 for a fraction of the run",
            )
        if config.schedule_per == "epoch" and 0 < schedule.warmup_steps <= session.steps_per_epoch:
            raise RequestError(
                f"--warmup {config.warmup} ends in the first epoch and does nothing with --schedule-per epoch",
                hint="use --schedule-per step, or a longer --warmup",
            )
    last_epoch = (session.total_steps - 1) % session.steps_per_epoch + 1
    if config.warmdown and config.schedule_per == "epoch" and schedule.warmdown_steps <= last_epoch:
        raise RequestError(
            f"--warmdown {config.warmdown:g} begins in the last epoch and does nothing with --schedule-per epoch",
            hint="use --schedule-per step, or a larger --warmdown",
        )
