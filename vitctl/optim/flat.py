"""Parameters in one buffer, for devices on which torch has no foreach kernels.

There, an operation on a list of tensors takes one kernel per tensor; on the buffer of which they are views, it takes one.
Parameters, gradients and optimizer state remain tensors of their own in every state dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

ALIGNMENT = 64
"""Multiple, in elements, at which tensors start in a buffer: kernels may load vectors, as from separate tensors."""


def bounds(tensors: Sequence[Tensor]) -> list[int]:
    """Return where each tensor starts in a buffer, and the length of the buffer."""
    return list(accumulate((-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors), initial=0))


def views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``buffer`` in the shapes of ``tensors``, at their :func:`bounds`."""
    starts = bounds(tensors)[:-1]
    return [buffer[a : a + tensor.numel()].view(tensor.shape) for a, tensor in zip(starts, tensors, strict=True)]


@torch.no_grad()
def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors of one dtype and device into a buffer, of which they become views, and return the buffer."""
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) != 1:
        raise ValueError("tensors in one buffer must have the same dtype and device")
    buffer = torch.zeros(bounds(tensors)[-1], dtype=tensors[0].dtype, device=tensors[0].device)
    for tensor, view in zip(tensors, views(buffer, tensors), strict=True):
        view.copy_(tensor)
        tensor.data = view
    return buffer


class FlatParameters:
    """Parameters as views of one buffer, and their gradients as views of another.

    Args:
        parameters: parameters of one dtype and device.

    Attributes:
        parameters: the parameters, in the order of the buffer.
        values: the buffer, float ``[n]``; its ``grad`` is the buffer of the gradients.
        start: where each parameter starts in the buffer.
        stop: where the next one starts.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.values = flatten(self.parameters)
        self.grads = torch.zeros_like(self.values)
        self.values.grad = self.grads
        self.start = dict(zip(self.parameters, bounds(self.parameters)[:-1], strict=True))
        self.stop = dict(zip(self.parameters, bounds(self.parameters)[1:], strict=True))
        self._grad_views = views(self.grads, self.parameters)
        self._reached: set[Tensor] = set()
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._reached.add)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Zero the gradients, to which backward passes then add in place."""
        self._reached.clear()
        self.grads.zero_()
        for parameter, grad in zip(self.parameters, self._grad_views, strict=True):
            parameter.grad = grad

    def end(self) -> None:
        """Remove the gradients of parameters that no backward pass has reached since :meth:`begin`."""
        for parameter in self.parameters:
            if parameter not in self._reached:
                parameter.grad = None


class FlatGroup:
    """Neighbouring parameters of :class:`FlatParameters`, and their optimizer state in buffers of the same layout.

    Args:
        flat: the parameters of all groups.
        params: those of this group, in order.
        keys: names of their state tensors.
    """

    def __init__(self, flat: FlatParameters, params: Sequence[Tensor], keys: Sequence[str]) -> None:
        self.flat, self.keys = flat, keys
        self.first = flat.start[params[0]]
        span = slice(self.first, flat.stop[params[-1]])
        self.buffers = [flat.values[span], flat.grads[span], *(torch.zeros_like(flat.values[span]) for _ in keys)]
        per_buffer = [views(buffer, params) for buffer in self.buffers[1:]]
        self.views = {p: each for p, *each in zip(params, *per_buffer, strict=True)}
        self._slices: dict[tuple[int, int], list[Tensor]] = {}

    def lists(self, params: Sequence[Tensor], state: dict[Tensor, dict[str, Any]]) -> list[list[Tensor]]:
        """Return values, gradients and the state of each key as lists of stretches, which join neighbours in ``params``.

        Gradients and state that are elsewhere, such as those of a loaded state dict, are moved into the buffers.
        """
        for p in params:
            grad, *own = self.views[p]
            if p.grad is not grad:
                assert p.grad is not None
                p.grad = grad.copy_(p.grad)
            states = state[p]
            for key, view in zip(self.keys, own, strict=True):
                if states[key] is not view:
                    states[key] = view.copy_(states[key])
        return [list(each) for each in zip(*map(self._slice, self.stretches(params)), strict=True)]

    def stretches(self, params: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Return where each run of neighbours in ``params`` starts and stops in the flat buffer."""
        start, stop = self.flat.start, self.flat.stop
        cuts = [i for i, (a, b) in enumerate(pairwise(params), 1) if stop[a] != start[b]]
        return [(start[params[a]], stop[params[b - 1]]) for a, b in pairwise([0, *cuts, len(params)])]

    def _slice(self, stretch: tuple[int, int]) -> list[Tensor]:
        if stretch not in self._slices:
            start, stop = (each - self.first for each in stretch)
            self._slices[stretch] = [buffer[start:stop] for buffer in self.buffers]
        return self._slices[stretch]

    def split(self, stretched: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        """Return the part of each parameter in ``stretched``, a list as of :meth:`lists`."""
        parts = []
        for (start, stop), values in zip(self.stretches(params), stretched, strict=True):
            for p in (p for p in params if start <= self.flat.start[p] < stop):
                offset = self.flat.start[p] - start
                parts.append(values[offset : offset + p.numel()].view(p.shape))
        return parts


class FlatOptimizer(Optimizer):
    """Base of optimizers that update lists of tensors, or with :attr:`flat` the stretches of flat buffers."""

    flat: FlatParameters | None = None

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._flat_groups: dict[Tensor, FlatGroup] = {}

    def _lists(self, group: dict[str, Any], params: list[Tensor], keys: Sequence[str]) -> list[list[Tensor]]:
        """Return values, gradients and the state of each key, for ``params`` of ``group`` that have gradients."""
        if self.flat is not None:
            return self._flat_group(group, keys).lists(params, self.state)
        grads = [p.grad for p in params if p.grad is not None]
        return [params, grads, *([self.state[p][key] for p in params] for key in keys)]

    def _split(self, group: dict[str, Any], updates: Sequence[Tensor], params: list[Tensor]) -> Sequence[Tensor]:
        """Return the update of each parameter, given one for each tensor of :meth:`_lists`."""
        return updates if self.flat is None else self._flat_groups[group["params"][0]].split(updates, params)

    def _flat_group(self, group: dict[str, Any], keys: Sequence[str]) -> FlatGroup:
        assert self.flat is not None
        first = group["params"][0]  # loading a state dict replaces the group's dictionary
        if first not in self._flat_groups:
            self._flat_groups[first] = FlatGroup(self.flat, group["params"], keys)
        return self._flat_groups[first]


def flatten_parameters(optimizer: Optimizer) -> FlatParameters:
    """Move the parameters of ``optimizer`` into one buffer, which it uses if it can."""
    flat = FlatParameters([p for group in optimizer.param_groups for p in group["params"]])
    if isinstance(optimizer, FlatOptimizer):
        optimizer.flat = flat
    return flat
