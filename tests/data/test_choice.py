"""Choice of images by hash."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np

from vitctl.data.choice import identity_keys, keys_below


def test_a_key_is_the_start_of_a_sha_256() -> None:
    digest = hashlib.sha256(b"7:caf\xc3\xa9/1.png").digest()
    assert identity_keys(["café/1.png"], 7).tolist() == [int.from_bytes(digest[:8], "big")]


def test_both_unicode_forms_of_a_name_have_the_same_key() -> None:
    forms = [unicodedata.normalize(form, "café/é.png") for form in ("NFC", "NFD")]
    assert len(set(forms)) == 2 and len(set(identity_keys(forms, 0).tolist())) == 1


def test_names_that_are_no_valid_utf_8_have_keys() -> None:
    assert len(set(identity_keys(["a/\udc94L.png", "a/\udc8c.png"], 0).tolist())) == 2


def test_an_image_alone_in_its_class_is_not_chosen() -> None:
    labels = np.array([0, 1, 1])
    assert keys_below(0.9, labels, np.array([1, 1, 2], dtype=np.uint64)).tolist() == [False, True, False]


def test_equal_keys_leave_an_image_on_each_side() -> None:
    assert keys_below(0.5, np.array([0, 0, 0]), np.array([5, 5, 5], dtype=np.uint64)).sum() == 2
