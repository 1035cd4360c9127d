"""Generated images and data sets, and a cache folder for each test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data import small_sets
from vitctl.data.cifar import CIFAR10, CIFAR100
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.named import NAMED
from vitctl.errors import VitctlWarning

Counts = Mapping[str, Mapping[str, int]]
MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; no data sets are found by default."""
    monkeypatch.setenv("VITCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("VITCTL_DATA", raising=False)
    return tmp_path / "cache"


def noise(seed: int, width: int = 20, height: int = 20) -> np.ndarray:
    """Return a random image, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that writes PNG files for counts such as ``{"train": {"cat": 3}}`` and returns the root."""

    def make(counts: Counts, *, name: str = "images", side: int = 20) -> Path:
        root = tmp_path / name
        seed = 0
        for part, classes in counts.items():
            for label, count in classes.items():
                folder = root / part / label
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(noise(seed, side, side)).save(folder / f"{i:03}.png")
                    seed += 1
        return root

    return make


@pytest.fixture
def pets(make_folder: MakeFolder) -> Path:
    """An image folder with two classes, 5 + 4 training images and 2 + 3 test images of 20x20."""
    return make_folder({"train": {"cat": 5, "dog": 4}, "test": {"cat": 2, "dog": 3}})


@pytest.fixture
def load_small(make_folder: MakeFolder, tmp_path: Path) -> Callable[[str], Dataset]:
    """Return a function that loads any data set of the table from a few generated images."""

    def load(name: str) -> Dataset:
        counts: dict[str, Counts | None] = {
            "digits": None,
            "folder": {"train": {"cat": 5, "dog": 4}, "test": {"cat": 2, "dog": 3}},
            "cifar10": {part: dict.fromkeys(CIFAR10.classes, 2) for part in ("train", "test")},
            "cifar100": {part: dict.fromkeys(CIFAR100.classes, 2) for part in ("train", "test")},
        }
        if name in NAMED:
            small, files = small_sets.small(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(NAMED, name, small)
                root = small_sets.write(files, tmp_path / name)
                return load_dataset(name, data_dir=str(root), size=16, skip_bad_images=False)
        if name not in counts:
            pytest.fail(f"no small version of the data set {name!r}: add its image counts to this fixture")
        made = counts[name]
        root = tmp_path / name
        if made is not None and not root.exists():
            make_folder(made, name=name, side=32)
        data_dir = str(root) if made is not None else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VitctlWarning)  # about CIFARs with few images
            return load_dataset(name, data_dir=data_dir, size=16, skip_bad_images=False)

    return load
