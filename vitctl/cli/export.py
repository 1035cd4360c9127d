"""``vitctl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.cli.options import Weights
from vitctl.export import EXPORTERS, QUANTIZERS

INPUT_OUTPUT, VERIFICATION, QUANTIZATION = "Input and output", "Verification", "Quantization"


def _rows(table: dict[str, str], incomplete: str) -> list[tuple[str, str]]:
    return [(name, summary) for name, summary in table.items() if name.startswith(incomplete)]


def _formats(incomplete: str) -> list[tuple[str, str]]:
    return _rows({name: entry.summary for name, entry in EXPORTERS.items()}, incomplete)


def _quantizers(incomplete: str) -> list[tuple[str, str]]:
    return _rows({name: entry.summary for name, entry in QUANTIZERS.items()}, incomplete)


def export(
    path: Annotated[Path, typer.Argument(metavar="CKPT|RUN", help="checkpoint or run folder", show_default=False)],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            help=f"{', '.join(EXPORTERS)}; repeatable",
            show_default="onnx",
            autocompletion=_formats,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="file, or folder for several formats",
            show_default="beside the checkpoint",
        ),
    ] = None,
    weights: Weights = "last",
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX opset", show_default="18")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="baked|none",
            help="normalize images in the file, or leave it to the caller",
            rich_help_panel=INPUT_OUTPUT,
            show_default="baked",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="float32|uint8",
            help="input type: float32 from 0 to 1, or uint8 from 0 to 255",
            rich_help_panel=INPUT_OUTPUT,
            show_default="float32",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="nchw|nhwc", help="input layout", rich_help_panel=INPUT_OUTPUT, show_default="nchw"),
    ] = None,
    softmax: Annotated[
        bool | None,
        typer.Option("--softmax", help="add probabilities as a second output", rich_help_panel=INPUT_OUTPUT),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="write a file only if its outputs match the model's",
            rich_help_panel=VERIFICATION,
        ),
    ] = True,
    verify_on: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="test images to verify on; random ones if data is missing",
            rich_help_panel=VERIFICATION,
            show_default="1000",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="maximum absolute difference of any logit",
            rich_help_panel=VERIFICATION,
            show_default="0.0001",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="data set or folder of images",
            metavar="NAME|DIR",
            rich_help_panel=VERIFICATION,
            show_default="as in training",
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            help="folder with the data", metavar="DIR", rich_help_panel=VERIFICATION, show_default="as in training"
        ),
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(QUANTIZERS),
            help="also write a smaller ONNX file; repeatable",
            rich_help_panel=QUANTIZATION,
            show_default=False,
            autocompletion=_quantizers,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="maximum drop in held-out accuracy, in percentage points",
            rich_help_panel=QUANTIZATION,
            show_default="1",
        ),
    ] = None,
    allow_drop: Annotated[
        bool,
        typer.Option(
            "--allow-drop", help="write the file even if accuracy drops by more", rich_help_panel=QUANTIZATION
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Export a trained model and verify that it matches.

    The file's input "images" takes batches of any size; its outputs are "logits" and, with --softmax, "probs". Its
    metadata describe images and classes.

    A .pt2 file runs code when it is loaded, so load only files that you trust.
    """
    from vitctl.config import find_run, resolve_dataset
    from vitctl.export.request import ExportRequest, Form, parse_verify_on, refuse_unused_flags

    chosen = tuple(formats or ("onnx",))
    refuse_unused_flags(
        chosen,
        {
            "--opset": opset,
            "--normalize": normalize,
            "--input": dtype,
            "--layout": layout,
            "--softmax": softmax,
            "--verify-on": verify_on,
            "--tolerance": tolerance,
            "--dataset": dataset,
            "--data-dir": data_dir,
            "--max-drop": max_drop,
            "--allow-drop": allow_drop or None,
        },
        verify=verify,
        quantize=tuple(quantize or ()),
    )
    if dataset is not None:
        dataset, data_dir = resolve_dataset(dataset, data_dir)
    form = Form(
        normalize=normalize or Form.normalize,
        dtype=dtype or Form.dtype,
        layout=layout or Form.layout,
        softmax=bool(softmax),
    )
    request = ExportRequest(
        path=find_run(path),
        weights=weights,
        formats=chosen,
        output=output,
        form=form,
        opset=ExportRequest.opset if opset is None else opset,
        quantize=tuple(quantize or ()),
        max_drop=ExportRequest.max_drop if max_drop is None else max_drop,
        allow_drop=allow_drop,
        verify=verify,
        verify_on=ExportRequest.verify_on if verify_on is None else parse_verify_on(verify_on),
        tolerance=ExportRequest.tolerance if tolerance is None else tolerance,
        dataset=dataset,
        data_dir=data_dir,
    )

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        from vitctl.export import pipeline  # torch loads here
        from vitctl.export.open import EXPORTED

        report = pipeline.export(request, observer)
    if as_json:
        printing.print_json(report)
    else:
        printing.print_export(report)
        readable = [file["path"] for file in report["files"] if file["path"].lower().endswith(EXPORTED)]
        if readable:
            printing.print_next("vitctl", "eval", readable[0])
