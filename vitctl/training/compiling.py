"""``--compile``: compile the network for training with torch.compile, or train without if that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from vitctl import devices
from vitctl.training.session import Session, untouched


def compile_network(session: Session, message: Callable[[str], None]) -> None:
    """Compile forward and backward passes for full micro-batches, before the first step.

    Weights, buffers and random states are left unchanged. Micro-batches of another size, as at the end of an epoch, and
    evaluation run uncompiled, so that there is only one compilation and ``vitctl eval`` gives the same figures.

    Args:
        session: its ``forward`` and ``compile_time`` are set, unless compilation fails.
        message: called when compilation starts, and with its duration or the reason why it failed.
    """
    model, device = session.model, session.device
    count = min(session.micro_batch, session.batches.count)
    shape = session.dataset.train.images.shape[1:]
    images = torch.zeros((count, *shape), dtype=torch.uint8, device=device)
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a failure is reported below, in one sentence
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
        message(f"warning: --compile failed, training without it ({type(error).__name__}: {reason})")
    else:
        session.compile_time = time.perf_counter() - start
        message(f"compiled in {session.compile_time:.1f} s (included only in the total time)")

        def forward(x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = compiled(x) if len(x) == count else model(x)
            return logits

        session.forward = forward
    finally:
        logger.setLevel(level)
