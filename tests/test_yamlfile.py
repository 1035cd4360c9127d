import math
from pathlib import Path

import pytest

from vitctl.errors import RequestError
from vitctl.yamlfile import parse_yaml, read_text


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
        ("1_000", 1000),
        ("2024_05_01", "2024_05_01"),
        ("2024-05-01", "2024-05-01"),
        ("[1e-4, 2]", [1e-4, 2]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "file")["key"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nbs: 2\nlr: 3", "file:3: duplicate key 'lr'\nhint: correct line 3 of file"),
        ("a: {b: 1, b: 2}", "file:1: duplicate key 'b'\nhint: correct line 1 of file"),
        ("a: !!python/object/apply:os.system ['true']", ":1: could not determine a constructor"),
        ("- 1", "file has a list at the top level, not 'key: value' lines\nhint: write one"),
        ("1", "file has a single value at the top level, not 'key: value' lines\nhint: write one"),
        ("a: [", "line 1"),
        ("? [1]\n: 2", "a key is not a plain word"),
        ("[" * 5000, "nested too deeply"),
        ("a: \t- b\n\t- c", "line"),
        (
            "a: 1\n---\nb: 2\n---\n",
            "file has 2 documents, which start on lines 1, 3\nhint: keep one, such as that of line 1",
        ),
    ],
)
def test_errors_name_the_line_and_have_a_hint(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_yaml(text, "file")
    assert message in str(error.value) and error.value.hint


def test_missing_unreadable_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none.yaml not found\nhint: use"):
        read_text(tmp_path / "none.yaml")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(RequestError, match=r"image.png is not a text file\nhint: use"):
        read_text(tmp_path / "image.png")
    with pytest.raises(RequestError, match=r"cannot read .*: Is a directory\nhint: use"):
        read_text(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert read_text(tmp_path / "empty.yaml") == ""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-16-le-with-mark"])
def test_utf_16_is_refused_by_name(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("mark") else ""
    (tmp_path / "f.yaml").write_bytes(f"{mark}lr: 1".encode(encoding.removesuffix("-with-mark")))
    with pytest.raises(RequestError, match=r"f.yaml is in UTF-16\nhint: save the file as UTF-8"):
        read_text(tmp_path / "f.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis"])
def test_other_encodings_are_refused_with_their_line(tmp_path: Path, encoding: str) -> None:
    text = "lr: 1\n# Größe, café\n" if encoding != "shift-jis" else "lr: 1\n# 猫\n"
    (tmp_path / "f.yaml").write_bytes(text.encode(encoding))
    with pytest.raises(RequestError, match=r"f.yaml:2: a character is not in UTF-8\nhint: save the file as UTF-8"):
        read_text(tmp_path / "f.yaml")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbflr: 1\r\nbs: 2\r\n", b"lr: 1\rbs: 2\r", "lr: 1\nbs: 2 # é".encode()])
def test_utf_8_with_any_line_ends_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    assert parse_yaml(read_text(tmp_path / "f.yaml"), "f") == {"lr": 1, "bs": 2}
