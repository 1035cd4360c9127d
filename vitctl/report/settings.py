"""Settings in which runs differ from each other, or a run from its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitctl.config import FLAGS, OPTION_TABLES, RUNS, TrainConfig, flag_name, resolve_config
from vitctl.errors import RequestError
from vitctl.report.run import RunRecord
from vitctl.runs import comparing

_ENVIRONMENT = {
    "vitctl": "vitctl",
    "git_commit": "commit",
    "torch": "torch",
    "device_name": "device",
    "precision": "precision",
    "threads": "threads",
    "data_sha256": "digest of the data",
}
"""Facts of a run's last session to compare, with their labels."""

SettingRow = tuple[str, list[str]]
"""A label and the value in each column."""


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as flags and texts; the options of a network, optimizer or augmentation become rows of their own.

    A setting that is off or has no value is an empty text.
    """
    rows: dict[str, str] = {}
    for name, value in settings.items():
        flag = flag_name(name)
        if isinstance(value, Mapping):
            stem = flag.removesuffix("-options")
            rows.update({f"{stem}: {option}": _text(each) for option, each in value.items()})
        else:
            rows[flag] = _text(value)
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


_OPTIONS = tuple(f"{flag_name(table).removesuffix('-options')}: " for table in OPTION_TABLES)


def differing(columns: Sequence[Mapping[str, str]]) -> list[SettingRow]:
    """Return the rows whose values are not the same in all columns; a missing value is an empty text.

    Options that not all networks, optimizers or augmentations have are left out: their names already differ.
    """
    found = comparing.differing([{label: text for label, text in column.items() if text} for column in columns])
    return [
        (label, [text or "" for text in texts])
        for label, texts in found.items()
        if not label.startswith(_OPTIONS) or all(label in column for column in columns)
    ]


def between_runs(runs: Sequence[RunRecord]) -> list[SettingRow]:
    """Return the settings, and then the versions, devices and data, that are not the same in all runs."""
    settings = [flat_settings(run.settings) for run in runs]
    facts = [{label: _fact(run, key) for key, label in _ENVIRONMENT.items()} for run in runs]
    return [*differing(settings), *differing(facts)]


def _fact(run: RunRecord, key: str) -> str:
    text = _text(run.environment.get(key))
    if key in _DIGESTS and len(text) > _SHORT:
        return text[:_SHORT] + ("+" if text.endswith("+") else "")
    return text


_DIGESTS, _SHORT = ("git_commit", "data_sha256"), 10
"""Facts of which the first characters are shown."""


def from_recipe(run: RunRecord) -> list[SettingRow] | None:
    """Return the settings of a run that differ from those of its recipe for the same data set, with both values.

    A network and an optimizer of other than the recipe's choice are shown; the remaining settings are compared with those
    that the recipe has for them.

    Returns:
        Rows of the recipe's and the run's value; None if this version does not know the recipe or the settings.
    """
    if run.config is None:
        return None
    config = run.config
    asked = {"recipe": config.recipe, "dataset": config.dataset}
    chosen: dict[str, Any] = {"net": config.net, "opt": config.opt}
    if config.dataset == "folder":
        asked["data_dir"] = config.data_dir or str(RUNS)
    try:
        plain = resolve_config(asked)
        usual = resolve_config({**asked, **chosen, "pretrained": config.pretrained})
    except (RequestError, OSError):  # OSError: a path that the system refuses
        return None
    first = [(flag_name(name), [getattr(plain, name), chosen[name]]) for name in chosen]
    ours, theirs = (flat_settings(_relevant(each)) for each in (config, usual))
    rest = [row for row in differing([theirs, ours]) if row[0] not in map(flag_name, chosen)]
    return [row for row in first if row[1][0] != row[1][1]] + rest


def _relevant(config: TrainConfig) -> dict[str, Any]:
    free = {name for name, flag in FLAGS.items() if flag.resumable} - {"epochs", "max_steps", "device", "precision"}
    return {name: value for name, value in config.to_dict().items() if name not in free}


def same_but_seed(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return the runs in groups that differ only in their seed, and in settings that cannot affect a result.

    Runs whose settings this version does not know are groups of one.
    """
    groups: dict[Any, list[RunRecord]] = {}
    for run in runs:
        key: Any = id(run)
        if run.config is not None:
            settings = _relevant(run.config)
            settings.pop("seed")
            settings.pop("refits", None)
            key = (*sorted(flat_settings(settings).items()), tuple(run.classes))
        groups.setdefault(key, []).append(run)
    return list(groups.values())
