"""Checks for the paths of plots."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitctl.errors import RequestError
from vitctl.tools.plots import check_plot

SUFFIXES = (".png", ".svg")


def test_a_new_file_or_an_earlier_plot_is_accepted(tmp_path: Path) -> None:
    check_plot(tmp_path / "new.svg", "--out", SUFFIXES)
    (tmp_path / "old.PNG").write_bytes(b"\x89PNG")
    check_plot(tmp_path / "old.PNG", "--out", SUFFIXES)
    (tmp_path / "link.png").symlink_to("old.PNG")
    check_plot(tmp_path / "link.png", "--out", SUFFIXES)


@pytest.mark.parametrize("name", ["plot", "plot.jpg", "png"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"does not end in \.png or \.svg\nhint: use --out with a path"):
        check_plot(tmp_path / name, "--out", SUFFIXES)


@pytest.mark.parametrize("target", ["config.json", "summary.json", "checkpoints/last.pt"])
def test_a_file_of_a_run_is_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in {"config.json", target}:
        (tmp_path / name).write_text("{}")
    (tmp_path / "plot.png").symlink_to(target)
    with pytest.raises(RequestError, match="was not replaced"):
        check_plot(tmp_path / "plot.png", "--out", SUFFIXES)


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "plot.png").symlink_to("notes.txt")
    with pytest.raises(RequestError, match=r"is not a \.png/\.svg file; it was not replaced"):
        check_plot(tmp_path / "plot.png", "--out", SUFFIXES)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no such folder: .*missing\nhint: create it: mkdir -p"):
        check_plot(tmp_path / "missing" / "plot.png", "--out", SUFFIXES)
