"""Start and resume a run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitctl import devices
from vitctl.config import (
    FLAGS,
    LENGTHS,
    NAMED,
    NET_FLAGS,
    WARMUP_UNITS,
    TrainConfig,
    check_tracked,
    find_card,
    find_run,
    flag_name,
    is_run,
    pretrained_word,
    resolve_labels,
    split_warmup,
)
from vitctl.config.lr_scale import format_lr_scale
from vitctl.data import AUGMENTATIONS
from vitctl.data.layout import class_name
from vitctl.data.manifest import DATA_SHA256, MANIFEST, require_unchanged
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.observer import SILENT, Observer, Record
from vitctl.recipes import RECIPES
from vitctl.registry import or_list, split_spec
from vitctl.tracking.trackers import tracked
from vitctl.training.budget import TimePlan
from vitctl.training.checkpoint import Checkpoint
from vitctl.training.compiling import compile_network
from vitctl.training.loop import fit, run_start
from vitctl.training.pace import Pace
from vitctl.training.preflight import check_config, check_length
from vitctl.training.run_folder import RunFolder, check_folder_name, runs_in
from vitctl.training.session import Session, final_length, mixed_steps, run_length
from vitctl.training.setup import open_session
from vitctl.training.threads import settle_threads
from vitctl.units import plural, quoted


def start_run(
    config: TrainConfig,
    runs_dir: Path,
    name: str | None,
    observer: Observer = SILENT,
    *,
    started: float | None = None,
    free: Container[str] = (),
) -> Record:
    """Train a new run and return its summary.

    Args:
        config: the settings.
        runs_dir: parent folder of runs.
        name: name of the run's folder; None for a generated one.
        observer: receives every event.
        started: start of the run and of ``--max-time``, as :func:`time.monotonic` counts; None for now.
        free: settings that may be fitted to the number of training images; see :func:`vitctl.config.free_settings`.

    Raises:
        RequestError: device, data, network or folder are not available as requested; nothing was written.
        RunFailed, Interrupted: see :func:`vitctl.training.loop.fit`.
    """
    started = time.monotonic() if started is None else started
    check_config(config, observer)
    if name is not None:
        check_folder_name(name)
    if name is not None and is_run(runs_dir / name):
        RunFolder.create(runs_dir, name, config)  # raises the error before data are decoded
    watch = devices.CpuWatch()
    session = open_session(config, observer, free=free)
    settle_threads(session, watch, observer)
    # With refits, the settings are those of a run whose length is known.
    plan = TimePlan(session, started, runs_dir.absolute()) if config.max_time and config.refits is None else None
    if plan:
        plan.fit()  # raises, if the time is too short, before anything is written
    folder = RunFolder.create(runs_dir, name, session.config)
    with folder.training():
        if session.pretrained:
            observer.message(session.pretrained)
        with tracked(run_start(session, folder.path), session.config, observer) as observers:
            if plan:
                observer.message(plan.fit_again())
            folder.add_session(
                session.config,
                run_environment(session),
                0,
                **record_data(session, folder),
                **({"pretrained": session.pretrained} if session.pretrained else {}),
            )
            return fit_run(session, folder, observers, started, plan.pace() if plan else None)


def resume_run(
    path: Path,
    changes: Mapping[str, Any],
    observer: Observer = SILENT,
    *,
    accept_data: bool = False,
    started: float | None = None,
) -> Record:
    """Resume the run in ``path`` and return its summary; on the same machine, the weights are bit-identical.

    Args:
        path: the run's folder.
        changes: settings given again; only those marked ``resumable`` may differ from the stored ones.
        observer: receives every event.
        accept_data: continue even if the images changed.
        started: start of this session, as :func:`time.monotonic` counts; None for now.

    Raises:
        RequestError: the run is missing, a setting must not change, the images changed, or all checkpoints are damaged.
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
        if found and not found[1]["optimizer"]:  # as written by vitctl convert
            raise RequestError(
                f"{found[0]} has only weights and cannot be resumed",
                hint=f"use --pretrained {found[0]} to start a run from them",
            )
        extended = any(getattr(config, name) != getattr(stored, name) for name in ("epochs", "max_steps", "refits"))
        summary = folder.read_summary()
        if summary is not None and checkpoint is not None and not extended:
            observer.message(finished_message(folder, stored, config, changes, checkpoint["step"]))
            return summary

        asked_anew = changes.get("precision", "auto") != "auto" or config.precision != stored.precision
        precision = resumed_precision(config, document["sessions"], observer.message, asked_anew=asked_anew)
        # Warnings were printed when the run started.
        check_config(dataclasses.replace(config, precision=precision), SILENT, weights=False)
        session = open_session(config, observer, pretrained=checkpoint is None, resumed=True, precision=precision)
        accepted = accepted_changes(session, folder, document, checkpoint, accept_data=accept_data)
        if accepted:
            observer.message(f"continuing with images that changed: {accepted}")
        if extended:
            check_length(session)
        if found is not None and checkpoint is not None:
            restore_session(session, found[0], checkpoint)
            if extended:
                session.progress.stopped_early = False
                for message in describe_extension(session, stored, checkpoint):
                    observer.message(message)
        if config.compile:
            compile_network(session, observer.message)
        folder.resumed()
        folder.write_metrics(session.history)
        environment = run_environment(session)
        warn_of_differences(document["sessions"], environment, observer.message, dropout=has_dropout(config))
        folder.add_session(
            config,
            environment,
            session.progress.step,
            **record_data(session, folder),
            **({"accepted_data": accepted} if accepted else {}),
        )
        with tracked(run_start(session, folder.path), session.config, observer) as observers:
            return fit_run(session, folder, observers, started)


def fit_run(
    session: Session, folder: RunFolder, observers: Observer, started: float, pace: Pace | None = None
) -> Record:
    """Train to the end, compared with the recipe's card, and return the summary."""
    card = find_card(session.config, session.precision)
    return fit(session, folder, observers, resume_command(folder), started, card, pace)


def finished_message(
    folder: RunFolder, stored: TrainConfig, config: TrainConfig, changes: Mapping[str, Any], step: int
) -> str:
    """Return the message that a run has finished at ``step``, and which of ``changes`` are ignored.

    Raises:
        RequestError: the changes ask for another test, which only ``vitctl eval`` does.
    """
    path = folder.path
    if config.tta != stored.tta and config.tta != "none":
        raise RequestError(
            f"--tta {config.tta} has no effect: run {path} has finished and is not tested again",
            hint=f"run vitctl eval {quoted(path)} --tta {config.tta}",
        )
    unused = [
        f"{flag_name(name)} {value}"
        for name, value in changes.items()
        if getattr(config, name) != getattr(stored, name)
    ]
    ignored = f"; ignored: {', '.join(unused)}" if unused else ""
    return (
        f"nothing to resume: run {path} finished at step {step:,}{ignored}\n"
        f"to extend it: {resume_command(folder)} --epochs N"
    )


def accepted_changes(
    session: Session,
    folder: RunFolder,
    document: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None,
    *,
    accept_data: bool,
) -> str | None:
    """Return how the images differ from those that the run was trained on, or None if they are the same.

    Raises:
        RequestError: they differ, and ``accept_data`` is false or the classes differ too.
    """
    same_classes = checkpoint is None or (*map(class_name, checkpoint["classes"]),) == session.dataset.classes
    return require_unchanged(
        session.dataset.manifest,
        recorded_data(document, checkpoint),
        folder.path / MANIFEST,
        session.dataset.source,
        accept=accept_data and same_classes,
        hint="restore them, or add --accept-data to continue with them as they are"
        if same_classes
        else "restore them, or start a new run, as the classes changed too",
    )


def restore_session(session: Session, path: Path, checkpoint: Checkpoint) -> None:
    """Restore a session from the checkpoint at ``path``.

    Raises:
        RequestError: the checkpoint does not fit, or the run's new length is less than the number of steps taken.
    """
    check_not_shorter(session, session.config, checkpoint["epoch"], checkpoint["step"])
    try:
        session.restore(checkpoint)
    except RequestError as error:
        error.add_context(str(path))
        raise
    session.last_saved = path


def describe_extension(session: Session, stored: TrainConfig, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield messages about the new length of a run: how learning rate and mixing change, and which settings stay.

    Args:
        session: the session with the new length, restored from ``checkpoint``.
        stored: settings of the run with its earlier length.
        checkpoint: its newest checkpoint.
    """
    config, step = session.config, checkpoint["step"]
    stored_schedule = dataclasses.replace(
        session.schedule,
        total_steps=run_length(stored, session.steps_per_epoch),
        refits=tuple((step, length) for step, length in stored.refits or ()),
        warmup_steps=checkpoint["scheduler"]["warmup_steps"],
        warmdown_steps=checkpoint["scheduler"]["warmdown_steps"],
    )
    now, before = (config.lr * schedule.factor(step) for schedule in (session.schedule, stored_schedule))
    yield (
        f"the run now has {plural(session.total_steps, 'step')}, and its {config.schedule} schedule is stretched:\n"
        f"the learning rate continues at {now:.3g}, not at {before:.3g}"
    )
    if kept := kept_recipe_settings(stored, config):
        yield kept
    old_end, new_end = mixed_steps(stored, run_length(stored, session.steps_per_epoch)), session.batches.mixed_steps
    if config.mix_off and new_end is not None and old_end <= step < new_end:
        yield f"mixup and CutMix are on again until step {new_end:,} (--mix-off {config.mix_off:g})"


def record_data(session: Session, folder: RunFolder) -> dict[str, str]:
    """Write the manifest of the session's images, and return their digest for ``config.json``, if they have files."""
    manifest = session.dataset.manifest
    if manifest is None:
        return {}
    manifest.write(folder.path / MANIFEST)
    return {DATA_SHA256: manifest.digest}


def recorded_data(document: Mapping[str, Any], checkpoint: Mapping[str, Any] | None) -> str | None:
    """Return the digest of the images that a run was last trained on, or None if an earlier version trained it."""
    last = document["sessions"][-1] if document["sessions"] else {}
    digest = last.get(DATA_SHA256) or (checkpoint or {}).get(DATA_SHA256)
    return str(digest) if digest else None


def find_newest(runs_dir: Path, settings: Mapping[str, Any]) -> Path:
    """Return the newest run in ``runs_dir`` that has the given settings.

    Settings that ``--resume`` may change are ignored, except the length: another length may be that of another run.

    Raises:
        RequestError: no run has the settings.
    """
    runs = runs_in(runs_dir)
    for run in runs:
        try:
            stored = TrainConfig.from_dict(RunFolder(run).read_document()["config"])
            changed_config(stored, settings)
        except RequestError:  # other settings, or those of another version of vitctl
            continue
        if all(same_value(stored, name, settings[name]) for name in LENGTHS if name in settings):
            return run
    if not runs:
        raise RequestError(f"no run in {runs_dir} to resume", hint="use --resume RUN, or remove --resume")
    raise RequestError(
        f"no run in {runs_dir} has these settings", hint=f"use --resume {or_list([quoted(run) for run in runs[:3]])}"
    )


def kept_recipe_settings(stored: TrainConfig, config: TrainConfig) -> str:
    """Return a message about settings that the recipe chose for the stored length only, or ``""``."""
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
    return f"the run keeps {' and '.join(kept)}, which recipe {config.recipe} sets for {ran}" if kept else ""


def run_environment(session: Session) -> dict[str, Any]:
    """Return what a run's result depends on, to the last bit, besides its settings."""
    return {
        **devices.environment(session.device),
        "micro_batch": session.micro_batch,
        "precision": session.precision,
        "compiled": session.compile_time is not None,
    }


def resumed_precision(
    config: TrainConfig, sessions: list[dict[str, Any]], warn: Callable[[str], None], *, asked_anew: bool
) -> str:
    """Return the precision in which a run continues: that of its last session, or fp32 if the device does not have it.

    Args:
        config: settings of the run.
        sessions: environments of its earlier sessions.
        warn: receives a warning if the device does not have the precision.
        asked_anew: whether the user asks for a precision, which then replaces that of the last session.

    Raises:
        RequestError: the device does not have the precision that the user asks for.
    """
    device, bf16_devices = devices.resolve_device(config.device), find_model(config.net).bf16
    if asked_anew or not sessions:
        return devices.resolve_precision(config.precision, device, bf16_devices)
    precision = devices.kept_precision(sessions[-1], config.precision, device, bf16_devices)
    before = sessions[-1].get("precision", precision)
    if before not in ("fp32", *devices.half_precisions(device)):
        warn(f"warning: this {device} has no instructions for {before}: the run continues in {precision}")
    return precision


def resume_command(folder: RunFolder) -> str:
    """Return the command that resumes a run."""
    return f"vitctl train --resume {quoted(folder.path)}"


def changed_config(stored: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the stored settings with the given changes.

    Raises:
        RequestError: a setting that a resumed run must keep would change.
    """
    if "labels" in changes:
        place = changes.get("data_dir", stored.data_dir)
        changes = {**changes, "labels": resolve_labels(changes["labels"], stored.dataset, place)}
    refused = {
        flag_name(name): f"{flag_name(name)} {_shown(value)} (the run has {_shown(stored_value(stored, name))})"
        for name, value in changes.items()
        if not FLAGS[name].resumable and not same_value(stored, name, value)
    }
    steps = final_length(stored, stored.max_steps) if stored.max_steps else 0
    if "max_time" in changes and not same_value(stored, "max_time", changes["max_time"]):
        length = plural(steps, "step") if steps else plural(stored.epochs or 0, "epoch")
        raise RequestError(
            f"--max-time {changes['max_time']} only sets the length of new runs; this run has {length}",
            hint="use --max-steps or --epochs to change its length",
        )
    if refused:
        allowed = ", ".join(flag_name(name) for name, flag in FLAGS.items() if flag.resumable)
        raise RequestError(
            f"--resume cannot change {', '.join(refused.values())}",
            hint=f"remove {', '.join(refused)}, or start a new run; --resume may change only {allowed}",
        )
    values = {name: value for name, value in changes.items() if FLAGS[name].resumable}
    if stored.refits is not None and values.get("max_steps") == steps:
        del values["max_steps"]  # the length that the run has already
    if "max_steps" in values and "epochs" not in values:
        values["epochs"] = values["max_time"] = None
    elif "epochs" in values and "max_steps" not in values:
        values["max_steps"] = values["max_time"] = None
    if "epochs" in values or "max_steps" in values:
        values["refits"] = None
    return dataclasses.replace(stored, **values)


def _shown(value: object) -> object:
    return (format_lr_scale(value) or "none") if isinstance(value, Mapping) else value


def stored_value(stored: TrainConfig, name: str) -> Any:
    """Return a setting of a run, also one that is stored in the options of network or optimizer."""
    if name in WARMUP_UNITS:
        count, unit = split_warmup(stored.warmup)
        return count if unit == WARMUP_UNITS[name] or not count else None
    if name in NET_FLAGS:
        return stored.net_options.get(NET_FLAGS[name])
    if name.startswith("adan_"):
        return stored.opt_options.get(name.removeprefix("adan_"))
    return getattr(stored, name)


def same_value(stored: TrainConfig, name: str, value: Any) -> bool:
    """Return whether ``value``, as given by a flag, equals the stored setting."""
    if name == "pretrained" and pretrained_word(value) not in ("true", "false"):
        value = str(find_run(Path(value).expanduser()).absolute())
    elif name == "pretrained":
        value = pretrained_word(value)
    if isinstance(value, Mapping):  # the recipe may have set other factors
        return all(stored_value(stored, name).get(role, 1.0) == factor for role, factor in value.items())
    if value is True and name == "aug":
        return bool(AUGMENTATIONS[stored.aug].target)
    if value is True and FLAGS[name].when_true is not None:
        return bool(stored_value(stored, name))
    if name not in NAMED:
        return bool(stored_value(stored, name) == value)
    options = getattr(stored, f"{name}_options")
    word, given = split_spec(value, flag_name(name))
    if word != getattr(stored, name):
        return False
    common = {key: given.pop(key) for key in ("lr", "weight_decay") if name == "opt" and key in given}
    resolved = NAMED[name](word).resolve_options(given, f"{flag_name(name)} {word}")
    return all(options.get(key) == resolved[key] for key in given) and all(
        getattr(stored, key) == FLAGS[key].parse(key, text) for key, text in common.items()
    )


def check_not_shorter(session: Session, config: TrainConfig, epoch: int, step: int) -> None:
    """Refuse to make a run shorter than it already is.

    Raises:
        RequestError: the new length is less than the number of steps taken.
    """
    if session.total_steps < step:
        done_epochs = -(-step // session.steps_per_epoch)
        by_steps = config.max_steps is not None
        flag, least = ("--max-steps", step) if by_steps else ("--epochs", done_epochs)
        asked = config.max_steps if by_steps else config.epochs
        raise RequestError(
            f"{flag} {asked} is less than the run has done: {plural(epoch, 'epoch')}, {plural(step, 'step')}",
            hint=f"use {flag} {least} or more, or start a new run",
        )


def has_dropout(config: TrainConfig) -> bool:
    """Return whether the network has dropout or drop path, whose masks are random."""
    rates = [value for name, value in config.net_options.items() if "drop" in name]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def warn_of_differences(
    sessions: list[dict[str, Any]], now: dict[str, Any], warn: Callable[[str], None], *, dropout: bool
) -> None:
    """Warn if a change of the environment may make the resumed run differ from an uninterrupted one.

    Args:
        sessions: environments of the run's earlier sessions.
        now: the environment of this session.
        warn: called with the warning.
        dropout: whether the network draws dropout masks, which depend on device and micro-batch.
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
        other_masks = dropout and {"micro_batch", "device"} & {entry.split()[0] for entry in changed}
        what = "dropout masks" if other_masks else "the last bits of the result"
        warn(f"warning: {', '.join(changed)}: {what} may differ from an uninterrupted run")
