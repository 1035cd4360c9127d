"""``vitctl runs``: list, show, diff and rm."""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli
from tests.runs.fabricated import make_run
from tests.test_startup import HEAVY
from vitctl.cli.runs_view import LEAST_IMPORTANT, LONGEST, cell, fitting, shown
from vitctl.files import locked
from vitctl.runs.query import COLUMNS

Refused = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return ``runs`` with a finished, an interrupted and a failed run, newest first."""
    runs = tmp_path / "runs"
    make_run(runs / "done", test_acc=91.234, settings={"seed": 1})
    make_run(runs / "half", test_acc=None, epochs=2, settings={"net": "cct_2", "net_options": {"depth": 2}}, age=1)
    make_run(runs / "bad", test_acc=None, epochs=0, settings={"lr": 0.5}, age=2)
    (runs / "bad" / "failure.json").write_text('{"kind": "not_finite", "message": "the loss is not finite"}')
    return runs


def table(text: str) -> list[list[str]]:
    """Return the words of each line of a printed list, without the rule."""
    return [line.split() for line in text.splitlines() if not line.startswith("─")]


def test_runs_are_listed_newest_first(cli: Cli, runs: Path) -> None:
    listed = cli("runs", "list")
    assert listed.code == 0 and listed.err == ""
    assert table(listed.out) == [
        ["name", "net", "opt", "dataset", "epochs", "test_acc", "val_acc", "time", "state"],
        ["done", "vit_small", "adamw", "digits", "3", "91.23", "%", "43.00", "%", "30", "s", "finished"],
        ["half", "cct_2", "adamw", "digits", "2/3", "-", "42.00", "%", "20", "s", "interrupted"],
        ["bad", "vit_small", "adamw", "digits", "0/3", "-", "-", "-", "failed"],
    ]
    assert not any(line.endswith(" ") for line in listed.out.splitlines())


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--where net=vit_small", "done bad"),
        ("--where net=vit_small --where test_acc>90", "done"),
        ("--where state!=finished --sort name", "bad half"),
        ("--sort epoch", "half done bad"),
        ("--sort epoch --reverse", "done half bad"),
        ("--reverse", "bad half done"),
        ("--sort net,lr --reverse", "bad done half"),
        ("--where depth=2", "half"),
    ],
)
def test_runs_are_selected_and_sorted(cli: Cli, runs: Path, flags: str, names: str) -> None:
    listed = cli("runs", "list", *flags.split(), "--columns", "name")
    assert [row[0] for row in table(listed.out)[1:]] == names.split(), listed.err
    rows = cli("runs", "list", *flags.split(), "--json").json()
    assert [row["name"] for row in rows] == names.split()


def test_columns_are_shown_in_the_given_order(cli: Cli, runs: Path) -> None:
    listed = cli("runs", "list", "--columns", "name,state,seed,net:depth,failure", "--where", "seed=1")
    assert table(listed.out)[0] == ["name", "state", "seed", "net_options.depth", "failure"]
    assert table(listed.out)[1] == ["done", "finished", "1", "6", "-"]
    rows = cli("runs", "list", "--columns", "name,net:depth", "--json").json()
    assert rows[1] == {"name": "half", "net_options.depth": 2}


def test_a_list_is_written_as_csv(cli: Cli, runs: Path, tmp_path: Path) -> None:
    make_run(runs / 'a,"b"\n', age=3)
    assert cli("runs", "list", "--csv", "all.csv").code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text(), newline="")))
    assert [row["name"] for row in rows] == ["done", "half", "bad", 'a,"b"\n']
    assert rows[0]["test_acc"] == "91.234" and rows[1]["test_acc"] == "" and rows[2]["lr"] == "0.5"
    assert cli("runs", "list", "--columns", "name,lr", "--where", "name=bad", "--csv", "few.csv").code == 0
    assert (tmp_path / "few.csv").read_text() == "name,lr\nbad,0.5\n"


def test_a_table_does_not_replace_a_file_of_a_run(refused: Refused, runs: Path) -> None:
    assert "is not a .csv" in refused("runs", "list", "--csv", "runs/done/config.json")
    assert "no such folder" in refused("runs", "diff", "done", "bad", "--csv", "none/x.csv")


def test_an_empty_list_has_a_note(cli: Cli, runs: Path, tmp_path: Path) -> None:
    listed = cli("runs", "list", "--where", "seed=77", "--json", "--csv", "x.csv")
    assert listed.code == 0 and listed.json() == [] and listed.err == "no match among 3 runs in runs\n"
    assert (tmp_path / "x.csv").read_text().startswith("name,run,state,")
    (tmp_path / "empty").mkdir()
    listed = cli("runs", "list", "--runs-dir", "empty")
    assert listed.code == 0 and listed.out == "" and listed.err.startswith("no runs in empty; start one with vitctl")


def test_mistakes_are_refused(refused: Refused, runs: Path) -> None:
    assert "folder of runs none not found\nhint: use --runs-dir" in refused("runs", "list", "--runs-dir", "none")
    assert "unknown column 'tset_acc'\nhint: did you mean test_acc" in refused("runs", "list", "--sort", "tset_acc")
    assert "unknown column 'nmae'\nhint: did you mean name?" in refused("runs", "list", "--columns", "nmae")
    assert "is not a condition\nhint: use --where" in refused("runs", "list", "--where", "net")
    assert "run dune not found in runs\nhint: use done" in refused("runs", "show", "dune")
    assert "needs two runs or more\nhint: use vitctl runs diff done RUN" in refused("runs", "diff", "done")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_default_columns_fit_the_terminal(width: int) -> None:
    cells = {column: ["x" * 20 if column == "name" else "12345678"] * 3 for column in COLUMNS}
    kept, lost = fitting(COLUMNS, cells, width)
    assert sorted([*kept, *lost]) == sorted(COLUMNS) and lost == list(LEAST_IMPORTANT[: len(lost)])
    sizes = [max(len("time" if column == "seconds" else column), len(cells[column][0])) + 2 for column in kept]
    assert sum(sizes) - 2 <= width and ("name" in kept and "test_acc" in kept and "state" in kept)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("test_acc", 91.234, "91.23 %"),
        ("card.test_acc", 59.0, "59.00 %"),
        ("val_loss", 0.5, "0.5000"),
        ("seconds", 6600.0, "1 h 50 min"),
        ("peak_memory", 2**20, "1.0 MiB"),
        ("params", 214248, "214,248"),
        ("bs", 2048, "2048"),
        ("lr", 0.001, "0.001"),
        ("compile", True, "true"),
        ("git_commit", "a" * 40 + "+", "a" * 12 + "+"),
        ("started", "2026-11-30T08:05:00+00:00", "2026-11-30 08:05"),
        ("name", "a\x1b[31m\nb", "a\\x1b[31m\\nb"),
        ("bs", "many", "many"),
        ("refits", [[1, 2]], "[[1, 2]]"),
        ("test_acc", None, "-"),
    ],
)
def test_values_are_shown_with_their_units(column: str, value: object, text: str) -> None:
    assert shown(column, value) == text


@pytest.mark.parametrize(
    ("epoch", "epochs", "text"),
    [(None, 10, "0/10"), (3, 10, "3/10"), (10, 10, "10"), (2, None, "2"), (None, None, "0")],
)
def test_epochs_are_those_done_of_those_set(epoch: int | None, epochs: int | None, text: str) -> None:
    assert cell({"epoch": epoch, "epochs": epochs}, "epochs") == text


def test_a_run_is_shown(cli: Cli, runs: Path) -> None:
    text = cli("runs", "show", "done").out
    for line in ("done: finished", "started  2026-11-30 08:05 UTC", "epochs   3", "vitctl train --net vit_small"):
        assert line in text
    assert "net=vit_small:patch_size=" in text and text.index("test_acc") < text.index("epoch ")
    text = cli("runs", "show", "runs/bad").out
    assert "bad: failed" in text and "failure  the loss is not finite" in text and "results" not in text
    document = cli("runs", "show", "half", "--json").json()
    assert document["state"] == "interrupted" and document["settings"]["net_options"] == {"depth": 2}
    assert [row["epoch"] for row in document["history"]] == [1, 2] and document["results"] == document["history"][-1]
    assert document["failure"] is None and len(document["sessions"]) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"config": {"net": 5, "lr": "x", "net_options": 3, "epochs": "y"}, "sessions": [{}, 7]}'),
        ("summary.json", '{"test_acc": "high", "epoch": null, "seconds": NaN, "params": {"a": [1]}}'),
        ("metrics.jsonl", "{}\n[]\n{"),
        ("failure.json", '{"kind": 3}'),
    ],
)
def test_damaged_runs_are_listed_shown_and_compared(cli: Cli, runs: Path, name: str, content: str) -> None:
    for run in ("done", "half"):
        (runs / run / name).write_text(content)
    for argv in (
        ["list"],
        ["list", "--sort", "lr,test_acc"],
        ["show", "done"],
        ["show", "half"],
        ["diff", "done", "half"],
    ):
        for more in ([], ["--json"]):
            result = cli("runs", *argv, *more)
            assert result.code == 0, result.err
            if more:
                assert json.loads(result.out)


def test_differences_are_shown(cli: Cli, runs: Path, tmp_path: Path) -> None:
    make_run(runs / "again", test_acc=91.734, settings={"seed": 2}, summary={"seconds": 33.0})
    shown = cli("runs", "diff", "done", "again", "--csv", "d.csv")
    assert shown.code == 0 and shown.err == "the same: code, machine, data\n"
    lines = table(shown.out)
    assert ["seed", "1", "2"] in lines and ["time", "30", "s", "33", "s", "+10.0", "%"] in lines
    assert ["test_acc", "91.23", "%", "91.73", "%", "+0.50", "points"] in lines
    document = cli("runs", "diff", "done", "again", "--json").json()
    assert document["runs"] == ["done", "again"] and document["settings"] == {"seed": [1, 2]}
    assert document["code"] == {} and document["notes"] == []
    assert (tmp_path / "d.csv").read_text().splitlines() == [
        "section,name,done,again",
        "settings,seed,1,2",
        "results,test_acc,91.234,91.734",
        "results,seconds,30.0,33.0",
    ]
    assert "change" not in cli("runs", "diff", "done", "again", "half").out


def answer(monkeypatch: pytest.MonkeyPatch, text: str, *, terminal: bool = True) -> None:
    stdin = io.StringIO(text)
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


@pytest.mark.parametrize("text", ["y\n", "YES\n", "n\n", "\n", "", "yikes\n"])
def test_rm_asks(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    answer(monkeypatch, text)
    result = cli("runs", "rm", "half", "runs/bad", "bad")
    agreed = text.strip().lower() in ("y", "yes")
    assert "half (interrupted, " in result.err and "delete 2 runs? [y/N]" in result.err and result.out == ""
    assert result.code == (0 if agreed else 1)
    assert sorted(path.name for path in runs.iterdir()) == (["done"] if agreed else ["bad", "done", "half"])


def test_rm_with_yes_does_not_ask(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "", terminal=False)
    result = cli("runs", "rm", "half", "bad", "--yes", "--json")
    assert result.code == 0 and result.json() == {"deleted": ["runs/half", "runs/bad"]}
    assert [path.name for path in runs.iterdir()] == ["done"]


def test_rm_refuses_without_a_terminal(refused: Refused, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "y\n", terminal=False)
    assert "needs a terminal to ask before it deletes\nhint: add --yes" in refused("runs", "rm", "done")
    assert (runs / "done").exists()


def test_rm_deletes_nothing_if_a_run_is_refused(refused: Refused, runs: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "outside")
    with locked(runs / "half" / ".lock"):
        assert "half\nhint: wait" in refused("runs", "rm", "done", "half", "--yes")
    assert "outside is outside runs" in refused("runs", "rm", "done", "../outside", "--yes")
    assert "is not a run" in refused("runs", "rm", "done", "runs", "--yes")
    assert (tmp_path / "outside").exists() and len(list(runs.iterdir())) == 3


def test_a_trained_run_is_listed_and_deleted(cli: Cli, tmp_path: Path) -> None:
    summary = cli("train", *TINY, "--epochs", 1, "--lr", 0.002, "--name", "r", "--json").json()
    (row,) = cli("runs", "list", "--where", "lr=2e-3", "--where", "net=cct_2:depth=1", "--json").json()
    assert row["test_acc"] == summary["test_acc"] and row["state"] == "finished"
    assert cli("runs", "show", "r").code == 0
    assert cli("runs", "rm", "r", "--yes").code == 0 and list((tmp_path / "runs").iterdir()) == []


LIST = """
import sys
from vitctl.cli import main
code = main(["runs", "list", "--where", "net=vit_small", "--sort", "test_acc"])
print(*(name for name in sys.argv[1:] if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.serial
def test_a_thousand_runs_are_listed_within_a_second(tmp_path: Path) -> None:
    """It measures the time on the CPU, as other processes may share it."""
    for number in range(1000):
        make_run(tmp_path / "runs" / f"vit_small-{number:04d}", test_acc=number / 10 if number % 4 else None)

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):
        before = seconds()
        done = subprocess.run(
            [sys.executable, "-c", LIST, *HEAVY], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        times.append(seconds() - before)
        assert len(done.stdout.splitlines()) == 1002 and done.stderr == "\n"
    assert min(times) < 1


def test_long_values_are_cut_off() -> None:
    assert shown("wandb_notes", "x" * 50_000_000) == "x" * LONGEST + "…"
