import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss

from tests.conftest import TINY, TINY_NET, Cli
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint

Refused = Callable[..., str]


@pytest.fixture
def trained(digits_runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_runs / "digits", tmp_path / "runs" / "r"))


def test_figures_match_those_of_the_run_and_of_scikit_learn(cli: Cli, trained: Path, tmp_path: Path) -> None:
    scores = cli("eval", trained, "--json", "--csv", "classes.csv", "--predictions", "p.csv").json()
    summary = cli("train", "--resume", trained, "--json").json()
    assert scores["top1"] == pytest.approx(summary["test_acc"]) and scores["images"] == summary["test_images"]
    assert scores["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.DictReader(file))
    labels, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert scores["top1"] == pytest.approx(100 * accuracy_score(labels, predicted))
    per_class = f1_score(labels, predicted, average=None, zero_division=0)
    assert [row["f1"] for row in scores["classes"]] == pytest.approx(list(100 * per_class))
    assert sum(map(sum, scores["confusion"])) == len(rows)
    assert 100 * sum(scores["confusion"][i][i] for i in range(10)) / len(rows) == pytest.approx(scores["top1"])
    assert scores["top1"] <= scores["top5"] <= 100
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 11


def test_predictions_list_image_and_most_likely_classes(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for part, prefix in (("test", "test/"), ("val", "train/")):
        cli("eval", trained, "--split", part, "--predictions", "p.csv")
        with open(tmp_path / "p.csv") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[:5] == ["index", "label", "predicted", "probability", "image"] and len(rows[0]) == 11
        with np.load(trained / "predictions.npz") as stored:
            assert [row["image"] for row in rows] == stored[f"{part}_paths"].tolist()
            for row, label, chances in zip(
                rows, stored[f"{part}_labels"], stored[f"{part}_probabilities"], strict=True
            ):
                top = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
                assert top == pytest.approx(sorted(chances.tolist(), reverse=True)[:3], rel=2e-3, abs=1e-6)
                for rank in (1, 2, 3):
                    assert float(chances[int(row[f"class_{rank}"])]) == pytest.approx(top[rank - 1], rel=2e-3, abs=1e-6)
                assert (row["predicted"], row["probability"]) == (row["class_1"], row["probability_1"])
                assert row["label"] == str(label) and row["image"].startswith(prefix)


def test_predictions_of_a_finished_run_need_no_data(cli: Cli, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name, low in (("dark", 0), ("light", 60)):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(6):
                noise = np.random.default_rng(i).integers(low, 200, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "images" / part / name / f"{i}.png")
    assert cli("train", "--dataset", "images", "--net", TINY_NET, "--size", 8, "--epochs", 2, "--name", "r").code == 0
    measured = {part: cli("eval", "runs/r", "--split", part, "--json").json() for part in ("test", "val")}
    shutil.rmtree("images")
    assert cli("eval", "runs/r").code == 2
    for part, expected in measured.items():
        stored = cli("eval", "runs/r", "--split", part, "--predictions", "p.csv", "--json").json()
        for key in ("top1", "top5", "balanced_acc", "classes", "confusion", "images", "epoch", "weights"):
            assert stored[key] == expected[key], key
        assert stored["loss"] == pytest.approx(expected["loss"], rel=1e-6) and stored["images_per_second"] is None
        with open("p.csv") as file:
            assert all(Path(row["image"]).is_absolute() for row in csv.DictReader(file))
    assert "predictions.npz" in cli("eval", "runs/r", "--predictions", "p.csv").out
    every = (["--limit", 2], ["--tta", "flip"], ["--split", "train"], ["--data-dir", "images"], ["--device", "cpu"])
    for words in (*every, ["--skip-bad-images"], ["--split", "val", "--accept-data"]):
        assert cli("eval", "runs/r", *words, "--predictions", "p.csv").code == 2, words


def test_the_loss_matches_scikit_learn(trained: Path) -> None:
    from vitctl.export.open import open_classifier
    from vitctl.inference.scoring import score_classifier

    scores = score_classifier(open_classifier(trained, weights="last", device_name="cpu", warn=print))
    assert scores.figures["loss"] == pytest.approx(log_loss(scores.labels, scores.probabilities), rel=1e-9)


def test_split_weights_and_limit_select_images_and_checkpoint(cli: Cli, trained: Path) -> None:
    summary = cli("train", "--resume", trained, "--json").json()
    val = cli("eval", trained, "--split", "val", "--json").json()
    assert val["top1"] == pytest.approx(summary["val_acc"]) and val["images"] == summary["val_images"]
    best = cli("eval", trained, "--split", "val", "--weights", "best", "--json").json()
    assert best["top1"] == pytest.approx(summary["best_val_acc"]) and best["epoch"] == summary["best_epoch"]
    assert cli("eval", trained, "--split", "train", "--limit", 30, "--json").json()["images"] == 30
    assert cli("eval", trained, "--split", "train", "--json").json()["images"] == summary["train_images"]
    single = cli("eval", trained / "checkpoints" / "last.pt", "--json").json()
    assert single["top1"] == pytest.approx(summary["test_acc"])


def test_the_table_shows_figures_per_class_and_the_confusion_matrix(cli: Cli, trained: Path) -> None:
    text = cli("eval", trained).out
    for word in ("top-1 accuracy", "top-5 accuracy", "precision", "recall", "F1", "confusion matrix"):
        assert word in text


def test_impossible_requests_are_refused(cli: Cli, refused: Refused, trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints" / "last.pt"
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "short.pt").write_bytes(last.read_bytes()[:1000])
    for argv, sentence in (
        (["none.pt"], "none.pt not found"),
        (["text.pt"], "is not a vitctl checkpoint"),
        (["short.pt"], "is not a vitctl checkpoint"),
        ([trained, "--split", "tset"], "did you mean test"),
        ([trained, "--weights", "bets"], "did you mean best"),
        ([last, "--weights", "best"], "is a single checkpoint"),
        ([trained, "--device", "mps"], "--device mps is not available on this machine"),
        ([trained, "--csv", "no/where.csv"], "no such folder"),
        ([trained, "--predictions", "."], "--predictions . is a folder"),
        ([tmp_path], "is not a run folder"),
    ):
        assert sentence in refused("eval", *argv)
    cli("train", *TINY, "--val", "none", "--epochs", 1, "--name", "n")
    assert "no held-out images" in refused("eval", "runs/n", "--split", "val")


def test_a_checkpoint_of_an_unknown_network_is_refused(refused: Refused, trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained / "checkpoints" / "last.pt")
    checkpoint["config"]["net"] = "vit_gone"
    save_checkpoint({key: value for key, value in checkpoint.items() if key != "digest"}, tmp_path / "g.pt")
    assert "unknown --net 'vit_gone'" in refused("eval", "g.pt")


def test_weights_of_another_shape_are_refused(refused: Refused, trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained / "checkpoints" / "last.pt")
    checkpoint["model"]["head.weight"] = torch.zeros(3, 3)
    save_checkpoint({key: value for key, value in checkpoint.items() if key != "digest"}, tmp_path / "g.pt")
    assert "do not fit --net cct_2" in refused("eval", "g.pt")


def test_another_data_set_must_have_the_same_classes(cli: Cli, refused: Refused, trained: Path, tmp_path: Path) -> None:
    from tests.cli.test_train_command import image_folder

    image_folder(tmp_path / "shades")
    assert "channels" in refused("eval", trained, "--dataset", "shades", "--split", "train")
    assert "is not one of the network's" in refused("eval", trained, "--dataset", "shades")
    cli("train", "--dataset", "shades", "--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 1, "--name", "s")
    (tmp_path / "shades" / "train" / "dark").rename(tmp_path / "shades" / "train" / "black")
    (tmp_path / "shades" / "test" / "dark").rename(tmp_path / "shades" / "test" / "black")
    assert "the network was trained on" in refused("eval", "runs/s", "--dataset", "shades", "--split", "train")
    assert "class 'black' in" in refused("eval", "runs/s", "--dataset", "shades")


SHADES_NET = ("--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 1, "--json")


@pytest.fixture
def shades_run(cli: Cli, tmp_path: Path) -> Path:
    """Return a run that was trained on ``shades``, a folder with the classes dark and light."""
    from tests.cli.test_train_command import image_folder

    image_folder(tmp_path / "shades")
    assert cli("train", "--dataset", "shades", *SHADES_NET, "--name", "s").code == 0
    return tmp_path / "runs" / "s"


def test_another_folder_needs_only_what_is_measured(cli: Cli, shades_run: Path, tmp_path: Path) -> None:
    own = cli("eval", shades_run, "--json").json()
    shutil.copytree(tmp_path / "shades" / "test", tmp_path / "only" / "test")
    shutil.copytree(tmp_path / "shades" / "test", tmp_path / "flat")
    shutil.copytree(tmp_path / "shades" / "test" / "light", tmp_path / "subset" / "light")
    for folder in ("only", "flat", "shades"):
        scores = cli("eval", shades_run, "--dataset", folder, "--json").json()
        assert (scores["images"], scores["top1"], scores["loss"]) == (8, own["top1"], own["loss"])
        assert scores["confusion"] == own["confusion"]
    subset = cli("eval", shades_run, "--dataset", "subset", "--json").json()
    assert subset["confusion"] == [[0, 0], own["confusion"][1]]


def test_a_file_of_labels_is_used_by_training_resume_and_evaluation(
    cli: Cli, refused: Refused, shades_run: Path, tmp_path: Path
) -> None:
    lines = ["id,label,split"]
    (tmp_path / "mixed").mkdir()
    for path in sorted((tmp_path / "shades").rglob("*.png")):
        part, name, file = path.relative_to(tmp_path / "shades").parts
        shutil.copy(path, tmp_path / "mixed" / f"{part}-{name}-{file}")
        lines.append(f"{part}-{name}-{path.stem},{name},{part}")
    (tmp_path / "mixed" / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "test.csv").write_text("\n".join(lines))
    assert "hint: add --labels labels.csv" in refused("train", "--dataset", "mixed", *SHADES_NET)
    trained = cli("train", "--dataset", "mixed", "--labels", "labels.csv", *SHADES_NET, "--name", "m")
    assert trained.code == 0 and "train 24, test 8, labels of labels.csv" in trained.err
    known = cli("eval", "runs/s", "--json").json()
    scores = cli("eval", "runs/m", "--json").json()
    assert scores["top1"] == trained.json()["test_acc"]
    (tmp_path / "mixed").rename(tmp_path / "moved")
    assert cli("eval", "runs/m", "--data-dir", "moved", "--json").json()["loss"] == scores["loss"]
    resumed = cli("train", "--resume", "runs/m", "--data-dir", "moved", "--labels", "labels.csv", "--epochs", 2)
    assert resumed.code == 0, resumed.err
    assert "--resume cannot change --labels" in refused(
        "train", "--resume", "runs/m", "--data-dir", "moved", "--labels", tmp_path / "test.csv"
    )
    other = cli("eval", "runs/s", "--dataset", "moved", "--labels", "test.csv", "--json").json()
    assert other["loss"] == pytest.approx(known["loss"]) and other["confusion"] == known["confusion"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "--dataset", "digits", "--labels", "x.csv"], "--labels does nothing with --dataset digits"),
        (["train", "--dataset", "shades", "--labels", "x.csv"], "--labels x.csv not found\nhint: use --labels with a file in"),
        (["train", "--dataset", "shades", "--labels", ""], "--labels is empty"),
        (["eval", "runs/s", "--labels", "x.csv"], "--labels x.csv needs --dataset\nhint: add --dataset DIR"),
        (["eval", "runs/s", "--dataset", "digits", "--labels", "x.csv"], "--labels does nothing with --dataset digits"),
    ],
)  # fmt: skip
def test_labels_without_effect_are_refused(refused: Refused, shades_run: Path, argv: list[str], expected: str) -> None:
    assert expected in refused(*argv)


def test_labels_are_refused_for_a_run_on_a_named_data_set(refused: Refused, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,label\n")
    message = refused("eval", digits_run, "--data-dir", tmp_path, "--labels", "labels.csv")
    assert "--labels does nothing with digits\nhint: remove --labels, or use --dataset DIR" in message
