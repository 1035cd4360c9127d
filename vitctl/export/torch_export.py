"""Export to a program of torch.export, ``.pt2``.

``torch.export.load`` runs code in the file. vitctl therefore loads a ``.pt2`` only to verify what it has just exported,
and no command accepts one.
"""

from __future__ import annotations

import io
import json

import torch
from torch import Tensor

from vitctl.export.formats import Deployed, Files, Run, as_tuple, cannot_express, quiet
from vitctl.export.metadata import Metadata

RECORD = "vitctl.json"
"""File in the archive that contains the metadata."""


class TorchExport:
    """See :class:`vitctl.export.formats.Format`."""

    engine = f"torch.export {torch.__version__}"

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the content of an exported program with a dynamic batch size."""
        stream = io.BytesIO()
        with quiet(), torch.no_grad():
            try:
                program = torch.export.export(
                    network, (network.example(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
                )
            except Exception as error:
                raise cannot_express("torch-export", record, error) from error
            torch.export.save(program, stream, extra_files={RECORD: json.dumps(record.to_strings())})
        return {".pt2": stream.getvalue()}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the metadata of the file, and a function that runs its program."""
        extra = {RECORD: ""}
        with quiet():
            module = torch.export.load(io.BytesIO(files[".pt2"]), extra_files=extra).module()
        record = Metadata.from_strings(json.loads(extra[RECORD]), "the exported file")

        def run(images: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return as_tuple(module(images))

        return record, run
