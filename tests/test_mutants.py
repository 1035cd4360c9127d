"""The faults of :mod:`tests.mutants` still fit the code; whether the tests find them is shown by running it."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    text = (ROOT / "vitctl" / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert all((ROOT / place).exists() for place in mutant.tests.split())


def test_there_are_thirty() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
