"""``--compile``: the network's training step through torch.compile, or as it is where that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from vitctl import devices
from vitctl.training.session import Session, untouched


def compile_network(session: Session, message: Callable[[str], None]) -> None:
    """Compile forward and backward for whole micro-batches, before the first step.

    What training computes from is left as it was: weights, buffers and random states are restored. Pieces of another size
    (the last of an epoch) and evaluation run uncompiled: one compilation, and ``vitctl eval`` gives the same figures.

    Args:
        session: whose :attr:`~vitctl.training.session.Session.forward` and ``compile_time`` are set.
        message: told that it begins, and the time it took; or, once, why it did not work, and the run goes on without.
    """
    model, device = session.model, session.device
    count = min(session.micro_batch, session.batches.count)
    shape = session.dataset.train.images.shape[1:]
    images = torch.zeros((count, *shape), dtype=torch.uint8, device=device)
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a failure is told below, in one sentence
    message("compiling …")
    start = time.perf_counter()
    try:
        compiled = torch.compile(model, dynamic=False)
        session.train_mode()
        with untouched(session):
            with session.autocast():
                logits = compiled(session.normalize(images))
            logits.float().sum().backward()
            devices.synchronize(device)
    except Exception as error:  # noqa: BLE001  (a compiler, its backend and the compiled code raise almost anything)
        torch._dynamo.reset()
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        message(f"--compile does not work here ({type(error).__name__}: {reason}); going on without")
    else:
        session.compile_time = time.perf_counter() - start
        message(f"compiled in {session.compile_time:.1f} s, which no other figure includes but the total time")

        def forward(x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = compiled(x) if len(x) == count else model(x)
            return logits

        session.forward = forward
    finally:
        logger.setLevel(level)
