"""Progress of downloads: plain lines, or a bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vitctl.cli import progress
from vitctl.cli.progress import ProgressBars, ProgressLines, make_observer

MIB = 2**20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a fake clock as a list with the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_download_prints_a_line_every_30_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    observer = make_observer()
    assert type(observer) is ProgressLines
    for second in range(101):
        clock[0] = 100.0 + second
        observer.loading(second * MIB, 100 * MIB, download="downloading x to y")
    assert capsys.readouterr().err.splitlines() == [
        "downloading x to y",
        "0 B of 100.0 MiB",
        "30.0 MiB of 100.0 MiB, 1.0 MiB/s, 1 min 10 s left",
        "60.0 MiB of 100.0 MiB, 1.0 MiB/s, 40 s left",
        "90.0 MiB of 100.0 MiB, 1.0 MiB/s, 10 s left",
        "100.0 MiB of 100.0 MiB, 1.0 MiB/s",
    ]


def test_the_speed_of_a_resumed_download_is_measured_anew(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    observer = make_observer()
    observer.loading(0, 100 * MIB, download="downloading x to y")
    clock[0] += 10
    observer.loading(50 * MIB, 100 * MIB, download="interrupted; trying again")
    clock[0] += 10
    observer.loading(100 * MIB, 100 * MIB, download="interrupted; trying again")
    assert capsys.readouterr().err.splitlines() == [
        "downloading x to y",
        "0 B of 100.0 MiB",
        "interrupted; trying again",
        "50.0 MiB of 100.0 MiB",
        "100.0 MiB of 100.0 MiB, 5.0 MiB/s",
    ]


def test_decoded_images_are_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    observer = make_observer()
    observer.loading(10, 2000)
    observer.loading(2000, 2000)
    assert capsys.readouterr().err == "decoding images: 2,000 of 2,000\n"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace stderr with a terminal; afterwards the list holds its output."""
    screen, line = pty.openpty()
    seen: list[str] = []

    def read() -> None:
        pieces = b""
        try:
            while piece := os.read(screen, 4096):
                pieces += piece
        except OSError:  # the other end is closed
            pass
        seen.append(pieces.decode())

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(line, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        patch.setenv("TERM", "xterm")
        yield seen
    reader.join()
    os.close(screen)


def test_a_download_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    with terminal(monkeypatch) as seen, make_observer() as observer:
        assert isinstance(observer, ProgressBars) and observer._progress is not None
        observer.loading(0, 100 * MIB, download="downloading x to y")
        clock[0] += 10
        observer.loading(40 * MIB, 100 * MIB, download="downloading x to y")
        observer._progress.refresh()
        observer.loading(100 * MIB, 100 * MIB, download="downloading x to y")
        observer._progress.refresh()
        assert not observer._tasks
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen[0])
    assert "downloading x to y" in text
    assert re.search(r"download\s+\S+\s+ 40/100\s+MiB, 4.0 MiB/s, 15 s left", text), text
