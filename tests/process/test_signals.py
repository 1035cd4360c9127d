"""Requests to stop by signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from vitctl.cli import _lasting_stderr
from vitctl.process.signals import StopRequest, stop_signals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """Give every signal its default action, and restore the test runner's."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in ALL}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("signum", ALL, ids=lambda each: each.name)
def test_the_first_signal_is_a_request_and_others_are_ignored(signum: signal.Signals) -> None:
    received: list[int] = []
    with StopRequest(received.append) as stop:
        assert not stop
        os.kill(os.getpid(), signum)
        assert stop and stop.signum == signum
        for other in set(ALL) - {signal.SIGINT}:
            os.kill(os.getpid(), other)
        assert stop.signum == signum and received == [signum]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second Ctrl-C ends the process"
    assert {signal.getsignal(each) for each in ALL} == {signal.SIG_DFL}


def test_ignored_signals_stay_ignored_except_ctrl_c() -> None:
    for each in ALL:
        signal.signal(each, signal.SIG_IGN)
    assert stop_signals() == [signal.SIGINT]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopRequest(lambda _: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


@pytest.mark.parametrize("nohup", [False, True])
def test_messages_without_a_reader_are_a_hang_up(nohup: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reading, writing = os.pipe()
    received: list[int] = []
    with open(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with _lasting_stderr(), StopRequest(received.append) as stop:
            print("epoch 1", file=sys.stderr, flush=True)
            assert os.read(reading, 100) == b"epoch 1\n"
            os.close(reading)
            print("epoch 2", file=sys.stderr, flush=True)
            print("epoch 3", file=sys.stderr, flush=True)
            assert received == ([] if nohup else [signal.SIGHUP]) and bool(stop) != nohup
        assert sys.stderr is pipe
