"""Predictions of a run's final evaluations, stored so that later tools need not evaluate the test set again.

``predictions.npz`` holds, for the images of ``test`` and, if images were held out, of ``val``:

``PART_probabilities``
    predicted probabilities, float16 ``[n, K]``
``PART_predicted``
    predicted class, int64 ``[n]``; exact where rounding made the largest probabilities equal
``PART_ranks``
    number of classes that are more probable than the true one, int64 ``[n]``
``PART_losses``
    cross-entropy, float32 ``[n]``; their mean is the run's ``test_loss`` or ``val_loss``
``PART_labels``
    true class, int64 ``[n]``
``PART_paths``
    path relative to ``source``, or ``PART/INDEX`` in the data set for images without files, str ``[n]``
``PART_identities``
    ``CLASS/PATH``, with the path below the class folder, or as ``PART_paths`` for images without files, str ``[n]``

and ``classes``, str ``[K]``; ``source``, the data set's folder or origin; and ``step``, the number of steps trained.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitctl.data.dataset import Dataset, Splits, Subset, image_names
from vitctl.files import regular_file, replacing
from vitctl.training.evaluate import Evaluation


def write_predictions(
    path: Path, dataset: Dataset, splits: Splits, evaluations: Mapping[str, Evaluation], step: int
) -> None:
    """Write ``predictions.npz``.

    Args:
        path: the file.
        dataset: the data set.
        splits: its parts.
        evaluations: evaluations of the final weights by part: ``test`` and ``val``.
        step: number of steps trained.

    Raises:
        RunFailed: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "classes": np.array(dataset.classes, dtype=np.str_),
        "source": np.array(dataset.source, dtype=np.str_),
        "step": np.array(step),
    }
    for part, evaluation in evaluations.items():
        subset = splits.test if part == "test" else splits.val
        assert subset is not None
        arrays |= {f"{part}_{name}": values for name, values in _arrays(dataset, subset, evaluation).items()}
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def read_predictions(path: Path, step: int) -> dict[str, npt.NDArray[Any]] | None:
    """Return the content of ``predictions.npz``, or None if it is missing, damaged or of other weights.

    Args:
        path: the file.
        step: number of steps that the weights were trained for.
    """
    try:
        with regular_file(path) as content, np.load(content) as file:
            arrays = dict(file)
        return arrays if int(arrays["step"]) == step and "test_ranks" in arrays else None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError):
        return None
    except (MemoryError, zipfile.BadZipFile, zlib.error):  # an array of an absurd size
        return None


def _arrays(dataset: Dataset, subset: Subset, evaluation: Evaluation) -> dict[str, Any]:
    index = subset.index.tolist()
    paths = image_names(dataset, subset.examples, index)
    names = subset.examples.identities
    return {
        "probabilities": evaluation.probabilities.numpy(),
        "predicted": evaluation.predicted.numpy(),
        "ranks": evaluation.ranks.numpy(),
        "losses": evaluation.losses.float().numpy(),
        "labels": subset.examples.labels[subset.index].numpy(),
        "paths": np.array(paths, dtype=np.str_),
        "identities": np.array([names[i] for i in index] if names else paths, dtype=np.str_),
    }
