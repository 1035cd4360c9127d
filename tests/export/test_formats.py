"""Exported files match the model: every network, in every format, at any batch size."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.export import EXPORTERS, OPSETS
from vitctl.export.formats import Deployed, as_input, resize
from vitctl.export.metadata import Metadata
from vitctl.export.request import TOLERANCE, Form
from vitctl.inference.provenance import Provenance
from vitctl.models import MODELS, build_model

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)
BATCHES = (1, 3, 17)
WITH_INPUT = [name for name, entry in EXPORTERS.items() if not entry.weights_only]
"""Formats that store a program, not only weights."""

FAMILIES = list({entry.family: net for net, entry in reversed(MODELS.items())}.values())
NARROW = {"embed_dim": 32, "depth": 2, "head_dim": 8, "conv_width": 8}

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4},
    "cait_xxs24_224": {"img_size": 64},
    "mobilevit_xxs": {},
    "mixer_s32_224": {"img_size": 64},
    "convmixer_768_32": {"img_size": None},
    "convnext_atto": {},
    "resnet18": {},
    "efficientnet_b0": {},
}
"""Networks of timm, and the arguments for images of 64 px."""


def record_of(net: str, model_size: int, form: Form, mean: tuple[float, ...] = MEAN, **more: Any) -> Metadata:
    settings: dict[str, Any] = {
        "vitctl": "0",
        "net": net,
        "net_options": {},
        "classes": tuple("abcdefghij"),
        "size": model_size,
        "channels": len(mean),
        "mean": mean,
        "std": STD[: len(mean)],
        "form": form,
        "provenance": Provenance(
            dataset="cifar10",
            val="holdout",
            val_fraction=0.1,
            split_seed=0,
            holdout_by="position",
            test_fraction=None,
            limit_train=2000,
            flips=True,
            data_sha256="",
            fit="crop",
            value_range="full",
        ),
        "run": "r",
        "checkpoint": "last.pt",
        "checkpoint_sha256": "0" * 64,
        "weights": "model",
        "epoch": 1,
        "accuracy": {},
    }
    return Metadata(**settings | more)


def randomise(model: nn.Module, size: int, channels: int = 3) -> nn.Module:
    """Move all weights and statistics off 0 and 1, so that an export that drops one of them changes the output.

    The head is scaled so that the logits have a standard deviation of 1, within a factor of ten of a trained network:
    untrained deep networks give logits in the thousands, and rounding errors grow with the logits.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for module in model.modules():
            if hasattr(module, "zero_init_last"):  # a residual block of timm
                # At full strength, 33 untrained branches in a row would amplify rounding errors 2,000 times.
                (module.bn3 if hasattr(module, "bn3") else module.bn2).weight *= 0.2  # type: ignore[operator,union-attr]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Nearly the images' own statistics. The remaining 0.05 keeps variances away from 0, or the rounding
                # errors of deep networks would exceed the tolerance.
                module.momentum = 0.95
        model.train()(normalized(make_images(16, size, channels), MEAN[:channels]))
        images = normalized(make_images(32, size, channels), MEAN[:channels])
        factor = 1 / model.eval()(images).std()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == 10:
                for parameter in module.parameters():
                    parameter *= factor
        assert model(images).std().item() == pytest.approx(1, rel=1e-3)
    return model


def build(net: str, size: int, channels: int = 3, **changed: Any) -> nn.Module:
    options = {name: option.default for name, option in MODELS[net].options.items()}
    options |= {name: value for name, value in changed.items() if name in options}
    torch.manual_seed(0)
    return randomise(build_model(net, options, img_size=size, in_chans=channels, num_classes=10), size, channels)


def size_of(net: str) -> int:
    return 64 if MODELS[net].img_size > 64 else 32


def make_images(count: int, size: int, channels: int = 3) -> Tensor:
    """Return smooth random images with noise: a deep network cannot tell images of pure noise apart."""
    generator = torch.Generator().manual_seed(count)
    blotches = torch.rand(count, channels, 4, 4, generator=generator)
    images = F.interpolate(blotches, (size, size), mode="bilinear")
    images += 0.1 * torch.randn(images.shape, generator=generator)
    return (255 * images).round().clamp(0, 255).to(torch.uint8)


def normalized(images: Tensor, mean: tuple[float, ...] = MEAN) -> Tensor:
    """Scale images to 0-1, subtract the mean and divide by the standard deviation, in numpy."""
    shape = (-1, 1, 1)
    values = images.numpy() / 255.0
    normal = (values - np.reshape(mean, shape)) / np.reshape(STD[: len(mean)], shape)
    return torch.from_numpy(normal.astype(np.float32))


@torch.no_grad()
def expected(model: nn.Module, images: Tensor, mean: tuple[float, ...] = MEAN) -> Tensor:
    """Return the logits of images, uint8 ``[B, C, H, W]``."""
    logits: Tensor = model(normalized(images, mean))
    return logits


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    worst = (ours - theirs).abs().max().item()
    assert worst <= TOLERANCE
    top = ours.topk(2).values
    clear = top[:, 0] - top[:, 1] > 2 * worst
    assert torch.equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])
    assert clear.sum() >= len(clear) - 1


def check(net: str, model: nn.Module, size: int, name: str, form: Form | None = None) -> None:
    writer = EXPORTERS[name].load()()
    record = record_of(net, size, form or Form())
    network = Deployed(model, MEAN, STD, record.form, size)
    reread, run = writer.open(writer.export(network, record, opset=OPSETS[0]))
    assert reread == record
    for count in BATCHES:
        images = make_images(count, size)
        outputs = run(as_input(images, reread))
        logits = expected(model, images)
        assert logits.std() > 1e-3
        assert_same(outputs[0], logits)
        assert len(outputs) == (2 if record.form.softmax else 1)
        if record.form.softmax:
            assert (outputs[1] - logits.softmax(1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", WITH_INPUT)
def test_a_small_network_matches_in_each_format(name: str) -> None:
    check("vit_small", build("vit_small", 16, **{**NARROW, "depth": 1}), 16, name, Form(softmax=True))


def test_safetensors_rebuilds_the_network() -> None:
    options = {name: option.default for name, option in MODELS["vit_small"].options.items()} | {"depth": 1}
    model = build("vit_small", 16, **options)
    writer = EXPORTERS["safetensors"].load()()
    record = record_of("vit_small", 16, Form(normalize="none"), net_options=options)
    files = writer.export(Deployed(model, MEAN, STD, record.form, 16), record, opset=18)
    assert list(files) == [".safetensors", ".json"]
    reread, run = writer.open(files)
    assert reread == record
    images = make_images(3, 16)
    assert_same(run(as_input(images, reread))[0], expected(model, images))


@pytest.mark.parametrize(
    ("normalize", "dtype", "layout", "channels"),
    [
        ("baked", "float32", "nchw", 3),
        pytest.param("baked", "float32", "nhwc", 1, marks=pytest.mark.slow),
        pytest.param("baked", "uint8", "nchw", 1, marks=pytest.mark.slow),
        ("baked", "uint8", "nhwc", 3),
        ("none", "float32", "nchw", 1),
        pytest.param("none", "float32", "nhwc", 3, marks=pytest.mark.slow),
    ],
)
def test_every_form_of_input_matches_numpy(normalize: str, dtype: str, layout: str, channels: int) -> None:
    form = Form(normalize=normalize, dtype=dtype, layout=layout)
    mean = MEAN[:channels]
    torch.manual_seed(0)
    # A linear layer depends on the position of every pixel.
    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(channels * 8 * 8, 10)), 8, channels)
    record = record_of("linear", 8, form, mean)
    writer = EXPORTERS["onnx"].load()()
    files = writer.export(Deployed(model, mean, STD[:channels], form, 8), record, opset=18)
    session = onnxruntime.InferenceSession(files[".onnx"], providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "images" and given.type == {"uint8": "tensor(uint8)", "float32": "tensor(float)"}[dtype]
    assert given.shape == (["batch", channels, 8, 8] if layout == "nchw" else ["batch", 8, 8, channels])
    images = make_images(5, 8, channels).numpy()
    values = images if dtype == "uint8" else (images / 255).astype(np.float32)
    if normalize == "none":
        values = (values - np.reshape(mean, (-1, 1, 1)).astype(np.float32)) / np.reshape(STD[:channels], (-1, 1, 1))
    values = values.astype(dtype)
    if layout == "nhwc":
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    (logits,) = session.run(["logits"], {"images": values})
    assert_same(torch.from_numpy(logits), expected(model, torch.from_numpy(images), mean))


def tiny(name: str, opset: int = OPSETS[0]) -> tuple[nn.Module, Metadata, dict[str, bytes]]:
    """Export ``cct_2`` with one narrow block; return it, its metadata and the contents of the files."""
    model, record = build("cct_2", 8, **{**NARROW, "depth": 1}), record_of("cct_2", 8, Form())
    files = EXPORTERS[name].load()().export(Deployed(model, MEAN, STD, Form(), 8), record, opset=opset)
    return model, record, files


tiny_once = functools.cache(tiny)


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_onnx_file_has_the_requested_opset(opset: int) -> None:
    model, record, files = tiny_once("onnx", opset)
    writer = EXPORTERS["onnx"].load()()
    written = onnx.load_from_string(files[".onnx"])
    assert next(entry.version for entry in written.opset_import if not entry.domain) == opset
    images = make_images(3, 8)
    assert_same(writer.open(files)[1](as_input(images, record))[0], expected(model, images))


def test_opsets_are_those_of_torch() -> None:
    from torch.onnx import _constants
    from torch.onnx._internal.exporter import _constants as exporter

    assert OPSETS[0] == exporter.TORCHLIB_OPSET
    assert OPSETS[-1] <= _constants.ONNX_MAX_OPSET


def test_exports_are_reproducible_and_contain_no_paths() -> None:
    first = tiny_once("onnx", OPSETS[0])[2][".onnx"]
    assert first == tiny("onnx", OPSETS[0])[2][".onnx"]
    assert b".py" not in first
    assert not any(tensor.external_data for tensor in onnx.load_from_string(first).graph.initializer)


def test_tracing_needs_an_example_of_more_than_one_image() -> None:
    """torch.export treats a batch size of 1 as a constant; see :data:`vitctl.export.formats.EXAMPLE_BATCH`."""
    model = Deployed(build("cct_2", 8, **{**NARROW, "depth": 1}), MEAN, STD, Form(), 8)
    with pytest.raises(Exception, match="batch"):
        torch.export.export(model, (model.example()[:1],), dynamic_shapes=({0: torch.export.Dim("batch")},))


def test_resizing_matches_pillow() -> None:
    from PIL import Image

    images = make_images(2, 40)
    for size in (16, 40, 64):
        ours = resize(images, size)
        for i, image in enumerate(images):
            theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            theirs_first = np.asarray(theirs).transpose(2, 0, 1).astype(int)
            assert np.abs(ours[i].numpy().astype(int) - theirs_first).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("net", MODELS)
def test_every_network_matches_in_onnx(net: str) -> None:
    size = size_of(net)
    check(net, build(net, size), size, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("net", FAMILIES)
@pytest.mark.parametrize("name", [name for name in WITH_INPUT if name != "onnx"])
def test_one_network_per_family_matches_in_the_other_formats(net: str, name: str) -> None:
    size = size_of(net)
    check(net, build(net, size), size, name)


@pytest.mark.long
@pytest.mark.parametrize("net", MODELS)
@pytest.mark.parametrize("name", WITH_INPUT)
def test_every_network_matches_in_every_format(net: str, name: str) -> None:
    size = size_of(net)
    check(net, build(net, size), size, name, Form(softmax=True, dtype="uint8", layout="nhwc"))


def timm_model(net: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {key: value for key, value in TIMM[net].items() if value is not None}
    return randomise(timm.create_model(net, num_classes=10, **settings), 64)


@pytest.mark.slow
@pytest.mark.parametrize("net", [net for net in TIMM if net in ("vit_tiny_patch16_224", "resnet18")])
@pytest.mark.parametrize("name", WITH_INPUT)
def test_two_networks_of_timm_match_in_every_format(net: str, name: str) -> None:
    check(f"timm/{net}", timm_model(net), 64, name)


@pytest.mark.long
@pytest.mark.parametrize("net", TIMM)
@pytest.mark.parametrize("name", WITH_INPUT)
def test_ten_networks_of_timm_match_in_every_format(net: str, name: str) -> None:
    check(f"timm/{net}", timm_model(net), 64, name)


@pytest.mark.parametrize("net", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_loads_its_networks_from_safetensors(net: str, tmp_path: Any) -> None:
    model = timm_model(net)
    writer = EXPORTERS["safetensors"].load()()
    record = record_of(f"timm/{net}", 64, Form(normalize="none"))
    files = writer.export(Deployed(model, MEAN, STD, record.form, 64), record, opset=18)
    (tmp_path / "model.safetensors").write_bytes(files[".safetensors"])
    (tmp_path / "config.json").write_bytes(files[".json"])
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = make_images(3, 64)
    assert_same(expected(theirs, images), expected(model, images))
    assert tuple(theirs.pretrained_cfg["mean"]) == MEAN and theirs.pretrained_cfg["input_size"] == (3, 64, 64)
    reread, run = writer.open(files)
    assert_same(run(as_input(images, reread))[0], expected(model, images))


def test_the_error_names_a_network_that_cannot_be_traced() -> None:
    from vitctl.errors import RunFailed

    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * (2 if x.sum() > 0 else 3)

    record = record_of("fickle", 8, Form())
    for name in ("onnx", "torch-export"):
        with pytest.raises(RunFailed, match=r"cannot export fickle to [a-zA-Z-]+: .*data-dependent") as caught:
            EXPORTERS[name].load()().export(Deployed(Fickle(), MEAN, STD, Form(), 8), record, opset=18)
        assert "\x1b" not in str(caught.value) and "Next steps" not in str(caught.value)


def test_metadata_in_torchscript_and_pt2_can_be_read_without_torch() -> None:
    import json
    import zipfile

    for name, suffix in (("torchscript", ".torchscript"), ("torch-export", ".pt2")):
        _, record, files = tiny(name)
        with zipfile.ZipFile(io.BytesIO(files[suffix])) as archive:
            (member,) = [entry for entry in archive.namelist() if entry.endswith("vitctl.json")]
            assert json.loads(archive.read(member))["classes"] == json.dumps(list(record.classes))
