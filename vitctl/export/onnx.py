"""ONNX by torch's exporter: one file, any batch."""

from __future__ import annotations

import onnx
import onnxscript.optimizer
import torch
from onnx import ModelProto

from vitctl.errors import RunFailed
from vitctl.export.formats import INPUT, Deployed, Files, Run, cannot_express, quiet
from vitctl.export.metadata import Metadata
from vitctl.export.runtime import ENGINE, open_session, runner

_FOLD_BELOW = 1 << 26
"""Bytes of a constant that is computed once, at export."""


class Onnx:
    """See :class:`vitctl.export.formats.Format`."""

    engine = ENGINE

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the bytes of a single ONNX file that ``onnx.checker`` has passed."""
        with quiet():
            try:
                program = torch.onnx.export(
                    network,
                    (network.example(),),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    input_names=[INPUT],
                    output_names=network.outputs,
                    opset_version=opset,
                    verbose=False,
                )
            except Exception as error:
                raise RunFailed(cannot_express("ONNX", record, error)) from error
            assert program is not None
            # Weights that the network cuts or turns before it uses them become constants of their own, which can be
            # quantized, and need not be cut and turned again by every runtime.
            onnxscript.optimizer.optimize(program.model, input_size_limit=_FOLD_BELOW, output_size_limit=_FOLD_BELOW)
            model = program.model_proto
        written = next(entry.version for entry in model.opset_import if entry.domain == "")
        if written != opset:
            raise RunFailed(f"torch's exporter wrote operator set {written} instead of --opset {opset}; take {written}")
        _forget_where(model)
        return {".onnx": serialize(model, record)}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the record in the file and an onnxruntime session of it."""
        session = open_session(files[".onnx"])
        record = Metadata.from_strings(session.get_modelmeta().custom_metadata_map, "the exported file")
        return record, runner(session)


def serialize(model: ModelProto, record: Metadata) -> bytes:
    """Return the bytes of a checked model that carries ``record``; the same ones for the same model.

    Raises:
        RunFailed: the checker rejects it.
    """
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, record.to_strings())
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise RunFailed(f"onnx.checker rejects the exported file: {str(error).splitlines()[0]}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _forget_where(model: ModelProto) -> None:
    """Drop the notes of the exporter on each node, which hold the paths of the source files on this machine."""
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del graph.metadata_props[:]
