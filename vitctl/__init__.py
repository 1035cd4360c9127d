"""Train Vision Transformers and related networks on small images.

Glossary:

- net: name of a network, with options, as for ``--net``; a model is the ``torch.nn.Module`` built from it.
- run: a folder with a training run: its settings, metrics and checkpoints.
- session: the live objects of a run in one process; resuming a run starts a new session.
- checkpoint: a file with the weights and all other state that resuming needs.
- refit: a change of the length of a run during it, so that it ends within ``--max-time``.
- recipe: named settings for ``--recipe``.
- card: results measured with a recipe, for one network, data set and length.
- sweep: a search over settings; a trial is one run of it.
- step: one update of the weights by the optimizer.
- role: a kind of parameters, such as those of the head, with its own factor in ``--lr-scale``.
- batch: the images of one step; a micro-batch is the part of it in one forward pass.
- held-out images: training images set aside for validation.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"

STARTED = time.monotonic()
"""Start of the program on the clock :func:`time.monotonic`; ``--max-time`` counts from it."""


def read_runs(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """Return the runs in a folder as flat records, such as for ``pandas.DataFrame``, newest first.

    Each has ``name``, ``run`` (the folder), ``state``, the results, the settings with options as ``net_options.depth``,
    versions and device. Figures of a run that has not finished are those of its last epoch.

    Args:
        folder: the folder of runs, searched with its subfolders.

    Raises:
        RequestError: no such folder.
    """
    from pathlib import Path

    from vitctl.registry import load_target

    read = load_target("vitctl.runs.stored:read_runs")  # by name, as modules that it needs import __version__
    return [run.row() for run in read(Path(folder))]
