"""The settings of a training run as one frozen, checked record.

``config.json`` and each checkpoint store it, so that a default that changes between versions does not change what an old
run means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.config.checks import CHECKS
from vitctl.config.settings import Settings
from vitctl.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Settings that go together.

    Build one with :func:`vitctl.config.resolve_config`, which takes defaults from the recipe and the tables, or with
    :meth:`from_dict` from the output of :meth:`to_dict`.

    Raises:
        RequestError: a value of the wrong type, out of range, or at odds with another.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for check in CHECKS:
            check(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Rebuild a record from the output of :meth:`to_dict`.

        Raises:
            RequestError: a setting that this version does not know, or a bad value.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise RequestError(
                f"the stored settings have {', '.join(unknown)}, which this version of vitctl does not know"
            )
        return cls(**values)
