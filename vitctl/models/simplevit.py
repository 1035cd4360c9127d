"""A Vision Transformer with fixed positions, no class token and no dropout, on timm's frame.

Beyer et al. 2022, arXiv 2205.01580.

Shapes: B batch, C channels, H and W sides of the image, P side of a patch, N tokens, D width of the tokens, h heads,
d width of a head, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitctl.models.vit import Block, PatchTokens, SelfAttention
from vitctl.models.weights import draw_weights, sincos_positions, spread


class PlacedPatchTokens(PatchTokens):
    """Patches projected to tokens that know where they lie: float ``[B, C, H, W]`` to ``[B, N, D]``.

    Args:
        embed_dim: D.
        **more: as :class:`vitctl.models.vit.PatchTokens`.
    """

    positions: Tensor

    def __init__(self, *, embed_dim: int, **more: Any) -> None:
        super().__init__(embed_dim=embed_dim, **more)
        self.register_buffer("positions", sincos_positions(self.grid_size[0], embed_dim), persistent=False)  # [N, D]

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens ``[B, N, D]`` of the images ``[B, C, H, W]``."""
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
    """Build the plainer Vision Transformer of Beyer et al. 2022, as vit-pytorch lays it out.

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``. The head sees the mean
    of the tokens, normalised.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D, a multiple of 4.
        depth: number of blocks.
        num_heads: h.
        head_dim: d; the attention's inner width is ``h * d``.
        mlp_ratio: hidden width of the MLP over D.
        dropout: after each projection of a block, twice in its MLP.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        init: ``vit`` (linear layers normal of std 0.02, patches projected to the scale of the positions) or
            ``predecessor`` (torch's own linear layers).
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
        embed_layer=PlacedPatchTokens,
        block_fn=block,
    )
    draw_weights(model, init)
    if init == "vit":
        spread(model.get_parameter("patch_embed.proj.weight"))
    return model
