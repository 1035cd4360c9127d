import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from vitctl.optim.schedule import Schedule


def torch_factors(kind: type, total: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(optimizer, **options)
    factors = []
    for _ in range(total):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_cosine_and_linear_are_torch_s(total: int) -> None:
    cosine, linear = Schedule("cosine", total), Schedule("linear", total)
    assert [cosine.factor(i) for i in range(total)] == pytest.approx(
        torch_factors(CosineAnnealingLR, total, T_max=total)
    )
    expected = torch_factors(LinearLR, total, start_factor=1.0, end_factor=0.0, total_iters=total)
    assert [linear.factor(i) for i in range(total)] == pytest.approx(expected)


def test_epoch_wise_cosine_is_torch_s_stepped_once_an_epoch() -> None:
    schedule = Schedule("cosine", total_steps=50, steps_per_epoch=10)
    per_epoch = torch_factors(CosineAnnealingLR, 5, T_max=5)
    assert [schedule.factor(i) for i in range(50)] == pytest.approx([per_epoch[i // 10] for i in range(50)])


def test_warm_up_rises_to_one_and_the_end_is_near_zero() -> None:
    schedule = Schedule("linear", total_steps=100, warmup_steps=10)
    factors = [schedule.factor(i) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1 and factors[10] == 1
    assert factors[-1] == pytest.approx(1 / 90)
    assert all(factor > 0 for factor in factors) and schedule.factor(100) == 0
    constant = Schedule("constant", 100, 10)
    assert {constant.factor(i) for i in range(9, 100)} == {1.0}
