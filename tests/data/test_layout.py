"""Layouts of image folders: what is recognised, what is skipped, and the advice for everything else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from vitctl.data import decode
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.layout import (
    LABELLINGS,
    LAYOUTS,
    MISTAKES,
    WHOLE,
    find_layout,
    from_labels,
    list_images,
    list_test_images,
)
from vitctl.data.tree import Tree, find_images, part_of
from vitctl.errors import RequestError
from vitctl.observer import Observer


def image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path, "PNG")


def images(root: Path, *places: str, count: int = 2) -> None:
    """Write ``count`` different images into each of the folders."""
    for place in places:
        for i in range(count):
            image(root / place / f"{i}.png", shade=len(place) + i)


def tiny_imagenet(root: Path) -> None:
    for name in ("n01", "n02"):
        images(root, f"train/{name}/images")
        (root / f"train/{name}/{name}_boxes.txt").write_text("0.png\t0\t0\t9\t9\n")
    images(root, "val/images", "test/images", count=3)
    (root / "val/val_annotations.txt").write_text("0.png\tn02\t0\t0\n1.png\tn01\t0\t0\n2.png\tn02\t0\t0\n")


def labelled(
    root: Path, lines: str, *, name: str = "labels.csv", count: int = 4, places: tuple[str, ...] = ("all",)
) -> None:
    images(root, *places, count=count)
    (root / name).write_text(lines)


SPLIT = "filename,label,split\n0.png,cat,train\n1.png,dog,Training\n2.png,dog,test\n3.png,cat,test\n"

KNOWN: dict[str, tuple[Callable[[Path], object], str | None, str, list[str]]] = {
    "plain": (
        lambda root: images(root, "train/a", "train/b", "test/a", "test/b"),
        None,
        "images: train/ 4, test/ 4",
        ["a/0.png", "a/1.png", "b/0.png", "b/1.png"] * 2,
    ),
    "Roboflow": (
        lambda root: (images(root, "train/a", "train/b", "valid/a", "test/b"), (root / "README.roboflow.txt").touch()),
        None,
        "images: train/ 4, valid/ 2 as held-out, test/ 2",
        ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png"],
    ),
    "validation as test": (
        lambda root: images(root, "train/a", "train/b", "validation/a", count=1),
        None,
        "images: train/ 2, validation/ 1 as test",
        ["a/0.png", "b/0.png", "a/0.png"],
    ),
    "capitals": (
        lambda root: images(root, "Training/a", "Training/b", "TEST/b", count=1),
        None,
        "images: Training/ 2, TEST/ 1",
        ["a/0.png", "b/0.png", "b/0.png"],
    ),
    "numbered": (
        lambda root: images(root, "01_train/a", "01_train/b", "02_test/b", count=1),
        None,
        "images: 01_train/ 2, 02_test/ 1",
        ["a/0.png", "b/0.png", "b/0.png"],
    ),
    "twice": (
        lambda root: images(root, "sets/v1/train/a", "sets/v1/train/b", "sets/v1/test/a", count=1),
        None,
        "images: sets/v1/train/ 2, sets/v1/test/ 1",
        ["a/0.png", "b/0.png", "a/0.png"],
    ),
    "Intel": (
        lambda root: images(root, "seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_pred", count=1),
        None,
        "images: seg_train/seg_train/ 2, seg_test/seg_test/ 1; not used: seg_pred/",
        ["a/0.png", "b/0.png", "a/0.png"],
    ),
    "sets within images": (
        lambda root: images(root, "train_set/images/a/x", "train_set/images/b", "test_set/images/a", count=1),
        None,
        "images: train_set/images/ 2, test_set/images/ 1",
        ["a/x/0.png", "b/0.png", "a/0.png"],
    ),
    "a second copy": (  # as in Kaggle's chest X-rays
        lambda root: images(root, "train/a", "train/b", "test/a", "train_small/a", "chest/train/a", count=1),
        None,
        "images: train/ 2, test/ 1; not used: chest/, train_small/",
        ["a/0.png", "b/0.png", "a/0.png"],
    ),
    "Tiny ImageNet": (
        tiny_imagenet,
        None,
        "images: train/ 4, val/ 3 as test; not used: test/ (no labels)",
        ["n01/images/0.png", "n01/images/1.png", "n02/images/0.png", "n02/images/1.png", "n01/1.png", "n02/0.png", "n02/2.png"],
    ),
    "classes named train and data": (
        lambda root: images(root, "train/data", "train/train", "test/train", count=1),
        None,
        "images: train/ 2, test/ 1",
        ["data/0.png", "train/0.png", "train/0.png"],
    ),
    "a file of labels and parts": (
        lambda root: labelled(root, SPLIT, count=5),
        "labels.csv",
        "images: train 2, test 2, labels of labels.csv; not used: 1 image without a label",
        ["cat/all/0.png", "dog/all/1.png", "cat/all/3.png", "dog/all/2.png"],
    ),
    "a file of labels and folders of parts": (
        lambda root: labelled(
            root, "path;species\ntrain/0.png;b\ntrain/1.png;a\ntest/0.png;b\n", places=("train", "test"), count=2
        ),
        "labels.csv",
        "images: train/ 2, test/ 1, labels of labels.csv; not used: 1 image without a label",
        ["a/1.png", "b/0.png", "b/0.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_a_layout_is_recognised(case: str, tmp_path: Path) -> None:
    make, labels, summary, identities = KNOWN[case]
    make(tmp_path)
    listing = list_images(tmp_path, labels=labels)
    assert listing.summary == summary and list(listing.identities) == identities
    assert len(listing.files) == len(listing.labels) == sum(listing.counts.values())
    for file, label, identity in zip(listing.files, listing.labels, listing.identities, strict=True):
        name, _, below = identity.partition("/")
        assert listing.classes[label] == name and file.path.endswith(below) and (tmp_path / file.path).is_file()


@pytest.mark.parametrize("case", KNOWN)
def test_every_layout_is_loaded_in_the_order_of_its_listing_and_from_the_cache(case: str, tmp_path: Path) -> None:
    make, labels, summary, identities = KNOWN[case]
    make(tmp_path / "data")

    class Lines(Observer):
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.decoded = 0

        def message(self, text: str) -> None:
            self.lines.append(text)

        def loading(self, done: int, total: int, *, download: str = "") -> None:
            self.decoded = done

    def load(observer: Observer) -> Dataset:
        place = str(tmp_path / "data")
        return load_dataset("folder", data_dir=place, size=4, skip_bad_images=False, labels=labels, observer=observer)

    first, again = Lines(), Lines()
    for observer in (first, again):
        dataset = load(observer)
        parts = [dataset.train, *([dataset.val] if dataset.val else []), dataset.test]
        assert [each for part in parts for each in part.identities] == identities
        for part in parts:
            for path, pixels in zip(part.paths, part.images, strict=True):
                assert int(pixels[0, 0, 0]) == Image.open(tmp_path / "data" / path).getpixel((0, 0))[0]  # type: ignore[index]
        assert observer.lines[0] == summary
    assert first.decoded == len(identities) and again.decoded == 0


def test_other_labels_use_the_same_decoded_images_for_the_right_classes(tmp_path: Path) -> None:
    labelled(tmp_path, SPLIT)
    for swap in (False, True):
        (tmp_path / "labels.csv").write_text(SPLIT.translate(str.maketrans("03", "30")) if swap else SPLIT)
        dataset = load_dataset("folder", data_dir=str(tmp_path), size=4, skip_bad_images=False, labels="labels.csv")
        assert dataset.train.identities[0] == ("cat/all/3.png" if swap else "cat/all/0.png")
        shade = Image.open(tmp_path / dataset.train.paths[0]).getpixel((0, 0))
        assert isinstance(shade, tuple) and int(dataset.train.images[0, 0, 0, 0]) == shade[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", ("train", ())),
        ("Training", ("train", ())),
        ("TRAIN", ("train", ())),
        ("trainset", ("train", ())),
        ("TestImages", ("test", ())),
        ("valid", ("val", ())),
        ("Validation_Set", ("val", ())),
        ("test-data", ("test", ())),
        ("seg_train", ("train", ("seg",))),
        ("train2017", ("train", ("2017",))),
        ("train_val", (None, ())),
        ("trainee", (None, ("trainee",))),
        ("n01443537", (None, ("n", "01443537"))),
        ("тест", (None, ("тест",))),
    ],
)
def test_a_name_stands_for_a_part(name: str, expected: tuple[str | None, tuple[str, ...]]) -> None:
    assert part_of(name) == expected


class TestRules:
    def test_each_labelling_recognises_only_its_own(self, tmp_path: Path) -> None:
        tiny_imagenet(tmp_path)
        found = {
            part: [name for name, find in LABELLINGS.items() if find(Tree(tmp_path), part)]
            for part in ("train", "val", "test")
        }
        assert found == {"train": ["class folders"], "val": ["annotations"], "test": []}

    def test_each_layout_recognises_only_its_own(self, tmp_path: Path) -> None:
        images(tmp_path, "parts/train/a", "parts/test/a", "classes/a", "classes/b", "markup/images", "markup/masks")
        images(tmp_path, "loose")
        found = {
            folder: [name for name, find in LAYOUTS.items() if find(Tree(tmp_path), folder, ())]
            for folder in ("parts", "classes", "markup", "loose")
        }
        assert found == {"parts": ["parts"], "classes": ["class folders"], "markup": [], "loose": []}

    def test_images_beside_the_annotated_folder_have_their_own_identities(self, tmp_path: Path) -> None:
        tiny_imagenet(tmp_path)
        for name in ("0.png", "2.png"):  # of one class
            (tmp_path / "val/images" / name).rename(tmp_path / "val" / name)
        listing = list_images(tmp_path)
        assert len(set(listing.identities)) == len(listing.files)

    def test_classes_may_have_names_of_parts_in_theirs(self, tmp_path: Path) -> None:
        images(tmp_path, "freight train", "test tube", "bus")
        layout = find_layout(Tree(tmp_path))
        assert layout is not None and list(layout.parts[WHOLE].classes) == ["bus", "freight train", "test tube"]

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        images(tmp_path, "train", "bus", "car")
        layout = find_layout(Tree(tmp_path))
        assert layout is not None and list(layout.parts[WHOLE].classes) == ["bus", "car", "train"]


def many(root: Path) -> None:
    for name in ("pets", "cars"):
        images(root, f"{name}/train/a", f"{name}/train/b", f"{name}/test/a", count=1)


WRONG: dict[str, tuple[str, Callable[[Path], object], str, str | None, str]] = {
    # rule, files, folder to use, --labels, expected error and hint
    "YOLO": (
        "detection",
        lambda root: images(root, "train/images", "val/images") or [(root / part / "labels").mkdir() for part in ("train", "val")],
        "",
        None,
        r"train has labels/, as a set for object detection .*\nhint: use a set with one class per image",
    ),
    "YOLO the other way": (
        "detection",
        lambda root: images(root, "images/train", "images/val", "labels/train"),
        "",
        None,
        "has labels/, as a set for object detection",
    ),
    "COCO": (
        "detection",
        lambda root: images(root, "train2017", "val2017") or (root / "annotations").mkdir(),
        "",
        None,
        "has annotations/, as a set for object detection",
    ),
    "masks": (
        "detection",
        lambda root: images(root, "train/images", "train/masks", "test/images", "test/masks"),
        "",
        None,
        "train has masks/, as a set for object detection",
    ),
    "too low": (
        "too low",
        lambda root: images(root, "x y/train/a", "x y/train/b", "x y/test/a"),
        "x y/train",
        None,
        r"train is only a part of a data set\nhint: did you mean --dataset '\S+/x y'\?",
    ),
    "far too low": (
        "too low",
        lambda root: images(root, "x/seg_train/seg_train/a", "x/seg_train/seg_train/b", "x/seg_test/seg_test/a"),
        "x/seg_train/seg_train",
        None,
        r"\nhint: did you mean --dataset \S+/x\?",
    ),
    "a class": (
        "too low",
        lambda root: images(root, "x/train/a", "x/train/b", "x/test/a"),
        "x/train/a",
        None,
        r"\nhint: did you mean --dataset \S+/x\?",
    ),
    "too high": (
        "too high",
        many,
        "",
        None,
        r"is not a data set, but has cars/, pets/ in it\nhint: did you mean --dataset \S+/cars or \S+/pets\?",
    ),
    "class folders too high": (
        "too high",
        lambda root: images(root, "PetImages/cat", "PetImages/dog") or (root / "docs").mkdir(),
        "",
        None,
        r"has PetImages/ in it\nhint: did you mean --dataset \S+/PetImages\?",
    ),
    "labels elsewhere": (
        "labels elsewhere",
        lambda root: labelled(root, "id,label\n0,a\n1,b\n", name="trainLabels.csv", places=("train", "test"))
        or (root / "sampleSubmission.csv").write_text("id,label\n0,a\n"),
        "",
        None,
        r"train has images but no class folders\nhint: add --labels trainLabels.csv",
    ),
    "labels without test": (
        "labels without a part",
        lambda root: labelled(root, "id,label\n0,a\n1,b\n", name="trainLabels.csv", places=("train", "test")),
        "",
        "trainLabels.csv",
        r"trainLabels.csv has no test images\nhint: add --test-fraction 0.2, or a column named split",
    ),
    "labels of one class": (
        "labels without a part",
        lambda root: labelled(root, "id,label,split\n0,a,train\n1,a,test\n"),
        "",
        "labels.csv",
        r"labels.csv has training images of one class\nhint: add images of two or more classes",
    ),
    "no labels in test": (
        "no split",
        lambda root: images(root, "train/a", "train/b", "test"),
        "",
        None,
        r"has train/ but neither test/ nor val/; not used: test/ \(no labels\)\nhint: add --test-fraction 0.2, or move some images of each class",
    ),
    "loose images": (
        "nothing",
        lambda root: images(root, "x"),
        "x",
        None,
        r"x has images but no class folders\nhint: move the images of each class to",
    ),
    "only test images without labels": (
        "nothing",
        lambda root: images(root, "test"),
        "",
        None,
        r"has images but no class folders\nhint: move the images of each class to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_explained_by_its_rule(case: str, tmp_path: Path) -> None:
    rule, make, folder, labels, expected = WRONG[case]
    make(tmp_path)
    with pytest.raises(RequestError, match=expected) as caught:
        list_images(tmp_path / folder, labels=labels)
    if labels is None:
        tree = Tree(tmp_path / folder)
        error = MISTAKES[rule](tree, find_layout(tree))
        assert error is not None and error.message == caught.value.message


def test_every_mistake_is_tested() -> None:
    elsewhere = {"too few classes"}  # in test_folder.py
    assert {rule for rule, *_ in WRONG.values()} | elsewhere == MISTAKES.keys()


@pytest.mark.parametrize("case", [case for case, (*_, expected) in WRONG.items() if "did you mean" in expected])
def test_the_folder_that_was_meant_can_be_used(case: str, tmp_path: Path) -> None:
    import shlex

    _, make, folder, _, _ = WRONG[case]
    make(tmp_path)
    with pytest.raises(RequestError) as caught:
        list_images(tmp_path / folder)
    assert caught.value.hint
    meant = Path(shlex.split(caught.value.hint.partition("--dataset ")[2].removesuffix("?"))[0])
    layout = find_layout(Tree(meant))
    assert layout is not None and layout.parts.keys() & {"train", WHOLE}


class TestLitter:
    @pytest.mark.parametrize(
        "name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", ".hidden"]
    )
    @pytest.mark.parametrize("place", ["", "train", "train/a", "train/a/deep"])
    def test_it_is_no_class_and_its_images_are_not_used(self, name: str, place: str, tmp_path: Path) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", "train/a/deep", count=1)
        before = list_images(tmp_path)
        image(tmp_path / place / name / "0.png" / "thumb.png")
        after = list_images(tmp_path)
        assert after.files == before.files and after.classes == ("a", "b") and before.skipped == ()
        assert after.skipped == (f"skipped 1 {'hidden' if name.startswith('.') else name}",)
        assert len(find_images(tmp_path)[0]) == len(before.files)

    def test_a_broken_link_with_a_label_has_a_label(self, tmp_path: Path) -> None:
        images(tmp_path, "train")
        (tmp_path / "train/9.png").symlink_to("nowhere.png")
        names = sorted(path.name for path in (tmp_path / "train").iterdir())
        (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
        assert from_labels(Tree(tmp_path), tmp_path / "labels.csv").unused == ()

    def test_files_that_are_no_images_are_counted_by_ending(self, tmp_path: Path) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", count=1)
        for name in ("1.txt", "2.TXT", "x.json", "LICENSE", "Thumbs.db"):
            (tmp_path / "train" / "a" / name).write_text("no image")
        (tmp_path / "README.md").touch()  # beside the parts
        assert list_images(tmp_path).skipped == ("skipped 2 .txt, 1 without an ending, 1 .json, 1 Thumbs.db",)

    def test_a_link_to_itself_is_skipped_or_unreadable(self, tmp_path: Path) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", count=1)
        for name in ("loop", "loop.png"):
            (tmp_path / "train/a" / name).symlink_to(name)
        listing = list_images(tmp_path)
        assert [(file.path, file.size) for file in listing.files if file.size < 0] == [("train/a/loop.png", -1)]
        assert listing.skipped == ("skipped 1 without an ending",)

    def test_images_without_an_ending_are_found_by_content(self, tmp_path: Path) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", count=1)
        for name in ("IMG_1", "scan v1.5", "photo.jpg?width=9"):
            shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/a" / name)
        shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/a/copy.bak")
        listing = list_images(tmp_path)
        assert listing.identities[:4] == ("a/0.png", "a/IMG_1", "a/photo.jpg?width=9", "a/scan v1.5")
        assert listing.skipped == ("skipped 1 .bak",)

    def test_heic_images_need_pillow_heif(self, tmp_path: Path) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", count=1)
        for i in range(3):
            (tmp_path / "train" / "a" / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        assert list_images(tmp_path).skipped == ("3 .heic skipped; install pillow-heif to read them",)
        (tmp_path / "train/a/0.png").unlink()
        with pytest.raises(
            RequestError, match=r"a has only images that Pillow does not read\nhint: run pip install pil"
        ):
            list_images(tmp_path)
        with pytest.raises(RequestError, match=r"IMG_0.HEIC: a HEIC image, which needs pillow-heif"):
            decode.decode_image(tmp_path / "train/a/IMG_0.HEIC", 4)

    def test_heic_images_are_read_with_pillow_heif(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images(tmp_path, "train/a", "train/b", "test/a", count=1)
        (tmp_path / "train/a/0.png").rename(tmp_path / "train/a/IMG_0.HEIC")
        monkeypatch.setattr(Image, "EXTENSION", dict(Image.registered_extensions()))
        plugin = SimpleNamespace(register_heif_opener=lambda: Image.register_extension("PNG", ".heic"))
        monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
        for cached in (decode._formats, decode.image_suffixes):
            cached.cache_clear()
        try:
            dataset = load_dataset("folder", data_dir=str(tmp_path), size=4, skip_bad_images=False)
        finally:
            for cached in (decode._formats, decode.image_suffixes):
                cached.cache_clear()
        assert dataset.train.identities == ("a/IMG_0.HEIC", "b/0.png")


class TestMeasuring:
    CLASSES = ("bird", "cat", "dog")

    @pytest.mark.parametrize(
        ("places", "summary"),
        [
            (("test/dog", "test/cat"), "images: test/ 4"),
            (("train/pony", "test/dog", "valid/cat"), "images: test/ 2"),  # other classes of train/ do not matter
            (("validation/dog",), "images: validation/ 2"),
            (("dog", "cat"), "images: new/ 4"),
            (("dog/2024/may",), "images: new/ 2"),
            (("batch/dog", "batch/cat"), "images: batch/ 4"),
        ],
    )
    def test_only_the_measured_images_are_needed(self, places: tuple[str, ...], summary: str, tmp_path: Path) -> None:
        images(tmp_path / "new", *places)
        listing = list_test_images(tmp_path / "new", self.CLASSES)
        assert listing.summary == summary and listing.classes == self.CLASSES
        assert {"train": 0, "val": 0, "test": len(listing.files)} == listing.counts
        for label, identity in zip(listing.labels, listing.identities, strict=True):
            assert identity.startswith(f"{self.CLASSES[label]}/")

    def test_empty_class_folders_do_not_matter(self, tmp_path: Path) -> None:
        images(tmp_path, "test/dog")
        (tmp_path / "test" / "bird").mkdir()
        (tmp_path / "test" / "unknown").mkdir()
        assert list_test_images(tmp_path, self.CLASSES).labels.tolist() == [2, 2]

    @pytest.mark.parametrize("name", ["labels.csv", "trainLabels.csv"])
    def test_labels_may_be_in_a_file(self, name: str, tmp_path: Path) -> None:
        labelled(tmp_path, "image,class\n0,dog\n2,bird\n", name=name)
        listing = list_test_images(tmp_path, self.CLASSES, labels=name)
        assert listing.identities == ("bird/all/2.png", "dog/all/0.png") and listing.labels.tolist() == [0, 2]

    @pytest.mark.parametrize(
        ("places", "folder", "expected"),
        [
            (("test/dogs",), "", r"class 'dogs' in \S+ is not one of the network's: bird, cat, dog\nhint: did you mean dog"),
            (("zebra", "dog"), "", r"class 'zebra' in .*\nhint: remove 'zebra'"),
            (("x/dog", "x/cat"), "x/dog", r"has the images of one class\nhint: did you mean --dataset \S+/x\?"),
            (("train/dog", "train/cat"), "", r"no labelled test images\nhint: use --dataset \S+/train to evaluate on it"),
            (("test",), "", r"has no test/CLASS/ and no class folders\nhint: use --dataset"),
            (("x/test/dog", "y/test/dog"), "", "has no test/CLASS/|not one of the network's"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_measured_is_refused(
        self, places: tuple[str, ...], folder: str, expected: str, tmp_path: Path
    ) -> None:
        images(tmp_path, *places)
        with pytest.raises(RequestError, match=expected):
            list_test_images(tmp_path / folder, self.CLASSES)

    def test_the_cache_of_the_training_run_stays(self, pets: Path, cache: Path) -> None:
        def load(classes: tuple[str, ...] | None) -> Dataset:
            return load_dataset("folder", data_dir=str(pets), size=8, skip_bad_images=False, test_classes=classes)

        whole = load(None)
        (kept,) = (cache / "pictures").iterdir()
        tested = load(("ape", "cat", "dog"))
        assert kept.exists() and len(list((cache / "pictures").iterdir())) == 2
        assert len(tested.train) == 0 and tested.val is None and tested.classes == ("ape", "cat", "dog")
        assert tested.test.images.equal(whole.test.images) and tested.test.labels.equal(whole.test.labels + 1)
        assert tested.test.identities == whole.test.identities
