"""Smaller ONNX files: whole numbers of 8 bits, or half precision.

Both are held to the accuracy of the float32 file on held-out images. The test set is not looked at here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from vitctl.data.dataset import Dataset, split
from vitctl.errors import RequestError, RunFailed
from vitctl.export.formats import INPUT, as_input, quiet
from vitctl.export.metadata import Metadata
from vitctl.export.onnx import serialize
from vitctl.export.runtime import BATCH, open_session, runner
from vitctl.export.verify import accuracy, in_pieces
from vitctl.inference.classifier import Classifier

CALIBRATE_ON, CALIBRATION_BATCH = 256, 32
"""Training images that the ranges of activations are taken from, evenly over the classes, and how many at once."""

MEASURE_ON = 2000
"""Held-out images that the drop is measured on, at most."""

RANK_ON = 64
"""Of the calibration images, those that the sensitivity of layers is ranked by."""

_QUANTIZED_OPS = ("MatMul", "Gemm", "Conv")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HeldBack:
    """Training images for quantization.

    Attributes:
        calibration: uint8 ``[n, C, H, W]``, that were trained on.
        images: uint8 ``[m, C, H, W]``, held out.
        labels: int64 ``[m]``, theirs.
        trained_on: the held-out ones are so only here: the run trained on every training image.
    """

    calibration: Tensor
    images: Tensor
    labels: Tensor
    trained_on: bool


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A smaller file, and what it costs.

    Attributes:
        data: the ONNX file.
        top1: accuracy on held-out images, in percent.
        drop: how far that is below the float32 file's, in points.
        layers: layers with weights.
        in_float: the names of those that were left in float, the most sensitive first.
    """

    data: bytes
    top1: float
    drop: float
    layers: int
    in_float: tuple[str, ...] = ()


def hold_back(classifier: Classifier, data: Dataset) -> HeldBack:
    """Choose the images to calibrate and to measure on; no test image is among them.

    Raises:
        RequestError: there are too few.
    """
    provenance = classifier.provenance
    try:
        parts = split(
            data,
            val="holdout",
            val_fraction=provenance.val_fraction,
            split_seed=provenance.split_seed,
            limit_train=CALIBRATE_ON,
            limit_test=MEASURE_ON,
        )
    except RequestError as error:
        raise RequestError(
            f"--quantize measures on images that it holds out ({error}); take more by --dataset"
        ) from error
    assert parts.val is not None
    return HeldBack(
        calibration=parts.train.examples.images[parts.train.index],
        images=parts.val.examples.images[parts.val.index],
        labels=parts.val.examples.labels[parts.val.index],
        trained_on=provenance.val != "holdout" and data.val is None,
    )


def measure(data: bytes, record: Metadata, images: HeldBack, title: str, progress: Progress) -> float:
    """Return the accuracy of an ONNX file on the held-out images, in percent."""
    top1 = accuracy(_logits(data, record, images.images, lambda d, n: progress(title, d, n)), images.labels)
    assert top1 is not None
    return top1


def _logits(
    data: bytes, record: Metadata, images: Tensor, progress: Callable[[int, int], None] = lambda done, count: None
) -> Tensor:
    run = runner(open_session(data))
    return in_pieces(
        lambda piece: run(as_input(piece, record))[0].float(),
        images,
        BATCH,
        "",
        lambda _, done, count: progress(done, count),
    )


def to_fp16(
    data: bytes, record: Metadata, images: HeldBack, *, max_drop: float, top1: float, progress: Progress
) -> Quantized:
    """Return the file in half precision; its input and outputs keep their types.

    Args:
        data: the float32 file.
        record: what the new file says of itself.
        images: held-out ones.
        max_drop: not used, as there is nothing that could be left out.
        top1: of the float32 file on the held-out images.
        progress: told how far it is.
    """
    with quiet():
        model = _sorted(convert_float_to_float16(onnx.load_from_string(data), keep_io_types=True))
    small = serialize(model, record)
    measured = measure(small, record, images, "held-out images, fp16", progress)
    return Quantized(data=small, top1=measured, drop=_drop(top1, measured), layers=len(layers(model)))


def to_int8(
    data: bytes, record: Metadata, images: HeldBack, *, max_drop: float, top1: float, progress: Progress
) -> Quantized:
    """Return the file with layers in whole numbers of 8 bits, as QuantizeLinear and DequantizeLinear around them.

    Quantized are the layers with weights: linear ones and convolutions, weights per output channel and activations per
    tensor. The products within attention, norms and softmax hold no weights and stay in float. Where the accuracy drops
    by more than ``max_drop``, the layers whose quantization alone moves the logits most stay in float too, as few as
    will do, and at most all but one.

    Args:
        data: the float32 file.
        record: what the new file says of itself.
        images: training images to calibrate on, and held-out ones.
        max_drop: points of accuracy on the held-out images that may be lost.
        top1: of the float32 file on these.
        progress: told how far it is.

    Raises:
        RunFailed: the network has no layer that could be quantized.
    """
    names = layers(onnx.load_from_string(data))
    if not names:
        raise RunFailed(f"{record.net} has no layer with weights that could be quantized")
    ranges = _calibrate(data, as_input(images.calibration, record).numpy(), progress)

    def attempt(in_float: Sequence[str]) -> Quantized:
        chosen = [name for name in names if name not in in_float]
        small = serialize(_quantize(data, ranges, chosen), record)
        title = f"held-out images, {len(chosen)} of {len(names)} layers in int8"
        measured = measure(small, record, images, title, progress)
        return Quantized(
            data=small, top1=measured, drop=_drop(top1, measured), layers=len(names), in_float=tuple(in_float)
        )

    whole = attempt(())
    if whole.drop <= max_drop:
        return whole
    ranked = _rank(data, record, images.calibration[:RANK_ON], ranges, names, progress)
    tried = {0: whole}

    def within(count: int) -> bool:
        if count not in tried:
            tried[count] = attempt(ranked[:count])
        return tried[count].drop <= max_drop

    most, low, high = len(names) - 1, 0, 1
    while high < most and not within(high):
        low, high = high, 2 * high
    high = min(high, most)
    if high and within(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(middle) else (middle, high)
        return tried[high]
    return min(tried.values(), key=lambda each: each.drop)


def _drop(before: float, after: float) -> float:
    """Return how many points were lost; the same ones whatever the shares were, which a difference of floats is not."""
    return round(before - after, 9)


def layers(model: ModelProto) -> list[str]:
    """Return the names of the nodes that multiply by weights, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _QUANTIZED_OPS and len(node.input) > 1 and node.input[1] in constants
    ]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration images to onnxruntime, a batch at a time."""

    def __init__(self, images: npt.NDArray[Any], progress: Progress) -> None:
        self.batches = self._batches(images, progress)

    def _batches(self, images: npt.NDArray[Any], progress: Progress) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for start in range(0, len(images), CALIBRATION_BATCH):
            batch = images[start : start + CALIBRATION_BATCH]
            yield {INPUT: batch}
            progress("calibrating on training images", start + len(batch), len(images))

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the next batch, or None after the last."""
        return next(self.batches, None)


def _calibrate(data: bytes, images: npt.NDArray[Any], progress: Progress) -> Any:
    """Return onnxruntime's record of the least and greatest value of each activation."""
    with tempfile.TemporaryDirectory(prefix="vitctl-") as folder, quiet():
        path = Path(folder, "model.onnx")
        path.write_bytes(data)
        calibrator = create_calibrator(
            path,
            list(_QUANTIZED_OPS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(images, progress))
        return calibrator.compute_data()


def _quantize(data: bytes, ranges: Any, names: list[str]) -> ModelProto:
    """Return the model with the layers ``names`` quantized."""
    with quiet():
        quantizer = QDQQuantizer(
            onnx.load_from_string(data),
            per_channel=True,
            # 7 bits for the weights: x86 processors without VNNI add pairs of products in 16 bits, which 8 would
            # overflow, and the accuracy measured here would not be that over there.
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=names,
            nodes_to_exclude=[],
            op_types_to_quantize=list(_QUANTIZED_OPS),
            extra_options={},
        )
        quantizer.quantize_model()
    return _sorted(quantizer.model.model)


def _sorted(model: ModelProto) -> ModelProto:
    """Return the model with its nodes in the order of their work; onnxruntime's tools append theirs at the end."""
    ONNXModel(model).topological_sort()
    return model


def _rank(
    data: bytes, record: Metadata, images: Tensor, ranges: Any, names: list[str], progress: Progress
) -> list[str]:
    """Return the layers, those first whose quantization alone moves the logits most, in the mean of squares."""
    exact = _logits(data, record, images)
    moved: dict[str, float] = {}
    for name in names:
        logits = _logits(_quantize(data, ranges, [name]).SerializeToString(), record, images)
        moved[name] = float(torch.mean((logits - exact).double() ** 2))
        progress("ranking layers by sensitivity", len(moved), len(names))
    return sorted(names, key=lambda name: -moved[name])
