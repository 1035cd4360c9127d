"""Muon compared with float64 formulas in NumPy, airbench's update, and torch's Muon, AdamW and SGD."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitctl import devices
from vitctl.models import MODELS, build_model
from vitctl.optim.build import build_optimizer, muon
from vitctl.optim.flat import flatten_parameters
from vitctl.optim.muon import Muon, newton_schulz

OPTIONS: dict[str, Any] = {
    "adamw_lr": 3e-3, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute matrix products in fp32 on every CPU."""
    monkeypatch.setattr(devices, "matmul_dtype", lambda device, dtype: dtype)


def by_singular_values(matrix: np.ndarray, steps: int = 5) -> np.ndarray:
    """Return U p(p(...p(S))) V^T with Jordan's polynomial p, the exact result of the iteration."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 40), (1, 5), (64, 64)])
def test_newton_schulz_applies_the_polynomial_to_the_singular_values(rows: int, columns: int) -> None:
    x = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    result = newton_schulz(x)
    for matrix, ours in zip(x, result, strict=True):
        np.testing.assert_allclose(ours.numpy(), by_singular_values(matrix.numpy()), rtol=1e-3, atol=2e-5)


def test_the_result_is_near_the_polar_factor() -> None:
    x = torch.randn(4, 48, 96, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(newton_schulz(x))
    assert values.min() > 0.65 and values.max() < 1.2
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    polar = u @ vt
    assert torch.cosine_similarity(newton_schulz(x).flatten(1), polar.flatten(1)).min() > 0.97
    more = newton_schulz(x, steps=30)  # the iteration does not converge, but stays bounded
    assert torch.linalg.svdvals(more).min() > 0.6 and torch.linalg.svdvals(more).max() < 1.25


@pytest.mark.parametrize(("steps", "share"), [(3, 0.018), (4, 0.0053), (5, 0.0016)])
def test_singular_values_above_a_share_of_the_norm_come_near_one(steps: int, share: float) -> None:
    values = torch.linspace(share, 0.9, 200, dtype=torch.float64)
    rest = (1 - values**2).sqrt()  # a second value, so that the norm is 1
    stack = torch.diag_embed(torch.stack((values, rest), 1))
    result = newton_schulz(stack, steps)[:, 0, 0]
    assert result.min() > 0.68 and result.max() < 1.21
    smaller = torch.diag(torch.tensor([share / 2, (1 - share**2 / 4) ** 0.5], dtype=torch.float64))
    assert newton_schulz(smaller[None], steps)[0, 0, 0] < 0.68


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(newton_schulz(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
    weight = nn.Parameter(torch.zeros(4, 3))
    weight.grad = torch.zeros(4, 3)
    Muon([{"params": [weight]}], renormalize="all").step()
    assert torch.equal(weight, torch.zeros(4, 3))


SHAPES = {"square": (12, 12), "tall": (24, 8), "wide": (8, 24), "conv": (6, 4, 3, 3), "qkv": (36, 12)}


def matrices(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def groups_of(params: dict[str, nn.Parameter], decay: float = 0.1) -> list[dict[str, Any]]:
    one = [p for name, p in params.items() if name != "qkv"]
    return [
        {"params": one, "weight_decay": decay, "parts": 1},
        {"params": [params["qkv"]], "weight_decay": decay, "parts": 3},
    ]


@pytest.mark.parametrize("nesterov", [True, False])
def test_trajectories_match_the_formula(nesterov: bool) -> None:
    params, lr, decay, momentum = matrices(), 0.02, 0.1, 0.9
    optimizer = Muon(groups_of(params, decay), lr=lr, momentum=momentum, nesterov=nesterov)
    weights = {name: p.detach().double().numpy().copy() for name, p in params.items()}
    sums = {name: np.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for name, p in params.items():
            p.grad = torch.randn(p.shape, generator=generator)
            grad = p.grad.double().numpy()
            sums[name] = momentum * sums[name] + grad
            update = grad + momentum * sums[name] if nesterov else sums[name]
            flat = update.reshape(update.shape[0], -1)
            pieces = np.split(flat, 3) if name == "qkv" else [flat]
            moved = [by_singular_values(piece) * max(1, piece.shape[0] / piece.shape[1]) ** 0.5 for piece in pieces]
            weights[name] = weights[name] * (1 - lr * decay) - lr * np.concatenate(moved).reshape(update.shape)
        optimizer.step()
    for name, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), weights[name], rtol=0, atol=2e-4, err_msg=name)


def test_trajectories_match_torch_s_muon_up_to_precision() -> None:
    names = ("square", "tall", "wide")
    ours, theirs = ({name: matrices()[name] for name in names} for _ in range(2))
    a = Muon([{"params": list(ours.values()), "parts": 1}], lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for name in names:
            gradient = torch.randn(SHAPES[name], generator=generator)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    start = matrices()
    for name in names:
        moved, expected = ours[name] - start[name], theirs[name] - start[name]
        assert (moved - expected).norm() < 0.02 * expected.norm(), name


class Airbench:
    """The step of airbench94_muon (Jordan 2024) on 4-D weights, with one loop per filter bank."""

    def __init__(self, weights: list[Tensor], lr: float, momentum: float) -> None:
        self.weights, self.lr, self.momentum = weights, lr, momentum
        self.buffers = [torch.zeros_like(weight) for weight in weights]

    def step(self, grads: list[Tensor]) -> None:
        for weight, buffer, grad in zip(self.weights, self.buffers, grads, strict=True):
            buffer.mul_(self.momentum).add_(grad)
            g = grad.add(buffer, alpha=self.momentum)
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            update = self.zeropower(g.reshape(len(g), -1)).view(g.shape)
            weight.add_(update, alpha=-self.lr)

    @staticmethod
    def zeropower(g: Tensor) -> Tensor:
        a, b, c = 3.4445, -4.7750, 2.0315
        x = g / (g.norm() + 1e-7)
        if g.size(0) > g.size(1):
            x = x.T
        for _ in range(3):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if g.size(0) > g.size(1) else x


@pytest.mark.parametrize("flat", [False, True])
def test_renormalised_convolutions_match_airbench_s_muon(flat: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    linear = nn.Parameter(torch.randn(6, 9, generator=generator))
    theirs = [weight.detach().double() for weight in ours]
    optimizer = Muon(
        [{"params": [*ours, linear]}], lr=0.24, momentum=0.6, ns_steps=3, renormalize="convolutions"
    )  # fmt: skip
    if flat:
        flatten_parameters(optimizer)
    reference = Airbench(theirs, lr=0.24, momentum=0.6)
    before = linear.norm().item()
    for _ in range(5):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        for weight, grad in zip(ours, grads, strict=True):
            weight.grad = grad.clone()
        optimizer.step()
        reference.step([grad.double() for grad in grads])
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-4)
    assert linear.norm().item() == before


def test_each_of_the_stacked_matrices_is_renormalised() -> None:
    weight = nn.Parameter(torch.cat([torch.full((4, 5), scale) for scale in (0.1, 1.0, 10.0)]))
    weight.grad = torch.zeros(12, 5)
    Muon([{"params": [weight], "parts": 3}], renormalize="all").step()
    assert torch.allclose(torch.stack([part.norm() for part in weight.detach().split(4)]), torch.full((3,), 2.0))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.85, True), (0.85, False), (0.0, True)])
def test_other_parameters_match_torch_s_sgd(momentum: float, nesterov: bool) -> None:
    model = network()
    reference = copy.deepcopy(model)
    options = {
        "sgd_lr": 0.05, "momentum": 0.6, "nesterov": nesterov, "ns_steps": 3, "renormalize": "none",
        "sgd_momentum": momentum,
    }  # fmt: skip
    optimizer = build_optimizer("muon_sgd", options, model, lr=0.02, weight_decay=0.1)
    others = [group for group in optimizer.param_groups if not group["parts"]]
    assert {group["lr"] for group in others} == {0.05}
    names = {p: name for name, p in model.named_parameters()}
    theirs = dict(reference.named_parameters())
    sgd = torch.optim.SGD(
        [
            {"params": [theirs[names[p]] for p in group["params"]], "weight_decay": group["weight_decay"]}
            for group in others
        ],
        lr=0.05,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        foreach=False,
    )
    for i in range(10):
        gradients_of(model, i)
        gradients_of(reference, i)
        if i < 2:  # a parameter without gradients at first
            model.head.bias.grad = reference.head.bias.grad = None
        optimizer.step()
        sgd.step()
    for group in others:
        for p in group["params"]:
            torch.testing.assert_close(p, theirs[names[p]], rtol=1e-5, atol=1e-6)


def test_products_in_bf16_point_in_the_same_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(devices, "matmul_dtype", lambda *_, dtype=dtype: dtype)
        params = matrices()
        optimizer = Muon(groups_of(params), lr=0.02)
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        starts = matrices()
        moved[dtype] = torch.cat([(p - starts[name]).detach().flatten() for name, p in params.items()])
    assert torch.cosine_similarity(*moved.values(), dim=0) > 0.999
    assert not torch.equal(*moved.values())


def network() -> nn.Module:
    torch.manual_seed(0)
    options = MODELS["cct_2"].resolve_options({"embed_dim": 16, "conv_width": 8}, "cct_2")
    return build_model("cct_2", options, img_size=8, in_chans=1, num_classes=3)


def gradients_of(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_other_parameters_match_torch_s_adamw() -> None:
    model = network()
    reference = copy.deepcopy(model)
    optimizer = build_optimizer("muon", OPTIONS, model, lr=0.02, weight_decay=0.1)
    (decayed, undecayed) = [group for group in optimizer.param_groups if not group["parts"]]
    assert {group["lr"] for group in (decayed, undecayed)} == {3e-3}
    assert [group["weight_decay"] for group in (decayed, undecayed)] == [0.1, 0.0]
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = dict(reference.named_parameters())
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs[names[id(p)]] for p in group["params"]], "weight_decay": group["weight_decay"]}
            for group in (decayed, undecayed)
        ],
        lr=3e-3,
        betas=(0.9, 0.99),
        foreach=False,
    )
    for i in range(10):
        gradients_of(model, i)
        gradients_of(reference, i)
        optimizer.step()
        adamw.step()
    for group in (decayed, undecayed):
        for p in group["params"]:
            torch.testing.assert_close(p, theirs[names[id(p)]], rtol=1e-5, atol=1e-6)


def test_the_two_learning_rates_keep_their_ratio_under_a_schedule() -> None:
    optimizer = build_optimizer("muon", OPTIONS, network(), lr=0.02, weight_decay=0.1)
    for group in optimizer.param_groups:
        scheduled = 0.02 * group.get("lr_scale", 1.0) * 0.5
        assert scheduled == pytest.approx(0.01 if group["parts"] else 1.5e-3)


def test_matrices_of_one_shape_are_orthogonalised_in_one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[tuple[int, ...]] = []
    import vitctl.optim.muon as module

    real = module.newton_schulz

    def seen(x: Tensor, steps: int) -> Tensor:
        stacks.append(tuple(x.shape))
        return real(x, steps)

    monkeypatch.setattr(module, "newton_schulz", seen)
    params = matrices()
    for p in params.values():
        p.grad = torch.randn(p.shape)
    Muon(groups_of(params)).step()
    assert sorted(stacks) == [
        (1, 6, 36),
        (2, 8, 24),
        (4, 12, 12),
    ]  # tall with wide, and qkv's three with the square one


def test_parameters_without_gradients_do_not_change() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer("muon", OPTIONS, model, lr=0.02, weight_decay=0.1)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_arguments_are_refused() -> None:
    group = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    for wrong in (
        {"lr": -1},
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"ns_steps": 0},
        {"weight_decay": -0.1},
        {"sgd_momentum": 1.0},
        {"renormalize": "some"},
    ):
        with pytest.raises(ValueError):
            Muon(group, **wrong)  # type: ignore[arg-type]
    assert isinstance(muon([{"params": group[0]["params"], "parts": 1}], lr=0.1, **OPTIONS), Muon)
