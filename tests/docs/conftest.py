"""A shell in a fresh folder, offline, with a small CIFAR-10."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.docs.images import write_cifar10
from tests.docs.page import REPOSITORY
from tests.docs.running import Shell

CLOSED = "http://127.0.0.1:9"
"""A proxy that refuses all connections."""

VITCTL = """\
import sys
from vitctl.process import child
child.VITCTL = ({path!r},)  # trainings that it starts
from vitctl.cli import main
sys.exit(main())
"""
"""The command ``vitctl``, which the fixture ``python`` runs."""


@pytest.fixture
def shell(tmp_path: Path, python: list[str], request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Return a shell in a folder with ``sweeps/`` and ``tests/`` of the checkout, and ``vitctl`` and ``python``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    vitctl = programs / "vitctl"
    for name, words in (
        ("python", python),
        ("python3", python),
        ("vitctl", [*python, "-c", VITCTL.format(path=str(vitctl))]),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("sweeps", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    home = tmp_path / "home"
    for name in (".local/share/vitctl", "Library/Application Support/vitctl"):
        (home / name).parent.mkdir(parents=True)
        (home / name).symlink_to(made_once(request.config, "data-of-pages", write_cifar10))
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "WANDB_")) and name not in ("COLUMNS", "VITCTL_DATA")
    }
    environment |= {
        "HOME": str(home),
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED),
        "HF_HUB_OFFLINE": "1",
        "LC_ALL": "C.UTF-8",
    }
    shell = Shell(folder, environment)
    yield shell
    shell.close()
