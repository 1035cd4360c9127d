"""Pretrained weights: finding them, fitting them to a network of other classes, sizes and channels, and freezing them.

timm's own code fits the weights of its networks: it resamples positions and patches to the image size, sums the
colours of the first convolution for grey images, and renames what older versions called otherwise.
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

from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.models.legacy import RULES as PREDECESSORS
from vitctl.models.state_files import read_state
from vitctl.registry import Value

PATIENCE = 5.0
"""Seconds to wait for a first answer of the server that has the weights."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""What weights are called on the Hugging Face hub, best first."""

NAMED = 3
"""How many tensors an error names."""


def locate(net: str, pretrained: str) -> Path:
    """Return the file of the pretrained weights of ``net``, downloading it when it is neither here nor cached.

    Args:
        net: a name of the table, or ``timm/NAME``.
        pretrained: ``true``, or a file.

    Raises:
        RequestError: there is no such file, or it can only be had through a network that is not there; said within
            :data:`PATIENCE` seconds, with what to do.
    """
    if pretrained != "true":
        if not Path(pretrained).is_file():
            raise RequestError(f"--pretrained {pretrained}: no such file")
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
            raise RequestError(
                f"--net {net}: its pretrained weights {repository} could not be downloaded ({_line(error)}); try again, or "
                f"take --pretrained FILE, or --pretrained false"
            ) from error
    raise RequestError(f"--net {net}: {repository} holds none of {', '.join(names)}; take --pretrained FILE")


def _from_url(net: str, url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not reachable(url):
        raise _unreachable(net, url, f"download {url}", str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except Exception as error:
        raise RequestError(
            f"--net {net}: its pretrained weights {url} could not be downloaded ({_line(error)}); try again, or take "
            f"--pretrained FILE, or --pretrained false"
        ) from error
    return path


def reachable(url: str) -> bool:
    """Whether the server of ``url`` answers within :data:`PATIENCE` seconds, whatever it answers; asked once."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):  # the last: what answers speaks no HTTP
        return False
    return True


def _unreachable(net: str, server: str, command: str, cache: str) -> RequestError:
    return RequestError(
        f"--net {net}: its pretrained weights are not in the cache {cache}, and {server} cannot be reached; where there is "
        f"a network, {command}, and then give --pretrained FILE here, or take --pretrained false for weights drawn at random"
    )


def load_pretrained(
    model: nn.Module, net: str, options: Mapping[str, Value], path: Path, *, img_size: int, in_chans: int
) -> str:
    """Give ``model`` the weights of ``path``; a head of other classes keeps what it has drawn.

    torch's random state is left as it was.

    Args:
        model: the network ``net``, wherever it is.
        net: a name of the table, or ``timm/NAME``.
        options: the options that it was built with.
        path: as :func:`locate` gave it.
        img_size: side of the images that it was built for.
        in_chans: their channels.

    Returns:
        What was done, for the user.

    Raises:
        RequestError: the file is damaged or foreign, or its weights are another network's.
    """
    tensors, _ = read_state(path, f"--pretrained {path}")
    weights = find_model(net).weights
    if weights:
        tensors = _fitted_by_timm(weights, options, tensors, path, net, img_size=img_size, in_chans=in_chans)
    own, heads = model.state_dict(), head_names(model)
    anew = [
        name for name in own if _within(name, heads) and (name not in tensors or tensors[name].shape != own[name].shape)
    ]
    if anew:  # a head is taken as a whole
        anew = [name for name in own if _within(name, heads)]
    lacking = [
        name for name in own if name not in tensors and name not in anew and not name.endswith("num_batches_tracked")
    ]
    unlike = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and name not in anew and tensors[name].shape != own[name].shape
    ]
    foreign = [name for name in tensors if name not in own and not _within(name, heads)]
    if lacking or unlike or foreign:
        found = [("it lacks", lacking), ("it has", unlike), ("the network has no", foreign)]
        theirs = lacking and foreign and net in PREDECESSORS
        raise RequestError(
            f"--pretrained {path} does not fit --net {net} for {img_size}-px images of "
            f"{in_chans} channel{'s' if in_chans > 1 else ''}: "
            + "; ".join(f"{verb} {_some(names)}" for verb, names in found if names)
            + ("; weights that the predecessor's scripts saved go through vitctl convert first" if theirs else "")
        )
    model.load_state_dict({name: own[name] if name in anew else tensors.get(name, own[name]) for name in own})
    there = [tensors[name].shape[0] for name in anew if name in tensors and name.endswith("weight")]
    classes = f", as that of the file has {there[0]} classes" if there else ""
    return f"pretrained weights: {path}" + (f"; the head is drawn anew{classes}" if anew else ", head included")


def _fitted_by_timm(
    weights: str,
    options: Mapping[str, Value],
    tensors: dict[str, Tensor],
    path: Path,
    net: str,
    *,
    img_size: int,
    in_chans: int,
) -> dict[str, Tensor]:
    """Return the weights of a network of timm's, resampled to this size and these channels, with the head of the file."""
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
    logger.setLevel(logging.ERROR)  # what it would say is said here
    try:
        with torch.random.fork_rng(devices=[]):
            donor = _create(weights, arguments)
    except Exception as error:
        raise RequestError(f"--pretrained {path} does not fit --net {net}: {_line(error)}") from error
    finally:
        logger.setLevel(level)
    return dict(donor.state_dict())


def _create(weights: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(weights, **arguments)
    except TypeError as error:  # the network has no img_size, or rejects another argument
        try:
            return timm.create_model(weights, **{k: v for k, v in arguments.items() if k != "img_size"})
        except TypeError:
            raise error from None


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the layers that tell the classes apart: timm's ``get_classifier()``, else ``head``."""
    ask = getattr(model, "get_classifier", None)
    found = ask() if ask is not None else getattr(model, "head", None)
    heads = found if isinstance(found, (tuple, list)) else [found]
    return [
        name
        for name, module in model.named_modules()
        if any(module is head for head in heads) and any(True for _ in module.parameters())
    ]


def freeze_backbone(model: nn.Module, net: str) -> None:
    """Let nothing but the head of ``model`` learn.

    Raises:
        RequestError: the network does not say what its head is.
    """
    heads = head_names(model)
    if not heads:
        raise RequestError(f"--freeze-backbone: --net {net} does not say what its head is; leave it out")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_within(name, heads))


def train_head(model: nn.Module) -> None:
    """Put the head of ``model`` in training mode and the rest in evaluation mode, so that frozen norms stay as they are."""
    model.eval()
    for name in head_names(model):
        model.get_submodule(name).train()


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__
