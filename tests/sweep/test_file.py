"""The file's schema, its defaults, and what its mistakes are called."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweep.conftest import SHIPPED, fixture, sweep_file, sweep_text
from tests.sweep.test_space import parameter
from vitctl.errors import RequestError
from vitctl.sweep.file import (
    METRICS,
    check_fixed,
    check_trains,
    length_notes,
    parse_sweep_file,
    read_sweep_file,
)

ADAN = next(path for path in SHIPPED if path.stem == "adan_betas_decay")


def mistakes(text: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse_sweep_file(text, "s.yaml")
    return str(caught.value)


# -- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_right_and_trainable(path: Path) -> None:
    file = read_sweep_file(path)
    check_trains(file, {})
    assert file.space.varying and file.metric.name == "val_acc" and file.metric.goal == "maximize"


def test_the_adan_sweep_is_the_predecessors() -> None:
    file = read_sweep_file(ADAN)
    assert (file.method, file.run_cap, file.title) == ("bayes", None, "adan_betas_decay")
    assert file.space.constants == {"net": "vit_small", "n_epochs": 5, "opt": "adan"}
    assert {name: p.count for name, p in file.space.varying.items()} == {
        "lr": 20,
        "adan_beta1": 9,
        "adan_beta2": 11,
        "adan_beta3": 6,
        "weight_decay": 11,
    }
    assert file.space.size == 20 * 9 * 11 * 6 * 11
    assert file.hyperband is not None and file.hyperband.bands[:2] == (3, 9) and file.hyperband.strict
    assert file.notes == ("program and command are ignored: vitctl train is what runs",)
    assert file.document["parameters"]["lr"]["min"] == 1e-4  # PyYAML would say "1e-4"


@pytest.mark.parametrize("row", fixture("defaulting.json"), ids=lambda row: str(row["parameter"]))
def test_the_same_parameters_are_valid_as_with_wandb(row: dict[str, Any]) -> None:
    if row["schema"] == "param_dict":  # W&B allows nested parameters; vitctl train does not
        with pytest.raises(RequestError, match="it has no key 'parameters'"):
            parameter(row["parameter"])
    elif row["schema"] is None:
        with pytest.raises(RequestError):
            parameter(row["parameter"])
    else:
        p = parameter(row["parameter"])
        assert {"distribution": p.distribution, **p.settings} == row["filled"]


def test_a_file_without_metric_goes_by_val_acc() -> None:
    text = "method: grid\nparameters: {lr: {values: [0.1, 0.2]}}"
    file = parse_sweep_file(text, "s.yaml")
    assert (file.metric.name, file.metric.goal) == ("val_acc", "maximize") and "no metric" in file.notes[0]


def test_the_default_goal_is_wandbs_and_said() -> None:
    file = sweep_file({"lr": {"values": [0.1, 0.2]}}, metric={"name": "val_acc"})
    assert file.metric.goal == "minimize" and "minimized" in file.notes[0]


def test_values_are_read_as_train_reads_them() -> None:
    file = sweep_file(
        {"bs": {"values": [32, "64", 128.0]}, "decay_all": {"values": ["yes", False]}, "lr": {"value": 1}}
    )
    assert file.space.varying["bs"].choices == [32, 64, 128]
    assert file.space.varying["decay_all"].choices == [True, False]


def test_options_of_nets_nest_as_in_wandb() -> None:
    file = sweep_file({"net_options": {"parameters": {"depth": {"values": [1, 2]}}}, "net": {"value": "cct_2"}})
    check_trains(file, {})
    assert file.settings({"net_options.depth": 1}, {}) == {"net": "cct_2", "net_options": {"depth": 1}}


@pytest.mark.parametrize(
    ("lengths", "others", "fixed", "said"),
    [
        ({"epochs": {"values": [1, 3]}}, {}, {}, "epochs: the recipe has other values of aug, bs for"),
        ({"epochs": {"min": 1, "max": 5}}, {"bs": {"value": 64}}, {}, "epochs: the recipe has other values of aug for"),
        ({"epochs": {"values": [1, 3]}}, {"batch_size": {"value": 64}}, {"aug": "none"}, None),
        ({"epochs": {"values": [1, 3]}}, {"dataset": {"value": "digits"}}, {}, "other values of aug for"),
        ({"epochs": {"values": [None, 3]}}, {}, {}, None),
        ({"epochs": {"values": [2, 3]}}, {}, {}, None),
        ({"max_time": {"values": ["60s", "10m"]}}, {"recipe": {"value": "fast"}}, {}, "max_time: the recipe has other"),
        ({"max_time": {"values": ["60s", "70s"]}}, {"recipe": {"value": "fast"}}, {}, None),
    ],
)
def test_lengths_that_change_more_than_themselves_are_told(
    lengths: dict[str, Any], others: dict[str, Any], fixed: dict[str, Any], said: str | None
) -> None:
    file = sweep_file({**lengths, "recipe": {"value": "vit_small"}, **others})
    check_trains(file, fixed)
    told = length_notes(file, fixed)
    assert not told if said is None else said in told[0]


def test_exponents_are_explained() -> None:
    file = sweep_file({"lr": {"distribution": "log_uniform", "min": -7, "max": -5}})
    assert "0.00091188 to 0.0067379" in file.notes[0] and "log_uniform_values" in file.notes[0]


@pytest.mark.parametrize("name", METRICS)
def test_train_records_every_metric(name: str, digits_runs: Path) -> None:
    rows = (digits_runs / "digits" / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(row)[name], (int, float)) for row in rows)


def test_comments_do_not_count_as_a_difference() -> None:
    text = ADAN.read_text()
    file = parse_sweep_file(text, "a.yaml")
    assert file.difference(parse_sweep_file("# new\n" + text, "a.yaml")) == []
    other = parse_sweep_file(text.replace("max: 2e-3", "max: 3e-3"), "a.yaml")
    assert file.difference(other) == ["parameters.lr.max: 0.002 -> 0.003"]
    assert "run_cap: nothing -> 5" in file.difference(parse_sweep_file(text + "\nrun_cap: 5\n", "a.yaml"))


def test_fixed_sets_what_the_file_does_not_vary() -> None:
    file = read_sweep_file(ADAN)
    fixed = check_fixed(file, {"net": "cct_2", "epochs": "2", "limit-train": "200"})
    assert fixed == {"net": "cct_2", "epochs": 2, "limit_train": 200}
    params = file.space.draw(random.Random(0))
    settings = file.settings(params, fixed)
    assert settings == {"opt": "adan", **params, **fixed} and "n_epochs" not in settings
    for key, sentence in (("lr", "varies lr"), ("learning_rate", "no setting of train"), ("bs", "whole number")):
        with pytest.raises(RequestError, match=sentence):
            check_fixed(file, {key: "0.5"})


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_every_mistake_is_named_with_its_line() -> None:
    text = """\
method: bayse
metric:
  name: val_accuracy
  goal: maximise
parameters:
  lr:
    min: "1e-4"
    max: 1e-2
  weigth_decay:
    values: [0.1]
  bs:
    distribution: uniform
    min: 16
    max: 64
early_terminate:
  type: hyperband
  min_itr: 3
runcap: 5
"""
    found = mistakes(text).splitlines()
    assert found[0] == "s.yaml has 9 mistakes:"
    assert [(int(line.split()[1].rstrip(":")), line.split(": ", 1)[1]) for line in found[1:]] == [
        (1, "method 'bayse' is unknown; did you mean bayes?"),
        (3, "'val_accuracy' is not recorded by train; did you mean val_acc?"),
        (4, "goal 'maximise' is unknown; did you mean maximize or minimize?"),
        (7, "'lr': min takes a number, not '1e-4'; write it without quotes: min: 1e-4"),
        (9, "'weigth_decay' is no setting of train; did you mean weight_decay or layer_decay?"),
        (11, "'bs' takes whole numbers, and uniform draws fractions; use int_uniform, or a q_ distribution with q: 1"),
        (15, "hyperband needs min_iter, or max_iter and s"),
        (17, "early_terminate has no key 'min_itr'; did you mean min_iter or max_iter?"),
        (18, "'runcap' is no key of a sweep file; did you mean run_cap?"),
    ]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "parameters is empty"),
        ([], "parameters takes names"),
        ({"lr": 3}, "'lr' takes value:, values:, or min: and max:, not 3"),
        ({"lr": {}}, "needs value, values, or min and max"),
        (
            {"lr": {"min": 1, "max": 2, "distribution": ["uniform"]}},
            'has the distribution ["uniform"], which is unknown',
        ),
        ({"lr": {"min": 1, "max": 2, "distribution": {}}}, "has the distribution {}, which is unknown"),
        ({"lr": {"min": 0, "max": 10**400}}, "max"),
        ({"lr": {"valeus": [1]}}, "it has no key 'valeus'; did you mean values"),
        ({"lr": {"min": 0.1}}, "needs max too"),
        ({"lr": {"min": 1, "max": 1}}, "min 1 is not less than max 1"),
        ({"lr": {"min": 0.1, "max": 0.5, "q": 0.1}}, "say distribution: q_uniform"),
        ({"lr": {"mu": 1, "sigma": 2}}, "say distribution: normal"),
        ({"lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}, "must be above 0"),
        ({"lr": {"min": 0.0, "max": 1, "distribution": "q_uniform", "q": 0}}, "q is 0; it must be above 0"),
        ({"lr": {"distribution": "log_unifrom", "min": 1, "max": 2}}, "did you mean log_uniform"),
        ({"lr": {"distribution": "normal"}}, "can become -5.9978: --lr is -5.99781; the least is 0"),
        ({"lr": {"distribution": "log_uniform", "min": 0, "max": 1e4}}, "too large"),
        ({"lr": {"values": []}}, "values takes a list"),
        ({"lr": {"values": [0.1, "fast"]}}, "--lr takes a number, not 'fast'"),
        ({"lr": {"values": [0.1, -2]}}, "--lr is -2; the least is 0"),
        ({"lr": {"values": [[1]]}}, "a number, text, true or false"),
        ({"lr": {"values": [1, 2], "probabilities": [0.5, 0.4]}}, "make 0.9, not 1"),
        ({"lr": {"values": [1, 2], "probabilities": [1.0]}}, "2 values and 1 probabilities"),
        ({"lr": {"value": 1, "values": [1]}}, "which has no 'values'"),
        ({"lr": {"value": 0.1}, "bs": {"value": 8}}, "nothing varies"),
        ({"opt": {"min": 1, "max": 3}}, "list them under values:"),
        ({"lr": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-13}}, "q is 1e-13, which is too small"),
        ({"decay_all": {"min": 0, "max": 1}}, "list them under values:"),
        ({"schedule": {"values": ["cosin", "linear"]}}, "did you mean cosine"),
        ({"epochs": {"values": [1, 2]}, "n_epochs": {"value": 3}}, "both set epochs"),
        ({"model": {"parameters": {"depth": {"value": 2}}}}, "'model' is no setting of train"),
        ({"lr": {"parameters": {"depth": {"value": 2}}}}, "only net_options, opt_options, aug_options have"),
        ({"net_options": {"value": 2}}, "takes parameters:"),
        ({"l r": {"value": 2}}, "no name of a parameter"),
        ({"net_options": {"parameters": {"p": {"values": [1, True]}}}}, "has both 1 and true, which are equal"),
    ],
)
def test_wrong_parameters(parameters: Any, sentence: str) -> None:
    assert sentence in mistakes(sweep_text(parameters))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"method": "custom"}, "W&B's way to run a scheduler"),
        ({"method": "grid"}, "cannot go through 'lr', which is uniform"),
        ({"method": "grid", "parameters": {"seed": {"min": 0, "max": 10**9}}}, "too many for method: grid"),
        ({"run_cap": 0}, "run_cap takes a whole number from 1, not 0"),
        ({"run_cap": "20"}, "not '20'"),
        ({"name": 3}, "name takes text, not 3"),
        ({"command": "python train.py"}, "command takes a list"),
        ({"job": "x"}, "W&B Launch"),
        ({"scheduler": {"engine": "optuna"}}, "say method: bayes"),
        ({"metrics": []}, "a sweep has one metric"),
        ({"metric": "val_acc"}, "metric takes name and goal"),
        ({"metric": {"goal": "maximize"}}, "metric needs a name"),
        ({"metric": {"name": "test_acc"}}, "take val_acc"),
        ({"metric": {"name": "val_acc", "target": "high"}}, "target takes a number"),
        ({"metric": {"name": "val_acc", "impute": "mean"}}, "impute 'mean' is unknown"),
        ({"early_terminate": {"type": "median"}}, "there is hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "max_iter needs s"),
        ({"early_terminate": {"type": "hyperband", "s": 2}}, "s needs max_iter"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 2}}, "there is no band"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "eta takes a number above 1"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": "no"}}, "strict takes true or false"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "from 1, not 0"),
    ],
)
def test_wrong_keys(more: dict[str, Any], sentence: str) -> None:
    assert sentence in mistakes(sweep_text(**{"parameters": {"lr": {"min": 0.1, "max": 0.5}}, **more}))


def test_bayes_and_early_terminate_need_a_metric() -> None:
    parameters = "parameters: {lr: {values: [1, 2]}}"
    assert "method: bayes needs a metric" in mistakes(f"method: bayes\n{parameters}")
    text = f"method: grid\n{parameters}\nearly_terminate: {{type: hyperband, min_iter: 1}}"
    assert "early_terminate needs a metric" in mistakes(text)


@pytest.mark.parametrize(
    ("parameters", "fixed", "sentence"),
    [
        ({"net": {"values": ["cct_2", "vitt"]}}, {}, "did you mean vit"),
        ({"net": {"values": ["vit", "res18"]}, "patch": {"value": 4}}, {}, "net=res18: --patch 4: --net res18 has no"),
        ({"adan_beta1": {"min": 0.01, "max": 0.05}}, {"opt": "adam"}, "belongs to --opt adan"),
        ({"net_options": {"parameters": {"dpth": {"values": [1, 2]}}}}, {"net": "cct_2"}, "did you mean depth"),
        ({"lr": {"values": [0.1, 0.2]}}, {"val": "none"}, "val: none measures no val_acc"),
        ({"lr": {"values": [0.1, 0.2]}}, {"val": "test"}, "val: test takes val_acc from the test set"),
        (
            {"lr": {"values": [0.1, 0.2]}},
            {"recipe": "seed"},
            "val: test (of recipe seed) takes val_acc from the test set",
        ),
    ],
)
def test_what_train_would_refuse_is_refused_at_once(parameters: Any, fixed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=re.escape(sentence)):
        check_trains(sweep_file(parameters), fixed)


def broken(path: Path, count: int) -> list[str]:
    """Return ``count`` broken versions of a real file: keys and values lost, doubled, mistyped, of another kind."""
    rng = random.Random(path.stem)
    lines = path.read_text().splitlines()
    found = []
    while len(found) < count:
        text = list(lines)
        at = rng.randrange(len(text))
        kind = rng.randrange(8)
        if kind == 0:
            del text[at]
        elif kind == 1:
            text[at] = text[at][1:]
        elif kind == 2:
            text.insert(at, text[at])
        elif kind == 3:
            cut = rng.randrange(len(text[at]) + 1)
            text[at] = text[at][:cut] + rng.choice("{[]}:&*!%@`'\"\t\0é") + text[at][cut:]
        elif kind == 4:
            text[at] = re.sub(
                r": .*", f": {rng.choice(['[]', '{}', 'x', '-1', '.nan', '~', '2020-01-01', '1e999'])}", text[at]
            )
        elif kind == 5:
            text[at] = text[at].swapcase()
        elif kind == 6:
            text = text[:at]
        else:
            text[at] = re.sub(r"[a-z]", lambda m: rng.choice("aeiou"), text[at], count=2)
        found.append("\n".join(text))
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_broken_files_get_sentences(path: Path) -> None:
    """None of 60 broken versions of each file raises anything but a sentence that names file and line."""
    refused = 0
    for text in broken(path, 60):
        try:
            file = parse_sweep_file(text, "s.yaml")
            check_trains(file, {})
        except RequestError as error:
            refused += 1
            sentence = str(error)
            assert re.search(
                r"line \d+|s\.yaml is not valid YAML|train would refuse|s\.yaml must be|measures no", sentence
            ), sentence
            assert "Traceback" not in sentence and len(sentence) > 20
    assert refused >= 25


def test_what_is_no_mapping_at_all() -> None:
    for text in (
        "",
        "[]",
        "3",
        "a: b: c",
        "- 1\n- 2",
        "\0",
        "method: grid\n---\nmethod: grid",
        "a: &x [*x]",
        "!!python/object:os.system x",
    ):
        assert "s.yaml" in mistakes(text)
    deep = "{a: " * 2000 + "1" + "}" * 2000
    assert "s.yaml" in mistakes(deep)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00method")
    for name in ("missing.yaml", "bytes.yaml", "."):
        with pytest.raises(RequestError, match=re.escape(str(tmp_path))):
            read_sweep_file(tmp_path / name)


def test_shipped_files_are_wandbs_format_too() -> None:
    for path in SHIPPED:
        assert {"method", "metric", "parameters"} <= set(yaml.safe_load(path.read_text()))
