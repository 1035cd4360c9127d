"""Sweep files: schema, defaults, and messages for mistakes."""

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
from vitctl.config import FLAGS, normalise_keys, setting_of
from vitctl.config.names import OPTION_NAMES, SYNONYMS
from vitctl.errors import RequestError
from vitctl.sweep.file import METRICS, check_fixed, check_trains, parse_sweep_file, read_sweep_file
from vitctl.sweep.notes import length_notes

ADAN = next(path for path in SHIPPED if path.stem == "adan_betas_decay")


def mistakes(text: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse_sweep_file(text, "s.yaml")
    return str(caught.value)


# -- valid files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_trainable(path: Path) -> None:
    file = read_sweep_file(path)
    check_trains(file, {})
    assert file.space.varying and file.metric.name == "val_acc" and file.metric.goal == "maximize"


def test_the_adan_sweep_matches_the_original_scripts() -> None:
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
    assert file.notes == ("program and command are ignored: each trial runs vitctl train",)
    assert file.document["parameters"]["lr"]["min"] == 1e-4  # PyYAML reads "1e-4" as text


@pytest.mark.parametrize("row", fixture("defaulting.json"), ids=lambda row: str(row["parameter"]))
def test_parameters_are_valid_exactly_if_wandb_accepts_them(row: dict[str, Any]) -> None:
    if row["schema"] == "param_dict":  # W&B allows nested parameters; vitctl train does not
        with pytest.raises(RequestError, match="has the unknown key 'parameters'"):
            parameter(row["parameter"])
    elif row["schema"] is None:
        with pytest.raises(RequestError):
            parameter(row["parameter"])
    else:
        p = parameter(row["parameter"])
        assert {"distribution": p.distribution, **p.settings} == row["filled"]


def test_the_default_metric_is_val_acc() -> None:
    text = "method: grid\nparameters: {lr: {values: [0.1, 0.2]}}"
    file = parse_sweep_file(text, "s.yaml")
    assert (file.metric.name, file.metric.goal) == ("val_acc", "maximize") and "no metric" in file.notes[0]


def test_the_default_goal_is_wandbs_and_is_reported() -> None:
    file = sweep_file({"lr": {"values": [0.1, 0.2]}}, metric={"name": "val_acc"})
    assert file.metric.goal == "minimize" and "minimized" in file.notes[0]


def test_values_are_converted_as_train_does() -> None:
    file = sweep_file(
        {"bs": {"values": [32, "64", 128.0]}, "decay_all": {"values": ["yes", False]}, "lr": {"value": 1}}
    )
    assert file.space.varying["bs"].choices == [32, 64, 128]
    assert file.space.varying["decay_all"].choices == [True, False]


NESTED = {"net_options": {"parameters": {"depth": {"values": [1, 2]}}}, "net": {"value": "cct_2"}}


@pytest.mark.parametrize(
    "parameters",
    [NESTED, *({name: {"values": [1, 2]}, "net": {"value": "cct_2"}} for name in ("net_options.depth", "num-layers"))],
)
def test_options_of_networks_are_nested_dotted_or_have_other_names(parameters: dict[str, Any]) -> None:
    file = sweep_file(parameters)
    check_trains(file, {})
    assert file.settings({"net_options.depth": 1}, {}) == {"net": "cct_2", "net_options": {"depth": 1}}
    assert file.difference(sweep_file(NESTED)) == []
    assert [note for note in file.notes if "sets" in note] == (
        ["num-layers sets net_options.depth"] if "num-layers" in parameters else []
    )


@pytest.mark.parametrize("name", ["lr_scale", "lr-scale"])
def test_factors_of_the_learning_rate_vary_one_by_one(name: str) -> None:
    parameters = {name: {"parameters": {"head": {"values": [1, 2]}, "norm_bias": {"value": 64}}}}
    file = parse_sweep_file(yaml.safe_dump({"method": "grid", "parameters": parameters}), "s.yaml")
    (head,) = file.space.varying
    settings = normalise_keys(file.settings({head: 2}, {}), "s.yaml")
    assert settings == {"lr_scale": {"head": 2.0, "norm_bias": 64.0}}
    check_trains(file, {})


@pytest.mark.parametrize(("name", "setting"), [*SYNONYMS.items(), *OPTION_NAMES.items()])
def test_parameters_have_the_names_of_other_tools(name: str, setting: str) -> None:
    flag = FLAGS.get(setting)
    kind = flag.kind if flag is not None else int
    value = flag.choices[0] if flag is not None and flag.choices else {bool: True, int: 32, float: 0.5, str: "x"}[kind]
    file = sweep_file({name: {"value": value}, "bs" if setting != "bs" else "lr": {"values": [1, 2]}})
    assert [setting_of(key) for key in file.space.constants] == [setting]
    assert (f"{name} sets {setting}" in file.notes) == (name in OPTION_NAMES)


def test_lists_of_one_are_their_item() -> None:
    file = sweep_file({"lr": {"values": [[0.1], 0.2]}, "bs": {"value": [64]}})
    assert file.space.varying["lr"].choices == [0.1, 0.2] and file.space.constants == {"bs": 64}


def wrapped(**more: Any) -> dict[str, Any]:
    return {"sweep": json.loads(sweep_text({"lr": {"values": [0.1, 0.2]}})), **more}


def test_a_wrapped_file_is_the_sweep_in_it() -> None:
    inner = parse_sweep_file(json.dumps(wrapped()["sweep"]), "s.yaml")
    plain = parse_sweep_file(json.dumps(wrapped()), "s.yaml")
    assert plain.document == inner.document and not plain.notes
    mixed = parse_sweep_file(json.dumps(wrapped(project="p", trainer={"lr": 3})), "s.yaml")
    assert mixed.document == inner.document and mixed.notes == ("only 'sweep' is read; ignored: project, trainer",)


def test_mistakes_in_a_wrapped_file_have_their_lines() -> None:
    text = "sweep:\n  method: random\n  parameters:\n    lr:\n      values: [a]\n    bs:\n      values: [b]\n"
    assert "s.yaml:5: 'lr': --lr takes a number" in mistakes(text) and "s.yaml:7: 'bs'" in mistakes(text)


def test_a_file_of_several_sweeps_names_them() -> None:
    found = mistakes(json.dumps(wrapped(other=wrapped()["sweep"])))
    assert found == "s.yaml has several sweeps: sweep, other\nhint: keep one, such as sweep"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("---\n", "\n---\n# nothing\n", None),
        ("", "\n...\n", None),
        ("# two\n---\n", "\n---\nmethod: grid\n", "s.yaml has 2 documents, which start on lines 3, 5\nhint: keep one"),
    ],
)
def test_a_file_has_one_document(before: str, after: str, message: str | None) -> None:
    text = f"{before}{sweep_text({'lr': {'values': [0.1, 0.2]}})}{after}"
    if message is None:
        assert parse_sweep_file(text, "s.yaml").order == ("lr",)
    else:
        assert message in mistakes(text)


@pytest.mark.parametrize(
    ("lengths", "others", "fixed", "note"),
    [
        ({"epochs": {"values": [1, 3]}}, {}, {}, "epochs: the recipe chooses aug, bs by length"),
        ({"epochs": {"min": 1, "max": 5}}, {"bs": {"value": 64}}, {}, "epochs: the recipe chooses aug by length"),
        ({"epochs": {"values": [1, 3]}}, {"batch_size": {"value": 64}}, {"aug": "none"}, None),
        ({"epochs": {"values": [1, 3]}}, {"dataset": {"value": "digits"}}, {}, "the recipe chooses aug by length"),
        ({"epochs": {"values": [None, 3]}}, {}, {}, None),
        ({"epochs": {"values": [2, 3]}}, {}, {}, None),
        ({"max_time": {"values": ["60s", "10m"]}}, {"recipe": {"value": "fast"}}, {}, "max_time: the recipe chooses"),
        ({"max_time": {"values": ["60s", "70s"]}}, {"recipe": {"value": "fast"}}, {}, None),
    ],
)
def test_varied_lengths_that_change_other_settings_are_reported(
    lengths: dict[str, Any], others: dict[str, Any], fixed: dict[str, Any], note: str | None
) -> None:
    file = sweep_file({**lengths, "recipe": {"value": "vit_small"}, **others})
    check_trains(file, fixed)
    notes = length_notes(file, fixed)
    assert not notes if note is None else note in notes[0]


def test_exponents_are_explained() -> None:
    file = sweep_file({"lr": {"distribution": "log_uniform", "min": -7, "max": -5}})
    assert "0.00091188 to 0.0067379" in file.notes[0] and "log_uniform_values" in file.notes[0]


@pytest.mark.parametrize("name", METRICS)
def test_train_records_every_metric(name: str, digits_runs: Path) -> None:
    rows = (digits_runs / "digits" / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(row)[name], (int, float)) for row in rows)


def test_comments_are_not_a_difference() -> None:
    text = ADAN.read_text()
    file = parse_sweep_file(text, "a.yaml")
    assert file.difference(parse_sweep_file("# new\n" + text, "a.yaml")) == []
    other = parse_sweep_file(text.replace("max: 2e-3", "max: 3e-3"), "a.yaml")
    assert file.difference(other) == ["parameters.lr.max: 0.002 -> 0.003"]
    assert "run_cap: not set -> 5" in file.difference(parse_sweep_file(text + "\nrun_cap: 5\n", "a.yaml"))


def test_fixed_sets_only_settings_that_the_file_does_not_vary() -> None:
    file = read_sweep_file(ADAN)
    fixed = check_fixed(file, {"net": "cct_2", "epochs": "2", "limit-train": "200"})
    assert fixed == {"net": "cct_2", "epochs": 2, "limit_train": 200}
    params = file.space.draw(random.Random(0))
    settings = file.settings(params, fixed)
    assert settings == {"opt": "adan", **params, **fixed} and "n_epochs" not in settings
    for key, message in (
        ("lr", "varies lr"),
        ("learning_rate", "conflicts with"),
        ("learning_rat", "unknown setting"),
        ("bs", "whole number"),
    ):
        with pytest.raises(RequestError, match=message):
            check_fixed(file, {key: "0.5"})


# -- invalid files ----------------------------------------------------------------------------------------------------


def test_all_mistakes_are_listed_with_their_lines() -> None:
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
    assert found[1:-1] == [
        "  s.yaml:1: unknown method 'bayse'; did you mean bayes?",
        "  s.yaml:3: unknown metric 'val_accuracy'; did you mean val_acc?",
        "  s.yaml:4: unknown goal 'maximise'; did you mean maximize or minimize?",
        "  s.yaml:7: 'lr': min takes a number, not '1e-4'; remove the quotes: min: 1e-4",
        "  s.yaml:9: unknown setting 'weigth_decay'; did you mean weight_decay, ema or layer_decay? If not, remove it",
        (
            "  s.yaml:11: 'bs' takes whole numbers, but uniform includes fractions; "
            "use distribution: int_uniform, or a q_ distribution with q: 1"
        ),
        "  s.yaml:15: early_terminate has no min_iter; add min_iter, such as min_iter: 3, or max_iter and s",
        "  s.yaml:17: unknown key 'min_itr' in early_terminate; did you mean min_iter or max_iter?",
        "  s.yaml:18: unknown key 'runcap'; did you mean run_cap?",
    ]
    assert found[-1] == "hint: correct them, then check the file: vitctl sweep create s.yaml --dry-run 1"


def test_a_single_mistake_has_its_own_hint() -> None:
    found = mistakes("method: bayse\nmetric: {name: val_acc, goal: maximize}\nparameters: {lr: {values: [1, 2]}}")
    assert found == "s.yaml:1: unknown method 'bayse'\nhint: did you mean bayes?"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameters is empty"),
        ([], "parameters takes settings by name, not []"),
        ({"lr": 3}, "'lr' takes value, values, or min and max, not 3\nhint: use lr: {value: 3}"),
        ({"lr": {}}, "add value, values, or min and max"),
        ({"lr": {"min": 1, "max": 2, "distribution": ["uniform"]}}, 'has the unknown distribution ["uniform"]'),
        ({"lr": {"min": 1, "max": 2, "distribution": {}}}, "has the unknown distribution {}"),
        ({"lr": {"min": 0, "max": 10**400}}, "max"),
        ({"lr": {"valeus": [1]}}, "has the unknown key 'valeus'\nhint: did you mean values"),
        ({"lr": {"min": 0.1}}, "has min but no max"),
        ({"lr": {"min": 1, "max": 1}}, "min 1 is not less than max 1"),
        ({"lr": {"min": 0.1, "max": 0.5, "q": 0.1}}, "add distribution: q_uniform"),
        ({"lr": {"mu": 1, "sigma": 2}}, "add distribution: normal"),
        ({"lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}, "use min above 0"),
        ({"lr": {"min": 0.0, "max": 1, "distribution": "q_uniform", "q": 0}}, "q 0 is too small\nhint: use q above 0"),
        ({"lr": {"distribution": "log_unifrom", "min": 1, "max": 2}}, "did you mean log_uniform"),
        ({"lr": {"distribution": "normal"}}, "can become -5.9978: --lr -5.99781 is too small\nhint: use 0 or more"),
        ({"lr": {"distribution": "log_uniform", "min": 0, "max": 1e4}}, "too large"),
        ({"lr": {"values": []}}, "values is empty"),
        ({"lr": {"values": [0.1, "fast"]}}, "--lr takes a number, not 'fast'"),
        ({"lr": {"values": [0.1, -2]}}, "--lr -2 is too small\nhint: use 0 or more"),
        ({"lr": {"values": [[1, 2]]}}, "a number, text, true or false"),
        ({"lr": {"values": [1, 2], "probabilities": [0.5, 0.4]}}, "add up to 0.9, not 1"),
        ({"lr": {"values": [1, 2], "probabilities": [1.0]}}, "2 values but 1 probabilities"),
        ({"lr": {"value": 1, "values": [1]}}, "which has no 'values'"),
        ({"lr": {"value": 0.1}, "bs": {"value": 8}}, "no parameter varies"),
        ({"opt": {"min": 1, "max": 3}}, "use a list of values"),
        ({"lr": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-13}}, "q 1e-13 is too small"),
        ({"decay_all": {"min": 0, "max": 1}}, "use a list of values"),
        ({"schedule": {"values": ["cosin", "linear"]}}, "did you mean cosine"),
        ({"epochs": {"values": [1, 2]}, "n_epochs": {"value": 3}}, "both set epochs"),
        ({"model": {"parameters": {"depth": {"value": 2}}}}, "'model' takes no nested parameters"),
        ({"lr": {"parameters": {"depth": {"value": 2}}}}, "only in net_options, opt_options, aug_options or lr_scale"),
        ({"net_options": {"value": 2}}, "takes nested parameters"),
        ({"lr_scale": {"values": ["head=2", "head=3"]}}, "takes nested parameters"),
        ({"net_options.": {"value": 2}}, "unknown setting 'net_options.'"),
        ({"net_options": {"parameters": {"a.b": {"value": 2}}}}, "not a valid parameter name"),
        (
            {"dropout": {"value": 0}, "net_options.dropout": {"value": 0}},
            "'net_options.dropout' and 'dropout' both set",
        ),
        ({"lr": {"values": 0.1}}, "takes a list, not 0.1\nhint: use values: [0.1]"),
        ({"l r": {"value": 2}}, "not a valid parameter name"),
        ({"net_options": {"parameters": {"p": {"values": [1, True]}}}}, "has both 1 and true, which are equal"),
    ],
)
def test_invalid_parameters_are_refused(parameters: Any, message: str) -> None:
    assert message in mistakes(sweep_text(parameters))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "custom"}, "method: custom is not supported"),
        ({"method": "grid"}, "'lr' is uniform, which method: grid does not support"),
        ({"method": "grid", "parameters": {"seed": {"min": 0, "max": 10**9}}}, "too many for method: grid"),
        ({"run_cap": 0}, "run_cap takes a whole number of at least 1, not 0"),
        ({"run_cap": "20"}, "not '20'"),
        ({"name": 3}, "name takes text, not 3"),
        ({"command": "python train.py"}, "command takes a list"),
        ({"job": "x"}, "W&B Launch"),
        ({"scheduler": {"engine": "optuna"}}, "use method: bayes"),
        ({"metrics": []}, "several metrics are not supported"),
        ({"metric": "val_acc"}, "metric takes a name and a goal"),
        ({"metric": {"goal": "maximize"}}, "metric has no name"),
        ({"metric": {"name": "test_acc"}}, "use val_acc"),
        ({"metric": {"name": "val_acc", "target": "high"}}, "target takes a number"),
        ({"metric": {"name": "val_acc", "impute": "mean"}}, "unknown impute 'mean'"),
        ({"early_terminate": {"type": "median"}}, "use type: hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "has no min_iter"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "has max_iter but no s"),
        ({"early_terminate": {"type": "hyperband", "s": 2}}, "has s but no max_iter"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 2}}, "leaves no bands"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "eta takes a number above 1"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": "no"}}, "strict takes true or false"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "of at least 1, not 0"),
    ],
)
def test_invalid_keys_are_refused(more: dict[str, Any], message: str) -> None:
    assert message in mistakes(sweep_text(**{"parameters": {"lr": {"min": 0.1, "max": 0.5}}, **more}))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("amp", "remove it, or use precision: {value: auto}"),
        ("optimizer.lr", "did you mean lr? If not, remove it"),
        ("optimizer.name", "did you mean opt? If not, remove it"),
        ("model.init_args.dropout", "did you mean net_options.dropout? If not, remove it"),
        ("emb_dropout", "did you mean net_options.emb_dropout? If not, remove it"),
        ("learn_rates", "did you mean lr? If not, remove it"),
        ("yuequ_method", "remove it, or list all settings with vitctl train --help"),
        ("num_workers", "remove num_workers"),
    ],
)
def test_unknown_parameters_are_answered_with_what_leaves_a_valid_file(name: str, answer: str) -> None:
    parameters = {name: {"values": [1, 2]}, "bs": {"values": [8, 16]}}
    assert f"hint: {answer}" in mistakes(sweep_text(parameters))
    del parameters[name]
    check_trains(sweep_file(parameters), {})


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("val/loss", "did you mean val_loss?"),
        ("train.loss", "did you mean train_loss?"),
        ("top1_accuracy", "did you mean val_acc?"),
        ("val_mean_ap", "use val_acc, val_loss, train_acc"),
    ],
)
def test_metrics_of_other_scripts_are_answered_with_ours(name: str, answer: str) -> None:
    found = mistakes(sweep_text({"lr": {"values": [0.1, 0.2]}}, metric={"name": name, "goal": "maximize"}))
    assert f"unknown metric {name!r}\nhint: {answer}" in found


def test_bayes_and_early_terminate_need_a_metric() -> None:
    parameters = "parameters: {lr: {values: [1, 2]}}"
    assert "method: bayes needs a metric" in mistakes(f"method: bayes\n{parameters}")
    text = f"method: grid\n{parameters}\nearly_terminate: {{type: hyperband, min_iter: 1}}"
    assert "early_terminate needs a metric" in mistakes(text)


@pytest.mark.parametrize(
    ("parameters", "fixed", "message"),
    [
        ({"net": {"values": ["cct_2", "vitt"]}}, {}, "did you mean vit"),
        ({"net": {"values": ["vit", "res18"]}, "patch": {"value": 4}}, {}, "net=res18: --patch 4: --net res18 has no"),
        ({"adan_beta1": {"min": 0.01, "max": 0.05}}, {"opt": "adam"}, "does nothing with --opt adam"),
        (
            {"momentum": {"values": [0.8, 0.9]}},
            {"net": "cct_2"},
            "use only sgd, muon or muon_sgd as opt, or remove opt_options.momentum",
        ),
        ({"dim_head": {"values": [16, 32]}}, {"net": "cct_2"}, "use only vit, vit_small or vit_tiny as net, or remove"),
        ({"lr_scale": {"parameters": {"heads": {"values": [1, 2]}}}}, {}, "did you mean head"),
        ({"lr_scale.head": {"min": -1.0, "max": 2.0}}, {}, "--lr-scale head=-1 is negative"),
        ({"net_options": {"parameters": {"dpth": {"values": [1, 2]}}}}, {"net": "cct_2"}, "did you mean depth"),
        ({"lr": {"values": [0.1, 0.2]}}, {"val": "none"}, "val: none does not measure val_acc"),
        ({"lr": {"values": [0.1, 0.2]}}, {"val": "test"}, "val: test uses the test set for val_acc"),
        (
            {"lr": {"values": [0.1, 0.2]}},
            {"recipe": "seed"},
            "val: test (from recipe seed) uses the test set for val_acc",
        ),
    ],
)
def test_sweeps_that_train_would_refuse_are_refused(parameters: Any, fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        check_trains(sweep_file(parameters), fixed)


def broken(path: Path, count: int) -> list[str]:
    """Return ``count`` versions of a file with random faults: lines lost, doubled or cut, and changed characters."""
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
def test_broken_files_raise_only_request_errors_with_a_location(path: Path) -> None:
    refused = 0
    for text in broken(path, 60):
        try:
            file = parse_sweep_file(text, "s.yaml")
            check_trains(file, {})
        except RequestError as error:
            refused += 1
            message = str(error)
            located = r"line \d+|s\.yaml:\d+|s\.yaml is not valid YAML|train refuses|s\.yaml must be|does not measure"
            assert re.search(located, message), message
            assert "Traceback" not in message and len(message) > 20
    assert refused >= 25


def test_files_that_are_not_a_mapping_are_refused() -> None:
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


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00method")
    for name in ("missing.yaml", "bytes.yaml", "."):
        with pytest.raises(RequestError, match=re.escape(str(tmp_path))):
            read_sweep_file(tmp_path / name)


def test_shipped_files_have_the_keys_that_wandb_requires() -> None:
    for path in SHIPPED:
        assert {"method", "metric", "parameters"} <= set(yaml.safe_load(path.read_text()))
