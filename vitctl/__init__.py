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
    import os
    from pathlib import Path

    import torch

    from vitctl.inference.loaded import LoadedModel

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

    from vitctl.runs.stored import read_runs

    return [run.row() for run in read_runs(Path(folder))]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu", weights: str = "last") -> LoadedModel:
    """Load a trained network with its preprocessing and classes.

        >>> loaded = vitctl.load("runs/first")
        >>> loaded.predict("seven.png", top=2)
        [[('7', 0.9108957835144355), ('3', 0.01793345880247776)]]

    ``loaded.model`` is a ``torch.nn.Module`` in eval mode from float32 ``[B, C, size, size]`` to logits ``[B, K]``, and
    ``loaded.preprocess`` returns its input for images: paths, Pillow's images, or uint8 ``[C, H, W]`` or
    ``[B, C, H, W]`` as a NumPy array or a tensor. Averaged weights are used if the run has them. Nothing in the file
    is run as code.

    Args:
        path: folder of a run, name of a run in ``runs/``, or a checkpoint.
        device: ``cpu``, ``mps``, ``cuda``, ``cuda:0`` or ``auto``.
        weights: checkpoint to use from a run's folder: ``last``, or ``best`` by held-out accuracy.

    Returns:
        The network; see :class:`vitctl.inference.loaded.LoadedModel`.

    Raises:
        RequestError: the checkpoint is missing, damaged or not from vitctl, or the device is not available.
    """
    from vitctl.inference.loaded import load_model

    return load_model(path, device, weights)
