"""Manifest of a data set: its images and a digest of their pixels, to notice when they change."""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from vitctl.errors import RequestError
from vitctl.files import parse_json, read_regular, write_bytes

FORMAT = 1

MANIFEST = "data.json.gz"
"""Name of a manifest's file in the folder of a run or a comparison."""

_LARGEST = 1 << 30
"""Bytes of the largest manifest that is read; an image takes about 50."""

DATA_SHA256 = "data_sha256"
"""Key of :attr:`Manifest.digest` in records and checkpoints, where it is None if the images have no files.

Those of earlier versions lack it.
"""


class ImageEntry(NamedTuple):
    """An image of a manifest.

    Attributes:
        size: size of the file in bytes.
        content: digest of the decoded image, as hexadecimal digits.
    """

    size: int
    content: str


@dataclass(frozen=True)
class Manifest:
    """The images of a data set.

    Attributes:
        images: each image by ``PART/CLASS/PATH``, in Unicode NFC, so that all copies of a folder have the same names.
    """

    images: dict[str, ImageEntry]

    @classmethod
    def of(cls, images: Iterable[tuple[str, ImageEntry]]) -> Manifest:
        """Return the manifest of images by ``PART/CLASS/PATH``."""
        return cls({name if name.isascii() else unicodedata.normalize("NFC", name): entry for name, entry in images})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and contents, as hexadecimal digits; file sizes do not matter."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.images.items()):
            digest.update(f"{name}\0{entry.content}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def changes_since(self, before: Manifest) -> str:
        """Return how the images differ from ``before``, such as ``3 added, 1 removed, 2 of other content``."""
        now, then = self.images, before.images
        groups = {
            "added": sorted(now.keys() - then.keys()),
            "removed": sorted(then.keys() - now.keys()),
            "of other content": sorted(
                name for name in now.keys() & then.keys() if now[name].content != then[name].content
            ),
        }
        counts = ", ".join(f"{len(names):,} {what}" for what, names in groups.items() if names)
        return f"{counts} (such as {next(names[0] for names in groups.values() if names)!r})"

    def seen_in(self, run: Manifest) -> int:
        """Return how many test images have the pixels of a training or held-out image of ``run``."""
        seen = {entry.content for name, entry in run.images.items() if name.startswith("train/")}
        return sum(entry.content in seen for name, entry in self.images.items() if name.startswith("test/"))

    def write(self, path: Path) -> None:
        """Write the manifest as compressed JSON.

        Raises:
            RunFailed: the file cannot be written.
        """
        document = {"format": FORMAT, "images": [[name, *entry] for name, entry in self.images.items()]}
        write_bytes(path, gzip.compress(json.dumps(document).encode(), mtime=0))

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Return the manifest in a file, or None if it is missing, damaged or of another version."""
        try:
            document = parse_json(gzip.decompress(read_regular(path, _LARGEST)))
            if document["format"] != FORMAT:
                return None
            return cls({str(name): ImageEntry(int(size), str(content)) for name, size, content in document["images"]})
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, OverflowError):
            return None


def require_unchanged(
    now: Manifest | None, recorded: str | None, file: Path, source: str, *, accept: bool, hint: str
) -> str | None:
    """Refuse images that differ from those that a run recorded.

    Args:
        now: the images now; None if they have no files.
        recorded: digest of the run's images; None or empty if an earlier version trained it.
        file: the run's manifest, which may be missing.
        source: the data set's folder, for the message.
        accept: whether to accept the changes.
        hint: what to do about them.

    Returns:
        The accepted changes, or None if there are none.

    Raises:
        RequestError: the images changed and this is not accepted.
    """
    if now is None or not recorded or recorded == now.digest:
        return None
    before = Manifest.read(file)
    changes = now.changes_since(before) if before is not None and before.digest == recorded else None
    if not accept:
        raise RequestError(
            f"the images in {source} changed since the run started{f': {changes}' if changes else ''}", hint=hint
        )
    return changes or "changed"
