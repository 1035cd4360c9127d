"""The convolutional network of the CIFAR-10 speed records, and its convolutions as a stem for other networks.

Keller Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498
(https://github.com/KellerJordan/cifar10-airbench), after tysam-code's hlb-CIFAR10 and Page 2019.

Shapes: B batch, C channels, H and W image height and width, D channels of the last map, S its side, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vitctl.models.whitening import WhitenedConv

LOGIT_SCALE = 1 / 9
"""Factor of the logits, so that they are small at first."""


class Conv(nn.Conv2d):
    """3x3 convolution without bias that keeps the map's size.

    It starts as the identity (dirac initialisation): output channel i is input channel i. Further output channels have
    torch's initial weights.
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, out_width, kernel_size=3, padding=1, bias=False)
        nn.init.dirac_(self.weight[: min(width, out_width)])


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with a trained bias and a scale that stays 1.

    The epsilon is torch's: with the records' 1e-12, a network trained on constant images overflows on all others.
    """

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, momentum=momentum)
        self.weight.requires_grad_(False)


class ConvGroup(nn.Module):
    """Two convolutions, with max-pooling after the first: ``[B, width, H, W]`` to ``[B, out_width, H // 2, W // 2]``.

    Args:
        width: channels of the input.
        out_width: channels of the output.
        pool: whether to pool; False keeps H and W.
        bn_momentum: weight of a batch in BatchNorm's running statistics.
    """

    def __init__(self, width: int, out_width: int, *, pool: bool, bn_momentum: float) -> None:
        super().__init__()
        self.conv1 = Conv(width, out_width)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm1 = BatchNorm(out_width, bn_momentum)
        self.conv2 = Conv(out_width, out_width)
        self.norm2 = BatchNorm(out_width, bn_momentum)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, ``[B, out_width, H // 2, W // 2]``."""
        x = self.act(self.norm1(self.pool(self.conv1(x))))
        out: Tensor = self.act(self.norm2(self.conv2(x)))
        return out


class ConvStem(nn.Module):
    """A whitening convolution and groups of convolutions: float ``[B, C, H, W]`` to ``[B, D, S, S]``.

    Each group halves the map, rounding down, unless it has a single pixel: 32 px become 31, 15, 7 and 3.

    Args:
        img_size: H and W, in pixels; at least ``kernel_size``.
        in_chans: C.
        widths: channels of each group, up to D.
        kernel_size: side of the whitened patches.
        stride: distance of neighbouring patches.
        bn_momentum: weight of a batch in BatchNorm's running statistics.

    Attributes:
        side: S.
    """

    def __init__(
        self,
        *,
        img_size: int,
        in_chans: int,
        widths: Sequence[int],
        kernel_size: int = 2,
        stride: int = 1,
        bn_momentum: float = 0.4,
    ) -> None:
        super().__init__()
        self.whiten = WhitenedConv(in_chans, kernel_size, stride)
        self.act = nn.GELU()
        self.groups = nn.Sequential()
        self.side = (img_size - kernel_size) // stride + 1
        for width, out_width in pairwise([self.whiten.out_channels, *widths]):
            self.groups.append(ConvGroup(width, out_width, pool=self.side > 1, bn_momentum=bn_momentum))
            self.side = max(1, self.side // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, ``[B, D, S, S]``."""
        out: Tensor = self.groups(self.act(self.whiten(x)))
        return out


class Airbench(nn.Module):
    """The records' network: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        stem: maps images to ``[B, D, S, S]``, of which the head sees the largest value of each channel.
        embed_dim: D.
        num_classes: K.
    """

    def __init__(self, stem: ConvStem, *, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.pool = nn.MaxPool2d(stem.side)
        self.head = nn.Linear(embed_dim, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        x = self.pool(self.stem(x)).flatten(1)  # [B, D]
        logits: Tensor = self.head(x) * LOGIT_SCALE
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {"stem": r"^stem\.whiten", "blocks": r"^stem\.groups\.(\d+)"}


def airbench(*, img_size: int, in_chans: int, num_classes: int, width: int, width_ratio: int) -> nn.Module:
    """Build the network of airbench94.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        width: channels of the first group.
        width_ratio: channels of the two other groups divided by ``width``.

    Returns:
        A module that maps float ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``.
    """
    wide = width * width_ratio
    stem = ConvStem(img_size=img_size, in_chans=in_chans, widths=(width, wide, wide))
    return Airbench(stem, embed_dim=wide, num_classes=num_classes)
