"""ResNets for small pictures: torchvision's, with a 3x3 first convolution and no max-pooling.

Shapes: B batch, C channels, H and W sides of the picture, K classes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def res18(*, img_size: int, in_chans: int, num_classes: int) -> nn.Module:
    """Build the CIFAR ResNet-18 of He et al. 2016 (arXiv 1512.03385), widths 64 to 512.

    The module maps float ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``. The map keeps the picture's size in
    the first stage and is halved by each of the other three.

    Args:
        img_size: H and W, in pixels; any will do, as the last map is averaged.
        in_chans: C.
        num_classes: K.
    """
    return _cifar_resnet(BasicBlock, [2, 2, 2, 2], in_chans, num_classes)


def _cifar_resnet(block: Any, layers: list[int], in_chans: int, num_classes: int) -> nn.Module:
    """Return torchvision's ResNet of these blocks with its first convolution and pooling cut to small pictures."""
    model: nn.Module = ResNet(block, layers, num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_chans, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    model.maxpool = nn.Identity()
    return model
