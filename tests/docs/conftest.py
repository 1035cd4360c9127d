"""A shell in a fresh folder, offline, with a small CIFAR-10."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import made_once
from tests.docs.page import REPOSITORY
from tests.docs.running import Shell
from vitctl.data.cifar import CIFAR10

CLOSED = "http://127.0.0.1:9"
"""A proxy that refuses all connections."""

COUNTS = {"train": 40, "test": 10}
"""Images per class of the small CIFAR-10."""

VITCTL = """\
import sys
from vitctl.process import child
child.VITCTL = ({path!r},)  # trainings that it starts
from vitctl.cli import main
sys.exit(main())
"""
"""The command ``vitctl``, which the fixture ``python`` runs."""


def write_cifar10(data: Path) -> None:
    """Write random images, brighter for higher classes, as ``cifar10/PART/CLASS/NUMBER.png``."""
    for part, count in COUNTS.items():
        for label, name in enumerate(CIFAR10.classes):
            folder = data / "cifar10" / part / name
            folder.mkdir(parents=True)
            random = np.random.default_rng([label, count])
            for number in range(count):
                pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8) + np.uint8(13 * label)
                Image.fromarray(pixels).save(folder / f"{number:04}.png")


@pytest.fixture
def shell(tmp_path: Path, python: list[str], request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Return a shell in a folder that has only the sweep files, with ``vitctl`` and ``python`` on its path."""
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
    (folder / "sweeps").symlink_to(REPOSITORY / "sweeps")
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "WANDB_")) and name != "COLUMNS"
    }
    environment |= {
        "HOME": str(home),
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "VITCTL_DATA": str(made_once(request.config, "data-of-pages", write_cifar10)),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED),
        "HF_HUB_OFFLINE": "1",
        "LC_ALL": "C.UTF-8",
    }
    shell = Shell(folder, environment)
    yield shell
    shell.close()
