"""What a comparison of optimizers is: who takes part, with which settings, over which seeds; and its folder's name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitctl.config import ADAN_BETAS, ADANS, LENGTHS, TrainConfig, flag_name, resolve_config
from vitctl.errors import RequestError
from vitctl.optim import find_optimizer
from vitctl.registry import Value, format_spec, split_spec

FACTOR = 3.0
"""Of neighbouring learning rates of a search: the loss hardly moves within less."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One that takes part.

    Attributes:
        label: what it is called: as it was typed; given twice, the second is ``adam (2)``.
        slug: the label as part of a folder's name.
        config: its settings, with the first seed.
        searched: its learning rate is to be found by the search.
    """

    label: str
    slug: str
    config: TrainConfig
    searched: bool = False

    def at(self, seed: int, lr: float | None = None) -> TrainConfig:
        """Return the settings of a run."""
        return dataclasses.replace(self.config, seed=seed, lr=self.config.lr if lr is None else lr)


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison of optimizers.

    Attributes:
        contestants: at least two.
        seeds: each contestant runs once with each.
        lr_search: how many learning rates are tried for those without one of their own; 0 tries none.
    """

    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    lr_search: int = 0

    @property
    def config(self) -> TrainConfig:
        """The settings of the first, most of which are those of all."""
        return self.contestants[0].config

    def rates(self, contestant: Contestant) -> list[float]:
        """Return the learning rates to try, rising by :data:`FACTOR`, those of the settings in their middle."""
        middle = (self.lr_search - 1) / 2
        return [float(f"{contestant.config.lr * FACTOR ** (i - middle):.4g}") for i in range(self.lr_search)]

    def identity(self) -> dict[str, Any]:
        """Return what makes two comparisons the same, as plain JSON values."""
        optimizers = {
            each.label: {key: value for key, value in each.config.to_dict().items() if key != "seed"}
            for each in self.contestants
        }
        return {"optimizers": optimizers, "seeds": list(self.seeds), "lr_search": self.lr_search}

    @property
    def name(self) -> str:
        """What the comparison is called when nobody named it; the same for the same arguments."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        config = self.config
        return slug(f"{config.net}-{config.dataset}-{digest[:8]}")

    def grouped(self, group: str) -> ComparisonPlan:
        """Return the plan with all its runs in one W&B group, unless they have one or W&B is not told of them."""
        if self.config.wandb == "disabled" or self.config.wandb_group:
            return self
        members = tuple(
            dataclasses.replace(each, config=dataclasses.replace(each.config, wandb_group=group))
            for each in self.contestants
        )
        return dataclasses.replace(self, contestants=members)

    def unequal(self) -> list[str]:
        """Return sentences about settings, besides the optimizer's own, that are not the same for all: recipes' are so."""
        found = []
        own = {"opt", "opt_options", "lr", "weight_decay"}
        configs = {each.label: each.config.to_dict() for each in self.contestants}
        for name in self.config.to_dict():
            values = {label: config[name] for label, config in configs.items()}
            if name not in own and len({json.dumps(value) for value in values.values()}) > 1:
                said = ", ".join(f"{value} for {label}" for label, value in values.items())
                found.append(
                    f"The recipe {self.config.recipe} sets {flag_name(name)} by optimizer: {said}; give {flag_name(name)} to make "
                    f"it the same for all."
                )
        return found


def make_plan(
    specs: Sequence[str],
    settings: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    *,
    seeds: int = 3,
    lr_search: int | None = None,
) -> ComparisonPlan:
    """Return the comparison that the arguments ask for.

    Flags win over the file, and that over the sweep. A contestant's own ``lr`` and ``weight_decay`` win over them all. What
    belongs to one optimizer, such as ``adan_beta1`` or the options of a file's ``opt``, goes to that one alone.

    Args:
        specs: ``NAME[:key=value,...]`` each.
        settings: given by flag.
        file: of ``--config``.
        sweep: settings of a sweep's best trial.
        seeds: how many; they count up from the settings' ``seed``.
        lr_search: how many learning rates to try for those without one of their own; None: no search.

    Raises:
        RequestError: an unknown name or option, too few of something, or a combination that cannot be.
    """
    if len(specs) < 2:
        raise RequestError("compare-optimizers takes two optimizers or more; vitctl train --opt trains with one")
    if seeds < 1:
        raise RequestError(f"--seeds {seeds}: take 1 or more; a confidence interval needs 2")
    if "opt" in settings:
        raise RequestError(f"--opt {settings['opt']}: compare-optimizers takes the names of optimizers without a flag")
    given_betas = [name for name in ADAN_BETAS if name in settings]
    if given_betas and not any(spec.partition(":")[0] in ADANS for spec in specs):
        raise RequestError(
            f"{flag_name(given_betas[0])} belongs to {' and '.join(ADANS)}, and none of {', '.join(specs)} is one; leave it out"
        )
    base = _merged(dict(sweep or {}), dict(file or {}))
    members: list[Contestant] = []
    for spec in specs:
        config, own_rate = _resolve(spec, settings, base)
        label = _unused(spec, "{} ({})", {each.label for each in members})
        short = _unused(slug(label), "{}-{}", {each.slug for each in members})
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
        raise RequestError(f"--lr-search {plan.lr_search}: take 2 learning rates or more, such as --lr-search 5")
    if plan.config.val != "holdout":
        raise RequestError(
            f"--lr-search chooses by held-out accuracy, and --val {plan.config.val} holds no images out; use --val holdout"
        )
    if "lr" in settings:
        raise RequestError(f"--lr {settings['lr']:g} sets what --lr-search looks for; leave one of them out")
    if not any(each.searched for each in plan.contestants):
        raise RequestError("--lr-search has nothing to look for: every optimizer was given its lr; leave it out")


def _merged(sweep: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a sweep under those of a file."""
    if "opt" in file:
        sweep = {key: value for key, value in sweep.items() if key not in ("opt", "opt_options", *ADAN_BETAS)}
    if file.keys() & set(LENGTHS):
        sweep = {key: value for key, value in sweep.items() if key not in LENGTHS}
    return {**sweep, **file}


def _resolve(spec: str, settings: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[TrainConfig, bool]:
    """Return the settings of one contestant, and whether its own learning rate was given."""
    opt, inline = split_spec(spec, "compare-optimizers")
    find_optimizer(opt)
    base = dict(base)
    flags = dict(settings)
    for name in ("lr", "weight_decay"):
        if name in inline:
            flags.pop(name, None)

    base_opt, of_base = split_spec(str(base.pop("opt", opt)), "--opt")
    for name in ("lr", "weight_decay"):
        if name in of_base:
            base[name] = of_base.pop(name)
    options: dict[str, Any] = {}
    if base_opt == opt or {base_opt, opt} <= set(ADANS):
        options.update(base.get("opt_options", {}))
        options.update(of_base)
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


def _unused(word: str, pattern: str, taken: set[str]) -> str:
    number, chosen = 1, word
    while chosen in taken:
        number += 1
        chosen = pattern.format(word, number)
    return chosen


def slug(text: str) -> str:
    """Return ``text`` with what a folder's name had better not have replaced by hyphens."""
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.") or "x"


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return in what two identities differ, as ``name: asked (it has stored)``."""

    def leaves(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, each in value.items() for k, v in leaves(each, f"{path} {key}".strip()).items()}
        return {path: value}

    if set(stored.get("optimizers", {})) != set(asked["optimizers"]):
        return [f"optimizers {' '.join(asked['optimizers'])} (it has {' '.join(stored.get('optimizers', {}))})"]
    ours, theirs = leaves(asked), leaves(stored)
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            word = key
            for label in asked["optimizers"]:
                word = word.removeprefix(f"optimizers {label} ")
            found.setdefault(f"{word} {ours.get(key)} (it has {theirs.get(key)})", []).append(key)
    return list(found)
