"""Optimizer comparisons with real training runs on digits."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Cli
from vitctl.benchmark.cost import measure_costs, state_bytes
from vitctl.benchmark.plan import make_plan
from vitctl.config import resolve_config
from vitctl.optim import OPTIMIZERS
from vitctl.optim.build import build_optimizer
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.setup import open_session

COMPARE = ["compare-optimizers", *TINY, "--epochs", "1"]
SETTINGS = {"dataset": "digits", "net": TINY[3], "size": 8, "limit_train": 200, "bs": 64, "epochs": 1}


def by_label(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["label"]: each for each in document["optimizers"]}


def losses(contestant: dict[str, Any]) -> list[list[float]]:
    return [[run["summary"][key] for key in ("train_loss", "val_loss", "test_loss")] for run in contestant["runs"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "checkpoints" / "last.pt")["model"])


def test_runs_that_differ_in_precision_are_noted(cli: Cli, tmp_path: Path) -> None:
    words = [*COMPARE, "sgd", "adam", "--seeds", 1, "--json"]
    fair = "\n".join(cli(*words).json()["notes"])
    assert "differ in precision" not in fair and fair.endswith(", fp32.")
    (summary,) = (tmp_path / "runs").rglob("*adam*/summary.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "precision": "bf16"}))
    notes = cli(*words).json()["notes"]
    assert "The runs differ in precision (bf16, fp32): do not compare their figures." in notes


def test_a_seed_gives_all_optimizers_the_same_weights_and_batches() -> None:
    plan = make_plan(list(OPTIMIZERS), {**SETTINGS, "mixup": 0.5}, seeds=2)
    digests = []
    for seed in plan.seeds:
        sessions = [open_session(each.at(seed)) for each in plan.contestants]
        first, *others = sessions
        for step in range(2):
            images, labels = first.batches.batch(0, step)
            for other in others:
                theirs = other.batches.batch(0, step)
                assert torch.equal(images, theirs[0]) and torch.equal(labels, theirs[1])
            digests.append(images.double().sum().item())
        state = first.model.state_dict()
        assert all(torch.equal(value, state[name]) for o in others for name, value in o.model.state_dict().items())
        digests.append(next(iter(first.model.parameters())).double().sum().item())
    assert len(set(digests)) == len(digests)  # different for each seed


def test_a_comparison(cli: Cli, tmp_path: Path) -> None:
    words = [*COMPARE, "adam", "adam", "muon", "adamw:lr=1e30", "--seeds", 2, "--name", "x", "--json", "--out", "out"]
    result = cli(*words)
    assert result.code == 0, result.err
    document = result.json()
    found = by_label(document)
    assert list(found) == ["adam", "adam (2)", "muon", "adamw:lr=1e30"]

    # the same optimizer twice gives bit-identical results
    assert losses(found["adam"]) == losses(found["adam (2)"])
    folder = tmp_path / "runs" / "comparisons" / "x"
    for seed in (0, 1):
        one, two = (weights(folder / f"{slug}-seed{seed}") for slug in ("adam", "adam-2"))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    (same,) = [pair for pair in document["pairs"] if (pair["first"], pair["second"]) == ("adam", "adam (2)")]
    assert (same["difference"], same["low"], same["high"], same["verdict"]) == (0, 0, 0, "within seed noise")

    # figures match the run folders, which work like any other
    summary = json.loads((folder / "muon-seed1" / "summary.json").read_text())
    assert found["muon"]["runs"][1]["summary"] == summary
    assert found["muon"]["figures"]["val_acc"]["mean"] == pytest.approx(
        sum(run["summary"]["val_acc"] for run in found["muon"]["runs"]) / 2
    )
    assert cli("eval", folder / "muon-seed1", "--json").code == 0
    direct = cli("train", *TINY, "--epochs", 1, "--opt", "muon", "--seed", 1, "--name", "direct", "--json").json()
    assert [direct[key] for key in ("train_loss", "val_loss", "test_loss")] == losses(found["muon"])[1]

    # a contestant diverges, and the others finish
    runs = found["adamw:lr=1e30"]["runs"]
    assert [run["state"] for run in runs] == ["diverged"] * 2 and runs[0]["diverged_step"] >= 1
    assert f"diverged at step {runs[0]['diverged_step']}; the other runs continue" in result.err
    assert found["adamw:lr=1e30"]["figures"] == {}

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"compare-optimizers.{kind}" for kind in ("json", "csv", "md", "html")} <= names
    assert {"compare-optimizers-curves.png", "compare-optimizers-curves.svg"} <= names
    assert json.loads((tmp_path / "out" / "compare-optimizers.json").read_text()) == document

    # the same command again runs nothing
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    again = cli(*words[:-3])
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    assert "x: cct_2 on digits, 2 seeds (0, 1)" in again.out and " *" in again.out

    rows = [line.split(" | ") for line in (tmp_path / "out" / "compare-optimizers.md").read_text().splitlines()]
    shown = {row[0].removeprefix("| "): row[1:] for row in rows if len(row) == 5}
    labels = ["Epoch duration", "Final training accuracy", "Validation step time (batch 100)"]
    labels += ["Final validation accuracy (held out)", "Validation loss", "Optimizer source"]
    assert [
        label for label in shown if label in labels
    ] == labels  # the rows of the original scripts' table (B), in order
    assert shown["Optimizer source"][0].startswith("torch.optim.Adam")
    assert shown["Final validation accuracy (held out)"][3].startswith("diverged at step")
    assert "±" in shown["Validation loss"][2]


def test_adam_and_adamw_are_identical_without_weight_decay(cli: Cli) -> None:
    result = cli(*COMPARE, "adam", "adamw", "--weight-decay", 0, "--lr", 0.01, "--seeds", 1, "--json")
    assert result.code == 0, result.err
    found = by_label(result.json())
    assert losses(found["adam"]) == losses(found["adamw"])
    (pair,) = result.json()["pairs"]
    assert pair["verdict"] == "one seed: no interval" and pair["difference"] == 0


def test_durations_of_partial_epochs_are_marked_as_extrapolated(cli: Cli) -> None:
    for steps, row in ((2, "Epoch duration (extrapolated)"), (4, "Epoch duration  ")):
        result = cli("compare-optimizers", *TINY, "adam", "sgd", "--seeds", 1, "--max-steps", steps, "--name", steps)
        assert result.code == 0 and f"\n{row}" in result.out


def test_the_search_tries_equally_many_rates_and_keeps_the_best(cli: Cli, tmp_path: Path) -> None:
    words = [*COMPARE, "adam", "muon", "sgd:lr=0.1", "--seeds", 2, "--lr-search", 3, "--name", "s"]
    result = cli(*words, "--json")
    assert result.code == 0, result.err
    found = by_label(result.json())
    assert [len(each["search"]) for each in found.values()] == [3, 3, 0]
    for label in ("adam", "muon"):
        tried = {run["lr"]: run["summary"]["val_acc"] for run in found[label]["search"]}
        assert tried[found[label]["lr"]] == max(tried.values())
        assert {run["lr"] for run in found[label]["runs"]} == {found[label]["lr"]}
        # the run of the search is reused for the first seed
        assert found[label]["runs"][0]["summary"] in [run["summary"] for run in found[label]["search"]]
    runs = [path for path in (tmp_path / "runs" / "comparisons" / "s").iterdir() if path.is_dir()]
    assert len(runs) == 2 * 3 + 2 * 1 + 2
    table = cli(*words).out
    assert "Learning rates tried" in table and "(from search)" in table
    assert cli("report", "s").code == 0
    page = Path("report.html").read_text()
    assert "Learning-rate search" in page
    for label in ("adam", "muon"):
        for run in found[label]["search"]:
            assert f"{label}, learning rate {run['lr']:g}: {run['summary']['val_acc']:.2f} %" in page


def start(tmp_path: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitctl", *COMPARE, "--epochs", "30", "--name", "k", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_comparison_resumes(tmp_path: Path, jobs: int, signum: signal.Signals) -> None:
    words = ["adam", "muon", "adamw:lr=1e30", "--seeds", 2, "--jobs", jobs, "--json", "--save-every", 5]
    uncut, place = tmp_path / "uncut", tmp_path / "cut"
    uncut.mkdir()
    place.mkdir()
    expected = by_label(json.loads(start(uncut, *words).communicate(timeout=300)[0]))

    cut = start(place, *words)
    folder = place / "runs" / "comparisons" / "k"
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    cut.send_signal(signum)
    _, err = cut.communicate(timeout=120)
    assert cut.returncode == -signum, err
    assert len(list(folder.glob("*/summary.json"))) < 4
    again = start(place, *words)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    found = by_label(json.loads(out))
    assert {label: losses(each) for label, each in found.items() if each["figures"]} == {
        label: losses(each) for label, each in expected.items() if each["figures"]
    }
    assert [run["diverged_step"] for run in found["adamw:lr=1e30"]["runs"]] == [
        run["diverged_step"] for run in expected["adamw:lr=1e30"]["runs"]
    ]


@pytest.mark.usefixtures("forked_runs")
def test_concurrent_runs_give_the_same_results_with_times_marked_as_shared(cli: Cli) -> None:
    words = [*COMPARE, "adam", "sgd:lr=1e30", "--seeds", 1, "--threads", 1]
    single, concurrent = (cli(*words, "--jobs", jobs, "--name", f"j{jobs}", "--json") for jobs in (1, 2))
    assert (single.code, concurrent.code) == (0, 0), concurrent.err
    one, two = by_label(single.json()), by_label(concurrent.json())
    assert losses(one["adam"]) == losses(two["adam"])
    steps = [each["sgd:lr=1e30"]["runs"][0]["diverged_step"] for each in (one, two)]
    assert steps[0] == steps[1] is not None
    assert (single.json()["shared_times"], concurrent.json()["shared_times"]) == (False, True)
    table = cli(*words, "--jobs", 2, "--name", "j2").out
    assert "Epoch duration (shared machine)" in table


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_cost_is_measured(opt: str) -> None:
    config = resolve_config({**SETTINGS, "opt": opt})
    cost = measure_costs({opt: config})[opt]
    assert 0 < cost.low <= cost.step_time <= cost.high < 5
    assert cost.source
    params = sum(4 * p.numel() for p in open_session(config).model.parameters())
    copies = {"adam": 2, "adamw": 2, "sgd": 1, "lion": 1, "adan_pytorch": 4, "adan": 4}
    if opt in copies:
        assert copies[opt] * params <= cost.state_bytes <= copies[opt] * params * 1.1 + 4096


def test_state_shared_by_views_counts_once() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer("adam", resolve_config({"opt": "adam"}).opt_options, model, lr=1.0, weight_decay=0.0)
    storage = torch.zeros(100)
    for parameter, view in zip(model.parameters(), storage.split([60, 40]), strict=True):
        optimizer.state[parameter] = {"view": view}
    assert state_bytes(optimizer) == 400


def test_runs_share_a_wandb_group() -> None:
    plan = make_plan(["adam", "sgd"], {**SETTINGS, "wandb": "offline"})
    assert {each.config.wandb_group for each in plan.grouped("name").contestants} == {"name"}
    mine = make_plan(["adam", "sgd"], {**SETTINGS, "wandb": "offline", "wandb_group": "mine"}).grouped("name")
    assert {each.config.wandb_group for each in mine.contestants} == {"mine"}
    without = make_plan(["adam", "sgd"], SETTINGS)
    assert without.grouped("name") == without


def test_plots_of_one_epoch_and_of_several(cli: Cli, tmp_path: Path) -> None:
    for epochs, kind in itertools.product((1, 2), ("png", "svg", "html")):
        out = tmp_path / f"{epochs}.{kind}"
        words = [*COMPARE, "--epochs", epochs, "adam", "sgd:lr=1e30", "--seeds", 2, "--name", f"{epochs}", "--out", out]
        result = cli(*words)
        assert result.code == 0, result.err
        assert out.stat().st_size > 2000
    assert "diverged" not in result.err.replace("diverged at step", "")
    for name in ("1", tmp_path / "runs" / "comparisons" / "2"):  # a report from the folder is the same
        shown = cli("report", name, "-o", "again.html", "--png", "charts")
        assert shown.out.startswith("adam reaches the best validation accuracy"), shown.err
        pages = [(tmp_path / each).read_text() for each in (f"{Path(name).name}.html", "again.html")]
        assert len({page.partition("<footer>")[0] for page in pages}) == 1
    assert {"curves-val-acc.png", "seeds-val-acc.png"} <= {path.name for path in (tmp_path / "charts").iterdir()}


def test_a_comparison_that_cannot_be_shown_is_refused(cli: Cli, refused: Any, tmp_path: Path) -> None:
    words = [
        *COMPARE,
        "--epochs",
        1,
        "adam",
        "sgd",
        "--seeds",
        1,
        "--name",
        "x",
        "--lr-search",
        2,
        "--limit-train",
        200,
    ]
    assert cli(*words).code == 0
    folder = tmp_path / "runs" / "comparisons" / "x"
    assert cli("report", "x").code == 0
    next(folder.glob("sgd*seed0")).joinpath("summary.json").unlink()
    assert "is not finished" in refused("report", folder)
    record = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**record, "plan": {}}))
    assert "comparison.json is damaged" in refused("report", folder)
    (folder / "comparison.json").write_text("{")
    assert "comparison.json is damaged" in refused("report", folder)


@pytest.mark.usefixtures("forked_runs")
def test_from_sweep_uses_the_settings_of_the_best_trial(cli: Cli, refused: Any, tmp_path: Path) -> None:
    settings = {key: {"value": value} for key, value in SETTINGS.items()}
    parameters = {"lr": {"values": [0.01, 1e-7]}, "adan_beta1": {"value": 0.03}, "opt": {"value": "adan"}}
    sweep = {
        "method": "grid",
        "metric": {"name": "val_acc", "goal": "maximize"},
        "parameters": {**settings, **parameters},
    }
    (tmp_path / "s.yaml").write_text(json.dumps(sweep))
    words = ["compare-optimizers", "adan", "adamw", "--seeds", 1, "--limit-test", 50]
    id = cli("sweep", "create", "s.yaml").out.strip()
    refused(*words, "--from-sweep", id)  # the sweep has no complete trial
    assert cli("sweep", "agent", "s.yaml").code == 0
    best = cli("sweep", "best", id, "--json").json()["settings"]["lr"]
    for target in (id, "s.yaml"):  # the second command has nothing left to run
        result = cli(*words, "--from-sweep", target, "--json")
        assert result.code == 0, result.err
        found = by_label(result.json())
        assert [each["lr"] for each in found.values()] == [best, best]
        assert [each["opt_options"]["beta1"] for each in found.values()] == [0.03, 0.9]
        assert result.json()["config"]["limit_train"] == 200
    assert len(list((tmp_path / "runs" / "comparisons").iterdir())) == 1
