"""Images of a folder: which files there are, and the part and class of each. Nothing is opened."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitctl.data.cache import ImageFile
from vitctl.data.decode import image_suffixes
from vitctl.errors import RequestError
from vitctl.units import escaped

SPLITS = ("train", "val", "test")


def cannot_read(path: Path, error: OSError) -> RequestError:
    """Return the error for a file or folder that cannot be read."""
    return RequestError(f"cannot read {path}: {error.strerror}", hint=f"make it readable: chmod -R u+rX {path}")


def class_name(folder: str) -> str:
    """Return the name of a folder's class: in Unicode NFC, and :func:`~vitctl.units.escaped`.

    A Mac stores ``é`` as two characters (NFD), other systems usually as one (NFC).
    """
    return unicodedata.normalize("NFC", escaped(folder))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder.

    Attributes:
        classes: names of the classes of ``train/``, see :func:`class_name`, sorted by their folders' names.
        files: all images, ordered by split (train, val, test), class and path.
        labels: int64 [n], the class of each image.
        identities: ``CLASS/PATH`` of each image, with the path below its class folder, named like a class.
        counts: number of images per split; 0 for a missing one.
    """

    classes: tuple[str, ...]
    files: list[ImageFile]
    labels: npt.NDArray[np.int64]
    identities: tuple[str, ...]
    counts: dict[str, int]


def list_images(root: Path) -> Listing:
    """Find the images of ``train/``, ``val/`` and ``test/`` in ``root``, without opening them.

    Hidden files and files without the suffix of an image format are ignored.

    Raises:
        RequestError: the folder is missing or has the wrong layout.
    """
    if not root.is_dir():
        raise RequestError(
            f"--data-dir {root} {'is a file, not a folder' if root.exists() else 'not found'}",
            hint="use --data-dir with a folder that has train/CLASS/ and test/CLASS/",
        )
    parts = [part for part in SPLITS if (root / part).is_dir()]
    if "train" not in parts or len(parts) == 1:
        raise _no_split(root, parts)
    classes = list(dict.fromkeys(map(class_name, _class_folders(root, "train"))))
    if len(classes) < 2:
        found = f"only one class folder, {classes[0]!r}" if classes else "no class folders"
        raise RequestError(
            f"{root / 'train'} has {found}",
            hint=f"move the images of each class to {root / 'train'}/CLASS, for two or more classes",
        )
    files: list[ImageFile] = []
    labels: list[int] = []
    counts = dict.fromkeys(SPLITS, 0)
    for part in parts:
        folders = _class_folders(root, part)
        if not folders:
            raise RequestError(
                f"{root / part} has no class folders",
                hint=f"move some images of each class in train/ to {root / part}/CLASS",
            )
        for folder in folders:
            if class_name(folder) not in classes:
                raise RequestError(
                    f"{root / part / folder} is not a class of train/",
                    hint=f"add training images in {root / 'train' / folder}, or remove {root / part / folder}",
                )
        for label, folder in sorted((classes.index(class_name(folder)), folder) for folder in folders):
            found_files = _images_in(root, f"{part}/{folder}")
            if not found_files:
                raise RequestError(
                    f"{root / part / folder} has no images", hint=f"add images to {root / part / folder}, or remove it"
                )
            files += found_files
            labels += [label] * len(found_files)
            counts[part] += len(found_files)
    return Listing(
        classes=tuple(classes),
        files=files,
        labels=np.array(labels, dtype=np.int64),
        identities=tuple(
            class_name(file.path.partition("/")[2]) for file in files
        ),  # the class folder is below the part's
        counts=counts,
    )


def _no_split(root: Path, parts: list[str]) -> RequestError:
    train, test = f"{root / 'train'}/CLASS", f"{root / 'test'}/CLASS"
    if parts == ["train"]:
        return RequestError(
            f"{root} has train/ but neither test/ nor val/", hint=f"move some images of each class to {test}"
        )
    if parts:
        return RequestError(
            f"{root} has {' and '.join(f'{part}/' for part in parts)} but no train/",
            hint=f"move the training images of each class to {train}",
        )
    names = [name for name in _class_folders(root, ".") if _images_in(root, name)]
    if names:
        return RequestError(
            f"{root} has class folders ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) but no train/ and test/",
            hint=f"move most images of each class to {train} and the others to {test}",
        )
    return RequestError(f"{root} has no train/ and test/", hint=f"move the images of each class to {train} and {test}")


def _class_folders(root: Path, part: str) -> list[str]:
    with _scan(root / part) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def find_images(root: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path, without hidden files.

    Raises:
        RequestError: a folder cannot be read.
    """
    return [root / file.path for file in _images_in(root, ".")]


def _images_in(root: Path, folder: str) -> list[ImageFile]:
    """Return the images in ``root/folder`` and its subfolders, sorted by path."""
    suffixes = image_suffixes()
    found: list[ImageFile] = []
    seen: set[str] = set()

    def walk(inner: str) -> None:
        place = os.path.realpath(root / inner)
        if place in seen:  # a cycle of symbolic links
            return
        seen.add(place)
        with _scan(root / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inner}/{entry.name}"
                if entry.is_dir():
                    walk(path)
                elif entry.name.rpartition(".")[2].lower() in suffixes:
                    try:
                        if entry.is_file():  # not a FIFO
                            info = entry.stat()
                            found.append(ImageFile(path, info.st_size, info.st_mtime_ns))
                            continue
                    except OSError:
                        pass
                    if entry.is_symlink():  # a broken link counts as an unreadable image
                        found.append(ImageFile(path, -1, 0))

    walk(folder)
    return sorted(found)


def _scan(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise cannot_read(folder, error) from error
