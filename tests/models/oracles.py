"""Helpers for tests that compare networks with other implementations."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Names = list[tuple[str, str]]
"""Patterns of our parameter names, and their replacements in the other network."""


def perturbed(model: nn.Module) -> nn.Module:
    """Add noise to all parameters and BatchNorm statistics, as an initial 0 or 1 could hide a difference."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += (0.02 if parameter.ndim > 1 else 0.2) * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer += 0.2 * torch.rand_like(buffer)
    return model


def renamed(name: str, names: Names) -> str:
    """Return the other network's name of our parameter ``name``."""
    for ours, theirs in names:
        name = re.sub(ours, theirs, name)
    return name


def copy_weights(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Copy the weights of ``ours`` to ``theirs``, and check that the two have the same tensors."""
    expected = theirs.state_dict()
    state = {renamed(name, names): tensor for name, tensor in ours.state_dict().items()}
    assert state.keys() == expected.keys(), state.keys() ^ expected.keys()
    theirs.load_state_dict({name: tensor.reshape(expected[name].shape) for name, tensor in state.items()})


def records_stem(state: dict[str, Tensor], x: Tensor, *, groups: int, stride: int = 1) -> Tensor:
    """Return the map of the speed records' convolutions in training mode, in plain functions.

    Args:
        state: state dict of a network whose ``stem`` is a ``ConvStem``.
        x: normalised images, float ``[B, C, H, W]``.
        groups: number of groups of convolutions.
        stride: stride of the whitened patches.
    """
    x = F.gelu(F.conv2d(x, state["stem.whiten.weight"], state["stem.whiten.bias"], stride=stride))
    for i in range(groups):
        x = records_group(state, x, f"stem.groups.{i}")
    return x


def records_group(state: dict[str, Tensor], x: Tensor, group: str) -> Tensor:
    """Return the map of one group of convolutions, whose weights have the prefix ``group``."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() + state[f"{name}.bias"].view(1, -1, 1, 1)

    x = F.conv2d(x, state[f"{group}.conv1.weight"], padding=1)
    x = F.max_pool2d(x, 2) if x.shape[-1] > 1 else x
    x = F.gelu(normalised(x, f"{group}.norm1"))
    return F.gelu(normalised(F.conv2d(x, state[f"{group}.conv2.weight"], padding=1), f"{group}.norm2"))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, names: Names, x: Tensor) -> None:
    """Compare the gradients of a random combination of the logits, parameter by parameter."""
    weights = torch.randn(len(x), 10, generator=torch.Generator().manual_seed(3))
    (ours(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[renamed(name, names)].grad
        assert gradient is not None and parameter.grad is not None, name
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, gradient.view_as(parameter), atol=2e-5, rtol=1e-4)
