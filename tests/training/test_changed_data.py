"""Runs on a folder of images that changes: held-out images, refusals and ``--accept-data``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import TINY_NET, Cli
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint

NET = ("--net", TINY_NET, "--size", 8, "--bs", 8)
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images in ``shades`` and a run of one epoch, of 20 training images per class."""
    from vitctl.cli import main

    root = tmp_path_factory.mktemp("made")
    for part, count in (("train", 20), ("test", 4)):
        for shade, name in ((40, "dark"), (180, "light")):
            (root / "shades" / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (10, 12), (shade + i, shade, shade - i))
                image.save(root / "shades" / part / name / f"{i:02}.png")
    words = ["train", "--dataset", root / "shades", *NET, "--epochs", 1, "--runs-dir", root, "--name", "r", "--json"]
    assert main([str(word) for word in words]) == 0
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, whose images are now in ``shades`` in the current folder."""
    for name in ("shades", "r"):
        shutil.copytree(made / name, tmp_path / name)
    move(tmp_path / "r", tmp_path / "shades")
    return tmp_path / "r"


def move(run: Path, images: Path) -> None:
    """Change the folder of a run's images in all of its files."""
    document = json.loads((run / "config.json").read_text())
    document["config"]["data_dir"] = str(images)
    (run / "config.json").write_text(json.dumps(document))
    rewrite(run, lambda checkpoint: checkpoint["config"].update(data_dir=str(images)))


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the checkpoints of a run."""
    for path in (run / "checkpoints").iterdir():
        checkpoint = load_checkpoint(path)
        change(checkpoint)
        save_checkpoint({k: v for k, v in checkpoint.items() if k not in ("digest", "file_sha256")}, path)


def add(name: str | Path) -> None:
    Image.new("RGB", (10, 12), (99, 0, 0)).save(name)


def repaint(name: str) -> None:
    Image.new("RGB", (10, 12), (0, 0, 99)).save(name)


CHANGED = "changed since the run started"


def test_the_digest_is_in_checkpoint_and_config(run: Path) -> None:
    (session,) = json.loads((run / "config.json").read_text())["sessions"]
    assert re.fullmatch("[0-9a-f]{64}", session["data_sha256"])
    assert load_checkpoint(run / "checkpoints" / "last.pt")["data_sha256"] == session["data_sha256"]


def test_a_run_resumes_only_on_the_same_images_unless_others_are_accepted(
    cli: Cli, refused: Refused, run: Path
) -> None:
    for name in ("-1", "-2", "-3"):
        add(f"shades/train/dark/{name}.png")
    Path("shades/test/light/00.png").unlink()
    repaint("shades/train/light/05.png")
    repaint("shades/train/light/06.png")
    words = ("train", "--resume", "r", "--epochs", 3)
    said = refused(*words)
    assert f"{CHANGED}: 3 added, 1 removed, 2 of other content (such as 'train/dark/-1.png')\nhint: " in said
    assert "add --accept-data" in said
    assert cli("eval", "r", "--split", "val").code == 2
    resumed = cli(*words, "--accept-data", "--json")
    assert resumed.code == 0, resumed.err
    assert "continuing with images that changed: 3 added, 1 removed" in resumed.err
    first, second = json.loads((run / "config.json").read_text())["sessions"]
    assert second["accepted_data"].startswith("3 added, 1 removed, 2 of other content")
    assert second["data_sha256"] != first["data_sha256"] and "accepted_data" not in first
    assert cli("train", "--resume", "r", "--epochs", 4).code == 0  # the accepted images are the run's
    assert cli("eval", "r", "--split", "val").code == 0


def test_other_classes_are_never_accepted(refused: Refused, run: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(f"shades/{part}/dark", f"shades/{part}/grey")
    for more in ((), ("--accept-data",)):
        said = refused("train", "--resume", "r", "--epochs", 2, *more)
        assert f"{CHANGED}: 24 added" in said and said.endswith("or start a new run, as the classes changed too")


def test_a_run_resumes_without_an_image_that_became_unreadable(cli: Cli, refused: Refused, run: Path) -> None:
    Path("shades/train/dark/03.png").write_text("damaged")
    words = ["train", "--resume", "r", "--epochs", 2]
    for hint in ("--skip-bad-images", "--accept-data"):
        assert f"hint: add {hint}" in refused(*words).replace("restore them, or ", "")
        words.append(hint)
    assert cli(*words).code == 0


def test_class_folders_have_no_held_out_images(cli: Cli, refused: Refused, run: Path) -> None:
    shutil.copytree("shades/test", "new")
    words = ("eval", "r", "--dataset", "new", "--split")
    said = refused(*words, "val")
    assert "has class folders (dark, light)" in said and "hint: use --split test" in said
    assert cli(*words, "test").code == 0


def test_held_out_images_stay_held_out_if_others_are_added(cli: Cli, run: Path) -> None:
    def measured() -> list[list[str]]:
        assert cli("eval", "r", "--split", "val", "--accept-data", "--predictions", "p.csv").code == 0
        return [line.split(",")[1:] for line in Path("p.csv").read_text().splitlines()[1:]]

    before = measured()
    for i in range(3):  # hashes that are not held out
        add(f"shades/train/dark/-{i}.png")
    assert measured() == before


@pytest.mark.parametrize("change", [add, repaint, lambda name: Path(name).unlink()])
def test_a_changed_data_set_is_not_evaluated_on_held_out_images(
    change: Callable[[str], object], cli: Cli, refused: Refused, run: Path
) -> None:
    change("shades/train/light/07.png" if change is not add else "shades/train/light/new.png")
    shutil.copy(run / "checkpoints" / "last.pt", "alone.pt")
    for part in ("val", "train"):
        assert re.search(rf"{CHANGED}: 1 \S+.*light.*\nhint: .*--accept-data", refused("eval", "r", "--split", part))
    assert f"{CHANGED}\nhint: " in refused("eval", "alone.pt", "--split", "val")
    assert cli("eval", "r", "--json").json()["images"] == 8
    accepted = cli("eval", "alone.pt", "--split", "val", "--accept-data", "--json")
    assert accepted.json()["accepted_data"] == "changed"
    assert "1 " in cli("eval", "r", "--split", "val", "--accept-data", "--json").json()["accepted_data"]


def test_accept_data_without_effect_is_refused(refused: Refused, run: Path) -> None:
    assert "--accept-data does nothing with --split test" in refused("eval", "r", "--accept-data")
    assert "--accept-data does nothing without --resume" in refused("train", "--dataset", "shades", "--accept-data")


def test_moved_and_recompressed_images_are_the_same(cli: Cli, run: Path) -> None:
    Path("shades").rename("moved")
    for path in Path("moved").rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    assert cli("train", "--resume", "r", "--data-dir", "moved", "--epochs", 2).code == 0
    assert cli("eval", "r", "--data-dir", "moved", "--split", "val").code == 0


def test_runs_of_earlier_versions_keep_their_held_out_images_and_are_not_checked(cli: Cli, run: Path) -> None:
    def downgrade(record: dict[str, Any]) -> None:
        record["config"] = {k: v for k, v in record["config"].items() if k not in ("holdout_by", "test_fraction")}
        record.pop("data_sha256", None)

    rewrite(run, downgrade)
    document = json.loads((run / "config.json").read_text())
    downgrade(document)
    document["sessions"][0].pop("data_sha256")
    (run / "config.json").write_text(json.dumps(document))
    (run / "data.json.gz").unlink()

    assert cli("eval", "r", "--split", "val", "--json").json()["images"] == 4  # exactly a tenth of 20 per class
    assert cli("export", "r", "--format", "safetensors", "-o", "old.safetensors", "--no-verify").code == 0
    text = Path("old.json").read_text()
    assert '"holdout_by": "position"' in text
    assert cli("eval", "old.safetensors", "--dataset", "shades", "--split", "val", "--json").json()["images"] == 4
    add("shades/train/dark/-1.png")
    assert cli("eval", "r", "--split", "val", "--json").json()["images"] == 4
    assert cli("train", "--resume", "r", "--epochs", 2).code == 0
    document = json.loads((run / "config.json").read_text())
    assert document["config"]["holdout_by"] == "position" and "data_sha256" in document["sessions"][-1]


def test_exported_files_know_the_held_out_images(cli: Cli, refused: Refused, run: Path) -> None:
    assert cli("export", "r", "--format", "safetensors", "-o", "x.safetensors", "--no-verify").code == 0
    words = ("--dataset", "shades", "--split", "val")
    ours, theirs = (cli("eval", path, *words, "--json").json() for path in ("r", "x.safetensors"))
    assert (ours["images"], ours["loss"]) == (theirs["images"], pytest.approx(theirs["loss"]))
    add("shades/train/dark/-1.png")
    assert CHANGED in refused("eval", "x.safetensors", *words)


@pytest.mark.parametrize("count", [30, -10])
def test_a_run_ends_after_its_epochs_are_longer_or_shorter(count: int, cli: Cli, run: Path) -> None:
    for i in range(abs(count)):
        if count > 0:
            add(f"shades/train/dark/new{i}.png")
        else:
            Path(f"shades/train/light/{i:02}.png").unlink()
    result = cli("train", "--resume", "r", "--epochs", 4, "--accept-data", "--json")
    assert result.code == 0, result.err
    summary = result.json()
    assert summary["step"] == 4 * summary["steps_per_epoch"]


def test_a_comparison_continues_only_on_the_same_images(cli: Cli, refused: Refused, run: Path) -> None:
    words = ("compare-optimizers", "adam", "sgd", "--dataset", "shades", *NET, "--seeds", 1, "--max-steps", 2)
    compared = cli(*words, "--name", "c", "--json").json()
    assert f"digest {compared['data_sha256'][:12]}" in " ".join(compared["notes"])
    add("shades/train/dark/-1.png")
    assert cli(*words, "--name", "c").code == 0  # only prints the results
    shutil.rmtree("runs/comparisons/c/sgd-seed0")
    said = refused(*words, "--name", "c")
    assert f"{CHANGED}: 1 added (such as 'train/dark/-1.png')\nhint: " in said and "use another --name" in said
    assert cli(*words, "--name", "d").code == 0


def test_class_folders_train_and_are_evaluated_on_the_share_for_testing(cli: Cli, refused: Refused, run: Path) -> None:
    flat = Path("shades/train").rename("flat")
    Path("new").mkdir()
    shutil.copytree(flat / "dark", "new/dark")
    assert "hint: add --test-fraction 0.2 " in refused("train", "--dataset", flat, *NET)
    words = ("--test-fraction", 0.2, *NET, "--epochs", 1, "--json")
    trained = cli("train", "--dataset", flat, *words, "--name", "flat")
    assert trained.code == 0, trained.err
    summary = trained.json()
    assert sum(summary[f"{part}_images"] for part in ("train", "val", "test")) == 40 and summary["test_images"] > 2
    scores = cli("eval", "runs/flat", "--json").json()
    assert (scores["images"], scores["top1"]) == (summary["test_images"], pytest.approx(summary["test_acc"]))
    assert cli("export", "runs/flat", "--format", "safetensors", "-o", "x.safetensors", "--no-verify").code == 0
    assert cli("eval", "x.safetensors", "--dataset", flat, "--json").json()["loss"] == pytest.approx(scores["loss"])
    more = Path(shutil.copytree(flat, "more"))
    add(more / "dark" / "added.png")
    leaky = cli("eval", "runs/flat", "--dataset", more)
    trained_on = summary["train_images"] + summary["val_images"]
    assert f"warning: {trained_on} of 41 images equal images that the run trained on or held out" in leaky.err
    assert "warning" not in cli("eval", "runs/flat", "--data-dir", more).err
    assert cli("eval", "x.safetensors", "--dataset", "new", "--json").json()["images"] == len(
        list(Path("new/dark").iterdir())
    )
    shutil.copytree(flat, "shades/train")
    said = refused("train", "--dataset", "shades", *words)
    assert "--test-fraction 0.2: " in said and "hint: remove --test-fraction" in said


def test_a_class_without_images_has_no_figures(cli: Cli, run: Path) -> None:
    shutil.rmtree("shades/test/light")
    Path("shades/test/light").mkdir()
    dark, light = cli("eval", "r", "--json", "--csv", "classes.csv").json()["classes"]
    assert (light["precision"], light["recall"], light["f1"], light["support"]) == (None, None, None, 0)
    assert dark["support"] == 4 and dark["recall"] is not None
    assert Path("classes.csv").read_text().splitlines()[2] == "light,,,,0"
    (line,) = [line for line in cli("eval", "r").out.splitlines() if line.split()[:2] == ["light", "–"]]
    assert line.split() == ["light", "–", "–", "–", "0"]
