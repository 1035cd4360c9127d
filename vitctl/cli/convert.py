"""``vitctl convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    old: Annotated[Path, typer.Argument(metavar="OLD.t7", help="weights that the scripts saved", show_default=False)],
    net: Annotated[str, typer.Option(help="the scripts' --net", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="the checkpoint to write", show_default=False)
    ],
    patch: Annotated[int | None, typer.Option(help="the scripts' --patch", min=1, show_default="4")] = None,
    size: Annotated[int | None, typer.Option(help="the scripts' --size", min=4, show_default="32")] = None,
    convkernel: Annotated[int | None, typer.Option(help="the scripts' --convkernel", min=1, show_default="8")] = None,
    dataset: Annotated[str, typer.Option(help="the scripts' --dataset", metavar="cifar10|cifar100")] = "cifar10",
    as_json: Annotated[bool, typer.Option("--json", help="print what was done as JSON on stdout")] = False,
) -> None:
    """Turn weights of the scripts that vitctl replaces into a checkpoint for eval, predict and export.

    Every tensor of the file is accounted for; a file of another network, or of other options, is refused.
    """
    from vitctl.cli import printing
    from vitctl.data import DATASETS
    from vitctl.models import MODELS
    from vitctl.registry import lookup, split_spec, unknown

    name = split_spec(net, "--net")[0]
    if name not in MODELS:  # the rules of those that can be converted come with torch
        raise unknown("--net", name, MODELS)
    lookup(DATASETS, dataset, "--dataset")
    from vitctl.tools.convert import convert as turn  # torch loads here
    from vitctl.units import plural

    done = turn(old, output, net, dataset=dataset, size=size, patch=patch, convkernel=convkernel)
    if as_json:
        printing.print_json(done)
        return
    after = f", after {plural(done['epoch'], 'epoch')}" if done["epoch"] else ""
    said = f", {done['acc']:.2f} % on the test set as the file says" if done["acc"] is not None else ""
    print(
        f"{done['output']}: --net {done['net']} for {done['size']}-px images of {done['dataset']}, "
        f"{done['params']:,} parameters from {done['tensors']} tensors{after}{said}"
    )
