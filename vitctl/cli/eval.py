"""``vitctl eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.cli.options import DeviceName, Weights
from vitctl.errors import RequestError
from vitctl.files import check_table
from vitctl.registry import unknown


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT|RUN|FILE",
            help="checkpoint, run, or exported .onnx or .safetensors",
            show_default=False,
        ),
    ],
    weights: Weights = "last",
    dataset: Annotated[
        str | None, typer.Option(help="data set or folder of images", metavar="NAME|DIR", show_default="as in training")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="folder with the data", metavar="DIR", show_default="as in training")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="CSV file with the labels of a folder's images", metavar="FILE", show_default="as in training"
        ),
    ] = None,
    part: Annotated[str, typer.Option("--split", help="part of the data set", metavar="test|val|train")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", help="evaluate on at most N images", metavar="N", min=1)
    ] = None,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="evaluate even if the training images changed")
    ] = False,
    tta: Annotated[
        str,
        typer.Option(
            help="also report metrics with test-time augmentation",
            metavar="none|flip|crops",
        ),
    ] = "none",
    device: DeviceName = "auto",
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="skip unreadable images")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print all metrics as JSON")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write the per-class metrics to this file")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="write one line per image to this CSV file")
    ] = None,
) -> None:
    """Evaluate a trained model or an exported file.

    Reports loss, top-1 and top-5 accuracy, per-class metrics and the confusion matrix.
    """
    from vitctl.config import find_run, is_run, resolve_dataset, resolve_labels

    for flag, value, choices in (
        ("--weights", weights, ("last", "best")),
        ("--split", part, ("test", "val", "train")),
        ("--tta", tta, ("none", "flip", "crops")),
    ):
        if value not in choices:
            raise unknown(flag, value, choices)
    if csv is not None and predictions is not None and csv.absolute() == predictions.absolute():
        raise RequestError(f"--csv and --predictions both name {csv}", hint="use two different files")
    if accept_data and part == "test":
        raise RequestError(
            "--accept-data does nothing with --split test", hint="remove --accept-data, or use --split val"
        )
    for flag, target in (("--csv", csv), ("--predictions", predictions)):
        if target is not None:
            check_table(target, flag)
    if dataset is not None:
        dataset, data_dir = resolve_dataset(dataset, data_dir)
    if labels is not None:
        if dataset is None and data_dir is None:
            raise RequestError(f"--labels {labels} needs --dataset", hint="add --dataset DIR, the folder of the images")
        labels = resolve_labels(labels, dataset or "folder", data_dir and str(Path(data_dir).expanduser().absolute()))

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        from vitctl.export.open import open_classifier  # torch loads here
        from vitctl.inference import scoring
        from vitctl.training.run_folder import PREDICTIONS

        path = find_run(path)
        classifier = open_classifier(path, weights=weights, device_name=device, warn=observer.message)
        scores = None
        unchanged = (dataset, data_dir, labels, limit, tta, device) == (None, None, None, None, "none", "auto")
        if predictions is not None and unchanged and not (accept_data or skip_bad_images):
            scores = scoring.stored_scores(classifier, part)
        scores = scores or scoring.score_classifier(
            classifier,
            dataset=dataset,
            data_dir=data_dir,
            labels=labels,
            part=part,
            limit=limit,
            accept_data=accept_data,
            tta=tta,
            skip_bad_images=skip_bad_images,
            observer=observer,
        )
    if as_json:
        printing.print_json(scores.to_dict())
    else:
        printing.print_scores(scores)
        if is_run(path):
            stored = (path / PREDICTIONS).exists()
            printing.print_next("vitctl", "report", path, *([] if stored else ["--evaluate"]))
        else:
            printing.print_next("vitctl", "predict", path, more="IMAGE...")
    if csv is not None:  # last, as a disk may be full
        scoring.write_class_table(scores, csv)
    if predictions is not None:
        scoring.write_predictions(scores, predictions)
