"""Files that commands draw: refused before any work where they could not be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitctl.errors import RequestError
from vitctl.files import check_writable


def check_plot(path: Path, flag: str, endings: Sequence[str]) -> None:
    """Refuse a plot that could not be written.

    Args:
        path: of the plot; one that is there will be replaced.
        flag: that named it.
        endings: of the file's name, each a format.

    Raises:
        RequestError: the name ends otherwise, or the folder is not there or not writable.
    """
    if path.suffix.lower() not in endings:
        raise RequestError(f"{flag} {path}: the plot's name must end in {', '.join(endings)}")
    check_writable(path, flag)
