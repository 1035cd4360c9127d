"""Dropout: rate, mean, gradient and evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitctl.models.dropout import Dropout, replace_dropout


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_met_and_the_mean_preserved(rate: float) -> None:
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(1001, 1001))
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate)) ** 0.5 / 1001)
    assert out.max().item() == pytest.approx(1 / (1 - rate), rel=2e-4)
    assert out.double().mean().item() == pytest.approx(1, abs=5 * (rate / (1 - rate)) ** 0.5 / 1001)


def test_neighbouring_elements_are_independent() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 20)) > 0).double() - 0.5
    for lag in range(1, 9):
        assert abs((kept[lag:] * kept[:-lag]).mean().item()) < 5 * 0.25 / 1024


def test_gradient_is_zero_where_the_value_was_dropped() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 9, 11, requires_grad=True)
    out = Dropout(0.3)(x.transpose(0, 2))
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.transpose(0, 2) * x.transpose(0, 2), out)


def test_the_seed_determines_the_mask() -> None:
    x = torch.ones(999)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    assert not torch.equal(Dropout(0.5)(x), first)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
def test_extreme_rates_stay_finite(rate: float) -> None:
    assert Dropout(rate)(torch.ones(1000)).isfinite().all()


def test_evaluation_changes_nothing() -> None:
    x = torch.ones(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_dtype_is_preserved() -> None:
    assert Dropout(0.5)(torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_replacement_includes_nested_modules_and_skips_rate_0() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.25)), nn.Dropout(0.0))
    replace_dropout(model)
    inner = model[1][0]
    assert type(inner) is Dropout
    assert inner.p == 0.25
    assert type(model[2]) is nn.Dropout
