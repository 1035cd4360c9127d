"""Tables of labels: columns, and the image that each line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitctl.data.cache import ImageFile
from vitctl.data.labels import LabelRow, find_labelled, read_labels
from vitctl.errors import RequestError


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("id,label\n1,frog\n2,truck\n", [LabelRow("1", "frog"), LabelRow("2", "truck")]),
        ("label,Image_ID\nfrog,1\n", [LabelRow("1", "frog")]),
        ("\ufefffilename;class\r\na.png;frog\r\n", [LabelRow("a.png", "frog")]),
        ("file\tspecies\na b.png\tred frog\n", [LabelRow("a b.png", "red frog")]),
        ("class id,filepaths,labels,data set\n3,train\\FROG\\1.jpg,FROG,train\n", [LabelRow("train/FROG/1.jpg", "FROG", "train")]),
        ('path,label,Split\n./x/1.png,"frog, green",Validation\n', [LabelRow("x/1.png", "frog, green", "val")]),
        ("image,label,note\n1,frog\n\n2,,unknown\n3, toad ,\n", [LabelRow("1", "frog"), LabelRow("3", "toad")]),
        ("\n\nid;label\n1;frog\n", [LabelRow("1", "frog")]),
        ("id\tlabel\n1\tfr\u00f6g\n".encode("utf-16"), [LabelRow("1", "fr\u00f6g")]),
    ],
)  # fmt: skip
def test_columns_are_found_by_name(content: str | bytes, rows: list[LabelRow], tmp_path: Path) -> None:
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
        (LabelRow("2", "a"), "train/2.png"),
        (LabelRow("2.png", "a"), "train/2.png"),
        (LabelRow("train/2", "a"), "train/2.png"),
        (LabelRow("test/1.png", "a"), "test/1.png"),
        (LabelRow("1", "a", "train"), "train/1.png"),
        (LabelRow("1.png", "a", "test"), "test/1.png"),
        (LabelRow("3.b", "a"), "train/x.y/3.b.png"),
        (LabelRow("y/3.b", "a"), "sub/y/3.b"),  # not the end of a name
        (LabelRow("4", "a"), "4"),
        (LabelRow("9", "a"), "sub/9"),
    ],
)
def test_a_line_names_an_image(row: LabelRow, path: str) -> None:
    other = LabelRow("train/2.png", row.label)
    (image, found), *_ = find_labelled([row, other], FILES, "sub", PARTS, "labels")
    assert image.path == path and found.label == "a" and (image.size < 0) == path.startswith("sub/")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([LabelRow("1", "a")], r"'1' may be test/1.png or train/1.png\nhint: use paths in the file"),
        (
            [LabelRow("2", "a"), LabelRow("2.png", "b")],
            r"'2.png' has the labels 'a' and 'b'\nhint: remove one of the two lines",
        ),
        ([LabelRow("8", "a"), LabelRow("9", "b")], r"none of its 2 images was found, such as '8'\nhint: use --dataset"),
    ],
)
def test_a_line_that_names_no_single_image_is_refused(rows: list[LabelRow], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        find_labelled(rows, FILES, "", PARTS, "labels")


def test_an_image_may_be_listed_twice_with_the_same_label() -> None:
    assert len(find_labelled([LabelRow("2", "a"), LabelRow("2.png", "a")], FILES, "", PARTS, "labels")) == 1


@pytest.mark.parametrize("above", ["/kaggle/input/set/", "C:/Users/me/", "set/"])
def test_folders_above_the_images_are_ignored(above: str) -> None:
    rows = [
        LabelRow(f"{above}train/1.png", "a"),
        LabelRow(f"{above}test/1.png", "b"),
        LabelRow(f"{above}test/9.png", "b"),
    ]
    found = find_labelled(rows, FILES, "", PARTS, "labels")
    assert [(image.path, row.label) for image, row in found] == [
        ("train/1.png", "a"), ("test/1.png", "b"), ("test/9.png", "b"),
    ]  # fmt: skip


def test_folders_that_distinguish_images_are_not_ignored() -> None:
    rows = [LabelRow("set/train/1.png", "a"), LabelRow("set/test/1.png", "b")]
    with pytest.raises(RequestError, match="none of its 2 images was found"):
        find_labelled(rows, [ImageFile("1.png", 1, 1)], "", {}, "labels")


def test_case_and_unicode_form_may_differ_unless_both_exist() -> None:
    files = [ImageFile(path, 1, 1) for path in ("a/IMG1.JPG", "b/x.png", "b/X.png", "cafe\u0301.png")]
    rows = [LabelRow("img1.jpg", "a"), LabelRow("x.png", "b"), LabelRow("X.png", "a"), LabelRow("caf\u00e9", "b")]
    assert [image.path for image, _ in find_labelled(rows, files, "", {}, "labels")] == [each.path for each in files]
