"""Running the lines of a page in a shell, and comparing what they print with what the page shows."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.docs.page import Step

SECONDS = 240
"""Longest time of a line; none should take a tenth of it on an idle machine."""

UNASKED = (
    # what other processes do
    r"(?:warning: )?other processes use .*",
    # about the small CIFAR-10
    r"warning: .* results are not comparable with published ones",
    # what a terminal shows as a bar, some of it every few seconds
    r"(?:exporting to|quantizing to|checking|measuring speed|importing torch|looking for what costs speed).*",
    r"\d+ of \d+ runs finished.*",
    r"(?:decoding images|evaluating .*): [\d,]+ of [\d,]+.*",
    r"epoch \d+/\d+ step \d+/\d+ \| .*",
    r"\S+: (?:warmed up; .*|\d+ steps? measured, .*)",
)
"""Regular expressions of lines that depend on the machine or the tests; those are ignored that the page does not show."""


class Shell:
    """A shell that keeps its folder and variables from line to line, like a reader's.

    Args:
        folder: where it starts.
        environment: its variables.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._reading, writing = os.pipe()
        self._status = writing
        self._output = folder.parent / f"{folder.name}.out"
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=dict(environment),
            pass_fds=[writing],
            start_new_session=True,
            text=True,
        )
        os.close(writing)

    def run(self, line: str, seconds: float = SECONDS) -> tuple[int, str]:
        """Run a line and return its exit status and what it printed to both streams.

        Raises:
            TimeoutError: it took longer than ``seconds``.
        """
        assert self._bash.stdin is not None
        output = shlex.quote(str(self._output))
        self._bash.stdin.write(
            f"eval {shlex.quote(line)} > {output} 2>&1 < /dev/null\nprintf '%s\\n' $? >&{self._status}\n"
        )
        self._bash.stdin.flush()
        status, end = b"", time.monotonic() + seconds
        while not status.endswith(b"\n"):
            if not select.select([self._reading], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{line}\nruns for more than {seconds:.0f} s; it printed\n{self._printed()}")
            piece = os.read(self._reading, 16)
            if not piece:
                raise EOFError(f"{line}\nended the shell")
            status += piece
        return int(status), self._printed()

    def _printed(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""

    def close(self) -> None:
        """End the shell and what still runs in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()
        os.close(self._reading)


def expected_status(output: Sequence[str] | None) -> str:
    """Return the exit status that a line must have, as a regular expression: an error that the page shows is meant."""
    return "[12]" if any(line.startswith("error: ") for line in output or ()) else "0"


_MASKS = (
    (r"https?://\S*[\w/]", "<address>"),
    (r"(?<![\w.])(?:~|/[\w.+@~-]+)(?:/[\w.+@~-]+)+/?", "<path>"),
    (r"\b(cpu|mps|cuda(?::\d+)?) \((?:[^()]|\([^()]*\))*\)", r"\1 <machine>"),
    (r"\b(cpu|mps|cuda(?::\d+)?): .*?, \d+ threads?", r"\1: <machine>"),
    (r"\b(?:fp32|bf16|fp16)\b", "<precision>"),
    (r"\d[\d.,]* (?:d|h|min|s|ms|µs)(?: \d+ (?:min|s))*\b", "<time>"),
    (r"\d[\d.,]* (?:B|[kKMGT]i?B)\b", "<size>"),
    (r"(?<![a-z])(?=[a-z]*\d)(?=\d*[a-f])[0-9a-f]{8,64}\b", "<digest>"),
    (r"(?:(?<=sweep )|(?<=sweep best )|(?<=runs/))[a-z0-9]{8}\b", "<id>"),
    (r"(?<![A-Za-z_\d])[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?(?:\+\w+)?", "#"),
    (r"# (\w+)s\b", r"# \1"),
    (r"(?<=\S) \*(?= |$)", ""),  # the best of a row, which may be the fastest
    (r"[─━]{2,}|-{3,}", "───"),
    (r"[█▇▆▅▄▃▂▁▏▎▍▌▋▊▉]+", "<bar>"),
)
"""What differs from machine to machine and from run to run, with what stands for it."""


def masked(lines: Iterable[str]) -> list[str]:
    """Return lines with one space between words and without empty lines, and with numbers, times and paths masked."""
    result = []
    for line in lines:
        for pattern, mask in _MASKS:
            line = re.sub(pattern, mask, line)
        if line.strip():
            result.append(" ".join(line.split()))
    return result


def _matches(expected: Sequence[str], found: Sequence[str]) -> bool:
    """Return whether masked lines are the expected ones; see :func:`difference` for ``...``."""
    parts: list[list[str]] = [[]]  # patterns of the lines between those with only ...
    for line in expected:
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(re.escape(line).replace(r"\.\.\.", ".*"))

    def fits(part: list[str], at: int) -> bool:
        lines = found[at : at + len(part)]
        return len(lines) == len(part) and all(map(re.fullmatch, part, lines))

    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return len(found) == len(first) and fits(first, 0)
    at, end = len(first), len(found) - len(last)
    if at > end or not fits(first, 0) or not fits(last, end):
        return False
    for part in parts[1:-1]:
        at = next((start for start in range(at, end) if fits(part, start)), end) + len(part)
    return at <= end


def difference(shown: Sequence[str], printed: str) -> str:
    """Compare what a page shows with what was printed.

    Args:
        shown: lines of the page; ``...`` stands for any text in a line, and on a line of its own for any lines.
        printed: what the command printed.

    Returns:
        The difference, or nothing if there is none.
    """
    expected = masked(shown)
    unasked = [pattern for pattern in UNASKED if not any(re.fullmatch(pattern, line) for line in shown)]
    found = masked(line for line in printed.splitlines() if not any(re.fullmatch(each, line) for each in unasked))
    if _matches(expected, found):
        return ""
    compared = difflib.ndiff(expected, found)
    return "\n".join(line for line in compared if not line.startswith("?"))


def check(step: Step, line: str, status: int, printed: str) -> str:
    """Return what is wrong with a line that was run, or nothing.

    Args:
        step: the step of the page.
        line: what was run instead of its text.
        status: exit status.
        printed: what it printed.
    """
    ran = "" if line == step.text else f"\nwhich ran as\n{line}"
    if not re.fullmatch(expected_status(step.output), str(status)):
        return (
            f"{step.text}{ran}\nended with status {status}, not {expected_status(step.output)}, and printed\n{printed}"
        )
    if step.output is not None and (found := difference(step.output, printed)):
        return f"{step.text}{ran}\nprinted something else; - is the page, + was printed, numbers are masked\n{found}"
    return ""
