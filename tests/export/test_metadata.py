import json

import pytest

from tests.export.test_formats import record_of
from vitctl.errors import RequestError
from vitctl.export.metadata import Metadata
from vitctl.export.request import Form


def record() -> Metadata:
    return record_of(
        "vit:x",
        32,
        Form(dtype="uint8", layout="nhwc", softmax=True),
        net_options={"depth": 2, "ratio": 0.5, "flag": True, "pool": "cls"},
        classes=('a "b"', "7", "ü, c"),
        accuracy={"test_acc": 66.8},
        verified_on="1,000 cifar10 test images",
    )


def test_metadata_survives_conversion_to_strings_and_json() -> None:
    texts = record().to_strings()
    assert all(isinstance(key, str) and isinstance(text, str) for key, text in texts.items())
    assert Metadata.from_strings(texts, "x") == record()
    assert Metadata.from_json(json.loads(json.dumps(record().to_json())), "x") == record()


def test_numbers_and_lists_are_json_and_strings_are_plain() -> None:
    texts = record().to_strings()
    assert json.loads(texts["classes"]) == ['a "b"', "7", "ü, c"]
    assert json.loads(texts["mean"]) == [0.49, 0.48, 0.45] and texts["size"] == "32" and texts["channels"] == "3"
    assert (texts["input"], texts["layout"], texts["values"], texts["softmax"]) == ("uint8", "nhwc", "0-255", "true")
    assert texts["verified"] == "true" and record_of("x", 8, Form()).to_strings()["verified"] == "false"
    assert record().to_json()["classes"] == ['a "b"', "7", "ü, c"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("classes", None),
        ("classes", "cat"),
        ("classes", "[1, 2]"),
        ("classes", "[]"),
        ("classes", "[" * 100_000),
        ("size", "1e9"),
        ("size", "-8"),
        ("size", '"32"'),
        ("size", "NaN"),
        ("channels", "2"),
        ("mean", "[0.5]"),
        ("mean", "[0.5, NaN, 0.5]"),
        ("std", "[0.5, 0.0, 0.5]"),
        ("net_options", "[]"),
        ("layout", "hwc"),
        ("input", "float64"),
        ("softmax", "maybe"),
        ("epoch", "true"),
        ("val", "xyz"),
        ("val_fraction", "1.5"),
        ("limit_train", "0"),
        ("limit_train", "many"),
        ("limit_train", "1.5"),
        ("flips", "1"),
        ("normalize", "none"),
    ],
)
def test_damaged_metadata_is_refused(key: str, text: str | None) -> None:
    texts = record().to_strings()
    del texts[key]
    if text is not None:
        texts[key] = text
    with pytest.raises(RequestError, match=r"^a\.onnx is damaged: ") as caught:
        Metadata.from_strings(texts, "a.onnx")
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


def test_metadata_of_earlier_versions_is_read() -> None:
    texts = record().to_strings()
    del texts["limit_train"], texts["flips"]
    assert Metadata.from_strings(texts, "a.onnx").provenance.limit_train is None
    assert Metadata.from_strings(texts | {"dataset": "cifar10"}, "a.onnx").provenance.flips is True
    assert Metadata.from_strings(texts | {"dataset": "digits"}, "a.onnx").provenance.flips is False


def test_files_of_other_programs_and_later_versions_are_refused() -> None:
    with pytest.raises(RequestError, match="was not written by vitctl export"):
        Metadata.from_strings({"names": "x"}, "a.onnx")
    with pytest.raises(RequestError, match="version 2; this vitctl reads version 1"):
        Metadata.from_strings(record().to_strings() | {"format": "2"}, "a.onnx")
    with pytest.raises(RequestError, match="was not written"):
        Metadata.from_json([1], "a.json")
