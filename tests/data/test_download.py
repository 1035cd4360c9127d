"""Downloads from a real server that cuts, stalls, misreports and disappears; malicious archives."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY_NET, Cli
from tests.data.official import (
    PRELUDE,
    batch,
    contents,
    known,
    member,
    numbers,
    official_members,
    prelude_argument,
    serving,
    small,
    write_archive,
)
from vitctl.data import cifar, download, places
from vitctl.data.cifar import Cifar
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.download import Archive, DamagedArchive, DownloadFailed, Stalled, download_lock, fetch, members, unpack
from vitctl.errors import RequestError, VitctlWarning
from vitctl.models.pretrained import reachable
from vitctl.observer import SILENT, Observer

SIZE = 300_000
CONTENT = np.random.default_rng(0).bytes(SIZE)
FILE = Archive(
    url="https://example.org/some-file.tar.gz",
    size=SIZE,
    checksums={name: hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha256")},
)
PART = ".some-file.tar.gz.part"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without a pause."""
    monkeypatch.setattr(download, "PAUSE", 0.01)


@pytest.fixture
def hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten timeouts for plans in which the server stalls."""
    plan = request.node.callspec.params.get("plan", []) if hasattr(request.node, "callspec") else []
    if not plan or any(step.startswith(("mute", "stall", "drip")) for step in plan):
        monkeypatch.setattr(download, "PATIENCE", 0.5)


@contextlib.contextmanager
def unwritable(*files: Path) -> Iterator[Path]:
    """Yield a folder with copies of the files that can be read but not written, even if the tests run as root.

    Modules imported in the block may be unreadable.
    """
    folder = Path(tempfile.mkdtemp(prefix="vitctl-test-"))
    for file in files:
        shutil.copy(file, folder)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # permissions do not apply to root
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def name_of(value: object) -> str | None:
    """Return the test id of a plan."""
    return " ".join(value) if isinstance(value, list) and value and isinstance(value[0], str) else None


class Recorder(Observer):
    """Records progress."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, str]] = []

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        self.calls.append((done, total, download))

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(download for _, _, download in self.calls))


class TestFetch:
    def test_a_file_is_downloaded_with_progress(self, tmp_path: Path) -> None:
        shown = Recorder()
        with serving(CONTENT) as server:
            path = fetch(FILE, f"{server.url}/some-file.tar.gz", tmp_path, shown)
            assert server.ranges == [None]
        assert path.read_bytes() == CONTENT and path.name.startswith(".")
        assert shown.lines == [f"downloading {server.url}/some-file.tar.gz to {tmp_path}"]
        done = [done for done, count, _ in shown.calls if count == SIZE]
        assert done == sorted(done) and done[0] == 0 and done[-1] == SIZE and len(done) == len(shown.calls)

    @pytest.mark.parametrize(
        ("plan", "ranges"),
        [
            (["cut 100000"], [None, "bytes=100000-"]),
            (["cut 100000", "cut 50000", "cut 50000"], [None, "bytes=100000-", "bytes=150000-", "bytes=200000-"]),
            (["cut 0"], [None, None]),
            (["stall 100000"], [None, "bytes=100000-"]),
            (["rude"], [None, None]),
            (["503"], [None, None]),
            (["429"], [None, None]),
            (["cut 100000", "503"], [None, "bytes=100000-", "bytes=100000-"]),
            (["cut 100000", "mute"], [None, "bytes=100000-", "bytes=100000-"]),
            (["cut 100000", "416"], [None, "bytes=100000-", None]),
            (["cut 100000", "shift"], [None, "bytes=100000-", None]),
            (["damage"], [None, None]),
            (["cut 100000", "damage", "cut 200000"], [None, "bytes=100000-", None, "bytes=200000-"]),
            (["endless"], [None]),
        ],
        ids=name_of,
    )
    @pytest.mark.usefixtures("hasty")
    def test_downloads_recover_from_failures(self, plan: list[str], ranges: list[str | None], tmp_path: Path) -> None:
        with serving(CONTENT, *plan) as server:
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges == ranges
        assert os.listdir(tmp_path) == [PART]

    def test_a_server_without_ranges_restarts(self, tmp_path: Path) -> None:
        with serving(CONTENT, "cut 100000", "cut 200000", ranges=False) as server:
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]

    @pytest.mark.parametrize(
        ("plan", "reason", "requests"),
        [
            (["404"], "the server responded 404 Not Found", 1),
            (["403"], "the server responded 403 Forbidden", 1),
            (["599"] * 9, "the server responded 599", 2),
            (["other"], "the server's file has 26 bytes, not 300,000", 1),
            (["mute"] * 9, "no data received for 0.5 s", 1),
            (["stall 0"] * 9, "no data received for 0.5 s", 2),
            (["drip"] * 9, r"only \d+ bytes received in 1 s", 2),
            (["damage"] * 9, f"file is not the official archive: its MD5 is .{{32}}, not {FILE.checksums['md5']}", 2),
            (["rude"] * 9, r"\\x1b\[2J hello", 2),
            (
                ["cut 100000", "404"],
                "the server responded 404 Not Found; 97.7 KiB of 293.0 KiB received and kept",
                2,
            ),
            (["cut 100000", "cut 100", "cut 100"], r"the connection closed after 100,200 of 300,000 bytes; 97.9 KiB of", 3),
        ],
        ids=name_of,
    )  # fmt: skip
    @pytest.mark.usefixtures("hasty")
    def test_failed_downloads_have_a_reason(self, plan: list[str], reason: str, requests: int, tmp_path: Path) -> None:
        start = time.monotonic()
        with serving(CONTENT, *plan) as server:
            with pytest.raises(DownloadFailed, match=reason) as caught:
                fetch(FILE, server.url, tmp_path)
            assert len(server.ranges) == requests
        assert time.monotonic() - start < 10
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)

    def test_a_damaged_file_is_not_kept(self, tmp_path: Path) -> None:
        with serving(CONTENT, "damage", "damage") as server, pytest.raises(DownloadFailed):
            fetch(FILE, server.url, tmp_path)
        assert os.listdir(tmp_path) == []

    def test_an_unreachable_server_is_not_retried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(CONTENT) as server:
            url = server.url
        monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("waiting for a retry"))
        with pytest.raises(DownloadFailed, match=r"^Connection refused$"):
            fetch(FILE, url, tmp_path)

    def test_a_download_resumes_after_the_server_was_down(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "PAUSE", 0.3)
        with serving(CONTENT, "cut 100000") as server:
            url, port = server.url, server.server_address[1]

            class Closing(Observer):
                def loading(self, done: int, total: int, *, download: str = "") -> None:
                    if done >= 100_000:
                        server.socket.close()

            with pytest.raises(DownloadFailed, match=r"Connection refused; 97.7 KiB of 293.0 KiB received"):
                fetch(FILE, url, tmp_path, Closing())
        assert port and (tmp_path / PART).read_bytes() == CONTENT[:100_000]
        with serving(CONTENT) as server:
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges == ["bytes=100000-"]

    @pytest.mark.usefixtures("hasty")
    @pytest.mark.parametrize("where", ["port", "name"])
    def test_connections_and_name_resolution_time_out(
        self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            # The server accepts no connections: once its queue is full, further ones wait forever.
            waiting = [socket.socket() for _ in range(3)]
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            over = threading.Event()

            def never(*_: object, **__: object) -> None:
                over.wait(60)
                raise socket.gaierror

            if where == "name":
                monkeypatch.setattr(socket, "getaddrinfo", never)
            start = time.monotonic()
            with pytest.raises(DownloadFailed, match=r"^no data received for 0.5 s$"):
                fetch(FILE, f"http://127.0.0.1:{full.getsockname()[1]}/x", tmp_path)
            assert time.monotonic() - start < 10
            over.set()
            for each in waiting:
                each.close()

    @pytest.mark.parametrize(
        ("left", "ranges"),
        [
            (CONTENT[:123], ["bytes=123-"]),
            (CONTENT, []),
            (b"", [None]),
            (bytes(200_000), ["bytes=200000-", None]),
            (bytes(SIZE), [None]),
            (bytes(SIZE + 1), [None]),
        ],
        ids=["incomplete", "complete", "empty", "other content", "other content of the same size", "longer"],
    )
    def test_files_of_an_earlier_process_are_resumed_or_replaced(
        self, left: bytes, ranges: list[str | None], tmp_path: Path
    ) -> None:
        (tmp_path / PART).write_bytes(left)
        with serving(CONTENT) as server:
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges == ranges

    def test_a_download_resumes_after_a_killed_process(self, tmp_path: Path) -> None:
        with serving(CONTENT, "slow", seconds=30) as server:
            process = start_fetch(server.url, tmp_path)
            wait_for(lambda: (tmp_path / PART).exists() and (tmp_path / PART).stat().st_size > 0)
            process.kill()
            process.communicate()
            left = (tmp_path / PART).read_bytes()
            assert 0 < len(left) < SIZE and CONTENT.startswith(left)
            shown = Recorder()
            with download_lock(tmp_path, FILE, shown):  # without waiting: the system released the lock
                assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges == [None, f"bytes={len(left)}-"] and shown.calls == []

    def test_an_interrupted_download_resumes(self, tmp_path: Path) -> None:
        class Interrupting(Observer):
            def loading(self, done: int, total: int, *, download: str = "") -> None:
                if done > SIZE // 2:
                    raise KeyboardInterrupt

        with serving(CONTENT, "slow", seconds=1) as server:
            with pytest.raises(KeyboardInterrupt), download_lock(tmp_path, FILE):
                fetch(FILE, server.url, tmp_path, Interrupting())
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT
            assert server.ranges[1] is not None


class TestDisk:
    def test_a_full_disk_fails_and_leaves_no_file(self, tmp_path: Path) -> None:
        with serving(CONTENT) as server:
            process = start_fetch(server.url, tmp_path, limit=SIZE // 2)
            output = process.communicate(timeout=60)[0]
            assert f"NoSpace cannot download some-file.tar.gz to {tmp_path}: " in output
            assert "hint: free some space, or set VITCTL_DATA" in output
            assert not (tmp_path / PART).exists()
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT

    def test_too_little_space_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("Usage", (), {"free": SIZE - 1})
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
        with serving(CONTENT, "cut 100000") as server:
            with pytest.raises(
                RequestError, match=r"some-file.tar.gz needs 293.0 KiB more, but \S+ has 293.0 KiB free\nhint: free"
            ):
                fetch(FILE, server.url, tmp_path)
            assert server.ranges == []
            (tmp_path / PART).write_bytes(CONTENT[:1])
            assert fetch(FILE, server.url, tmp_path).read_bytes() == CONTENT

    def test_a_folder_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        with serving(CONTENT) as server:
            fetch(FILE, server.url, tmp_path)  # import all modules before the change of user
            with (
                unwritable() as folder,
                pytest.raises(
                    RequestError,
                    match=rf"^cannot download some-file.tar.gz to {folder}: Permission denied\nhint: set VITCTL_DATA",
                ),
            ):
                fetch(FILE, server.url, folder)


FETCH = """
import resource, sys
from vitctl.data.download import Archive, download_lock, fetch
from vitctl.errors import VitctlError
from vitctl.observer import Observer
url, folder, size, md5, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
from pathlib import Path
archive = Archive(url="https://example.org/some-file.tar.gz", size=int(size), checksums={"md5": md5})
class Progress(Observer):
    def loading(self, done, total, *, download=""):
        print(done, download, flush=True)
progress = Progress()
try:
    with download_lock(Path(folder), archive, progress):
        fetch(archive, url, Path(folder), progress)
except VitctlError as error:
    print(type(error).__name__, error)
"""


def start_fetch(url: str, folder: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Start a process that downloads; the system refuses files of more than ``limit`` bytes, if not 0."""
    words = [url, str(folder), str(SIZE), FILE.checksums["md5"], str(limit)]
    return subprocess.Popen([sys.executable, "-c", FETCH, *words], stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("the condition never became true")


class TestDownloadLock:
    def test_the_second_process_waits_and_shows_progress(self, tmp_path: Path) -> None:
        with serving(CONTENT, "slow", seconds=2) as server:
            process = start_fetch(server.url, tmp_path)
            wait_for(lambda: (tmp_path / PART).exists())
            shown = Recorder()
            with download_lock(tmp_path, FILE, shown):
                assert process.communicate(timeout=60) and process.returncode == 0
                assert (tmp_path / PART).read_bytes() == CONTENT and server.ranges == [None]
        assert shown.lines == ["waiting for another process that is downloading some-file.tar.gz"]
        done = [done for done, _, _ in shown.calls]
        assert done == sorted(done) and len(set(done)) > 2 and done[-1] == SIZE

    def test_a_suspended_process_is_not_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "STALLED", 0.5)
        with serving(CONTENT, "slow", seconds=2) as server:
            process = start_fetch(server.url, tmp_path)
            wait_for(lambda: (tmp_path / PART).exists())
            process.send_signal(signal.SIGSTOP)
            try:
                expected = pytest.raises(
                    Stalled, match=r"another process that is downloading some-file.tar.gz to \S+ wrote nothing for"
                )
                with expected, download_lock(tmp_path, FILE):
                    pass
            finally:
                process.send_signal(signal.SIGCONT)
            process.communicate(timeout=60)
            assert (tmp_path / PART).read_bytes() == CONTENT


SPEC = small(cifar.CIFAR10)
NAMES = SPEC.files


def evil_members(outside: Path) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Return members that do harm when all of an archive is extracted."""
    link = {"type": tarfile.SYMTYPE}
    return {
        "up": [member("../evil", b"evil"), member(f"{SPEC.folder}/../../evil", b"evil")],
        "absolute": [member(str(outside / "evil"), b"evil")],
        "through a link": [
            member(f"{SPEC.folder}/out", linkname=str(outside), **link),
            member(f"{SPEC.folder}/out/evil", b"evil"),
        ],
        "over the folder": [member(SPEC.folder, linkname=str(outside), **link), member(f"{SPEC.folder}/evil", b"evil")],
        "hard link": [member(f"{SPEC.folder}/evil", type=tarfile.LNKTYPE, linkname=str(outside / "there"))],
        "device": [member(f"{SPEC.folder}/evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        "FIFO": [member(f"{SPEC.folder}/evil", type=tarfile.FIFOTYPE)],
        "further files": [member(f"{SPEC.folder}/evil.py", b"evil"), member("evil", b"evil")],
    }


class TestUnpack:
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("case", evil_members(Path()))
    def test_only_the_named_files_are_extracted(self, case: str, first: bool, tmp_path: Path) -> None:
        outside, inside = tmp_path / "outside", tmp_path / "inside"
        outside.mkdir()
        inside.mkdir()
        (outside / "there").write_text("mine")
        evil, good = evil_members(outside)[case], official_members(SPEC)
        for info, _ in good:
            info.mode, info.uid, info.uname = 0o6777, 1234, "games"
        write_archive(SPEC, tmp_path / "a.tar.gz", evil + good if first else good + evil)
        unpack(tmp_path / "a.tar.gz", inside / SPEC.folder, NAMES)
        assert sorted(os.listdir(inside / SPEC.folder)) == sorted(NAMES) and os.listdir(inside) == [SPEC.folder]
        for name, content in contents(SPEC).items():
            found = (inside / SPEC.folder / name).lstat()
            assert (inside / SPEC.folder / name).read_bytes() == content
            assert stat.S_ISREG(found.st_mode) and not found.st_mode & 0o6111 and found.st_uid == os.geteuid()
        assert os.listdir(outside) == ["there"] and (outside / "there").read_text() == "mine"
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize(
        ("attributes", "reason"),
        [
            ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "data_batch_1 is not a regular file"),
            ({"type": tarfile.SYMTYPE, "linkname": "data_batch_2"}, "data_batch_1 is not a regular file"),
            (
                {"type": tarfile.LNKTYPE, "linkname": f"{SPEC.folder}/data_batch_2"},
                "data_batch_1 is not a regular file",
            ),
            ({"type": tarfile.DIRTYPE}, "data_batch_1 is not a regular file"),
            ({"type": tarfile.FIFOTYPE}, "data_batch_1 is not a regular file"),
            ({"size": 2**28 + 1}, "data_batch_1 has 256.0 MiB"),
            ({"size": 2**20}, "unexpected end of data|missing or bad|invalid header|bad checksum"),
            ({"name": f"{SPEC.folder}/data_batch_7"}, rf"it has no {SPEC.folder}/data_batch_1"),
        ],
    )
    def test_members_that_are_missing_special_or_too_large_are_refused(
        self, attributes: dict[str, Any], reason: str, tmp_path: Path
    ) -> None:
        files = official_members(SPEC)
        index = next(i for i, (info, _) in enumerate(files) if info.name.endswith("data_batch_1"))
        files[index] = member(f"{SPEC.folder}/data_batch_1", **attributes) if "type" in attributes else files[index]
        for key, value in attributes.items():
            setattr(files[index][0], key, value)
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
            for info, content in files:
                tar.fileobj.write(info.tobuf())  # type: ignore[union-attr]
                tar.fileobj.write(content + bytes(-len(content) % 512))  # type: ignore[union-attr]
        with pytest.raises(DamagedArchive, match=reason):
            unpack(tmp_path / "a.tar.gz", tmp_path / SPEC.folder, NAMES)
        assert os.listdir(tmp_path) == ["a.tar.gz"]

    @pytest.mark.parametrize("damage", ["cut", "bytes", "text", "empty"])
    def test_damaged_archives_are_refused(self, damage: str, tmp_path: Path) -> None:
        path = tmp_path / "a.tar.gz"
        write_archive(SPEC, path)
        content = path.read_bytes()
        half = len(content) // 2
        damaged = {
            "cut": content[:half],
            "bytes": content[:half] + bytes(1000) + content[half + 1000 :],
            "text": b"hello",
            "empty": b"",
        }
        path.write_bytes(damaged[damage])
        with pytest.raises(DamagedArchive):
            unpack(path, tmp_path / SPEC.folder, NAMES)
        assert os.listdir(tmp_path) == ["a.tar.gz"]
        with pytest.raises(DamagedArchive):
            dict(members(path, SPEC.folder, NAMES))

    def test_files_of_a_killed_process_are_removed(self, tmp_path: Path) -> None:
        write_archive(SPEC, tmp_path / "a.tar.gz")
        left = tmp_path / f".{SPEC.folder}.tmp"
        left.mkdir()
        (left / "data_batch_1").write_bytes(b"half")
        unpack(tmp_path / "a.tar.gz", tmp_path / SPEC.folder, NAMES)
        assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", SPEC.folder]
        assert (tmp_path / SPEC.folder / "data_batch_1").read_bytes() == contents(SPEC)["data_batch_1"]


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cifar]:
    """CIFAR-10 and CIFAR-100 with few images, by name; their archives are in ``archives/`` of ``tmp_path_factory``."""
    folder = tmp_path_factory.getbasetemp() / "archives"
    return {
        each.name: write_archive(small(each), folder / each.archive.name) for each in (cifar.CIFAR10, cifar.CIFAR100)
    }


@pytest.fixture(params=["cifar10", "cifar100"])
def spec(
    request: pytest.FixtureRequest,
    archives: dict[str, Cifar],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Cifar:
    """CIFAR-10 or CIFAR-100 with few images; its official archive is in ``there/``, and VITCTL_DATA is ``data/``."""
    made = archives[request.param]
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path_factory.getbasetemp() / "archives" / made.archive.name, tmp_path / "there")
    monkeypatch.setattr(cifar, request.param.upper(), made)
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
    return made


@pytest.fixture
def official(spec: Cifar, tmp_path: Path) -> Path:
    """The official archive."""
    return tmp_path / "there" / spec.archive.name


@pytest.fixture
def home(spec: Cifar, tmp_path: Path) -> Path:
    """The folder that is searched first, and the target of downloads."""
    return tmp_path / "data" / spec.name


def load(spec: Cifar, data_dir: Path | None = None, observer: Observer = SILENT) -> Dataset:
    return load_dataset(
        spec.name, data_dir=data_dir and str(data_dir), size=32, skip_bad_images=False, observer=observer
    )


def is_complete(spec: Cifar, dataset: Dataset) -> bool:
    """Return whether ``dataset`` has all images of ``spec``."""
    rows = [batch(number, spec)["data"] for number in numbers(spec).values()]
    expected = np.concatenate(rows).reshape(-1, 3, 32, 32)
    return np.array_equal(np.concatenate([dataset.train.images, dataset.test.images]), expected)


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


class TestDownload:
    def test_a_missing_data_set_is_downloaded_once(
        self, spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = Recorder()
        with serving(official.read_bytes()) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", f"{server.url}/")
            assert is_complete(spec, load(spec, observer=shown))
            assert server.ranges == [None]
        assert shown.lines == [f"downloading {server.url}/{spec.archive.name} to {home}"]
        assert visible(home) == [spec.folder] and sorted(os.listdir(home / spec.folder)) == sorted(spec.files)
        assert sorted(os.listdir(home)) == [f".{spec.archive.name}.lock", spec.folder]
        dataset = load(spec)  # without the server
        assert is_complete(spec, dataset) and dataset.source == str(home / spec.folder)

    def test_the_default_target_is_the_users_data_folder(
        self, spec: Cifar, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("VITCTL_DATA")
        monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
        with serving(official.read_bytes()) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            dataset = load(spec)
        assert is_complete(spec, dataset) and dataset.source == str(
            tmp_path / "home" / "vitctl" / spec.name / spec.folder
        )

    def test_an_empty_data_dir_is_the_target(
        self, spec: Cifar, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine").mkdir()
        with pytest.raises(
            RequestError, match=rf"{spec.title} not found in {tmp_path}/mine, and cannot download \S+: Connection"
        ):
            load(spec, tmp_path / "mine")
        with serving(official.read_bytes()) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            assert is_complete(spec, load(spec, tmp_path / "mine"))
        assert visible(tmp_path / "mine") == [spec.folder]

    @pytest.mark.parametrize("plan", [["cut 50000"], ["damage"], ["stall 50000"]], ids=" ".join)
    @pytest.mark.usefixtures("hasty")
    def test_failed_attempts_are_retried(
        self, plan: list[str], spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = Recorder()
        with serving(official.read_bytes(), *plan) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            assert is_complete(spec, load(spec, observer=shown))
        assert len(shown.lines) == 2 and visible(home) == [spec.folder]

    def test_an_offline_download_is_refused_with_a_hint(
        self, spec: Cifar, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
        with pytest.raises(RequestError) as caught:
            load(spec)
        assert str(caught.value) == (
            f"{spec.title} not found in {home}, {tmp_path}/home/vitctl/{spec.name} or {Path.cwd()}/data, "
            f"and cannot download http://127.0.0.1:9/closed/{spec.archive.name}: Connection refused\n"
            f"hint: use --data-dir if you have a copy, put the archive into {home}, or use --dataset digits"
        )
        assert caught.value.exit_code == 2 and visible(home) == []

    def test_nothing_is_downloaded_without_the_download_option(
        self, spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(official.read_bytes()) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            with pytest.raises(
                RequestError, match=rf"{spec.title} not found in {home}, .*\nhint: use --data-dir .* put \S+gz into"
            ):
                load_dataset(spec.name, data_dir=None, size=32, skip_bad_images=False, download=False)
            assert server.ranges == [] and not home.exists()

    @pytest.mark.parametrize(
        "address",
        [
            "ftp://host/x",
            "host/x",
            "/mnt/mirror",
            "file:///mnt",
            "http://",
            "http://me:secret@host/x",
            "http://h:x/",
            " ",
        ],
    )
    def test_an_invalid_mirror_is_refused(self, address: str, spec: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VITCTL_CIFAR_URL", address)
        with pytest.raises(
            RequestError, match=r"^VITCTL_CIFAR_URL is not an http:// or https:// URL[^\n]*\nhint: set VITCTL_CIFAR_URL"
        ) as caught:
            load(spec)
        assert "secret" not in str(caught.value)

    def test_a_mirror_with_another_file_is_refused(
        self, spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = official.read_bytes()
        with serving(content[:-1] + bytes([content[-1] ^ 1])) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            with pytest.raises(
                RequestError, match=r"the server's file is not the official archive: its MD5 .*\nhint: .*--dataset d"
            ):
                load(spec)
        assert visible(home) == [] and not (home / f".{spec.archive.name}.part").exists()

    def test_vitctl_data_below_a_file_is_refused(
        self, spec: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "file"))
        with pytest.raises(
            RequestError,
            match=rf"cannot download {spec.archive.name} to \S+/file/{spec.name}: Not a directory\nhint: set VITCTL_DATA",
        ):
            load(spec)

    def test_vitctl_data_that_cannot_be_written_is_refused(self, spec: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
        with unwritable() as folder:
            for inner in (folder, folder / "none"):
                monkeypatch.setenv("VITCTL_DATA", str(inner))
                with pytest.raises(
                    RequestError, match=r"cannot download \S+ to \S+: Permission denied\nhint: set VITCTL_DATA"
                ):
                    load(spec)

    def test_the_archive_is_read_if_the_disk_fills_up_while_unpacking(
        self, spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with serving(official.read_bytes()) as server, monkeypatch.context() as patch:
            patch.setenv("VITCTL_CIFAR_URL", server.url)
            patch.setattr(download.os, "fsync", full)
            assert is_complete(spec, load(spec))  # from the archive
        assert visible(home) == [spec.archive.name]
        assert is_complete(spec, load(spec)) and visible(home) == sorted([spec.archive.name, spec.folder])


class TestArchiveByHand:
    @pytest.mark.parametrize("place", ["data-dir", "below data-dir", "VITCTL_DATA", "user", "data"])
    def test_an_archive_is_unpacked_next_to_itself(
        self, place: str, spec: Cifar, official: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
        folder = {
            "data-dir": tmp_path / "mine",
            "below data-dir": tmp_path / "mine" / spec.name,
            "VITCTL_DATA": home,
            "user": tmp_path / "home" / "vitctl" / spec.name,
            "data": tmp_path / "work" / "data",
        }[place]
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        folder.mkdir(parents=True)
        shutil.copy(official, folder)
        data_dir = tmp_path / "mine" if "data-dir" in place else None
        for _ in range(2):
            dataset = load(spec, data_dir)
            assert is_complete(spec, dataset) and dataset.source == str(folder / spec.folder)
        assert visible(folder) == sorted([official.name, spec.folder])

    def test_an_archive_in_a_read_only_folder_is_read_directly(self, spec: Cifar, official: Path, cache: Path) -> None:
        assert is_complete(spec, load(spec, official.parent))  # import all modules before the change of user
        with unwritable(official) as folder:
            for _ in range(2):
                dataset = load(spec, folder)
                assert is_complete(spec, dataset) and dataset.source == str(folder / official.name)
            assert os.listdir(folder) == [official.name]

    @pytest.mark.parametrize("inside", ["nothing", "other things"])
    def test_an_existing_target_folder_is_filled_only_if_empty(self, inside: str, spec: Cifar, official: Path) -> None:
        folder = official.parent / spec.folder
        folder.mkdir()
        if inside == "other things":
            (folder / "readme.html").write_text("<p>")
        for _ in range(2):
            dataset = load(spec, official.parent)
            assert is_complete(spec, dataset)
            assert dataset.source == str(folder if inside == "nothing" else official)

    @pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
    def test_a_damaged_archive_in_data_dir_is_refused(
        self, damage: str, spec: Cifar, official: Path, tmp_path: Path
    ) -> None:
        content = official.read_bytes()
        altered = bytes([content[0] ^ 1]) + content[1:]
        (tmp_path / "mine").mkdir()
        path = tmp_path / "mine" / official.name
        path.write_bytes({"cut": content[:-100], "altered": altered, "empty": b""}[damage])
        reason = "its MD5 is" if damage == "altered" else f"it has {path.stat().st_size:,} bytes, not {len(content):,}"
        with pytest.raises(RequestError, match=rf"{path} is not the official archive: {reason}.*\nhint: delete it"):
            load(spec, tmp_path / "mine")
        assert visible(tmp_path / "mine") == [official.name]

    def test_a_damaged_archive_in_a_default_folder_is_ignored_with_a_warning(
        self, spec: Cifar, official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home.mkdir(parents=True)
        (home / official.name).write_bytes(b"what wget had so far")
        with serving(official.read_bytes()) as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            with pytest.warns(
                VitctlWarning, match=r"^ignoring \S+, which is not the official archive: it has 20 bytes, not "
            ):
                assert is_complete(spec, load(spec))
        assert (home / official.name).read_bytes() == b"what wget had so far"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert is_complete(spec, load(spec))

    def test_the_archive_of_the_other_data_set_is_ignored(self, spec: Cifar, official: Path, home: Path) -> None:
        other = {"cifar10": cifar.CIFAR100, "cifar100": cifar.CIFAR10}[spec.name]
        home.mkdir(parents=True)
        shutil.copy(official, home / other.archive.name)
        with pytest.raises(RequestError, match=rf"{spec.title} not found in {home}, "):
            load(spec)

    def test_a_malicious_archive_with_the_right_checksum_is_refused(
        self, spec: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "mine" / spec.archive.name
        files = [member(f"{spec.folder}/{spec.meta}", type=tarfile.SYMTYPE, linkname="/etc/passwd")]
        write_archive(spec, path, [*files, *official_members(spec)])
        monkeypatch.setattr(cifar, spec.name.upper(), known(spec, path))
        with pytest.raises(RequestError, match=rf"{path} is damaged: .*{spec.meta} is not a regular file"):
            load(spec, tmp_path / "mine")
        assert visible(tmp_path / "mine") == [path.name]


LOAD = (
    PRELUDE
    + """
from vitctl.data.dataset import load_dataset
print("ready", flush=True)
sys.stdin.readline()
data = load_dataset(sys.argv[2], data_dir=None, size=32, skip_bad_images=False)
print(data.train.images.sum().item(), data.test.images.sum().item())
"""
)


@pytest.mark.parametrize("spec", ["cifar10"], indirect=True)
def test_two_processes_download_once(
    python: list[str], spec: Cifar, official: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(official.read_bytes(), "slow", seconds=2) as server:
        monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
        pair = [
            subprocess.Popen(
                [*python, "-c", LOAD, prelude_argument(spec), spec.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in pair:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=120)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0] and printed[0] == printed[1]
        assert server.ranges == [None]
    data = load(spec)
    assert is_complete(spec, data) and printed[0].split()[0] == str(data.train.images.sum().item())
    assert visible(home) == [spec.folder]


class TestCommandLine:
    @pytest.mark.parametrize("spec", ["cifar100"], indirect=True)
    def test_cifar100_is_downloaded_trained_and_evaluated(
        self, spec: Cifar, official: Path, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ["train", "--dataset", "cifar100", "--net", TINY_NET, "--size", 16, "--bs", 64, "--epochs", 1]
        with serving(official.read_bytes(), "cut 200000") as server:
            monkeypatch.setenv("VITCTL_CIFAR_URL", server.url)
            dry = cli(*run, "--dry-run", "--json")
        assert dry.code == 0 and dry.json()["train_images"] == 100  # one image of each class is held out
        lines = dry.err.splitlines()
        assert lines[0] == f"downloading {server.url}/{official.name} to {home}"
        assert "the connection closed after 200,000 of" in dry.err and lines[-1].startswith("1.2 MiB of 1.2 MiB")
        trained = cli(*run, "--name", "hundred", "--json")
        assert trained.code == 0 and "downloading" not in trained.err
        measured = cli("eval", "runs/hundred", "--json")
        assert measured.code == 0
        assert measured.json()["top1"] == trained.json()["test_acc"] and measured.json()["images"] == 200
        assert [row["class"] for row in measured.json()["classes"]] == list(spec.classes)
        shutil.rmtree(home)
        with serving(official.read_bytes()) as server, monkeypatch.context() as patch:
            patch.setenv("VITCTL_CIFAR_URL", server.url)
            exported = cli("export", "runs/hundred", "--format", "safetensors", "--json")
            assert exported.code == 0 and "verifying on generated images" in exported.err
            assert server.ranges == []  # no download
        again = cli("eval", "runs/hundred")
        assert again.code == 2 and "CIFAR-100 not found in" in again.err and "--data-dir" in again.err
        shutil.copy(official, home)
        assert cli("eval", "runs/hundred", "--json").json()["top1"] == measured.json()["top1"]

    @pytest.mark.parametrize("spec", ["cifar10"], indirect=True)
    def test_an_offline_download_is_refused_in_two_lines(self, spec: Cifar, refused: Callable[..., str]) -> None:
        error, hint = refused("train").splitlines()
        assert error.startswith("error: CIFAR-10 not found in ") and hint.startswith("hint: use --data-dir")

    @pytest.mark.parametrize("spec", ["cifar10"], indirect=True)
    def test_a_warning_is_printed_once(self, spec: Cifar, cli: Cli, make_folder: Callable[..., Path]) -> None:
        root = make_folder(
            {part: dict.fromkeys(spec.classes, 3) for part in ("train", "test")}, name="cifar10", side=32
        )
        result = cli("train", "--data-dir", root, "--dry-run", "--net", TINY_NET, "--size", 8, "--bs", 8)
        assert result.code == 0
        lines = [line for line in result.err.splitlines() if line.startswith("warning: ")]
        assert len(lines) == 1 and lines[0].startswith(f"warning: {root} has 30 training and 30 test images, not ")
        assert "VitctlWarning" not in result.err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_an_unknown_certificate_is_answered_with_the_variables_that_trust_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "proxy.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(CONTENT) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(DownloadFailed, match=r"certificate cannot be verified .*self-signed") as failed:
            fetch(FILE, url, tmp_path)
        assert failed.value.hint is not None
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            assert variable in failed.value.hint
        with pytest.raises(RequestError, match=r"certificate cannot be verified .*\nhint: set SSL_CERT_FILE"):
            reachable(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setattr(urllib.request, "_opener", None)  # it reads the variable once per process
        assert reachable(url) and fetch(FILE, url, tmp_path).read_bytes() == CONTENT


def test_a_download_that_fails_for_a_certificate_keeps_its_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    doubt = ssl.SSLCertVerificationError(1, "certificate verify failed")
    doubt.verify_message = "unable to get local issuer certificate"

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(doubt)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path))
    with pytest.raises(RequestError, match=r"\(unable to get local issuer certificate\)\nhint: set SSL_CERT_FILE and"):
        load_dataset("cifar10", data_dir=None, size=32, skip_bad_images=False)
