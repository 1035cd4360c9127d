"""The data sets: a table of names.

A data set is a function ``load(options: LoadOptions) -> Dataset`` (see :mod:`vitctl.data.dataset`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.registry import Entry


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set of the table.

    Attributes:
        flip: mirrored pictures are still of their class, so training may flip them.
    """

    flip: bool = True


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        target="vitctl.data.digits:load",
        summary="1,797 handwritten digits of 8x8 grey pixels; comes with scikit-learn, needs no network",
        flip=False,
    ),
    "folder": DatasetEntry(
        target="vitctl.data.folder:load",
        summary="--data-dir with train/ and test/ (or val/), a folder of pictures per class",
    ),
    "cifar10": DatasetEntry(
        target="vitctl.data.cifar:load_cifar10",
        summary="60,000 colour pictures of 32x32 pixels in 10 classes",
    ),
}
"""Every data set that ``--dataset`` takes."""
