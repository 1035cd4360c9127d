"""CIFAR-10, from the official batches or from a folder of pictures.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import torch

from vitctl.data import DATASETS
from vitctl.data.dataset import Dataset, LoadOptions, Pictures
from vitctl.data.folder import SPLITS, decode_listing, decode_picture, list_pictures
from vitctl.errors import RequestError

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """What tells one CIFAR from another.

    Attributes:
        name: its name in ``DATASETS``.
        title: how it is written.
        classes: what the labels stand for.
        mean: as published, per channel, of values scaled to 0..1.
        std: likewise.
        archive: where the official batches come from.
        folder: what the archive unpacks to.
        train: the batches of the training part and how many pictures each holds.
        test: likewise of the test part.
        meta: the file with the class names.
        label_key: what the labels are called in a batch.
        names_key: what the class names are called in ``meta``.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    archive: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    meta: str
    label_key: str
    names_key: str


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    archive="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train={f"data_batch_{i}": 10_000 for i in range(1, 6)},
    test={"test_batch": 10_000},
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
)


def load_cifar10(options: LoadOptions) -> Dataset:
    """Return CIFAR-10: 50,000 training and 10,000 test pictures, RGB, 32x32.

    It is looked for in ``--data-dir``, else in ``$VITCTL_DATA/cifar10`` and the user's data folder, as an image
    folder or as the official batches, unpacked.

    Raises:
        RequestError: it is in none of the places, or damaged, or something else.
        RunFailed: the disk filled up while the pictures of an image folder were decoded.
    """
    return load_cifar(CIFAR10, options)


def load_cifar(spec: Cifar, options: LoadOptions) -> Dataset:
    """Return the CIFAR that ``spec`` describes; see :func:`load_cifar10`."""
    roots = _roots(spec, options.data_dir)
    for root in roots:
        for place in (root, root / spec.name, root / spec.folder, root / spec.name / spec.folder):
            if any((place / part).is_dir() for part in SPLITS):
                return _from_folder(spec, place, options)
            if any((place / file).is_file() for file in (*spec.train, *spec.test)):
                return _from_batches(spec, place)
    raise RequestError(
        f"{spec.title} is not in {' nor in '.join(str(root) for root in roots)}; unpack {spec.archive} there, say where "
        f"it lies with --data-dir, or train on --dataset digits, which is built in"
    )


def _roots(spec: Cifar, data_dir: str | None) -> list[Path]:
    """Return where to look for it, the likelier first."""
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise RequestError(f"--data-dir {root} is not a folder; name the one that {spec.title} lies in")
        return [root]
    roots = [Path(platformdirs.user_data_dir("vitctl"), spec.name)]
    if os.environ.get("VITCTL_DATA"):
        roots.insert(0, Path(os.environ["VITCTL_DATA"], spec.name).expanduser())
    return roots


def _from_folder(spec: Cifar, root: Path, options: LoadOptions) -> Dataset:
    listing = list_pictures(root)
    if listing.classes != spec.classes:
        odd = sorted(set(listing.classes) ^ set(spec.classes))
        raise RequestError(
            f"{root / 'train'} is not {spec.title}'s, as {odd[0]!r} is {'not ' if odd[0] in spec.classes else ''}among "
            f"its class folders; train on it with --dataset folder --data-dir {root}"
        )

    def decode(path: str) -> npt.NDArray[np.uint8]:
        picture = decode_picture(path, None)
        if picture.shape != (3, _SIDE, _SIDE):
            raise RequestError(
                f"{path} has {picture.shape[2]}x{picture.shape[1]} pixels and {spec.title} has {_SIDE}x{_SIDE}; train "
                f"on pictures of other sizes with --dataset folder --data-dir {root}"
            )
        return picture

    dataset = decode_listing(spec.name, root, listing, decode, _SIDE, options)
    return replace(dataset, mean=spec.mean, std=spec.std)


def _from_batches(spec: Cifar, root: Path) -> Dataset:
    if (root / spec.meta).is_file():
        names = _read_batch(root / spec.meta).get(spec.names_key)
        if not isinstance(names, list) or [_text(n) for n in names if isinstance(n, (bytes, str))] != [*spec.classes]:
            raise _damaged(root / spec.meta, f"its class names are not those of {spec.title}")
    return Dataset(
        name=spec.name,
        classes=spec.classes,
        mean=spec.mean,
        std=spec.std,
        train=_read_part(spec, root, spec.train),
        val=None,
        test=_read_part(spec, root, spec.test),
        flip=DATASETS[spec.name].flip,
        native_size=_SIDE,
        source=str(root),
    )


def _read_part(spec: Cifar, root: Path, files: dict[str, int]) -> Pictures:
    images = np.empty((sum(files.values()), _ROW), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    start = 0
    for file, count in files.items():
        stop = start + count
        batch = _read_batch(root / file)
        images[start:stop] = _rows(root / file, batch.get("data"), count)
        labels[start:stop] = _labels(root / file, batch.get(spec.label_key), count, len(spec.classes))
        start = stop
    planes = torch.from_numpy(images).view(-1, 3, _SIDE, _SIDE)  # [n, 3072] -> [n, 3, 32, 32]
    return Pictures(planes, torch.from_numpy(labels))


def _rows(path: Path, data: object, count: int) -> npt.NDArray[np.uint8]:
    """Return the pictures of a batch, uint8 [count, 3072]: all of the red values, then green, then blue."""
    if not isinstance(data, _Array) or data.dtype not in ("u1", "|u1", "uint8"):
        raise _damaged(path, "its 'data' is no array of bytes")
    if data.shape != (count, _ROW) or not isinstance(data.raw, (bytes, bytearray)) or len(data.raw) != count * _ROW:
        raise _damaged(path, f"its 'data' is not {count} rows of {_ROW} bytes")
    return np.frombuffer(data.raw, dtype=np.uint8).reshape(count, _ROW, order="F" if data.fortran else "C")


def _labels(path: Path, labels: object, count: int, classes: int) -> list[int]:
    if not isinstance(labels, list) or len(labels) != count:
        raise _damaged(path, f"it does not have {count} labels")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise _damaged(path, f"its labels are not all whole numbers from 0 to {classes - 1}")
    return labels


def _text(word: bytes | str) -> str:
    """Return a string of Python 2 or 3 as text."""
    return word.decode("latin1") if isinstance(word, bytes) else word


def _damaged(path: Path, reason: str) -> RequestError:
    return RequestError(
        f"{path} is damaged, or no batch of this data set ({reason}); unpack the official archive again"
    )


# A pickle is a program: it names functions and the arguments to call them with. What follows stands in for the few
# that an array's pickle names, and only takes notes of what they are given, so nothing that a file says is run. The
# stand-ins are slotted instances, not classes or functions, so that a pickle cannot alter them either.


class _Array:
    """What a pickle says of an array: shape, type, order and bytes, none of it checked."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, raw: object, dtype: object, shape: object, fortran: object) -> None:
        self.__setstate__((1, shape, dtype, fortran, raw))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, dtype, self.fortran, self.raw = state
        self.dtype = dtype.name if isinstance(dtype, _Dtype) else None


class _Dtype:
    """What a pickle says of an array's type: its name; byte order and the rest do not matter for bytes."""

    __slots__ = ("name",)

    def __init__(self, name: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        pass


class _Reconstruct:
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, filled by its state."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array(None, None, None, False)


class _FromBuffer:
    """``_frombuffer(bytes, dtype, shape, order)``, of protocol 5."""

    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        return _Array(raw, dtype, shape, order == "F")


class _MakeDtype:
    """``dtype("u1", False, True)``."""

    __slots__ = ()

    def __call__(self, name: object, *_: object) -> _Dtype:
        return _Dtype(name)


class _Encode:
    """``_codecs.encode(text, "latin1")``: how Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("it holds text in a strange encoding")
        return text.encode("latin1")


class _NdArray:
    """The class ``ndarray`` itself, which is only ever an argument."""

    __slots__ = ()


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _NdArray(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:80]!a}, which no batch needs") from None


def _read_batch(path: Path) -> dict[str, Any]:
    """Return what a pickled batch holds, by name, with an :class:`_Array` for every array; nothing in it is run.

    Raises:
        RequestError: the file is missing, truncated, no batch, or names anything else than arrays need.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); unpack the official archive again") from error
    # A crafted or broken pickle can make the unpickler raise nearly anything.
    except Exception as error:
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no table")
    return {_text(key): value for key, value in content.items() if isinstance(key, (bytes, str))}
