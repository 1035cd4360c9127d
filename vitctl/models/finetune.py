"""timm's Vision Transformers as they come, to be started from pretrained weights.

Shapes: B batch, C channels, K classes.
"""

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
    """Build timm's Vision Transformer, with timm's initialisation.

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``; the head sees the class
    token. :mod:`vitctl.models.pretrained` gives it pretrained weights, resampling positions and patches to the size.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: side of a patch, which divides ``img_size``.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads; divides ``embed_dim``.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        dropout: after each projection of a block, twice in its MLP.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
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
    nn.init.trunc_normal_(model.get_parameter("head.weight"), std=0.02)  # timm's begins at zero
    return model
