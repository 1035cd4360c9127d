"""``vitctl predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitctl.errors import RequestError, RunFailed
from vitctl.files import check_table
from vitctl.registry import unknown
from vitctl.units import plural


def predict(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT|RUN|FILE",
            help="a checkpoint, a run's folder, or an exported .onnx or .safetensors file",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...|FOLDER", help="images, or folders of images", show_default=False),
    ],
    top: Annotated[int, typer.Option("--top", "-k", help="how many classes to name", metavar="K", min=1)] = 5,
    weights: Annotated[
        str, typer.Option(help="of a run's folder: last, or best by held-out accuracy", metavar="last|best")
    ] = "last",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:INDEX")] = "auto",
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="unreadable images are named and no failure")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON on stdout")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="write a line per image to this file")] = None,
) -> None:
    """Say what is in images: the likeliest classes and their probabilities.

    An image of another size is set upright, its shorter side resized, and its middle taken.
    """
    if weights not in ("last", "best"):
        raise unknown("--weights", weights, ("last", "best"))
    if csv is not None:
        check_table(csv, "--csv")
    for place in images:
        if not place.exists():
            raise RequestError(f"the image {place} is not there")

    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        from vitctl.export.open import open_classifier  # torch loads here
        from vitctl.inference import predict as predicting

        classifier = open_classifier(path, weights=weights, device_name=device, warn=observer.message)
        found = predicting.collect(images)
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
            f"{len(bad)} of {plural(len(predictions), 'image')} cannot be read: "
            f"{', '.join(f'{each.image} ({each.error})' for each in bad[:5])}{', ...' if len(bad) > 5 else ''}; "
            f"with --skip-bad-images that is no failure"
        )
