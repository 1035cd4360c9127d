"""Mistakes in ``--config`` files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vitctl.config import FLAGS, read_settings
from vitctl.config.keys import RUN_FLAGS
from vitctl.config.names import SWITCHES
from vitctl.errors import RequestError


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def test_all_mistakes_are_reported_with_line_and_hint(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# mine\nnet: vit_smal\nlr: fast\n\nepoch: 3\nbs: 0\nepochs: 3\nn_epochs: 4\nmomentum: 0.9\nnum_workers: 4\n"
        "val: tset\nopt: adammm:lr=3\naug: randog\nrecipe: sed\nnet_options: 3\nwarmup: 5\ndecay_all: maybe\n",
    )
    with pytest.raises(RequestError) as refused:
        read_settings(path)
    first, *lines = refused.value.message.splitlines()
    assert first == f"{path} has 14 mistakes:"
    assert refused.value.hint == f"correct them, then check the file: vitctl train --config {path} --print-config"
    expected = [
        (2, "unknown --net 'vit_smal'; did you mean vit_small"),
        (3, "--lr takes a number, not 'fast'; use a number"),
        (5, "unknown setting 'epoch'; did you mean epochs"),
        (6, "--bs 0 is too small; use 1 or more"),
        (8, "'n_epochs' sets epochs a second time; remove 'n_epochs'"),
        (9, "momentum is not a setting of vitctl; use --opt sgd:momentum=0.9"),
        (10, "num_workers is not needed: images are kept in memory and augmented on the device; remove num_workers"),
        (11, "unknown --val 'tset'; did you mean test"),
        (12, "unknown --opt 'adammm'; did you mean"),
        (13, "unknown --aug 'randog'; did you mean randaug"),
        (14, "unknown --recipe 'sed'; did you mean seed"),
        (15, "'net_options' must be a mapping of options; use net_options: {}"),
        (16, "--warmup 5 has no unit; use 5ep for epochs"),
        (17, "--decay-all takes true or false, not 'maybe'; use true or false"),
    ]
    assert len(lines) == len(expected)
    for line, (number, text) in zip(lines, expected, strict=True):
        assert line.startswith(f"  {path}:{number}: {text}"), line


def test_a_single_mistake_is_an_error_of_two_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 0.1\nepoch: 3\n")
    with pytest.raises(
        RequestError, match=rf"^{re.escape(str(path))}:2: unknown setting 'epoch'\nhint: did you mean epochs"
    ):
        read_settings(path)


def test_what_people_write_in_yaml_is_understood(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "x-long: &long\n  epochs: 20\n  warmup_epochs: 5\nx-unused: [1, 2]\n<<: *long\n"
        "max_steps: 1_000\nlr: 1e-3\nweight_decay: 5E-2\nwandb_notes: 2024-05-01\nwandb_group: 2024_05_01\n"
        "data_dir:\nseed: ~\nnet_options:\nopt_options:\n  eps:\nnowandb: true\namp: false\naug: true\nmixup: yes\n",
    )
    assert read_settings(path) == {
        "epochs": 20, "warmup_epochs": 5.0, "max_steps": 1000, "lr": 1e-3, "weight_decay": 0.05,
        "wandb_notes": "2024-05-01", "wandb_group": "2024_05_01", "opt_options": {}, "wandb": "disabled", "aug": True,
        "mixup": True,
    }  # fmt: skip


def test_a_key_of_x_is_only_for_anchors_at_the_top(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"c.yaml:1: unknown setting 'xlr'"):
        read_settings(write(tmp_path, "xlr: 3\n"))
    assert read_settings(write(tmp_path, "net_options:\n  x-depth: 3\n")) == {"net_options": {"x_depth": 3}}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name: a\n", "'name' is a flag of train, not a setting", "remove 'name', and give --name"),
        ("runs-dir: a\n", "'runs-dir' is a flag of train, not a setting", "remove 'runs-dir', and give --runs-dir"),
        ("method: grid\nparameters: {lr: {values: [1]}}\n", "c.yaml is a sweep file", "run vitctl sweep create"),
        ("net: vit\n\tlr: 1\n", "cannot start any token", "replace the tabs with spaces in line 2 of"),
        ("warmup: 5%\n", "--warmup takes a fraction, epochs or steps, not '5%'", "use 0.05 for a fraction"),
    ],
)
def test_the_hint_of_a_file_names_what_to_do(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_settings(write(tmp_path, text))
    assert message in refused.value.message
    assert (refused.value.hint or "").startswith(hint)


def test_flags_of_train_are_settings_or_named_as_flags() -> None:
    import typer

    from vitctl.cli.app import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parameters = {each.name for each in commands["train"].params}
    names = {"config_file": "config", "as_json": "json"}
    assert {names.get(name, name) for name in parameters - {*FLAGS, *SWITCHES}} == {*RUN_FLAGS}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("wandb: off\n", {"wandb": "disabled"}),
        ("wandb: true\n", {"wandb": "online"}),
        ("wandb_tags: [a, 2]\n", {"wandb_tags": "a,2"}),
        ("net-options: {embed-dim: 16}\n", {"net_options": {"embed_dim": 16}}),
    ],
)
def test_spellings_of_other_tools_are_accepted(tmp_path: Path, text: str, settings: dict[str, object]) -> None:
    assert read_settings(write(tmp_path, text)) == settings
