"""Child processes that return, raise, abort and hang."""

from __future__ import annotations

import os
import time

import pytest

from vitctl.doctor.children import Children
from vitctl.errors import RequestError


def add(a: int, b: int) -> int:
    return a + b


def abort() -> None:
    os.write(2, b"MPSNDArray.mm:891: failed assertion\n")  # as C++ code does
    os.abort()


def leave() -> None:
    os._exit(3)


def fail() -> None:
    raise ValueError("a reason\nand more")


def refuse() -> None:
    raise RequestError("mps is not available", hint="use cpu")


def hang() -> None:
    time.sleep(600)


@pytest.fixture
def children() -> Children:
    return Children("fork")


def test_a_result_is_returned(children: Children) -> None:
    ended = children.run(add, 2, 3, limit=30)
    assert (ended.value, ended.state, ended.reason) == (5, "returned", "")


@pytest.mark.parametrize(
    ("function", "state", "reason"),
    [
        (abort, "aborted", "ended by SIGABRT: MPSNDArray.mm:891: failed assertion"),
        (leave, "aborted", "ended with exit code 3"),
        (fail, "raised", "ValueError: a reason"),
    ],
)
def test_a_failed_process_gives_its_reason(
    children: Children, capfd: pytest.CaptureFixture[str], function: object, state: str, reason: str
) -> None:
    ended = children.run(function, limit=30)  # type: ignore[arg-type]
    assert (ended.value, ended.state, ended.reason) == (None, state, reason)
    assert capfd.readouterr() == ("", "")
    assert children.run(add, 1, 1, limit=30).value == 2


def test_a_process_that_hangs_is_killed(children: Children) -> None:
    ended = children.run(hang, limit=0.2)
    assert (ended.state, ended.reason) == ("timed out", "no result after 0.2 s")
    assert ended.seconds < 10


def test_a_refusal_is_raised_here(children: Children) -> None:
    with pytest.raises(RequestError) as refused:
        children.run(refuse, limit=30)
    assert refused.value.hint == "use cpu"
