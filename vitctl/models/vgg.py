"""VGG with BatchNorm for small images: torchvision's convolutions, and a single linear layer as the head.

Shapes: B batch, C channels, H and W image height and width, D channels of the last map, K classes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from vitctl.models.weights import init_weights, set_batchnorm

STAGES = (2, 2, 4, 4, 4)
"""Number of convolutions in each stage of VGG-19; max-pooling follows each stage."""


class VGG(nn.Module):
    """VGG: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        features: layers from the image to the last map.
        embed_dim: D.
        num_classes: K.
        dropout: dropout rate before the head.
    """

    def __init__(self, features: nn.Sequential, *, embed_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.head_drop = nn.Dropout(dropout)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        logits: Tensor = self.head(self.head_drop(self.features(x).mean(dim=(2, 3))))  # from [B, D]
        return logits

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function that maps a parameter's name to its depth, for layer-wise learning-rate decay."""
        convolutions = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]

        def layer(name: str) -> float:
            if not name.startswith("features."):
                return math.inf
            return bisect.bisect(convolutions, int(name.split(".")[1]))

        return layer


def vgg(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    width: int,
    dropout: float,
    init: str,
    bn_momentum: float = 0.1,
    bn_scale: bool = True,
) -> nn.Module:
    """Build a VGG-19 with BatchNorm (Simonyan and Zisserman 2015, arXiv 1409.1556).

    Each stage ends with max-pooling, except on a map of one pixel. The last map is averaged.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        width: channels of the first stage, doubled in each of the next three.
        dropout: dropout rate before the head.
        init: ``kaiming`` (He et al. 2015, with ``fan_out``) or ``predecessor`` (torch's default for all layers).
        bn_momentum: weight of a new batch in BatchNorm's running statistics.
        bn_scale: whether BatchNorm's scale is learned; otherwise, it is 1.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
    """
    plan: list[str | int] = []
    for stage, count in enumerate(STAGES):
        plan += [width << min(stage, 3)] * count + ["M"]
    features = make_layers(plan, batch_norm=True)
    first = features[0]
    assert isinstance(first, nn.Conv2d)
    features[0] = nn.Conv2d(in_chans, first.out_channels, kernel_size=3, padding=1)
    side = img_size
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            if side == 1:
                features[i] = nn.Identity()  # keeps the names of the layers independent of the image size
            side = max(1, side // 2)
    model = VGG(features, embed_dim=width << 3, num_classes=num_classes, dropout=dropout)
    set_batchnorm(model, momentum=bn_momentum, scale=bn_scale)
    if init == "predecessor":
        init_weights(model, init)
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
