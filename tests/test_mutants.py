"""The patches of :mod:`tests.mutants` apply to the code; running that module shows whether tests detect the faults."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_patch_of_each_mutant_applies(mutant: Mutant) -> None:
    text = (ROOT / "vitctl" / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert all((ROOT / place).exists() for place in mutant.tests.split())


def test_there_are_at_least_thirty_mutants() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
