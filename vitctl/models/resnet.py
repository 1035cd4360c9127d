"""ResNets for small images: timm's, but with a 3x3 first convolution and without max-pooling."""

from __future__ import annotations

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from vitctl.models.weights import init_weights, set_batchnorm

LAYERS: dict[int, tuple[Any, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""For each depth, the type of block and the number of blocks in the four stages."""


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
    bn_momentum: float = 0.1,
    bn_scale: bool = True,
) -> nn.Module:
    """Build a ResNet of He et al. 2016 (arXiv 1512.03385) for small images.

    The first stage works at the image's size; each of the other three halves it.

    Args:
        layers: 18, 34, 50 or 101.
        img_size: height and width of the images, in pixels; not used, as the last map is averaged.
        in_chans: channels of the images.
        num_classes: number of logits.
        width: channels of the first stage, doubled in each later stage; for bottleneck blocks, their inner channels.
        dropout: dropout rate before the head.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.
        init: ``kaiming`` (He et al. 2015, with ``fan_out``) or ``predecessor`` (torch's default for all layers).
        bn_momentum: weight of a new batch in BatchNorm's running statistics.
        bn_scale: whether BatchNorm's scale is learned; otherwise, it is 1.

    Returns:
        A module that maps float ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``.
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
    set_batchnorm(model, momentum=bn_momentum, scale=bn_scale)
    if init == "predecessor":
        init_weights(model, init)
    else:
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
