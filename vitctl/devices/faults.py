"""Known faults of PyTorch's back ends in what vitctl computes, as data.

Read in PyTorch's threads and sources up to :data:`READ`. :mod:`vitctl.devices.policy` avoids them, ``vitctl doctor``
prints them, and the tests in ``tests/devices/`` show that no path of vitctl enters them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]
"""Major and minor version of torch."""

READ: Version = (2, 14)
"""Newest version of torch whose faults were read; later ones may have fixed those that are open."""


@dataclass(frozen=True, kw_only=True)
class KnownFault:
    """Something that a back end computes wrongly, slowly or not at all.

    Attributes:
        key: stable name.
        problem: what goes wrong, and where.
        threads: numbers of issues and pull requests of github.com/pytorch/pytorch.
        remedy: how vitctl avoids it.
        backends: types of the affected devices.
        fixed: first version of torch without the fault; None if none is known.
        lasting: a property of the device, which no version of torch will change.
    """

    key: str
    problem: str
    threads: tuple[int, ...]
    remedy: str
    backends: tuple[str, ...] = ("mps",)
    fixed: Version | None = None
    lasting: bool = False

    @property
    def links(self) -> tuple[str, ...]:
        """Addresses of the threads."""
        return tuple(f"https://github.com/pytorch/pytorch/issues/{number}" for number in self.threads)

    def affects(self, torch_version: str, backend: str) -> bool | None:
        """Return whether a version of torch has the fault on a type of device.

        Args:
            torch_version: ``torch.__version__``.
            backend: type of the device, such as ``mps``.

        Returns:
            None if it is not known, because that version is newer than those that were read.
        """
        if backend not in self.backends:
            return False
        version = parse_version(torch_version)
        if self.lasting or (self.fixed or READ) > version:
            return True
        if self.fixed is not None:
            return False
        return True if version == READ else None


def parse_version(text: str) -> Version:
    """Return major and minor version of ``torch.__version__``, such as ``2.14.1+cpu`` or ``2.15.0a0+git1a2b3c4``."""
    found = re.match(r"(\d+)\.(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


FAULTS: tuple[KnownFault, ...] = (
    KnownFault(
        key="channels-last",
        problem="backward of pooling, BatchNorm, convolution or ReLU aborts or is wrong for channels-last tensors",
        threads=(175190, 189233, 188371, 193349, 107214),
        remedy="no tensor is channels-last on MPS",
    ),
    KnownFault(
        key="long-reduction",
        problem="matrix products over 32,767 or more terms are wrong on M1 and M2, as in weight gradients",
        threads=(177116, 193487, 183535, 195163, 195012),
        remedy="micro-batches are so small that no sum has more than 32,766 terms",
    ),
    KnownFault(
        key="large-batch",
        problem="linear layers and convolution gradients are wrong for more than 65,535 images or sequences",
        threads=(189495, 189496, 96225, 193577),
        remedy="batches in training and evaluation have at most 32,766 images",
    ),
    KnownFault(
        key="short-query",
        problem="attention is wrong for permuted or few queries with heads of width 64 or more, and for some masks",
        threads=(181133, 181151, 163597, 174861, 184180, 176767, 195910),
        remedy="queries, keys, values and masks are contiguous",
    ),
    KnownFault(
        key="fp16-scaling",
        problem="fused Adam ignores the scale of fp16 gradients, and GradScaler can set gradients to zero",
        threads=(186360, 184286),
        remedy="--precision fp16 is refused on MPS",
    ),
    KnownFault(
        key="frozen-layer-norm",
        problem="LayerNorm's parameter gradients are wrong if its input needs no gradient",
        threads=(183825, 183893),
        remedy="the gradient of LayerNorm's input is always computed, also for the first layer of vit_small",
        fixed=(2, 13),
    ),
    KnownFault(
        key="compile",
        problem="torch.compile computes wrong sums and LayerNorms",
        threads=(170360, 191976),
        remedy="--compile is refused on MPS",
    ),
    KnownFault(
        key="asynchronous-copy",
        problem="copies with non_blocking=True read memory that was reused in the meantime",
        threads=(189690, 139550),
        remedy="copies to MPS are synchronous",
    ),
    KnownFault(
        key="varying-shapes",
        problem="memory grows with each new shape of a tensor, invisibly to torch's counters",
        threads=(132596, 152550, 181213, 164299),
        remedy="all batches of a run have one shape",
    ),
    KnownFault(
        key="float64",
        problem="float64 tensors are not supported",
        threads=(142397,),
        remedy="float64 is used only on the CPU",
        lasting=True,
    ),
    KnownFault(
        key="slow-updates",
        problem="_foreach functions run one kernel per tensor, and attention in training is not fused",
        threads=(181729, 182746, 127242),
        remedy="updates run on flattened parameters or in torch's fused kernels",
    ),
    KnownFault(
        key="fallback",
        problem="PYTORCH_ENABLE_MPS_FALLBACK has no effect once torch is imported",
        threads=(86195,),
        remedy="all operations of vitctl have kernels for MPS, so the variable is not needed",
    ),
)
"""The known faults, most dangerous first."""
