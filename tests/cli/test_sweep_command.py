"""``vitctl sweep`` from the file to the best settings, with real training on digits."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy.exc import OperationalError

from tests.conftest import TINY_NET, Cli
from tests.sweep.conftest import SHIPPED, sweep_text
from tests.sweep.fake import make_sweep
from vitctl.config import resolve_config
from vitctl.sweep.sweep import TrialRow

Refused = Callable[..., str]

PARAMETERS = {
    "lr": {"distribution": "q_log_uniform_values", "min": 1e-4, "max": 1e-2, "q": 1e-4},
    "weight_decay": {"values": [0.0, 0.05]},
    "net": {"value": TINY_NET},
    "dataset": {"value": "digits"},
    "size": {"value": 8},
    "epochs": {"value": 1},
    "limit_train": {"value": 200},
    "limit_test": {"value": 100},
}


def write(**more: object) -> dict[str, object]:
    """Write ``s.yaml`` and return it."""
    text = {
        "method": "bayes",
        "metric": {"name": "val_acc", "goal": "maximize"},
        "parameters": PARAMETERS,
        "run_cap": 2,
        **more,
    }
    Path("s.yaml").write_text(json.dumps(text))
    return text


@pytest.mark.usefixtures("forked_runs")
def test_a_sweep_runs_from_its_file_to_its_best_settings(cli: Cli, tmp_path: Path) -> None:
    write()
    ran = cli("sweep", "agent", "s.yaml", "--seed", 1)
    assert ran.code == 0 and "is finished" in ran.err and "Top 1" in ran.out, ran.err

    rows = json.loads(cli("sweep", "export", "s.yaml", "--format", "json").out)
    assert [list(row) for row in rows] == [["trial", "state", "params", "value", "run"]] * 2
    assert [row["state"] for row in rows] == ["complete"] * 2
    for row in rows:  # each trial is an ordinary run
        summary = json.loads((tmp_path / row["run"] / "summary.json").read_text())
        config = json.loads((tmp_path / row["run"] / "config.json").read_text())["config"]
        assert summary["val_acc"] == row["value"]
        assert {name: config[name] for name in row["params"]} == pytest.approx(row["params"])
        assert config["lr"] == pytest.approx(round(config["lr"] / 1e-4) * 1e-4)  # on the file's grid
    table = list(csv.DictReader(io.StringIO(cli("sweep", "export", "s.yaml", "--format", "csv").out)))
    assert [json.loads(line["params"]) for line in table] == [row["params"] for row in rows]

    best = max(rows, key=lambda row: row["value"])
    top = cli("sweep", "top", "-k", 1, "s.yaml").out
    assert f"{best['value']:.2f} %" in top and "Top 2" not in top
    settings = cli("sweep", "best", "s.yaml", "--config").out
    Path("best.yaml").write_text(settings)
    shown = yaml.safe_load(cli("train", "--config", "best.yaml", "--print-config").out)
    assert {name: shown[name] for name in best["params"]} == pytest.approx(best["params"])
    assert shown["limit_train"] == 200

    assert "2 complete of 2" in cli("sweep", "status", "s.yaml").out
    listed = cli("sweep", "list").out
    (stored,) = (tmp_path / "runs" / "sweeps").glob("*/study.db")
    assert stored.parent.name in listed and "finished" in listed

    again = cli("sweep", "agent", "s.yaml", "--seed", 1)
    assert again.code == 0 and "is finished: 2 complete" in again.err
    assert len(json.loads(cli("sweep", "export", "s.yaml", "--format", "json").out)) == 2

    drawn = cli("sweep", "plot", "s.yaml")
    files = [Path(line) for line in drawn.out.split()]
    assert {file.suffix for file in files} == {".png", ".html"}, drawn.err
    assert all(file.stat().st_size > 1000 for file in files)
    assert {file.stem for file in files} >= {"history", "parallel", "curves"}

    write(run_cap=5)
    edited = cli("sweep", "agent", "s.yaml")
    assert edited.code == 2 and "run_cap: 2 -> 5" in edited.err and "--new" in edited.err


@pytest.mark.usefixtures("forked_runs")
def test_the_best_settings_keep_the_recipe_s_values_for_short_runs(cli: Cli) -> None:
    tiny = {"value": "vit_small:embed_dim=16,depth=1,num_heads=2,head_dim=8"}
    write(parameters={**PARAMETERS, "net": tiny, "recipe": {"value": "vit_small"}}, run_cap=1)
    assert cli("sweep", "agent", "s.yaml").code == 0
    Path("best.yaml").write_text(cli("sweep", "best", "s.yaml", "--config").out)
    longer = yaml.safe_load(cli("train", "--config", "best.yaml", "--epochs", 5, "--print-config").out)
    assert (longer["epochs"], longer["aug"]) == (5, "none")  # as in the trials
    usual = resolve_config({"recipe": "vit_small", "dataset": "digits", "epochs": 5})
    assert usual.aug == "basic"


def test_create_prints_only_the_id_and_queued_trials_run_first(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    write()
    created = cli("sweep", "create", "s.yaml")
    id = created.out.strip()
    assert created.code == 0 and created.out == f"{id}\n" and (tmp_path / "runs" / "sweeps" / id).is_dir()
    assert cli("sweep", "enqueue", id, "lr=0.0007", "weight_decay=0.05").code == 0
    assert "already has these parameters" in refused("sweep", "enqueue", id, "lr=0.0007", "weight_decay=0.05")

    assert cli("sweep", "stop", id).code == 0
    assert "stopped" in cli("sweep", "status", id).out
    assert cli("sweep", "agent", id).code == 0
    assert json.loads(cli("sweep", "export", id, "--format", "json").out)[0]["state"] == "waiting"
    assert cli("sweep", "resume", id).code == 0
    assert cli("sweep", "agent", id, "--count", 1).code == 0
    (row,) = json.loads(cli("sweep", "export", id, "--format", "json").out)
    assert row["state"] == "complete" and row["params"] == pytest.approx({"lr": 7e-4, "weight_decay": 0.05})


@pytest.mark.parametrize(("width", "tables", "across"), [(120, 1, True), (60, 1, False), (30, 3, False)])
def test_the_best_trials_fit_a_narrow_terminal(tmp_path: Path, width: int, tables: int, across: bool) -> None:
    from rich.console import Console

    from vitctl.cli.sweep_view import top_tables

    parameters = {"lr": {"values": [1e-3, 2e-3]}, "adan_beta1": {"values": [0.02, 0.03]}, "opt": {"value": "adan"}}
    sweep = make_sweep(sweep_text({**parameters, "weight_decay": {"values": [0.0, 0.05]}}, method="random"), tmp_path)
    params = {"lr": 1e-3, "adan_beta1": 0.02, "weight_decay": 0.05}
    rows = [TrialRow(n, "complete", params, 29.1 - n, 5, "run", None, None, None, 1) for n in range(3)]
    console = Console(width=width, record=True, file=io.StringIO())
    found = top_tables(sweep, rows, width)
    console.print(*found, sep="\n")
    text = console.export_text()
    assert len(found) == tables and "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("29.10 %", "27.10 %", "adan_beta1", "weight_decay", "0.001", "complete"))
    assert any("lr" in line and "adan_beta1" in line for line in text.splitlines()) == across


def test_a_dry_run_creates_nothing(cli: Cli, tmp_path: Path) -> None:
    write(method="grid", parameters={**PARAMETERS, "lr": {"values": [1e-3, 2e-3, 3e-3]}})
    shown = cli("sweep", "create", "s.yaml", "--dry-run", 2)
    assert shown.code == 0 and any(line.split() == ["grid", "points", "6"] for line in shown.out.splitlines())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", ["digits.yaml", "./sweeps/digits.yaml"])
def test_vitctls_own_sweep_files_are_found_from_any_folder(cli: Cli, tmp_path: Path, path: str) -> None:
    own = next(file for file in SHIPPED if file.name == "digits.yaml")
    done = cli("sweep", "create", path, "--dry-run", 1, "--json")
    assert done.code == 0 and done.err == f"{Path(path)} not found; using {own}\n"
    assert done.json()["run_cap"] == 12

    write()
    (tmp_path / path).parent.mkdir(exist_ok=True)
    Path("s.yaml").rename(path)
    done = cli("sweep", "create", path, "--dry-run", 1, "--json")
    assert done.code == 0 and "not found" not in done.err
    assert done.json()["run_cap"] == 2


@pytest.mark.parametrize("command", ["create", "agent"])
@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("other/digits.yaml", "did you mean digits.yaml?"),
        ("sweeps/digit.yml", "did you mean digits.yaml?"),
        ("mine.yaml", f"use the path of an existing file, or one of vitctl's: {', '.join(f.name for f in SHIPPED)}"),
    ],
)
def test_other_missing_files_are_refused(refused: Refused, command: str, path: str, hint: str) -> None:
    assert refused("sweep", command, path) == f"error: {path} not found\nhint: {hint}"


def test_a_sweep_that_cannot_be_stored_leaves_no_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitctl.sweep import sweep

    write()

    def full(*_: object, **__: object) -> None:
        cause = sqlite3.OperationalError("database or disk is full")
        cause.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise OperationalError("INSERT", {}, cause)

    monkeypatch.setattr(sweep.optuna, "create_study", full)
    result = cli("sweep", "create", "s.yaml")
    assert result.code == 2 and "the disk is full" in result.err and "Traceback" not in result.err
    assert list((tmp_path / "runs/sweeps").iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["create", "none.yaml"], "none.yaml"),
        (["agent", "nosuchid"], "nosuchid"),
        (["create", "s.yaml", "--fixed", "lr=0.1"], "lr"),
        (["create", "s.yaml", "--fixed", "epochz=1"], "did you mean epochs"),
        (["create", "s.yaml", "--sampler", "tpee"], "did you mean tpe"),
        (["create", "s.yaml", "--pruner", "nope"], "nope"),
        (["create", "s.yaml", "--storage", "mysql:/x"], "storage"),
        (["status", "s.yaml"], "s.yaml"),
        (["create", "s.yaml", "--engine", "wandb", "--sampler", "gp"], "--sampler does nothing with --engine wandb"),
        (["create", "s.yaml", "--engine", "wandb", "--seed", "0"], "--seed does nothing with --engine wandb"),
        (["agent", "s.yaml", "--new", "--gpus", "all"], "this machine has no CUDA device"),
        (["create", "s.yaml", "--pruner", "hyperband:min_epochs=30"], "min_epochs 30 is more than max_epochs 27"),
        (["agent", "s.yaml", "--engine", "wandb", "--max-time", "1h"], "--max-time does nothing with --engine wandb"),
        (["agent", "me/project/abc", "--engine", "local"], "me/project/abc is a sweep of --engine wandb"),
        (["create", "s.yaml", "--engine", "wanbd"], "did you mean wandb"),
        (["top", "me/project/abc"], "https://wandb.ai/me/project/sweeps/abc"),
    ],
)
def test_mistakes_are_refused_with_a_hint(refused: Refused, tmp_path: Path, argv: list[str], sentence: str) -> None:
    write()
    assert sentence in refused("sweep", *argv)
    assert not list((tmp_path / "runs").glob("sweeps/*/study.db"))


def test_unknown_parameters_are_refused_at_create(cli: Cli) -> None:
    write(parameters={**PARAMETERS, "patch_sise": {"values": [1, 2]}, "wieght_decay": {"value": 0.1}})
    result = cli("sweep", "create", "s.yaml")
    assert result.code == 2 and "2 mistakes" in result.err
    assert [line[:9] for line in result.err.splitlines()[1:3]] == ["  s.yaml:"] * 2  # a line each
    assert "'patch_sise'" in result.err and "'wieght_decay'" in result.err
    assert "did you mean weight_decay" in result.err


def test_parameters_may_have_the_names_of_other_tools(cli: Cli) -> None:
    write(parameters={**{name: PARAMETERS[name] for name in PARAMETERS if name != "lr"}, "lr0": PARAMETERS["lr"]})
    shown = cli("sweep", "create", "s.yaml", "--dry-run", 1, "--json")
    assert shown.code == 0 and '"lr0"' in shown.out, shown.err
