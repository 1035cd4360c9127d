"""Conditions, sorting and columns of a list of runs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vitctl.errors import RequestError
from vitctl.runs.query import COLUMNS, Condition, column_of, columns_in, columns_of, select, sort

ROWS: list[dict[str, Any]] = [
    {
        "name": "a",
        "state": "finished",
        "started": "2026-11-02T08:00:00+00:00",
        "net": "vit",
        "net_options.depth": 8,
        "net_options.patch_size": 4,
        "net_options.mlp_ratio": 2.0,
        "opt": "adan",
        "opt_options.beta1": 0.02,
        "aug_options.flip": "random",
        "flip": "auto",
        "lr": 0.001,
        "epochs": 10,
        "max_time": "10m",
        "compile": True,
        "test_acc": 91.25,
        "seconds": 90.0,
        "warmup": 0.05,
        "data_dir": None,
    },
    {
        "name": "b",
        "state": "failed",
        "started": "2026-11-30T08:00:00+00:00",
        "net": "vit",
        "net_options.depth": 6,
        "net_options.width": 16,
        "opt": "sgd",
        "opt_options.width": 16,
        "lr": 0.01,
        "epochs": 2,
        "compile": False,
        "test_acc": math.nan,
        "seconds": 3700.0,
        "warmup": "5ep",
        "data_dir": "/data",
    },
    {"name": "c d", "state": "damaged"},
]
KNOWN = columns_in(ROWS)


def names(rows: list[dict[str, Any]]) -> str:
    return " ".join(row["name"][0] for row in rows)


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("net=vit", "a b"),
        ("net == vit", "a b"),
        ("--net=vit", "a b"),
        ("model=vit", "a b"),
        ("net!=vit", "c"),
        ("net~v*", "a b"),
        ("net~V*", ""),
        ("name~*[cd]", "c"),
        ("name=c d", "c"),
        ("net=vit:depth=8", "a"),
        ("net=vit:depth=8,patch-size=4", "a"),
        ("net=vit:depth=8,patch-size=2", ""),
        ("net!=vit:depth=8", "b c"),
        ("net:depth=8", "a"),
        ("net.depth>=6", "a b"),
        ("net_options.depth<8", "b"),
        ("depth=6", "b"),
        ("mlp_ratio=2", "a"),
        ("patch=4", "a"),
        ("patch_size=4", "a"),
        ("adan_beta1=.02", "a"),
        ("flip=auto", "a"),
        ("n_epochs>2", "a"),
        ("epochs>=2", "a b"),
        ("lr=1e-3", "a"),
        ("learning-rate<0.01", "a"),
        ("compile=yes", "a"),
        ("compile=false", "b"),
        ("compile!=true", "b c"),
        ("compile>0", ""),
        ("test_acc>91", "a"),
        ("test acc > 91.2 %", "a"),
        ("test_acc<=100", "a"),
        ("test_acc=none", "c"),
        ("test_acc!=none", "a b"),
        ("seconds<2m", "a"),
        ("time>1h", "b"),
        ("time>=3700", "b"),
        ("max_time<=600", "a"),
        ("started>2026-11-15", "b"),
        ("started<2026-11-02 09:00", "a"),
        ("started~2026-11-30*", "b"),
        ("warmup=5ep", "b"),
        ("warmup<1", "a"),
        ("data_dir=none", "a c"),
        ("data_dir=/data", "b"),
        ("state=damaged", "c"),
        ("state!=finished", "b c"),
        ("ema=none", "a b c"),
    ],
)
def test_a_condition_selects_runs(condition: str, found: str) -> None:
    assert names(select(ROWS, [Condition.parse(condition, KNOWN)])) == found


def test_all_conditions_must_hold() -> None:
    conditions = [Condition.parse(text, KNOWN) for text in ("net=vit", "lr>0.001", "state~f*")]
    assert names(select(ROWS, conditions)) == "b" and names(select(ROWS, [])) == "a b c"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("net", "'net' is not a condition"),
        ("", "'' is not a condition"),
        ("=vit", "'=vit' is not a condition"),
        ("lr=>1", "'lr=>1' is not a condition"),
        ("lr<fast", "'lr<fast' needs a number after <"),
        ("net>vit", "'net>vit' needs a number after >"),
        ("time<soon", "'time<soon' needs a number after <"),
        ("net=vit:", "'net=vit:' is incomplete"),
        ("net=vit:depth", "'net=vit:depth' is incomplete"),
        ("net=vit:dept=8", "unknown column 'net.dept'"),
        ("tset_acc>1", "unknown column 'tset_acc'"),
        ("net_options=8", "unknown column 'net_options'"),
        ("noaug=true", "unknown column 'noaug'"),
        ("state=finish", "unknown --where state 'finish'"),
    ],
)
def test_a_wrong_condition_is_refused(condition: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        Condition.parse(condition, KNOWN)
    assert message in error.value.message and error.value.hint


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tset_acc", "did you mean test_acc or best_val_acc?"),
        ("width", "did you mean net_options.width or opt_options.width?"),
        ("xyzzy", "list all columns with vitctl runs list --json"),
        ("noamp", "use precision, such as --where precision=fp32"),
    ],
)
def test_an_unknown_column_is_refused_with_similar_ones(word: str, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        column_of(word, KNOWN)
    assert error.value.hint == hint


@pytest.mark.parametrize(
    ("columns", "reverse", "order"),
    [
        (["lr"], False, "a b c"),
        (["lr"], True, "b a c"),
        (["test_acc"], False, "a b c"),
        (["test_acc"], True, "a b c"),
        (["epochs"], False, "b a c"),
        (["started"], False, "b a c"),
        (["net", "epochs"], False, "b a c"),
        (["net", "epochs"], True, "a b c"),
        (["warmup"], False, "a b c"),
        (["warmup"], True, "b a c"),
        (["compile"], False, "b a c"),
        (["max_time"], False, "a b c"),
        (["name"], True, "c b a"),
        ([], False, "a b c"),
    ],
)
def test_missing_values_are_last_in_any_order(columns: list[str], reverse: bool, order: str) -> None:
    assert names(sort(ROWS, columns, reverse=reverse)) == order


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("name,lr", ["name", "lr"]),
        (" name , n-epochs,name", ["name", "epochs"]),
        ("net:depth,time", ["net_options.depth", "seconds"]),
        ("+lr", [*COLUMNS, "lr"]),
        ("+lr,+seed,net", [*COLUMNS, "lr", "seed"]),
    ],
)
def test_columns_are_chosen_or_added(text: str, columns: list[str]) -> None:
    assert columns_of(text, KNOWN) == columns


@pytest.mark.parametrize("text", ["+", ",", "name,nmae", "name,,+x"])
def test_wrong_columns_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        columns_of(text, KNOWN)
