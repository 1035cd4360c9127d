"""Manifests: digest, differences, and files."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from vitctl.data.manifest import ImageEntry, Manifest, require_unchanged
from vitctl.errors import RequestError


def manifest(**contents: str) -> Manifest:
    return Manifest.of((f"train/a/{name}", ImageEntry(10, content)) for name, content in contents.items())


THREE = manifest(x="0", y="1", z="2")


def test_the_digest_depends_on_names_and_contents_only() -> None:
    resized = Manifest.of((name, entry._replace(size=7)) for name, entry in reversed(THREE.images.items()))
    assert resized.digest == THREE.digest
    others = [
        manifest(x="0", y="1"),
        manifest(x="0", y="1", z="3"),
        manifest(x="0", y="2", z="1"),
        manifest(w="0", y="1", z="2"),
    ]
    assert len({THREE.digest, *(other.digest for other in others)}) == 5


def test_both_unicode_forms_of_a_name_are_the_same_image() -> None:
    first, second = (
        Manifest.of([(unicodedata.normalize(form, "train/é"), ImageEntry(1, "0"))]) for form in ("NFC", "NFD")
    )
    assert first == second and first.digest == second.digest


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (manifest(x="0", y="1", z="2", v="3", w="4"), "2 added (such as 'train/a/v')"),
        (manifest(x="0", y="1"), "1 removed (such as 'train/a/z')"),
        (manifest(x="0", y="5", z="6"), "2 of other content (such as 'train/a/y')"),
        (manifest(w="0", x="9", z="2"), "1 added, 1 removed, 1 of other content (such as 'train/a/w')"),
    ],
)
def test_changes_are_counted(now: Manifest, changes: str) -> None:
    assert now.changes_since(THREE) == changes


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    written = Manifest.of([("train/\udc94/\n\t,é", ImageEntry(3, "ab")), ("val/b/1", ImageEntry(4, "cd"))])
    written.write(tmp_path / "data.json.gz")
    read = Manifest.read(tmp_path / "data.json.gz")
    assert read == written and read.digest == written.digest


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-20],
    "empty": lambda content: b"",
    "no gzip": gzip.decompress,
    "flipped": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "foreign": lambda content: gzip.compress(b"[1, 2]"),
    "later": lambda content: gzip.compress(json.dumps({"format": 2, "images": []}).encode()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_reads_as_none(damage: str, tmp_path: Path) -> None:
    THREE.write(tmp_path / "m")
    (tmp_path / "m").write_bytes(DAMAGES[damage]((tmp_path / "m").read_bytes()))
    assert Manifest.read(tmp_path / "m") is None and Manifest.read(tmp_path / "missing") is None


class TestRequireUnchanged:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        THREE.write(tmp_path / "m")
        return tmp_path / "m"

    def check(self, now: Manifest | None, recorded: str | None, file: Path, *, accept: bool = False) -> str | None:
        return require_unchanged(now, recorded, file, "DIR", accept=accept, hint="restore them")

    @pytest.mark.parametrize(
        ("now", "recorded"),
        [(THREE, THREE.digest), (manifest(x="0"), None), (manifest(x="0"), ""), (None, THREE.digest)],
    )
    def test_unchanged_and_unrecorded_images_pass(self, now: Manifest | None, recorded: str | None, file: Path) -> None:
        assert self.check(now, recorded, file) is None

    def test_changes_are_refused_unless_accepted(self, file: Path) -> None:
        now = manifest(x="0", y="1")
        with pytest.raises(
            RequestError, match=r"in DIR changed since the run started: 1 removed .*\nhint: restore them"
        ):
            self.check(now, THREE.digest, file)
        assert self.check(now, THREE.digest, file, accept=True) == "1 removed (such as 'train/a/z')"

    @pytest.mark.parametrize("recorded", ["another manifest's", THREE.digest])
    def test_without_the_runs_manifest_nothing_more_is_known(self, recorded: str, file: Path) -> None:
        if recorded == THREE.digest:
            file.unlink()
        with pytest.raises(RequestError, match=r"in DIR changed since the run started\nhint"):
            self.check(manifest(x="0"), recorded, file)
        assert self.check(manifest(x="0"), recorded, file, accept=True) == "changed"
