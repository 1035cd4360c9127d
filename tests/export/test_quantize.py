import functools
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.export.test_formats import record_of
from vitctl.export.formats import Deployed
from vitctl.export.metadata import Metadata
from vitctl.export.onnx import Onnx
from vitctl.export.quantize import QuantizationData, Quantized, layers, measure, select_data, to_fp16, to_int8
from vitctl.export.request import Form
from vitctl.inference.classifier import classifier_of
from vitctl.inference.scoring import load_data_for, part_for
from vitctl.inference.trained import load_trained

Case = tuple[bytes, Metadata, QuantizationData]


def ignore(what: str, done: int, count: int) -> None:
    pass


@pytest.fixture(scope="module")
def case(digits_runs: Path) -> Case:
    """Return the ONNX file of a trained network, its metadata, and images."""
    device = torch.device("cpu")
    network = load_trained(digits_runs / "digits", weights="last", device=device, warn=print)
    classifier = classifier_of(network, device)
    record = record_of("cct_2", 8, Form(), mean=network.mean, classes=network.classes)
    deployed = Deployed(network.model, network.mean, network.std, Form(), 8)
    data = Onnx().export(deployed, record, opset=18)[".onnx"]
    return data, record, select_data(classifier, load_data_for(classifier))


def top1(data: bytes, record: Metadata, images: QuantizationData) -> float:
    """Return the accuracy on held-out images, computed in numpy."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": (images.images / 255).numpy()})
    return 100 * float((logits.argmax(1) == images.labels.numpy()).mean())


def test_calibration_images_are_neither_held_out_nor_test_images(digits_runs: Path) -> None:
    device = torch.device("cpu")
    classifier = classifier_of(load_trained(digits_runs / "digits", weights="last", device=device, warn=print), device)
    data = load_data_for(classifier)
    images = select_data(classifier, data)
    assert len(images.calibration) == 256 and not images.trained_on
    held_out = part_for(classifier, data, "val", None)
    assert torch.equal(images.images, held_out.examples.images[held_out.index])
    ours = {image.numpy().tobytes() for image in images.calibration}
    assert not ours & {image.numpy().tobytes() for image in (*images.images, *data.test.images)}


def test_int8_quantizes_every_weight_and_keeps_accuracy(case: Case) -> None:
    data, record, images = case
    exact = measure(data, record, images, "", ignore)
    assert exact == pytest.approx(top1(data, record, images)) and exact > 60
    made = to_int8(data, record, images, max_drop=3.0, top1=exact, progress=ignore)
    assert made.drop <= 3.0 and made.top1 == pytest.approx(top1(made.data, record, images))
    assert made.drop == pytest.approx(exact - made.top1)
    model = onnx.load_from_string(made.data)
    onnx.checker.check_model(model, full_check=True)
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert len(weights) == made.layers - len(made.in_float) == len(layers(onnx.load_from_string(data)))
    assert all(-64 <= value <= 64 for t in weights for value in onnx.numpy_helper.to_array(t).flatten())


def test_fp16_halves_the_weights_and_keeps_input_and_output_types(case: Case) -> None:
    data, record, images = case
    made = to_fp16(data, record, images, max_drop=1.0, top1=top1(data, record, images), progress=ignore)
    session = onnxruntime.InferenceSession(made.data, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"
    model = onnx.load_from_string(made.data)
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert abs(made.drop) < 1.0


def test_quantization_is_reproducible(case: Case) -> None:
    data, record, images = case
    first, second = (to_int8(data, record, images, max_drop=100, top1=0.0, progress=ignore).data for _ in range(2))
    assert first == second


class Fragile(nn.Module):
    """Four layers, of which the second loses its signal in 8 bits: one activation is thousands of times the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.eye(16))  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x.flatten(1))
        wide = torch.cat([x, 5000 + x[:, :1]], 1)  # [B, 17]: the last column sets the second layer's range
        x = wide @ torch.cat([self.layers[1].weight, torch.zeros(1, 16)])
        return self.layers[3](self.layers[2](x))[:, :10]


@functools.cache
def fragile_case() -> Case:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator)
    record = record_of("fragile", 4, Form(), mean=(0.5,))
    model = Fragile().eval()
    labels = model((images / 255 - 0.5) / 0.2).argmax(1)
    data = Onnx().export(Deployed(model, (0.5,), (0.2,), Form(), 4), record, opset=18)[".onnx"]
    return data, record, QuantizationData(images[:100], images[100:], labels[100:], trained_on=False)


def quantized(max_drop: float) -> Quantized:
    data, record, images = fragile_case()
    exact = measure(data, record, images, "", ignore)
    assert exact == 100.0 and len(layers(onnx.load_from_string(data))) == 4
    return to_int8(data, record, images, max_drop=max_drop, top1=exact, progress=ignore)


def test_only_the_sensitive_layer_stays_in_float() -> None:
    all_int8 = quantized(100)
    assert all_int8.drop > 50 and all_int8.in_float == ()
    kept = quantized(10)
    assert kept.drop <= 10 and len(kept.in_float) == 1
    names = layers(onnx.load_from_string(fragile_case()[0]))
    assert kept.in_float == (names[1],)


def test_the_best_attempt_is_returned_if_none_keeps_accuracy() -> None:
    made = quantized(-1.0)
    assert made.drop > -1.0 and len(made.in_float) <= 2
