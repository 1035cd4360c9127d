"""Pretrained weights: download, conversion to other image sizes, channels and classes, and freezing.

For networks that timm has, timm converts the weights: it resamples position embeddings and patch projections, sums the
first convolution over colours for greyscale images, and renames tensors of older versions.
"""

from __future__ import annotations

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitctl.certificates import TRUST_PROXY, certificate_doubt
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.models.legacy import RULES as LEGACY_RULES
from vitctl.models.state_files import read_state
from vitctl.registry import Value, or_list

PATIENCE = 5.0
"""Seconds to wait for the first response of a server."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights files on the Hugging Face Hub, in order of preference."""

MAX_NAMES = 3
"""Number of tensors to name in an error message."""

_OTHER_WEIGHTS = "use --pretrained FILE or --pretrained false"


def locate(net: str, pretrained: str) -> Path:
    """Return the path of the pretrained weights of ``net``; download them if they are not cached.

    Args:
        net: a name of the table, or ``timm/NAME``.
        pretrained: ``true``, or the path of a file.

    Raises:
        RequestError: the file is missing, the download failed, or the server did not respond within :data:`PATIENCE`
            seconds.
    """
    if pretrained != "true":
        if not Path(pretrained).is_file():
            raise RequestError(
                f"--pretrained {pretrained} not found",
                hint="use --pretrained with the path of a weights file, or --pretrained false",
            )
        return Path(pretrained)
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
    model: nn.Module, net: str, options: Mapping[str, Value], path: Path, *, img_size: int, in_chans: int
) -> str:
    """Load pretrained weights into ``model``; a head for another number of classes keeps its initial weights.

    torch's random state does not change.

    Args:
        model: the network ``net``, on any device.
        net: a name of the table, or ``timm/NAME``.
        options: options of the network.
        path: the file, see :func:`locate`.
        img_size: height and width of the network's images.
        in_chans: channels of the network's images.

    Returns:
        A message for the user.

    Raises:
        RequestError: the file is damaged or not a weights file, or its weights do not fit the network.
    """
    tensors, _ = read_state(path, f"--pretrained {path}")
    weights = find_model(net).weights
    if weights:
        tensors = _convert_with_timm(weights, options, tensors, path, net, img_size=img_size, in_chans=in_chans)
    own, heads = model.state_dict(), head_names(model)
    kept = [
        name for name in own if _within(name, heads) and (name not in tensors or tensors[name].shape != own[name].shape)
    ]
    if kept:  # the head is loaded completely or not at all
        kept = [name for name in own if _within(name, heads)]
    missing = [
        name for name in own if name not in tensors and name not in kept and not name.endswith("num_batches_tracked")
    ]
    wrong_shape = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and name not in kept and tensors[name].shape != own[name].shape
    ]
    unknown = [name for name in tensors if name not in own and not _within(name, heads)]
    if missing or wrong_shape or unknown:
        problems = [("missing", missing), ("wrong shape", wrong_shape), ("unknown", unknown)]
        legacy = missing and unknown and net in LEGACY_RULES
        raise RequestError(
            f"--pretrained {path} does not fit --net {net} with {in_chans}x{img_size}x{img_size} images: "
            + "; ".join(f"{problem}: {_some(names)}" for problem, names in problems if names),
            hint=f"convert weights of the original scripts first: vitctl convert {path} --net {net} -o FILE"
            if legacy
            else "use the --net and options of the network in the file, or --pretrained false",
        )
    model.load_state_dict({name: own[name] if name in kept else tensors.get(name, own[name]) for name in own})
    if not kept:
        return f"loaded pretrained weights, including the head, from {path}"
    classes = [tensors[name].shape[0] for name in kept if name in tensors and name.endswith("weight")]
    why = f": the file's head has {classes[0]} classes" if classes else ""
    return f"loaded pretrained weights from {path}, with a new head{why}"


def _convert_with_timm(
    weights: str,
    options: Mapping[str, Value],
    tensors: dict[str, Tensor],
    path: Path,
    net: str,
    *,
    img_size: int,
    in_chans: int,
) -> dict[str, Tensor]:
    """Convert weights of a network of timm to this size and these channels; the head does not change."""
    config = timm.get_pretrained_cfg(weights)
    assert config is not None
    names = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    head = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    num_classes = head[0].shape[0] if head else 0
    overlay: dict[str, Any] = {
        "state_dict": tensors,
        "num_classes": num_classes,
        "custom_load": False,
        "label_offset": 0,
    }
    first = (config.first_conv,) if isinstance(config.first_conv, str) else tuple(config.first_conv or ())
    stem = [tensors[f"{name}.weight"] for name in first if f"{name}.weight" in tensors]
    if stem and stem[0].ndim == 4 and stem[0].shape[1] == in_chans:
        overlay["input_size"] = (in_chans, *config.input_size[1:])
    arguments = {
        **{name: value for name, value in options.items() if name not in ("dropout", "drop_path_rate")},
        "img_size": img_size,
        "in_chans": in_chans,
        "num_classes": num_classes,
        "pretrained": True,
        "pretrained_cfg_overlay": overlay,
    }
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)  # load_pretrained reports the same in its own words
    try:
        with torch.random.fork_rng(devices=[]):
            converted = _create(weights, arguments)
    except Exception as error:
        raise RequestError(
            f"--pretrained {path} does not fit --net {net}: {_first_lines(error)}",
            hint="use the --net and options of the network in the file, or --pretrained false",
        ) from error
    finally:
        logger.setLevel(level)
    return dict(converted.state_dict())


def _create(weights: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(weights, **arguments)
    except TypeError as error:  # the network has no img_size, or rejects another argument
        try:
            return timm.create_model(weights, **{k: v for k, v in arguments.items() if k != "img_size"})
        except TypeError:
            raise error from None


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
