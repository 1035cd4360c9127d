"""timm's unmodified Vision Transformers, to fine-tune from pretrained weights."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn


def vit_timm(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
    drop_path_rate: float,
) -> nn.Module:
    """Build timm's Vision Transformer with a class token and timm's initial weights.

    :mod:`vitctl.models.pretrained` loads pretrained weights into it.

    Args:
        img_size: height and width of the images, in pixels.
        in_chans: channels of the images.
        num_classes: number of logits.
        patch_size: patch size in pixels, which divides ``img_size``.
        embed_dim: token width.
        depth: number of blocks.
        num_heads: number of attention heads, which divides ``embed_dim``.
        mlp_ratio: hidden width of the MLP divided by ``embed_dim``.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.

    Returns:
        A module that maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.
    """
    model: nn.Module = VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path_rate,
    )
    nn.init.trunc_normal_(model.get_parameter("head.weight"), std=0.02)  # timm's head starts at zero
    return model
