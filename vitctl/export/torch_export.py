"""torch.export's own file, ``.pt2``.

``torch.export.load`` runs code that the file brings. vitctl loads a ``.pt2`` only in order to check the bytes that it has
just made itself, and no command of it takes one.
"""

from __future__ import annotations

import io
import json

import torch
from torch import Tensor

from vitctl.errors import RunFailed
from vitctl.export.formats import Deployed, Files, Run, as_tuple, cannot_express, quiet
from vitctl.export.metadata import Metadata

RECORD = "vitctl.json"
"""The extra file that carries the record."""


class TorchExport:
    """See :class:`vitctl.export.formats.Format`."""

    engine = f"torch.export {torch.__version__}"

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the bytes of the exported program, whose batch is free."""
        stream = io.BytesIO()
        with quiet(), torch.no_grad():
            try:
                program = torch.export.export(
                    network, (network.example(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
                )
            except Exception as error:
                raise RunFailed(cannot_express("torch-export", record, error)) from error
            torch.export.save(program, stream, extra_files={RECORD: json.dumps(record.to_strings())})
        return {".pt2": stream.getvalue()}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the record in the file and the loaded program."""
        extra = {RECORD: ""}
        with quiet():
            module = torch.export.load(io.BytesIO(files[".pt2"]), extra_files=extra).module()
        record = Metadata.from_strings(json.loads(extra[RECORD]), "the exported file")

        def run(images: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return as_tuple(module(images))

        return record, run
