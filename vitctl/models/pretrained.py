"""Pretrained weights: download, conversion to other names, image sizes, channels and classes, and freezing.

For networks that timm has, timm converts the weights: it resamples position embeddings and patch projections, sums the
first convolution over colours for greyscale images, and renames tensors of older versions. For vitctl's own networks,
position embeddings and patch projections are resampled here, with timm's functions.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from einops import rearrange
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.models.entry import TIMM
from vitctl.models.foreign import LAYOUTS, recognise, vit_timm_flags
from vitctl.models.legacy import RULES as LEGACY_RULES
from vitctl.models.legacy import has_rule, original_network, renamed
from vitctl.models.sources import FILES, weights_file
from vitctl.models.state_files import is_numpy_archive, read_state, without_prefix
from vitctl.models.vit import PatchTokens
from vitctl.registry import Value, format_spec, or_list
from vitctl.units import plural

PATIENCE = 5.0
"""Seconds to wait for the first response of a server."""

MAX_NAMES = 3
"""Number of tensors to name in an error message."""

_OTHER_WEIGHTS = "use --pretrained FILE or --pretrained false"


def locate(net: str, pretrained: str) -> Path:
    """Return the path of the pretrained weights of ``net``; download them if they are not cached.

    Args:
        net: a name of the table, or ``timm/NAME``.
        pretrained: ``true``, or the path of a file or folder; see :func:`vitctl.models.sources.weights_file`.

    Raises:
        RequestError: the file is missing, the download failed, or the server did not respond within :data:`PATIENCE`
            seconds.
    """
    if pretrained != "true":
        return weights_file(Path(pretrained))
    weights = find_model(net).weights
    config = timm.get_pretrained_cfg(weights)
    assert config is not None
    if config.hf_hub_id:
        return _from_hub(net, config.hf_hub_id, (config.hf_hub_filename,) if config.hf_hub_filename else FILES)
    url = config.url[0] if isinstance(config.url, tuple) else config.url
    assert isinstance(url, str)
    return _from_url(net, url)


def _from_hub(net: str, hub_id: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    for name in names:
        cached = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise _unreachable(net, constants.ENDPOINT, f"hf download {repository} {names[0]}", constants.HF_HUB_CACHE)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _download_failed(net, repository, error) from error
    raise RequestError(
        f"no pretrained weights for --net {net}: {repository} has no {or_list(names)}", hint=_OTHER_WEIGHTS
    )


def _from_url(net: str, url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not reachable(url):
        raise _unreachable(net, url, f"curl -LO {url}", str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except Exception as error:
        raise _download_failed(net, url, error) from error
    return path


def reachable(url: str) -> bool:
    """Return whether the server of ``url`` responds within :data:`PATIENCE` seconds, with any status."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):  # HTTPException: the server does not speak HTTP
        return False
    return True


def _download_failed(net: str, source: str, error: Exception) -> RequestError:
    return RequestError(
        f"cannot download the pretrained weights of --net {net} from {source}: {_first_lines(error)}",
        hint=f"try again, or {_OTHER_WEIGHTS}",
    )


def _unreachable(net: str, server: str, command: str, cache: str) -> RequestError:
    return RequestError(
        f"the pretrained weights of --net {net} are not in {cache}, and {server} cannot be reached",
        hint=f"run {command} on a computer with network access and use --pretrained FILE, or use --pretrained false",
    )


def load_pretrained(
    model: nn.Module,
    net: str,
    options: Mapping[str, Value],
    path: Path,
    *,
    img_size: int,
    in_chans: int,
    classes: Sequence[str] = (),
) -> str:
    """Load pretrained weights into ``model``; a head for other classes keeps its initial weights.

    torch's random state does not change.

    Args:
        model: the network ``net``, on any device.
        net: a name of the table, or ``timm/NAME``.
        options: options of the network.
        path: the file, see :func:`locate`.
        img_size: height and width of the network's images.
        in_chans: channels of the network's images.
        classes: names of the classes; the head of a file that names others is not loaded.

    Returns:
        A message for the user.

    Raises:
        RequestError: the file is damaged or not a weights file, or its weights do not fit the network.
    """
    target = _Target(model, net, options, path, img_size, in_chans)
    original: dict[str, Tensor] = {}
    content: dict[str, Any] = {}
    if is_numpy_archive(path):
        tensors, notes = _load_numpy(target), ["converted from Google's .npz"]
    else:
        original, content = read_state(path, f"--pretrained {path}")
        named, notes = _in_own_names(target, original)
        if target.architecture:
            tensors = _convert_with_timm(target, named, original, content)
        else:
            tensors = _resampled(named, model)
        _check_heads(target, original, content)
        notes += _describe_resampling(named, tensors)
    own, heads = model.state_dict(), head_names(model)
    their_classes = _class_names(path, content)
    kept = [name for name in own if _within(name, heads)]  # the head is loaded completely or not at all
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in kept)
    same = not their_classes or not classes or their_classes == list(classes)
    if fits and same:
        kept = []
    _check_fit(target, own, tensors, kept, original, content)
    model.load_state_dict({name: own[name] if name in kept else tensors.get(name, own[name]) for name in own})
    ending = "".join(f"; {note}" for note in notes)
    if not kept:
        unnamed = "" if their_classes or not heads else ", whose classes the file does not name"
        return f"loaded pretrained weights, including the head{unnamed}, from {path}{ending}"
    counts = [tensor.shape[0] for name, tensor in tensors.items() if _within(name, heads) and name.endswith("weight")]
    if fits:
        why = f": the file's head is for other classes: {_some(their_classes)}"
    else:
        why = f": the file's head has {counts[-1]} classes" if counts else ""
    return f"loaded pretrained weights from {path}, with a new head{why}{ending}"


@dataclass(frozen=True)
class _Target:
    """The network that weights are loaded into, and their file."""

    model: nn.Module
    net: str
    options: Mapping[str, Value]
    path: Path
    img_size: int
    in_chans: int

    @property
    def architecture(self) -> str:
        """Timm's name of the network, or empty."""
        return self.net.removeprefix(TIMM) if self.net.startswith(TIMM) else find_model(self.net).weights

    def build(self, **more: Any) -> nn.Module:
        """Build timm's network with these options and ``more``; torch's random state does not change."""
        options = {name: value for name, value in self.options.items() if name not in ("dropout", "drop_path_rate")}
        arguments = {**options, "img_size": self.img_size, "in_chans": self.in_chans, **more}
        with torch.random.fork_rng(devices=[]):
            try:
                return timm.create_model(self.architecture, **arguments)
            except TypeError as error:  # the network has no img_size, or rejects another argument
                try:
                    return timm.create_model(
                        self.architecture, **{k: v for k, v in arguments.items() if k != "img_size"}
                    )
                except TypeError:
                    raise error from None


def _in_own_names(target: _Target, original: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors of wrappers, other libraries and the original scripts to the network's names.

    The names are read in each way that is possible for the network; the one with most of its names is used. If it has
    few of them, the tensors are returned as they are, as timm may know their names.

    Returns:
        The tensors, and what to report about them.
    """
    own = target.model.state_dict()
    heads = head_names(target.model)
    backbone = [name for name in own if not _within(name, heads)]
    net, options = target.net, target.options

    def of_the_scripts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state, unknown = renamed(net, options, tensors)
        return {ours: tensor for ours, (_, tensor) in state.items()} | {name: tensors[name] for name in unknown}

    ways: list[tuple[str, Callable[[str], bool], Callable[[dict[str, Tensor]], dict[str, Tensor]]]]
    ways = [("", own.__contains__, dict)]
    if "blocks.0.attn.qkv.bias" in own:
        ways += [(f"converted from {layout.title}", layout.knows, layout.to_timm) for layout in LAYOUTS]
    if net in LEGACY_RULES and not target.architecture:
        ways.append(("converted from the original scripts", has_rule(net, options), of_the_scripts))
    best, best_notes, most = original, list[str](), len(backbone) // 2
    for note, known, rename in ways:
        stripped, others = without_prefix(original, known)
        tensors = rename(stripped)
        found = sum(name in tensors for name in backbone)
        if found > most:
            best, most, best_notes = tensors, found, [note] if note else []
            if others:
                best_notes.append(f"without {plural(len(others), 'tensor')} of other parts: {_some(others)}")
    return best, best_notes


def _convert_with_timm(
    target: _Target, tensors: dict[str, Tensor], original: Mapping[str, Tensor], content: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Convert weights of a network of timm to this size and these channels; the head does not change."""
    config = timm.get_pretrained_cfg(target.architecture)
    assert config is not None  # every registered name has one
    names = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    head = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    num_classes = head[0].shape[0] if head else 0
    overlay: dict[str, Any] = {
        "state_dict": dict(tensors),  # timm changes it
        "num_classes": num_classes,
        "custom_load": False,
        "label_offset": 0,
    }
    first = (config.first_conv,) if isinstance(config.first_conv, str) else tuple(config.first_conv or ())
    stem = [tensors[f"{name}.weight"] for name in first if f"{name}.weight" in tensors]
    if stem and stem[0].ndim == 4 and stem[0].shape[1] == target.in_chans:
        overlay["input_size"] = (target.in_chans, *config.input_size[1:])
    try:
        with _quiet_timm():
            converted = target.build(num_classes=num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise _misfit(target, _first_lines(error), original, content) from error
    return dict(converted.state_dict())


def _load_numpy(target: _Target) -> dict[str, Tensor]:
    """Read Google's ``.npz`` weights of a ViT or MLP-Mixer with timm's loader, which also converts them."""
    path, shapes = target.path, _numpy_shapes(target.path)
    numbers = [re.search(r"(?:encoderblock|MixerBlock)_(\d+)/", name) for name in shapes]
    depth = len({number[1] for number in numbers if number})
    query = next((shape for name, shape in shapes.items() if name.endswith("/query/kernel")), None)
    if query is not None and not depth:  # big_vision stacks its blocks
        depth = query[0]
    if not depth:
        raise RequestError(f"--pretrained {path} has arrays other than Google's ViT or MLP-Mixer", hint=_OTHER_WEIGHTS)
    hint = (
        f"use {_numpy_flags(shapes, depth)}" if query is not None else "use --net timm/NAME with NAME of an MLP-Mixer"
    )
    if not target.architecture:
        raise RequestError(f"--pretrained {path} (Google's .npz) does not fit --net {target.net}", hint=hint)
    bias = next((shape for name, shape in shapes.items() if re.fullmatch(r"(.*/)?head/bias", name)), (0,))
    try:
        with _quiet_timm():
            built: Any = target.build(num_classes=bias[-1])
            if len(built.blocks) != depth:
                raise ValueError(f"{depth} blocks instead of {len(built.blocks)}")
            if query is not None and built.blocks[0].attn.num_heads != query[-2]:
                raise ValueError(f"{query[-2]} attention heads instead of {built.blocks[0].attn.num_heads}")
            built.load_pretrained(str(path))
    except Exception as error:
        raise RequestError(
            f"--pretrained {path} (Google's .npz) does not fit --net {target.net}: {_first_lines(error)}", hint=hint
        ) from error
    return dict(built.state_dict())


def _numpy_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in an ``.npz`` archive.

    Raises:
        RequestError: the archive is compressed, or an array has objects or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise RequestError(f"--pretrained {path} is compressed", hint="use the file that numpy.savez writes")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].shape for name in arrays.files}
    except Exception as error:
        raise RequestError(
            f"--pretrained {path} is damaged: {_first_lines(error)}", hint="use another copy of the file"
        ) from error


def _numpy_flags(shapes: Mapping[str, tuple[int, ...]], depth: int) -> str:
    """Return the flags of ``vit_timm`` for Google's ViT."""

    def ending(*ends: str) -> tuple[int, ...]:
        return next(shape for name, shape in shapes.items() if name.endswith(ends))

    patch, *_, width = ending("embedding/kernel")
    tokens, query = ending("pos_embedding")[-2], ending("/query/kernel")
    return vit_timm_flags(patch, width, depth, query[-2], ending("/Dense_0/kernel")[-1], tokens)


@contextlib.contextmanager
def _quiet_timm() -> Iterator[None]:
    """Silence timm's log, as load_pretrained reports the same in its own words."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _resampled(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resample position embeddings and patch projections to the sizes of vitctl's own ``model``, as timm does."""
    out, own = dict(tensors), model.state_dict()
    if "pos_embed" in out and "pos_embed" in own:
        out["pos_embed"] = _resampled_positions(out["pos_embed"], own["pos_embed"])
    for name, module in model.named_modules():
        if isinstance(module, PatchTokens):
            _resample_patch_tokens(out, f"{name}.", module)
    stem = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem[1].kernel_size == stem[1].stride:
        name, weight = f"{stem[0]}.weight", stem[1].weight
        if name in out and out[name].ndim == 4 and out[name].shape[:2] == weight.shape[:2]:
            out[name] = resample_patch_embed(out[name], list(weight.shape[2:]))
    return out


def _resampled_positions(theirs: Tensor, own: Tensor) -> Tensor:
    """Resample ``[1, N, D]`` to the number of tokens of ``own``; a class token keeps its position."""
    if theirs.ndim != 3 or own.ndim != 3 or theirs.shape[::2] != own.shape[::2]:
        return theirs
    for extra in (0, 1):  # only one of them leaves a square
        sides = [math.isqrt(tensor.shape[1] - extra) for tensor in (theirs, own)]
        if all(side and side**2 == tensor.shape[1] - extra for side, tensor in zip(sides, (theirs, own), strict=True)):
            out: Tensor = resample_abs_pos_embed(theirs, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=extra)
            return out
    return theirs


def _resample_patch_tokens(tensors: dict[str, Tensor], prefix: str, own: PatchTokens) -> None:
    """Resample the projection of flattened patches, in place; the norm before it, if any, is folded into it."""
    weight, size = tensors.get(f"{prefix}proj.weight"), own.patch_size
    channels = own.proj.in_features // size**2
    if weight is None or weight.ndim != 2 or weight.shape == own.proj.weight.shape:
        return
    theirs = math.isqrt(weight.shape[1] // channels)
    if theirs**2 * channels != weight.shape[1]:
        return
    gain, shift = tensors.get(f"{prefix}norm.weight"), tensors.get(f"{prefix}norm.bias")
    if gain is not None and shift is not None:
        tensors[f"{prefix}proj.bias"] = tensors[f"{prefix}proj.bias"] + weight @ shift
        weight = weight * gain
        tensors[f"{prefix}norm.weight"] = torch.ones(own.proj.in_features)
        tensors[f"{prefix}norm.bias"] = torch.zeros(own.proj.in_features)
    kernel = rearrange(weight, "d (p q c) -> d c p q", p=theirs, q=theirs)
    tensors[f"{prefix}proj.weight"] = rearrange(resample_patch_embed(kernel, [size, size]), "d c p q -> d (p q c)")


def _describe_resampling(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return what to report about tensors that were resampled."""
    notes = []
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.ndim != old.ndim:
            continue
        if name == "pos_embed" and new.ndim == 3 and new.shape[1] != old.shape[1]:
            sides = [math.isqrt(tensor.shape[1]) for tensor in (old, new)]  # a class token does not change the root
            notes.append("positions resampled from {0}x{0} to {1}x{1}".format(*sides))
        elif name.endswith(".weight") and new.shape[0] == old.shape[0] and new.shape[2:] != old.shape[2:]:
            notes.append(f"patches resampled from {old.shape[-1]} to {new.shape[-1]} px")
        elif name.endswith("patch_embed.proj.weight") and new.ndim == 2 and new.shape != old.shape:
            notes.append("patches resampled")
    return notes


def _beside(path: Path) -> dict[str, Any]:
    """Return the content of ``config.json`` beside a weights file, as Hugging Face and timm write it; empty if none."""
    try:
        document = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes according to a file, in the order of the logits; empty if it names none."""
    beside, metadata = _beside(path), content.get("metadata")
    found = content.get("classes") or beside.get("label_names")
    if not found and isinstance(metadata, dict):
        with contextlib.suppress(ValueError, TypeError):
            found = json.loads(metadata.get("classes", ""))
    labels = beside.get("id2label")
    if not found and isinstance(labels, dict):
        with contextlib.suppress(ValueError):
            found = [labels[key] for key in sorted(labels, key=int)]
            if all(name == f"LABEL_{i}" for i, name in enumerate(found)):  # the default of transformers
                found = []
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else []


def _flags_of_run(content: Mapping[str, Any]) -> str | None:
    """Return ``--net`` and ``--size`` of the run that wrote a checkpoint, or None for other files."""
    config = content.get("config")
    if not isinstance(config, dict):
        return None
    net, options, size = config.get("net"), config.get("net_options"), config.get("size")
    if not isinstance(net, str) or not isinstance(options, dict):
        return None
    try:
        defaults = find_model(net).resolve_options({}, f"--net {net}")
    except RequestError:
        return None
    changed = {name: value for name, value in options.items() if defaults.get(name) != value}
    return f"--net {format_spec(net, changed)} --size {size}"


def _num_heads(path: Path, content: Mapping[str, Any]) -> int | None:
    """Return the number of attention heads according to a file or the ``config.json`` beside it, or None."""
    config = content.get("config")
    options = config.get("net_options") if isinstance(config, dict) else None
    found = options.get("num_heads") if isinstance(options, dict) else _beside(path).get("num_attention_heads")
    return found if isinstance(found, int) else None


def _check_heads(target: _Target, original: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Refuse another number of attention heads, which the shapes of the weights do not show."""
    theirs = _num_heads(target.path, content)
    blocks = getattr(target.model, "blocks", None)
    ours = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if isinstance(blocks, nn.Sequential) else None
    if theirs is not None and ours is not None and theirs != ours:
        reason = f"{theirs} attention heads instead of {ours}"
        raise _misfit(target, reason, original, content)


def _check_fit(
    target: _Target,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    kept: list[str],
    original: Mapping[str, Tensor],
    content: Mapping[str, Any],
) -> None:
    """Refuse weights that do not fit the network, apart from tensors in ``kept`` and of the head."""
    heads = head_names(target.model)
    expected = [name for name in own if name not in kept]
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    present = [name for name in expected if name in tensors]
    wrong_shape = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in present
        if tensors[name].shape != own[name].shape
    ]
    wrong_type = [
        f"{name} {str(tensors[name].dtype).removeprefix('torch.')}"
        for name in present
        if tensors[name].is_floating_point() != own[name].is_floating_point()
    ]
    unknown = [name for name in tensors if name not in own and not _within(name, heads)]
    problems = [
        ("missing", missing),
        ("wrong shape", wrong_shape),
        ("wrong type", wrong_type),
        ("unknown", unknown),
    ]
    if any(names for _, names in problems):
        reason = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems if names)
        raise _misfit(target, reason, original, content)


def _misfit(target: _Target, reason: str, original: Mapping[str, Tensor], content: Mapping[str, Any]) -> RequestError:
    """Return the error for weights that do not fit; its hint names the network that they fit, if that is known."""
    path, net = target.path, target.net
    kind, flags, channels = _origin(path, original, content)
    if channels not in (None, target.in_chans) and not target.architecture:  # timm converts them
        hint = f"use weights for images with {plural(target.in_chans, 'channel')}, or --pretrained false"
    elif flags is not None:
        hint = f"use {flags}"
    elif kind is not None:
        hint = f"use weights of --net {net}, or --pretrained false"
    else:
        hint = "use the --net and options of the network in the file, or --pretrained false"
    images = f"{target.in_chans}x{target.img_size}x{target.img_size}"
    named = f" ({kind})" if kind else ""
    return RequestError(
        f"--pretrained {path}{named} does not fit --net {net} with {images} images: {reason}", hint=hint
    )


def _origin(
    path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[str | None, str | None, int | None]:
    """Return what weights a file has, flags of the network that they fit, and its channels."""
    flags = _flags_of_run(content)
    if flags is not None:
        mean = content.get("mean")
        return "weights of a run", flags, len(mean) if isinstance(mean, list) else None
    original = original_network(tensors)
    if original is not None:
        name, fitting = original
        return (
            f"weights of {name} of the original scripts",
            fitting and f"--net {name} --size {find_model(name).img_size}",
            3,
        )
    return *recognise(tensors, _num_heads(path, content)), None


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the classification layers: those of timm's ``get_classifier()``, or else ``head``."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if get_classifier is not None else getattr(model, "head", None)
    heads = found if isinstance(found, (tuple, list)) else [found]
    return [
        name
        for name, module in model.named_modules()
        if any(module is head for head in heads) and any(True for _ in module.parameters())
    ]


def freeze_backbone(model: nn.Module, net: str) -> None:
    """Freeze all parameters of ``model`` except those of the head.

    Raises:
        RequestError: the network's head is unknown.
    """
    heads = head_names(model)
    if not heads:
        raise RequestError(
            f"--freeze-backbone does not work with --net {net}, whose head is unknown", hint="remove --freeze-backbone"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_within(name, heads))


def train_head(model: nn.Module) -> None:
    """Set the head of ``model`` to training mode and the rest to evaluation mode, so that frozen norms stay fixed."""
    model.eval()
    for name in head_names(model):
        model.get_submodule(name).train()


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__
