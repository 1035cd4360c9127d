"""Quantization of ONNX files to 8-bit integers or half precision.

The accuracy of a quantized file is compared with that of the float32 file on held-out images, never on the test set.
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
from vitctl.export.verify import accuracy, run_in_batches
from vitctl.inference.classifier import Classifier

CALIBRATE_ON, CALIBRATION_BATCH = 256, 32
"""Number of training images, spread evenly over the classes, for measuring the ranges of activations; batch size."""

MEASURE_ON = 2000
"""Largest number of held-out images on which to measure accuracy."""

RANK_ON = 64
"""Number of calibration images on which to rank the layers by sensitivity."""

_QUANTIZED_OPS = ("MatMul", "Gemm", "Conv")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class QuantizationData:
    """Images for quantization.

    Attributes:
        calibration: training images to calibrate on, uint8 ``[n, C, H, W]``.
        images: held-out images to measure accuracy on, uint8 ``[m, C, H, W]``.
        labels: classes of ``images``, int64 ``[m]``.
        trained_on: whether the run trained on ``images``, because it held out none.
    """

    calibration: Tensor
    images: Tensor
    labels: Tensor
    trained_on: bool


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized file and its accuracy.

    Attributes:
        data: the ONNX file.
        top1: accuracy on held-out images in percent.
        drop: loss of accuracy from the float32 file, in percentage points.
        layers: number of layers with weights.
        in_float: names of the layers left in float32, most sensitive first.
    """

    data: bytes
    top1: float
    drop: float
    layers: int
    in_float: tuple[str, ...] = ()


def select_data(classifier: Classifier, data: Dataset) -> QuantizationData:
    """Select images for quantization from the training set, never from the test set.

    Raises:
        RequestError: the data set has too few images.
    """
    provenance = classifier.provenance
    try:
        parts = split(
            data,
            val="holdout",
            val_fraction=provenance.val_fraction,
            split_seed=provenance.split_seed,
            holdout_by=provenance.holdout_by,
            limit_train=CALIBRATE_ON,
            limit_test=MEASURE_ON,
        )
    except RequestError as error:
        raise RequestError(
            f"--quantize needs held-out images: {error.message}",
            hint="use --dataset with a larger data set, or remove --quantize",
        ) from error
    assert parts.val is not None
    return QuantizationData(
        calibration=parts.train.examples.images[parts.train.index],
        images=parts.val.examples.images[parts.val.index],
        labels=parts.val.examples.labels[parts.val.index],
        trained_on=provenance.val != "holdout" and data.val is None,
    )


def measure(data: bytes, record: Metadata, images: QuantizationData, title: str, progress: Progress) -> float:
    """Return the accuracy of an ONNX file on the held-out images in percent."""
    top1 = accuracy(_logits(data, record, images.images, lambda d, n: progress(title, d, n)), images.labels)
    assert top1 is not None
    return top1


def _logits(
    data: bytes, record: Metadata, images: Tensor, progress: Callable[[int, int], None] = lambda done, count: None
) -> Tensor:
    run = runner(open_session(data))
    return run_in_batches(
        lambda piece: run(as_input(piece, record))[0].float(),
        images,
        BATCH,
        "",
        lambda _, done, count: progress(done, count),
    )


def to_fp16(
    data: bytes, record: Metadata, images: QuantizationData, *, max_drop: float, top1: float, progress: Progress
) -> Quantized:
    """Convert a file to half precision, except its input and outputs.

    Args:
        data: the float32 file.
        record: metadata for the new file.
        images: images to measure accuracy on.
        max_drop: ignored; see :func:`to_int8`.
        top1: accuracy of the float32 file in percent.
        progress: called as the measurement progresses.
    """
    with quiet():
        model = _sorted(convert_float_to_float16(onnx.load_from_string(data), keep_io_types=True))
    small = serialize(model, record)
    measured = measure(small, record, images, "held-out images, fp16", progress)
    return Quantized(data=small, top1=measured, drop=_drop(top1, measured), layers=len(layers(model)))


def to_int8(
    data: bytes, record: Metadata, images: QuantizationData, *, max_drop: float, top1: float, progress: Progress
) -> Quantized:
    """Quantize linear and convolutional layers to 8-bit integers, with QuantizeLinear and DequantizeLinear nodes.

    Weights are quantized per output channel, activations per tensor. Matrix products within attention, normalisation
    and softmax have no weights and stay in float32. If the accuracy drops by more than ``max_drop``, the most sensitive
    layers also stay in float32: as few as possible, and at most all but one. The sensitivity of a layer is the change
    of the logits when only this layer is quantized.

    Args:
        data: the float32 file.
        record: metadata for the new file.
        images: images to calibrate and to measure accuracy on.
        max_drop: largest loss of accuracy allowed, in percentage points.
        top1: accuracy of the float32 file in percent.
        progress: called as the work progresses.

    Raises:
        RunFailed: the network has no layer to quantize.
    """
    names = layers(onnx.load_from_string(data))
    if not names:
        raise RunFailed(
            f"--quantize int8: {record.net} has no linear or convolutional layer with weights",
            hint="use --quantize fp16, or remove --quantize",
        )
    ranges = _calibrate(data, as_input(images.calibration, record).numpy(), progress)

    def attempt(in_float: Sequence[str]) -> Quantized:
        chosen = [name for name in names if name not in in_float]
        small = serialize(_quantize(data, ranges, chosen), record)
        title = f"held-out images, {len(chosen)} of {len(names)} layers in int8"
        measured = measure(small, record, images, title, progress)
        return Quantized(
            data=small, top1=measured, drop=_drop(top1, measured), layers=len(names), in_float=tuple(in_float)
        )

    all_int8 = attempt(())
    if all_int8.drop <= max_drop:
        return all_int8
    ranked = _rank(data, record, images.calibration[:RANK_ON], ranges, names, progress)
    tried = {0: all_int8}

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
    return round(before - after, 9)  # without the rounding error of the difference, which depends on the operands


def layers(model: ModelProto) -> list[str]:
    """Return the names of the nodes that multiply by constant weights, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _QUANTIZED_OPS and len(node.input) > 1 and node.input[1] in constants
    ]


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration images to onnxruntime in batches."""

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
    """Return the range of each activation, in onnxruntime's format."""
    with tempfile.TemporaryDirectory(prefix="vitctl-") as folder, quiet():
        path = Path(folder, "model.onnx")
        path.write_bytes(data)
        calibrator = create_calibrator(
            path,
            list(_QUANTIZED_OPS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_CalibrationReader(images, progress))
        return calibrator.compute_data()


def _quantize(data: bytes, ranges: Any, names: list[str]) -> ModelProto:
    """Return the model with the layers ``names`` quantized."""
    with quiet():
        quantizer = QDQQuantizer(
            onnx.load_from_string(data),
            per_channel=True,
            # 7-bit weights: with 8 bits, x86 processors without VNNI overflow their 16-bit sums of two products.
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
    """Sort the nodes topologically: onnxruntime's tools append theirs at the end."""
    ONNXModel(model).topological_sort()
    return model


def _rank(
    data: bytes, record: Metadata, images: Tensor, ranges: Any, names: list[str], progress: Progress
) -> list[str]:
    """Return the layers by the mean squared change of the logits when only that layer is quantized, largest first."""
    exact = _logits(data, record, images)
    changes: dict[str, float] = {}
    for name in names:
        logits = _logits(_quantize(data, ranges, [name]).SerializeToString(), record, images)
        changes[name] = float(torch.mean((logits - exact).double() ** 2))
        progress("ranking layers by sensitivity", len(changes), len(names))
    return sorted(names, key=lambda name: -changes[name])
