"""Tables of labels: columns, and the image that each line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitctl.data.cache import ImageFile
from vitctl.data.labels import Row, find_labelled, read_labels
from vitctl.errors import RequestError


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("id,label\n1,frog\n2,truck\n", [Row("1", "frog"), Row("2", "truck")]),
        ("label,Image_ID\nfrog,1\n", [Row("1", "frog")]),
        ("\ufefffilename;class\r\na.png;frog\r\n", [Row("a.png", "frog")]),
        ("file\tspecies\na b.png\tred frog\n", [Row("a b.png", "red frog")]),
        ("class id,filepaths,labels,data set\n3,train\\FROG\\1.jpg,FROG,train\n", [Row("train/FROG/1.jpg", "FROG", "train")]),
        ('path,label,Split\n./x/1.png,"frog, green",Validation\n', [Row("x/1.png", "frog, green", "val")]),
        ("image,label,note\n1,frog\n\n2,,unknown\n3, toad ,\n", [Row("1", "frog"), Row("3", "toad")]),
        ("\n\nid;label\n1;frog\n", [Row("1", "frog")]),
        ("id\tlabel\n1\tfr\u00f6g\n".encode("utf-16"), [Row("1", "fr\u00f6g")]),
    ],
)  # fmt: skip
def test_columns_are_found_by_name(content: str | bytes, rows: list[Row], tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, content)) == rows


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "labels.csv has no column of files, but nothing\nhint: add filename to its first line"),
        ("a,b\n1,frog\n", "has no column of files, but a, b\nhint: add filename to its first line"),
        ("id,b\n1,frog\n", "has no column of labels, but id, b\nhint: add label to its first line"),
        ("id,label\n1,\n", "has no lines with a label"),
        ("id,label,split\n1,frog,train\n2,frog,fold3\n", ":3: unknown part 'fold3'\nhint: use train, val or test"),
        ("id,label,split\n\n,,\n2,frog,fold3\n", ":4: unknown part 'fold3'"),
        ("id,label\n1," + "frog" * 50_000, "is not a table: field larger than field limit"),
        (b"id,label\n1,\xe9\n", "is not text in UTF-8"),
        (f"id,label\n{'1' * 200_000},a\n", r"labels.csv is not a table: .*\nhint: use --labels with another file"),
    ],
)
def test_other_files_are_refused(content: str | bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=expected):
        read_labels(written(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read .*: No such file.*\nhint: restore \S+none.csv"):
        read_labels(tmp_path / "none.csv")


FILES = [ImageFile(path, 1, 1) for path in ("test/1.png", "train/1.png", "train/2.png", "train/x.y/3.b.png", "4")]
PARTS = {"train": "train", "test": "test"}


@pytest.mark.parametrize(
    ("row", "path"),
    [
        (Row("2", "a"), "train/2.png"),
        (Row("2.png", "a"), "train/2.png"),
        (Row("train/2", "a"), "train/2.png"),
        (Row("test/1.png", "a"), "test/1.png"),
        (Row("1", "a", "train"), "train/1.png"),
        (Row("1.png", "a", "test"), "test/1.png"),
        (Row("3.b", "a"), "train/x.y/3.b.png"),
        (Row("y/3.b", "a"), "sub/y/3.b"),  # not the end of a name
        (Row("4", "a"), "4"),
        (Row("9", "a"), "sub/9"),
    ],
)
def test_a_line_names_an_image(row: Row, path: str) -> None:
    other = Row("train/2.png", row.label)
    (image, found), *_ = find_labelled([row, other], FILES, "sub", PARTS, "labels")
    assert image.path == path and found.label == "a" and (image.size < 0) == path.startswith("sub/")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Row("1", "a")], r"'1' may be test/1.png or train/1.png\nhint: use paths in the file"),
        ([Row("2", "a"), Row("2.png", "b")], r"'2.png' has the labels 'a' and 'b'\nhint: remove one of the two lines"),
        ([Row("8", "a"), Row("9", "b")], r"none of its 2 images was found, such as '8'\nhint: use --dataset"),
    ],
)
def test_a_line_that_names_no_single_image_is_refused(rows: list[Row], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        find_labelled(rows, FILES, "", PARTS, "labels")


def test_an_image_may_be_listed_twice_with_the_same_label() -> None:
    assert len(find_labelled([Row("2", "a"), Row("2.png", "a")], FILES, "", PARTS, "labels")) == 1


@pytest.mark.parametrize("above", ["/kaggle/input/set/", "C:/Users/me/", "set/"])
def test_folders_above_the_images_are_ignored(above: str) -> None:
    rows = [Row(f"{above}train/1.png", "a"), Row(f"{above}test/1.png", "b"), Row(f"{above}test/9.png", "b")]
    found = find_labelled(rows, FILES, "", PARTS, "labels")
    assert [(image.path, row.label) for image, row in found] == [
        ("train/1.png", "a"), ("test/1.png", "b"), ("test/9.png", "b"),
    ]  # fmt: skip


def test_folders_that_distinguish_images_are_not_ignored() -> None:
    rows = [Row("set/train/1.png", "a"), Row("set/test/1.png", "b")]
    with pytest.raises(RequestError, match="none of its 2 images was found"):
        find_labelled(rows, [ImageFile("1.png", 1, 1)], "", {}, "labels")


def test_case_and_unicode_form_may_differ_unless_both_exist() -> None:
    files = [ImageFile(path, 1, 1) for path in ("a/IMG1.JPG", "b/x.png", "b/X.png", "cafe\u0301.png")]
    rows = [Row("img1.jpg", "a"), Row("x.png", "b"), Row("X.png", "a"), Row("caf\u00e9", "b")]
    assert [image.path for image, _ in find_labelled(rows, files, "", {}, "labels")] == [each.path for each in files]
