"""What the tests against other people's networks share."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

Names = list[tuple[str, str]]
"""Patterns of our parameters' names, and what stands in their place in the other network."""


def stirred(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that none is 0 or 1 by chance of the initialisation.

    The statistics of BatchNorm move too.
    """
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += (0.02 if parameter.ndim > 1 else 0.2) * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer += 0.2 * torch.rand_like(buffer)
    return model


def renamed(name: str, names: Names) -> str:
    """Return what the other network calls our parameter ``name``."""
    for ours, theirs in names:
        name = re.sub(ours, theirs, name)
    return name


def copy_weights(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Give ``theirs`` the weights of ``ours``, all of them, and nothing else."""
    expected = theirs.state_dict()
    state = {renamed(name, names): tensor for name, tensor in ours.state_dict().items()}
    assert state.keys() == expected.keys(), state.keys() ^ expected.keys()
    theirs.load_state_dict({name: tensor.reshape(expected[name].shape) for name, tensor in state.items()})


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, names: Names, x: Tensor) -> None:
    """Check the gradients of a random combination of the logits, parameter by parameter, in eval mode."""
    weights = torch.randn(len(x), 10, generator=torch.Generator().manual_seed(3))
    (ours(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[renamed(name, names)].grad
        assert gradient is not None and parameter.grad is not None, name
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, gradient.view_as(parameter), atol=2e-5, rtol=1e-4)
