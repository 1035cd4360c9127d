"""Muon for hidden matrices, and AdamW or SGD for the other parameters, in one optimizer.

Shapes: n matrices of r rows and c columns, with r <= c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from vitctl import devices
from vitctl.optim.flat import FlatOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of ``a x + b x^3 + c x^5``: the steepest at 0 whose iterates stay near 1 (Jordan 2024)."""

TINY_NORM = 1e-7


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of a stack of matrices close to 1, keeping their singular vectors.

    Each iteration applies ``a X + (b A + c A^2) X`` with ``A = X X^T`` (Keller Jordan, "Muon: An optimizer for hidden
    layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon). Afterwards, singular values are between
    0.68 and 1.21 if they were above a share of the Frobenius norm: 0.0016 for 5 iterations, 0.0053 for 4 and 0.018 for 3.
    Smaller ones have been multiplied by up to 485, 141 and 41.

    Args:
        x: float ``[n, r, c]`` with ``r <= c``; its dtype is that of the matrix products.
        steps: number of iterations.

    Returns:
        ``[n, r, c]`` in the dtype of ``x``.
    """
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=TINY_NORM)
    for _ in range(steps):
        gram = x @ x.mT  # [n, r, r]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(FlatOptimizer):
    """Orthogonalised momentum for hidden matrices, and AdamW or SGD for all other parameters.

    The update of a matrix is ``-lr * sqrt(max(1, rows / columns)) * NS(u)``, where ``u`` is the momentum, optionally
    Nesterov's, and ``NS`` is :func:`newton_schulz` (Jordan 2024). A convolution's weight is flattened to a matrix with
    one row per output channel. Weights are multiplied by ``1 - lr * weight_decay``.

    With ``renormalize``, a matrix of r rows is first scaled to the Frobenius norm ``sqrt(r)``, as in Jordan's
    airbench94_muon (2024, https://github.com/KellerJordan/cifar10-airbench): otherwise, the weights of layers before a
    norm grow, and the effective learning rate falls. Linear layers without a norm after them are better left out. A
    matrix of zeros stays zero.

    Matrices of all groups with the same shape, up to transposition, are orthogonalised in one stack. The matrix products
    are in bf16 on devices that compute it natively, else in fp32 (:func:`vitctl.devices.matmul_dtype`).

    Args:
        groups: parameter groups. The key ``parts`` is the number of matrices stacked row-wise in each parameter, such
            as 3 for a fused projection to queries, keys and values, which are orthogonalised separately. It is 0 for
            groups that AdamW or SGD updates.
        lr: default learning rate of the groups.
        weight_decay: default weight decay of the groups.
        momentum: momentum coefficient.
        nesterov: use Nesterov momentum.
        ns_steps: number of Newton-Schulz iterations.
        renormalize: the matrices to scale before each step: ``none``, ``convolutions`` or ``all``.
        sgd_momentum: momentum coefficient of SGD, with the same ``nesterov`` and with decay as part of the gradient; None
            for AdamW.
        betas: AdamW's betas.
        eps: AdamW's epsilon.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        renormalize: str = "none",
        sgd_momentum: float | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or weight_decay < 0 or eps < 0 or ns_steps < 1:
            raise ValueError(
                f"lr {lr}, weight_decay {weight_decay} and eps {eps} must be at least 0, and ns_steps {ns_steps} at least 1"
            )
        shares = (momentum, sgd_momentum or 0.0, *betas)
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"momentum coefficients and betas {shares} must be at least 0 and less than 1")
        if renormalize not in ("none", "convolutions", "all"):
            raise ValueError(f"renormalize must be none, convolutions or all, not {renormalize!r}")
        self.renormalize = renormalize
        groups = [dict(group) for group in groups]
        for group in groups:
            if group.setdefault("parts", 1):
                group |= {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
            elif sgd_momentum is not None:
                group |= {"momentum": sgd_momentum, "nesterov": nesterov and sgd_momentum > 0}
            else:
                # a key of torch's: it makes load_state_dict keep step counters on the device, as fused kernels require
                group |= {"betas": betas, "eps": eps, "fused": True}
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: reevaluates and returns the loss.

        Returns:
            The loss of ``closure``, if given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_matrices([group for group in self.param_groups if group["parts"]])
        for group in self.param_groups:
            if not group["parts"]:
                step_others = self._step_adamw if "betas" in group else self._step_sgd
                step_others(group)
        return loss

    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        """Update the matrices of all groups, those of the same shape in one stack."""
        stacks: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, float]]] = {}
        for group in groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            if scaled := [
                p for p in params if self.renormalize == "all" or (self.renormalize == "convolutions" and p.ndim > 2)
            ]:
                _renormalize(scaled, group["parts"])
            values, grads, averages = self._lists(group, params, ("momentum_buffer",))
            # A running mean instead of the usual sum: it has the same direction, and NS normalises the length.
            torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, averages, group["momentum"]) if group["nesterov"] else averages
            if group["weight_decay"]:
                torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
            for p, update in zip(params, self._split(group, updates, params), strict=True):
                rows = p.shape[0] // group["parts"]
                matrix = update.reshape(group["parts"], rows, -1)  # [parts, rows, columns]
                columns = matrix.shape[-1]
                key = min(rows, columns), max(rows, columns), p.dtype, p.device, group["ns_steps"]
                stacks.setdefault(key, []).append((p, matrix, group["lr"] * math.sqrt(max(1, rows / columns))))
        for (*_, dtype, device, steps), members in stacks.items():
            wide = [matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix for _, matrix, _ in members]
            stack = newton_schulz(torch.cat(wide).to(devices.matmul_dtype(device, dtype)), steps)  # [n, r, c]
            targets, updates = [], []
            for (p, matrix, _), update in zip(members, torch.split(stack, [len(m) for m in wide]), strict=True):
                targets.append(p)
                update = update.mT if matrix.shape[-2] > matrix.shape[-1] else update
                updates.append(update.reshape(p.shape).to(dtype))
            torch._foreach_mul_(updates, [-rate for _, _, rate in members])
            torch._foreach_add_(targets, updates)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        """Update the parameters of ``group`` with torch's AdamW."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=devices.has_fused_optimizers(params[0].device),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_sgd(self, group: dict[str, Any]) -> None:
        """Update the parameters of ``group`` with torch's SGD."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        sgd(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["momentum_buffer"] for p in params],
            fused=devices.has_fused_optimizers(params[0].device),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


def _renormalize(params: list[Tensor], parts: int) -> None:
    """Scale each of the ``parts`` matrices stacked in each parameter to the norm ``sqrt(rows)``, in place."""
    matrices = [matrix for p in params for matrix in p.view(parts, -1, *p.shape[1:]).unbind()]
    factors = torch._foreach_norm(matrices)
    torch._foreach_clamp_min_(factors, TINY_NORM)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [math.sqrt(len(matrix)) for matrix in matrices])
    torch._foreach_mul_(matrices, factors)
