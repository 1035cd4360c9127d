"""Small data sets in the official layout of CIFAR, and a server that misbehaves on demand."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitctl.data import cifar
from vitctl.data.cifar import Cifar
from vitctl.data.download import Archive


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Pickles like Python 2, which wrote the official batches: all strings are byte strings."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_string(self, text: bytes | str) -> None:
        raw = text if isinstance(text, bytes) else text.encode("latin1")
        short = len(raw) < 256
        self.write(b"U" + bytes([len(raw)]) + raw if short else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    def save_global(self, what: Any, name: str | None = None) -> None:
        if what.__name__ == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(what)
        else:
            super().save_global(what, name)

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # type: ignore[attr-defined]


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue()


def rows_of(spec: Cifar) -> int:
    """Return the number of images in each batch of a small data set: two of each class."""
    return 2 * len(spec.classes)


def batch(number: int, spec: Cifar = cifar.CIFAR10) -> dict[str, Any]:
    """Return a batch of random images, seeded by ``number``."""
    rows, classes = rows_of(spec), len(spec.classes)
    generator = np.random.default_rng(number)
    data = generator.integers(0, 256, (rows, 3072), dtype=np.uint8)
    names = [f"{number}_{i}.png" for i in range(rows)]
    labels = [(i + number) % classes for i in range(rows)]
    more = {} if classes == 10 else {"coarse_labels": [label // 5 for label in labels]}
    return {"batch_label": f"batch {number}", spec.label_key: labels, "data": data, "filenames": names, **more}


def numbers(spec: Cifar) -> dict[str, int]:
    """Return the numbers of the batches, from 1, by file name."""
    return {name: i for i, name in enumerate((*spec.train, *spec.test), start=1)}


def contents(spec: Cifar) -> dict[str, bytes]:
    """Return the files of the official folder, by name."""
    meta: dict[str, Any] = {"num_vis": 3072, spec.names_key: list(spec.classes)}
    if len(spec.classes) == 100:
        meta["coarse_label_names"] = [f"coarse_{i}" for i in range(20)]
    return {name: python2(batch(i, spec)) for name, i in numbers(spec).items()} | {spec.meta: python2(meta)}


def small(spec: Cifar) -> Cifar:
    """Return the data set with few images per batch; its archive is still the official one."""
    rows = rows_of(spec)
    return replace(spec, train=dict.fromkeys(spec.train, rows), test=dict.fromkeys(spec.test, rows))


def write_batches(spec: Cifar, folder: Path) -> Path:
    """Write the official folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(spec).items():
        (folder / name).write_bytes(content)
    return folder


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of an archive, with any attributes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def official_members(spec: Cifar) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the members of the official archive."""
    files = [member(f"{spec.folder}/{name}", content) for name, content in contents(spec).items()]
    return [member(spec.folder, type=tarfile.DIRTYPE, mode=0o755), *files, member(f"{spec.folder}/readme.html", b"<p>")]


def write_archive(spec: Cifar, path: Path, members: list[tuple[tarfile.TarInfo, bytes]] | None = None) -> Cifar:
    """Write an archive, and return the data set with it as the official archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for info, content in official_members(spec) if members is None else members:
            tar.addfile(info, io.BytesIO(content))
    return known(spec, path)


def known(spec: Cifar, path: Path) -> Cifar:
    """Return the data set with the file ``path`` as the official archive."""
    content = path.read_bytes()
    checksums = {name: hashlib.new(name, content).hexdigest() for name in spec.archive.checksums}
    return replace(spec, archive=Archive(url=spec.archive.url, size=len(content), checksums=checksums))


class Server(http.server.ThreadingHTTPServer):
    """Serves files on 127.0.0.1, with one step of ``plan`` per request, and then ``complete``.

    ``content`` is one file under any name, or files by name.

    Steps of a plan:

    - ``complete``: send the requested data.
    - ``cut N``: close the connection after N bytes.
    - ``stall N``: send N bytes, then nothing.
    - ``drip``: send a byte now and then.
    - ``mute``: never respond.
    - ``damage``: change one byte.
    - ``other``: send a web page instead.
    - ``endless``: send without a length, and without end.
    - ``slow``: take ``seconds`` for all data.
    - ``shift``: send a different range than requested.
    - ``rude``: do not speak HTTP.
    - a number: respond with this status.

    Attributes:
        ranges: the Range header of each request so far, or None.
    """

    daemon_threads = True

    def __init__(
        self, content: bytes | dict[str, bytes], *plan: str, ranges: bool = True, seconds: float = 5.0
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.plan, self.seconds, self.understands_ranges = content, list(plan), seconds, ranges
        self.ranges: list[str | None] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mirror"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients close connections on purpose


@contextlib.contextmanager
def serving(content: bytes | dict[str, bytes], *plan: str, **options: Any) -> Iterator[Server]:
    """Run a :class:`Server` in a thread."""
    server = Server(content, *plan, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        what, _, number = (server.plan.pop(0) if server.plan else "complete").partition(" ")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.understands_ranges else 0
        file = server.content if isinstance(server.content, bytes) else server.content[self.path.rpartition("/")[2]]
        content = file[start:]
        if what == "mute":
            server.over.wait()
            return
        if what == "rude":
            self.wfile.write(b"\x1b[2J hello\r\n\r\n")
            return
        if what.isdigit():
            self.send_response(int(what))
            self.end_headers()
            return
        if what == "other":
            content = b"<html>please log in</html>"
        if what == "damage":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self.send_response(206 if start else 200)
        if start:
            first = start - 1 if what == "shift" else start
            self.send_header("Content-Range", f"bytes {first}-{len(file) - 1}/{len(file)}")
        if what != "endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if what in ("cut", "stall"):
            self.wfile.write(content[: int(number)])
            self.wfile.flush()
            if what == "stall":
                server.over.wait()
        elif what == "drip":
            while not server.over.wait(0.05):
                self.wfile.write(b"x")
        elif what == "endless":
            while not server.over.is_set():
                self.wfile.write(content)
        elif what == "slow":
            step = max(1, len(content) // 100)
            for i in range(0, len(content), step):
                self.wfile.write(content[i : i + step])
                self.wfile.flush()
                time.sleep(server.seconds / 100)
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


PRELUDE = """
import json, sys
from dataclasses import replace
from vitctl.data import cifar, download
from vitctl.data.download import Archive
given = json.loads(sys.argv[1])
for name, value in given["download"].items():
    setattr(download, name, value)
spec = getattr(cifar, given["spec"])
archive = Archive(url=spec.archive.url, size=given["size"], checksums=given["checksums"])
setattr(cifar, given["spec"], replace(spec, archive=archive, train=given["train"], test=given["test"]))
"""
"""Start of a subprocess's script that replaces the official data set by a small one."""


def prelude_argument(spec: Cifar, **download: float) -> str:
    """Return the first argument of a script that starts with :data:`PRELUDE`."""
    return json.dumps(
        {
            "spec": {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[spec.name],
            "size": spec.archive.size,
            "checksums": dict(spec.archive.checksums),
            "train": spec.train,
            "test": spec.test,
            "download": download,
        }
    )
