"""What the tests run in place of lines of the documentation that take long, and which lines cannot run, and why.

Lines that no rule matches run as they are, in a folder that has ``sweeps/`` and ``tests/`` of the checkout, with a small
CIFAR-10 of generated images in place of the real one. Each rule must match a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.images import write_photos


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A replacement in shell lines and Python blocks.

    Attributes:
        pattern: regular expression of what to replace; only the first match is.
        replacement: text for it, with groups as ``\\1``.
        why: reason.
        pages: the only pages for which it holds, as paths in the repository; none for all.
    """

    pattern: str
    replacement: str
    why: str
    pages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Shell lines and Python blocks that are not run, even with the substitutions.

    Attributes:
        pattern: regular expression of a part of them.
        reason: why they cannot run.
        pages: the only pages for which it holds, as paths in the repository; none for all.
    """

    pattern: str
    reason: str
    pages: tuple[str, ...] = ()


FEW = "--limit-train 200 --limit-test 100"
"""Flags that shorten an epoch of a built-in data set."""

SUBSTITUTIONS: tuple[Substitution, ...] = (
    Substitution(
        pattern=r"^python3 -m venv \.venv && \.venv/bin/pip install -q \S+ && \.venv/bin/",
        replacement="",
        why="installs packages from the network; .ci/run and the tests of the release do so",
    ),
    Substitution(
        pattern=(
            r"\bvitctl train (?=.*--dataset digits\b)"
            r"(?!.*--(?:limit-train|lr-finder|preview-batch|dry-run|max-steps|max-time|print-config)\b)"
        ),
        replacement=f"vitctl train {FEW} ",
        why="an epoch on all digits takes seconds",
    ),
    Substitution(
        pattern=r"\bvitctl train (?=.*--dataset digits\b)(?!.*--(?:net|size|patch|recipe|dry-run|print-config)\b)",
        replacement="vitctl train --size 8 ",
        why="a sixteenth of the cost",
    ),
    Substitution(
        pattern=r"(vitctl bench-device .*)--max-time \S+",
        replacement=r"\1--max-time 5s",
        why="it takes that long",
    ),
    Substitution(
        pattern=r"\bbench-device cpu --opt adam --lr 1e-4$",
        replacement="bench-device cpu --opt adam --lr 1e-4 --bs 64 --max-time 15s",
        why="a step of vit_small at batch size 512 takes ten seconds",
        pages=("docs/comparing.md",),
    ),
    Substitution(
        pattern=r"--max-time (?:60s|1m|10m|1h)\b",
        replacement="--max-time 20s",
        why="it takes that long",
    ),
    Substitution(
        pattern=r"^vitctl doctor(?: --full)?$",
        replacement="vitctl doctor --help",
        why="it takes a minute or more; docs/precision.md runs it",
        pages=("docs/get-started.md", "docs/troubleshooting.md", "docs/trust.md"),
    ),
    Substitution(
        pattern=r"--opt adan --device mps\b",
        replacement="--opt adan --device cpu --epochs 1 --limit-train 64",
        why="needs a Mac; an epoch of vit_small takes minutes",
        pages=("README.md",),
    ),
    Substitution(
        pattern=r"\bbench-device cpu mps$",
        replacement="bench-device cpu --bs 16 --max-time 5s",
        why="needs a Mac; a step at batch size 512 takes seconds",
        pages=("README.md",),
    ),
    Substitution(
        pattern=r"\bcompare-optimizers adan adam adamw --epochs 5\b",
        replacement="compare-optimizers adan adam adamw --net cct_2 --epochs 1",
        why="vit_small takes minutes",
        pages=("README.md",),
    ),
    Substitution(
        pattern=r"(\bcompare-optimizers (?!.*--dataset digits).*)--seeds 3\b",
        replacement=r"\1--seeds 2 --max-steps 2",
        why="trains up to fifteen runs",
    ),
    Substitution(
        pattern=r"\bsweep agent sweeps/adan_betas_decay\.yaml$",
        replacement="sweep agent sweeps/adan_betas_decay.yaml --fixed net=cct_2 --fixed epochs=1 --run-cap 2",
        why="runs for hours",
        pages=("README.md",),
    ),
    Substitution(
        pattern=r"\bruns/NAME\b",
        replacement='"$(ls -d runs/cct_2-adamw-digits-* | tail -n 1)"',
        why="the name that train printed",
        pages=("README.md",),
    ),
    Substitution(
        pattern=r"(-m tests\.measurements\.cards .*--seeds \d+)(?: \d+)+",
        replacement=r"\1",
        why="one seed instead of several",
    ),
)
"""Replacements, which are made in this order."""

SKIPPED: tuple[Skip, ...] = (
    Skip(pattern=r"-m pytest\b", reason="runs all tests, and so this one"),
    Skip(pattern=r"\bpip install\b", reason="installs packages from the network"),
    Skip(
        pattern=r"--net hybrid_small:mlp_ratio=4 --epochs 3$",
        reason="needs a reader who presses Ctrl-C; tests/process and tests/training stop such runs",
        pages=("docs/train.md",),
    ),
    Skip(pattern=r"^import pandas\b", reason="needs pandas, which the tests do not install"),
    Skip(pattern=r"^tensorboard --logdir\b", reason="is a server, which does not end"),
    Skip(pattern=r"^wandb login\b", reason="needs an account of W&B"),
    Skip(pattern=r"--engine wandb\b|\bENTITY/PROJECT/ID\b", reason="needs an account of W&B"),
    Skip(pattern=r"\bpostgresql://", reason="needs a server; the tests of sweeps start one"),
    Skip(pattern=r"--gpus all\b", reason="needs GPUs"),
)
"""Lines that cannot run."""

QUICK: frozenset[str] = frozenset(
    {"docs/augmentation.md", "docs/get-started.md", "docs/optimizers.md", "docs/reports.md", "docs/trust.md"}
)
"""Pages whose lines take less than about 20 seconds together; the tests of the others are slow."""

FILES: Mapping[str, Callable[[Path], None]] = {"README.md": write_photos}
"""Functions that write what a reader of a page has into the folder."""
