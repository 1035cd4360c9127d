"""Errors of the command line itself: two lines each, whose hint says what to type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli

Refused = Callable[..., str]

CASES = [
    # what is typed, error, hint
    # unknown flags
    ("train --epoch 3", "unknown flag --epoch", "did you mean --epochs?"),
    ("train --wieght-decay 0.1", "unknown flag --wieght-decay", "did you mean --weight-decay"),
    ("train --weight_decy 0.1", "unknown flag --weight-decy", "did you mean --weight-decay"),
    ("train --learning-rat 0.1", "unknown flag --learning-rat", "did you mean --lr?"),
    ("train --resum run", "unknown flag --resum", "did you mean --resume?"),
    ("train --zzz", "unknown flag --zzz", "list all flags with vitctl train --help"),
    ("train -z", "unknown flag -z", "list all flags with vitctl train --help"),
    ("eval run --spilt val", "unknown flag --spilt", "did you mean --split?"),
    ("eval run --epochs 3", "vitctl eval has no flag --epochs", "list all flags with vitctl eval --help"),
    ("eval run --max_epochs 3", "vitctl eval has no flag --max-epochs", "list all flags with vitctl eval --help"),
    ("eval run --momentum 0.9", "vitctl eval has no flag --momentum", "list all flags with vitctl eval --help"),
    ("sweep create s.yaml --samplr tpe", "unknown flag --samplr", "did you mean --sampler?"),
    ("--versoin", "unknown flag --versoin", "list all flags with vitctl --help"),
    ("--epochs 3", "unknown flag --epochs", "use vitctl train --epochs"),
    ("sweep --jsn", "unknown flag --jsn", "list all flags with vitctl sweep --help"),
    # unknown commands
    ("trian", "unknown command 'trian'", "did you mean train?"),
    ("qqq", "unknown command 'qqq'", "use train, eval, bench-device, "),
    ("sweep creat", "unknown command 'creat'", "did you mean create"),
    # missing values
    ("train --wandb", "--wandb needs a value", "use --wandb online, offline or disabled"),
    ("train --batch-size", "--batch-size needs a value", "use --batch-size N"),
    ("train --data-dir", "--data-dir needs a value", "use --data-dir DIR"),
    ("eval run --limit", "--limit needs a value", "use --limit N"),
    ("sweep top s.yaml -k", "-k needs a value", "use -k N"),
    # values for switches
    ("train --compile=maybe", "--compile takes no value", "use --compile without a value"),
    ("train --print-config=5", "--print-config takes no value", "use --print-config without a value"),
    ("train --print-config true", "extra argument: true", "a switch such as --json takes no value"),
    # values of a wrong type
    ("eval run --limit x", "--limit takes a whole number, not 'x'", "use a whole number such as 8"),
    ("eval run --limit 0", "--limit 0 is too small", "use 1 or more"),
    ("export run --tolerance x", "--tolerance takes a number, not 'x'", "use a number such as 0.1"),
    ("sweep top s.yaml -k 0", "--count 0 is too small", "use 1 or more"),
    # missing arguments and flags
    ("eval", "missing argument CKPT|RUN|FILE", "use vitctl eval CKPT|RUN|FILE"),
    ("predict run", "missing argument IMAGE|FOLDER...", "use vitctl predict CKPT|RUN|FILE IMAGE|FOLDER..."),
    ("compare-optimizers", "missing argument OPT...", "use vitctl compare-optimizers OPT..."),
    ("sweep create", "missing argument FILE", "use vitctl sweep create FILE"),
    ("convert old.t7 -o new.pt", "--net is missing", "add --net NAME"),
    ("convert old.t7 --net vit", "--output is missing", "add --output FILE"),
    # extra arguments
    ("train vit", "extra argument: vit", "remove it, or put quotes around it; see vitctl train --help"),
    ("eval run other", "extra argument: other", "see vitctl eval --help"),
]


@pytest.mark.parametrize(("words", "error", "hint"), CASES)
def test_mistakes_on_the_command_line_are_two_lines(
    refused: Refused, tmp_path: Path, words: str, error: str, hint: str
) -> None:
    first, second = refused(*words.split()).split("\n")
    assert first == f"error: {error}"
    assert second.startswith("hint: ") and hint in second
    assert not second.removesuffix("...").endswith(".")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [words for words, _, hint in CASES if "--help" in hint])
def test_the_help_named_in_a_hint_exists(cli: Cli, refused: Refused, words: str) -> None:
    hint = refused(*words.split()).split("\n")[1]
    command = hint[hint.index("vitctl ") :].removeprefix("vitctl ")
    result = cli(*command.split())
    assert result.code == 0 and result.out.startswith("Usage: vitctl")


def test_several_similar_flags_are_offered_once_each(refused: Refused) -> None:
    hint = refused("train", "--epoch-s", 3).split("\n")[1]
    flags = hint.removeprefix("hint: did you mean ").rstrip("?").replace(" or ", ", ").split(", ")
    assert "--epochs" in flags and len(flags) == len(set(flags))


@pytest.mark.parametrize("debug", [False, True])
def test_usage_errors_are_never_tracebacks(cli: Cli, monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    monkeypatch.setenv("VITCTL_DEBUG", str(int(debug)))
    result = cli("train", "--epoch", 3)
    assert (result.code, result.out) == (2, "") and "Traceback" not in result.err
