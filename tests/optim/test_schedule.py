import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from vitctl.optim.schedule import RangeTest, Schedule


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
def test_cosine_and_linear_match_torch(total: int) -> None:
    cosine, linear = Schedule("cosine", total), Schedule("linear", total)
    assert [cosine.factor(i) for i in range(total)] == pytest.approx(
        torch_factors(CosineAnnealingLR, total, T_max=total)
    )
    expected = torch_factors(LinearLR, total, start_factor=1.0, end_factor=0.0, total_iters=total)
    assert [linear.factor(i) for i in range(total)] == pytest.approx(expected)


def test_cosine_per_epoch_matches_torch() -> None:
    schedule = Schedule("cosine", total_steps=50, steps_per_epoch=10)
    per_epoch = torch_factors(CosineAnnealingLR, 5, T_max=5)
    assert [schedule.factor(i) for i in range(50)] == pytest.approx([per_epoch[i // 10] for i in range(50)])


def test_warm_up_rises_to_one_and_decay_ends_near_zero() -> None:
    schedule = Schedule("linear", total_steps=100, warmup_steps=10)
    factors = [schedule.factor(i) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1 and factors[10] == 1
    assert factors[-1] == pytest.approx(1 / 90)
    assert all(factor > 0 for factor in factors) and schedule.factor(100) == 0
    constant = Schedule("constant", 100, 10)
    assert {constant.factor(i) for i in range(9, 100)} == {1.0}


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(200, 10), (10, 3), (5, 1)])
def test_warm_up_per_epoch_matches_torch(epochs: int, warmup_epochs: int) -> None:
    steps = 98
    ours = Schedule("linear", epochs * steps, warmup_steps=warmup_epochs * steps, steps_per_epoch=steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup_epochs, 1.0, total_iters=warmup_epochs - 1 or 1)
    for epoch in range(warmup_epochs):
        assert ours.factor(epoch * steps) == ours.factor(epoch * steps + steps - 1)
        assert ours.factor(epoch * steps) == pytest.approx(theirs.get_last_lr()[0] if warmup_epochs > 1 else 1.0)
        optimizer.step()
        theirs.step()


def test_a_warm_up_shorter_than_an_epoch_has_no_effect_per_epoch() -> None:
    assert Schedule("linear", 3520, warmup_steps=176, steps_per_epoch=352).factor(0) == 1.0


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_onecycle_per_epoch_nearly_reaches_its_peak(epochs: int) -> None:
    schedule = Schedule("onecycle", 98 * epochs, warmup_steps=math.ceil(0.3 * 98 * epochs), steps_per_epoch=98)
    factors = [schedule.factor(98 * epoch) for epoch in range(epochs)]
    assert max(factors) > 0.8 and all(schedule.factor(98 * i + 97) == factor for i, factor in enumerate(factors))


@pytest.mark.parametrize(("total", "rise"), [(100, 30), (20, 5), (40, 20)])
def test_onecycle_matches_torch(total: int, rise: int) -> None:
    schedule = Schedule("onecycle", total, warmup_steps=rise)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=rise / total, cycle_momentum=False)
    for step in range(total):
        assert schedule.factor(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        if step < total - 1:
            scheduler.step()


def test_warm_down_is_a_trapezoid() -> None:
    schedule = Schedule("constant", total_steps=100, warmup_steps=10, warmdown_steps=40)
    factors = [schedule.factor(i) for i in range(100)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[10:61] == [1.0] * 51
    assert factors[60:] == pytest.approx([1 - i / 40 for i in range(40)])
    assert schedule.factor(100) == 0 and schedule.factor(120) == 0
    trapezoid, linear = Schedule("constant", 100, 0, warmdown_steps=100), Schedule("linear", 100)
    assert [trapezoid.factor(i) for i in range(100)] == pytest.approx([linear.factor(i) for i in range(100)])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "onecycle"])
@pytest.mark.parametrize("total", [1, 2, 3, 17])
@pytest.mark.parametrize("per_epoch", [0, 5])
def test_every_factor_is_between_zero_and_one(kind: str, total: int, per_epoch: int) -> None:
    for warmup in (0, 1, total):
        schedule = Schedule(kind, total, warmup, per_epoch, warmdown_steps=total // 2 if kind == "constant" else 0)
        assert all(0 < schedule.factor(i) <= 1 for i in range(total))
        assert max(schedule.factor(i) for i in range(total)) <= 1


def test_a_range_test_rises_exponentially() -> None:
    factors = [RangeTest("range", 11, low=1e-3, high=1e2).factor(i) for i in range(11)]
    assert factors[0] == pytest.approx(1e-3) and factors[-1] == pytest.approx(1e2)
    assert [b / a for a, b in itertools.pairwise(factors)] == pytest.approx([10**0.5] * 10)


KINDS = {
    "linear": Schedule("linear", 100, 10),
    "cosine": Schedule("cosine", 100, 10),
    "onecycle": Schedule("onecycle", 100, 30),
    "warmdown": Schedule("constant", 100, 10, warmdown_steps=40),
}
REFITS = [((40, 70),), ((40, 130),), ((5, 60),), ((40, 41),), ((40, 130), (90, 100)), ((40, 60), (50, 140))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refits", REFITS)
def test_a_refit_stretches_the_rest_of_the_schedule_without_a_jump(
    kind: str, refits: tuple[tuple[int, int], ...]
) -> None:
    before = KINDS[kind]
    for i, (step, length) in enumerate(refits):
        after = dataclasses.replace(KINDS[kind], refits=refits[: i + 1])
        assert [after.factor(k) for k in range(step + 1)] == [before.factor(k) for k in range(step + 1)]
        steepest = max(abs(before.factor(k) - before.factor(k + 1)) for k in range(150))
        slope = steepest * 100 / (length - step)
        assert all(abs(after.factor(k) - after.factor(k + 1)) <= slope + 1e-12 for k in range(step, length - 1))
        assert after.factor(length) == pytest.approx(0, abs=1e-5)
        before = after


def test_after_a_refit_a_linear_schedule_falls_linearly_to_zero() -> None:
    schedule = Schedule("linear", 100, refits=((40, 130), (90, 100)))
    assert [schedule.factor(k) for k in (0, 40, 85)] == pytest.approx([1, 0.6, 0.6 * 45 / 90])
    left = 0.6 * 40 / 90
    assert [schedule.factor(90 + k) for k in range(11)] == pytest.approx([left * (1 - k / 10) for k in range(11)])
    assert {Schedule("constant", 100, refits=((40, 130),)).factor(k) for k in range(130)} == {1.0}


def test_a_refit_changes_a_rate_per_epoch_at_the_next_epoch() -> None:
    refit = Schedule("linear", 100, steps_per_epoch=10, refits=((45, 75),))
    plain = Schedule("linear", 100, steps_per_epoch=10)
    assert [refit.factor(k) for k in range(50)] == [plain.factor(k) for k in range(50)]
    assert [refit.factor(k) for k in (50, 59, 60, 70)] == pytest.approx([0.55 * (1 - k / 30) for k in (5, 5, 15, 25)])
