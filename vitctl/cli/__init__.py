"""The command line: parses arguments, calls the library and prints results. No other package imports this one."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from vitctl.errors import RequestError, VitctlError
    from vitctl.process.failure import ChildReport

# Skip the interpreter's final garbage collection, which takes a second or more to visit every object of torch.
atexit.register(gc.freeze)

TYPERS_INTERRUPT = 130
"""Typer's exit code for Ctrl-C. The process ends with SIGINT instead, because a shell loop stops only then."""


_LONGEST_SHOWN = 200
"""Characters of a path in an error; longer ones are cut off."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vitctl``, print any error as ``error:`` and ``hint:`` lines, and return the exit code.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        0 for success, 1 for a failure after work began, 2 for an impossible request. If a signal interrupts a run, the
        process ends with that signal instead of returning.
    """
    import typer

    from vitctl.cli.app import app
    from vitctl.errors import Interrupted, VitctlError
    from vitctl.process.failure import ChildReport

    report = ChildReport()
    usage_errors: type[Exception] = typer.BadParameter.__mro__[1]  # UsageError, which Typer does not export
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: the name of a file may not be valid UTF-8
    debug = os.environ.get("VITCTL_DEBUG", "") not in ("", "0")
    try:
        with _lasting_stderr(), _plain_warnings():
            arguments = list(sys.argv[1:] if argv is None else argv)
            code = app(args=arguments, prog_name="vitctl", standalone_mode=False)
        if code == TYPERS_INTERRUPT:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except usage_errors as error:
        return _usage_error(error, report)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except VitctlError as error:
        report.write(error)
        if debug:
            raise
        _print_error(error, "" if isinstance(error, Interrupted) else "error: ")
        if isinstance(error, Interrupted):
            _die_by(error.signum)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        _die_by(signal.SIGINT)
    except BrokenPipeError:
        # The reader has exited (vitctl ... | head); prevent a second error when stdout is flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        request = _path_error(error)
        report.write(request or error)
        if debug:
            raise
        if request:
            _print_error(request)
            return request.exit_code
        print(
            f"error: unexpected {type(error).__name__}: {error}\n"
            f"hint: please report this bug, with the output under VITCTL_DEBUG=1",
            file=sys.stderr,
        )
        return 1
    return 0


def _print_error(error: VitctlError, prefix: str = "error: ") -> None:
    """Print an error and its hint; line breaks and terminal sequences in names are escaped, but a list stays a list."""
    from vitctl.units import printable

    indent = "\n  "  # starts each line of a list of mistakes
    print(prefix + indent.join(map(printable, error.message.split(indent))), file=sys.stderr)
    if error.hint is not None:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def _path_error(error: Exception) -> RequestError | None:
    """Return the error for a path that the system refuses: too long, a loop of links, or in a closed folder."""
    from vitctl.errors import RequestError
    from vitctl.units import quoted

    refused = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
    if not isinstance(error, OSError) or error.errno not in refused or not isinstance(error.filename, (str, Path)):
        return None
    path = str(error.filename)
    shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
    command = f"ls -ld {quoted(shown)}"
    hint = "use a shorter path" if error.errno == errno.ENAMETOOLONG else f"check its permissions: {command}"
    return RequestError(f"cannot use {shown}: {error.strerror}", hint=hint)


def _usage_error(error: Any, report: ChildReport) -> int:
    """Print an error of Typer's parser as ``error:`` and ``hint:`` lines, and return the exit code."""
    from vitctl.cli.usage import usage_error

    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help of a group
        error.show()
    else:
        request = usage_error(error)
        report.write(request)
        _print_error(request)
    return int(error.exit_code)


class _LastingStream:
    """A text stream whose reader may disappear: a terminal, an ssh connection or a pipe.

    Without a reader, text is dropped and the process sends itself SIGHUP, so that a run saves and ends; under nohup, which
    ignores SIGHUP, the run continues. An exception from the stream would end the run before it saves.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, or drop it if the reader is gone."""
        with self._lost_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it if the reader is gone."""
        with self._lost_reader():
            self._stream.flush()

    @contextmanager
    def _lost_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if hasattr(signal, "SIGHUP"):  # not on Windows
                os.kill(os.getpid(), signal.SIGHUP)


@contextmanager
def _lasting_stderr() -> Iterator[None]:
    """Let a run outlive the reader of its messages; see :class:`_LastingStream`."""
    stderr = sys.stderr
    sys.stderr = cast("TextIO", _LastingStream(stderr))
    try:
        yield
    finally:
        sys.stderr = stderr


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print each :class:`vitctl.errors.VitctlWarning` as a ``warning:`` line; other warnings are left to Python."""
    from vitctl.errors import VitctlWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", VitctlWarning)
        show = warnings.showwarning

        def print_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, VitctlWarning):
                print(f"warning: {message}", file=sys.stderr, flush=True)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = print_warning
        yield


def _die_by(signum: int) -> None:
    """End this process with a signal, as if it had not been handled."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
