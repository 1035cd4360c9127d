"""What the sweep's tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vitctl.sweep.file import SweepFile, parse_sweep_file

FIXTURES = Path(__file__).parent / "fixtures"
SHIPPED = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def fixture(name: str) -> Any:
    """Return a JSON file that W&B's own package made; see fixtures/make.py."""
    return json.loads((FIXTURES / name).read_text())


def sweep_text(parameters: Any, method: str = "random", **more: Any) -> str:
    """Return a sweep file; JSON is YAML."""
    return json.dumps(
        {"method": method, "metric": {"name": "val_acc", "goal": "maximize"}, "parameters": parameters, **more}
    )


def sweep_file(parameters: Any, method: str = "random", **more: Any) -> SweepFile:
    """Return a parsed sweep file."""
    return parse_sweep_file(sweep_text(parameters, method, **more), "test.yaml")


@pytest.fixture
def lr_file() -> SweepFile:
    """Return a sweep over the learning rate and the weight decay."""
    return sweep_file(
        {
            "lr": {"distribution": "q_log_uniform_values", "min": 1e-4, "max": 2e-3, "q": 1e-4},
            "weight_decay": {"distribution": "q_uniform", "min": 0.0, "max": 0.05, "q": 0.005},
            "opt": {"value": "adam"},
        }
    )


def postgres_url() -> str | None:
    """Return the URL of a PostgreSQL that tests may use, or None."""
    return os.environ.get("VITCTL_TEST_POSTGRES") or None


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str:
    """Return what ``--storage`` gets: nothing for SQLite, or the URL of a PostgreSQL, where there is one."""
    if request.param == "sqlite":
        return ""
    url = postgres_url()
    if url is None:
        pytest.skip("set VITCTL_TEST_POSTGRES to the URL of an empty database, such as postgresql://user@host/test")
    pytest.importorskip("psycopg")
    return url
