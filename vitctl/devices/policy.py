"""What each back end must not be given, and what it likes, as data.

:func:`policy_of` is the only place that turns a device into decisions; all other code asks for the fields it needs. In
tests, :func:`imposed` sends tensors of one device down the branch of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class DevicePolicy:
    """Decisions for one back end.

    Attributes:
        backend: type of the device: ``cpu``, ``cuda`` or ``mps``.
        channels_last: images and convolutional networks may be in the channels-last memory format.
        contiguous: convolution, pooling, norms and attention compute correctly only with contiguous tensors.
        norms_constants: LayerNorm's parameters get correct gradients even if its input needs none.
        longest_reduction: most terms of a sum in the backward of a matrix product, such as images x tokens for a linear
            layer's weight; None for no limit.
        longest_batch: most images in one forward pass; None for no limit.
        precisions: values of ``--precision`` that compute correctly, whether or not this chip has instructions for them.
        compiles: ``--compile`` computes correctly.
        foreach: torch updates many tensors in a few kernels; without, parameters are flattened for that.
        free_reads: reading a value costs nothing, as nothing is queued.
        one_shape: each new shape costs memory, so all batches of a run have one.
        pinned_copies: copies from pinned memory may overlap with computing.
        one_pass: batches are computed in one piece, as the device is faster with much work at once.
        convolves_tokens: linear layers are faster as convolutions.
        draws_slowly: torch's dropout draws its random numbers slowly.
        half_attention: torch's fused attention is fast in half precision.
        threaded: the threads of this process compute the steps.
    """

    backend: str
    channels_last: bool = True
    contiguous: bool = False
    norms_constants: bool = True
    longest_reduction: int | None = None
    longest_batch: int | None = None
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    compiles: bool = True
    foreach: bool = True
    free_reads: bool = False
    one_shape: bool = False
    pinned_copies: bool = False
    one_pass: bool = True
    convolves_tokens: bool = False
    draws_slowly: bool = False
    half_attention: bool = True
    threaded: bool = False


CPU = DevicePolicy(
    backend="cpu",
    free_reads=True,
    one_pass=False,
    convolves_tokens=True,
    draws_slowly=True,
    half_attention=False,
    threaded=True,
)

CUDA = DevicePolicy(backend="cuda", pinned_copies=True)

MPS = DevicePolicy(
    backend="mps",
    channels_last=False,
    contiguous=True,
    norms_constants=False,
    longest_reduction=32_766,
    longest_batch=32_766,
    precisions=("fp32", "bf16"),
    compiles=False,
    foreach=False,
    one_shape=True,
)

OTHER = DevicePolicy(backend="other")
"""For other accelerators, and torch's ``meta`` device."""

POLICIES = {policy.backend: policy for policy in (CPU, CUDA, MPS)}

_imposed: DevicePolicy | None = None


def policy_of(device: torch.device) -> DevicePolicy:
    """Return the policy of a device."""
    return _imposed or POLICIES.get(device.type, OTHER)


@contextlib.contextmanager
def imposed(policy: DevicePolicy) -> Iterator[None]:
    """Use ``policy`` for all devices, for tests."""
    global _imposed
    before, _imposed = _imposed, policy
    try:
        yield
    finally:
        _imposed = before
