"""All settings of a training run as one frozen, checked record.

It is stored in ``config.json`` and in each checkpoint, so that a new default does not change the meaning of an old run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.config.checks import CHECKS
from vitctl.config.settings import Settings
from vitctl.errors import RequestError
from vitctl.models import MODELS


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Complete and consistent settings of a training run.

    Build one with :func:`vitctl.config.resolve_config`, which takes defaults from the recipe and the tables, or with
    :meth:`from_dict` from the output of :meth:`to_dict`.

    Raises:
        RequestError: a value has the wrong type, is out of range, or conflicts with another.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for check in CHECKS:
            check(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Rebuild a record from the output of :meth:`to_dict`, perhaps of an earlier version with fewer options.

        Raises:
            RequestError: a setting is unknown to this version, or a value is invalid.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise RequestError(
                f"settings unknown to this version of vitctl: {', '.join(unknown)}",
                hint="upgrade vitctl: pip install --upgrade vitctl",
            )
        entry, options = MODELS.get(values.get("net", "")), values.get("net_options")
        if entry and options:
            earlier = {
                name: option.default if option.earlier is None else option.earlier
                for name, option in entry.options.items()
            }
            values = {**values, "net_options": {**earlier, **options}}
        return cls(**values)
