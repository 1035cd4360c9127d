"""The images that the trials of a sweep ran on, by the digest that each run records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from vitctl.sweep.file import setting_of
from vitctl.sweep.ledger import IMAGES, root_of

_READING = ("size", "fit", "value_range", "skip_bad_images", "test_fraction")
"""Settings of a run on which the digest of the same images depends."""

_CHOICES = ("dataset", "data_dir", "labels")
"""Settings that name the images; trials that vary them are meant to run on different ones."""


def images_of(run: Path, params: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the digest of a run's images, and what it depends on besides the images.

    Args:
        run: folder of the run.
        params: varied parameters of the trial.

    Returns:
        None if the images have no files, or no digest is recorded.
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        document = json.loads((run / "config.json").read_text(encoding="utf-8"))
        digest = document["sessions"][-1]["data_sha256"]
        reading = {name: document["config"].get(name) for name in _READING}
        chosen = {name: value for name, value in params.items() if setting_of(name) in _CHOICES}
        return str(digest), json.dumps([reading, chosen], sort_keys=True)
    return None


@dataclass(frozen=True)
class SweepImages:
    """The images of a sweep.

    Attributes:
        digests: those of the first trials, one for each way of reading or choice of images.
        others: trials that ran on other images than the first one with the same settings, with their digests.
    """

    digests: tuple[str, ...]
    others: Mapping[int, str]

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> SweepImages:
        """Compare the images of trials."""
        first: dict[str, str] = {}
        others: dict[int, str] = {}
        for trial in sorted(trials, key=root_of):
            digest, reading = trial.user_attrs.get(IMAGES, (None, ""))
            if digest is not None and digest != first.setdefault(reading, digest):
                others[root_of(trial)] = digest
        return cls(tuple(first.values()), others)

    def describe_others(self) -> str | None:
        """Return a sentence that names the trials with other images; None if there are none."""
        if not self.others:
            return None
        named = ", ".join(f"{number} ({digest[:12]})" for number, digest in self.others.items())
        return f"not comparable: trials that ran on other images than the first ones: {named}"
