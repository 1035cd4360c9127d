"""A sweep states which images its trials ran on, and names trials that ran on others."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_NET, Cli
from tests.sweep.conftest import sweep_text
from tests.sweep.fake import fake_trainer, make_sweep, run_agent
from vitctl.sweep.images import images_of
from vitctl.sweep.sweep import Sweep, find_sweep

A, B = "a" * 64, "b" * 64


def sweep_of(runs: Path, **more: Any) -> Sweep:
    parameters = {"lr": {"values": [1e-3, 2e-3]}, "epochs": {"value": 1}, "dataset": {"value": "digits"}, **more}
    return make_sweep(sweep_text(parameters), runs)


@pytest.mark.usefixtures("forked_trainers")
def test_trials_on_other_images_are_named(cli: Cli, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs")
    for count, digest in ((2, A), (1, B), (1, A)):
        _, recorder = run_agent(sweep, trainer=fake_trainer(images=digest), count=count)
        assert recorder.events_of("message") == (
            [(f"trial 2 runs on other images ({B[:12]}) than earlier trials",)] if digest == B else []
        )
    status = cli("sweep", "status", sweep.id)
    assert any(line.split() == ["images", A[:12]] for line in status.out.splitlines())
    named = f"not comparable: trials that ran on other images than the first ones: 2 ({B[:12]})\n"
    assert status.err == cli("sweep", "best", sweep.id).err == cli("sweep", "top", sweep.id).err == named
    document = json.loads(cli("sweep", "status", sweep.id, "--json").out)
    assert (document["images"], document["other_images"]) == ([A], {"2": B})


@pytest.mark.usefixtures("forked_trainers")
def test_images_without_files_have_no_digest(cli: Cli, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs")
    run_agent(sweep, count=1)
    document = json.loads(cli("sweep", "status", sweep.id, "--json").out)
    assert (document["images"], document["other_images"]) == ([], {})
    assert all(line.split()[:1] != ["images"] for line in cli("sweep", "status", sweep.id).out.splitlines())


@pytest.mark.parametrize("name", ["size", "data_dir"])
@pytest.mark.usefixtures("forked_trainers")
def test_a_sweep_over_sizes_or_folders_has_several_digests(tmp_path: Path, name: str) -> None:
    values = {"size": [16, 32], "data_dir": ["one", "two"]}[name]
    sweep = sweep_of(tmp_path, **{name: {"values": values}})
    for value, digest in zip(values, (A, B), strict=True):
        sweep.enqueue({name: value, "lr": 1e-3})
        _, recorder = run_agent(sweep, trainer=fake_trainer(images=digest), count=1)
        assert not recorder.events_of("message")


def test_digests_are_those_that_train_records(cli: Cli, tmp_path: Path) -> None:
    def train(name: str) -> tuple[str, str]:
        words = ["--dataset", "images", "--net", TINY_NET, "--size", 8, "--bs", 4, "--max-steps", 1, "--name", name]
        result = cli("train", *words)
        assert result.code == 0, result.err
        found = images_of(tmp_path / "runs" / name, {"lr": 0.1})
        assert found is not None
        return found

    for part, label in itertools.product(("train", "test"), ("cat", "dog")):
        folder = tmp_path / "images" / part / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng([i, *map(ord, part + label)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    before, again = train("before"), train("again")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "train" / "cat" / "3.png")
    changed = train("changed")
    assert before == again and len(before[0]) == 64
    assert changed[0] != before[0] and changed[1] == before[1]
    assert images_of(tmp_path / "runs" / "before", {"data_dir": "images"}) != before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sessions": []}', '{"sessions": [{}], "config": {}}'])
def test_runs_without_a_record_have_no_digest(tmp_path: Path, text: str) -> None:
    assert images_of(tmp_path, {}) is None
    (tmp_path / "config.json").write_text(text)
    assert images_of(tmp_path, {}) is None


def test_the_command_in_hints_finds_the_sweep_again(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    sweep = sweep_of(runs)
    words = shlex.split(sweep.agent_command)
    assert words == ["vitctl", "sweep", "agent", sweep.id, "--runs-dir", str(runs)]
    assert find_sweep(words[3], Path(words[5])).id == sweep.id
