"""The images that the trials of a sweep ran on, by the digest that each run records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from vitctl.config import setting_of
from vitctl.data.manifest import DATA_SHA256
from vitctl.runs.stored import READING
from vitctl.sweep.ledger import IMAGES, root_of

_CHOICES = ("dataset", "data_dir", "labels")
"""Settings that select the images; trials with different values of them may run on different images."""


def images_of(run: Path, params: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the digest of a run's images, and a key of the settings on which it depends.

    Digests are comparable if the keys are equal.

    Args:
        run: folder of the run.
        params: varied parameters of the trial.

    Returns:
        Digest and key; None if no digest is recorded, as for data sets without image files.
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        document = json.loads((run / "config.json").read_text(encoding="utf-8"))
        digest = document["sessions"][-1][DATA_SHA256]
        reading = {name: document["config"].get(name) for name in READING}
        chosen = {name: value for name, value in params.items() if setting_of(name) in _CHOICES}
        return str(digest), json.dumps([reading, chosen], sort_keys=True)
    return None


@dataclass(frozen=True)
class SweepImages:
    """Digests of the images that a sweep's trials ran on.

    Attributes:
        digests: digest of the first trial for each key of :func:`images_of`.
        others: digests that differ from that of the first trial with the same key, by number of the trial.
    """

    digests: tuple[str, ...]
    others: Mapping[int, str]

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> SweepImages:
        """Compare the digests that trials recorded."""
        first: dict[str, str] = {}
        others: dict[int, str] = {}
        for trial in sorted(trials, key=root_of):
            digest, key = trial.user_attrs.get(IMAGES, (None, ""))
            if digest is not None and digest != first.setdefault(key, digest):
                others[root_of(trial)] = digest
        return cls(tuple(first.values()), others)

    def describe_others(self) -> str | None:
        """Return a sentence that names the trials with other images; None if there are none."""
        if not self.others:
            return None
        named = ", ".join(f"{number} ({digest[:12]})" for number, digest in self.others.items())
        return f"not comparable: trials that ran on other images than the first ones: {named}"
