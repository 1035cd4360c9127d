"""timm's networks, as ``timm/NAME``: their options, costs and possible image sizes.

timm does not document these in one place, so each network is built on the ``meta`` device and examined.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from vitctl.errors import RequestError
from vitctl.models.count import count_parameters, forward_cost
from vitctl.models.entry import TIMM, ModelEntry
from vitctl.registry import Option, Value, format_spec, or_list, suggest

SIZES = (*range(8, 65, 4), 72, 80, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512, 768, 1024)
"""Image sizes to try as replacements for an impossible one."""

MAX_SIZES = 4
"""Number of sizes to suggest in a hint."""

SIMILARITY = 0.6
"""Minimum similarity of a suggested name, as the ratio of :class:`difflib.SequenceMatcher`."""

CHANNELS_LAST_FAMILIES = frozenset({"efficientnet", "mobilenetv3", "regnet", "densenet"})
"""Families that train 25 to 65 % faster with channels-last images on a CPU at 64 px; ResNets and VGGs are slower."""

NOT_OPTIONS = frozenset(
    {"self", "img_size", "in_chans", "num_classes", "device", "dtype", "pretrained", "features_only"}
)
"""Arguments of timm's classes that are not options in ``--net``."""


@dataclass(frozen=True, kw_only=True)
class TimmModelEntry(ModelEntry):
    """A network of timm, as a row of the table.

    Its options are the arguments of its class that are flags, numbers or words. Options have no defaults here, because
    those of the named network may differ from those of its class.
    """

    def resolve_options(self, given: Mapping[str, object], what: str) -> dict[str, Value]:
        """Return only the ``given`` options, parsed."""
        known = super().resolve_options(given, what)
        return {name: known[name] for name in given}

    def check_size(self, name: str, options: Mapping[str, Value], img_size: int) -> None:
        """Check that the network can be built and trained with these options at this image size.

        Raises:
            RequestError: it cannot; the hint names sizes that work or options to change.
        """
        bare = name.removeprefix(TIMM)
        key = tuple(sorted(options.items()))
        problem = _problem(bare, img_size, key)
        if problem is None:
            return
        spec = format_spec(name, options)
        if options:
            size_works = _problem(bare, img_size, ()) is None
            reason = problem if size_works else _problem(bare, self.img_size, key)
            if reason is not None:
                raise RequestError(f"cannot use --net {spec}: {reason}", hint=f"change or remove {or_list([*options])}")
        sizes = _working_sizes(bare, img_size, self.img_size, key)
        raise RequestError(
            f"--size {img_size} does not work with --net {spec}: {problem}",
            hint=f"use --size {or_list([str(size) for size in sizes])}" if sizes else _others(bare),
        )


def _others(name: str) -> str:
    """Return the hint for a network that does not work at all."""
    return f"run vitctl list-models --timm '{re.split('[_.]', name)[0]}*' to find another network"


def search(pattern: str) -> list[str]:
    """Return the names of timm's networks that match ``pattern``, such as ``vit*tiny*``, without ``timm/``."""
    return list(timm.list_models(pattern.removeprefix(TIMM)))


def near_names(name: str, count: int = 3) -> list[str]:
    """Return the names of timm's networks that start with ``name``, or else the most similar ones, best first.

    Users often type only the start of timm's long names, so ``name`` is compared with full names and with their
    prefixes of the same length.
    """
    names: list[str] = timm.list_models()
    completions = [other for other in names if name and other.startswith(name)]
    if completions:
        return completions[:count]
    matcher = difflib.SequenceMatcher(b=name)

    def similarity(other: str) -> float:
        ratios = []
        for part in {other, other[: len(name)]}:
            matcher.set_seq1(part)
            ratios.append(matcher.ratio() if matcher.quick_ratio() >= SIMILARITY else 0.0)
        return max(ratios)

    scores = {other: similarity(other) for other in names}
    near = [other for other in names if scores[other] >= SIMILARITY]
    near.sort(key=lambda other: (scores[other], other[:1] == name[:1]), reverse=True)
    return near[:count]


@functools.cache
def timm_entry(net: str) -> TimmModelEntry:
    """Return the row of ``timm/NAME``, with figures for 10 classes at the network's native size.

    Raises:
        RequestError: unknown network or tag, or timm cannot build it; the hint suggests similar names.
    """
    name = net.removeprefix(TIMM)
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = [TIMM + other for other in near_names(architecture)]
        hint = f"did you mean {or_list(near)}?" if near else "run vitctl list-models --timm '*vit*' to search timm"
        raise RequestError(f"unknown --net {net!r}", hint=hint)
    tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        raise RequestError(
            f"--net {net!r}: {architecture} has no weights tagged {tag!r}",
            hint=suggest(tag, tags, f"use --net {TIMM}{architecture}"),
        )
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # every registered name has one
    img_size = _native_size(name)
    make = functools.partial(build_timm, name=name, img_size=img_size, in_chans=3, num_classes=10)
    try:
        with torch.device("meta"):
            model = make()
        cost = forward_cost(make, 3, img_size)
    except Exception as error:  # timm raises almost any error
        raise RequestError(
            f"timm cannot build --net {net} for 10 classes: {_first_line(error)}", hint=_others(architecture)
        ) from error
    family = type(model).__module__.rpartition(".")[2]
    return TimmModelEntry(
        target="vitctl.models.timm_zoo:build_timm",
        summary=f"timm's {name}",
        options=_options(type(model)),
        fixed={"name": name},
        family=family,
        params=count_parameters(model),
        mflop=round(cost.mflop, 1),
        tokens=cost.tokens,
        img_size=img_size,
        batchnorm=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()),
        channels_last=("cpu",) if family in CHANNELS_LAST_FAMILIES else (),
        weights=name if config.has_weights else "",
        paper=_paper(config),
    )


def build_timm(*, name: str, img_size: int, in_chans: int, num_classes: int, **options: Value) -> nn.Module:
    """Build timm's network ``name`` with random initial weights.

    Args:
        name: timm's name of the network.
        img_size: height and width of the images, in pixels; passed on only to networks with such an argument.
        in_chans: channels of the images.
        num_classes: number of logits.
        options: further arguments of the network's class.

    Returns:
        A module that maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.
    """
    arguments: dict[str, Any] = {**options, "in_chans": in_chans, "num_classes": num_classes}
    model: nn.Module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated names
        try:
            model = timm.create_model(name, img_size=img_size, **arguments)
        except TypeError as error:  # the network has no img_size, or rejects another argument
            try:
                model = timm.create_model(name, **arguments)
            except TypeError:
                raise error from None
    return model


@functools.lru_cache(maxsize=256)
def _problem(name: str, img_size: int, options: tuple[tuple[str, Value], ...]) -> str | None:
    """Return why the network cannot be trained at this size, or None, after running it in both modes on ``meta``."""
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_timm(name=name, img_size=img_size, in_chans=3, num_classes=10, **dict(options))
            uncovered = _uncovered(model)
            if uncovered and (options or img_size != _native_size(name)):  # some native sizes have a remainder
                return uncovered
            for training in (False, True):
                logits = model.train(training)(torch.empty(2, 3, img_size, img_size))
                if not isinstance(logits, Tensor):
                    return "it returns more than logits in training"
                if logits.shape != (2, 10):
                    return f"it returns {list(logits.shape)} instead of logits"
    except Exception as error:  # noqa: BLE001 - timm raises almost any error
        return _first_line(error)
    return None


def _native_size(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # every registered name has one
    return int(config.input_size[-1])


def _uncovered(model: nn.Module) -> str | None:
    """Return which part of the images the patches do not cover, or None; timm crops it without a warning."""
    for module in model.modules():
        if isinstance(module, PatchEmbed) and module.img_size is not None and not module.dynamic_img_pad:
            for side, patch in zip(module.img_size, module.patch_size, strict=True):
                if side % patch:
                    return f"patches of {patch} px leave out {side % patch} of {side} px"
    return None


def _working_sizes(name: str, requested: int, native: int, options: tuple[tuple[str, Value], ...]) -> list[int]:
    """Return the possible sizes nearest to the requested one, in ascending order."""
    found: list[int] = []
    for size in sorted({*SIZES, native}, key=lambda size: abs(math.log(size / requested))):
        if _problem(name, size, options) is None:
            found.append(size)
        if len(found) == MAX_SIZES:
            break
    return sorted(found)


def _options(cls: type[nn.Module]) -> dict[str, Option]:
    """Return the arguments of a network's class that are flags, numbers or words."""
    options: dict[str, Option] = {}
    for part in cls.__mro__:
        if not issubclass(part, nn.Module) or "__init__" not in vars(part):
            continue
        try:
            signature = inspect.signature(part.__init__, eval_str=True)
        except (NameError, TypeError):
            signature = inspect.signature(part.__init__)
        passes_on = False
        for name, parameter in signature.parameters.items():
            passes_on |= parameter.kind is parameter.VAR_KEYWORD
            if name in NOT_OPTIONS or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            option = _option(name, parameter.default, parameter.annotation)
            if option is not None:
                options.setdefault(name, option)
        if not passes_on:  # without **kwargs, it takes no arguments of its base classes
            break
    return options


def _option(name: str, default: Any, annotation: Any) -> Option | None:
    """Return an argument as an option, or None if it is not a flag, number or word."""
    kinds = _kinds(annotation)
    if isinstance(default, (bool, int, float, str)):
        if isinstance(default, int) and not isinstance(default, bool) and float in kinds:
            default = float(default)
        rate = name.endswith("_rate") and isinstance(default, float)
        return Option(
            default,
            f"default of timm's class: {default!r}",
            choices=tuple(_words(annotation)) if isinstance(default, str) else (),
            low=0 if rate else _lower_bound(name, default),
            below=1 if rate else None,
        )
    # The default is missing or None: take the type from the annotation.
    plain: list[Value] = [value for value in (0.0, 0, False, "") if type(value) in kinds]
    if not plain or default not in (None, inspect.Parameter.empty):
        return None
    return Option(plain[0], "default chosen by timm", low=_lower_bound(name, plain[0]))


def _lower_bound(name: str, default: Any) -> float | None:
    """Return 1 or 0 for whole numbers, which are sizes and counts, else None."""
    if isinstance(default, bool) or not isinstance(default, int):
        return None
    return 1 if default > 0 or name == "patch_size" else 0


def _kinds(annotation: Any) -> set[Any]:
    """Return the types in an annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    return {annotation}


def _words(annotation: Any) -> list[str]:
    """Return the strings in the ``Literal`` of an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return [word for word in typing.get_args(annotation) if isinstance(word, str)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [word for part in typing.get_args(annotation) for word in _words(part)]
    return []


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or else its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:120] if lines else type(error).__name__


def _paper(config: Any) -> str:
    ids = config.paper_ids
    return ", ".join([ids] if isinstance(ids, str) else ids or [])
