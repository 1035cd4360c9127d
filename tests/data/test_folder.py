"""Image folders: layout, decoding, and unreadable images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps
from torchvision.transforms.v2 import functional as TF

from vitctl.data import decode as decode_module
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.decode import UnreadableImage, decode_image
from vitctl.errors import RequestError
from vitctl.observer import Observer

MakeFolder = Callable[..., Path]


def load(root: Path, *, size: int = 16, skip: bool = False, **more: Any) -> Dataset:
    return load_dataset("folder", data_dir=str(root), size=size, skip_bad_images=skip, **more)


def reference(image: Image.Image, size: int) -> np.ndarray:
    """Return torchvision's result, uint8 [3, size, size]."""
    resized = TF.resize(image, [size], antialias=True)
    return np.asarray(TF.center_crop(resized, [size, size])).transpose(2, 0, 1)


def make_image(width: int, height: int) -> Image.Image:
    """Return a smooth image without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x * 3 + y * 5) % 256]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


class TestLayout:
    def test_train_and_test_are_read(self, pets: Path) -> None:
        dataset = load(pets)
        assert dataset.classes == ("cat", "dog") and dataset.val is None and dataset.source == str(pets)
        assert dataset.train.labels.tolist() == [0] * 5 + [1] * 4 and dataset.test.labels.tolist() == [0] * 2 + [1] * 3
        for part in ("train", "test"):
            paths = sorted((pets / part).rglob("*.png"))
            expected = np.stack([reference(Image.open(path), 16) for path in paths])
            assert np.array_equal(getattr(dataset, part).images.numpy(), expected)

    def test_images_have_a_path_and_an_identity(self, pets: Path) -> None:
        (pets / "train" / "cat" / "001.png").write_text("not an image")
        dataset = load(pets, skip=True)
        assert dataset.train.paths[:3] == ("train/cat/000.png", "train/cat/002.png", "train/cat/003.png")
        assert dataset.train.identities[:2] == ("cat/000.png", "cat/002.png")
        assert len(dataset.train.paths) == len(dataset.train.identities) == len(dataset.train) == 8
        assert dataset.test.paths[0] == "test/cat/000.png"

    def test_val_is_the_validation_set_if_test_exists(self, make_folder: MakeFolder) -> None:
        root = make_folder({part: {"a": n, "b": n} for part, n in (("train", 3), ("val", 2), ("test", 1))})
        dataset = load(root)
        assert dataset.val is not None
        assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [6, 4, 2]
        first = reference(Image.open(root / "val" / "a" / "000.png"), 16)
        assert np.array_equal(dataset.val.images[0].numpy(), first)

    def test_val_without_test_is_the_test_set(self, make_folder: MakeFolder) -> None:
        dataset = load(make_folder({"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 1}}))
        assert dataset.val is None and dataset.test.labels.tolist() == [0, 0, 1]

    def test_images_are_found_at_any_depth_among_other_files(self, pets: Path) -> None:
        cat = pets / "train" / "cat"
        (cat / "2020" / "may").mkdir(parents=True)
        shutil.copy(cat / "000.png", cat / "2020" / "may" / "DEEP.PNG")
        (cat / ".hidden.png").write_text("no image")
        (cat / "notes.txt").write_text("no image")
        (cat / "figure.eps").write_text("no image")
        (cat / "noending").write_text("no image")
        (pets / "train" / ".cache").mkdir()
        (pets / "train" / "README.md").write_text("no class")
        (cat / "loop").symlink_to(cat)
        os.mkfifo(cat / "pipe.png")
        assert load(pets).train.labels.tolist() == [0] * 6 + [1] * 4

    @pytest.mark.parametrize("spoil", [shutil.rmtree, _empty])
    def test_a_class_without_test_images_is_accepted(self, spoil: Callable[[Path], object], pets: Path) -> None:
        spoil(pets / "test" / "cat")
        assert load(pets).test.labels.tolist() == [1, 1, 1]

    def test_a_tilde_is_expanded(self, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(pets.parent))
        assert len(load(Path("~") / pets.name).train) == 9


class TestTestFraction:
    @pytest.fixture
    def many(self, make_folder: MakeFolder) -> Path:
        """Return a folder with 60 + 40 images in class folders, and folders that are no classes."""
        root = make_folder({".": {"cat": 60, "dog": 40}}, side=4)
        (root / "notes").mkdir()
        return root

    def test_the_share_of_each_class_is_the_test_set(self, many: Path) -> None:
        dataset = load(many, size=4, test_fraction=0.25)
        assert dataset.classes == ("cat", "dog") and len(dataset.train) + len(dataset.test) == 100
        assert all(0.1 < share < 0.4 for share in (dataset.test.labels.bincount() / torch.tensor([60, 40])).tolist())
        for part in (dataset.train, dataset.test):
            assert part.paths == part.identities
            for image, path in zip(part.images, part.paths, strict=True):
                assert np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(Image.open(many / path)))
                assert dataset.classes[part.labels[part.paths.index(path)]] == path.partition("/")[0]
        pixels = dataset.train.images.double().transpose(0, 1).flatten(1) / 255
        assert dataset.mean == pytest.approx(pixels.mean(1).tolist())

    def test_added_and_removed_images_move_no_others(self, many: Path) -> None:
        before = set(load(many, size=4, test_fraction=0.25).test.identities)
        (many / "cat" / "030.png").unlink()
        shutil.copy(many / "cat" / "000.png", many / "cat" / "-first.png")
        after = set(load(many, size=4, test_fraction=0.25).test.identities)
        assert after - {"cat/-first.png"} == before - {"cat/030.png"}

    def test_train_alone_is_divided_like_the_same_class_folders(self, many: Path) -> None:
        plain = load(many, size=4, test_fraction=0.25)
        (many / "train").mkdir()
        for name in ("cat", "dog"):
            shutil.move(many / name, many / "train" / name)
        inner = load(many, size=4, test_fraction=0.25)
        assert inner.test.identities == plain.test.identities and inner.manifest == plain.manifest
        assert inner.test.paths == tuple(f"train/{path}" for path in plain.test.paths)

    def test_a_single_class_is_refused(self, many: Path) -> None:
        shutil.rmtree(many / "dog")
        with pytest.raises(RequestError, match=r"images has only one class folder, 'cat'\nhint: move the images"):
            load(many, test_fraction=0.25)


def _no_split(root: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(root / "train" / name, root / name)
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")


def _loose(root: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(root / "train" / name / "000.png", root / "train" / f"{name}.png")
        shutil.rmtree(root / "train" / name)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, r"images not found\nhint: use --data-dir with a folder that has train/CLASS/ and test/"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), r"images is a file, not a folder"),
    "empty": (_empty, r"images has no train/ and test/\nhint: move the images of each class to \S+/train/CLASS and"),
    "no split": (_no_split, r"has class folders \(cat, dog\) but no train/ and test/\nhint: add --test-fraction 0.2"),
    "no test": (
        lambda root: shutil.rmtree(root / "test"),
        r"has train/ but neither test/ nor val/\nhint: add --test-fraction 0.2, or move some images of each class to \S+/test/CLASS",
    ),
    "no train": (
        lambda root: shutil.rmtree(root / "train"),
        r"images has test/ but no train/\nhint: move the training images of each class to \S+/train/CLASS",
    ),
    "no classes": (_loose, r"images/train has no class folders\nhint: .*two or more"),
    "one class": (
        lambda root: shutil.rmtree(root / "train" / "dog"),
        r"train has only one class folder, 'cat'\nhint: .*two or more",
    ),
    "one class without test": (
        lambda root: (shutil.rmtree(root / "train" / "dog"), shutil.rmtree(root / "test")),
        r"train has only one class folder, 'cat'\nhint: .*two or more",
    ),
    "one class without a split": (
        lambda root: (_no_split(root), shutil.rmtree(root / "dog")),
        r"images has only one class folder, 'cat'\nhint: .*two or more",
    ),
    "a class in other case": (
        lambda root: shutil.move(root / "test" / "dog", root / "test" / "Dog"),
        r"test/Dog is not a class of train/\nhint: rename it to 'dog', as in train/",
    ),
    "other files": (
        lambda root: [path.rename(path.with_suffix(".npy")) for path in (root / "train" / "dog").iterdir()],
        r"train/dog has no images \(skipped \d+ .npy\)\nhint: add images to \S+train/dog, or remove it",
    ),
    "no test classes": (
        lambda root: _empty(root / "test"),
        r"images/test has no class folders\nhint: move some images of each class in train/ to \S+images/test/CLASS",
    ),
    "empty class": (
        lambda root: _empty(root / "train" / "dog"),
        r"train/dog has no images\nhint: add images to \S+train/dog, or remove it",
    ),
    "empty test classes": (
        lambda root: [_empty(root / "test" / name) for name in ("cat", "dog")],
        r"images/test has no images\nhint: add images to \S+test, or remove it",
    ),
    "foreign class": (
        lambda root: (root / "test" / "dog").rename(root / "test" / "bird"),
        r"test/bird is not a class of train/\nhint: add training images in \S+train/bird, or remove \S+test/bird",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_wrong_layout_is_refused_with_a_hint(case: str, pets: Path, cache: Path) -> None:
    spoil, expected = BAD_FOLDERS[case]
    spoil(pets)
    with pytest.raises(RequestError, match=expected) as caught:
        load(pets)
    assert caught.value.exit_code == 2 and str(pets) in caught.value.message and "\n" not in caught.value.message
    assert not cache.exists()


def test_images_that_are_all_unreadable_cannot_be_left_out(make_folder: MakeFolder) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1}})
    for path in root.rglob("*.png"):
        path.write_text("damaged")
    with pytest.raises(RequestError, match=r"cannot read 5 of 5 images.*\nhint: replace them$"):
        load(root)


def test_grey_values_beyond_the_full_range_can_be_measured(make_folder: MakeFolder) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1}})
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.unlink()
        Image.fromarray(np.full((4, 4), i - 2, np.float32)).save(path.with_suffix(".tif"))
    with pytest.raises(RequestError, match=r"grey values outside 0-1.*\nhint: use --value-range auto"):
        load(root, value_range="full")
    assert load(root, value_range="auto").value_range == "-1,2"


def test_the_name_of_an_unreadable_image_is_one_line(make_folder: MakeFolder) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1}})
    (root / "train" / "cat" / "a\nb\x1b.png").write_text("damaged")
    with pytest.raises(RequestError, match=r"cat/a\\nb\\x1b.png: not an image\nhint: add --skip-bad-images") as caught:
        load(root)
    assert str(caught.value).count("\n") == 1
    assert load(root, skip=True).skipped == (r"train/cat/a\nb\x1b.png",)


def test_the_folder_is_required() -> None:
    with pytest.raises(RequestError, match="folder of the images is not given\nhint: use --dataset DIR"):
        load_dataset("folder", data_dir=None, size=16, skip_bad_images=False)


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> BytesIO:
    file = BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


class TestDecode:
    @pytest.mark.parametrize("size", [8, 20, 33, 64])
    @pytest.mark.parametrize("shape", [(20, 20), (47, 20), (20, 47), (33, 32), (300, 20), (8, 9)])
    def test_resize_and_crop_match_torchvision(self, shape: tuple[int, int], size: int) -> None:
        image = make_image(*shape)
        decoded = decode_image(stored(image), size)
        assert decoded.dtype == np.uint8 and decoded.shape == (3, size, size) and decoded.flags.c_contiguous
        assert np.array_equal(decoded, reference(image, size))

    def test_images_keep_their_size_without_a_size(self) -> None:
        image = make_image(30, 20)
        assert np.array_equal(decode_image(stored(image), None), np.asarray(image).transpose(2, 0, 1))

    def test_paths_are_accepted(self, pets: Path) -> None:
        path = pets / "train" / "cat" / "000.png"
        for source in (path, str(path)):
            assert np.array_equal(decode_image(source, 16), reference(Image.open(path), 16))

    @pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA"])
    def test_formats_are_decoded_as_by_pillow(self, format: str) -> None:
        image = make_image(40, 30)
        file = stored(image, format)
        with Image.open(BytesIO(file.getvalue())) as again:
            expected = reference(again.convert("RGB"), 16)
        assert np.array_equal(decode_image(file, 16), expected)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
    def test_modes_are_converted_as_by_pillow(self, mode: str) -> None:
        image = make_image(24, 20).convert(mode)
        file = stored(image, "JPEG" if mode == "YCbCr" else "TIFF")
        with Image.open(BytesIO(file.getvalue())) as again:
            expected = np.asarray(again.convert("RGB")).transpose(2, 0, 1)
        assert expected.std() > 10
        assert np.array_equal(decode_image(file, None), expected)

    def test_palette_images_are_converted(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putdata([0, 1])
        assert decode_image(stored(image), None)[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]

    def test_transparent_palette_entries_become_white(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putdata([0, 1])
        assert decode_image(stored(image, transparency=0), None)[:, 0].T.tolist() == [[255] * 3, [200, 100, 50]]

    def test_transparent_pixels_become_white(self) -> None:
        rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
        expected = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]  # 255 + (value - 255) * alpha / 255
        assert decode_image(stored(Image.fromarray(rgba)), None)[:, 0].T.tolist() == expected

    def test_transparent_grey_pixels_become_white(self) -> None:
        image = Image.fromarray(np.array([[[100, 255], [100, 0]]], dtype=np.uint8), "LA")
        assert decode_image(stored(image), None)[0].tolist() == [[100, 255]]

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
    def test_16_bit_grey_is_scaled(self, format: str) -> None:
        values = np.array([[0, 128, 129, 257, 0x8000, 0xFFFF]], dtype=np.uint16)
        decoded = decode_image(stored(Image.fromarray(values), format), None)
        assert (decoded == decoded[:1]).all()
        assert decoded[0].tolist() == [[0, 0, 1, 1, 128, 255]]  # value / 257, rounded

    def test_floating_point_grey_is_scaled(self) -> None:
        values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
        assert decode_image(stored(Image.fromarray(values), "TIFF"), None)[0].tolist() == [[0, 128, 255]]

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (np.float32([[0, 2]]), "grey values outside 0-1: 0 to 2"),
            (np.float32([[0, np.nan]]), "grey values that are not finite"),
            (np.int32([[0, 70000]]), "grey values outside 0-65535: 0 to 70000"),
        ],
    )
    def test_grey_of_unknown_range_is_refused(self, values: np.ndarray, reason: str) -> None:
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(stored(Image.fromarray(values), "TIFF"), None)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_images_are_set_upright(self, orientation: int, format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = stored(make_image(40, 20), format, exif=exif)
        with Image.open(BytesIO(file.getvalue())) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        assert expected.size == ((40, 20) if orientation < 5 else (20, 40))
        assert np.array_equal(decode_image(file, 16), reference(expected, 16))

    def test_the_first_frame_is_decoded(self) -> None:
        frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
        file = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert decode_image(file, None)[:, 0, 0].tolist() == [255, 0, 0]

    def test_a_large_jpeg_decoded_at_reduced_scale_is_close_to_torchvision(self) -> None:
        file = stored(make_image(640, 480), "JPEG", quality=95)
        with Image.open(BytesIO(file.getvalue())) as image:
            expected = reference(image, 32)
        difference = np.abs(decode_image(file, 32).astype(int) - expected)
        assert difference[:2].max() <= 2  # the two smooth planes; the third has stripes finer than a pixel
        assert difference.mean() < 2

    @pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1)])
    def test_very_thin_images_are_cropped_before_resizing(
        self, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[tuple[int, int]] = []
        resize = Image.Image.resize

        def note(image: Image.Image, size: tuple[int, int], *more: Any) -> Image.Image:
            sizes.append(size)
            return resize(image, size, *more)

        monkeypatch.setattr(Image.Image, "resize", note)
        decoded = decode_image(stored(make_image(*shape)), 64)
        assert decoded.shape == (3, 64, 64)
        assert sizes and max(max(size) for size in sizes) <= 16 * 64  # without cropping, 64,000 pixels long
        if max(shape) > 1:
            along = decoded[1 if shape[1] > 1 else 0]
            assert 126 <= along.mean() <= 129  # the middle of a ramp

    def test_thin_images_match_torchvision(self) -> None:
        image = make_image(4, 101)
        assert np.array_equal(decode_image(stored(image), 16), reference(image, 16))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _huge(path: Path) -> None:
    path.write_bytes(b"P6 100000 100000 255\n")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncated, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "not an image"),
    "text": (lambda path: path.write_text("hello"), "not an image"),
    "huge": (_huge, "too large, with more than 500 megapixels"),
    "broken link": (_dangling, "No such file"),
}


@pytest.mark.parametrize("case", UNREADABLE)
class TestUnreadable:
    def test_loading_fails_by_default(self, case: str, pets: Path) -> None:
        spoil, reason = UNREADABLE[case]
        first, second = pets / "train" / "dog" / "001.png", pets / "test" / "cat" / "001.png"
        for path in (second, first):
            spoil(path)
        for _ in range(2):  # the second time from the cache
            with pytest.raises(RequestError, match="cannot read 2 of 14 images, such as ") as caught:
                load(pets)
            message = caught.value.message
            assert f"{first}: " in message and reason in message and "\n" not in message
            assert "--skip-bad-images" in str(caught.value.hint) and caught.value.exit_code == 2

    def test_unreadable_images_are_skipped_on_request(self, case: str, pets: Path) -> None:
        complete = load(pets)
        first, second = pets / "train" / "dog" / "001.png", pets / "test" / "cat" / "001.png"
        for path in (second, first):
            UNREADABLE[case][0](path)
        dataset = load(pets, skip=True)
        assert dataset.skipped == ("train/dog/001.png", "test/cat/001.png")
        assert dataset.train.labels.tolist() == [0] * 5 + [1] * 3 and dataset.test.labels.tolist() == [0] + [1] * 3
        assert np.array_equal(dataset.train.images.numpy(), np.delete(complete.train.images.numpy(), 6, axis=0))
        assert np.array_equal(dataset.test.images.numpy(), np.delete(complete.test.images.numpy(), 1, axis=0))
        values = dataset.train.images.double() / 255
        assert dataset.mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)


def test_a_class_without_readable_images_is_refused(pets: Path) -> None:
    for path in (pets / "train" / "dog").iterdir():
        path.write_text("hello")
    with pytest.raises(RequestError, match=r"none of the images in \S+train/dog can be read"):
        load(pets, skip=True)


def test_a_data_set_without_readable_images_is_refused(pets: Path) -> None:
    for path in pets.rglob("*.png"):
        path.write_text("hello")
    with pytest.raises(RequestError, match="cannot read 14 of 14 images"):
        load(pets)
    with pytest.raises(RequestError, match=r"none of the images in \S+train/cat can be read"):
        load(pets, skip=True)


def test_a_test_set_without_readable_images_is_refused(pets: Path) -> None:
    for path in (pets / "test").rglob("*.png"):
        path.write_text("hello")
    with pytest.raises(RequestError, match=r"none of the images in \S+images/test can be read"):
        load(pets, skip=True)


def test_an_image_repaired_with_the_same_size_and_time_is_read_again(pets: Path) -> None:
    path = pets / "train" / "dog" / "001.png"
    good, times = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(good))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(pets, skip=True).skipped == ("train/dog/001.png",)
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(pets).skipped == ()


def test_postscript_with_another_suffix_is_not_executed(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []

    def ghostscript(*_: object, **__: object) -> None:
        ran.append(1)
        raise OSError

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    path = pets / "train" / "cat" / "000.png"
    path.write_text(program)
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()  # Pillow itself runs Ghostscript
    assert ran
    ran.clear()
    assert load(pets, skip=True).skipped == ("train/cat/000.png",)
    assert not ran


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("hello")
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path, 16)
    assert caught.value.message == f"cannot read the image {path}: not an image" and caught.value.exit_code == 2
    with pytest.raises(UnreadableImage, match=r"cannot read the image nowhere.png: No such file"):
        decode_image("nowhere.png", 16)


def test_running_out_of_memory_is_not_reported_as_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode_module, "_to_rgb", fail)
    with pytest.raises(MemoryError):
        decode_image(stored(make_image(4, 4)), 4)


class Recorder(Observer):
    def __init__(self, calls: list[tuple[int, int]]) -> None:
        self.calls = calls

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        self.calls.append((done, total))


def test_progress_reaches_the_total_and_cached_images_report_none(make_folder: MakeFolder) -> None:
    root = make_folder({"train": {"a": 40, "b": 30}, "test": {"a": 1, "b": 1}})
    calls: list[tuple[int, int]] = []
    load(root, observer=Recorder(calls))
    assert calls[-1] == (72, 72) and len(calls) >= 3
    assert [done for done, _ in calls] == sorted({done for done, _ in calls}) and {total for _, total in calls} == {72}
    calls.clear()
    load(root, observer=Recorder(calls))
    assert calls == []
