"""Flags of timm's train.py, ultralytics, Lightning and Hugging Face's Trainer: accepted, or answered with a hint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tests.conftest import Cli
from vitctl.cli.app import app
from vitctl.cli.modes import MODES
from vitctl.config import FLAGS, OPTION_TABLES, flag_name, foreign_name, normalise_keys
from vitctl.config.names import INSTEAD, NOT_NEEDED, SYNONYMS

Refused = Callable[..., str]

ACCEPTED: list[tuple[str, str, str, object]] = [
    # tool, what is typed, setting, value
    ("timm", "--model vit_tiny", "net", "vit_tiny"),
    ("timm", "--dataset digits", "dataset", "digits"),
    ("timm", "--img-size 64", "size", 64),
    ("timm", "--batch-size 64", "bs", 64),
    ("timm", "--grad-accum-steps 2", "accumulate", 2),
    ("timm", "--opt adamw", "opt", "adamw"),
    ("timm", "--weight-decay 0.05", "weight_decay", 0.05),
    ("timm", "--clip-grad 2.0", "clip_grad", 2.0),
    ("timm", "--sched cosine", "schedule", "cosine"),
    ("timm", "--lr 1e-3", "lr", 1e-3),
    ("timm", "--epochs 300", "epochs", 300),
    ("timm", "--smoothing 0.2", "label_smoothing", 0.2),
    ("timm", "--reprob 0.25", "erase", 0.25),
    ("timm", "--mixup 0.4", "mixup", 0.4),
    ("timm", "--cutmix 0.5", "cutmix", 0.5),
    ("timm", "--model-ema-decay 0.999", "ema", 0.999),
    ("timm", "--seed 42", "seed", 42),
    ("timm", "--amp", "precision", "auto"),
    ("timm", "--warmup-epochs 5", "warmup", "5ep"),
    ("ultralytics", "--warmup_epochs=3.0", "warmup", "3ep"),
    ("Hugging Face", "--warmup_steps 500", "warmup", "500st"),
    ("torchvision", "--lr-warmup-epochs 5", "warmup", "5ep"),
    ("ultralytics", "--amp=True", "precision", "auto"),
    ("ultralytics", "--epochs=100", "epochs", 100),
    ("ultralytics", "--batch=16", "bs", 16),
    ("ultralytics", "--imgsz=64", "size", 64),
    ("ultralytics", "--optimizer=sgd", "opt", "sgd"),
    ("ultralytics", "--lr0=0.01", "lr", 0.01),
    ("ultralytics", "--patience=50", "patience", 50),
    ("ultralytics", "--erasing=0.4", "erase", 0.4),
    ("ultralytics", "--compile=True", "compile", True),
    ("ultralytics", "--compile True", "compile", True),
    ("Lightning", "--max_epochs 5", "epochs", 5),
    ("Lightning", "--max_steps 100", "max_steps", 100),
    ("Lightning", "--gradient_clip_val 0.5", "clip_grad", 0.5),
    ("Lightning", "--accumulate_grad_batches 4", "accumulate", 4),
    ("Lightning", "--seed_everything 7", "seed", 7),
    ("Hugging Face", "--dataset_name digits", "dataset", "digits"),
    ("Hugging Face", "--num_train_epochs 3", "epochs", 3),
    ("Hugging Face", "--per_device_train_batch_size 8", "bs", 8),
    ("Hugging Face", "--gradient_accumulation_steps 4", "accumulate", 4),
    ("Hugging Face", "--learning_rate 5e-5", "lr", 5e-5),
    ("Hugging Face", "--max_grad_norm 0.5", "clip_grad", 0.5),
    ("Hugging Face", "--lr_scheduler_type cosine", "schedule", "cosine"),
    ("Hugging Face", "--warmup_ratio 0.1", "warmup", 0.1),
    ("Hugging Face", "--label_smoothing_factor 0.2", "label_smoothing", 0.2),
    ("Hugging Face", "--save_steps 500", "save_every", "500"),
    ("Hugging Face", "--torch_compile", "compile", True),
    ("Hugging Face", "--early_stopping_patience 3", "patience", 3),
]

ANSWERED: list[tuple[str, str, str]] = [
    # tool, what is typed, part of the hint
    ("timm", "-b 64", "--bs"),
    ("timm", "-j 4", "remove -j"),
    ("timm", "--initial-checkpoint w.pth", "--pretrained FILE"),
    ("timm", "--num-classes 10", "remove --num-classes"),
    ("timm", "--input-size 3", "--size"),
    ("timm", "--validation-batch-size 64", "remove --validation-batch-size"),
    ("timm", "--channels-last", "remove --channels-last"),
    ("timm", "--grad-checkpointing", "--bs"),
    ("timm", "--opt-betas 0.9", "--opt adamw:beta1=0.9,beta2=0.999"),
    ("timm", "--opt-eps 1e-8", "--opt adamw:eps=1e-8"),
    ("timm", "--momentum 0.9", "--opt sgd:momentum=0.9"),
    ("timm", "--clip-mode agc", "--clip-grad"),
    ("timm", "--cooldown-epochs 5", "--warmdown 0.2"),
    ("timm", "--min-lr 1e-5", "remove --min-lr"),
    ("timm", "--no-aug", "--aug none"),
    ("timm", "--aa rand-m9-mstd0.5", "--aug randaug"),
    ("timm", "--color-jitter 0.4", "--aug trivialaug"),
    ("timm", "--hflip 0.5", "--flip on"),
    ("timm", "--mixup-off-epoch 5", "--mix-off 0.1"),
    ("timm", "--drop-path 0.1", "drop_path_rate=0.1"),
    ("timm", "--model-kwargs depth=8", "--net vit:depth=8"),
    ("timm", "--model-ema", "--ema 0.999"),
    ("timm", "--sync-bn", "--device cuda:0"),
    ("timm", "--workers 4", "remove --workers"),
    ("timm", "--torchcompile", "--compile"),
    ("timm", "--output out", "--runs-dir"),
    ("timm", "--checkpoint-hist 3", "--keep 3"),
    ("timm", "--log-wandb", "--wandb online"),
    ("ultralytics", "--data=data.yaml", "--dataset FOLDER"),
    ("ultralytics", "--time=1", "--max-time 1h"),
    ("ultralytics", "--project=runs", "--runs-dir"),
    ("ultralytics", "--exist_ok=True", "another --name"),
    ("ultralytics", "--pretrained=True", "--net vit_timm"),
    ("ultralytics", "--optimizer=AdamW", "did you mean adamw"),
    ("ultralytics", "--cos_lr=True", "--schedule cosine"),
    ("ultralytics", "--close_mosaic=10", "--mix-off 0.1"),
    ("ultralytics", "--fraction=0.5", "--limit-train"),
    ("ultralytics", "--freeze=10", "--freeze-backbone"),
    ("ultralytics", "--dropout=0.1", "dropout=0.1"),
    ("ultralytics", "--half=True", "--precision fp16"),
    ("ultralytics", "--save_period=1", "--save-every"),
    ("ultralytics", "--val=True", "holdout"),
    ("Lightning", "--accelerator gpu", "--device cuda:0"),
    ("Lightning", "--devices 2", "--device cuda:0"),
    ("Lightning", "--strategy ddp", "--device cuda:0"),
    ("Lightning", "--precision 16-mixed", "fp16"),
    ("Lightning", "--max_time 00:12:00:00", "10m"),
    ("Lightning", "--fast_dev_run", "--dry-run"),
    ("Lightning", "--limit_train_batches 0.1", "--limit-train"),
    ("Lightning", "--check_val_every_n_epoch 2", "remove --check-val-every-n-epoch"),
    ("Lightning", "--default_root_dir out", "--runs-dir"),
    ("Lightning", "--logger wandb", "--wandb online"),
    ("Lightning", "--ckpt_path last.ckpt", "--resume RUN"),
    ("Lightning", "--auto_lr_find", "--lr-finder"),
    ("Hugging Face", "--model_name_or_path google/vit", "--net timm/resnet18"),
    ("Hugging Face", "--output_dir out", "--runs-dir"),
    ("Hugging Face", "--overwrite_output_dir", "another --name"),
    ("Hugging Face", "--per_device_eval_batch_size 8", "remove --per-device-eval-batch-size"),
    ("Hugging Face", "--adam_beta2 0.999", "--opt adamw:beta1=0.9,beta2=0.999"),
    ("Hugging Face", "--optim adamw_torch", "adamw"),
    ("Hugging Face", "--lr_scheduler_type constant_with_warmup", "constant"),
    ("Hugging Face", "--fp16", "--precision fp16"),
    ("Hugging Face", "--bf16", "--precision bf16"),
    ("Hugging Face", "--use_cpu", "--device cpu"),
    ("Hugging Face", "--eval_strategy epoch", "remove --eval-strategy"),
    ("Hugging Face", "--save_total_limit 3", "--keep 3"),
    ("Hugging Face", "--load_best_model_at_end", "remove --load-best-model-at-end"),
    ("Hugging Face", "--metric_for_best_model accuracy", "remove --metric-for-best-model"),
    ("Hugging Face", "--report_to wandb", "--wandb online"),
    ("Hugging Face", "--resume_from_checkpoint out", "--resume RUN"),
    ("Hugging Face", "--do_eval", "vitctl eval RUN"),
]

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TRAIN = COMMANDS["train"]


def typed(words: str) -> tuple[str, object]:
    """Return the key and value that stand for ``--flag value`` in a file."""
    flag, _, value = words.replace("=", " ", 1).partition(" ")
    return key(flag), yaml.safe_load(value) if value else True


def key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


@pytest.mark.parametrize(("tool", "words", "setting", "value"), ACCEPTED)
def test_flags_of_other_tools_with_the_same_values_are_accepted(
    cli: Cli, tmp_path: Path, tool: str, words: str, setting: str, value: object
) -> None:
    by_flag = cli("train", *words.split(), "--print-config")
    assert by_flag.code == 0, by_flag.err
    assert yaml.safe_load(by_flag.out)[setting] == value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(dict([typed(words)])))
    by_file = cli("train", "--config", "c.yaml", "--print-config")
    assert (by_file.code, by_file.out) == (0, by_flag.out), by_file.err


@pytest.mark.parametrize(("tool", "words", "hint"), ANSWERED)
def test_other_flags_of_other_tools_are_answered_with_a_hint(
    refused: Refused, tool: str, words: str, hint: str
) -> None:
    assert hint in hint_of(refused("train", *words.split(), "--print-config"))


@pytest.mark.parametrize("name", [*INSTEAD, *NOT_NEEDED])
def test_names_in_a_file_are_answered_like_flags(refused: Refused, tmp_path: Path, name: str) -> None:
    error, hint = refused("train", flag_name(name), "--print-config").split("\nhint: ")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({name: 1}))
    in_file, hint_in_file = refused("train", "--config", "c.yaml", "--print-config").split("\nhint: ")
    assert in_file == error.replace(flag_name(name), f"c.yaml:1: {name}")
    assert hint_in_file == (hint if name in INSTEAD else f"remove {name}")


def hint_of(answer: str) -> str:
    error, hint = answer.split("\nhint: ")
    assert error.startswith("error: ")
    return hint


def test_tables_of_names_do_not_overlap() -> None:
    own = {key(name) for parameter in TRAIN.params for name in parameter.opts}
    assert {*FLAGS} <= own
    tables: list[set[str]] = [{*SYNONYMS}, {*INSTEAD}, {*NOT_NEEDED}, own | {*OPTION_TABLES}]
    for i, table in enumerate(tables):
        for other in tables[i + 1 :]:
            assert not table & other
    assert {*SYNONYMS.values()} <= {*FLAGS}
    assert all(re.fullmatch("[a-z0-9_]+", name) for table in tables[:3] for name in table)


@pytest.mark.parametrize("name", [*INSTEAD, *NOT_NEEDED])
def test_messages_and_hints_are_short(name: str) -> None:
    error = foreign_name(name, flag_name(name))
    assert error is not None and error.hint is not None
    for line in (error.message, error.hint):
        assert len(line) <= 100 and not line.endswith(".")


@pytest.mark.parametrize(("name", "setting"), SYNONYMS.items())
def test_files_accept_every_synonym(name: str, setting: str) -> None:
    flag = FLAGS[setting]
    value = flag.choices[0] if flag.choices else {bool: True, int: 32, float: 0.5, str: "x"}[flag.kind]
    assert normalise_keys({name: value}, "f") == {setting: value}


def advised(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands and words that a hint advises to type; flags without ``vitctl COMMAND`` are those of train."""
    for part in re.split(r"(?=\bvitctl )", text):
        command = re.match(r"vitctl ([a-z-]+)", part)
        if command:
            yield command[1], []
        flag = r"--[a-z][\w-]*(?: [^\s-]\S*)?"
        for words in re.findall(rf"{flag}(?: {flag})*", part):
            yield command[1] if command else "train", [word.rstrip(",;") for word in words.split()]


ADVISED = [
    (name, command, words)
    for name, text in (INSTEAD | NOT_NEEDED).items()
    for command, words in advised(text)
]  # fmt: skip


@pytest.mark.parametrize(("name", "command", "words"), ADVISED)
def test_every_flag_named_in_a_hint_works(cli: Cli, name: str, command: str, words: list[str]) -> None:
    flags = {
        option: each for each in COMMANDS[command].params for option in each.opts if not getattr(each, "hidden", False)
    }
    for word in words:
        assert not word.startswith("-") or word in flags, word
    placeholders = any(re.search("[A-Z]{2}", word) for word in words)
    bare = words and words[-1] in flags and not flags[words[-1]].is_flag  # such as: another --name
    if command != "train" or not words or placeholders or bare:
        return
    if any(flag_name(mode) in words for mode in MODES):
        TRAIN.make_context("train", list(words))
        return
    result = cli("train", *words, "--print-config")
    assert result.code == 0, result.err


def test_hints_name_many_flags() -> None:
    assert len({tuple(words) for _, _, words in ADVISED}) > 50


def test_no_hint_offers_a_hidden_flag(cli: Cli) -> None:
    for command in (TRAIN, COMMANDS["bench-device"], COMMANDS["compare-optimizers"]):
        hidden = {name for each in command.params if getattr(each, "hidden", False) for name in each.opts}
        assert "--noaug" in hidden
        for name in hidden:
            for misspelled in (name[:-1], f"{name}s", f"{name[:4]}x{name[4:]}", f"--no-{name[4:]}g"):
                result = cli(command.name, misspelled)
                assert result.code == 2
                offered = set(re.findall(r"--[a-z][\w-]*", hint_of(result.err.strip())))
                assert not offered & hidden, (misspelled, result.err)


@pytest.mark.parametrize("setting", [name for name in FLAGS if len(name) > 4])
def test_a_misspelled_flag_gets_a_suggestion(refused: Refused, setting: str) -> None:
    flag = flag_name(setting)
    misspelled = flag[:4] + flag[5:]
    hint = hint_of(refused("train", misspelled, "x", "--print-config"))
    assert flag in hint.replace("?", "").replace(",", "").split()
