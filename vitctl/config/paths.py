"""Data sets, weights and runs given by name or by path."""

from __future__ import annotations

from pathlib import Path

from vitctl.config.settings import pretrained_word
from vitctl.data import DATASETS
from vitctl.errors import RequestError
from vitctl.models import MODELS, TIMM, ModelEntry
from vitctl.models.sources import CHECKPOINTS, weights_file
from vitctl.registry import or_list, similar

RUNS = Path("runs")
"""Default folder of runs."""


def resolve_dataset(name: str, data_dir: str | None) -> tuple[str, str | None]:
    """Return the name and the absolute folder of a data set; ``name`` may itself be a folder.

    Raises:
        RequestError: no such data set or folder.
    """
    if data_dir is not None and not data_dir.strip():
        raise RequestError("--data-dir is empty", hint="use --data-dir FOLDER, or remove --data-dir")
    if not name.strip():
        raise RequestError("--dataset is empty", hint="use --dataset NAME or --dataset FOLDER, or remove --dataset")
    if name in DATASETS:
        return name, data_dir and str(Path(data_dir).expanduser().absolute())
    if Path(name).expanduser().is_dir():
        if data_dir is not None:
            raise RequestError(f"--data-dir does nothing with --dataset {name}, a folder", hint="remove --data-dir")
        return "folder", str(Path(name).expanduser().absolute())
    names = [each for each in DATASETS if each != "folder"]
    hint = f"use --dataset {or_list(names)}, or a folder of images"
    if Path(name).expanduser().exists():
        raise RequestError(f"--dataset {name} is a file, not a folder", hint=hint)
    if "/" in name or name.startswith((".", "~")):
        raise RequestError(f"--dataset {name}: no such folder", hint=hint)
    near = similar(name, names)
    raise RequestError(f"unknown --dataset {name!r}", hint=f"did you mean {or_list(near)}?" if near else hint)


def resolve_labels(labels: str | None, dataset: str, data_dir: str | None) -> str | None:
    """Return the file of ``--labels``, relative to the folder of the images if it is inside, else absolute.

    It is looked for in the folder of the images, then in the current one.

    Raises:
        RequestError: no such file, or the data set is not a folder of images.
    """
    if not labels:
        return labels
    if dataset != "folder" or data_dir is None:
        raise RequestError(
            f"--labels does nothing with --dataset {dataset}", hint="remove --labels, or use --dataset DIR"
        )
    root = Path(data_dir)
    for path in (root / labels, Path(labels).expanduser().absolute()):
        if path.is_file():
            return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    raise RequestError(f"--labels {labels} not found", hint=f"use --labels with a file in {root}, or its full path")


def is_run(path: Path) -> bool:
    """Return whether ``path`` is the folder of a run."""
    return (path / "config.json").is_file()


def find_run(path: Path, runs_dir: Path = RUNS) -> Path:
    """Return the run's folder for its path, its name, or the folder of its checkpoints; other paths are returned as is.

    Args:
        path: a path, or the name of a run in ``runs_dir``.
        runs_dir: folder of runs.
    """
    if not path.is_file() and not is_run(path) and is_run(runs_dir / path):
        return runs_dir / path
    return path.parent if path.name == CHECKPOINTS and is_run(path.parent) else path


def resolve_pretrained(net: str, entry: ModelEntry, value: str | None) -> str:
    """Return ``true``, ``false``, or the absolute path of the file, run or folder that ``--pretrained`` names.

    Raises:
        RequestError: no such weights.
    """
    if value is None:
        return "true" if entry.pretrained else "false"
    word = pretrained_word(value)
    if word == "true" and not entry.weights:
        names = [*(name for name, row in MODELS.items() if row.weights), f"{TIMM}NAME"]
        raise RequestError(
            f"no pretrained weights for --net {net}", hint=f"use --net {or_list(names)}, or --pretrained FILE"
        )
    if word in ("true", "false"):
        return word
    path = find_run(Path(word).expanduser()).absolute()
    weights_file(path, f"--pretrained {value}")
    return str(path)
