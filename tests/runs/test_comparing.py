"""What differs between runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.runs.fabricated import make_run
from vitctl.runs.comparing import SECTIONS, differences, remarks
from vitctl.runs.stored import StoredRun, open_run


def open_runs(folder: Path, *names: str) -> list[StoredRun]:
    return [open_run(Path(name), folder) for name in names]


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, summary={"note": math.nan}, images={"train/x": "1"})
    runs = open_runs(tmp_path, "a", "b")
    found = differences(runs)
    assert found == {section: {} for section in SECTIONS} and remarks(runs, found) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"settings": {"lr": 0.5}}, {"settings": {"lr": [0.002, 0.5]}}),
        ({"settings": {"net_options": {"depth": 2}}}, {"settings": {"net_options.depth": [6, 2]}}),
        ({"settings": {"lr_scale": {"head": 2.0}}}, {"settings": {"lr_scale.head": [None, 2.0]}}),
        ({"test_acc": 81.0}, {"results": {"test_acc": [80.0, 81.0]}}),
        ({"summary": {"card": {"below": True}}}, {"results": {"card.below": [None, True]}}),
        ({"session": {"git_commit": "2" * 40}}, {"code": {"git_commit": ["1" * 40, "2" * 40]}}),
        ({"session": {"torch": None}}, {"code": {"torch": ["2.14.1", None]}}),
        ({"session": {"device": "cuda:0"}}, {"machine": {"device": ["cpu", "cuda:0"]}}),
        ({"summary": {"train_images": 9}}, {"data": {"train_images": [1000, 9]}}),
    ],
)
def test_only_what_differs_is_found(tmp_path: Path, change: dict[str, Any], found: dict[str, Any]) -> None:
    make_run(tmp_path / "a", settings={"net_options": {"depth": 6}, "lr": 0.002})
    settings = {"net_options": {"depth": 6}, "lr": 0.002, **change.pop("settings", {})}
    make_run(tmp_path / "b", settings=settings, **change)
    everything = differences(open_runs(tmp_path, "a", "b"))
    assert {section: values for section, values in everything.items() if values} == found


def test_three_runs_have_three_values(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_run(tmp_path / name, settings={"seed": seed})
    assert differences(open_runs(tmp_path, "a", "b", "c"))["settings"] == {"seed": [1, 1, 2]}


def test_an_earlier_version_without_a_setting_does_not_differ_from_its_default(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name)
    document = json.loads((tmp_path / "a" / "config.json").read_text())
    del document["config"]["tta"], document["config"]["holdout_by"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(document))
    assert differences(open_runs(tmp_path, "a", "b"))["settings"] == {}


def test_changed_images_are_counted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", images={"train/x": "1", "train/y": "2"})
    make_run(tmp_path / "b", images={"train/x": "1", "train/y": "3", "train/z": "4"})
    make_run(tmp_path / "c", images={"train/x": "1", "train/y": "2"})
    found = differences(open_runs(tmp_path, "a", "b", "c"))["data"]
    assert found["images"] == ["2 images", "1 added, 1 of other content (such as 'train/z')", None]
    (tmp_path / "b" / "data.json.gz").unlink()
    assert differences(open_runs(tmp_path, "a", "b"))["data"].keys() == {"data_sha256"}


def test_digests_that_depend_on_settings_are_not_called_other_images(tmp_path: Path) -> None:
    make_run(tmp_path / "a", images={"train/x": "1"})
    make_run(tmp_path / "b", images={"train/x": "2"}, settings={"size": 64})
    runs = open_runs(tmp_path, "a", "b")
    found = differences(runs)
    assert "images" not in found["data"]
    assert remarks(runs, found) == ["data_sha256 depends on size, so the images may be the same"]


def test_damage_is_remarked(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name)
    (tmp_path / "b" / "config.json").write_text("{")
    runs = open_runs(tmp_path, "a", "b")
    found = differences(runs)
    assert found["results"]["state"] == ["finished", "damaged"]
    assert [note.partition(":")[0] for note in remarks(runs, found)] == ["b"]
