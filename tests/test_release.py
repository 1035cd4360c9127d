"""A release: metadata that match each other, the content of the packages, and their use without the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitctl
from tests.conftest import TINY, Cli, made_once

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PYTHON = "Programming Language :: Python :: 3."


def load_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("title", PROJECT["name"]),
        ("version", vitctl.__version__),
        ("abstract", PROJECT["description"]),
        ("license", PROJECT["license"]),
        ("authors", PROJECT["authors"]),
        ("keywords", PROJECT["keywords"]),
    ],
)
def test_the_citation_matches_the_project(key: str, value: object) -> None:
    assert load_yaml("CITATION.cff")[key] == value


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    versions = [f"3.{name.removeprefix(PYTHON)}" for name in PROJECT["classifiers"] if name.startswith(PYTHON)]
    assert PROJECT["requires-python"] == f">={versions[0]}" == f">={PYPROJECT['tool']['mypy']['python_version']}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"
    assert load_yaml(".github/workflows/ci.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"] == versions


@pytest.mark.parametrize(("tag", "code"), [("v{}", 0), ("{}", 1), ("v{}1", 1), ("v0.0.0", 1)])
def test_only_a_tag_with_the_version_is_published(tag: str, code: int) -> None:
    jobs = load_yaml(".github/workflows/publish.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build" and jobs["build"]["needs"] == "ci" and jobs["ci"]["needs"] == "tag"
    environment = {**os.environ, "GITHUB_REF_NAME": tag.format(vitctl.__version__)}
    check = ["bash", "-e", "-c", jobs["tag"]["steps"][-1]["run"]]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("::error::the tag is ") == bool(code)


def test_the_version_names_torch_and_python(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.metadata.version("torch")
    assert cli("--version").out == f"vitctl {vitctl.__version__} (torch {torch}, Python {platform.python_version()})\n"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "(torch not installed, Python 3." in cli("--version").out


# -- packages ---------------------------------------------------------------------------------------------------------


def build(source: Path, kind: str, out: Path) -> Path:
    """Build an ``sdist`` or ``wheel`` without a network, and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", os.fspath(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest) -> Path:
    """Return a folder with ``sdist/`` and ``wheel/``; the wheel is built from the sdist, as ``python -m build`` does."""

    def make(folder: Path) -> None:
        with tarfile.open(build(ROOT, "sdist", folder / "sdist")) as archive:
            archive.extractall(folder / "source", filter="data")
        build(next((folder / "source").iterdir()), "wheel", folder / "wheel")

    return made_once(request.config, "packages", make)


def files_of(*folders: str) -> set[str]:
    """Return the files in folders of the checkout, relative to it."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_only_the_code_with_its_templates_and_sweep_files_and_the_licence(packages: Path) -> None:
    wheel = next((packages / "wheel").iterdir())
    assert wheel.name == f"vitctl-{vitctl.__version__}-py3-none-any.whl"
    info = f"vitctl-{vitctl.__version__}.dist-info"
    code = files_of("vitctl") | {f"vitctl/{name}" for name in files_of("sweeps")}
    assert {Path(name).suffix for name in code} == {".py", ".yaml", ".html", ".css", ".js"}
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(zipfile.ZipFile(wheel).namelist()) == code | about
    assert wheel.stat().st_size < 2 << 20


def test_the_sdist_can_be_tested_and_cited(packages: Path) -> None:
    source = next((packages / "source").iterdir())
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    top = {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml", ".gitignore", "PKG-INFO"}
    assert found == files_of("vitctl", "sweeps", "tests", "docs", ".ci", ".github") | top


# -- use of the wheel -------------------------------------------------------------------------------------------------

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def installed(packages: Path, tmp_path: Path) -> Run:
    """Return a function that runs the installed ``vitctl`` in an empty folder.

    The wheel is in a virtual environment of its own, which sees the packages of the tests' environment.
    """
    place, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    venv.create(place)
    paths = {"base": os.fspath(place), "platbase": os.fspath(place)}
    library = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Path files (.pth) in folders that a path file adds are not read, so an editable install of vitctl is not seen.
    (library / "tests.pth").write_text(
        "\n".join(dict.fromkeys(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")))
    )
    python = place / "bin/python"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VITCTL_DATA")}
    wheel = next((packages / "wheel").iterdir())
    pip = [sys.executable, "-m", "pip", "--python", os.fspath(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", os.fspath(wheel)], check=True, env=environment)

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        command = [os.fspath(place / "bin/vitctl"), *map(str, argv)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    where = [os.fspath(python), "-c", "import vitctl; print(vitctl.__file__)"]
    found = subprocess.run(where, cwd=work, env=environment, capture_output=True, text=True, check=True).stdout
    assert found == f"{library / 'vitctl' / '__init__.py'}\n"
    return run


@pytest.mark.slow
def test_the_wheel_trains_sweeps_and_exports_without_the_checkout(installed: Run, tmp_path: Path) -> None:
    assert installed("--version").stdout.startswith(f"vitctl {vitctl.__version__} (torch ")
    work = tmp_path / "work"

    installed("train", *TINY, "--max-steps", 8, "--name", "first")
    assert json.loads((work / "runs/first/summary.json").read_text())["step"] == 8

    shipped = f"sweeps/digits.yaml not found; using {tmp_path / 'venv'}"
    small = [word for pair in ("limit_train=200", "limit_test=100") for word in ("--fixed", pair)]
    made = installed("sweep", "create", "sweeps/digits.yaml", "--run-cap", 2, "--seed", 0, *small)
    assert shipped in made.stderr
    assert shipped in installed("sweep", "agent", "sweeps/digits.yaml").stderr
    trials = json.loads(installed("sweep", "export", made.stdout.strip(), "--format", "json").stdout)
    assert [trial["state"] for trial in trials] in (["complete"] * 2, ["complete", "pruned"])

    exported = installed("export", "runs/first", "--format", "onnx", "-o", "model.onnx")
    assert "compared on" in exported.stdout and (work / "model.onnx").stat().st_size > 0
