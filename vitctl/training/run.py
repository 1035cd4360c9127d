"""Starting, resuming and trying out a run: what ``vitctl train`` calls."""

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
from vitctl.data.dataset import LoadProgress
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.models.pretrained import locate
from vitctl.optim import doubtful_betas, find_optimizer
from vitctl.recipes import RECIPES
from vitctl.registry import Entry, lookup, split_spec
from vitctl.training.budget import TimePlan
from vitctl.training.compiling import compile_network
from vitctl.training.loop import Observer, Record, fit, train_step
from vitctl.training.run_folder import RunFolder
from vitctl.training.session import Session, mixed_steps, open_session, parameters, run_length
from vitctl.training.trackers import check_trackers, tracked
from vitctl.units import plural

Decoding = LoadProgress


def start_run(
    config: TrainConfig,
    runs_dir: Path,
    name: str | None,
    observer: Observer,
    decoding: Decoding | None = None,
    *,
    started: float | None = None,
) -> Record:
    """Train a new run and return its summary.

    Args:
        config: the settings.
        runs_dir: where run folders lie.
        name: of the folder; None makes one up.
        observer: told of everything.
        decoding: told of the progress of downloading data and decoding pictures.
        started: when the run's time began, also that of ``--max-time``, by :func:`time.monotonic`; None is now.

    Raises:
        RequestError: device, data, network or folder cannot be had; nothing was written.
        RunFailed, Interrupted: see :func:`vitctl.training.loop.fit`.
    """
    started = time.monotonic() if started is None else started
    check_trackers(config)
    if name is not None and (runs_dir / name / "config.json").exists():
        RunFolder.create(runs_dir, name, config)  # raises, before data are decoded
    session = open_session(config, decoding)
    if doubt := doubtful_betas(config.opt, config.opt_options):
        observer.message(f"warning: {doubt}")
    compile_network(session, observer.message)
    plan = TimePlan(session, started, runs_dir.absolute()) if config.max_time else None
    if plan:
        plan.fit()  # refused, where the time is too short, before anything is written
    session.check_warmdown()
    folder = RunFolder.create(runs_dir, name, session.config)
    with folder.locked():
        if session.pretrained:
            observer.message(session.pretrained)
        with tracked(session, folder, observer) as everyone:
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
    observer: Observer,
    decoding: Decoding | None = None,
    *,
    started: float | None = None,
) -> Record:
    """Go on with the run in ``path``, to bit-identical weights on the same machine, and return its summary.

    Args:
        path: the run's folder.
        changes: settings given anew; see ``resumable`` of :class:`vitctl.config.Flag` for those that may differ.
        observer: told of everything.
        decoding: told of the progress of downloading data and decoding pictures.
        started: when the time of this session began, by :func:`time.monotonic`; None is now.

    Raises:
        RequestError: no run there, a setting that may not change, or no whole checkpoint.
        RunFailed, Interrupted: see :func:`vitctl.training.loop.fit`.
    """
    started = time.monotonic() if started is None else started
    folder = RunFolder.open(path)
    with folder.locked():
        folder.remove_orphans()
        document = folder.read_document()
        stored = TrainConfig.from_dict(document["config"])
        config = changed_config(stored, changes)
        check_tracked(config.wandb, changes)
        check_trackers(config)
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

        session = open_session(config, decoding, pretrained=checkpoint is None)
        if extended:
            session.check_warmdown()
        if checkpoint is not None:
            check_length(session, config, checkpoint["epoch"], checkpoint["step"])
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
        compile_network(session, observer.message)
        folder.remove_summary()
        folder.write_metrics(session.history)
        environment = run_environment(session)
        warn_of_differences(document["sessions"], environment, observer.message, drops=drops(config))
        folder.add_session(config, environment, session.progress.step)
        with tracked(session, folder, observer) as everyone:
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


def check_length(session: Session, config: TrainConfig, epoch: int, step: int) -> None:
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


def dry_run(
    config: TrainConfig,
    decoding: Decoding | None = None,
    steps: int = 3,
    message: Callable[[str], None] = lambda _: None,
) -> Record:
    """Take a few real steps without saving anything, and return what a whole run would cost.

    Args:
        config: the settings.
        decoding: told of the progress of downloading data and decoding pictures.
        steps: that are timed.
        message: told what compiling took, or why it failed.

    Returns:
        ``params``, ``mflop`` (forward, one picture), ``tokens``, ``steps_per_epoch``, ``total_steps``, ``micro_batch``,
        ``step_time`` (seconds, median), ``images_per_second``, ``eta`` (seconds for the whole run, evaluations
        included), ``peak_memory`` (bytes), and the settings under ``config``.

    Raises:
        RequestError: device, data or network cannot be had as asked.
        RunFailed: memory ran out, or the loss is not finite.
    """
    started = time.monotonic()
    if config.pretrained != "false":
        locate(config.net, config.pretrained)  # what the run would be refused for
    if doubt := doubtful_betas(config.opt, config.opt_options):
        message(f"warning: {doubt}")
    session = open_session(config, decoding, pretrained=False)
    compile_network(session, message)
    if config.max_time:
        TimePlan(session, started).fit()
    session.check_warmdown()
    session.train_mode()
    times: list[float] = []
    for _ in range(1 + min(steps, session.total_steps)):  # the first one warms up
        start = time.perf_counter()
        train_step(session)
        devices.synchronize(session.device)
        times.append(time.perf_counter() - start)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.begin_epoch()
    step_time = sorted(times[1:])[len(times[1:]) // 2]
    batch = session.batches.batch_size if session.steps_per_epoch > 1 else session.batches.count
    evaluated = len(session.splits.val.index) * session.epochs if session.splits.val is not None else 0
    evaluated += len(session.splits.test.index)
    eta = session.total_steps * step_time + evaluated * step_time / batch / 3  # a step costs three forward passes

    return {
        "net": config.net,
        "params": parameters(session),
        "mflop": round(session.cost.mflop, 1),
        "tokens": session.cost.tokens,
        "train_images": session.batches.count,
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
