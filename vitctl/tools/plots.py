"""Checks for the paths of plots, made before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitctl.errors import RequestError
from vitctl.files import check_replaceable
from vitctl.registry import or_list


def check_plot(path: Path, flag: str, suffixes: Sequence[str]) -> None:
    """Refuse a plot that cannot be written, or that would replace something else than a plot.

    Args:
        path: the plot.
        flag: the flag that named it.
        suffixes: valid suffixes, each of a file format.

    Raises:
        RequestError: another suffix; or see :func:`vitctl.files.check_replaceable`.
    """
    if path.suffix.lower() not in suffixes:
        endings = or_list(suffixes)
        raise RequestError(
            f"{flag} {path} does not end in {endings}", hint=f"use {flag} with a path that ends in {endings}"
        )
    check_replaceable(path, flag, suffixes)
