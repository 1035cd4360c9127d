"""Export of trained models: the tables of formats and of quantizations.

A format is a class with the methods of :class:`vitctl.export.formats.Format`: it serialises a model, and opens the result
again so that it can be compared with the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.registry import Entry

OPSETS = range(18, 24)
"""ONNX opsets that torch's exporter writes; it generates the first one and converts to the others."""


@dataclass(frozen=True, kw_only=True)
class FormatEntry(Entry):
    """A format of the table.

    Attributes:
        suffixes: valid suffixes of its files; the first is the default.
        weights_only: the file stores only weights, so flags for input and output do not apply.
        caution: message to show on export, or empty.
    """

    suffixes: tuple[str, ...]
    weights_only: bool = False
    caution: str = ""


EXPORTERS: dict[str, FormatEntry] = {
    "onnx": FormatEntry(
        target="vitctl.export.onnx:Onnx",
        summary="runs in onnxruntime and other runtimes, without PyTorch",
        suffixes=(".onnx",),
    ),
    "torchscript": FormatEntry(
        target="vitctl.export.torchscript:TorchScript",
        summary="deprecated by PyTorch; for programs that still load it",
        suffixes=(".torchscript", ".ts"),
        caution="TorchScript is deprecated; prefer onnx or torch-export",
    ),
    "torch-export": FormatEntry(
        target="vitctl.export.torch_export:TorchExport",
        summary="torch.export program; loading a .pt2 runs the code in it",
        suffixes=(".pt2",),
        caution="loading a .pt2 runs the code in it; other PyTorch versions may fail to load it",
    ),
    "safetensors": FormatEntry(
        target="vitctl.export.safetensors:SafeTensors",
        summary="weights only; a .json file describes the network",
        suffixes=(".safetensors",),
        weights_only=True,
    ),
}
"""Values of ``--format``."""

QUANTIZERS: dict[str, Entry] = {
    "int8": Entry(
        target="vitctl.export.quantize:to_int8",
        summary="8-bit integers; sensitive layers stay in float32",
    ),
    "fp16": Entry(
        target="vitctl.export.quantize:to_fp16",
        summary="half precision, with float32 input and output",
    ),
}
"""Values of ``--quantize``."""
