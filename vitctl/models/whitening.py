"""A first convolution that whitens patches of the images, with fixed filters from the training images.

Shapes: B batch, C channels, H and W image height and width, k side of a patch, D = C k^2 values of a patch, h and w
height and width of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EIGENVALUE_FLOOR = 5e-4
"""Added to each variance, so that directions in which images hardly vary are not amplified more than 45-fold."""

PIECE = 32
"""Number of images processed at a time, as the patches of a few small images stay in the cache."""


class WhitenedConv(nn.Conv2d):
    """Convolution without padding whose filters are fixed: float ``[B, C, H, W]`` to ``[B, 2 D, h, w]``.

    :func:`whiten` sets the filters; until then, they are random. The bias is trained, from zero.

    Page 2019 (https://myrtle.ai/learn/how-to-train-your-resnet-8-bag-of-tricks) introduced the layer. In
    Jordan's ablation (https://github.com/KellerJordan/cifar10-zoo), it saves more than a third of the operations that
    CIFAR-10 takes to 94 %.

    Args:
        in_chans: C.
        kernel_size: k.
        stride: distance of neighbouring patches, in pixels; ``h = (H - k) // stride + 1``, and w likewise.
    """

    def __init__(self, in_chans: int, kernel_size: int = 2, stride: int = 1) -> None:
        super().__init__(in_chans, 2 * in_chans * kernel_size**2, kernel_size, stride)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.weight.requires_grad_(False)

    def parameter_roles(self) -> dict[str, str]:
        """Return the role of the bias for ``--lr-scale``."""
        return {"bias": "whitening_bias"}


def whiten(model: nn.Module, images: Tensor) -> None:
    """Set the filters of each :class:`WhitenedConv` of ``model`` from normalised images, float ``[B, C, H, W]``."""
    for module in model.modules():
        if isinstance(module, WhitenedConv):
            with torch.no_grad():
                module.weight.copy_(whitening_filters(images, module.kernel_size[0]))


def whitening_filters(images: Tensor, kernel_size: int) -> Tensor:
    """Return filters whose outputs are uncorrelated over the patches of ``images``, each with a variance of at most 1.

    They are the eigenvectors of the patches' covariance, divided by the root of their eigenvalue plus
    :data:`EIGENVALUE_FLOOR`, in the order of the eigenvalues, and then the same filters with the opposite sign. The
    value of largest magnitude in each eigenvector is positive; among equal magnitudes, the first.

    Args:
        images: normalised images, float ``[B, C, H, W]``, on the CPU.
        kernel_size: k, at most H and W.

    Returns:
        float64 ``[2 D, C, k, k]``.
    """
    values, vectors = torch.linalg.eigh(patch_covariance(images, kernel_size))
    rows = vectors.T  # [D, D], an eigenvector in each row
    magnitudes = rows.abs()
    # The tolerance keeps rounding from deciding between values of equal magnitude.
    largest = (magnitudes > magnitudes.amax(dim=1, keepdim=True) - 1e-6).int().argmax(dim=1, keepdim=True)
    rows = rows * rows.gather(1, largest).sign()
    filters = rows / (values.clamp(min=0) + EIGENVALUE_FLOOR).sqrt()[:, None]
    return torch.cat((filters, -filters)).view(-1, images.shape[1], kernel_size, kernel_size)  # [2 D, C, k, k]


def patch_covariance(images: Tensor, kernel_size: int) -> Tensor:
    """Return the covariance of all ``kernel_size``-square patches of ``images``, float64 ``[D, D]``.

    The values of a patch are in the order channel, row, column. Arguments are as for :func:`whitening_filters`.
    """
    _, channels, height, width = images.shape
    rows, columns = height - kernel_size + 1, width - kernel_size + 1
    products = sums = torch.zeros((), dtype=torch.float64)
    origin = images[:1, :, :1, :1].double()  # less it, constant images are exactly 0, as is their covariance
    for piece in torch.split(images, PIECE):
        planes = (piece.double() - origin).transpose(0, 1)  # [C, B, H, W]
        shifted = [planes[:, :, y : y + rows, x : x + columns] for y in range(kernel_size) for x in range(kernel_size)]
        values = torch.stack(shifted, dim=1).reshape(channels * kernel_size**2, -1)  # [D, patches]
        products = products + values @ values.T
        sums = sums + values.sum(dim=1)
    count = len(images) * rows * columns
    mean = sums / count
    return products / count - mean[:, None] * mean
