"""scikit-learn's handwritten digits, a data set that needs no download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from vitctl.data.choice import hash_keys, places_in_class
from vitctl.data.dataset import Dataset, Examples, LoadOptions
from vitctl.errors import RequestError

_TEST_SHARE = 0.2


def load(options: LoadOptions) -> Dataset:
    """Return the 1,797 greyscale images of 8x8 pixels; a fixed fifth of each class is the test set.

    Raises:
        RequestError: ``--data-dir`` was given.
    """
    if options.data_dir is not None:
        raise RequestError(
            f"--data-dir {options.data_dir} does nothing with --dataset digits", hint="remove --data-dir"
        )
    values, labels = load_digits(return_X_y=True)  # float64 [n, 64], whole numbers 0-16
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)  # [n, 64] -> [n, 1, 8, 8]
    labels = labels.astype(np.int64)
    # Independent of --split-seed: test results are comparable only on the same images.
    test = (places_in_class(labels, hash_keys(len(labels), "digits test")) + 0.5) / np.bincount(labels)[
        labels
    ] < _TEST_SHARE
    scaled = images[~test] / 255
    return Dataset(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
        train=_images(images, labels, ~test),
        val=None,
        test=_images(images, labels, test),
        source="scikit-learn",
    )


def _images(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> Examples:
    return Examples(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))
