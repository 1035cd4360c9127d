"""Whitening filters compared with NumPy's covariance, and for images with hardly any variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from vitctl.models.whitening import EIGENVALUE_FLOOR, WhitenedConv, whiten, whitening_filters


def smooth_images(count: int, channels: int = 3, side: int = 9) -> Tensor:
    """Return images whose neighbouring pixels and channels are correlated."""
    x = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))
    return x.cumsum(2).cumsum(3) / side + x.mean(1, keepdim=True) + 0.3


def covariance(images: Tensor, k: int) -> np.ndarray:
    """Return the covariance of all patches, computed by NumPy."""
    windows = sliding_window_view(images.double().numpy(), (k, k), axis=(2, 3))  # [B, C, h, w, k, k]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * k * k)
    return np.atleast_2d(np.cov(patches, rowvar=False, bias=True))


@pytest.mark.parametrize(("count", "channels", "k"), [(300, 3, 2), (1, 3, 2), (40, 1, 2), (20, 3, 3), (7, 4, 1)])
def test_outputs_are_uncorrelated_with_a_variance_of_almost_one(count: int, channels: int, k: int) -> None:
    images = smooth_images(count, channels)
    filters = whitening_filters(images, k)
    half = channels * k * k
    assert filters.shape == (2 * half, channels, k, k) and filters.dtype == torch.float64
    assert torch.equal(filters[half:], -filters[:half])
    expected = covariance(images, k)
    variances = np.linalg.eigvalsh(expected)
    rows = filters[:half].flatten(1).numpy()
    np.testing.assert_allclose(rows @ expected @ rows.T, np.diag(variances / (variances + EIGENVALUE_FLOOR)), atol=1e-9)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_rounding_does_not_decide_the_signs() -> None:
    """In this covariance, all values of an eigenvector have one size: the first is positive, not the largest."""
    images = smooth_images(50, channels=1, side=8)
    views = [images, images.flip(2), images.flip(3), images.flip((2, 3)), *(x.mT for x in (images, images.flip(2)))]
    rows = whitening_filters(torch.cat([*views, images.mT.flip(2), images.mT.flip((2, 3))]), 2)[:4].flatten(1)
    assert (rows[[0, 3], 0] > 0).all()
    assert (rows[[0, 3]].abs() / rows[[0, 3]].abs().amax(1, keepdim=True) > 1 - 1e-6).all()


@pytest.mark.parametrize(
    "images",
    [
        torch.full((60, 3, 8, 8), 0.3),
        torch.full((1, 1, 8, 8), -2.5),
        torch.arange(60.0).view(60, 1, 1, 1).expand(60, 3, 8, 8) / 60,
        smooth_images(1, side=2),
        smooth_images(3, side=2),
        smooth_images(60)[:, :1].expand(-1, 3, -1, -1),
    ],
    ids=["constant", "one constant", "each constant", "one patch", "few patches", "grey in three channels"],
)
def test_filters_are_finite_and_bounded_without_variation(images: Tensor) -> None:
    filters = whitening_filters(images, 2).flatten(1)
    assert filters.isfinite().all()
    assert (filters.norm(dim=1) <= EIGENVALUE_FLOOR**-0.5 + 1e-6).all()
    assert torch.equal(filters, whitening_filters(images.clone(), 2).flatten(1))


def test_constant_images_leave_one_pixel_per_filter() -> None:
    filters = whitening_filters(torch.full((60, 3, 8, 8), 0.3), 2).flatten(1)
    assert torch.equal(filters[:12] * EIGENVALUE_FLOOR**0.5, torch.eye(12, dtype=torch.float64))


def test_only_whitening_layers_change_and_keep_their_type() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(WhitenedConv(3), nn.Conv2d(24, 5, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    whiten(model, smooth_images(20))
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["0.weight"]
    assert torch.equal(after["0.weight"], whitening_filters(smooth_images(20), 2).float())
    model(smooth_images(2)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["0.weight"]
    assert not before["0.bias"].any()
