"""Folders and image files below a folder, without the litter of other programs, and the meaning of folder names."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from vitctl.data.cache import ImageFile
from vitctl.data.decode import HEIF_SUFFIXES, image_suffixes, is_image
from vitctl.errors import RequestError

LITTER = frozenset(
    {
        "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "desktop.ini",
        "lost+found", "recycler", "system volume information", "thumbs.db",
    }
)  # fmt: skip
"""Names that storage devices, operating systems and Python leave in folders, in lower case; see :func:`is_litter`."""

HEIF_HINT = "install pillow-heif to read them"

CONTAINERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "jpegs", "photos", "data", "dataset", "files"})
"""Names of folders between a part and its images or classes, in lower case."""

_PART_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "tst", "evaluation", "eval"), "test"),
}
_FILLERS = CONTAINERS | {"set"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_ENDING = re.compile(r".\.([a-z][a-z0-9]{0,9})\Z", re.IGNORECASE | re.DOTALL)


def part_of(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the part that a name stands for (``train``, ``val`` or ``test``), and the rest of its words.

    ``Training`` is ``("train", ())``, ``test_set`` is ``("test", ())``, ``seg_train`` is ``("train", ("seg",))``.
    The part is None for a name with no word for a part, or with several.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    parts = [_PART_WORDS[word] for word in words if word in _PART_WORDS]
    rest = tuple(word for word in words if word not in _PART_WORDS and word not in _FILLERS)
    return (parts[0] if len(parts) == 1 else None), rest


def is_litter(name: str) -> bool:
    """Return whether another program left this file or folder; names with a leading dot count as litter."""
    return name.startswith(".") or name.casefold() in LITTER


def join(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``, which is ``""`` for the root."""
    return f"{folder}/{name}" if folder else name


def cannot_read(path: Path, error: OSError) -> RequestError:
    """Return the error for a file or folder that cannot be read."""
    readable = f"make it readable: chmod -R u+rX {quote(str(path))}"
    return RequestError(
        f"cannot read {path}: {error.strerror or error}",
        hint=f"restore {path}" if isinstance(error, FileNotFoundError) else readable,
    )


@dataclass(frozen=True, kw_only=True)
class Level:
    """The content of one folder.

    Attributes:
        folders: names of its subfolders, sorted.
        images: its image files, with paths relative to the root of the tree, sorted.
        others: names of its other files, sorted.
        litter: names of files and folders that :func:`is_litter`.
    """

    folders: tuple[str, ...]
    images: tuple[ImageFile, ...]
    others: tuple[str, ...]
    litter: tuple[str, ...]


class Tree:
    """The folders and image files below ``root``. Each folder is read when it is first asked for, and only once.

    A file is an image if its ending is that of a supported format, or if it has no ending and its content is an image.
    All folders are given relative to the root, with ``/``; the root itself is ``""``.

    Raises:
        RequestError: (all methods) a folder cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._levels: dict[str, Level] = {}

    def read(self, folder: str) -> Level:
        """Return the content of a folder."""
        if folder not in self._levels:
            self._levels[folder] = self._scan(folder)
        return self._levels[folder]

    def folders(self, folder: str) -> tuple[str, ...]:
        """Return the names of a folder's subfolders."""
        return self.read(folder).folders

    def walk(self, folder: str) -> Iterator[Level]:
        """Yield the folder and its subfolders; cycles of symbolic links end."""
        seen: set[str] = set()
        waiting = [folder]
        while waiting:
            inner = waiting.pop()
            place = os.path.realpath(self.root / inner)
            if place not in seen:
                seen.add(place)
                level = self.read(inner)
                yield level
                waiting += [join(inner, name) for name in reversed(level.folders)]

    def images(self, folder: str) -> list[ImageFile]:
        """Return the images in a folder and its subfolders, sorted by path."""
        return sorted(image for level in self.walk(folder) for image in level.images)

    def has_images(self, folder: str) -> bool:
        """Return whether a folder or one of its subfolders has an image."""
        return any(level.images for level in self.walk(folder))

    def skipped(self, folders: Iterable[str], *, besides: Collection[str] = ()) -> list[str]:
        """Return sentences that count what is skipped in ``folders`` and their subfolders, and the litter above them.

        Args:
            folders: folders that contain the data, none of them in another, or the root.
            besides: names of files that were read for another purpose.
        """
        places = sorted(set(folders))
        levels = [level for folder in places for level in self.walk(folder)]
        above = {inner for folder in places for inner in ("", *itertools.accumulate(folder.split("/")[:-1], join))}
        others = (name for level in levels for name in level.others if name not in besides)
        counts = Counter(_ending(name) or "without an ending" for name in others)
        for level in (*levels, *map(self.read, sorted(above.difference(places)))):
            counts.update(name if name.casefold() in LITTER else "hidden" for name in level.litter)
        heif = {each: counts.pop(each) for each in sorted(counts) if each.removeprefix(".") in HEIF_SUFFIXES}
        sentences = [f"{count:,} {each} skipped; {HEIF_HINT}" for each, count in heif.items()]
        if counts:
            rest = ", ".join(f"{count:,} {each}" for each, count in counts.most_common(8))
            sentences.append(f"skipped {rest}{', ...' if len(counts) > 8 else ''}")
        return sentences

    def _scan(self, folder: str) -> Level:
        folders: list[str] = []
        images: list[ImageFile] = []
        others: list[str] = []
        litter: list[str] = []
        suffixes = image_suffixes()
        with _entries(self.root / folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    litter.append(entry.name)
                elif _is_folder(entry):
                    folders.append(entry.name)
                elif image := _image(entry, join(folder, entry.name), suffixes):
                    images.append(image)
                else:
                    others.append(entry.name)
        return Level(
            folders=tuple(sorted(folders)), images=tuple(sorted(images)), others=tuple(sorted(others)),
            litter=tuple(litter),
        )  # fmt: skip


def find_images(root: Path) -> tuple[list[Path], list[str]]:
    """Return the images in a folder and its subfolders, sorted by path, and sentences that count what was skipped.

    Raises:
        RequestError: a folder cannot be read.
    """
    tree = Tree(root)
    return [root / image.path for image in tree.images("")], tree.skipped([""])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder
        return False


def _image(entry: os.DirEntry[str], path: str, suffixes: frozenset[str]) -> ImageFile | None:
    """Return the image of a directory entry, or None if it is something else."""
    stem, _, suffix = entry.name.rpartition(".")
    ending = bool(stem) and suffix.lower() in suffixes
    if not ending and _ending(entry.name):
        return None
    try:
        if entry.is_file() and (ending or is_image(entry.path)):  # not a FIFO
            info = entry.stat()
            return ImageFile(path, info.st_size, info.st_mtime_ns)
    except OSError:
        pass
    # A broken link to an image counts as an unreadable image.
    return ImageFile(path, -1, 0) if ending and entry.is_symlink() else None


def _ending(name: str) -> str:
    """Return the ending of a file name with its dot, in lower case; ``""`` for ``IMG_0001`` or ``a.jpg?w=9``."""
    match = _ENDING.search(name)
    return f".{match[1].lower()}" if match else ""


def _entries(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise cannot_read(folder, error) from error
