"""Files of weights made by others: safetensors, or what torch.save wrote, read without running anything in them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitctl.errors import RequestError

KEYS = ("ema", "model_ema", "state_dict_ema", "model", "net", "state_dict")
"""Under which of its keys a file keeps the weights; the first that is there is taken, an average before the last ones."""

PREFIXES = ("module.", "_orig_mod.")
"""What wrappers put before every name: DataParallel and torch.compile."""


def read_state(path: Path, flag: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a file onto the CPU.

    Args:
        path: a safetensors file, or one of torch.save with a state dict, or with one under one of :data:`KEYS`.
        flag: how to call the file in an error, such as ``--pretrained FILE``.

    Returns:
        The tensors by name, wrappers' prefixes taken off, and what else the file holds at its top.

    Raises:
        RequestError: it is not there, damaged, foreign, or holds objects that only running its code would rebuild.
    """
    content = _read(path, flag)
    if not isinstance(content, Mapping):
        raise RequestError(f"{flag}: it holds no weights by name, but a {type(content).__name__}")
    more: dict[str, Any] = {}
    state: Mapping[Any, Any] = content
    for key in KEYS:
        if isinstance(content.get(key), Mapping):
            state, more = content[key], {name: value for name, value in content.items() if name != key}
            break
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) != len(state):
        strange = [str(name) for name in state if name not in tensors][:3]
        raise RequestError(
            f"{flag}: it holds no weights by name{f', but {chr(44).join(strange)}' if strange else ''}; weights are "
            f"looked for at its top and under {', '.join(KEYS)}"
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            kind = (
                "on no device" if tensor.is_meta else "sparse" if tensor.layout is not torch.strided else tensor.dtype
            )
            raise RequestError(f"{flag}: {name} is {kind}, and weights are plain numbers")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, more


def _read(path: Path, flag: str) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise RequestError(f"{flag}: it cannot be read ({error.strerror})") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:  # the length of a header in JSON
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # of its own kinds
            raise RequestError(f"{flag}: it is a damaged safetensors file ({error})") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            # Compressed members may unpack to thousands of times their size; torch.save compresses nothing.
            raise RequestError(f"{flag}: it is a compressed archive, and no file of torch.save")
    elif not head.startswith(b"\x80"):  # what torch wrote before it wrote archives, is a pickle
        raise RequestError(f"{flag}: it is damaged, or no file of weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused here anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged or foreign file
        detail = "it is damaged, or no file of weights"
        if "weights_only" in str(error) or "Unsupported" in str(error):
            detail = "it holds objects that only running its code would rebuild, which vitctl never does"
        raise RequestError(f"{flag}: {detail}") from error
