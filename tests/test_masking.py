"""Masking of passwords in storage URLs, which are never shown or stored."""

from __future__ import annotations

import pytest

from vitctl.errors import RequestError
from vitctl.sweep.storage import parse_url, redacted
from vitctl.units import mask_passwords

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}%40x@h:5432/db",
        f"postgresql://h/db?user=u&password={SECRET}",
        f"postgresql://u:x@h/db?sslpassword={SECRET}",
    ],
)
def test_passwords_of_valid_urls_are_masked(text: str) -> None:
    assert SECRET not in mask_passwords(text)
    shown = redacted(parse_url(text))
    assert SECRET not in shown and "h" in shown and "db" in shown


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql:u:{SECRET}@h/db",
        f"postgresql://u:p@{SECRET}@h/db",
        f"postgresql://u:p {SECRET}@h/db",
        f"mysql://u:{SECRET}@h/db",
        f"sqlite://u:{SECRET}@h/",
    ],
)
def test_passwords_of_refused_urls_are_masked(text: str) -> None:
    assert SECRET not in mask_passwords(text)
    try:
        shown = redacted(parse_url(text))
    except RequestError as refused:
        shown = str(refused)
    assert SECRET not in shown


def test_other_words_are_not_masked() -> None:
    for word in ("--net", "vit:depth=3", "runs/a@b", "adan:lr=0.1,eps=1e-8", "C:\\data", "sqlite:///a.db"):
        assert mask_passwords(word) == word
