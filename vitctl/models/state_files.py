"""Reading of weights files from any source, safetensors or ``torch.save``, without running code in them."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vitctl.errors import RequestError
from vitctl.registry import or_list

KEYS = (
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "shadow"),
    *("model", "net", "state_dict", "model_state_dict", "model_state", "network", "weights", "module"),
)
"""Keys of the state dict in a file, in order of preference; averaged weights come first."""

_STATE_DICT = "save only the weights, with torch.save(model.state_dict(), FILE), and use that file"
_OTHER_FILE = "use a .safetensors file or a file written by torch.save"

_KINDS = (
    (b"\x89HDF", "an HDF5 file, as Keras writes it", _OTHER_FILE),
    (b"GGUF", "a GGUF file", _OTHER_FILE),
    (b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull in its folder, and use the same file again"),
    (b"<", "a web page", "use the file that the page links to"),
    (
        b"{",
        "a JSON file",
        "use the weights file beside it; save_pretrained(FOLDER, max_shard_size='99GB') joins several",
    ),
    (b"\x1f\x8b", "a compressed file", "use the file that gunzip or tar unpacks"),
    (b"7z\xbc\xaf", "a compressed file", "use the file that 7z unpacks"),
)
"""First bytes of files that are not weights of PyTorch, what they are, and the hint."""

_SUFFIXES = {
    ".onnx": "an ONNX file",
    ".msgpack": "a Flax file",
    ".pb": "a TensorFlow file",
    ".index": "a TensorFlow file",
}
"""Kinds of files that are recognised by their suffix, as their first bytes vary."""


_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode"),
    *("base.ContainerMetadata", "base.Metadata"),
)
"""OmegaConf's classes in saved settings."""

_IN_OMEGACONF = ("typing.Any", "builtins.dict", "builtins.list", "builtins.int", "collections.defaultdict")
"""Classes that OmegaConf's metadata refer to."""


class Ignored:
    """Stand-in for an object of a class that is not loaded; it keeps nothing."""

    def __init__(self, *_: object) -> None:
        return

    def __new__(cls, *_: object) -> Self:
        """Return an empty object, whatever the arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop the object's attributes."""


def _harmless() -> list[Any]:
    """Return classes and functions for ``safe_globals``: those that files may use besides torch's.

    Training programs save such objects with the weights: command lines, figures, paths, times and settings. The classes
    only store values. :class:`Ignored` replaces those of other packages, so that no module is imported.
    """
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    plain = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"}  # O: objects of any class
    found: list[Any] = [argparse.Namespace, np.dtype, np.ndarray, *sorted(plain, key=str)]
    found += [datetime.datetime, datetime.date, datetime.timedelta]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        found += [(pathlib.PurePosixPath, f"{module}.{kind}") for kind in ("PosixPath", "PurePosixPath")]
        found += [(pathlib.PureWindowsPath, f"{module}.{kind}") for kind in ("WindowsPath", "PureWindowsPath")]
    found += [(Ignored, f"omegaconf.{name}") for name in _OMEGACONF]
    return found + [(Ignored, name) for name in _IN_OMEGACONF]


def read_state(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a file into CPU memory.

    Args:
        path: a safetensors file, or a ``torch.save`` file with a state dict at its top level or under :data:`KEYS`.
        what: name of the file in error messages, such as ``--pretrained FILE``.

    Returns:
        The tensors by name, in any shape and dtype; and the other values at the top level of the file.

    Raises:
        RequestError: the file is missing, damaged or not a weights file, or has pickled objects, or tensors that are
            quantized, sparse or complex.
    """
    content = _read(path, what)
    if not isinstance(content, Mapping):
        raise RequestError(f"{what} contains a {type(content).__name__} instead of a state dict", hint=_STATE_DICT)
    tensors = find_state(content)
    if not tensors:
        others = ", ".join(list(map(str, content))[:3])
        raise RequestError(
            f"{what} has no state dict at its top level or under {or_list(KEYS)}{others and f'; found: {others}'}",
            hint=_STATE_DICT,
        )
    for name, tensor in tensors.items():
        if kind := _unusable_kind(tensor):
            raise RequestError(f"{what}: {name} is {kind}, not a dense tensor of real numbers", hint=_STATE_DICT)
    return tensors, {str(key): value for key, value in content.items() if not isinstance(value, Tensor)}


def _unusable_kind(tensor: Tensor) -> str | None:
    """Return the kind of a tensor that cannot be converted to a network's, or None for dense real numbers."""
    if tensor.is_meta:
        return "a meta tensor"
    if tensor.layout is not torch.strided:
        return "sparse"
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_quantized or tensor.is_complex() else None


def find_state(content: Mapping[Any, Any], depth: int = 3) -> dict[str, Tensor]:
    """Return the tensors of the state dict in ``content``, at its top level or under :data:`KEYS`; empty if none.

    Args:
        content: what a file contains.
        depth: number of keys to follow.
    """
    for key in KEYS if depth else ():
        inside = content.get(key)
        found = find_state(inside, depth - 1) if isinstance(inside, Mapping) else {}
        if found:
            return found
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    state.pop("n_averaged", None)  # torch's AveragedModel counts its updates
    return state


def without_prefix(tensors: Mapping[str, Tensor], known: Callable[[str], bool]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip what DataParallel, torch.compile, Lightning and other wrappers put before the names of tensors.

    The prefix that makes most names ``known`` is stripped. Among equal ones, no prefix is preferred, then that of an
    average (``ema``), then the shortest. If it has several parts, such as ``model.backbone.``, known names that begin only
    with its first parts (``model.`` or none) are stripped, too.

    Args:
        tensors: tensors by name.
        known: whether a name is one of the network's.

    Returns:
        The tensors under their stripped names; and the names of the tensors without the prefix.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name in tensors:
        for prefix in _prefixes(name):
            if known(short := name.removeprefix(prefix)):
                found[prefix].add(short)
    matches = {prefix: set().union(*(found.get(part, ()) for part in _prefixes(prefix))) for prefix in found}
    longest = max(
        matches, key=lambda prefix: (len(matches[prefix]), not prefix, "ema" in prefix, -len(prefix)), default=""
    )
    stripped: dict[str, Tensor] = {}
    others = list(tensors)
    for prefix in reversed(list(_prefixes(longest))):
        for name in [name for name in others if name.startswith(prefix)]:
            short = name.removeprefix(prefix)
            if short not in stripped and (prefix == longest or known(short)):
                stripped[short] = tensors[name]
                others.remove(name)
    return stripped, others


def _prefixes(name: str) -> Iterator[str]:
    """Yield the empty string and every part of ``name`` that ends with a dot, shortest first."""
    yield ""
    yield from (name[: i + 1] for i, character in enumerate(name) if character == ".")


def is_numpy_archive(path: Path) -> bool:
    """Return whether a file is a NumPy ``.npz`` archive, which ``torch.save`` does not write."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool(archive.namelist()) and all(name.endswith(".npy") for name in archive.namelist())


def numpy_shapes(path: Path, what: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in an ``.npz`` archive.

    Args:
        path: the archive.
        what: name of the file in error messages.

    Raises:
        RequestError: the archive is compressed, or an array has objects or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise RequestError(f"{what} is compressed", hint="use the file that numpy.savez writes")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].shape for name in arrays.files}
    except Exception as error:
        raise RequestError(
            f"{what} is damaged, or has arrays of objects", hint="use another copy of the file"
        ) from error


def _read(path: Path, what: str) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except FileNotFoundError as error:
        raise RequestError(f"{what} not found", hint="use the path of an existing file") from error
    except OSError as error:
        raise RequestError(f"cannot read {what}: {error.strerror}", hint="use the path of a readable file") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:  # the length of a JSON header
        import safetensors

        try:
            with safetensors.safe_open(path, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
                return {"model": tensors, "metadata": opened.metadata() or {}}
        except Exception as error:  # safetensors raises its own errors
            raise RequestError(f"{what} is damaged: {error}", hint="use another copy of the file") from error
    if zipfile.is_zipfile(path):
        _check_archive(path, what)
    elif not head.startswith(b"\x80"):  # files of older torch versions are pickles
        raise _of_another_kind(path, what, head)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about kinds of tensors that read_state refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost any error for a damaged or unknown file
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise RequestError(
                f"{what} has pickled objects, which vitctl does not load because they can run code{_classes(path)}",
                hint=_STATE_DICT,
            ) from error
        raise RequestError(f"{what} is damaged or not a weights file", hint=_OTHER_FILE) from error


def _check_archive(path: Path, what: str) -> None:
    """Refuse archives that torch.save did not write."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename.partition("/")[2] for member in members]
    if any(name.startswith("code/") for name in names):
        raise RequestError(f"{what} is a TorchScript program, not a weights file", hint=_STATE_DICT)
    if "archive_format" in names:
        raise RequestError(f"{what} is a program of torch.export, not a weights file", hint=_STATE_DICT)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # torch.save does not compress, and compressed members can unpack to thousands of times their size.
        raise RequestError(f"{what} is a compressed archive, not a file written by torch.save", hint=_STATE_DICT)


def _of_another_kind(path: Path, what: str, head: bytes) -> RequestError:
    """Return the error for a file that is neither safetensors nor written by torch.save."""
    for start, kind, hint in _KINDS:
        if head.lstrip().startswith(start):
            return RequestError(f"{what} is {kind}, not a weights file of PyTorch", hint=hint)
    if path.suffix in _SUFFIXES:
        return RequestError(f"{what} is {_SUFFIXES[path.suffix]}, not a weights file of PyTorch", hint=_OTHER_FILE)
    return RequestError(f"{what} is damaged or not a weights file", hint=_OTHER_FILE)


def _classes(path: Path) -> str:
    """Return the names of the classes that torch refuses to load, after a colon; empty if it cannot list them."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            found: Iterable[str] = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - a file of an old version, or a damaged one
        return ""
    return f": {or_list(sorted(found)[:3])}" if found else ""
