"""Start and resume a run."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitctl import devices
from vitctl.config import FLAGS, TrainConfig, check_tracked, find_card, flag_name, pretrained_word
from vitctl.data import AUGMENTATIONS
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.observer import SILENT, Observer, Record
from vitctl.optim import find_optimizer
from vitctl.recipes import RECIPES
from vitctl.registry import Entry, lookup, split_spec
from vitctl.tracking.trackers import tracked
from vitctl.training.budget import TimePlan
from vitctl.training.compiling import compile_network
from vitctl.training.loop import fit, run_start
from vitctl.training.preflight import check_config, check_length
from vitctl.training.run_folder import RunFolder
from vitctl.training.session import Session, mixed_steps, run_length
from vitctl.training.setup import open_session
from vitctl.units import plural


def start_run(
    config: TrainConfig,
    runs_dir: Path,
    name: str | None,
    observer: Observer = SILENT,
    *,
    started: float | None = None,
) -> Record:
    """Train a new run and return its summary.

    Args:
        config: the settings.
        runs_dir: where run folders lie.
        name: of the folder; None makes one up.
        observer: receives every event.
        started: when the run's time began, also that of ``--max-time``, by :func:`time.monotonic`; None is now.

    Raises:
        RequestError: device, data, network or folder cannot be had; nothing was written.
        RunFailed, Interrupted: see :func:`vitctl.training.loop.fit`.
    """
    started = time.monotonic() if started is None else started
    check_config(config, observer)
    if name is not None and (runs_dir / name / "config.json").exists():
        RunFolder.create(runs_dir, name, config)  # raises, before data are decoded
    session = open_session(config, observer)
    plan = TimePlan(session, started, runs_dir.absolute()) if config.max_time else None
    if plan:
        plan.fit()  # refused, where the time is too short, before anything is written
    folder = RunFolder.create(runs_dir, name, session.config)
    with folder.training():
        if session.pretrained:
            observer.message(session.pretrained)
        with tracked(run_start(session, folder.path), session.config, observer) as everyone:
            if plan:
                observer.message(plan.fit_again())
            folder.add_session(
                session.config,
                run_environment(session),
                0,
                **({"pretrained": session.pretrained} if session.pretrained else {}),
            )
            return fit(session, folder, everyone, resume_command(folder), started, find_card(session.config))


def resume_run(
    path: Path,
    changes: Mapping[str, Any],
    observer: Observer = SILENT,
    *,
    started: float | None = None,
) -> Record:
    """Go on with the run in ``path``, to bit-identical weights on the same machine, and return its summary.

    Args:
        path: the run's folder.
        changes: settings given anew; see ``resumable`` of :class:`vitctl.config.Flag` for those that may differ.
        observer: receives every event.
        started: when the time of this session began, by :func:`time.monotonic`; None is now.

    Raises:
        RequestError: no run there, a setting that may not change, or no whole checkpoint.
        RunFailed, Interrupted: see :func:`vitctl.training.loop.fit`.
    """
    started = time.monotonic() if started is None else started
    folder = RunFolder.open(path)
    with folder.training():
        folder.remove_orphans()
        document = folder.read_document()
        stored = TrainConfig.from_dict(document["config"])
        config = changed_config(stored, changes)
        check_tracked(config.wandb, changes)
        found = folder.newest(observer.message, set_aside=True)
        checkpoint = found[1] if found else None
        if found and not found[1]["optimizer"]:  # vitctl convert makes such ones
            raise RequestError(f"{found[0]} has weights alone; --pretrained {found[0]} starts a run from them")
        extended = (config.epochs, config.max_steps) != (stored.epochs, stored.max_steps)
        summary = folder.read_summary()
        if summary is not None and checkpoint is not None and not extended:
            if config.tta != stored.tta and config.tta != "none":
                raise RequestError(
                    f"--tta {config.tta}: the run {path} has finished and is tested once; see vitctl eval "
                    f"{shlex.quote(str(path))} --tta {config.tta}"
                )
            idle = [
                f"{flag_name(name)} {value}"
                for name, value in changes.items()
                if getattr(config, name) != getattr(stored, name)
            ]
            unused = f", and {', '.join(idle)} changes nothing" if idle else ""
            observer.message(
                f"the run {path} has finished (step {checkpoint['step']}); nothing to resume{unused}. To train it on: "
                f"{resume_command(folder)} --epochs N"
            )
            return summary

        check_config(config, SILENT, weights=False)  # doubts were reported when the run began
        session = open_session(config, observer, pretrained=checkpoint is None, resumed=True)
        if extended:
            check_length(session)
        if checkpoint is not None:
            check_not_shorter(session, config, checkpoint["epoch"], checkpoint["step"])
            before = session.schedule.factor(checkpoint["step"])
            session.restore(checkpoint)
            session.last_saved = found[0] if found else None
            if extended:
                session.progress.stopped_early = False
                then = dataclasses.replace(
                    session.schedule,
                    total_steps=run_length(stored, session.steps_per_epoch),
                    warmup_steps=checkpoint["scheduler"]["warmup_steps"],
                    warmdown_steps=checkpoint["scheduler"]["warmdown_steps"],
                ).factor(checkpoint["step"])
                observer.message(
                    f"the run now has {session.total_steps} steps; its {config.schedule} schedule is stretched over them, so "
                    f"the learning rate goes on at {config.lr * before:.3g} instead of {config.lr * then:.3g}"
                )
                ended, again = (
                    mixed_steps(stored, run_length(stored, session.steps_per_epoch)),
                    session.batches.mixed_steps,
                )
                if kept := kept_of_recipe(stored, config):
                    observer.message(kept)
                if config.mix_off and again is not None and ended <= checkpoint["step"] < again:
                    observer.message(
                        f"mixup and CutMix are on again until step {again:,} (--mix-off {config.mix_off:g})"
                    )
        if config.compile:
            compile_network(session, observer.message)
        folder.resumed()
        folder.write_metrics(session.history)
        environment = run_environment(session)
        warn_of_differences(document["sessions"], environment, observer.message, drops=drops(config))
        folder.add_session(config, environment, session.progress.step)
        with tracked(run_start(session, folder.path), session.config, observer) as everyone:
            return fit(session, folder, everyone, resume_command(folder), started, find_card(session.config))


def kept_of_recipe(stored: TrainConfig, config: TrainConfig) -> str:
    """Return what to say of values that the recipe has for runs of the stored length, not of the new one; or nothing."""
    recipe = RECIPES.get(config.recipe)
    if recipe is None or stored.epochs is None or config.epochs is None:
        return ""
    then, now = (recipe.overrides(c.net, c.opt, c.dataset, None, c.epochs) for c in (stored, config))
    kept = [
        f"{flag_name(name)} {value}"
        for name, value in then.items()
        if name in FLAGS and name != "epochs" and value != now.get(name) and value == stored_value(stored, name)
    ]
    ran = plural(stored.epochs, "epoch")
    return f"the run keeps {' and '.join(kept)}, which recipe {config.recipe} has for {ran}" if kept else ""


def run_environment(session: Session) -> dict[str, Any]:
    """Return what the bits of a run depend on besides its settings."""
    return {
        **devices.environment(session.device),
        "micro_batch": session.micro_batch,
        "precision": session.precision,
        "compiled": session.compile_time is not None,
    }


def resume_command(folder: RunFolder) -> str:
    """Return what to type to go on with a run."""
    return f"vitctl train --resume {shlex.quote(str(folder.path))}"


def changed_config(stored: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the stored settings with those changes that a resumed run allows.

    Raises:
        RequestError: another setting differs from the stored one; all are named.
    """
    refused = [
        f"{flag_name(name)} {value} (the run has {stored_value(stored, name)})"
        for name, value in changes.items()
        if not FLAGS[name].resumable and not same_value(stored, name, value)
    ]
    if "max_time" in changes and not same_value(stored, "max_time", changes["max_time"]):
        raise RequestError(
            f"--max-time {changes['max_time']} sets the length of a new run; this one has "
            f"{plural(stored.max_steps, 'step') if stored.max_steps else plural(stored.epochs or 0, 'epoch')}, which --max-steps "
            f"or --epochs changes"
        )
    if refused:
        allowed = ", ".join(flag_name(name) for name, flag in FLAGS.items() if flag.resumable)
        raise RequestError(
            f"--resume goes on with the stored settings, and {', '.join(refused)} would change them; only {allowed} may "
            f"change: leave it out, or start a new run"
        )
    values = {name: value for name, value in changes.items() if FLAGS[name].resumable}
    if "max_steps" in values and "epochs" not in values:
        values["epochs"] = values["max_time"] = None
    elif "epochs" in values and "max_steps" not in values:
        values["max_steps"] = values["max_time"] = None
    return dataclasses.replace(stored, **values)


def stored_value(stored: TrainConfig, name: str) -> Any:
    """Return the setting ``name`` of a run, also where the flag ends in the options of net or optimizer."""
    if name in ("patch", "convkernel"):
        return stored.net_options.get("patch_size" if name == "patch" else "kernel_size")
    if name.startswith("adan_"):
        return stored.opt_options.get(name.removeprefix("adan_"))
    return getattr(stored, name)


_FINDERS: Mapping[str, Callable[[str], Entry]] = {
    "net": find_model,
    "opt": find_optimizer,
    "aug": lambda name: lookup(AUGMENTATIONS, name, "--aug"),
}
"""Where the named things with options are looked up."""


def same_value(stored: TrainConfig, name: str, value: Any) -> bool:
    """Whether ``value``, as given by flag, says what the run does already."""
    if name == "pretrained" and pretrained_word(value) not in ("true", "false"):
        value = str(Path(value).expanduser().absolute())
    elif name == "pretrained":
        value = pretrained_word(value)
    if value is True and FLAGS[name].when_true is not None:
        return bool(stored_value(stored, name))
    if name not in ("net", "opt", "aug"):
        return bool(stored_value(stored, name) == value)
    options = getattr(stored, f"{name}_options")
    word, given = split_spec(value, flag_name(name))
    if word != getattr(stored, name):
        return False
    common = {key: given.pop(key) for key in ("lr", "weight_decay") if name == "opt" and key in given}
    resolved = _FINDERS[name](word).resolve_options(given, f"{flag_name(name)} {word}")
    return all(options.get(key) == resolved[key] for key in given) and all(
        getattr(stored, key) == FLAGS[key].parse(key, text) for key, text in common.items()
    )


def check_not_shorter(session: Session, config: TrainConfig, epoch: int, step: int) -> None:
    """Refuse to shorten a run below what it has done."""
    if session.total_steps < step:
        flag, asked = ("--max-steps", config.max_steps) if config.max_steps else ("--epochs", config.epochs)
        raise RequestError(
            f"{flag} {asked} is less than the run has done already ({epoch} epochs, {step} steps); ask for more, or start a "
            f"new run"
        )


def drops(config: TrainConfig) -> bool:
    """Return whether the network of these settings draws while it trains: dropout, or stochastic depth."""
    rates = [value for name, value in config.net_options.items() if "drop" in name]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def warn_of_differences(
    sessions: list[dict[str, Any]], now: dict[str, Any], warn: Callable[[str], None], *, drops: bool
) -> None:
    """Say what may make the resumed run differ from an uninterrupted one.

    Args:
        sessions: environments of the run so far.
        now: that of this one.
        warn: takes the sentence.
        drops: the network draws dropout masks, piece by piece on its device.
    """
    if not sessions:
        return
    before = sessions[-1]
    changed = [
        f"{key} {before[key]} -> {now[key]}"
        for key in ("torch", "device_name", "device", "threads", "micro_batch", "precision", "compiled", "vitctl")
        if key in before and before[key] != now[key]
    ]
    if changed:
        other = {"micro_batch", "device"} & {entry.split()[0] for entry in changed} if drops else set()
        how = "by other dropout masks" if other else "in its last bits"
        warn(f"{', '.join(changed)}: the result may differ {how} from that of an uninterrupted run")
