"""Exporting a trained network: the tables of formats and of ways to make the file smaller.

A format is a class that keeps to :class:`vitctl.export.formats.Format`: it turns a network into the bytes of a file, and
the bytes back into something that runs, so that what was written can be compared with what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.registry import Entry

OPSETS = range(18, 24)
"""The ONNX operator sets that torch's exporter writes; it is built for the first of them."""


@dataclass(frozen=True, kw_only=True)
class FormatEntry(Entry):
    """A format of the table.

    Attributes:
        suffixes: how the names of its files may end; the first is used where nobody says.
        bare: it holds the weights alone, so that no flag about its input or output applies.
        caution: what who writes one should know.
    """

    suffixes: tuple[str, ...]
    bare: bool = False
    caution: str = ""


EXPORTERS: dict[str, FormatEntry] = {
    "onnx": FormatEntry(
        target="vitctl.export.onnx:Onnx",
        summary="one file that onnxruntime and others run, without PyTorch",
        suffixes=(".onnx",),
    ),
    "torchscript": FormatEntry(
        target="vitctl.export.torchscript:TorchScript",
        summary="for programs that still load TorchScript, which PyTorch has deprecated",
        suffixes=(".torchscript", ".ts"),
        caution="PyTorch has deprecated TorchScript and will stop loading it; onnx and torch-export will last longer",
    ),
    "torch-export": FormatEntry(
        target="vitctl.export.torch_export:TorchExport",
        summary="torch.export's program; loading a .pt2 runs the code in it: load none from a stranger",
        suffixes=(".pt2",),
        caution="loading a .pt2 runs the code in it, so load none from a stranger; other versions of PyTorch may not load it",
    ),
    "safetensors": FormatEntry(
        target="vitctl.export.safetensors:SafeTensors",
        summary="the bare weights, and a .json beside them from which vitctl rebuilds the network, or timm its own, when the "
        "file is called model.safetensors",
        suffixes=(".safetensors",),
        bare=True,
    ),
}
"""Every format that ``--format`` takes."""

QUANTIZERS: dict[str, Entry] = {
    "int8": Entry(
        target="vitctl.export.quantize:to_int8",
        summary="whole numbers of 8 bits, calibrated on training images; sensitive layers stay in float",
    ),
    "fp16": Entry(
        target="vitctl.export.quantize:to_fp16",
        summary="half precision inside, float32 at input and output",
    ),
}
"""Everything that ``--quantize`` takes."""
