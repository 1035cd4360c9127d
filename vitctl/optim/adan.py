"""A multi-tensor Adan with the updates and state of the adan-pytorch package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from vitctl.optim.flat import FlatOptimizer

STATE = ("prev_grad", "m", "v", "n")


class Adan(FlatOptimizer):
    """Multi-tensor adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677).

    State dicts can be exchanged with the adan-pytorch package, whose updates are reproduced:

    - Betas are the weights of new values, as in the paper: 1 - beta of Adam and of the authors' code.
    - The first step of a parameter only stores its gradient and decays its weights. The bias correction counts that
      step too, although the running means do not include it.
    - Weight decay divides by ``1 + lr * weight_decay`` after the update.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: weights, in ``(0, 1]``, of a new gradient, gradient difference and squared gradient in their running means.
        eps: term added to the denominator; must be positive, as the first step divides by it.
        weight_decay: decoupled weight decay.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.02, 0.08, 0.01),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0:
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must be at least 0, and eps {eps} positive")
        if len(betas) != 3 or not all(0 < beta <= 1 for beta in betas):
            raise ValueError(f"betas {betas} must be three numbers above 0 and at most 1")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "restart_cond": None,  # adan-pytorch expects this key in state dicts
        }
        super().__init__(params, defaults)

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
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}  # a parameter without a gradient in some steps has taken fewer
            for p in group["params"]:
                if p.grad is not None:
                    by_step.setdefault(self._state_of(p)["step"], []).append(p)
            for done, params in by_step.items():
                self._update(group, params, done)
        return loss

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = 0
            for key in STATE:
                state[key] = torch.zeros_like(p)
        return state

    def _update(self, group: dict[str, Any], params: list[Tensor], done: int) -> None:
        """Take a step for ``params``, which have taken ``done`` steps."""
        beta1, beta2, beta3 = group["betas"]
        values, grads, previous, m, v, n = self._lists(group, params, STATE)
        if done:
            change = torch._foreach_sub(grads, previous)
            torch._foreach_lerp_(m, grads, beta1)
            torch._foreach_lerp_(v, change, beta2)
            torch._foreach_mul_(change, 1 - beta2)
            torch._foreach_add_(change, grads)
            torch._foreach_mul_(n, 1 - beta3)
            torch._foreach_addcmul_(n, change, change, value=beta3)
        self._apply(group, values, m, v, n, done + 1)

        torch._foreach_copy_(previous, grads)
        for p in params:
            self.state[p]["step"] = done + 1

    @staticmethod
    def _apply(
        group: dict[str, Any], params: list[Tensor], m: list[Tensor], v: list[Tensor], n: list[Tensor], step: int
    ) -> None:
        """Update ``params`` by the bias-corrected means, then decay them."""
        beta1, beta2, beta3 = group["betas"]
        correct_m, correct_v, correct_n = (1 / (1 - (1 - beta) ** step) for beta in (beta1, beta2, beta3))
        direction = torch._foreach_mul(m, correct_m)
        torch._foreach_add_(direction, v, alpha=(1 - beta2) * correct_v)
        scale = torch._foreach_mul(n, correct_n)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, direction, scale, value=-group["lr"])
        if group["weight_decay"]:
            torch._foreach_div_(params, 1 + group["weight_decay"] * group["lr"])
