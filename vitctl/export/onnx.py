"""Export to a single ONNX file with a dynamic batch size, through torch's exporter."""

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
"""Largest constant to precompute at export, in bytes."""


class Onnx:
    """See :class:`vitctl.export.formats.Format`."""

    engine = ENGINE

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the content of a single ONNX file, checked by ``onnx.checker``."""
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
                raise cannot_express("ONNX", record, error) from error
            assert program is not None
            # Weights that the network slices or transposes become constants, so that they can be quantized.
            onnxscript.optimizer.optimize(program.model, input_size_limit=_FOLD_BELOW, output_size_limit=_FOLD_BELOW)
            model = program.model_proto
        written = next(entry.version for entry in model.opset_import if entry.domain == "")
        if written != opset:
            raise RunFailed(
                f"--opset {opset}: torch's exporter cannot convert {record.net} to this opset",
                hint=f"use --opset {written}",
            )
        _remove_source_paths(model)
        return {".onnx": serialize(model, record)}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the metadata of the file, and a function that runs it in onnxruntime."""
        session = open_session(files[".onnx"])
        record = Metadata.from_strings(session.get_modelmeta().custom_metadata_map, "the exported file")
        return record, runner(session)


def serialize(model: ModelProto, record: Metadata) -> bytes:
    """Add ``record`` to a model, check it, and serialise it deterministically.

    Raises:
        RunFailed: ``onnx.checker`` rejects the model.
    """
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, record.to_strings())
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise RunFailed(f"onnx.checker rejects the exported file: {str(error).splitlines()[0]}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _remove_source_paths(model: ModelProto) -> None:
    """Remove the exporter's notes, which contain paths of source files on this machine."""
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del graph.metadata_props[:]
