"""Export to TorchScript through tracing."""

from __future__ import annotations

import io
import json

import torch
from torch import Tensor

from vitctl.export.formats import Deployed, Files, Run, as_tuple, cannot_express, quiet
from vitctl.export.metadata import Metadata

RECORD = "vitctl.json"
"""File in the archive that contains the metadata."""


class TorchScript:
    """See :class:`vitctl.export.formats.Format`."""

    engine = f"torch.jit {torch.__version__}"

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the content of a TorchScript file of the traced network."""
        stream = io.BytesIO()
        with quiet(), torch.no_grad():
            try:
                traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                    network, (network.example(),)
                )
            except Exception as error:
                raise cannot_express("TorchScript", record, error) from error
            torch.jit.save(traced, stream, _extra_files={RECORD: json.dumps(record.to_strings())})
        return {".torchscript": stream.getvalue()}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the metadata of the file, and a function that runs its network."""
        extra = {RECORD: ""}
        with quiet():
            loaded = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(files[".torchscript"]), map_location="cpu", _extra_files=extra
            )
        record = Metadata.from_strings(json.loads(extra[RECORD]), "the exported file")

        def run(images: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return as_tuple(loaded(images))

        return record, run
