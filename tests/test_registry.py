import pytest

from vitctl.data import DATASETS
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.recipes import RECIPES
from vitctl.registry import Entry, Option, convert, format_spec, lookup, split_spec

TABLES = {"models": MODELS, "optimizers": OPTIMIZERS, "datasets": DATASETS}
ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]


def test_no_table_is_empty() -> None:
    assert all(TABLES.values()) and RECIPES


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_every_target_exists_and_has_a_one_line_summary(table: str, name: str) -> None:
    entry: Entry = TABLES[table][name]  # type: ignore[index]
    assert callable(entry.load())
    assert entry.summary and "\n" not in entry.summary


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_every_default_is_valid(table: str, name: str) -> None:
    entry: Entry = TABLES[table][name]  # type: ignore[index]
    defaults = {key: option.default for key, option in entry.options.items()}
    assert entry.resolve_options(defaults, "x") == defaults
    assert entry.resolve_options({key: str(value) for key, value in defaults.items()}, "x") == defaults


def test_specs_round_trip() -> None:
    for spec in ("vit", "vit:depth=8", "sgd:momentum=0.95,nesterov=false"):
        name, options = split_spec(spec, "--x")
        assert format_spec(name, options) == spec
    assert split_spec("vit: embed-dim = 8 , depth=2", "--net") == ("vit", {"embed_dim": "8", "depth": "2"})


@pytest.mark.parametrize("spec", ["", ":a=1", "vit:", "vit:a", "vit:=1", "vit:a=", "vit:a=1,a=2", "vit:a=1,,b=2"])
def test_bad_specs_are_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="--net"):
        split_spec(spec, "--net")


def test_unknown_names_are_refused_with_similar_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown --net 'vit_smal'\nhint: did you mean vit_small"):
        lookup(MODELS, "vit_smal", "--net")
    with pytest.raises(RequestError, match=r"unknown --opt 'qqqq'\nhint: use adam, .* or lion"):
        lookup(OPTIMIZERS, "qqqq", "--opt")


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        ("3", int, 3),
        ("1e2", int, 100),
        (3.0, int, 3),
        ("9007199254740993", int, 9007199254740993),
        ("1e-3", float, 1e-3),
        (2, float, 2.0),
        ("Yes", bool, True),
        ("off", bool, False),
        (1, str, "1"),
    ],
)
def test_values_are_converted(value: object, kind: type, result: object) -> None:
    converted = convert(value, kind, "x")
    assert converted == result and type(converted) is kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("3.5", int),
        ("x", int),
        (True, int),
        (None, int),
        ("nan", float),
        ("inf", float),
        ("", float),
        ("maybe", bool),
        ([1], str),
        ("1e999", int),
    ],
)
def test_bad_values_are_refused_by_flag(value: object, kind: type) -> None:
    with pytest.raises(RequestError, match=r"--flag takes .*\nhint: use "):
        convert(value, kind, "--flag")


def test_options_are_checked() -> None:
    entry = Entry(
        target="a:b",
        summary="x",
        options={
            "depth": Option(2, low=1),
            "p": Option(0.1, low=0, below=1),
            "beta": Option(0.1, above=0),
            "pool": Option("cls", choices=("cls", "avg")),
        },
    )
    assert entry.resolve_options({"depth": "3"}, "--net x") == {"depth": 3, "p": 0.1, "beta": 0.1, "pool": "cls"}
    for given, said in (
        ({"dept": 1}, "--net x has no option 'dept'\nhint: did you mean depth"),
        ({"depth": 0}, "--net x:depth=0 is too small\nhint: use 1 or more"),
        ({"p": 1}, "--net x:p=1 is too large\nhint: use a value of at least 0 and less than 1"),
        ({"beta": 0}, "--net x:beta=0 is too small\nhint: use a value of more than 0"),
        ({"pool": "avgg"}, "unknown --net x:pool 'avgg'\nhint: did you mean avg"),
        ({"depth": "two"}, "--net x:depth takes a whole number, not 'two'\nhint: use a whole number such as 8"),
    ):
        with pytest.raises(RequestError, match=said):
            entry.resolve_options(given, "--net x")
