"""``simplevit``: timm's Vision Transformer with a fixed position embedding and without a class token.

Beyer et al. 2022, arXiv 2205.01580.

Shapes: B batch, C channels, H and W image height and width, P patch size, N tokens, D token width, h heads, d head
width, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitctl.models.vit import Block, PatchTokens, SelfAttention
from vitctl.models.weights import init_preserving_scale, init_weights, sincos_positions


class PositionedPatchTokens(PatchTokens):
    """Patch embedding plus a fixed sin-cos position embedding: float ``[B, C, H, W]`` to ``[B, N, D]``.

    Args:
        embed_dim: D.
        **more: further arguments of :class:`vitctl.models.vit.PatchTokens`.
    """

    positions: Tensor

    def __init__(self, *, embed_dim: int, **more: Any) -> None:
        super().__init__(embed_dim=embed_dim, **more)
        self.register_buffer("positions", sincos_positions(self.grid_size[0], embed_dim), persistent=False)  # [N, D]

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[B, N, D]``."""
        tokens = super().forward(x)
        return tokens + self.positions.to(tokens.dtype)


def simplevit(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    head_dim: int,
    mlp_ratio: float,
    dropout: float,
    drop_path_rate: float,
    init: str,
) -> nn.Module:
    """Build the simplified Vision Transformer of Beyer et al. 2022 with the architecture of vit-pytorch's.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D, a multiple of 4.
        depth: number of blocks.
        num_heads: h.
        head_dim: d; ``h * d`` may differ from D.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.
        init: ``vit`` (linear layers: normal with std 0.02; patch projection: std that preserves the scale of the
            pixels) or ``predecessor`` (torch's default for linear layers).

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``. The head's input is the normalised mean of the
        tokens.
    """
    attention: Any = partial(
        SelfAttention, num_heads=num_heads, attn_head_dim=head_dim, proj_drop=dropout, proj_bias=False
    )
    block: Any = partial(Block, attention)
    model = VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        mlp_ratio=mlp_ratio,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path_rate,
        class_token=False,
        pos_embed="none",
        global_pool="avg",
        fc_norm=True,
        weight_init="skip",
        norm_layer=nn.LayerNorm,
        embed_layer=PositionedPatchTokens,
        block_fn=block,
    )
    init_weights(model, init)
    if init == "vit":
        init_preserving_scale(model.get_parameter("patch_embed.proj.weight"))
    return model
