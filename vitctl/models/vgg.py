"""VGG with BatchNorm for small images: torchvision's convolutions, one linear layer for a head.

Shapes: B batch, C channels, H and W sides of the image, D channels of the last map, K classes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from vitctl.models.weights import draw_weights

STAGES = (2, 2, 4, 4, 4)
"""Convolutions of each stage of VGG-19; a max-pooling follows each."""


class VGG(nn.Module):
    """Float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        features: from the image to the last map.
        embed_dim: D.
        num_classes: K.
        dropout: before the head.
    """

    def __init__(self, features: nn.Sequential, *, embed_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.head_drop = nn.Dropout(dropout)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of the images ``[B, C, H, W]``."""
        logits: Tensor = self.head(self.head_drop(self.features(x).mean(dim=(2, 3))))  # of [B, D]
        return logits

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from a parameter's name to its layer, for layer-wise learning rates."""
        convolutions = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]

        def layer(name: str) -> float:
            if not name.startswith("features."):
                return math.inf
            return bisect.bisect(convolutions, int(name.split(".")[1]))

        return layer


def vgg(*, img_size: int, in_chans: int, num_classes: int, width: int, dropout: float, init: str) -> nn.Module:
    """Build a VGG-19 with BatchNorm (Simonyan and Zisserman 2015, arXiv 1409.1556).

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``. Each stage ends by
    halving the map, as long as it has more than one pixel; what is left is averaged.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        width: channels of the first stage; the next three double them.
        dropout: before the head.
        init: ``kaiming`` (He et al. 2015, over what goes out) or ``predecessor`` (torch's own layers).
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
                features[i] = nn.Identity()  # in its place, so that the names are those of every size
            side = max(1, side // 2)
    model = VGG(features, embed_dim=width << 3, num_classes=num_classes, dropout=dropout)
    if init == "predecessor":
        draw_weights(model, init)
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
