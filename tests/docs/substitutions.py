"""What the tests run in place of lines of the documentation that take long, and which lines cannot run, and why.

Lines that no rule matches run as they are, with a small CIFAR-10 of generated images (``test_pages.py``) in place of the
real one. Each rule must match a line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A replacement in the lines that a pattern matches.

    Attributes:
        pattern: regular expression of the part of a line or Python block to replace; the first match counts.
        replacement: text for it, with groups as ``\\1``.
        why: reason.
        page: the only page for which it holds, as a path in the repository; empty for all.
    """

    pattern: str
    replacement: str
    why: str
    page: str = ""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Lines that are not run.

    Attributes:
        pattern: regular expression that is searched for in the line or Python block.
        reason: why they cannot run.
        page: the only page for which it holds, as a path in the repository; empty for all.
    """

    pattern: str
    reason: str
    page: str = ""


FEW = "--limit-train 200 --limit-test 100"
"""Flags that shorten an epoch on a built-in data set to seconds."""

SUBSTITUTIONS: tuple[Substitution, ...] = (
    Substitution(
        pattern=r"\bvitctl train (?=.*--dataset digits\b)(?!.*--(?:limit-train|lr-finder|preview-batch|dry-run|max-steps)\b)",
        replacement=rf"vitctl train {FEW} ",
        why="an epoch on all digits takes seconds",
    ),
    Substitution(
        pattern=r"--max-time (?:60s|1m|10m|1h)\b",
        replacement="--max-time 12s",
        why="it takes that long",
    ),
    Substitution(
        pattern=r"(-m tests\.measurements\.cards .*--seeds \d+)(?: \d+)+",
        replacement=r"\1",
        why="one seed instead of several",
    ),
)
"""Replacements, which are made in this order."""

SKIPPED: tuple[Skip, ...] = (Skip(pattern=r"\bpip install\b", reason="installs packages from the network"),)
"""Lines that cannot run."""

SLOW: frozenset[str] = frozenset({"docs/recipes.md"})
"""Pages whose lines take more than about 40 seconds together."""
