"""Comparison of a device's arithmetic with that of a CPU, in the shapes of a training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitctl import devices
from vitctl.training.session import Session, piece_sizes

TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1, "fp16": 2e-2}
"""Largest relative difference (in Euclidean norm) of logits and of gradients from those of fp32 on a CPU."""


def arithmetic(session: Session) -> str:
    """Return the key of :data:`TOLERANCES` for the forward pass of a session."""
    if session.precision == "fp32" and devices.uses_tf32(session.device, session.config.precision):
        return "tf32"
    return session.precision


def step_batch(session: Session) -> tuple[Tensor, Tensor]:
    """Return the images of a training step without augmentation, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``."""
    examples = session.splits.train.examples
    index = session.splits.train.index[: session.batches.batch_size]
    return examples.images[index], examples.labels[index]


def logits_and_gradients(session: Session, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the gradients of all parameters, each as one flat float64 tensor on the CPU.

    The batch is cut into micro-batches as in a training step, because some back ends compute wrongly only in certain
    shapes. The network computes with the type of its parameters, in the mode that the caller has set, and uncompiled.

    Args:
        session: provides the network, its precision and its micro-batches.
        images: uint8 ``[B, C, H, W]``, on the CPU.
        labels: int64 ``[B]``, on the CPU.
    """
    device, model = session.device, session.model
    trained = [p for p in model.parameters() if p.requires_grad]
    dtype = trained[0].dtype
    model.zero_grad()
    logits = []
    sizes = piece_sizes(len(images), session.config.bs, session.micro_batch, joined=session.batches.drop_single)
    for piece, target in zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True):
        x = session.normalize(devices.to_device(piece, device)).to(dtype)
        with session.autocast():
            out = model(x)
        out = out.to(torch.promote_types(dtype, torch.float32))
        loss = F.cross_entropy(out, devices.to_device(target, device), reduction="sum") / len(images)
        torch.autograd.backward(loss)
        logits.append(out.detach().cpu())
    grads = [p.grad.cpu().flatten() for p in trained if p.grad is not None]
    model.zero_grad()
    return torch.cat(logits).double().flatten(), torch.cat(grads).double()


def relative_difference(ours: Tensor, exact: Tensor) -> float:
    """Return the Euclidean norm of the difference, relative to that of ``exact``; both are on the CPU."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))
