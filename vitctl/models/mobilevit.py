"""MobileViT: inverted residual blocks, and blocks with attention between the patches of a feature map.

Mehta and Rastegari 2022, arXiv 2110.02178. The widths are the paper's. The attention heads have width 8, as in the
original scripts; in the paper and in timm, the widths of the heads add up to the token width.

Shapes: B batch, C channels, H and W height and width of a map, D token width, N patches of a map, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vitctl.models.vit import Block, SelfAttention

HEADS, HEAD_DIM, DEPTHS, PATCH = 4, 8, (2, 4, 3), 2

WIDTHS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "xxs": (2, (16, 16, 24, 48, 64, 80, 320), (64, 80, 96), 2),
    "xs": (4, (16, 32, 48, 64, 80, 96, 384), (96, 120, 144), 2),
    "s": (4, (16, 32, 64, 96, 128, 160, 640), (144, 192, 240), 2),
}
"""For each variant: expansion of the residual blocks; channels of the stem, of the five stages, and before the head;
token width in the last three stages; MLP ratio in the first of these (it is 4 in the other two)."""

_conv = partial(Conv2dNormActivation, activation_layer=nn.SiLU)


class InvertedResidual(nn.Module):
    """Inverted residual block (Sandler et al. 2018): ``[B, C, H, W]`` to ``[B, C', H / s, W / s]``.

    Args:
        before: C.
        after: C'.
        stride: s.
        expansion: ratio of the inner width to C.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.conv = nn.Sequential(
            _conv(before, wide, 1),
            _conv(wide, wide, 3, stride, groups=wide),
            Conv2dNormActivation(wide, after, 1, activation_layer=None),
        )
        self.has_skip = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        out: Tensor = self.conv(x)
        return x + out if self.has_skip else out


class MobileViTBlock(nn.Module):
    """Convolution, attention between patches, and a convolution of the result together with the input.

    Maps ``[B, C, H, W]`` to ``[B, C, H, W]``. Each pixel of a 2x2 patch attends to the pixels at the same position in
    the other patches. A map of odd size is resized to the next even size for the attention, as in the paper's code.

    Args:
        channels: C.
        dim: D.
        depth: number of transformer blocks.
        mlp_ratio: hidden width of their MLP divided by D.
        dropout: dropout rate after each of their projections.
    """

    def __init__(self, channels: int, dim: int, depth: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.conv_in = _conv(channels, channels, 3)
        self.widen = _conv(channels, dim, 1)
        attention = partial(SelfAttention, num_heads=HEADS, attn_head_dim=HEAD_DIM, proj_drop=dropout)
        block: Any = partial(
            Block, attention, dim=dim, mlp_ratio=mlp_ratio, proj_drop=dropout, drop_path=0.0, act_layer=nn.SiLU
        )
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.narrow = _conv(dim, channels, 1)
        self.conv_out = _conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        local = self.widen(self.conv_in(x))  # [B, D, H, W]
        side = local.shape[-1]
        tiled = -(-side // PATCH) * PATCH
        if tiled != side:
            local = F.interpolate(local, (tiled, tiled), mode="bilinear", align_corners=False)
        tokens = rearrange(local, "b d (y p) (x q) -> (b p q) (y x) d", p=PATCH, q=PATCH)  # [B * 4, N, D]
        tokens = self.blocks(tokens)
        attended = rearrange(tokens, "(b p q) (y x) d -> b d (y p) (x q)", p=PATCH, q=PATCH, y=tiled // PATCH)
        if tiled != side:
            attended = F.interpolate(attended, (side, side), mode="bilinear", align_corners=False)
        out: Tensor = self.conv_out(torch.cat((self.narrow(attended), x), dim=1))  # from [B, 2 * C, H, W]
        return out


class MobileViT(nn.Module):
    """MobileViT: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        stem: the first convolution.
        stages: the five stages.
        last: the 1x1 convolution before the head.
        embed_dim: channels of ``last``.
        num_classes: K.
    """

    def __init__(
        self, stem: nn.Module, stages: list[nn.Sequential], last: nn.Module, *, embed_dim: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.last = last
        self.head = nn.Linear(embed_dim, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        x = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)\.(\d+)", None), (r"^last", (99_999,))]}


def mobilevit(
    *, img_size: int, in_chans: int, num_classes: int, variant: str, reduction: int, dropout: float
) -> nn.Module:
    """Build a MobileViT for images of any size.

    Args:
        img_size: H and W, in pixels; not used, as the last map is averaged.
        in_chans: C.
        num_classes: K.
        variant: ``xxs``, ``xs`` or ``s``.
        reduction: image size divided by the size of the last map. The paper's 32 would reduce a 32-px image to one
            pixel. Smaller values replace the first strides of 2 by 1; the weights have the same shapes for all values.
        dropout: dropout rate after each projection of the transformer blocks.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
    """
    expansion, channels, dims, first_ratio = WIDTHS[variant]
    halvings = {4: 2, 8: 3, 16: 4, 32: 5}[reduction]
    strides = [1] * (5 - halvings) + [2] * halvings
    stem = _conv(in_chans, channels[0], 3, strides[0])
    small = channels[2]
    stages = [
        nn.Sequential(InvertedResidual(channels[0], channels[1], 1, expansion)),
        nn.Sequential(
            InvertedResidual(channels[1], small, strides[1], expansion),
            InvertedResidual(small, small, 1, expansion),
            InvertedResidual(small, small, 1, expansion),
        ),
    ]
    for i, (dim, depth) in enumerate(zip(dims, DEPTHS, strict=True)):
        ratio = first_ratio if i == 0 else 4
        stages.append(
            nn.Sequential(
                InvertedResidual(channels[2 + i], channels[3 + i], strides[2 + i], expansion),
                MobileViTBlock(channels[3 + i], dim, depth, ratio, dropout),
            )
        )
    last = _conv(channels[-2], channels[-1], 1)
    return MobileViT(stem, stages, last, embed_dim=channels[-1], num_classes=num_classes)
