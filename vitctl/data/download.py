"""Getting an official archive from a server, whole, and the files out of it that are needed.

A download grows in a hidden file beside where it will lie, which a later start goes on with where the server can. Only
a file of the right size and checksums is ever opened. One process at a time works in a folder; the others wait for it.

torchvision and ``torch.hub`` download too, but know no timeout, and torchvision leaves what it has so far under the name
of the whole, falls back from https to http, and unpacks whatever an archive holds.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import queue
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from vitctl import __version__
from vitctl.errors import NoSpace, RequestError
from vitctl.files import flush, is_full
from vitctl.observer import SILENT, Observer
from vitctl.units import format_bytes, format_duration

PATIENCE = 15.0
"""Seconds to wait for a server's answer, and for the next bytes."""

FRUITLESS = 2
"""After so many tries in a row that brought nothing, a download that had begun is given up."""

PAUSE = 1.0
"""Seconds before another try; twice as long before the next."""

SLOWEST = 1024
"""Bytes a second, over twice :data:`PATIENCE`, below which a connection counts as stalled."""

WORTH = 0.01
"""The share of an archive that a try must bring to count as one that brought something."""

STALLED = 120.0
"""Seconds without a byte written after which another process is no longer waited for."""

BIGGEST = 2**28
"""Bytes; no file of an archive is unpacked to more."""

_CHUNK = 2**18


class DownloadFailed(Exception):
    """An archive cannot be had from a server; the message is a clause that says why."""


class Stalled(RequestError):
    """Another process has the lock and does nothing."""


class DamagedArchive(Exception):
    """An archive does not hold what it should; the message is a clause that says why."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ``.tar.gz`` that is known beforehand.

    Attributes:
        url: where it comes from.
        size: in bytes.
        checksums: hexadecimal digests by the name of the algorithm, as :mod:`hashlib` calls it. All must hold.
    """

    url: str
    size: int
    checksums: Mapping[str, str]

    @property
    def name(self) -> str:
        """What the file is called."""
        return self.url.rpartition("/")[2]

    def fault(self, path: Path) -> str | None:
        """Return why ``path`` is not this archive, as a clause, or None when it is.

        Raises:
            OSError: it cannot be read.
        """
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size:,} bytes, not {self.size:,}"
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in self.checksums}
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                for digest in digests.values():
                    digest.update(chunk)
        for name, digest in digests.items():
            if digest.hexdigest() != self.checksums[name]:
                return f"its {name.upper()} is {digest.hexdigest()}, not {self.checksums[name]}"
        return None


@contextlib.contextmanager
def alone(folder: Path, archive: Archive, observer: Observer = SILENT) -> Iterator[None]:
    """Hold the lock on what is downloaded to and unpacked in ``folder``, waiting for whoever has it.

    Raises:
        Stalled: who has it has written nothing for :data:`STALLED` seconds.
        OSError: the folder cannot be written.
    """
    lock = FileLock(folder / f".{archive.name}.lock")
    before, since = -1, time.monotonic()
    say = f"waiting for another process, which is getting {archive.name}"
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            written = _written(folder)
            if written != before:
                before, since = written, time.monotonic()
            observer.loading(min(written, archive.size - 1), archive.size, download=say)
            if time.monotonic() - since > STALLED:
                raise Stalled(
                    f"another process has begun to get {archive.name} to {folder} and has written nothing for "
                    f"{format_duration(STALLED)}; end it, and try again"
                ) from None
    try:
        if before >= 0:
            observer.loading(archive.size, archive.size, download=say)
        yield
    finally:
        lock.release()


def _written(folder: Path) -> int:
    """Return the bytes of all that is being downloaded and unpacked in a folder."""
    total = 0
    for hidden in folder.glob(".*"):
        with contextlib.suppress(OSError):
            files = [hidden] if hidden.suffix == ".part" else hidden.iterdir() if hidden.suffix == ".tmp" else []
            total += sum(file.stat().st_size for file in files)
    return total


def fetch(archive: Archive, url: str, folder: Path, observer: Observer = SILENT) -> Path:
    """Download an archive and return the file, which is whole: its size and checksums are right.

    The file is a hidden one in ``folder``; the caller renames or removes it. What an earlier process left of it is gone
    on with. A connection that is cut or stalls is opened again, and what turns out to be damaged is begun again, once.

    Args:
        archive: what to download.
        url: from where.
        folder: where to; the caller is :func:`alone` there.
        observer: is notified of the bytes received.

    Raises:
        DownloadFailed: the server cannot be reached, or sends wrong or incomplete data.
        RequestError: the folder has no room, or cannot be written.
        RunFailed: the disk filled up; nothing is left.
    """
    part = folder / f".{archive.name}.part"
    say = f"downloading {url} to {folder}"
    with _explained(folder, archive, part):
        best = first = _size(part)
        fruitless, damaged = 0, 0
        while True:
            have = _size(part)
            if have > archive.size:
                part.unlink()
                have = best = 0
            if have < archive.size:
                _check_room(folder, archive, have)
                try:
                    _receive(archive, url, part, have, say, observer)
                except _Broken as broken:
                    have = _size(part)
                    fruitless = 0 if have >= best + WORTH * archive.size else fruitless + 1
                    best = max(best, have)
                    if broken.final or fruitless == FRUITLESS or (broken.unreachable and best == first):
                        raise DownloadFailed(_so_far(broken, have, archive)) from broken
                    say = f"{broken}; trying again"
                    time.sleep(PAUSE * 2**fruitless)
                    continue
            fault = archive.fault(part)
            if fault is None:
                return part
            part.unlink()
            damaged += 1
            if damaged == 2:
                raise DownloadFailed(f"what came, twice, is not the official archive: {fault}")
            best, first, fruitless = 0, -1, 0
            say = f"what came is damaged ({fault}); beginning again"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_room(folder: Path, archive: Archive, have: int) -> None:
    free = shutil.disk_usage(folder).free
    if archive.size - have > free:
        raise RequestError(
            f"{archive.name} takes {format_bytes(archive.size - have)} more and {folder} has {format_bytes(free)} left; "
            f"free some, or set VITCTL_DATA to a folder on another disk"
        )


@contextlib.contextmanager
def _explained(folder: Path, archive: Archive, part: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            with contextlib.suppress(OSError):
                part.unlink()
            raise NoSpace(
                f"the disk of {folder} filled up while {archive.name} was downloaded; free some room, or set VITCTL_DATA "
                f"to a folder on another disk"
            ) from error
        raise not_writable(folder, archive, error) from error


def not_writable(folder: Path, archive: Archive, error: OSError) -> RequestError:
    """Return the sentence for a folder that nothing can be downloaded to."""
    return RequestError(
        f"{archive.name} cannot be downloaded to {folder} ({error.strerror or error}); set VITCTL_DATA to a folder that "
        f"can be written"
    )


class _Broken(Exception):
    """A try to download failed; the message is a clause that says why.

    Args:
        reason: why.
        final: it would fail again.
        unreachable: no server was there.
    """

    def __init__(self, reason: str, *, final: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.final, self.unreachable = final, unreachable


def _so_far(broken: _Broken, have: int, archive: Archive) -> str:
    if have == 0:
        return str(broken)
    return f"{broken}; the first {format_bytes(have)} of {format_bytes(archive.size)} are kept for the next start"


def _receive(archive: Archive, url: str, part: Path, have: int, say: str, observer: Observer) -> None:
    """Append to ``part``, which has ``have`` bytes, what it lacks; or begin it anew where the server sends it whole.

    Raises:
        _Broken: the connection failed; ``part`` has what came.
        OSError: ``part`` cannot be written.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"vitctl/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with contextlib.closing(_open(request, part)) as response:
        if response.status == 206:
            if not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _Broken("the server sends another part than it was asked for")
        else:
            have = 0
        if response.length is not None and have + response.length != archive.size:
            raise _Broken(
                f"the server has {have + response.length:,} bytes there, and the archive has {archive.size:,}",
                final=True,
            )
        with open(part, "ab" if have else "wb") as file:
            _copy(response, file, have, archive, say, observer)


def _copy(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    have: int,
    archive: Archive,
    say: str,
    observer: Observer,
) -> None:
    since, then = time.monotonic(), have
    while have < archive.size:
        observer.loading(have, archive.size, download=say)
        try:
            chunk = response.read1(min(_CHUNK, archive.size - have))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(_reason(error)) from error
        if not chunk:
            raise _Broken(f"the connection ended after {have:,} of {archive.size:,} bytes")
        file.write(chunk)
        have += len(chunk)
        if (elapsed := time.monotonic() - since) > 2 * PATIENCE:
            if have - then < SLOWEST * elapsed:
                raise _Broken(f"only {have - then:,} bytes came in {elapsed:.0f} s")
            since, then = time.monotonic(), have
    file.flush()
    observer.loading(have, archive.size, download=say)


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """Return the server's answer: 200 or 206.

    The connection is opened in a thread, as a name server that does not answer knows no timeout.
    """
    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=PATIENCE))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)

    threading.Thread(target=connect, name="connect", daemon=True).start()
    try:
        answer = answers.get(timeout=PATIENCE + 1)
    except queue.Empty:
        raise _Broken(_reason(TimeoutError()), unreachable=True) from None
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
        if answer.code == 416:  # what is there cannot be gone on with
            part.unlink(missing_ok=True)
        again = answer.code in (408, 416, 425, 429) or answer.code >= 500
        raise _Broken(f"the server answers {_status(answer.code)}", final=not again) from answer
    if isinstance(answer, Exception):
        gone = isinstance(answer, (urllib.error.URLError, TimeoutError))
        raise _Broken(_reason(answer), final=isinstance(answer, ValueError), unreachable=gone) from answer
    return answer


def _status(code: int) -> str:
    """Return 404 as ``404 Not Found``, in our words: a server's could be anything."""
    try:
        return f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"nothing came for {PATIENCE:g} s"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ascii(" ".join(text.split()))[1:-1][:200]


def members(path: Path, folder: str, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of the files ``folder/name`` of an archive, in its order.

    Nothing else in it is looked at, and of these nothing but the bytes: what an archive says of paths, links, owners and
    modes has no effect.

    Raises:
        DamagedArchive: the file is not an archive, or a member is missing, not a regular file, or too big.
        OSError: it cannot be read.
    """
    wanted = {f"{folder}/{name}": name for name in names}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = wanted.pop(member.name.removeprefix("./"), None)
                if name is None:
                    continue
                if not member.isreg():
                    raise DamagedArchive(f"{folder}/{name} in it is no plain file")
                if member.size > BIGGEST:
                    raise DamagedArchive(f"{folder}/{name} in it has {format_bytes(member.size)}")
                file = tar.extractfile(member)
                assert file is not None
                yield name, file.read()
                if not wanted:
                    return
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DamagedArchive(" ".join(str(error).split()) or type(error).__name__) from error
    raise DamagedArchive(f"it has no {min(wanted)}")


def unpack(path: Path, folder: Path, names: Collection[str]) -> None:
    """Put the named files of an archive into ``folder``, which is called as in the archive and appears complete.

    Args:
        path: the archive.
        folder: where to; the caller is :func:`alone` in its parent.
        names: of the files within the archive's folder of that name.

    Raises:
        DamagedArchive: see :func:`members`.
        OSError: it cannot be written, or there is a folder with something in it.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process left it
    temporary.mkdir()
    try:
        for name, content in members(path, folder.name, names):
            with open(temporary / name, "wb") as file:
                file.write(content)
                flush(file)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
