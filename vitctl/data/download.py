"""Download of official archives, and extraction of the required files.

A download is written to a hidden file in the target folder, from which a later process resumes if the server supports
it. An archive is opened only if its size and checksums are right. One process at a time downloads to a folder, and the
others wait.

torchvision and ``torch.hub`` have no timeout. torchvision also leaves an incomplete download under the final name, falls
back from https to http, and extracts every file of an archive.
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
from vitctl.certificates import TRUST_PROXY, certificate_doubt
from vitctl.errors import NoSpace, RequestError
from vitctl.files import flush, is_full
from vitctl.observer import SILENT, Observer
from vitctl.units import format_bytes, format_duration

PATIENCE = 15.0
"""Seconds to wait for a server's response, and for further data."""

MAX_FAILURES = 2
"""Maximum number of consecutive attempts without progress."""

PAUSE = 1.0
"""Seconds to wait before a retry; twice as long after an attempt without progress."""

MIN_SPEED = 1024
"""Bytes per second, averaged over twice :data:`PATIENCE`, below which a connection counts as stalled."""

MIN_PROGRESS = 0.01
"""Share of an archive that an attempt must receive to count as progress."""

STALLED = 120.0
"""Seconds to wait for another process that writes nothing."""

MAX_MEMBER_BYTES = 2**28
"""Largest size in bytes of an extracted file."""

_CHUNK = 2**18
_MAKE_ROOM = "free some space, or set VITCTL_DATA or --data-dir to a folder on another disk"


class DownloadFailed(Exception):
    """An archive cannot be downloaded; the message is a clause with the reason.

    Args:
        reason: the reason.
        hint: what the user can do about it, or None for the usual alternatives.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class Stalled(RequestError):
    """The process that holds the lock writes nothing."""


class DamagedArchive(Exception):
    """An archive does not contain the required files; the message is a clause with the reason."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An official file with known checksums.

    Attributes:
        url: official URL.
        size: size in bytes.
        checksums: hexadecimal digests by algorithm name in :mod:`hashlib`; all must match.
    """

    url: str
    size: int
    checksums: Mapping[str, str]

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]

    def fault(self, path: Path) -> str | None:
        """Return why ``path`` is not this archive, as a clause, or None if it is.

        Raises:
            OSError: ``path`` cannot be read.
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
def download_lock(folder: Path, archive: Archive, observer: Observer = SILENT) -> Iterator[None]:
    """Hold the lock for downloading and unpacking ``archive`` in ``folder``; wait while another process holds it.

    Raises:
        Stalled: the other process wrote nothing for :data:`STALLED` seconds.
        OSError: the folder cannot be written.
    """
    lock_file = folder / f".{archive.name}.lock"
    lock = FileLock(lock_file)
    before, since = -1, time.monotonic()
    activity = f"waiting for another process that is downloading {archive.name}"
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            written = _written(folder)
            if written != before:
                before, since = written, time.monotonic()
            observer.loading(min(written, archive.size - 1), archive.size, download=activity)
            if time.monotonic() - since > STALLED:
                raise Stalled(
                    f"another process that is downloading {archive.name} to {folder} wrote nothing for "
                    f"{format_duration(STALLED)}",
                    hint=f"stop the process that holds {lock_file}, then try again",
                ) from None
    try:
        if before >= 0:
            observer.loading(archive.size, archive.size, download=activity)
        yield
    finally:
        lock.release()


def _written(folder: Path) -> int:
    """Return the number of bytes downloaded and unpacked so far in a folder."""
    total = 0
    for hidden in folder.glob(".*"):
        with contextlib.suppress(OSError):
            files = [hidden] if hidden.suffix == ".part" else hidden.iterdir() if hidden.suffix == ".tmp" else []
            total += sum(file.stat().st_size for file in files)
    return total


def fetch(archive: Archive, url: str, folder: Path, observer: Observer = SILENT) -> Path:
    """Download an archive and return the file, whose size and checksums are right.

    The file is a hidden file in ``folder``, which the caller renames or removes. An incomplete file of an earlier process
    is resumed. After a lost or stalled connection the download is retried, and a damaged file is downloaded again once.

    Args:
        archive: the archive to download.
        url: URL to download from.
        folder: target folder; the caller holds its :func:`download_lock`.
        observer: receives progress in bytes.

    Raises:
        DownloadFailed: the server cannot be reached, or sends wrong or incomplete data.
        RequestError: the disk has too little space, or the folder cannot be written.
        RunFailed: the disk filled up; the incomplete file was removed.
    """
    part = folder / f".{archive.name}.part"
    activity = f"downloading {url} to {folder}"
    with _translated_errors(folder, archive, part):
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
                    _receive(archive, url, part, have, activity, observer)
                except _Broken as broken:
                    have = _size(part)
                    fruitless = 0 if have >= best + MIN_PROGRESS * archive.size else fruitless + 1
                    best = max(best, have)
                    if broken.final or fruitless == MAX_FAILURES or (broken.unreachable and best == first):
                        raise DownloadFailed(_with_progress(broken, have, archive), broken.hint) from broken
                    activity = f"{broken}; retrying"
                    time.sleep(PAUSE * 2**fruitless)
                    continue
            fault = archive.fault(part)
            if fault is None:
                return part
            part.unlink()
            damaged += 1
            if damaged == 2:
                raise DownloadFailed(f"the server's file is not the official archive: {fault}")
            best, first, fruitless = 0, -1, 0
            activity = f"the download is damaged ({fault}); downloading it again"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_room(folder: Path, archive: Archive, have: int) -> None:
    free = shutil.disk_usage(folder).free
    if archive.size - have > free:
        raise RequestError(
            f"{archive.name} needs {format_bytes(archive.size - have)} more, but {folder} has {format_bytes(free)} free",
            hint=_MAKE_ROOM,
        )


@contextlib.contextmanager
def _translated_errors(folder: Path, archive: Archive, part: Path) -> Iterator[None]:
    """Convert errors of the file system."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            with contextlib.suppress(OSError):
                part.unlink()
            raise NoSpace(
                f"cannot download {archive.name} to {folder}: {error.strerror or error}", hint=_MAKE_ROOM
            ) from error
        raise not_writable(folder, archive, error) from error


def not_writable(folder: Path, archive: Archive, error: OSError) -> RequestError:
    """Return the error for a folder that cannot be written."""
    return RequestError(
        f"cannot download {archive.name} to {folder}: {error.strerror or error}",
        hint="set VITCTL_DATA or --data-dir to a writable folder",
    )


class _Broken(Exception):
    """An attempt to download failed; the message is a clause with the reason.

    Args:
        reason: the reason.
        final: whether a retry would fail too.
        unreachable: whether the server could not be reached.
        hint: see :class:`DownloadFailed`.
    """

    def __init__(self, reason: str, *, final: bool = False, unreachable: bool = False, hint: str | None = None) -> None:
        super().__init__(reason)
        self.final, self.unreachable, self.hint = final, unreachable, hint


def _with_progress(broken: _Broken, have: int, archive: Archive) -> str:
    if have == 0:
        return str(broken)
    return f"{broken}; {format_bytes(have)} of {format_bytes(archive.size)} received and kept"


def _receive(archive: Archive, url: str, part: Path, have: int, activity: str, observer: Observer) -> None:
    """Append the missing data to ``part``, which has ``have`` bytes; overwrite it if the server sends all data.

    Raises:
        _Broken: the connection failed; ``part`` has the data received so far.
        OSError: ``part`` cannot be written.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"vitctl/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with contextlib.closing(_open(request, part)) as response:
        if response.status == 206:
            if not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _Broken("the server sent a different range than requested")
        else:
            have = 0
        if response.length is not None and have + response.length != archive.size:
            raise _Broken(
                f"the server's file has {have + response.length:,} bytes, not {archive.size:,}",
                final=True,
            )
        with open(part, "ab" if have else "wb") as file:
            _copy(response, file, have, archive, activity, observer)


def _copy(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    have: int,
    archive: Archive,
    activity: str,
    observer: Observer,
) -> None:
    since, then = time.monotonic(), have
    while have < archive.size:
        observer.loading(have, archive.size, download=activity)
        try:
            chunk = response.read1(min(_CHUNK, archive.size - have))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(_reason(error)) from error
        if not chunk:
            raise _Broken(f"the connection closed after {have:,} of {archive.size:,} bytes")
        file.write(chunk)
        have += len(chunk)
        if (elapsed := time.monotonic() - since) > 2 * PATIENCE:
            if have - then < MIN_SPEED * elapsed:
                raise _Broken(f"only {have - then:,} bytes received in {elapsed:.0f} s")
            since, then = time.monotonic(), have
    file.flush()
    observer.loading(have, archive.size, download=activity)


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """Return the server's response, with status 200 or 206.

    The connection is opened in a thread, as name resolution has no timeout.
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
        if answer.code == 416:  # the file cannot be resumed
            part.unlink(missing_ok=True)
        again = answer.code in (408, 416, 425, 429) or answer.code >= 500
        raise _Broken(f"the server responded {_status(answer.code)}", final=not again) from answer
    if isinstance(answer, Exception) and (doubt := certificate_doubt(answer)):
        raise _Broken(doubt, final=True, hint=TRUST_PROXY) from answer
    if isinstance(answer, Exception):
        gone = isinstance(answer, (urllib.error.URLError, TimeoutError))
        raise _Broken(_reason(answer), final=isinstance(answer, ValueError), unreachable=gone) from answer
    return answer


def _status(code: int) -> str:
    """Return 404 as ``404 Not Found``, with the standard phrase instead of the server's own."""
    try:
        return f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no data received for {PATIENCE:g} s"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ascii(" ".join(text.split()))[1:-1][:200]


def members(path: Path, folder: str, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of the files ``folder/name`` of an archive, in the order of the archive.

    Other members are ignored, and so are the paths, links, owners and modes in the archive.

    Raises:
        DamagedArchive: the file is not an archive, or a member is missing, not a regular file, or too large.
        OSError: the file cannot be read.
    """
    wanted = {f"{folder}/{name}": name for name in names}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = wanted.pop(member.name.removeprefix("./"), None)
                if name is None:
                    continue
                if not member.isreg():
                    raise DamagedArchive(f"its member {folder}/{name} is not a regular file")
                if member.size > MAX_MEMBER_BYTES:
                    raise DamagedArchive(f"its member {folder}/{name} has {format_bytes(member.size)}")
                file = tar.extractfile(member)
                assert file is not None
                yield name, file.read()
                if not wanted:
                    return
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DamagedArchive(" ".join(str(error).split()) or type(error).__name__) from error
    raise DamagedArchive(f"it has no {min(wanted)}")


def unpack(path: Path, folder: Path, names: Collection[str]) -> None:
    """Extract files of an archive to ``folder``, which appears once it is complete.

    Args:
        path: the archive.
        folder: target folder, with the name of the folder in the archive; the caller holds the :func:`download_lock`
            of its parent.
        names: names of the files, relative to the folder in the archive.

    Raises:
        DamagedArchive: see :func:`members`.
        OSError: ``folder`` cannot be written, or exists and is not empty.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir()
    try:
        for name, content in members(path, folder.name, names):
            with open(temporary / name, "wb") as file:
                file.write(content)
                flush(file)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def gunzip(path: Path, target: Path) -> None:
    """Decompress a ``.gz`` file to ``target``, which appears once it is complete.

    The caller holds the :func:`download_lock` of the folder of ``target``.

    Raises:
        DamagedArchive: the file is not a ``.gz`` file, is damaged, or holds more than :data:`MAX_MEMBER_BYTES` bytes.
        OSError: ``target`` cannot be written.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        with gzip.open(path) as packed, open(temporary, "wb") as file:
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
                if file.tell() > MAX_MEMBER_BYTES:
                    raise DamagedArchive(f"it holds more than {format_bytes(MAX_MEMBER_BYTES)}")
            flush(file)
        temporary.replace(target)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DamagedArchive(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        temporary.unlink(missing_ok=True)
