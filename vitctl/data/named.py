"""MNIST, Fashion-MNIST, KMNIST, SVHN and STL-10: the official files, read with torchvision's classes, or downloaded.

Torchvision only reads the files: its downloads have no timeout and do not resume (see :mod:`vitctl.data.download`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision import datasets

from vitctl.data.dataset import Dataset, Examples, LoadOptions
from vitctl.data.download import Archive, DamagedArchive, Stalled, download_lock, fetch, gunzip, unpack
from vitctl.data.places import Places, address, check_download, downloading, has_archive, places_of
from vitctl.data.tree import cannot_read
from vitctl.errors import NoSpace, RequestError
from vitctl.files import is_full

_PIECE = 4096
"""Images to process at once, so that intermediate results stay small."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """Description of a data set.

    Attributes:
        name: key in ``DATASETS``.
        title: name in messages.
        reader: class in :mod:`torchvision.datasets`.
        folder: folder of its files in torchvision's layout.
        classes: class names, in the order of the labels.
        shape: channels, height and width of the images.
        counts: number of images in ``train`` and ``test``.
        archives: official files to download.
        members: required files of a ``.tar.gz`` archive.
    """

    name: str
    title: str
    reader: str
    folder: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    counts: dict[str, int]
    archives: tuple[Archive, ...]
    members: tuple[str, ...] = ()

    @property
    def mirror(self) -> str:
        """Environment variable: URL of a folder with the archives, to download from instead."""
        return f"VITCTL_{self.name.upper()}_URL"

    def home(self, place: Path) -> Path:
        """Return the folder of the archives whose files belong in ``place``."""
        return place.parent if self.members else place

    def unpacked(self, archive: Archive) -> tuple[str, ...]:
        """Return the names of the files in an archive; none for SVHN, whose files are read as they are."""
        return self.members or ((archive.name.removesuffix(".gz"),) if archive.name.endswith(".gz") else ())

    def is_unpacked(self, archive: Archive, place: Path) -> bool:
        """Return whether the files of an archive are in ``place``."""
        names = self.unpacked(archive)
        return bool(names) and all(os.path.isfile(place / name) for name in names)


def _archives(folder: str, files: dict[str, tuple[int, str]]) -> tuple[Archive, ...]:
    """Return the archives in the folder of a server, by name: size and MD5."""
    return tuple(Archive(url=folder + name, size=size, checksums={"md5": md5}) for name, (size, md5) in files.items())


_DIGITS = tuple(str(digit) for digit in range(10))
_IDX: dict[str, Any] = {"shape": (1, 28, 28), "counts": {"train": 60_000, "test": 10_000}}

# Checksums: torchvision's. Sizes: those of torchvision's and TensorFlow's downloads.
NAMED = {
    each.name: each
    for each in (
        Named(
            name="mnist",
            title="MNIST",
            reader="MNIST",
            folder="MNIST/raw",
            classes=_DIGITS,
            **_IDX,
            archives=_archives(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                {
                    "train-images-idx3-ubyte.gz": (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                    "train-labels-idx1-ubyte.gz": (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
                    "t10k-images-idx3-ubyte.gz": (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
                    "t10k-labels-idx1-ubyte.gz": (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
                },
            ),
        ),
        Named(
            name="fashionmnist",
            title="Fashion-MNIST",
            reader="FashionMNIST",
            folder="FashionMNIST/raw",
            classes=(
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            **_IDX,
            archives=_archives(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                {
                    "train-images-idx3-ubyte.gz": (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                    "train-labels-idx1-ubyte.gz": (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
                    "t10k-images-idx3-ubyte.gz": (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
                    "t10k-labels-idx1-ubyte.gz": (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
                },
            ),
        ),
        Named(
            name="kmnist",
            title="KMNIST",
            reader="KMNIST",
            folder="KMNIST/raw",
            classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            **_IDX,
            archives=_archives(
                "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
                {
                    "train-images-idx3-ubyte.gz": (18_165_135, "bdb82020997e1d708af4cf47b453dcf7"),
                    "train-labels-idx1-ubyte.gz": (29_497, "e144d726b3acfaa3e44228e80efcd344"),
                    "t10k-images-idx3-ubyte.gz": (3_041_136, "5c965bf0a639b31b8f53240b1b52f4d7"),
                    "t10k-labels-idx1-ubyte.gz": (5_120, "7320c461ea6c1c855c0b718fb2a4b134"),
                },
            ),
        ),
        Named(
            name="svhn",
            title="SVHN",
            reader="SVHN",
            folder="",
            classes=_DIGITS,
            shape=(3, 32, 32),
            counts={"train": 73_257, "test": 26_032},
            archives=_archives(
                "http://ufldl.stanford.edu/housenumbers/",
                {
                    "train_32x32.mat": (182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
                    "test_32x32.mat": (64_275_384, "eb5a983be6a315427106f1b164d9cef3"),
                },
            ),
        ),
        Named(
            name="stl10",
            title="STL-10",
            reader="STL10",
            folder="stl10_binary",
            classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
            shape=(3, 96, 96),
            counts={"train": 5_000, "test": 8_000},
            archives=_archives(
                "http://ai.stanford.edu/~acoates/stl10/",
                {"stl10_binary.tar.gz": (2_640_397_119, "91f7769df0f17e558f3565bffb0c7dfb")},
            ),
            members=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
        ),
    )
}
"""Data sets by ``--dataset`` name."""


def load_mnist(options: LoadOptions) -> Dataset:
    """Return MNIST: 60,000 training and 10,000 test images, greyscale, 28x28, in 10 classes; see :func:`load`."""
    return load(NAMED["mnist"], options)


def load_fashionmnist(options: LoadOptions) -> Dataset:
    """Return Fashion-MNIST, of MNIST's size, in 10 classes of clothes; see :func:`load`."""
    return load(NAMED["fashionmnist"], options)


def load_kmnist(options: LoadOptions) -> Dataset:
    """Return KMNIST, of MNIST's size, in 10 classes of Japanese characters; see :func:`load`."""
    return load(NAMED["kmnist"], options)


def load_svhn(options: LoadOptions) -> Dataset:
    """Return SVHN: 73,257 training and 26,032 test images, RGB, 32x32, in 10 classes of digits; see :func:`load`."""
    return load(NAMED["svhn"], options)


def load_stl10(options: LoadOptions) -> Dataset:
    """Return the labelled part of STL-10: 5,000 training and 8,000 test images, RGB, 96x96, in 10 classes.

    See :func:`load`. The 100,000 unlabelled images are not unpacked.
    """
    return load(NAMED["stl10"], options)


def load(spec: Named, options: LoadOptions) -> Dataset:
    """Return the data set ``spec``; images larger than ``options.size`` are resized to it.

    It is searched for in ``--data-dir``, or else in ``$VITCTL_DATA/NAME``, the user's data folder and ``./data``: the
    official files in torchvision's layout, or their archives, which are unpacked next to themselves if possible. If
    missing, it is downloaded to ``--data-dir`` if that is empty, or else to the first of these folders, unless
    ``options.download`` is False. Mean and standard deviation are those of the training images.

    Raises:
        RequestError: the data set is missing and cannot be downloaded, is damaged, or is a different one.
        RunFailed: the disk filled up.
    """
    places = places_of(spec.name, spec.title, options.data_dir)
    for place in _candidates(spec, places):
        if _holds(spec, places, place):
            return _open(spec, place, options)
    return _open(spec, _download(spec, places, options), options)


def locate(spec: Named) -> Path | None:
    """Return the folder where training without ``--data-dir`` finds the data set, or None."""
    for place in _candidates(spec, places_of(spec.name, spec.title, None)):
        if all(
            spec.is_unpacked(archive, place) or (spec.home(place) / archive.name).is_file() for archive in spec.archives
        ):
            return place
    return None


def _candidates(spec: Named, places: Places) -> list[Path]:
    """Return the folders that may have the files, in order."""
    found: list[Path] = []
    for root in places.own:
        found += [root / spec.folder, root / spec.name / spec.folder, root / Path(spec.folder).name, root]
    found += [root / spec.folder for root in places.shared]
    if spec.members:
        found = [place for place in found if place.name == spec.folder]
    # The files of MNIST, Fashion-MNIST and KMNIST have the same names.
    others = {each.reader for each in NAMED.values()} - {spec.reader}
    return [
        place for place in dict.fromkeys(found) if (place.parent if place.name == "raw" else place).name not in others
    ]


def _holds(spec: Named, places: Places, place: Path) -> bool:
    """Return whether a folder has all files, each unpacked or in its official archive."""
    return all(
        spec.is_unpacked(archive, place) or has_archive(places, archive, spec.home(place) / archive.name)
        for archive in spec.archives
    )


def _download(spec: Named, places: Places, options: LoadOptions) -> Path:
    """Download the missing archives, and return the folder that then has all files."""
    place = places.own[0] / spec.folder
    home, names = spec.home(place), [archive.name for archive in spec.archives]
    urls = [address(archive, spec.mirror) for archive in spec.archives]
    check_download(places, urls, allowed=options.download, ours=(*Path(spec.folder).parts[:1], *names))
    for archive, url in zip(spec.archives, urls, strict=True):
        path = home / archive.name
        with downloading(places, archive, url, ", ".join(names)):
            home.mkdir(parents=True, exist_ok=True)
            with download_lock(home, archive, options.observer):
                if spec.is_unpacked(archive, place) or (path.is_file() and archive.fault(path) is None):
                    continue  # by another process, or by one that was interrupted later
                part = fetch(archive, url, home, options.observer)
                with contextlib.suppress(OSError):  # the archive can be read without unpacking it
                    _unpack(spec, archive, part, place)
                if spec.is_unpacked(archive, place):
                    part.unlink()
                else:
                    part.replace(path)
    return place


def _open(spec: Named, place: Path, options: LoadOptions) -> Dataset:
    """Return the data set in a folder that has all files; archives are unpacked next to themselves if possible."""
    try:
        for archive in spec.archives:
            if spec.unpacked(archive) and not spec.is_unpacked(archive, place):
                with download_lock(spec.home(place), archive, options.observer):
                    if not spec.is_unpacked(archive, place):  # else another process was faster
                        _unpack(spec, archive, spec.home(place) / archive.name, place)
    except (OSError, Stalled):
        return _open_copy(spec, place, options)
    return _read(spec, place, place, options)


def _open_copy(spec: Named, place: Path, options: LoadOptions) -> Dataset:
    """Return the data set in a folder that cannot be written, with its archives unpacked to a temporary folder.

    Raises:
        NoSpace: the disk of the temporary folder is full.
        RequestError: the folder cannot be read.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="vitctl-") as temporary:
            copy = Path(temporary, place.name)
            if not spec.members:
                copy.mkdir()
            for archive in spec.archives:
                if spec.is_unpacked(archive, place):
                    shutil.copy(place / spec.unpacked(archive)[0], copy)
                else:
                    _unpack(spec, archive, spec.home(place) / archive.name, copy)
            return _read(spec, copy, place, options)
    except OSError as error:
        if is_full(error):
            raise NoSpace(
                f"cannot unpack {spec.title} to {tempfile.gettempdir()}: {error.strerror or error}",
                hint="free some space, or set TMPDIR to a folder on another disk",
            ) from error
        raise cannot_read(place, error) from error


def _unpack(spec: Named, archive: Archive, path: Path, place: Path) -> None:
    """Unpack the file ``path`` to the folder ``place``, if it has anything to unpack.

    Raises:
        RequestError: the file does not contain the required files.
        OSError: ``place`` cannot be written.
    """
    try:
        if spec.members:
            unpack(path, place, spec.members)
        else:
            for name in spec.unpacked(archive):
                gunzip(path, place / name)
    except DamagedArchive as damaged:
        raise RequestError(f"{path} is damaged: {damaged}", hint=f"delete {path}, then try again") from damaged


def _read(spec: Named, place: Path, source: Path, options: LoadOptions) -> Dataset:
    """Return the data set in the folder ``place``, whose messages name ``source``."""
    train, test = (_reduced(_read_part(spec, place, source, part), options.size) for part in ("train", "test"))
    mean, std = _mean_and_std(train.images.numpy())
    return Dataset(
        name=spec.name,
        classes=spec.classes,
        mean=mean,
        std=std,
        train=train,
        val=None,
        test=test,
        source=str(source),
    )


def _read_part(spec: Named, place: Path, source: Path, part: str) -> Examples:
    try:
        reader = _reader(spec, place, part)
    except MemoryError:
        raise
    except OSError as error:
        raise cannot_read(source, error) from error
    # For damaged files, torchvision's and scipy's readers raise nearly any exception.
    except Exception as error:
        raise _damaged(spec, source, " ".join(str(error).split()) or type(error).__name__) from error
    images = torch.as_tensor(reader.data)
    images = images[:, None] if images.ndim == 3 else images  # [n, H, W] -> [n, 1, H, W]
    labels = torch.as_tensor(reader.labels if hasattr(reader, "labels") else reader.targets).long()
    shape = (spec.counts[part], *spec.shape)
    if images.dtype != torch.uint8 or tuple(images.shape) != shape or labels.shape != shape[:1]:
        raise _damaged(spec, source, f"{part} does not have {shape[0]:,} images of {shape[2]}x{shape[3]} and labels")
    if labels.min() < 0 or labels.max() >= len(spec.classes):
        raise _damaged(spec, source, f"its labels are not whole numbers from 0 to {len(spec.classes) - 1}")
    return Examples(images, labels)


def _reader(spec: Named, place: Path, part: str) -> Any:
    """Return torchvision's data set for ``train`` or ``test`` in the folder ``place``.

    The class is derived, as torchvision's looks for files elsewhere, needs STL-10's unlabelled images, and computes
    checksums again.
    """
    base = getattr(datasets, spec.reader)
    if spec.reader == "SVHN":
        return type(base.__name__, (base,), {"split_list": {part: ["", f"{part}_32x32.mat", None]}})(place, part)
    if spec.reader == "STL10":
        lists = {f"{each}_list": [[f"{each}_{axis}.bin", None] for axis in "Xy"] for each in ("train", "test")}
        return type(base.__name__, (base,), {"base_folder": place.name, **lists})(place.parent, part)
    return type(base.__name__, (base,), {"raw_folder": place, "processed_folder": place})(place, part == "train")


def _damaged(spec: Named, place: Path, reason: str) -> RequestError:
    names = [name for archive in spec.archives for name in spec.unpacked(archive) or (archive.name,)]
    return RequestError(
        f"{spec.title} in {place} is damaged: {reason}", hint=f"delete {', '.join(names)} there, then try again"
    )


def _reduced(examples: Examples, size: int) -> Examples:
    """Resize images larger than ``size`` to it, as image files are resized."""
    images = examples.images
    if images.shape[-1] <= size:
        return Examples(images.contiguous(), examples.labels)
    small = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):  # [n, C, H, W] -> [n, H, W, C]
        full = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
        resized = np.asarray(full.resize((size, size), Image.Resampling.BILINEAR))
        small[i] = resized.reshape(size, size, -1).transpose(2, 0, 1)
    return Examples(torch.from_numpy(small), examples.labels)


def _mean_and_std(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images [n, C, H, W], scaled to 0-1."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), _PIECE):
        for channel, values in enumerate(images[start : start + _PIECE].swapaxes(0, 1)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    share, grey = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ grey
    variance = (share * (grey - mean[:, None]) ** 2).sum(1)
    std = np.maximum(np.sqrt(variance), 0.5 / 255)  # as of image folders, for constant channels
    return tuple(mean.tolist()), tuple(std.tolist())
