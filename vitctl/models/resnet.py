"""ResNets for small images: timm's, with a 3x3 first convolution and no max-pooling.

Shapes: B batch, C channels, H and W sides of the image, K classes.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from vitctl.models.weights import draw_weights

LAYERS: dict[int, tuple[Any, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""For each depth, its block and how many of them the four stages have."""


def resnet(
    *,
    layers: int,
    img_size: int,
    in_chans: int,
    num_classes: int,
    width: int,
    dropout: float,
    drop_path_rate: float,
    init: str,
) -> nn.Module:
    """Build a CIFAR ResNet of He et al. 2016 (arXiv 1512.03385).

    The module maps float ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``. The map keeps the image's size in
    the first stage and is halved by each of the other three.

    Args:
        layers: 18, 34, 50 or 101.
        img_size: H and W, in pixels; any will do, as the last map is averaged.
        in_chans: C.
        num_classes: K.
        width: channels of the first stage (inside its blocks, where these widen); each stage doubles them.
        dropout: before the head.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        init: ``kaiming`` (He et al. 2015, over what goes out) or ``predecessor`` (torch's own layers).
    """
    block, counts = LAYERS[layers]
    model: nn.Module = ResNet(
        block,
        counts,
        num_classes=num_classes,
        in_chans=in_chans,
        channels=tuple(width << i for i in range(4)),
        drop_rate=dropout,
        drop_path_rate=drop_path_rate,
        zero_init_last=False,
    )
    model.conv1 = nn.Conv2d(in_chans, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    if init == "predecessor":
        draw_weights(model, init)
    else:
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
