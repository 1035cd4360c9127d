"""Pretrained weights: download, conversion to other names, image sizes, channels and classes, and freezing.

For networks that timm has, timm converts the weights: it resamples position embeddings and patch projections, sums the
first convolution over colours for greyscale images, and renames tensors of older versions. For vitctl's own networks,
position embeddings and patch projections are resampled here, with timm's functions.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitctl.certificates import TRUST_PROXY, certificate_doubt
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.models.entry import TIMM
from vitctl.models.foreign import FOREIGN, google_flags, google_vit, recognise
from vitctl.models.heads import head_names, within
from vitctl.models.legacy import RULES as LEGACY_RULES
from vitctl.models.legacy import has_rule, original_network, renamed
from vitctl.models.resampling import describe_resampling, resampled
from vitctl.models.sources import FILES, weights_file
from vitctl.models.state_files import is_numpy_archive, numpy_shapes, read_state, without_prefix
from vitctl.models.weights_facts import class_names, flags_of_run, num_heads
from vitctl.registry import Value, first_of, or_list
from vitctl.units import plural

PATIENCE = 5.0
"""Seconds to wait for the first response of a server."""

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
        return weights_file(Path(pretrained), f"--pretrained {pretrained}")
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
    """Return whether the server of ``url`` responds within :data:`PATIENCE` seconds, with any status.

    Raises:
        RequestError: its certificate cannot be verified.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException) as error:  # HTTPException: the server does not speak HTTP
        if doubt := certificate_doubt(error):
            raise RequestError(f"cannot download pretrained weights from {url}: {doubt}", hint=TRUST_PROXY) from error
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
    loading, tensors, notes = _read(model, net, options, path, img_size, in_chans)
    own, heads = model.state_dict(), head_names(model)
    their_classes = class_names(path, loading.content)
    kept = [name for name in own if within(name, heads)]  # the head is loaded completely or not at all
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in kept)
    same = not their_classes or not classes or their_classes == list(classes)
    if fits and same:
        kept = []
    _check_fit(loading, tensors, kept)
    _check_finite(loading, tensors)
    model.load_state_dict({name: own[name] if name in kept else tensors.get(name, own[name]) for name in own})
    ending = "".join(f"; {note}" for note in notes)
    if not kept:
        unnamed = "" if their_classes or not heads else ", whose classes the file does not name"
        return f"loaded pretrained weights, including the head{unnamed}, from {path}{ending}"
    if fits:
        why = f": the file's head is for other classes: {first_of(their_classes)}"
    else:
        count = _class_count(tensors, heads)
        why = f": the file's head has {count} classes" if count else ""
    return f"loaded pretrained weights from {path}, with a new head{why}{ending}"


def _read(
    model: nn.Module, net: str, options: Mapping[str, Value], path: Path, img_size: int, in_chans: int
) -> tuple[_Loading, dict[str, Tensor], list[str]]:
    """Read a weights file; see :func:`load_pretrained` for the arguments.

    Returns:
        What was read, the tensors under the network's names and at its sizes, and notes on how they were converted.
    """
    if is_numpy_archive(path):
        loading = _Loading(model, net, options, path, img_size, in_chans, {}, {})
        return loading, _load_numpy(loading), ["converted from Google's .npz"]
    loading = _Loading(model, net, options, path, img_size, in_chans, *read_state(path, f"--pretrained {path}"))
    named, notes = _in_own_names(loading)
    _check_types(loading, named)
    tensors = _convert_with_timm(loading, named) if loading.architecture else resampled(named, model)
    _check_heads(loading)
    return loading, tensors, notes + describe_resampling(named, tensors)


def _class_count(tensors: Mapping[str, Tensor], heads: list[str]) -> int | None:
    """Return the number of classes of the head in ``tensors``, or None if it has no weights."""
    weights = [tensors[name] for name in tensors if within(name, heads) and name.endswith("weight")]
    sizes = [weight.shape[0] for weight in weights if weight.ndim]
    return sizes[-1] if sizes else None


@dataclass(frozen=True)
class _Loading:
    """The arguments of :func:`load_pretrained`, and what :func:`read_state` returns for the file."""

    model: nn.Module
    net: str
    options: Mapping[str, Value]
    path: Path
    img_size: int
    in_chans: int
    original: dict[str, Tensor]
    content: dict[str, Any]

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


def _in_own_names(loading: _Loading) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors of wrappers, other libraries and the original scripts to the network's names.

    Of all conversions that are possible for the network, the one that yields most of its names is used. If none yields
    more than half, the tensors keep their names, which timm may know.

    Returns:
        The tensors, and what to report about them.
    """
    own = loading.model.state_dict()
    heads = head_names(loading.model)
    backbone = [name for name in own if not within(name, heads)]
    net, options = loading.net, loading.options

    def of_the_scripts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state, unknown = renamed(net, options, tensors)
        return {ours: tensor for ours, (_, tensor) in state.items()} | {name: tensors[name] for name in unknown}

    ways: list[tuple[str, Callable[[str], bool], Callable[[dict[str, Tensor]], dict[str, Tensor]]]]
    ways = [("", own.__contains__, dict)]
    if "blocks.0.attn.qkv.bias" in own:
        ways += [(f"converted from {names.title}", names.knows, names.to_timm) for names in FOREIGN]
    if net in LEGACY_RULES and not loading.architecture:
        ways.append(("converted from the original scripts", has_rule(net, options), of_the_scripts))
    best, best_notes, most = loading.original, list[str](), len(backbone) // 2
    for note, known, rename in ways:
        stripped, others = without_prefix(loading.original, known)
        tensors = rename(stripped)
        found = sum(name in tensors for name in backbone)
        if found > most:
            best, most, best_notes = tensors, found, [note] if note else []
            if others:
                best_notes.append(f"without {plural(len(others), 'tensor')} of other parts: {first_of(others)}")
    return best, best_notes


def _convert_with_timm(loading: _Loading, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of a network of timm to this size and these channels; the head does not change."""
    config = timm.get_pretrained_cfg(loading.architecture)
    assert config is not None  # every registered name has one
    names = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    head = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    num_classes = head[0].shape[0] if head and head[0].ndim else 0
    overlay: dict[str, Any] = {
        "state_dict": dict(tensors),  # timm changes it
        "num_classes": num_classes,
        "custom_load": False,
        "label_offset": 0,
    }
    first = (config.first_conv,) if isinstance(config.first_conv, str) else tuple(config.first_conv or ())
    stem = [tensors[f"{name}.weight"] for name in first if f"{name}.weight" in tensors]
    if stem and stem[0].ndim == 4 and stem[0].shape[1] == loading.in_chans:
        overlay["input_size"] = (loading.in_chans, *config.input_size[1:])
    try:
        with _quiet_timm():
            converted = loading.build(num_classes=num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise _misfit(loading, _first_lines(error)) from error
    return dict(converted.state_dict())


def _load_numpy(loading: _Loading) -> dict[str, Tensor]:
    """Read the weights of a ViT in Google's ``.npz`` with timm's loader, which also converts them."""
    what = f"--pretrained {loading.path}"
    shapes = numpy_shapes(loading.path, what)
    vit = google_vit(shapes)
    if vit is None:
        raise RequestError(f"{what} has arrays other than those of Google's ViT", hint=_OTHER_WEIGHTS)
    depth, heads, classes = vit
    model: Any = loading.model
    try:
        if not loading.architecture or not isinstance(model, VisionTransformer):
            raise ValueError("it is another network")
        if len(model.blocks) != depth:  # timm would leave out the others
            raise ValueError(f"{depth} blocks instead of {len(model.blocks)}")
        if (own_heads := cast(Any, model.blocks[0]).attn.num_heads) != heads:
            raise ValueError(f"{heads} attention heads instead of {own_heads}")
        built: Any = loading.build(num_classes=classes)
        with _quiet_timm():
            built.load_pretrained(str(loading.path))
    except Exception as error:
        raise RequestError(
            f"{what} (Google's ViT) does not fit --net {loading.net}: {_first_lines(error)}",
            hint=f"use {flags}" if (flags := google_flags(shapes)) else _OTHER_WEIGHTS,
        ) from error
    return dict(built.state_dict())


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


def _check_types(loading: _Loading, tensors: Mapping[str, Tensor]) -> None:
    """Refuse quantized weights, which would be converted without their scales."""
    own = loading.model.state_dict()
    wrong = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in tensors.items()
        if name in own and tensor.is_floating_point() != own[name].is_floating_point()
    ]
    if wrong:
        raise _misfit(loading, f"wrong type: {first_of(wrong)}")


def _check_heads(loading: _Loading) -> None:
    """Refuse another number of attention heads, which the shapes of the weights do not show."""
    theirs = num_heads(loading.path, loading.content)
    blocks = getattr(loading.model, "blocks", None)
    ours = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if isinstance(blocks, nn.Sequential) else None
    if theirs is not None and ours is not None and theirs != ours:
        raise _misfit(loading, f"{theirs} attention heads instead of {ours}")


def _check_fit(loading: _Loading, tensors: Mapping[str, Tensor], kept: list[str]) -> None:
    """Refuse weights that do not fit the network, apart from tensors in ``kept`` and of the head."""
    own, heads = loading.model.state_dict(), head_names(loading.model)
    expected = [name for name in own if name not in kept]
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    present = [name for name in expected if name in tensors]
    wrong_shape = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in present
        if tensors[name].shape != own[name].shape
    ]
    unknown = [name for name in tensors if name not in own and not within(name, heads)]
    problems = [("missing", missing), ("wrong shape", wrong_shape), ("unknown", unknown)]
    if any(names for _, names in problems):
        reason = "; ".join(f"{problem}: {first_of(names)}" for problem, names in problems if names)
        raise _misfit(loading, reason)


def _check_finite(loading: _Loading, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in loading.model.named_parameters():
        if name in tensors and tensors[name].shape == parameter.shape and not tensors[name].isfinite().all():
            raise RequestError(
                f"--pretrained {loading.path}: {name} has values that are not finite",
                hint="use --pretrained with a checkpoint from before the training diverged",
            )


def _misfit(loading: _Loading, reason: str) -> RequestError:
    """Return the error for weights that do not fit; its hint names the network that they fit, if that is known."""
    path, net = loading.path, loading.net
    kind, flags, channels = _origin(loading)
    if channels not in (None, loading.in_chans) and not loading.architecture:  # timm converts them
        hint = f"use weights for images with {plural(loading.in_chans, 'channel')}, or --pretrained false"
    elif flags is not None:
        hint = f"use {flags}"
    elif kind is not None:
        hint = f"use weights of --net {net}, or --pretrained false"
    else:
        hint = "use the --net and options of the network in the file, or --pretrained false"
    images = f"{loading.in_chans}x{loading.img_size}x{loading.img_size}"
    named = f" ({kind})" if kind else ""
    return RequestError(
        f"--pretrained {path}{named} does not fit --net {net} with {images} images: {reason}", hint=hint
    )


def _origin(loading: _Loading) -> tuple[str | None, str | None, int | None]:
    """Return what weights the file has, flags of a network that they fit, and its channels; each None if unknown."""
    content, flags = loading.content, flags_of_run(loading.content)
    if flags is not None:
        mean = content.get("mean")
        return "weights of a run", flags, len(mean) if isinstance(mean, list) else None
    original = original_network(loading.original)
    if original is not None:
        name, fitting = original
        flags = fitting and f"--net {name} --size {find_model(name).img_size}"
        return f"weights of {name} of the original scripts", flags, 3
    return *recognise(loading.original, num_heads(loading.path, content)), None


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__
