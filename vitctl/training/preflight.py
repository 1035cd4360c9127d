"""What is refused or doubted before work begins: once of the settings, and once of the session when its length is set."""

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
    """Refuse a run whose settings this machine cannot meet, before data are read.

    Args:
        config: the settings.
        observer: hears of settings that are allowed and probably a mistake.
        weights: whether the run starts from the pretrained weights that the settings ask for.

    Raises:
        RequestError: a missing package, device, precision or file of weights.
    """
    check_trackers(config)
    devices.resolve_precision(config.precision, devices.resolve_device(config.device))
    if weights and config.pretrained != "false":
        locate(config.net, config.pretrained)
    if doubt := doubtful_betas(config.opt, config.opt_options):
        observer.message(f"warning: {doubt}")


def check_length(session: Session) -> None:
    """Refuse a warm-down in which no epoch begins, where the rate changes at no other place.

    Raises:
        RequestError: the run is too short for its warm-down.
    """
    config, schedule = session.config, session.schedule
    last_epoch = (session.total_steps - 1) % session.steps_per_epoch + 1
    if config.warmdown and config.schedule_per == "epoch" and schedule.warmdown_steps <= last_epoch:
        raise RequestError(
            f"--warmdown {config.warmdown:g} begins in the last epoch, and with --schedule-per epoch the rate changes only "
            f"where an epoch begins; take a greater one, or --schedule-per step"
        )
