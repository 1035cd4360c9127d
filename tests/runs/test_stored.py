"""Reading runs from their folders: states, damage, earlier versions, and folders that are not runs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import vitctl
from tests.runs.fabricated import SETTINGS, epoch_record, make_run
from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.files import PROBE, is_locked
from vitctl.runs.stored import DEPTH, find_folders, open_run, read_run, read_runs
from vitctl.training.run_folder import RunFolder


def nothing(run: Path) -> None:
    pass


def fail(run: Path) -> None:
    (run / "failure.json").write_text('{"kind": "not_finite", "message": "the loss is not finite", "step": 7}')


def damage(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(content) and None


@pytest.mark.parametrize(
    ("test_acc", "change", "state", "note"),
    [
        (80.0, nothing, "finished", None),
        (None, nothing, "interrupted", None),
        (None, fail, "failed", None),
        (80.0, fail, "finished", None),
        (None, damage("failure.json", "{"), "interrupted", None),
        (80.0, damage("config.json", "{"), "damaged", "config.json is damaged: "),
        (80.0, damage("config.json", ""), "damaged", "config.json is damaged: "),
        (80.0, damage("config.json", "[]"), "damaged", "config.json is damaged: it is not a JSON object"),
        (
            80.0,
            damage("config.json", '{"config": 1, "sessions": []}'),
            "damaged",
            "config.json is damaged: settings or",
        ),
        (80.0, damage("config.json", '{"config": {}}'), "damaged", "config.json is damaged: settings or"),
        (80.0, damage("config.json", "[" * 100_000), "damaged", "config.json is damaged: "),
        (80.0, damage("summary.json", "{"), "interrupted", "summary.json is damaged: "),
    ],
)
def test_a_run_has_a_state(
    tmp_path: Path, test_acc: float | None, change: Callable[[Path], None], state: str, note: str | None
) -> None:
    change(make_run(tmp_path / "r", test_acc=test_acc))
    run = read_run(tmp_path / "r")
    assert run is not None and run.state == state
    assert len(run.notes) == (note is not None) and all(each.startswith(note or "") for each in run.notes)
    assert run.row()["val_acc"] == 43.0
    assert run.row()["failure"] == ("the loss is not finite" if state == "failed" else None)


@pytest.mark.parametrize("content", [None, "{"])
@pytest.mark.parametrize("test_acc", [80.0, None])
def test_a_run_is_running_while_a_process_holds_its_lock(
    tmp_path: Path, test_acc: float | None, content: str | None
) -> None:
    path = make_run(tmp_path / "r", test_acc=test_acc)
    if content is not None:
        (path / "config.json").write_text(content)
    with RunFolder(path).locked():
        run = read_run(path)
        assert run is not None and run.state == "running"
    run = read_run(path)
    assert run is not None and run.state != "running"


def test_asking_for_the_state_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = make_run(tmp_path / "r")
    with open(path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as is_locked does, for longer
        assert not is_locked(path / ".lock")
        timer = threading.Timer(PROBE / 4, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with RunFolder(path).locked():
            assert is_locked(path / ".lock")
        timer.join()


@pytest.mark.parametrize(
    ("tail", "epoch"),
    [
        ("", 3),
        ("\n\n", 3),
        ('{"epoch": 4, "val', 3),
        ("not JSON\n[4]\n7\n", 3),
        (json.dumps(epoch_record(4, padding="x" * 70_000)) + "\n", None),
        (json.dumps(epoch_record(4)), 4),
    ],
)
def test_an_unfinished_run_has_the_figures_of_its_last_undamaged_record(
    tmp_path: Path, tail: str, epoch: int | None
) -> None:
    path = make_run(tmp_path / "r", test_acc=None)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(tail)
    run = read_run(path)
    assert run is not None and run.results.get("epoch") == epoch
    assert [row["epoch"] for row in run.history()][:3] == [1, 2, 3]


def test_a_run_without_epochs_has_no_figures(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", epochs=0, test_acc=None)
    for metrics in (True, False):
        run = read_run(path)
        assert run is not None and run.state == "interrupted" and run.results == {} and run.history() == [], metrics
        assert run.row()["epochs"] == 3 and "epoch" not in run.row()
        (path / "metrics.jsonl").unlink(missing_ok=True)


def test_a_run_of_an_earlier_version_has_the_defaults_of_settings_that_it_lacks(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", session={"device": "cpu"}, summary={"torch": "1.0"})
    document = json.loads((path / "config.json").read_text())
    for name in ("holdout_by", "fit", "lr_scale", "tta"):
        del document["config"][name]
    document["sessions"] = [{"device": "cuda:0"}]
    (path / "config.json").write_text(json.dumps(document))
    run = read_run(path)
    assert run is not None and run.settings == TrainConfig.from_dict(document["config"]).to_dict()
    row = run.row()
    assert row["holdout_by"] == "position" and row["device"] == "cuda:0" and row["torch"] == "1.0"
    assert row["started"] is None and row["precision"] == "auto"


def test_a_row_has_settings_results_and_what_the_run_used(tmp_path: Path) -> None:
    make_run(tmp_path / "r", summary={"card": {"below": True}}, images={"train/a": "1"})
    (row,) = vitctl.read_runs(tmp_path)
    assert row["name"] == "r" and row["run"] == str(tmp_path / "r") and row["state"] == "finished"
    assert row["test_acc"] == 80.0 and row["epoch"] == 3 and row["card.below"] is True
    assert row["lr"] == SETTINGS["lr"] and row["net_options.depth"] == SETTINGS["net_options"]["depth"]
    assert row["device"] == "cpu" and row["precision"] == "fp32" and row["micro_batch"] == 64
    assert len(row["data_sha256"]) == 64 and row["train_images"] == 1000
    assert not any(isinstance(value, dict) for value in row.values())


def test_the_rows_of_trained_runs_have_the_figures_of_their_files(digits_runs: Path) -> None:
    rows = {row["name"]: row for row in vitctl.read_runs(str(digits_runs))}
    assert rows.keys() == {"digits", "resized"}
    for name, row in rows.items():
        summary = json.loads((digits_runs / name / "summary.json").read_text())
        config = json.loads((digits_runs / name / "config.json").read_text())["config"]
        assert row["state"] == "finished" and row["lr"] == config["lr"]
        assert {key: row[key] for key in summary.keys() - {"lr", "card"}} == {
            key: summary[key] for key in summary.keys() - {"lr", "card"}
        }


def test_runs_are_found_at_every_depth_newest_first(tmp_path: Path) -> None:
    names = ["b", "comparisons/c/adam-0", "group/a", "x-0001"]
    for age, name in enumerate(names):
        make_run(tmp_path / name, age=age)
    make_run(tmp_path / "/".join("1234") / "too-deep")
    make_run(tmp_path / ".hidden")
    make_run(tmp_path / "b" / "inner")
    (tmp_path / "sweeps" / "x").mkdir(parents=True)
    assert [run.name for run in read_runs(tmp_path)] == names
    assert max(name.count("/") for name in names) == DEPTH - 1


@pytest.mark.parametrize(
    "content", [None, "{}", '{"architecture": "vit_tiny", "num_classes": 10}', "[1]", "{", b"\xff\xfe"]
)
def test_a_folder_with_another_config_is_not_a_run(tmp_path: Path, content: str | bytes | None) -> None:
    other = tmp_path / "other"
    other.mkdir()
    if content is not None:
        (other / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "config.json").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path / "r")
    assert [run.name for run in read_runs(tmp_path)] == ["r"]
    with pytest.raises(RequestError, match=r"^other is not a run|^run other not found"):
        open_run(Path("other"), tmp_path)


def test_a_link_to_a_run_counts_only_if_its_target_is_elsewhere(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "a")
    (runs / "best").symlink_to("a")
    (runs / "loop").symlink_to("loop")
    (runs / "up").symlink_to("..")
    (runs / "gone").symlink_to("nowhere")
    (runs / "disk").symlink_to(make_run(tmp_path / "scratch" / "s"))
    (runs / "disk2").symlink_to(tmp_path / "scratch" / "s")
    assert [path.name for path in find_folders(runs)] == ["a", "disk"]
    (tmp_path / "linked").symlink_to(runs)
    assert [run.name for run in read_runs(tmp_path / "linked")] == ["a", "disk"]


@pytest.mark.parametrize("name", ["a b", "line\nbreak", "ünï", "-x", "a=b,c", "$(x)", "\udc94", "[red]"])
def test_any_name_is_read(tmp_path: Path, name: str) -> None:
    try:
        make_run(tmp_path / name)
    except OSError:
        pytest.skip("the file system refuses this name")
    (row,) = vitctl.read_runs(tmp_path)
    assert row["name"] == name and open_run(Path(name), tmp_path).name == name


def test_a_run_is_opened_by_name_path_or_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a")
    for target in ("a", "runs/a", "runs/a/checkpoints", tmp_path / "runs" / "a"):
        assert open_run(Path(target), Path("runs")).path.resolve() == tmp_path / "runs" / "a"
    make_run(tmp_path / "runs" / "cct-1")
    with pytest.raises(RequestError, match=r"run cct-2 not found in runs\nhint: use cct-1$"):
        open_run(Path("cct-2"), Path("runs"))
    with pytest.raises(RequestError, match=r"run other not found in runs\nhint: see the runs: vitctl runs list$"):
        open_run(Path("other"), Path("runs"))
    with pytest.raises(RequestError, match="run b not found in no\nhint: use --runs-dir"):
        open_run(Path("b"), Path("no"))


def test_a_missing_folder_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"folder of runs .* not found\nhint: use --runs-dir"):
        vitctl.read_runs(tmp_path / "none")
    assert vitctl.read_runs(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_closed_folder_is_skipped(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "closed").mkdir(mode=0)
    assert [run.name for run in read_runs(tmp_path)] == ["a"]
