"""Entries for timm's optimizers, made from timm's registry."""

from __future__ import annotations

import importlib.util
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim import Optimizer

from vitctl.errors import RequestError
from vitctl.optim.entry import TIMM, OptimizerEntry
from vitctl.registry import Option, Value, check_range, convert, unknown

Groups = list[dict[str, Any]]

_SET_ELSEWHERE = {"params", "lr", "weight_decay", "betas"}
_NOT_OPTIONS = {"foreach", "fused", "capturable", "differentiable", "verbose", "maximize", "adamw_lr"}
"""Arguments that do not affect the result, are harmful, or are deprecated in timm."""

_USE_ANOTHER = "use another optimizer, such as --opt adamw"

_FALLBACK_LR = 1e-3
"""Default learning rate of optimizers for which timm has none."""


@dataclass(frozen=True, kw_only=True)
class TimmOption(Option):
    """An option of a timm optimizer.

    Attributes:
        default: default value; None leaves it to timm.
        kind: bool, int, float or str.
    """

    default: Any = None
    kind: type = float

    def parse(self, value: object, what: str) -> Value:
        """Convert ``value`` to :attr:`kind`; see :meth:`vitctl.registry.Option.parse`."""
        parsed: Value = convert(value, self.kind, what)
        check_range(parsed, what, low=self.low, below=self.below)
        return parsed


@dataclass(frozen=True, kw_only=True)
class TimmOptimizerEntry(OptimizerEntry):
    """An optimizer of timm.

    Attributes:
        name: timm's name for it.
    """

    target: str = field(default="vitctl.optim.timm_rows:build_timm", init=False)
    source: str = field(default="timm", init=False)
    name: str

    def load(self) -> Any:
        """Return the builder of this optimizer."""

        def build(groups: Groups, *, lr: float, **options: Value) -> Optimizer:
            return build_timm(self.name, groups, lr=lr, **options)

        return build

    def resolve_options(self, given: Mapping[str, object], what: str) -> dict[str, Value]:
        """Return the values of all options, except those that are not given and have no default in timm.

        Raises:
            RequestError: unknown option, or a value that the optimizer rejects.
        """
        options = {name: value for name, value in super().resolve_options(given, what).items() if value is not None}
        settings: dict[str, Any] = {"lr": _FALLBACK_LR, **options}
        self._try(f"{what} rejects the given options", f"use {what} without options", **settings)
        return options

    def check_rate(self, lr: float, weight_decay: float, options: Mapping[str, Value]) -> None:
        """Check a learning rate and weight decay for limits of the optimizer: MADGRAD's rate must be positive.

        Raises:
            RequestError: the optimizer rejects one of them.
        """
        what = f"--opt {TIMM}{self.name} rejects --lr {lr:g} or --weight-decay {weight_decay:g}"
        hint = f"use its defaults: --lr {self.lr:g} --weight-decay {self.weight_decay:g}"
        self._try(what, hint, weight_decay, lr=lr, **options)

    def _try(self, what: str, hint: str, weight_decay: float = 0.0, **settings: Any) -> None:
        """Take a step with these settings, as some optimizers check them only in the first step."""
        sample = nn.Parameter(torch.zeros(2, 2))
        sample.grad = torch.eye(2)
        try:
            with torch.compiler.set_stance("force_eager"):
                build_timm(self.name, [{"params": [sample], "weight_decay": weight_decay}], **settings).step()
        except Exception as error:
            raise RequestError(f"{what}: {' '.join(str(error).split())}", hint=hint) from error


def timm_names() -> list[str]:
    """Return the names of timm's optimizers, as for ``--opt``."""
    return [TIMM + str(name) for name in list_optimizers()]


def timm_entry(opt: str) -> TimmOptimizerEntry:
    """Return the entry of the optimizer ``timm/NAME``.

    Raises:
        RequestError: unknown name, or an optimizer that cannot be used.
    """
    name = opt.removeprefix(TIMM)
    if name not in list_optimizers():
        raise unknown("--opt", opt, timm_names(), "run vitctl list-optimizers 'timm/*' for all names")
    info = get_optimizer_info(name)
    if info.second_order:
        raise RequestError(f"--opt {opt} needs second derivatives, which vitctl does not compute", hint=_USE_ANOTHER)
    if isinstance(info.opt_class, str):
        package = info.opt_class.partition(".")[0]
        if not torch.cuda.is_available() or importlib.util.find_spec(package) is None:
            raise RequestError(
                f"--opt {opt} is not available: it needs CUDA and the package {package}", hint=_USE_ANOTHER
            )
    arguments = _arguments(name)
    bound = info.defaults or {}
    lr, weight_decay = arguments["lr"][0], bound.get("weight_decay", arguments["weight_decay"][0])
    return TimmOptimizerEntry(
        summary=info.description,
        options=_options(name, arguments),
        lr=lr if isinstance(lr, float) else _FALLBACK_LR,
        weight_decay=float(weight_decay or 0.0),
        name=name,
    )


def _arguments(name: str) -> dict[str, tuple[Any, type | None]]:
    """Return the default and annotated type of every argument of an optimizer's constructor."""
    optimizer: Any = get_optimizer_class(name, bind_defaults=False)
    hints = typing.get_type_hints(optimizer.__init__)
    return {
        key: (parameter.default, _plain_kind(hints.get(key)))
        for key, parameter in inspect.signature(optimizer).parameters.items()
    }


def _plain_kind(hint: Any) -> type | None:
    """Return the only plain type that an annotation such as ``Optional[float]`` allows, else None."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = [kind for kind in kinds if kind in (bool, int, float, str)]
    return plain[0] if len(plain) == 1 else None


def _options(name: str, arguments: Mapping[str, tuple[Any, type | None]]) -> dict[str, TimmOption]:
    info = get_optimizer_info(name)
    bound: dict[str, Any] = dict(info.defaults or {})
    if info.has_momentum:
        bound.setdefault("momentum", 0.9)  # as in create_optimizer_v2
    options: dict[str, TimmOption] = {}
    if info.has_betas:
        betas = bound.get("betas", arguments["betas"][0]) or [None] * info.num_betas
        for i, beta in enumerate(betas):
            options[f"beta{i + 1}"] = TimmOption(default=beta, low=0, below=1)
    for key, (default, kind) in arguments.items():
        if key in _SET_ELSEWHERE | _NOT_OPTIONS:
            continue
        default = bound.get(key, default)
        if kind is None:
            # Without an annotation, an integer default such as momentum=0 may stand for any number.
            kind = float if type(default) is int else type(default)
        if kind in (bool, int, float, str) and (default is None or isinstance(default, (bool, int, float, str))):
            low, below = (0, 1) if key == "momentum" else (None, None)
            default = None if default is None else kind(default)
            options[key] = TimmOption(default=default, kind=kind, low=low, below=below)
    return options


def build_timm(name: str, groups: Groups, *, lr: float, **options: Value) -> Optimizer:
    """Build timm's optimizer ``name`` for ``groups``, each with its own weight decay."""
    info = get_optimizer_info(name)
    arguments: dict[str, Any] = dict(options)
    given = {key: arguments.pop(key) for key in list(arguments) if info.has_betas and key[:-1] == "beta"}
    if given:
        default = [0.9, 0.999, 0.999][: info.num_betas]
        arguments["betas"] = tuple(given.get(f"beta{i + 1}", beta) for i, beta in enumerate(default))
    optimizer: Optimizer = create_optimizer_v2(groups, name, lr=lr, **arguments)
    return optimizer
