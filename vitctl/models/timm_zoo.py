"""timm's networks under ``timm/NAME``: their options, what they cost, and the sizes that they take.

timm describes none of this in one place, so the network is built, on the ``meta`` device where nothing is computed, and
looked at.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
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
from vitctl.registry import Option, Value, format_spec, suggest

SIZES = (*range(8, 65, 4), 72, 80, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512, 768, 1024)
"""Sizes that are tried where the one asked for will not do."""

NAMED = 4
"""How many of them an error names."""

LIKE = 0.6
"""How much of two names must agree for one to be taken for the other."""

INNERMOST = frozenset({"efficientnet", "mobilenetv3", "regnet", "densenet"})
"""Families that a CPU trains faster with the channels innermost, by 25 to 65 % at 64 px; ResNets and VGGs are slower."""

NOT_OPTIONS = frozenset(
    {"self", "img_size", "in_chans", "num_classes", "device", "dtype", "pretrained", "features_only"}
)
"""Arguments of timm's classes that are not the user's to set."""


@dataclass(frozen=True, kw_only=True)
class TimmModelEntry(ModelEntry):
    """A network of timm, as a row of the table.

    Its options are the plain arguments of its class. Only those that were asked for are kept, as the others'
    defaults are those of the named network and not of its class.
    """

    def resolve_options(self, given: Mapping[str, object], what: str) -> dict[str, Value]:
        """Return the options of ``given``, parsed; the others stay as timm has them."""
        known = super().resolve_options(given, what)
        return {name: known[name] for name in given}

    def check_size(self, name: str, options: Mapping[str, Value], img_size: int) -> None:
        """Refuse a size that the network cannot take, naming some that it can, and options that it cannot."""
        bare = name.removeprefix(TIMM)
        key = tuple(sorted(options.items()))
        complaint = _complaint(bare, img_size, key)
        if complaint is None:
            return
        native = self.img_size
        if options and _complaint(bare, img_size, ()) is None:
            raise RequestError(f"--net {format_spec(name, options)} cannot be had: {complaint}")
        if options and _complaint(bare, native, key) is not None:
            raise RequestError(f"--net {format_spec(name, options)} cannot be had: {_complaint(bare, native, key)}")
        sizes = _working_sizes(bare, img_size, native, key)
        raise RequestError(
            f"--size {img_size} is not for --net {format_spec(name, options)}; sizes that are: "
            f"{', '.join(map(str, sizes))} (timm: {complaint})"
        )


def search(pattern: str) -> list[str]:
    """Return the names of timm's networks that match ``pattern``, such as ``vit*tiny*``, without ``timm/``."""
    return list(timm.list_models(pattern.removeprefix(TIMM)))


def near_names(name: str, count: int = 3) -> list[str]:
    """Return the names of timm's networks that ``name`` begins or that are most like it, best first.

    Names of timm are long, and what is mistyped is often only how one begins: both the whole of a name and as much of
    it as was typed are compared.
    """
    names: list[str] = timm.list_models()
    begun = [other for other in names if name and other.startswith(name)]
    if begun:
        return begun[:count]
    matcher = difflib.SequenceMatcher(b=name)

    def likeness(other: str) -> float:
        ratios = []
        for part in {other, other[: len(name)]}:
            matcher.set_seq1(part)
            ratios.append(matcher.ratio() if matcher.quick_ratio() >= LIKE else 0.0)
        return max(ratios)

    scores = {other: likeness(other) for other in names}
    near = [other for other in names if scores[other] >= LIKE]
    near.sort(key=lambda other: (scores[other], other[:1] == name[:1]), reverse=True)
    return near[:count]


@functools.cache
def timm_entry(net: str) -> TimmModelEntry:
    """Return the row of ``timm/NAME``; its figures are those at 10 classes and the size that it was made for.

    Raises:
        RequestError: timm has no such network; the message offers near matches.
    """
    name = net.removeprefix(TIMM)
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = near_names(architecture)
        hint = (
            f"did you mean {' or '.join(TIMM + other for other in near)}?"
            if near
            else "vitctl list-models --timm '*vit*' searches timm's"
        )
        raise RequestError(f"--net {net!r} is unknown; {hint}")
    tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        raise RequestError(f"--net {net!r}: {architecture} has no weights tagged {tag!r}", hint=suggest(tag, tags))
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # there is one for every registered name
    img_size = _native_size(name)
    make = functools.partial(build_timm, name=name, img_size=img_size, in_chans=3, num_classes=10)
    try:
        with torch.device("meta"):
            model = make()
        cost = forward_cost(make, 3, img_size)
    except Exception as error:  # timm raises almost anything
        raise RequestError(f"--net {net}: timm cannot build it for 10 classes ({_sentence(error)})") from error
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
        channels_last=("cpu",) if family in INNERMOST else (),
        weights=name if config.has_weights else "",
        paper=_paper(config),
    )


def build_timm(*, name: str, img_size: int, in_chans: int, num_classes: int, **options: Value) -> nn.Module:
    """Build timm's network ``name`` with drawn weights.

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.

    Args:
        name: as timm calls it.
        img_size: H and W, in pixels; networks that do not ask for it take any.
        in_chans: C.
        num_classes: K.
        options: arguments of its class.
    """
    arguments: dict[str, Any] = {**options, "in_chans": in_chans, "num_classes": num_classes}
    model: nn.Module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what timm would rather be called
        try:
            model = timm.create_model(name, img_size=img_size, **arguments)
        except TypeError as error:  # the network has no img_size, or rejects another argument
            try:
                model = timm.create_model(name, **arguments)
            except TypeError:
                raise error from None
    return model


@functools.lru_cache(maxsize=256)
def _complaint(name: str, img_size: int, options: tuple[tuple[str, Value], ...]) -> str | None:
    """Return why the network cannot be trained at this size, or None: it is built and run in both modes on ``meta``."""
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_timm(name=name, img_size=img_size, in_chans=3, num_classes=10, **dict(options))
            lost = _unseen(model)
            if lost and (options or img_size != _native_size(name)):  # some are made for sizes with a rest
                return lost
            for training in (False, True):
                logits = model.train(training)(torch.empty(2, 3, img_size, img_size))
                if not isinstance(logits, Tensor):
                    return "it gives more than logits in training"
                if logits.shape != (2, 10):
                    return f"it gives {list(logits.shape)} instead of logits"
    except Exception as error:  # noqa: BLE001 - timm raises almost anything
        return _sentence(error)
    return None


def _native_size(name: str) -> int:
    """Return the size that the network was made for."""
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # there is one for every registered name
    return int(config.input_size[-1])


def _unseen(model: nn.Module) -> str | None:
    """Return which part of the images the network's patches leave out, or None; timm cuts it off without a word."""
    for module in model.modules():
        if isinstance(module, PatchEmbed) and module.img_size is not None and not module.dynamic_img_pad:
            for side, patch in zip(module.img_size, module.patch_size, strict=True):
                if side % patch:
                    return f"patches of {patch} px leave out {side % patch} of {side} px"
    return None


def _working_sizes(name: str, asked: int, native: int, options: tuple[tuple[str, Value], ...]) -> list[int]:
    """Return the sizes nearest to the one asked for that the network takes, ascending."""
    found: list[int] = []
    for size in sorted({*SIZES, native}, key=lambda size: abs(math.log(size / asked))):
        if _complaint(name, size, options) is None:
            found.append(size)
        if len(found) == NAMED:
            break
    return sorted(found)


def _options(cls: type[nn.Module]) -> dict[str, Option]:
    """Return the arguments of a network's class that can be typed: flags, numbers and words."""
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
        if not passes_on:  # what it does not take itself, it hands to the class that it is made from
            break
    return options


def _option(name: str, default: Any, annotation: Any) -> Option | None:
    """Return an argument as an option, or None where it is no flag, number or word."""
    kinds = _kinds(annotation)
    if isinstance(default, (bool, int, float, str)):
        if isinstance(default, int) and not isinstance(default, bool) and float in kinds:
            default = float(default)
        rate = name.endswith("_rate") and isinstance(default, float)
        return Option(
            default,
            f"{default!r} in timm's class",
            choices=tuple(_words(annotation)) if isinstance(default, str) else (),
            low=0 if rate else _least(name, default),
            below=1 if rate else None,
        )
    # No default of its own, or none of these kinds: what the annotation allows beside it.
    plain: list[Value] = [value for value in (0.0, 0, False, "") if type(value) in kinds]
    if not plain or default not in (None, inspect.Parameter.empty):
        return None
    return Option(plain[0], "timm's own unless given", low=_least(name, plain[0]))


def _least(name: str, default: Any) -> float | None:
    """Return the least value of an option, or None: sizes and counts are not negative, and few of them can be 0."""
    if isinstance(default, bool) or not isinstance(default, int):
        return None
    return 1 if default > 0 or name == "patch_size" else 0


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    return {annotation}


def _words(annotation: Any) -> list[str]:
    """Return the words that an annotation allows, where it lists them."""
    if typing.get_origin(annotation) is typing.Literal:
        return [word for word in typing.get_args(annotation) if isinstance(word, str)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [word for part in typing.get_args(annotation) for word in _words(part)]
    return []


def _sentence(error: Exception) -> str:
    """Return the first line of what timm or torch said, or what kind of thing it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:120] if lines else type(error).__name__


def _paper(config: Any) -> str:
    """Return what timm notes of a network's paper."""
    ids = config.paper_ids
    return ", ".join([ids] if isinstance(ids, str) else ids or [])
