"""The table of known faults says whom they affect."""

from __future__ import annotations

import pytest

from vitctl.devices.faults import FAULTS, KnownFault


def fault(**fields: object) -> KnownFault:
    return KnownFault(key="x", problem="", threads=(1,), remedy="", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "version", "backend", "affected"),
    [
        ({}, "2.9.0", "mps", True),
        ({}, "2.14.1+cpu", "mps", True),
        ({}, "2.15.0a0+git1a2b3c4", "mps", None),
        ({}, "2.14.1", "cpu", False),
        ({"fixed": (2, 13)}, "2.12.1", "mps", True),
        ({"fixed": (2, 13)}, "2.13.0", "mps", False),
        ({"fixed": (2, 13)}, "2.20.0", "mps", False),
        ({"lasting": True}, "3.0.0", "mps", True),
        ({"lasting": True}, "3.0.0", "cuda", False),
        ({"backends": ("cuda",)}, "2.14.0", "cuda", True),
    ],
)
def test_a_fault_affects_its_back_end_until_fixed(
    fields: dict[str, object], version: str, backend: str, affected: bool | None
) -> None:
    assert fault(**fields).affects(version, backend) is affected


def test_faults_have_unique_keys_and_threads() -> None:
    assert len({each.key for each in FAULTS}) == len(FAULTS) == 12
    assert all(each.threads for each in FAULTS)
    assert FAULTS[0].links[0] == "https://github.com/pytorch/pytorch/issues/175190"
