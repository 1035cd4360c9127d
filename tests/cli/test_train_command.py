import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, Cli
from vitctl.config import TrainConfig

Refused = Callable[..., str]


def test_a_run_writes_its_folder_and_prints_json(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", *TINY, "--epochs", 2, "--name", "first", "--json")
    assert result.code == 0
    summary = result.json()
    run = tmp_path / "runs" / "first"
    assert summary == json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and [row["step"] for row in rows] == [4, 8]
    for key in ("train_loss", "train_acc", "val_loss", "val_acc", "lr", "epoch_time", "images_per_second", "data_wait"):
        assert all(isinstance(row[key], float) for row in rows), key
    assert rows[0]["val_split"] == "holdout"
    assert summary["test_acc"] >= 0 and summary["params"] > 0 and summary["train_images"] == 200
    document = json.loads((run / "config.json").read_text())
    assert TrainConfig.from_dict(document["config"]).epochs == 2
    session = document["sessions"][0]
    assert {"torch", "python", "device", "threads", "git_commit", "command", "vitctl"} <= session.keys()
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "last.pt"


def test_the_final_table_shows_both_accuracies(cli: Cli) -> None:
    result = cli("train", *TINY, "--epochs", 1)
    assert "test accuracy" in result.out and "held-out accuracy" in result.out
    assert "epoch 1/1" in result.err and "images/s" in result.err


def test_output_without_a_terminal_has_no_escape_codes(cli: Cli) -> None:
    result = cli("train", *TINY, "--epochs", 1)
    assert "\x1b" not in result.out + result.err and "\r" not in result.err


def test_flags_may_have_underscores_other_names_and_values_for_switches(cli: Cli) -> None:
    result = cli(
        "train", "--n_epochs=7", "--weight_decay=0.1", "--decay_all=True", "--print_config", "--dataset=digits"
    )
    settings = yaml.safe_load(result.out)
    assert (settings["epochs"], settings["weight_decay"], settings["decay_all"]) == (7, 0.1, True)
    result = cli("train", "--recipe", "seed", "--decay-all=false", "--print-config")
    assert yaml.safe_load(result.out)["decay_all"] is False


def test_a_printed_config_gives_an_identical_run(cli: Cli, tmp_path: Path) -> None:
    printed = cli("train", *TINY, "--epochs", 1, "--print-config")
    (tmp_path / "c.yaml").write_text(printed.out)
    a = cli("train", *TINY, "--epochs", 1, "--json").json()
    b = cli("train", "--config", "c.yaml", "--json").json()
    assert (a["train_loss"], a["test_loss"]) == (b["train_loss"], b["test_loss"])


def test_flags_of_the_original_scripts_are_accepted(cli: Cli, refused: Refused) -> None:
    settings = yaml.safe_load(cli("train", "--noaug", "--noamp", "--nowandb", "--print-config").out)
    assert (settings["aug"], settings["precision"], settings["wandb"]) == ("basic", "fp32", "disabled")
    assert yaml.safe_load(cli("train", "--noaug=True", "--noamp=False", "--print-config").out)["precision"] == "auto"
    assert "--noamp means --precision fp32" in refused("train", "--noamp", "--precision", "bf16")
    assert "one device" in refused("train", "--dp")
    assert "one device" in refused("train", "--dp=True")
    given = yaml.safe_load(cli("train", "--cos", "--amp", "--net", "vit", "--dimhead", 256, "--print-config").out)
    assert (given["schedule"], given["precision"], given["net_options"]["embed_dim"]) == ("cosine", "auto", 256)
    assert "--net res18 has no option embed_dim" in refused("train", "--net", "res18", "--dimhead", 256)
    assert "--noamp means --precision fp32, which contradicts --precision auto" in refused("train", "--amp", "--noamp")


def test_a_dry_run_estimates_the_cost_and_saves_nothing(cli: Cli, tmp_path: Path) -> None:
    cost = cli("train", *TINY, "--net", "vit_tiny:depth=1", "--size", "8", "--dry-run", "--json").json()
    assert cost["tokens"] == 5 and cost["params"] > 0 and cost["eta"] > 0 and cost["mflop"] > 0
    assert cost["steps_per_epoch"] == 4
    assert not (tmp_path / "runs").exists()
    table = cli("train", *TINY, "--dry-run").out
    assert "complete run" in table and "precision" in table


def test_max_steps_may_end_within_an_epoch(cli: Cli) -> None:
    summary = cli("train", *TINY, "--max-steps", 6, "--json").json()
    assert (summary["step"], summary["epoch"]) == (6, 2)


def test_val_selects_the_images_of_the_validation(cli: Cli, tmp_path: Path) -> None:
    test = cli("train", *TINY, "--epochs", 1, "--val", "test", "--name", "t", "--json").json()
    assert (test["val_split"], test["val_acc"], test["val_loss"]) == ("test", test["test_acc"], test["test_loss"])
    none = cli("train", *TINY, "--epochs", 1, "--val", "none", "--name", "n", "--json").json()
    assert "val_acc" not in none and none["val_images"] == 0
    for name in "tn":  # without held-out images there is no best checkpoint
        assert not (tmp_path / "runs" / name / "checkpoints" / "best.pt").exists()
        assert cli("eval", f"runs/{name}", "--weights", "best").code == 2


def test_patience_ends_a_run_early(cli: Cli) -> None:
    summary = cli("train", *TINY, "--epochs", 30, "--lr", "0", "--patience", 2, "--json").json()
    assert summary["stopped_early"] and summary["epoch"] == 3


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--net", "vit_smal"], "did you mean vit_small"),
        (["--net", "vit", "--patch", 5], "use --patch 1, 2, 4 or 8"),
        (["--device", "mps"], "--device mps is not available on this machine\nhint: use --device "),
        (["--device", "cuda:7"], "--device cuda:7 is not available on this machine\nhint: use --device "),
        (["--device", "gpu"], "unknown --device 'gpu'"),
        (["--name", "a/b"], "is not a valid folder name"),
        (["--dataset", "folder"], "hint: use --dataset DIR"),
        (["--bs", "many"], "--bs takes a whole number"),
        (["--lr", "-1"], "--lr -1 is too small\nhint: use 0 or more"),
        (["--val", "tset"], "did you mean test"),
        (["--runs-dir", "/proc/nowhere"], "cannot create run folder"),
        (["--resume", "runs/none"], "run folder runs/none not found"),
        (["--resume", ".", "--name", "x"], "--name does nothing with --resume"),
        (["--dry-run", "--name", "x"], "--name does nothing with --dry-run"),
        (["--dry-run", "--wandb", "offline"], "--wandb does nothing with --dry-run"),
        (["--dry-run", "--tensorboard"], "--tensorboard does nothing with --dry-run"),
        (["--dry-run", "--net", "vit_timm", "--pretrained", "nowhere.bin"], "nowhere.bin: no such file"),
        (["--data-dir", ""], "--data-dir is empty\nhint: use --data-dir DIR"),
        (["--resume", "."], "is not a run folder"),
        (["--opt", "sgd:momentum=0,nesterov=true"], "nesterov=true needs momentum"),
        (["--net", "timm/vit_tiny_patch16_224."], "has no weights tagged ''"),
        (["--print-config", "--dry-run"], "--dry-run does nothing with --print-config"),
        (["--net", "timm/vit_tiny_patch16_224:patch_size=0"], "patch_size=0 is too small\nhint: use 1 or more"),
        (["--net", "timm/vit_tiny_patch16_224:depth=-1"], "depth=-1 is too small\nhint: use 1 or more"),
    ],
)
def test_impossible_requests_are_refused_with_a_hint(
    refused: Refused, argv: list[object], sentence: str, tmp_path: Path
) -> None:
    base = [] if "--resume" in argv else [*TINY, "--epochs", "1"]
    if "--net" in argv:
        base = ["--dataset", "digits", "--size", "8"]
    if "--dataset" in argv:
        base = []
    assert sentence in refused("train", *base, *argv)
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_never_overwritten(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "mine")
    before = {path: path.read_bytes() for path in (tmp_path / "runs" / "mine").rglob("*") if path.is_file()}
    sentence = refused("train", *TINY, "--epochs", 1, "--name", "mine")
    assert "vitctl train --resume runs/mine" in sentence
    assert before == {path: path.read_bytes() for path in (tmp_path / "runs" / "mine").rglob("*") if path.is_file()}


def test_runs_without_a_name_get_separate_folders(cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli("train", *TINY, "--max-steps", 1).code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_mistakes_in_a_config_file_are_refused(refused: Refused, tmp_path: Path) -> None:
    for text, sentence in (
        ("epoch: 3", "did you mean epochs"),
        ("lr: 1e-3\nlr: 2e-3", ":2: duplicate key 'lr'"),
        ("lr: fast", "--lr takes a number"),
        ("[1]", "not 'key: value' lines"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        assert sentence in refused("train", "--config", "c.yaml")


def test_ctrl_c_before_the_run_starts_ends_the_process_with_the_signal(python: list[str], tmp_path: Path) -> None:
    code = (
        "import os, signal; from vitctl.training import start; from vitctl.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores SIGINT
        "start.open_session = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "main(['train', '--dataset', 'digits', '--net', 'cct_2', '--name', 'a'])"
    )
    done = subprocess.run([*python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT and done.stderr == "stopped\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "start", "expected"),
    [("--net", "cct", "cct_2"), ("--opt", "ad", "adamw"), ("--dataset", "d", "digits"), ("--recipe", "se", "seed")],
)
def test_completion_offers_values(flag: str, start: str, expected: str, python: list[str]) -> None:
    env = {
        **os.environ,
        "_VITCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vitctl train {flag} {start}",
        "COMP_CWORD": "3",
    }
    result = subprocess.run(
        [*python, "-c", "from vitctl.cli import main; main()"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in result.stdout.split()


def test_debug_shows_the_traceback(python: list[str]) -> None:
    result = subprocess.run(
        [*python, "-m", "vitctl", "train", "--net", "vitt"],
        env={**os.environ, "VITCTL_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in result.stderr


def image_folder(root: Path) -> None:
    from PIL import Image

    for part, count in (("train", 12), ("test", 4)):
        for shade, name in ((40, "dark"), (200, "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10 + i, 12), (shade + i,) * 3).save(root / part / name / f"{i}.png")


def test_a_folder_of_images_trains_resumes_and_is_evaluated_from_anywhere(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path / "shades")
    net = ["--net", "cct_2:embed_dim=16,depth=1,conv_width=8", "--size", 8, "--bs", 8]
    first = cli("train", "--dataset", "shades", *net, "--epochs", 1, "--name", "r", "--json")
    assert first.code == 0, first.err
    assert (first.json()["train_images"], first.json()["val_images"], first.json()["test_images"]) == (21, 3, 8)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("train", "--resume", "../runs/r", "--dataset", "../shades", "--epochs", 2).code == 0
    scores = cli("eval", "../runs/r", "--json")
    assert scores.code == 0 and [row["class"] for row in scores.json()["classes"]] == ["dark", "light"]
    assert cli("eval", "../runs/r", "--split", "val", "--json").json()["images"] == 3


def test_unreadable_images_are_refused_unless_skipped(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    image_folder(tmp_path / "shades")
    (tmp_path / "shades" / "train" / "dark" / "3.png").write_bytes(b"not an image")
    run = ["train", "--dataset", "shades", "--net", "cct_2:embed_dim=16,depth=1", "--size", 8, "--bs", 8, "--epochs", 1]
    assert "--skip-bad-images" in refused(*run)
    skipped = cli(*run, "--skip-bad-images", "--json")
    assert skipped.json()["skipped_images"] == 1 and "3.png" in skipped.err
