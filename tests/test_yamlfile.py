import math
from pathlib import Path

import pytest

from vitctl.errors import RequestError
from vitctl.yamlfile import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E4", 1e4),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("true", True),
        ("~", None),
        (".inf", math.inf),
        ("1_000", "1_000"),
        ("[1e-4, 2]", [1e-4, 2]),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "file")["key"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr: 1\nbs: 2\nlr: 3", "file, line 3: the key 'lr' is given twice"),
        ("a: {b: 1, b: 2}", "file, line 1: the key 'b' is given twice"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: could not determine a constructor"),
        ("- 1", "must hold 'key: value' lines"),
        ("a: [", "line 1"),
        ("? [1]\n: 2", "a key must be a plain word"),
        ("[" * 5000, "nested too deeply"),
        ("a: \t- b\n\t- c", "line"),
    ],
)
def test_mistakes_are_named(text: str, sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_yaml(text, "file")
    assert sentence in str(error.value)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not there"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read"):
        read_yaml(tmp_path / "image.png")
    with pytest.raises(RequestError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}
