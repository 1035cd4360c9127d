"""Cache of decoded images in memory-mapped files.

A cache is a folder ``<data set>-<hash of the path>-<H>x<W>-<key>`` with three files: ``images``, the raw uint8
[n, C, H, W], ``digests``, a digest of each, uint8 [n, 16], and ``meta.json``. The key is a hash of everything that the
pixels depend on, so a cache is never updated, only replaced when the files change. It is built in a hidden folder next
to it and renamed when complete, so that a reader never sees part of it. The builder holds the lock file :data:`LOCK` in
the hidden folder; a hidden folder without a held lock was left by a crash. After building a cache, the builder removes
the caches of data sets that no longer exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs

from vitctl.cpus import available_cpus
from vitctl.data.duplicates import DIGEST_BYTES, Digests, image_digests
from vitctl.data.reading import Traits
from vitctl.errors import NoSpace, RequestError, RunFailed
from vitctl.files import Locked, flush, is_full, locked
from vitctl.observer import SILENT, Observer
from vitctl.units import format_bytes

FORMAT = 2
"""Version of the format; increase it when the stored data or the decoding changes."""

Image = npt.NDArray[np.uint8]
Decode = Callable[[str, Traits], "Image | str"]
"""Decodes a path to uint8 [C, H, W], or returns why the image cannot be read; counts the image in the traits.

Called from several threads.
"""

_NAME = re.compile(r".+-[0-9a-f]{12}-\d+x\d+-[0-9a-f]{16}")
LOCK = "lock"
"""Lock file in the folder of an unfinished cache, held by the process that builds it."""

_MAKE_ROOM = "free some space, or set VITCTL_CACHE to a folder on another disk"

_CHUNK_BYTES = 2**20
_STALLED_SECONDS = 60.0


class ImageFile(NamedTuple):
    """An image file of a listing.

    Attributes:
        path: path relative to the data set, with ``/``.
        size: size in bytes; -1 for a broken link.
        mtime_ns: modification time in nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The decoded images of a listing.

    Attributes:
        images: uint8 [n, C, H, W], memory-mapped; the readable images in the order of the listing.
        mean: mean per channel of the measured images, scaled to 0-1.
        std: standard deviation per channel of the measured images, scaled to 0-1; at least half a grey level.
        bad: indices of unreadable images in the listing, ascending, with the reason.
        digests: uint8 [n, 16], see :func:`image_digests`.
        traits: statistics of the measured files.
    """

    images: Image
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bad: dict[int, str]
    digests: Digests
    traits: Traits


def cache_folder() -> Path:
    """Return the folder of all caches: ``$VITCTL_CACHE`` or the user's cache folder for vitctl."""
    return Path(os.environ.get("VITCTL_CACHE") or platformdirs.user_cache_dir("vitctl")).expanduser()


def decode_all(
    name: str,
    root: Path,
    files: Sequence[ImageFile],
    *,
    shape: tuple[int, int, int],
    decode: Decode,
    measured: int,
    rule: str = "",
    observer: Observer = SILENT,
) -> Decoded:
    """Return the images of a listing, from the cache or decoded.

    Several processes may call this at once: a process waits while another one decodes the same images.

    Args:
        name: name of the data set.
        root: folder that the paths are relative to.
        files: the listing.
        shape: C, H, W of every decoded image.
        decode: decodes an image.
        measured: number of images, from the start of the listing, to compute mean, standard deviation and traits from.
        rule: identifies ``decode``, if images can be decoded in several ways.
        observer: receives progress.

    Raises:
        RequestError: the cache folder cannot be written, or its disk has too little space.
        RunFailed: the disk filled up.
        VitctlError: raised by ``decode``.
    """
    caches = _caches()
    prefix = _prefix(name, root, shape)
    listing = _listing_key(name, files, shape, measured)
    key = hashlib.sha256(f"{listing} {rule}".encode()).hexdigest()
    final = caches / (prefix + key[:16])
    builds = 0
    with _translated_errors(caches), warnings.catch_warnings():
        # Pillow's warnings about broken palettes or dates do not matter; unreadable images are reported as bad.
        warnings.simplefilter("ignore")
        caches.mkdir(parents=True, exist_ok=True)
        while True:
            # Checked before opening, so that a builder that finishes in between is not missed.
            wait = _other_is_building(caches, prefix, final.name)
            decoded = _open(final, key, shape, len(files))
            # Unreadable images may have become readable without a change of size or time: permissions, a mount.
            if decoded and not any(_readable(root / files[i].path, decode) for i in decoded.bad):
                return decoded
            if wait:
                time.sleep(0.1)
                continue
            if builds == 3:
                raise RunFailed(
                    f"{final} disappeared three times after it was built", hint="set VITCTL_CACHE to another folder"
                )
            for folder in _published(caches, prefix):
                if folder == final or _meta(folder).get("listing") != listing:
                    _discard(folder)
            _build(final, {"key": key, "listing": listing}, root, files, shape, decode, measured, observer)
            _prune(caches)
            builds += 1


@contextlib.contextmanager
def _translated_errors(caches: Path) -> Iterator[None]:
    """Convert errors of the file system."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if is_full(error):
            raise NoSpace(f"cannot write decoded images to {caches}: {reason}", hint=_MAKE_ROOM) from error
        raise RequestError(
            f"cannot write decoded images to {caches}: {reason}", hint="set VITCTL_CACHE to a writable folder"
        ) from error


def recall_traits(
    name: str, root: Path, files: Sequence[ImageFile], *, shape: tuple[int, int, int], measured: int
) -> Traits | None:
    """Return the traits of a listing from a cache that :func:`decode_all` built with any rule, or None without one.

    The arguments are those of :func:`decode_all`.
    """
    caches, listing = _caches(), _listing_key(name, files, shape, measured)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for meta in map(_meta, _published(caches, _prefix(name, root, shape))):
            if meta.get("listing") == listing:
                return Traits.from_dict(meta["traits"])
    return None


def _meta(folder: Path) -> dict[str, Any]:
    """Return the content of ``meta.json``, or nothing if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    return {}


def _readable(path: Path, decode: Decode) -> bool:
    return not isinstance(decode(str(path), Traits()), str)


def _caches() -> Path:
    return cache_folder() / "pictures"  # the name that earlier versions use


def _prefix(name: str, root: Path, shape: tuple[int, int, int]) -> str:
    place = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:12]
    return f"{name}-{place}-{shape[1]}x{shape[2]}-"


def _listing_key(name: str, files: Sequence[ImageFile], shape: tuple[int, int, int], measured: int) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, name, shape, measured, len(files)]).encode())
    for path, size, mtime_ns in files:
        digest.update(b"%b\0%d\0%d\0" % (os.fsencode(path), size, mtime_ns))
    return digest.hexdigest()


def _open(final: Path, key: str, shape: tuple[int, int, int], total: int) -> Decoded | None:
    """Return the cache ``final``, or None if it is missing or damaged."""
    try:
        meta = _meta(final)
        bad = {int(i): str(reason) for i, reason in meta["bad"].items()}
        mean, std = (tuple(float(x) for x in meta[what]) for what in ("mean", "std"))
        traits = Traits.from_dict(meta["traits"])
        count = total - len(bad)
        if meta["key"] != key or len(mean) != shape[0] or len(std) != shape[0]:
            return None
        if (final / "images").stat().st_size != count * math.prod(shape):
            return None
        digests = np.frombuffer((final / "digests").read_bytes(), dtype=np.uint8).reshape(count, DIGEST_BYTES)
        # Mode "c" shares the pages and never writes them back; for mode "r", torch would warn.
        images: Image = (
            np.memmap(final / "images", dtype=np.uint8, mode="c", shape=(count, *shape))
            if count
            else np.empty((0, *shape), dtype=np.uint8)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Decoded(images=images, mean=mean, std=std, bad=bad, digests=digests, traits=traits)


def _build(
    final: Path,
    keys: dict[str, str],
    root: Path,
    files: Sequence[ImageFile],
    shape: tuple[int, int, int],
    decode: Decode,
    measured: int,
    observer: Observer,
) -> None:
    """Decode all images into ``final``, unless another process finishes first."""
    needed = len(files) * math.prod(shape)
    free = shutil.disk_usage(final.parent).free
    if needed > free:
        raise RequestError(
            f"the decoded images need {format_bytes(needed)}, but {final.parent} has {format_bytes(free)} free",
            hint=_MAKE_ROOM,
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        # Written, not mapped: a full disk then raises an error instead of SIGBUS.
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(temporary / LOCK))
            with open(temporary / "images", "wb") as file, open(temporary / "digests", "wb") as digests:
                results = _decode_into(file, digests, root, files, shape, decode, measured, observer)
                flush(file)
                flush(digests)
            meta: dict[str, Any] = {**keys, "root": os.path.realpath(root), **results}
            with open(temporary / "meta.json", "wb") as file:
                file.write(json.dumps(meta).encode())
                flush(file)
            if os.name == "nt":
                lock.close()  # Windows cannot move open files; elsewhere the lock is held until the folder is renamed
            # Renaming fails if another process was faster; its folder has the same content.
            with contextlib.suppress(OSError):
                os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Chunk(NamedTuple):
    """Consecutive decoded images.

    Attributes:
        total: number of images, readable or not.
        data: bytes of the readable images.
        digests: their digests.
        bad: indices of the unreadable images, with the reason.
        pixels: measured pixels per channel.
        sums: int64 [C], sum of the measured values.
        squares: int64 [C], sum of their squares.
        traits: traits of the measured images.
    """

    total: int
    data: bytes
    digests: bytes
    bad: dict[int, str]
    pixels: int
    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    traits: Traits


def _decode_into(
    file: IO[bytes],
    digests: IO[bytes],
    root: Path,
    files: Sequence[ImageFile],
    shape: tuple[int, int, int],
    decode: Decode,
    measured: int,
    observer: Observer,
) -> dict[str, Any]:
    """Write every readable image and its digest, in order; return the other attributes of :class:`Decoded` for JSON."""
    bad: dict[int, str] = {}
    traits = Traits()
    pixels, done = 0, 0
    sums, squares = np.zeros(shape[0], dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
    with contextlib.closing(_chunks(root, files, shape, decode, measured)) as chunks:
        for chunk in chunks:
            file.write(chunk.data)
            digests.write(chunk.digests)
            bad.update(chunk.bad)
            pixels += chunk.pixels
            sums += chunk.sums
            squares += chunk.squares
            traits.add(chunk.traits)
            done += chunk.total
            observer.loading(done, len(files))
    pixels = max(pixels, 1)
    mean = [s / pixels / 255 for s in sums.tolist()]
    pairs = zip(sums.tolist(), squares.tolist(), strict=True)
    # Integers up to the root avoid cancellation; the lower bound allows division for a constant channel.
    std = [max(math.sqrt((q * pixels - s * s) / pixels**2), 0.5) / 255 for s, q in pairs]
    return {"mean": mean, "std": std, "bad": bad, "traits": traits.to_dict()}


def _chunks(
    root: Path, files: Sequence[ImageFile], shape: tuple[int, int, int], decode: Decode, measured: int
) -> Generator[_Chunk]:
    """Yield the decoded images in order, decoding a few chunks ahead on all cores."""
    workers = available_cpus()
    step = max(1, min(32, _CHUNK_BYTES // math.prod(shape)))

    def run(start: int) -> _Chunk:
        stop = min(start + step, measured if start < measured else len(files))
        bad: dict[int, str] = {}
        good: list[Image] = []
        traits = Traits()
        for i in range(start, stop):
            image = decode(os.path.join(root, files[i].path), traits)
            if isinstance(image, str):
                bad[i] = image
            else:
                good.append(image)
        images = np.stack(good) if good else np.empty((0, *shape), dtype=np.uint8)  # [m, C, H, W]
        seen = images if start < measured else images[:0]
        squares = np.square(seen, dtype=np.uint16)  # 255 * 255 < 2 ** 16
        return _Chunk(
            total=stop - start,
            data=images.tobytes(),
            digests=image_digests(images).tobytes(),
            bad=bad,
            pixels=seen.size // shape[0],
            sums=seen.sum(axis=(0, 2, 3), dtype=np.int64),
            squares=squares.sum(axis=(0, 2, 3), dtype=np.int64),
            traits=traits if start < measured else Traits(),
        )

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Chunk]] = deque()
        try:
            for start in (*range(0, measured, step), *range(measured, len(files), step)):
                waiting.append(pool.submit(run, start))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _published(caches: Path, prefix: str) -> list[Path]:
    """Return the finished caches with this prefix: of one data set, path and image size."""
    return [caches / entry for entry in os.listdir(caches) if entry.startswith(prefix)]


def _discard(folder: Path) -> None:
    """Delete a finished cache so that no process sees part of it; processes that have it mapped keep it."""
    trash = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
    with contextlib.suppress(OSError):
        os.rename(folder, os.path.join(trash, "old"))
    shutil.rmtree(trash, ignore_errors=True)


def _prune(caches: Path) -> None:
    """Remove the caches of data sets that no longer exist, also unfinished ones of crashed processes.

    Only folders with the name and ``meta.json`` of a cache are touched. Several processes may do this at once.
    """
    with contextlib.suppress(OSError):
        for entry in os.listdir(caches):
            if _NAME.fullmatch(entry) and _orphaned(caches / entry):
                _discard(caches / entry)
                continue
            hidden = entry.endswith(".tmp") and _NAME.fullmatch(entry[1:].rsplit(".", 2)[0])
            if hidden and not _signs_of_life(caches / entry)[1]:
                shutil.rmtree(caches / entry, ignore_errors=True)


def _orphaned(folder: Path) -> bool:
    """Return whether the images of a finished cache are certainly gone, rather than unmounted or unreadable."""
    try:
        os.stat(_meta(folder)["root"])
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return False


def _other_is_building(caches: Path, prefix: str, name: str) -> bool:
    """Remove unfinished caches of crashed builders with this prefix; return whether a process is building ``name``."""
    building = False
    for entry in os.listdir(caches):
        if not (entry.startswith(f".{prefix}") and entry.endswith(".tmp")):
            continue
        fresh, alive = _signs_of_life(caches / entry)
        if not alive:
            shutil.rmtree(caches / entry, ignore_errors=True)
        # A suspended builder, or one blocked on a mount, is not worth waiting for.
        elif fresh and entry.startswith(f".{name}."):
            building = True
    return building


def _signs_of_life(temporary: Path) -> tuple[bool, bool]:
    """Return whether the builder of ``temporary`` wrote recently, and whether it is alive."""
    try:
        found = (temporary / "images").stat()
    except OSError:
        try:
            fresh = time.time() - temporary.stat().st_mtime < _STALLED_SECONDS
        except OSError:
            return False, True  # the folder is gone
        return False, fresh
    fresh = time.time() - found.st_mtime < _STALLED_SECONDS
    if found.st_size == 0 and fresh:
        return True, True  # it may not have taken its lock yet
    return fresh, _is_locked(temporary / LOCK, fresh)


def _is_locked(path: Path, unknown: bool) -> bool:
    """Return whether a process holds the lock, or ``unknown`` if that cannot be determined."""
    try:
        with locked(path) as held:
            return not held and unknown
    except Locked:
        return True
    except OSError:
        return unknown
