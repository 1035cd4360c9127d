"""``vitctl doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitctl.cli.options import AsJson, DeviceName


def doctor(
    device: DeviceName = "auto",
    full: Annotated[bool, typer.Option("--full", help="also check a step of every network (minutes)")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that this machine trains correctly.

    Prints a description of the machine to paste into an issue, the known faults of PyTorch on the device, the results of
    live checks compared with float64 on the CPU, and what makes training slow. Takes about a minute, and exits with 1 if
    something is wrong.
    """
    from vitctl.cli import printing
    from vitctl.cli.progress import make_observer

    with make_observer() as observer:
        from vitctl.doctor.examine import examine  # torch loads here

        found = examine(device, full=full, observer=observer)
    if as_json:
        printing.print_json(found.document())
    else:
        printing.print_examination(found)
    if error := found.error():
        raise error
