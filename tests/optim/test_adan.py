"""Adan compared with the adan-pytorch package."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adan_pytorch import Adan as Package
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitctl.models import MODELS, build_model
from vitctl.optim.adan import Adan
from vitctl.optim.groups import param_groups

SHAPES = [(7, 5), (5,), (3, 4, 2, 2), (), (1, 6)]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    """Yield noisy gradients with a constant direction, like those of training."""
    generator = torch.Generator().manual_seed(seed)
    drift = [torch.randn(shape, generator=generator) for shape in SHAPES]
    for _ in range(steps):
        yield [0.3 * mean + torch.randn(mean.shape, generator=generator) for mean in drift]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "weight_decay": 0.02},
        {"params": params[2:4], "weight_decay": 0.0, "lr": 3e-3},
        {"params": params[4:], "betas": (0.2, 0.3, 0.1), "eps": 1e-6},
    ]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.02, 0.5])
def test_trajectories_match_adan_pytorch(decay: float) -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": decay}
    a, b = Adan(groups(ours), **options), Package(groups(theirs), **options)
    for grads in gradients(100):
        step(a, ours, grads)
        step(b, theirs, grads)
        for mine, package in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, package, rtol=0, atol=1e-6)
    start = parameters()
    assert all((p - q).abs().max() > 1e-3 for p, q in zip(ours, start, strict=True))
    for mine, package in zip(ours, theirs, strict=True):
        for key in ("m", "v", "n", "prev_grad"):
            torch.testing.assert_close(a.state[mine][key], b.state[package][key], rtol=1e-5, atol=1e-6)


def test_the_first_step_only_stores_the_gradient_and_decays() -> None:
    (p,) = params = [nn.Parameter(torch.ones(3))]
    optimizer = Adan(params, lr=0.1, weight_decay=0.5)
    step(optimizer, params, [torch.full((3,), 2.0)])
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 / 1.05))
    assert torch.equal(optimizer.state[p]["prev_grad"], torch.full((3,), 2.0))


def test_parameters_without_gradients_in_some_steps_match_adan_pytorch() -> None:
    ours, theirs = parameters(), parameters()
    a, b = Adan(ours, lr=1e-2), Package(theirs, lr=1e-2)
    for i, grads in enumerate(gradients(30)):
        for params, optimizer in ((ours, a), (theirs, b)):
            for j, p in enumerate(params):
                p.grad = None if i % (j + 1) else grads[j].clone()
            optimizer.step()
    for mine, package in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, package, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("first", "second"), [(Adan, Package), (Package, Adan)])
def test_state_dicts_can_be_exchanged_with_adan_pytorch(first: Any, second: Any) -> None:
    params = parameters()
    reference = [nn.Parameter(p.detach().clone()) for p in params]
    uninterrupted = Package(groups(reference), lr=1e-2)
    before = first(groups(params), lr=1e-2)
    stream = list(gradients(20))
    for grads in stream[:10]:
        step(before, params, grads)
        step(uninterrupted, reference, grads)
    after = second(groups(params), lr=1.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for grads in stream[10:]:
        step(after, params, grads)
        step(uninterrupted, reference, grads)
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


class Counter(TorchDispatchMode):
    """Counts the operations that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_dispatches_at_most_a_tenth_of_adan_pytorch_s_operations() -> None:
    options = MODELS["vit_small"].resolve_options({}, "vit_small")
    model = build_model("vit_small", options, img_size=32, in_chans=3, num_classes=10)
    counts = []
    for kind in (Adan, Package):
        optimizer = kind(param_groups(model, 0.02))
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()  # creates the state
        with Counter() as counter:
            optimizer.step()
        counts.append(counter.count)
    ours, package = counts
    assert package > 1000
    assert ours <= package / 10
    assert ours <= 2 * 20  # two groups, whatever the number of parameters


def test_a_closure_is_evaluated_and_bad_arguments_are_refused() -> None:
    (p,) = params = [nn.Parameter(torch.ones(3))]
    optimizer = Adan(params)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss)

    assert optimizer.step(closure) == 3.0
    assert optimizer.step(closure) == 3.0 and optimizer.step(closure) < 3.0
    for wrong in ({"lr": -1}, {"betas": (0.0, 0.1, 0.1)}, {"betas": (0.1, 0.1)}, {"eps": 0}, {"weight_decay": -1}):
        with pytest.raises(ValueError):
            Adan(params, **wrong)  # type: ignore[arg-type]
