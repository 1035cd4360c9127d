"""How image files become square 8-bit images: fit, value range, large images, broken metadata and names."""

from __future__ import annotations

import os
import struct
import threading
import unicodedata
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2 import functional as TF

from vitctl.data import decode as decode_module
from vitctl.data import folder as folder_module
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.decode import UnreadableImage, decode_image
from vitctl.data.layout import class_name
from vitctl.data.reading import FITS, Reading, Traits, parse_range, range_text
from vitctl.errors import RequestError
from vitctl.units import escaped

from .conftest import noise
from .test_folder import make_image, stored

MakeFolder = Callable[..., Path]


def load(root: Path, *, fit: str = "crop", value_range: str = "auto", skip: bool = False) -> Dataset:
    return load_dataset("folder", data_dir=str(root), size=16, skip_bad_images=skip, fit=fit, value_range=value_range)


def write_grey(root: Path, make: Callable[[int], np.ndarray], *, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Write three training images and a test image per class; ``make`` gets the number of the image."""
    number = 0
    for part, count in (("train", 3), ("test", 1)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(make(number)).save(root / part / name / f"{i}.tif")
                number += 1
    return root


def grey(low: float, high: float, dtype: str = "uint16") -> Callable[[int], np.ndarray]:
    """Return a function that makes random images whose values cover ``low`` to ``high``."""

    def make(number: int) -> np.ndarray:
        values = np.random.default_rng(number).uniform(low, high, (20, 20))
        values[0, :2] = low, high
        return values.astype(dtype)

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths decoded so far."""
    paths: list[str] = []
    decode = folder_module.decode_image

    def note(source: str, *more: Any) -> np.ndarray:
        paths.append(source)
        return decode(source, *more)

    monkeypatch.setattr(folder_module, "decode_image", note)
    return paths


class TestFit:
    @pytest.mark.parametrize("shape", [(40, 20), (20, 47), (32, 32), (300, 7)])
    def test_pad_keeps_the_whole_image_between_black_bars(self, shape: tuple[int, int]) -> None:
        image = make_image(*shape)
        width, height = (max(1, round(16 * side / max(shape))) for side in shape)
        left, top = (16 - width) // 2, (16 - height) // 2
        resized = TF.resize(image, [height, width], antialias=True)
        expected = TF.pad(resized, [left, top, 16 - width - left, 16 - height - top])
        assert np.array_equal(decode_image(stored(image), 16, Reading("pad")), np.asarray(expected).transpose(2, 0, 1))

    @pytest.mark.parametrize("shape", [(40, 20), (20, 47), (32, 32), (300, 7)])
    def test_squeeze_resizes_both_sides(self, shape: tuple[int, int]) -> None:
        image = make_image(*shape)
        expected = np.asarray(TF.resize(image, [16, 16], antialias=True)).transpose(2, 0, 1)
        assert np.array_equal(decode_image(stored(image), 16, Reading("squeeze")), expected)

    @pytest.mark.parametrize("fit", ["pad", "squeeze"])
    def test_a_jpeg_decoded_at_reduced_scale_is_close(self, fit: str) -> None:
        y, x = np.mgrid[0:480, 0:960]
        image = Image.fromarray(np.stack([x * 255 / 959, y * 255 / 479, (x + y) / 6], axis=2).astype(np.uint8))
        exact = decode_image(stored(image), 16, Reading(fit)).astype(int)
        assert np.abs(decode_image(stored(image, "JPEG", quality=95), 16, Reading(fit)) - exact).max() <= 3

    @pytest.mark.parametrize("fit", FITS)
    def test_images_are_set_upright_first(self, fit: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = make_image(40, 20).transpose(Image.Transpose.ROTATE_270)
        turned = decode_image(stored(make_image(40, 20), exif=exif), 16, Reading(fit))
        assert np.array_equal(turned, decode_image(stored(upright), 16, Reading(fit)))

    def test_each_fit_has_its_own_cache(self, make_folder: MakeFolder, decoded: list[str]) -> None:
        root = make_folder({"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
        Image.fromarray(noise(0, 40, 20)).save(root / "train" / "a" / "000.png")
        first = {fit: load(root, fit=fit).train.images.clone() for fit in FITS}
        assert len(decoded) == 3 * 6
        assert not any((first[one] == first[other]).all() for one, other in (("crop", "pad"), ("pad", "squeeze")))
        assert all((load(root, fit=fit).train.images == first[fit]).all() for fit in FITS) and len(decoded) == 3 * 6

    def test_a_change_of_the_files_removes_the_caches_of_all_fits(self, make_folder: MakeFolder, cache: Path) -> None:
        root = make_folder({"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
        for fit in FITS:
            load(root, fit=fit)
        Image.fromarray(noise(0)).save(root / "train" / "a" / "new.png")
        load(root)
        assert len(os.listdir(cache / "pictures")) == 1

    def test_images_far_from_square_are_counted(self) -> None:
        traits = Traits()
        for shape in ((175, 100), (174, 100), (100, 180)):
            decode_image(stored(make_image(*shape)), 16, traits=traits)
        assert (traits.images, traits.elongated) == (3, 2)


def traits(*, deep: int = 4, images: int = 4, **ranges: tuple[float, float]) -> Traits:
    return Traits(images=images, deep=deep, **ranges)


VALUE_RANGES: dict[str, tuple[Traits, str]] = {
    "no deep images": (traits(deep=0), "full"),
    "none that could be read": (traits(), "full"),
    "16 bits": (traits(integers=(0, 65535)), "full"),
    "16 bits, dark": (traits(integers=(9000, 24000)), "full"),
    "14 bits": (traits(integers=(0, 4096)), "0,16383"),
    "12 bits": (traits(integers=(0, 4095)), "0,4095"),
    "12 bits, dark": (traits(integers=(20, 1800)), "0,4095"),
    "10 bits": (traits(integers=(7, 1000)), "0,1023"),
    "8 bits in 16": (traits(integers=(0, 255)), "0,255"),
    "a mask": (traits(integers=(0, 1)), "0,1"),
    "a narrow range": (traits(integers=(31768, 35768)), "31768,35768"),
    "signed": (traits(integers=(-1000, 3000)), "-1000,3000"),
    "32 bits": (traits(integers=(0, 100000)), "0,100000"),
    "constant": (traits(integers=(5, 5)), "5,6"),
    "floats": (traits(floats=(0.25, 0.5)), "0,1"),
    "floats in a narrow range": (traits(floats=(0.0, 0.1)), "0.0,0.1"),
    "large floats": (traits(floats=(0.5, 255.9375)), "0.5,255.9375"),
    "mostly 8-bit": (traits(deep=1, integers=(0, 4095)), "full"),
    "mostly 8-bit, but out of range": (traits(deep=1, floats=(0, 300)), "0,300"),
    "integers and floats": (traits(integers=(0, 4095), floats=(0, 1)), "full"),
    "integers and large floats": (traits(integers=(5, 4095), floats=(0, 4000.5)), "0,4095"),
}


class TestValueRange:
    @pytest.mark.parametrize("case", VALUE_RANGES)
    def test_it_suits_the_training_images(self, case: str) -> None:
        found, expected = VALUE_RANGES[case]
        assert found.value_range() == expected.replace("0.0,", "0,")

    @pytest.mark.parametrize(
        "text", ["", "0", "1,0", "1,1", "a,b", "0,nan", "nan,1", "0,inf", "-inf,0", "1,2,3", "Auto"]
    )
    def test_other_texts_are_refused(self, text: str) -> None:
        with pytest.raises(RequestError, match=r"--value-range takes auto, full or LOW,HIGH, .*\nhint: .*0,4095"):
            parse_range(text)

    @pytest.mark.parametrize("limits", [(0, 4095), (-1000.5, 0.1), (1e-30, 1e30)])
    def test_its_text_has_the_same_numbers(self, limits: tuple[float, float]) -> None:
        assert parse_range(range_text(*limits)) == limits

    def test_values_become_black_to_white_and_others_are_clipped(self) -> None:
        for values in (np.uint16([[0, 100, 151, 200, 300]]), np.float32([[-1e9, 100, 151, 200, 1e9]])):
            pixels = decode_image(stored(Image.fromarray(values), "TIFF"), None, Reading(value_range="100,200"))
            assert pixels[0].tolist() == [[0, 0, 130, 255, 255]]

    def test_8_bit_images_do_not_depend_on_it(self) -> None:
        image = make_image(20, 20).convert("L")
        plain = decode_image(stored(image), 16)
        assert np.array_equal(decode_image(stored(image), 16, Reading(value_range="100,200")), plain)

    @pytest.mark.parametrize(
        ("make", "expected"), [(grey(0, 4095), "0,4095"), (grey(5, 255.9375, "float32"), "5,255.9375")]
    )
    def test_a_folder_is_read_by_the_range_of_its_training_images(
        self, make: Callable[[int], np.ndarray], expected: str, tmp_path: Path
    ) -> None:
        root = write_grey(tmp_path / "deep", lambda number: make(number) * (2 if number >= 6 else 1))  # 6, 7: test
        dataset = load(root)
        assert dataset.value_range == expected
        low, high = parse_range(expected)
        for examples in (dataset.train, dataset.test):
            for path, image in zip(examples.paths, examples.images, strict=True):
                values = np.asarray(Image.open(root / path)).astype(float).clip(low, high)
                scaled = Image.fromarray(np.rint((values - low) * 255 / (high - low)).astype(np.uint8))
                assert np.array_equal(image[0], np.asarray(TF.resize(scaled, [16], antialias=True)))
        assert dataset.train.images.max() > 200 and (dataset.train.images[:, 0] == dataset.train.images[:, 1]).all()

    @pytest.mark.parametrize(
        "make", [grey(0, 65535), lambda number: noise(number), lambda number: noise(number)[..., 0]]
    )
    def test_8_bit_and_16_bit_folders_are_read_in_full(
        self, make: Callable[[int], np.ndarray], tmp_path: Path, decoded: list[str]
    ) -> None:
        root = write_grey(tmp_path / "full", make)
        dataset = load(root)
        assert dataset.value_range == "full" and len(decoded) == 8
        assert (load(root, value_range="full").train.images == dataset.train.images).all() and len(decoded) == 8

    def test_a_few_16_bit_images_among_others_keep_the_full_range(self, make_folder: MakeFolder) -> None:
        root = make_folder({"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}})
        Image.fromarray(grey(0, 4095)(0)).save(root / "train" / "a" / "deep.tif")
        dataset = load(root)
        assert dataset.value_range == "full" and dataset.traits is not None and dataset.traits.integers == (0, 4095)

    def test_the_measured_range_is_remembered(self, tmp_path: Path, decoded: list[str]) -> None:
        root = write_grey(tmp_path / "deep", grey(0, 4095))
        first = load(root)
        decoded.clear()
        again, given = load(root), load(root, value_range="0,4095")
        assert decoded == [] and again.value_range == given.value_range == "0,4095"
        assert (again.train.images == first.train.images).all() and (given.train.images == first.train.images).all()
        darker = load(root, value_range="0,8190").train.images
        assert len(decoded) == 8 and 0.45 < darker.float().mean() / first.train.images.float().mean() < 0.55

    def test_new_images_are_measured(self, tmp_path: Path) -> None:
        root = write_grey(tmp_path / "deep", grey(0, 4095))
        load(root)
        Image.fromarray(grey(0, 9000)(9)).save(root / "train" / "a" / "new.tif")
        assert load(root).value_range == "0,16383"

    def test_only_readable_training_images_count(self, tmp_path: Path) -> None:
        root = write_grey(tmp_path / "deep", grey(0, 4095))
        Image.fromarray(grey(0, 60000)(9)).save(root / "test" / "a" / "bright.tif")
        (root / "train" / "a" / "0.tif").write_bytes(b"damaged")
        assert load(root, skip=True).value_range == "0,4095"


class TestLarge:
    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make images of more than 1,000 pixels large, in bands of a few lines."""
        monkeypatch.setattr(decode_module, "LARGE", 1000)
        monkeypatch.setattr(decode_module, "_BAND_PIXELS", 3000)

    def exact(self, file: BytesIO, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(decode_module, "LARGE", 10**9)
            return decode_image(BytesIO(file.getvalue()), 8, reading).astype(int)

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("shape", [(200, 200), (203, 151), (151, 203)])
    def test_they_are_read_like_others(self, shape: tuple[int, int], fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
        y, x = np.mgrid[0 : shape[1], 0 : shape[0]]
        file = stored(Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)))
        assert np.abs(decode_image(file, 8, Reading(fit)) - self.exact(file, Reading(fit), monkeypatch)).max() <= 3

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
    def test_in_every_mode(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        image = make_image(120, 120)
        if mode in ("I;16", "F"):
            image = Image.fromarray(
                (np.asarray(image.convert("L")) * 16.0).astype("uint16" if mode == "I;16" else "f4")
            )
        else:
            image = image.convert(mode)
        file, reading = stored(image, "TIFF" if mode in ("CMYK", "I;16", "F") else "PNG"), Reading("crop", "0,4080")
        found = Traits()
        pixels = decode_image(file, 8, reading, found)
        assert pixels.std() > 10 and np.abs(pixels - self.exact(file, reading, monkeypatch)).mean() <= 8
        if mode == "I;16":
            assert found.integers == (np.asarray(image).min(), np.asarray(image).max()) and (
                found.images,
                found.deep,
            ) == (1, 1)

    def test_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_once, most = 0, 0
        shrink = decode_module._shrink

        def count(*arguments: Any) -> Image.Image:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            small = shrink(*arguments)
            at_once -= 1
            return small

        monkeypatch.setattr(decode_module, "_shrink", count)
        content = stored(make_image(300, 300)).getvalue()
        threads = [threading.Thread(target=decode_image, args=(BytesIO(content), 8)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    @pytest.mark.parametrize(("format", "size"), [("WEBP", 8), ("PNG", None)])
    def test_formats_decoded_as_a_whole_have_a_lower_limit(
        self, format: str, size: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode_module, "LARGE", 3_000_000)
        with pytest.raises(UnreadableImage, match="too large, with more than 3 megapixels"):
            decode_image(stored(Image.new("L", (2000, 2000)), format), size)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


BROKEN_EXIF = {
    "garbage": b"\xff" * 40,
    "cut off": b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0",
    "far offset": b"II*\0\xff\xff\xff\x7f",
    "text as orientation": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    "fraction as orientation": b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestBrokenMetadata:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("exif", BROKEN_EXIF)
    def test_broken_exif_does_not_spoil_an_image(self, exif: str, format: str) -> None:
        image, broken = make_image(40, 20), BROKEN_EXIF[exif]
        plain = stored(image, format)
        if format == "PNG":
            content = plain.getvalue()
            file = BytesIO(content[:33] + png_chunk(b"eXIf", broken) + content[33:])
        else:
            file = stored(image, format, exif=b"Exif\0\0" + broken)
        assert np.array_equal(decode_image(file, 16), decode_image(plain, 16))

    @pytest.mark.parametrize("text", ["\nexif\n      20\nnot hexadecimal at all\n", "x" * 2_000_000])
    def test_nor_does_broken_or_long_text(self, text: str) -> None:
        info = PngInfo()
        info.add_text("Raw profile type exif", text, zip=True)
        image = make_image(40, 20)
        assert np.array_equal(decode_image(stored(image, pnginfo=info), 16), decode_image(stored(image), 16))


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


class TestNames:
    @pytest.mark.parametrize(("train", "test"), [(NFD, NFC), (NFC, NFD)])
    def test_classes_match_in_any_unicode_form(self, train: str, test: str, make_folder: MakeFolder) -> None:
        dataset = load(make_folder({"train": {train: 3, "tea": 2}, "test": {test: 1, "tea": 2}}))
        assert dataset.classes == (NFC, "tea") and dataset.test.labels.tolist() == [0, 1, 1]
        assert dataset.train.identities[0] == f"{NFC}/000.png" and dataset.train.paths[0] == f"train/{train}/000.png"

    def test_folders_of_both_forms_are_one_class(self, make_folder: MakeFolder) -> None:
        dataset = load(make_folder({"train": {NFC: 3, NFD: 1, "cafz": 2}, "test": {NFC: 1, "cafz": 1}}))
        assert dataset.classes == (NFC, "cafz") and dataset.train.labels.tolist() == [0] * 4 + [1] * 2

    def test_bytes_that_are_not_utf8_are_escaped(self, make_folder: MakeFolder) -> None:
        names = [os.fsdecode(name) for name in (b"\x94L", b"\x8c\xa2")]
        try:
            root = make_folder({part: dict.fromkeys(names, 2) for part in ("train", "test")})
        except OSError:
            pytest.skip("the disk takes only UTF-8 names")
        (root / "train" / names[0] / os.fsdecode(b"\xff.png")).write_text("not an image")
        dataset = load(root, skip=True)
        assert dataset.classes == (r"\x8c\xa2", r"\x94L") and dataset.skipped == (r"train/\x94L/\xff.png",)
        assert dataset.test.labels.tolist() == [0, 0, 1, 1] and (root / dataset.train.paths[-1]).exists()
        assert dataset.train.identities[-1] == r"\x94L/001.png"

    @pytest.mark.parametrize("name", ["cat", "犬", "\u0645\u06cc\u200c\u062e", "line\nbreak", r"\x94L", "\ud83d"])
    def test_names_are_text_and_stay_the_same(self, name: str) -> None:
        text = class_name(name)
        assert text.encode() and class_name(text) == escaped(text) == text
        assert (text == name) == (name not in ("\ud83d", "line\nbreak")) and len(text.splitlines()) == 1
