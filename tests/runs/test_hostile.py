"""Folders of runs that are damaged or made to do harm: a note or one error and hint, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.report.folders import make_run
from tests.runs.fabricated import SESSION
from vitctl.files import LARGEST_RECORD

FILES = ("config.json", "metrics.jsonl", "summary.json", "failure.json", "predictions.npz", "data.json.gz", ".lock")
NAME = "a\x1b[31mb\nc [red]d[bold]\u202e'\\"
"""The name of a folder with terminal sequences, a line break and markup of Rich."""

Plant = Callable[[Path], object]


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 30)


PLANTS: dict[str, Plant] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "1 GB of holes": sparse,
    "deep JSON": lambda path: path.write_text("[" * 200_000),
    "no text": lambda path: path.write_bytes(b"\xff\x00\n" * 9),
}


def check(cli: Cli, *words: object) -> str:
    """Run a command, and return its output, which is no bug report and has nothing that a terminal interprets."""
    result = cli(*words)
    text = result.out + result.err
    assert result.code in (0, 2) and "unexpected" not in text, text
    assert (result.code == 2) == ("error: " in result.err) == ("hint: " in result.err)
    assert all(each.isprintable() for each in text.replace("\n", "")), ascii(text)
    return text


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.timeout(60)
def test_any_file_of_a_run_may_be_something_else(plant: str, file: str, cli: Cli) -> None:
    make_run(Path("plain"))
    run = make_run(Path("run"))
    (run / file).unlink(missing_ok=True)
    PLANTS[plant](run / file)
    for words in (
        ["list", "--runs-dir", "."],
        ["show", "run", "--runs-dir", "."],
        ["diff", "run", "plain", "--runs-dir", "."],
    ):
        check(cli, "runs", *words)
    text = check(cli, "report", "run")
    if file in FILES[1:3] and plant != "no text":
        assert file in Path("report.html").read_text() and "report: report.html" in text


def test_a_long_history_is_refused_whole(cli: Cli) -> None:
    sparse(make_run(Path("run")) / "metrics.jsonl")
    check(cli, "report", "run")
    assert f"larger than {LARGEST_RECORD >> 20}.0 MiB" in Path("report.html").read_text()


VALUES: dict[str, Any] = {
    "true": True,
    "huge": 10**400,
    "NaN": float("nan"),
    "infinite": float("-inf"),
    "text": NAME,
    "list": [[1]],
    "object": {"a": {"b": [1]}},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", ["session", "summary", "card", "metrics", "failure", "settings"])
def test_any_value_of_a_record_may_be_something_else(place: str, value: str, cli: Cli) -> None:
    run = make_run(Path("run"), card={"test_acc": 90.0, "deviation": 0.5, "below": False}, val_acc=9.0, peak_memory=7)
    document = json.loads((run / "config.json").read_text())
    document["sessions"] = [dict(SESSION)]
    summary = json.loads((run / "summary.json").read_text())
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    failure: dict[str, Any] = {"kind": "failed", "message": "no luck", "hint": "h", "exit_code": 1, "step": 3}
    records = {"session": document["sessions"], "summary": [summary], "card": [summary["card"]], "metrics": history}
    keys = list({"failure": failure, "settings": document["config"]}.get(place) or records[place][0])
    for number, key in enumerate(keys[:: 1 + len(keys) // 30]):
        every = records.get(place) or [failure if place == "failure" else document["config"]]
        before = [record[key] for record in every]
        for record in every:
            record[key] = VALUES[value]
        folder = Path("runs") / str(number)
        make_run(folder, predictions=False)
        (folder / "config.json").write_text(json.dumps(document))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
        (folder / "summary.json").write_text(json.dumps(summary))
        if place in ("failure", "metrics"):  # which matter only to a run that has not finished
            (folder / "summary.json").unlink()
            (folder / "failure.json").write_text(json.dumps(failure))
        for record, old in zip(every, before, strict=True):
            record[key] = old
    folders = sorted(Path("runs").iterdir())
    check(cli, "runs", "list")
    check(cli, "runs", "list", "--json")
    check(cli, "runs", "list", "--sort", "test_acc,lr,started,epoch", "--where", "lr>0")
    check(cli, "runs", "diff", *folders)
    for folder in folders:
        check(cli, "runs", "show", folder)
    check(cli, "report", *folders)


@pytest.mark.parametrize("words", [["runs", "show"], ["runs", "rm"], ["report"], ["train", "--resume"]])
@pytest.mark.parametrize("exists", [True, False])
def test_names_with_terminal_sequences_are_escaped(words: list[str], exists: bool, cli: Cli) -> None:
    make_run(Path("runs") / NAME, finished=False)
    if words != ["train", "--resume"]:
        check(cli, "runs", "list")
        check(cli, *words, NAME if exists else NAME[:-1])
    text = check(cli, *words, f"{NAME}.")
    assert "$'" in text or words[0] == "runs"
