"""CIFAR-10 and CIFAR-100, read from the official archive, its unpacked batches or an image folder, or downloaded.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitctl.data.dataset import Dataset, Examples, LoadOptions
from vitctl.data.decode import decode_image
from vitctl.data.download import Archive, DamagedArchive, Stalled, download_lock, fetch, members, unpack
from vitctl.data.folder import decode_listing
from vitctl.data.layout import SPLITS, Listing, Undivided, list_images
from vitctl.data.places import Places, address, check_download, downloading, has_archive, places_of
from vitctl.data.reading import Traits
from vitctl.data.tree import cannot_read
from vitctl.errors import RequestError, VitctlWarning

MIRROR = "VITCTL_CIFAR_URL"
"""Environment variable: URL of a folder with the official archives, to download from instead."""

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """Description of CIFAR-10 or CIFAR-100.

    Attributes:
        name: key in ``DATASETS``.
        title: name in messages.
        classes: class names, in the order of the labels.
        mean: published mean per channel, of values scaled to 0-1.
        std: published standard deviation per channel, of values scaled to 0-1.
        archive: the official archive of the batches.
        folder: folder in the archive.
        train: number of images in each batch file of the training set.
        test: number of images in each batch file of the test set.
        meta: file with the class names.
        label_key: key of the labels in a batch.
        names_key: key of the class names in ``meta``.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    archive: Archive
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    meta: str
    label_key: str
    names_key: str

    @property
    def files(self) -> tuple[str, ...]:
        """Required files of the archive."""
        return (*self.train, *self.test, self.meta)


# Checksums: MD5 from the data sets' page and torchvision, SHA-256 from Keras.
CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        size=170_498_071,
        checksums={
            "md5": "c58f30108f718f92721af3b95e74349a",
            "sha256": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        },
    ),
    folder="cifar-10-batches-py",
    train={f"data_batch_{i}": 10_000 for i in range(1, 6)},
    test={"test_batch": 10_000},
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
)

_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail "
    "snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout "
    "tulip turtle wardrobe whale willow_tree wolf woman worm"
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(_FINE.split()),
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        size=169_001_437,
        checksums={
            "md5": "eb9058c3a382ffc7106e4002c42a8d85",
            "sha256": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        },
    ),
    folder="cifar-100-python",
    train={"train": 50_000},
    test={"test": 10_000},
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
)


def load_cifar10(options: LoadOptions) -> Dataset:
    """Return CIFAR-10: 50,000 training and 10,000 test images, RGB, 32x32, in 10 classes.

    It is searched for in ``--data-dir``, or else in ``$VITCTL_DATA/cifar10`` and the user's data folder, in three
    forms: an image folder, the official batches, or the official archive, which is unpacked next to itself if possible.
    Batches and archives are also searched for in ``./data``, where torchvision's tutorials put them. If missing, it is
    downloaded to ``--data-dir`` if that is empty, or else to ``$VITCTL_DATA/cifar10`` or the user's data folder, unless
    ``options.download`` is False.

    Raises:
        RequestError: the data set is missing and cannot be downloaded, is damaged, or is a different one.
        RunFailed: the disk filled up.
    """
    return load_cifar(CIFAR10, options)


def load_cifar100(options: LoadOptions) -> Dataset:
    """Return CIFAR-100 with its 100 fine classes; see :func:`load_cifar10`."""
    return load_cifar(CIFAR100, options)


def load_cifar(spec: Cifar, options: LoadOptions) -> Dataset:
    """Return the data set ``spec``; see :func:`load_cifar10`."""
    places = places_of(spec.name, spec.title, options.data_dir)
    place = _find(spec, places)
    if place is None:
        batches = _from_archive(spec, places, options) or _download(spec, places, options)
    elif _has_images(place):
        return _from_folder(spec, place, options)
    else:
        batches = _Batches(place)
    return _from_batches(spec, batches)


def locate(spec: Cifar) -> Path | None:
    """Return the place where training without ``--data-dir`` finds the data set: a folder or an archive; None if none."""
    places = places_of(spec.name, spec.title, None)
    archives = (folder / spec.archive.name for folder in _archive_folders(spec, places))
    return _find(spec, places) or next((path for path in archives if path.is_file()), None)


def _find(spec: Cifar, places: Places) -> Path | None:
    """Return the first folder with images or batches, or None."""
    for root in places.own:
        for place in (root, root / spec.name, root / spec.folder, root / spec.name / spec.folder):
            if _has_images(place) or _has_batches(spec, place):
                return place
    return next((root / spec.folder for root in places.shared if _has_batches(spec, root / spec.folder)), None)


def _has_batches(spec: Cifar, place: Path) -> bool:
    """Return whether ``place`` has some of the official files."""
    return any(os.path.isfile(place / file) for file in (*spec.train, *spec.test))


def _has_images(place: Path) -> bool:
    """Return whether ``place`` has the layout of an image folder."""
    return any(os.path.isdir(place / part) for part in SPLITS)


@dataclass(frozen=True)
class _Batches:
    """The official batches.

    Attributes:
        place: folder of the batches, or their archive.
        content: the files of the archive; None for a folder.
    """

    place: Path
    content: Mapping[str, bytes] | None = None

    def read(self, name: str) -> dict[str, Any]:
        return _read_batch(self.place / name, None if self.content is None else self.content[name])

    def has(self, name: str) -> bool:
        return os.path.isfile(self.place / name) if self.content is None else name in self.content


def _from_archive(spec: Cifar, places: Places, options: LoadOptions) -> _Batches | None:
    """Return the batches of an official archive in one of the folders, or None."""
    for folder in _archive_folders(spec, places):
        path = folder / spec.archive.name
        if has_archive(places, spec.archive, path):
            return _open_archive(spec, path, options)
    return None


def _archive_folders(spec: Cifar, places: Places) -> list[Path]:
    """Return the folders that may have the archive, in order."""
    below = [folder for root in places.own for folder in (root, root / spec.name)]
    return [*below, *places.shared]


def _open_archive(spec: Cifar, path: Path, options: LoadOptions) -> _Batches:
    """Return the batches of an archive with the right checksums, unpacked next to it if possible."""
    folder = path.parent / spec.folder
    try:
        with download_lock(path.parent, spec.archive, options.observer):
            if not _has_batches(spec, folder):  # else another process was faster
                unpack(path, folder, spec.files)
        return _Batches(folder)
    except DamagedArchive as damaged:
        raise _damaged(path, str(damaged), delete=path) from damaged
    except (OSError, Stalled):  # the archive can be read without unpacking it
        return _read_archive(spec, path)


def _read_archive(spec: Cifar, path: Path) -> _Batches:
    try:
        return _Batches(path, dict(members(path, spec.folder, spec.files)))
    except DamagedArchive as damaged:
        raise _damaged(path, str(damaged), delete=path) from damaged
    except OSError as error:
        raise cannot_read(path, error) from error


def _download(spec: Cifar, places: Places, options: LoadOptions) -> _Batches:
    """Download the archive and return its batches."""
    home, url = places.own[0], address(spec.archive, MIRROR)
    check_download(places, [url], allowed=options.download)
    folder, path = home / spec.folder, home / spec.archive.name
    with downloading(places, spec.archive, url, "the archive"):
        home.mkdir(parents=True, exist_ok=True)
        with download_lock(home, spec.archive, options.observer):
            if _has_batches(spec, folder):  # another process was faster
                return _Batches(folder)
            part = fetch(spec.archive, url, home, options.observer)
            try:
                unpack(part, folder, spec.files)
            except DamagedArchive as damaged:
                raise _damaged(path, str(damaged), delete=path) from damaged
            except OSError:
                part.replace(path)
                return _read_archive(spec, path)
            part.unlink()
            return _Batches(folder)


def _from_folder(spec: Cifar, root: Path, options: LoadOptions) -> Dataset:
    _check_class_folders(spec, root)
    try:
        listing = list_images(root)
    except Undivided as error:
        hint = f"unpack {spec.title} again, or use {_as_folder(root)} --test-fraction 0.2"
        raise RequestError(error.message, hint=hint) from error
    _warn_of_other_counts(spec, root, listing)

    def decode(path: str, traits: Traits) -> npt.NDArray[np.uint8]:
        image = decode_image(path, None, traits=traits)
        if image.shape != (3, _SIDE, _SIDE):
            raise RequestError(
                f"{path} has {image.shape[2]}x{image.shape[1]} pixels, but {spec.title} has {_SIDE}x{_SIDE}",
                hint=f"use {_as_folder(root)} for images of any size",
            )
        return image

    dataset = decode_listing(spec.name, root, listing, decode, _SIDE, options)
    return replace(dataset, mean=spec.mean, std=spec.std)


def _as_folder(root: Path) -> str:
    """Return the flags that read ``root`` as any other folder of images."""
    return f"--dataset folder --data-dir {quote(str(root))}"


def _check_class_folders(spec: Cifar, root: Path) -> None:
    """Refuse an image folder with unknown, missing or empty class folders, as left by an interrupted unpacking."""
    for part in SPLITS:
        if not (root / part).is_dir():
            continue
        try:
            found = {
                name: bool(os.listdir(root / part / name))
                for name in os.listdir(root / part)
                if os.path.isdir(root / part / name) and not name.startswith(".")
            }
        except OSError as error:
            raise cannot_read(Path(error.filename), error) from error
        if unknown := sorted(set(found) - set(spec.classes)):
            raise RequestError(
                f"{root / part} has the folder {unknown[0]!r}, which is not a class of {spec.title}",
                hint=f"use {_as_folder(root)}, or another --data-dir",
            )
        lacking = [name for name in spec.classes if not found.get(name)]
        if lacking:
            which = f"class folder {lacking[0]!r} is"
            if len(lacking) > 1:
                which = f"class folders {lacking[0]!r} and {len(lacking) - 1} more are"
            raise RequestError(
                f"{root / part} is incomplete: {which} {'empty' if lacking[0] in found else 'missing'}",
                hint=f"unpack {spec.title} again, or train on the other classes: {_as_folder(root)}",
            )


def _warn_of_other_counts(spec: Cifar, root: Path, listing: Listing) -> None:
    """Warn if the number of images differs from the official one."""
    train, test = (listing.counts[part] for part in ("train", "test"))
    train, test = (train + listing.counts["val"], test) if test else (train, listing.counts["val"])
    official_train, official_test = sum(spec.train.values()), sum(spec.test.values())
    per_class = np.bincount(listing.labels, minlength=len(spec.classes))
    if (train, test) != (official_train, official_test):
        what = f"{train:,} training and {test:,} test images, not {official_train:,} and {official_test:,}"
    elif len({*per_class.tolist()}) > 1:
        what = "classes of unequal size"
    else:
        return
    warnings.warn(f"{root} has {what}; results are not comparable with published ones", VitctlWarning, stacklevel=2)


def _from_batches(spec: Cifar, batches: _Batches) -> Dataset:
    if batches.has(spec.meta):
        names = batches.read(spec.meta).get(spec.names_key)
        if not isinstance(names, list) or [_text(n) for n in names if isinstance(n, (bytes, str))] != [*spec.classes]:
            raise _damaged(batches.place / spec.meta, f"its class names are not those of {spec.title}")
    return Dataset(
        name=spec.name,
        classes=spec.classes,
        mean=spec.mean,
        std=spec.std,
        train=_read_part(spec, batches, spec.train),
        val=None,
        test=_read_part(spec, batches, spec.test),
        source=str(batches.place),
    )


def _read_part(spec: Cifar, batches: _Batches, files: dict[str, int]) -> Examples:
    images = np.empty((sum(files.values()), _ROW), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    start = 0
    for file, count in files.items():
        stop = start + count
        batch, path = batches.read(file), batches.place / file
        images[start:stop] = _rows(path, batch.get("data"), count)
        labels[start:stop] = _labels(path, batch.get(spec.label_key), count, len(spec.classes))
        start = stop
    planes = torch.from_numpy(images).view(-1, 3, _SIDE, _SIDE)  # [n, 3072] -> [n, 3, 32, 32]
    return Examples(planes, torch.from_numpy(labels))


def _rows(path: Path, data: object, count: int) -> npt.NDArray[np.uint8]:
    """Return the images of a batch, uint8 [count, 3072]: all of the red values, then green, then blue."""
    if not isinstance(data, _Array) or data.dtype not in ("u1", "|u1", "uint8"):
        raise _damaged(path, "its 'data' is not an array of bytes")
    if data.shape != (count, _ROW) or not isinstance(data.raw, (bytes, bytearray)) or len(data.raw) != count * _ROW:
        raise _damaged(path, f"its 'data' is not {count} rows of {_ROW} bytes")
    return np.frombuffer(data.raw, dtype=np.uint8).reshape(count, _ROW, order="F" if data.fortran else "C")


def _labels(path: Path, labels: object, count: int, classes: int) -> list[int]:
    if not isinstance(labels, list) or len(labels) != count:
        raise _damaged(path, f"it does not have a list of {count} labels")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise _damaged(path, f"its labels are not whole numbers from 0 to {classes - 1}")
    return labels


def _text(word: bytes | str) -> str:
    """Decode a string pickled by Python 2 or 3."""
    return word.decode("latin1") if isinstance(word, bytes) else word


def _damaged(path: Path, reason: str, delete: Path | None = None) -> RequestError:
    """Return the error for a damaged archive or batch; ``delete`` is the path to delete, by default its folder."""
    return RequestError(f"{path} is damaged: {reason}", hint=_unpack_again(delete or path.parent))


def _unpack_again(delete: Path) -> str:
    return f"unpack the official archive again, or delete {delete} to download it again"


# A pickle is a program that calls the functions it names. The stand-ins below replace the few functions that the pickle
# of an array names, and only record their arguments, so that nothing in a file is executed. They are slotted instances,
# not classes or functions, so that a pickle cannot modify them either.


class _Array:
    """An array as described by a pickle: shape, type, order and bytes, all unchecked."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, raw: object, dtype: object, shape: object, fortran: object) -> None:
        self.__setstate__((1, shape, dtype, fortran, raw))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, dtype, self.fortran, self.raw = state
        self.dtype = dtype.name if isinstance(dtype, _Dtype) else None


class _Dtype:
    """An array's type as described by a pickle; only the name matters for bytes."""

    __slots__ = ("name",)

    def __init__(self, name: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        pass


class _Reconstruct:
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, to be filled by ``__setstate__``."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array(None, None, None, False)


class _FromBuffer:
    """``_frombuffer(bytes, dtype, shape, order)``, used by protocol 5."""

    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        return _Array(raw, dtype, shape, order == "F")


class _MakeDtype:
    """``dtype("u1", False, True)``."""

    __slots__ = ()

    def __call__(self, name: object, *_: object) -> _Dtype:
        return _Dtype(name)


class _Encode:
    """``_codecs.encode(text, "latin1")``: bytes written by Python 3 for Python 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("its text has an unexpected encoding")
        return text.encode("latin1")


class _NdArray:
    """The class ``ndarray``, which occurs only as an argument."""

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
            raise pickle.UnpicklingError(f"it refers to {f'{module}.{name}'[:80]!a}, which is not allowed") from None


def _read_batch(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """Return the dictionary in a pickled batch, with :class:`_Array` for arrays, without executing any of its code.

    Args:
        path: the file.
        content: its bytes, if already read.

    Raises:
        RequestError: the file is missing, truncated, not a batch, or refers to anything that arrays do not need.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            table = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", hint=_unpack_again(path.parent)) from error
    # A crafted or damaged pickle can make the unpickler raise nearly any exception.
    except Exception as error:
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    if not isinstance(table, dict):
        raise _damaged(path, "it is not a dictionary")
    return {_text(key): value for key, value in table.items() if isinstance(key, (bytes, str))}
