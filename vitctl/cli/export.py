"""``vitctl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.export import EXPORTERS, QUANTIZERS

SHAPE, CHECK, SMALLER = "Input and output", "Verification", "Quantization"


def _rows(table: dict[str, str], incomplete: str) -> list[tuple[str, str]]:
    return [(name, summary) for name, summary in table.items() if name.startswith(incomplete)]


def _formats(incomplete: str) -> list[tuple[str, str]]:
    return _rows({name: entry.summary for name, entry in EXPORTERS.items()}, incomplete)


def _quantizers(incomplete: str) -> list[tuple[str, str]]:
    return _rows({name: entry.summary for name, entry in QUANTIZERS.items()}, incomplete)


def export(
    path: Annotated[
        Path, typer.Argument(metavar="CKPT|RUN", help="a checkpoint, or a run's folder", show_default=False)
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="|".join(EXPORTERS),
            help="format, may be given several times. " + "; ".join(f"{n}: {e.summary}" for n, e in EXPORTERS.items()),
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
            help="file, or folder, which several formats need",
            show_default="beside the checkpoint",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="of a run's folder: last, or best by held-out accuracy", metavar="last|best")
    ] = "last",
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX operator set", show_default="18")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="baked|none",
            help="put mean and deviation into the file, or leave normalising to the caller",
            rich_help_panel=SHAPE,
            show_default="baked",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="float32|uint8",
            help="type of the images: 0-1 as float32 (normalised with --normalize none), 0-255 as uint8",
            rich_help_panel=SHAPE,
            show_default="float32",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="nchw|nhwc", help="order of the images' axes", rich_help_panel=SHAPE, show_default="nchw"),
    ] = None,
    softmax: Annotated[
        bool | None,
        typer.Option("--softmax", help="give probabilities too, as a second output", rich_help_panel=SHAPE),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="compare each file with the network, and write it only if it computes the same; the file says whether",
            rich_help_panel=CHECK,
        ),
    ] = True,
    verify_on: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="test images to compare on; generated ones where the data are not at hand",
            rich_help_panel=CHECK,
            show_default="1000",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="how far a logit may be off, in absolute terms",
            rich_help_panel=CHECK,
            show_default="0.0001",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="data set, or a folder of images", rich_help_panel=CHECK, show_default="that of the training"
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="where the data lie", rich_help_panel=CHECK, show_default="as in training")
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(QUANTIZERS),
            help="write a smaller ONNX file too, NAME.int8.onnx or NAME.fp16.onnx; may be given twice. "
            + "; ".join(f"{n}: {e.summary}" for n, e in QUANTIZERS.items()),
            rich_help_panel=SMALLER,
            show_default=False,
            autocompletion=_quantizers,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="points of held-out accuracy that it may cost",
            rich_help_panel=SMALLER,
            show_default="1",
        ),
    ] = None,
    allow_drop: Annotated[
        bool, typer.Option("--allow-drop", help="write it all the same if it costs more", rich_help_panel=SMALLER)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON on stdout")] = False,
) -> None:
    """Write a trained network into a file that other programs run, and show that it computes the same.

    Its input is called images, for any number of them, its outputs logits and, with --softmax, probs.

    It says of itself what its images and classes are, and appears only when it agrees with the network.

    Loading a .pt2 runs the code in it: load none from a stranger. vitctl writes them and takes none.
    """
    from vitctl.config import resolve_dataset
    from vitctl.export.request import ExportRequest, Form, parse_verify_on, refuse_idle_flags

    chosen = tuple(formats or ("onnx",))
    refuse_idle_flags(
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
        path=path,
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

        report = pipeline.export(request, observer)
    if as_json:
        printing.print_json(report)
    else:
        printing.print_export(report)
