"""Reading of weights files from any source, safetensors or ``torch.save``, without running code in them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitctl.errors import RequestError
from vitctl.registry import or_list

KEYS = ("ema", "model_ema", "state_dict_ema", "model", "net", "state_dict")
"""Keys of the state dict in a file, in order of preference; averaged weights come first."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of names that DataParallel and torch.compile add."""

_STATE_DICT = "save only the weights, with torch.save(model.state_dict(), FILE), and use that file"
_OTHER_FILE = "use a .safetensors file or a file written by torch.save"


def read_state(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a file into CPU memory.

    Args:
        path: a safetensors file, or a ``torch.save`` file with a state dict at its top level or under one of
            :data:`KEYS`.
        what: name of the file in error messages, such as ``--pretrained FILE``.

    Returns:
        The tensors by name, without :data:`PREFIXES`; and the other values at the top level of the file.

    Raises:
        RequestError: the file is missing, damaged or not a weights file, or has pickled objects.
    """
    content = _read(path, what)
    if not isinstance(content, Mapping):
        raise RequestError(f"{what} contains a {type(content).__name__} instead of a state dict", hint=_STATE_DICT)
    more: dict[str, Any] = {}
    state: Mapping[Any, Any] = content
    for key in KEYS:
        if isinstance(content.get(key), Mapping):
            state, more = content[key], {name: value for name, value in content.items() if name != key}
            break
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) != len(state):
        others = ", ".join([str(name) for name in state if name not in tensors][:3])
        raise RequestError(
            f"{what} has no state dict at its top level or under {or_list(KEYS)}{others and f'; found: {others}'}",
            hint=_STATE_DICT,
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            kind = (
                "a meta tensor"
                if tensor.is_meta
                else "sparse"
                if tensor.layout is not torch.strided
                else str(tensor.dtype).removeprefix("torch.")
            )
            raise RequestError(f"{what}: {name} is {kind}, not a dense tensor of real numbers", hint=_STATE_DICT)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, more


def _read(path: Path, what: str) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise RequestError(f"{what} not found", hint="use the path of an existing file") from error
    except OSError as error:
        raise RequestError(f"cannot read {what}: {error.strerror}", hint="use the path of a readable file") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:  # the length of a JSON header
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # safetensors raises its own errors
            raise RequestError(f"{what} is damaged: {error}", hint="use another copy of the file") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            # torch.save does not compress, and compressed members can unpack to thousands of times their size.
            raise RequestError(f"{what} is a compressed archive, not a file written by torch.save", hint=_STATE_DICT)
    elif not head.startswith(b"\x80"):  # files of older torch versions are pickles
        raise RequestError(f"{what} is damaged or not a weights file", hint=_OTHER_FILE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that read_state refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost any error for a damaged or unknown file
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise RequestError(
                f"{what} has pickled objects, which vitctl does not load because they can run code", hint=_STATE_DICT
            ) from error
        raise RequestError(f"{what} is damaged or not a weights file", hint=_OTHER_FILE) from error
