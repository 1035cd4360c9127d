"""Rows of the table of optimizers for those of timm, made from timm's own registry."""

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
"""Arguments that say how and not what to compute, that would do harm, or that timm has given up."""

_SOME_LR = 1e-3
"""Where timm has no default rate."""


@dataclass(frozen=True, kw_only=True)
class TimmOption(Option):
    """An option of timm's; a default of ``None`` leaves it to timm.

    Attributes:
        kind: bool, int, float or str.
    """

    default: Any = None
    kind: type = float

    def parse(self, value: object, what: str) -> Value:
        """Return ``value`` as :attr:`kind`; see :meth:`vitctl.registry.Option.parse`."""
        parsed: Value = convert(value, self.kind, what)
        check_range(parsed, what, low=self.low, below=self.below)
        return parsed


@dataclass(frozen=True, kw_only=True)
class TimmOptimizerEntry(OptimizerEntry):
    """A row for an optimizer of timm.

    Attributes:
        name: what timm calls it.
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
        """Return the options; those that nobody set and that timm leaves open are left out.

        Raises:
            RequestError: an option that the optimizer does not have, or a value that it refuses.
        """
        options = {name: value for name, value in super().resolve_options(given, what).items() if value is not None}
        settings: dict[str, Any] = {"lr": _SOME_LR, **options}
        self._try(f"{what} refuses these options", **settings)
        return options

    def check_rate(self, lr: float, weight_decay: float, options: Mapping[str, Value]) -> None:
        """Raise RequestError where the optimizer refuses the rate or the decay: timm's MADGRAD takes no rate of 0."""
        what = f"--opt {TIMM}{self.name} refuses --lr {lr:g} or --weight-decay {weight_decay:g}"
        self._try(what, weight_decay, lr=lr, **options)

    def _try(self, what: str, weight_decay: float = 0.0, **settings: Any) -> None:
        """Take a step with these settings; the optimizers know best what they take, some in the first step only."""
        sample = nn.Parameter(torch.zeros(2, 2))
        sample.grad = torch.eye(2)
        try:
            with torch.compiler.set_stance("force_eager"):
                build_timm(self.name, [{"params": [sample], "weight_decay": weight_decay}], **settings).step()
        except Exception as error:
            raise RequestError(f"{what}: {' '.join(str(error).split())}") from error


def timm_names() -> list[str]:
    """Return the names of timm's optimizers, as ``--opt`` takes them."""
    return [TIMM + str(name) for name in list_optimizers()]


def timm_entry(opt: str) -> TimmOptimizerEntry:
    """Return the row of the optimizer ``timm/NAME``.

    Raises:
        RequestError: timm has none of that name, or it cannot be used here.
    """
    name = opt.removeprefix(TIMM)
    if name not in list_optimizers():
        raise unknown("--opt", opt, timm_names(), "list them with vitctl list-optimizers 'timm/*'")
    info = get_optimizer_info(name)
    if info.second_order:
        raise RequestError(f"--opt {opt} needs second derivatives, which training here does not compute; take another")
    if isinstance(info.opt_class, str):
        package = info.opt_class.partition(".")[0]
        if not torch.cuda.is_available() or importlib.util.find_spec(package) is None:
            raise RequestError(f"--opt {opt} needs CUDA and the package {package}, which are not here; take another")
    arguments = _arguments(name)
    bound = info.defaults or {}
    lr, weight_decay = arguments["lr"][0], bound.get("weight_decay", arguments["weight_decay"][0])
    return TimmOptimizerEntry(
        summary=info.description,
        options=_options(name, arguments),
        lr=lr if isinstance(lr, float) else _SOME_LR,
        weight_decay=float(weight_decay or 0.0),
        name=name,
    )


def _arguments(name: str) -> dict[str, tuple[Any, type | None]]:
    """Return default and annotated kind of every argument of an optimizer's constructor, timm's own defaults bound."""
    optimizer: Any = get_optimizer_class(name, bind_defaults=False)
    hints = typing.get_type_hints(optimizer.__init__)
    return {
        key: (parameter.default, _plain_kind(hints.get(key)))
        for key, parameter in inspect.signature(optimizer).parameters.items()
    }


def _plain_kind(hint: Any) -> type | None:
    """Return the one plain type that an annotation such as ``Optional[float]`` allows, else None."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = [kind for kind in kinds if kind in (bool, int, float, str)]
    return plain[0] if len(plain) == 1 else None


def _options(name: str, arguments: Mapping[str, tuple[Any, type | None]]) -> dict[str, TimmOption]:
    info = get_optimizer_info(name)
    bound: dict[str, Any] = dict(info.defaults or {})
    if info.has_momentum:
        bound.setdefault("momentum", 0.9)  # as create_optimizer_v2 has it
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
            # Without an annotation a whole number may stand for any: momentum=0.
            kind = float if type(default) is int else type(default)
        if kind in (bool, int, float, str) and (default is None or isinstance(default, (bool, int, float, str))):
            low, below = (0, 1) if key == "momentum" else (None, None)
            default = None if default is None else kind(default)
            options[key] = TimmOption(default=default, kind=kind, low=low, below=below)
    return options


def build_timm(name: str, groups: Groups, *, lr: float, **options: Value) -> Optimizer:
    """Build timm's optimizer ``name`` over ``groups``, which keep their own weight decay."""
    info = get_optimizer_info(name)
    arguments: dict[str, Any] = dict(options)
    given = {key: arguments.pop(key) for key in list(arguments) if info.has_betas and key[:-1] == "beta"}
    if given:
        default = [0.9, 0.999, 0.999][: info.num_betas]
        arguments["betas"] = tuple(given.get(f"beta{i + 1}", beta) for i, beta in enumerate(default))
    optimizer: Optimizer = create_optimizer_v2(groups, name, lr=lr, **arguments)
    return optimizer
