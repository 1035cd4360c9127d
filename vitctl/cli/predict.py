"""``vitctl predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.cli.options import DeviceName, Weights
from vitctl.errors import RequestError, RunFailed
from vitctl.files import check_table
from vitctl.registry import unknown
from vitctl.units import plural


def predict(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT|RUN|FILE",
            help="checkpoint, run, or exported .onnx or .safetensors",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|FOLDER...", help="images or folders of images", show_default=False),
    ],
    top: Annotated[int, typer.Option("--top", "-k", help="number of classes to show", metavar="K", min=1)] = 5,
    weights: Weights = "last",
    device: DeviceName = "auto",
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="do not fail on unreadable images")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write one line per image to this file")
    ] = None,
) -> None:
    """Classify images.

    Shows the most likely classes of each image and their probabilities. Images are rotated as their
    EXIF data says, then resized and center-cropped if their size differs.
    """
    if weights not in ("last", "best"):
        raise unknown("--weights", weights, ("last", "best"))
    if csv is not None:
        check_table(csv, "--csv")
    for place in images:
        if not place.exists():
            raise RequestError(f"{place} not found", hint="use the path of an image or of a folder with images")
    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer
    from vitctl.config import find_run

    with make_observer() as observer:
        from vitctl.export.open import open_classifier  # torch loads here
        from vitctl.inference import predict as predicting

        classifier = open_classifier(find_run(path), weights=weights, device_name=device, warn=observer.message)
        found = predicting.collect(images, observer)
        predictions = list(
            predicting.predict(
                classifier, found, top=top, progress=lambda done, count: observer.evaluating("images", done, count)
            )
        )
    top = min(top, len(classifier.classes))
    if as_json:
        printing.print_json([each.to_dict() for each in predictions])
    else:
        printing.print_predictions(predictions, top)
    if csv is not None:  # last, as a disk may be full
        predicting.write_csv(predictions, top, csv)
    bad = [each for each in predictions if each.error is not None]
    if bad and not skip_bad_images:
        raise RunFailed(
            f"cannot read {len(bad)} of {plural(len(predictions), 'image')}: "
            f"{', '.join(f'{each.image} ({each.error})' for each in bad[:5])}{', ...' if len(bad) > 5 else ''}",
            hint="add --skip-bad-images to skip them",
        )
