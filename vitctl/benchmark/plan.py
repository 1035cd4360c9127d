"""Plan of an optimizer comparison: the contestants, their settings, the seeds, and the name of the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitctl.config import ADAN_BETAS, ADANS, LENGTHS, TrainConfig, flag_name, resolve_config
from vitctl.data import CROP_DEFAULTS
from vitctl.errors import RequestError
from vitctl.optim import find_optimizer
from vitctl.registry import Value, format_spec, or_list, split_spec

_LATER = ("labels", "strict_data", "class_weights", "holdout_by", "test_fraction", "fit", "value_range", "refits")
_ADDED: dict[str, Any] = {**{name: getattr(TrainConfig, name) for name in _LATER}, "lr_scale": {}}
"""Settings that comparisons of earlier versions lack, with their defaults.

They identify a comparison only if they have been changed.
"""

_ADDED_OPTIONS: dict[str, dict[str, Any]] = {
    "net_options": {"bn_momentum": 0.1, "bn_scale": True},
    "opt_options": {"renormalize": "none"},
    "aug_options": CROP_DEFAULTS,
}
"""The same for options of networks, optimizers and augmentations."""

FACTOR = 3.0
"""Ratio of neighbouring learning rates in a search; the loss hardly changes within a smaller factor."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An optimizer of a comparison.

    Attributes:
        label: the optimizer as it was typed; the second of two equal ones is ``adam (2)``.
        slug: the label in names of folders.
        config: settings with the first seed.
        searched: whether the learning-rate search applies.
    """

    label: str
    slug: str
    config: TrainConfig
    searched: bool = False

    def at(self, seed: int, lr: float | None = None) -> TrainConfig:
        """Return the settings of the run with ``seed``."""
        return dataclasses.replace(self.config, seed=seed, lr=self.config.lr if lr is None else lr)


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison of optimizers.

    Attributes:
        contestants: two or more optimizers.
        seeds: seeds of each contestant's runs.
        lr_search: number of learning rates to try for contestants without one of their own; 0 for no search.
    """

    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    lr_search: int = 0

    @property
    def config(self) -> TrainConfig:
        """Settings of the first contestant; most settings are the same for all."""
        return self.contestants[0].config

    def rates(self, contestant: Contestant) -> list[float]:
        """Return the learning rates to try, :data:`FACTOR` apart, centred on that of the settings."""
        middle = (self.lr_search - 1) / 2
        return [float(f"{contestant.config.lr * FACTOR ** (i - middle):.4g}") for i in range(self.lr_search)]

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a comparison, as JSON values."""
        optimizers = {
            each.label: {
                key: _changed(value, _ADDED_OPTIONS[key]) if key in _ADDED_OPTIONS else value
                for key, value in _changed(each.config.to_dict(), _ADDED).items()
                if key != "seed"
            }
            for each in self.contestants
        }
        return {"optimizers": optimizers, "seeds": list(self.seeds), "lr_search": self.lr_search}

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> ComparisonPlan:
        """Restore a plan from its identity.

        Raises:
            RequestError: another version of vitctl wrote the settings.
        """
        members: list[Contestant] = []
        for label, values in identity["optimizers"].items():
            spec = re.sub(r" \(\d+\)$", "", label)
            own_rate = "lr" in split_spec(spec, "compare-optimizers")[1]
            short = _unused_name(slug(label), "{}-{}", {each.slug for each in members})
            config = TrainConfig.from_dict({**values, "seed": identity["seeds"][0]})
            searched = bool(identity["lr_search"]) and not own_rate
            members.append(Contestant(label=label, slug=short, config=config, searched=searched))
        return cls(contestants=tuple(members), seeds=tuple(identity["seeds"]), lr_search=identity["lr_search"])

    @property
    def name(self) -> str:
        """Default name of the comparison, derived from the settings."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        config = self.config
        return slug(f"{config.net}-{config.dataset}-{digest[:8]}")

    def grouped(self, group: str) -> ComparisonPlan:
        """Return the plan with all runs in the W&B group ``group``, unless they have a group or W&B is disabled."""
        if self.config.wandb == "disabled" or self.config.wandb_group:
            return self
        members = tuple(
            dataclasses.replace(each, config=dataclasses.replace(each.config, wandb_group=group))
            for each in self.contestants
        )
        return dataclasses.replace(self, contestants=members)

    def unequal_settings(self) -> list[str]:
        """Return a sentence about each setting that differs between contestants because of the recipe."""
        found = []
        own = {"opt", "opt_options", "lr", "weight_decay"}
        configs = {each.label: each.config.to_dict() for each in self.contestants}
        for name in self.config.to_dict():
            values = {label: config[name] for label, config in configs.items()}
            if name not in own and len({json.dumps(value) for value in values.values()}) > 1:
                listed = ", ".join(f"{value} for {label}" for label, value in values.items())
                found.append(
                    f"The recipe {self.config.recipe} sets {flag_name(name)} per optimizer ({listed}); add {flag_name(name)} to use "
                    f"one value for all."
                )
        return found


def _changed(values: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` without those that equal their default in ``added``."""
    return {name: value for name, value in values.items() if name not in added or value != added[name]}


def make_plan(
    specs: Sequence[str],
    settings: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    *,
    seeds: int = 3,
    lr_search: int | None = None,
) -> ComparisonPlan:
    """Make the plan for the arguments of ``compare-optimizers``.

    Flags override the file, and the file overrides the sweep. A contestant's own ``lr`` and ``weight_decay`` override all
    of them. Options of one optimizer, such as ``adan_beta1`` or those of ``opt`` in a file, apply only to that optimizer.

    Args:
        specs: optimizers as ``NAME[:key=value,...]``.
        settings: settings given by flag.
        file: settings of ``--config``.
        sweep: settings of a sweep's best trial.
        seeds: number of seeds, which count up from the setting ``seed``.
        lr_search: number of learning rates to try for contestants without one of their own; None for no search.

    Raises:
        RequestError: an unknown name or option, an invalid number, or a combination without effect.
    """
    if len(specs) < 2:
        raise RequestError(
            "compare-optimizers needs two or more optimizers",
            hint="add another one, such as adamw, or use vitctl train --opt for a single one",
        )
    if seeds < 1:
        raise RequestError(
            f"--seeds {seeds} is too small", hint="use --seeds 1 or more; a confidence interval needs --seeds 2 or more"
        )
    if "opt" in settings:
        raise RequestError(
            f"compare-optimizers takes optimizers as arguments, not --opt {settings['opt']}",
            hint=f"remove --opt, and add {settings['opt']} to the arguments",
        )
    given_betas = [name for name in ADAN_BETAS if name in settings]
    if given_betas and not any(spec.partition(":")[0] in ADANS for spec in specs):
        raise RequestError(
            f"{flag_name(given_betas[0])} does nothing without {or_list(ADANS)}",
            hint=f"remove {flag_name(given_betas[0])}, or add {ADANS[0]} to the arguments",
        )
    base = _merged(dict(sweep or {}), dict(file or {}))
    members: list[Contestant] = []
    for spec in specs:
        config, own_rate = _resolve(spec, settings, base)
        label = _unused_name(spec, "{} ({})", {each.label for each in members})
        short = _unused_name(slug(label), "{}-{}", {each.slug for each in members})
        members.append(
            Contestant(label=label, slug=short, config=config, searched=lr_search is not None and not own_rate)
        )
    first = members[0].config.seed
    plan = ComparisonPlan(
        contestants=tuple(members), seeds=tuple(first + i for i in range(seeds)), lr_search=lr_search or 0
    )
    if lr_search is not None:
        _check_search(plan, settings)
    return plan


def _check_search(plan: ComparisonPlan, settings: Mapping[str, Any]) -> None:
    if plan.lr_search < 2:
        raise RequestError(
            f"--lr-search {plan.lr_search} is too small", hint="use --lr-search 2 or more, such as --lr-search 5"
        )
    if plan.config.val != "holdout":
        raise RequestError(
            f"--lr-search needs held-out images, and --val {plan.config.val} holds out none", hint="use --val holdout"
        )
    if "lr" in settings:
        raise RequestError("--lr and --lr-search both set the learning rate", hint="use one of them")
    if not any(each.searched for each in plan.contestants):
        raise RequestError(
            "--lr-search does nothing: every optimizer has an lr of its own",
            hint="remove --lr-search, or the lr of an optimizer",
        )


def _merged(sweep: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a sweep, overridden by those of a file."""
    if "opt" in file:
        sweep = {key: value for key, value in sweep.items() if key not in ("opt", "opt_options", *ADAN_BETAS)}
    if file.keys() & set(LENGTHS):
        sweep = {key: value for key, value in sweep.items() if key not in LENGTHS}
    return {**sweep, **file}


def _resolve(spec: str, settings: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[TrainConfig, bool]:
    """Return the settings of a contestant, and whether its spec sets the learning rate."""
    opt, inline = split_spec(spec, "compare-optimizers")
    find_optimizer(opt)
    base = dict(base)
    flags = dict(settings)
    for name in ("lr", "weight_decay"):
        if name in inline:
            flags.pop(name, None)

    base_opt, base_options = split_spec(str(base.pop("opt", opt)), "--opt")
    for name in ("lr", "weight_decay"):
        if name in base_options:
            base[name] = base_options.pop(name)
    options: dict[str, Any] = {}
    if base_opt == opt or {base_opt, opt} <= set(ADANS):
        options.update(base.get("opt_options", {}))
        options.update(base_options)
    base.pop("opt_options", None)
    for name in ADAN_BETAS:
        value = flags.pop(name, base.pop(name, None))
        if opt in ADANS and value is not None:
            options[name.removeprefix("adan_")] = value
    options.update(inline)
    flags["opt"] = format_spec(opt, {key: _typed(value) for key, value in options.items()})
    return resolve_config(flags, base), "lr" in inline


def _typed(value: Any) -> Value:
    return value if isinstance(value, (bool, int, float)) else str(value)


def _unused_name(word: str, pattern: str, taken: set[str]) -> str:
    number, chosen = 1, word
    while chosen in taken:
        number += 1
        chosen = pattern.format(word, number)
    return chosen


def slug(text: str) -> str:
    """Return ``text`` as part of a folder's name, with unsuitable characters replaced by hyphens."""
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.") or "x"


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities, such as ``epochs 2 (stored: 1)``."""

    def leaves(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, each in value.items() for k, v in leaves(each, f"{path} {key}".strip()).items()}
        return {path: value}

    if set(stored.get("optimizers", {})) != set(requested["optimizers"]):
        return [f"optimizers {' '.join(requested['optimizers'])} (stored: {' '.join(stored.get('optimizers', {}))})"]
    ours, theirs = leaves(requested), leaves(stored)
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            word = key
            for label in requested["optimizers"]:
                word = word.removeprefix(f"optimizers {label} ")
            found.setdefault(f"{word} {ours.get(key)} (stored: {theirs.get(key)})", []).append(key)
    return list(found)
