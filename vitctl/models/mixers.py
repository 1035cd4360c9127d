"""Mixers, which have no attention, based on timm's classes: ``mlpmixer`` and ``convmixer``.

Shapes: B batch, C channels, H and W image height and width, P patch size, N tokens, D token width, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from vitctl.models.weights import init_weights


class SameConv2d(nn.Conv2d):
    """A convolution that preserves the map's size even with an even kernel size, by an extra zero at bottom and right.

    torch's ``padding="same"`` computes the same, but warns about the copy that it makes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[B, D, H, W]`` to ``[B, D, H, W]``."""
        before, after = (self.kernel_size[0] - 1) // 2, self.kernel_size[0] // 2
        return F.conv2d(F.pad(input, (before, after, before, after)), self.weight, self.bias, groups=self.groups)


def mlpmixer(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    token_ratio: float,
    mlp_ratio: float,
    dropout: float,
    drop_path_rate: float,
    init: str,
) -> nn.Module:
    """Build an MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601).

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D.
        depth: number of blocks.
        token_ratio: hidden width of the token MLP divided by N.
        mlp_ratio: hidden width of the channel MLP divided by D.
        dropout: dropout rate after each layer of the MLPs.
        drop_path_rate: chance that an image skips a branch in training, the same in all blocks.
        init: ``vit`` (linear layers: normal with std 0.02) or ``predecessor`` (torch's default for all layers).

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``. The head's input is the mean of the normalised
        tokens.
    """
    tokens = (img_size // patch_size) ** 2
    model: nn.Module = MlpMixer(
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        patch_size=patch_size,
        num_blocks=depth,
        embed_dim=embed_dim,
        # timm multiplies both ratios by D and rounds down; the added half prevents a loss to rounding errors.
        mlp_ratio=((int(tokens * token_ratio) + 0.5) / embed_dim, (int(embed_dim * mlp_ratio) + 0.5) / embed_dim),
        norm_layer=nn.LayerNorm,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path_rate,
    )
    init_weights(model, init)
    return model


def convmixer(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    kernel_size: int,
    dropout: float,
) -> nn.Module:
    """Build a ConvMixer (Trockman and Kolter 2022, arXiv 2201.09792) with torch's default initial weights.

    Args:
        img_size: H and W, in pixels; not used.
        in_chans: C.
        num_classes: K.
        patch_size: P.
        embed_dim: D.
        depth: number of blocks.
        kernel_size: kernel size of the depthwise convolutions.
        dropout: dropout rate before the head.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``. The head's input is the mean of the last map.
    """
    model: nn.Module = ConvMixer(
        embed_dim,
        depth,
        kernel_size=kernel_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        drop_rate=dropout,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.padding == "same":
            if kernel_size % 2:
                module.padding = (kernel_size // 2, kernel_size // 2)
            else:
                module.__class__ = SameConv2d
    return model
