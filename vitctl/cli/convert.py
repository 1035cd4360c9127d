"""``vitctl convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    old: Annotated[
        Path, typer.Argument(metavar="OLD.t7", help="weights saved by the original scripts", show_default=False)
    ],
    net: Annotated[str, typer.Option(metavar="NAME", help="--net of the original run", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="checkpoint to write", show_default=False)
    ],
    patch: Annotated[
        int | None, typer.Option(metavar="N", help="--patch of the original run", min=1, show_default="4")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", help="--size of the original run", min=4, show_default="32")
    ] = None,
    convkernel: Annotated[
        int | None, typer.Option(metavar="N", help="--convkernel of the original run", min=1, show_default="8")
    ] = None,
    dataset: Annotated[str, typer.Option(help="data set of the original run", metavar="cifar10|cifar100")] = "cifar10",
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Convert weights from the original scripts.

    Writes a checkpoint for eval, predict and export. Every tensor must match the network and its options.
    """
    from vitctl.cli import printing
    from vitctl.data import DATASETS
    from vitctl.models import MODELS
    from vitctl.registry import lookup, split_spec, unknown

    name = split_spec(net, "--net")[0]
    if name not in MODELS:  # the conversion rules, which know fewer names, import torch
        raise unknown("--net", name, MODELS, "list them with vitctl list-models")
    lookup(DATASETS, dataset, "--dataset")
    from vitctl.tools.convert import convert as turn  # torch loads here
    from vitctl.units import plural

    done = turn(old, output, net, dataset=dataset, size=size, patch=patch, convkernel=convkernel)
    if as_json:
        printing.print_json(done)
        return
    after = f", after {plural(done['epoch'], 'epoch')}" if done["epoch"] else ""
    accuracy = f", test accuracy {done['acc']:.2f} % according to the file" if done["acc"] is not None else ""
    print(
        f"{done['output']}: --net {done['net']} for {done['size']}-px images of {done['dataset']}, "
        f"{done['params']:,} parameters from {done['tensors']} tensors{after}{accuracy}"
    )
