"""Compact transformers: ``cct`` with a convolutional tokenizer, ``cvt`` and ``vit_lite`` with a patch embedding.

Hassani et al. 2021, arXiv 2104.05704. ``cct`` and ``cvt`` pool the sequence instead of using a class token.

Shapes: B batch, C channels, H and W image height and width, N tokens, D token width, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vitctl.devices import policy_of


class ConvTokenizer(nn.Module):
    """Convolutions without bias, each followed by ReLU and 3x3 max-pooling with stride 2.

    Maps float ``[B, C, H, W]`` to tokens ``[B, N, D]``, in row-major order.

    Args:
        widths: channels before, between and after the convolutions, from C to D.
        kernel: kernel size of the convolutions.
    """

    def __init__(self, widths: Sequence[int], kernel: int) -> None:
        super().__init__()
        stride, padding = max(1, kernel // 2 - 1), max(1, kernel // 2)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, padding, bias=False)
            for before, after in itertools.pairwise(widths)
        )

    def grid(self, img_size: int) -> int:
        """Return the height and width of the token grid for a square image; it is at least 1."""
        side = img_size
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            side = (side + 2 * int(conv.padding[0]) - conv.kernel_size[0]) // conv.stride[0] + 1
            side = (side - 1) // 2 + 1
        return side

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[B, N, D]``."""
        for conv in self.convs:
            if policy_of(x.device).channels_last:  # faster, and tokens are channels-last anyway
                x = x.contiguous(memory_format=torch.channels_last)
            x = conv(x)
            # ReLU commutes with max-pooling, and is cheaper on the smaller map.
            x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1))
        return x.flatten(2).transpose(1, 2)  # [B, N, D]


class PatchTokenizer(nn.Module):
    """Patch embedding without bias: float ``[B, C, H, W]`` to tokens ``[B, N, D]``, in row-major order.

    Args:
        in_chans: C.
        embed_dim: D.
        patch_size: patch size in pixels, which divides H and W.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[B, N, D]``."""
        tokens: Tensor = self.convs[0](x).flatten(2).transpose(1, 2)  # [B, N, D]
        return tokens


class Block(nn.Module):
    """Encoder block of the compact transformers: tokens ``[B, N, D]`` to ``[B, N, D]``.

    The first norm is part of the attention branch. The second is applied to the residual stream, so its output is
    both the input of the MLP and the tensor to which the MLP's output is added.

    Args:
        dim: D.
        num_heads: number of attention heads, which divides ``dim``.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        attn_dropout: dropout rate on the attention weights.
        drop_path: chance that an image skips a branch in training.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, attn_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=False, attn_drop=attn_dropout, proj_drop=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the updated tokens, ``[B, N, D]``."""
        x = self.norm2(x + self.drop_path(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.mlp(x))
        return x


class CompactTransformer(nn.Module):
    """Compact transformer: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        tokenizer: maps images to tokens.
        blocks: encoder blocks.
        num_tokens: N.
        embed_dim: D.
        num_classes: K.
        dropout: dropout rate on the tokens before the first block.
        class_token: prepend a class token as the head's input, instead of pooling the sequence with learned weights.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        blocks: Sequence[Block],
        *,
        num_tokens: int,
        embed_dim: int,
        num_classes: int,
        dropout: float,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens + class_token, embed_dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(embed_dim)
        self.attention_pool = None if class_token else nn.Linear(embed_dim, 1)
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        x = self.tokenizer(x)  # [B, N, D]
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # [B, 1 + N, D]
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))
        if self.attention_pool is None:
            x = x[:, 0]  # [B, D]
        else:
            weights = self.attention_pool(x).softmax(dim=1)  # [B, N, 1]
            x = (weights.transpose(1, 2) @ x).squeeze(1)  # [B, D]
        logits: Tensor = self.head(x)
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {
            "stem": r"^tokenizer|pos_embed|cls_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99_999,))],
        }


def _blocks(
    depth: int,
    embed_dim: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
    attn_dropout: float,
    drop_path_rate: float,
) -> list[Block]:
    rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
    return [Block(embed_dim, num_heads, mlp_ratio, dropout, attn_dropout, rate) for rate in rates]


def cct(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    conv_layers: int,
    conv_kernel: int,
    conv_width: int,
    dropout: float,
    attn_dropout: float,
    drop_path_rate: float,
) -> nn.Module:
    """Build a compact convolutional transformer with a learned position embedding.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        embed_dim: D.
        depth: number of blocks.
        num_heads: number of attention heads, which divides ``embed_dim``.
        mlp_ratio: hidden width of the MLP divided by D.
        conv_layers: number of tokenizer convolutions, each followed by a pooling that halves the map.
        conv_kernel: kernel size of the convolutions; the stride is 1 up to 5 and grows with larger kernels.
        conv_width: channels of all convolutions but the last, which has D.
        dropout: dropout rate on the tokens before the first block, after the attention's projection and after both
            layers of the MLP.
        attn_dropout: dropout rate on the attention weights.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
    """
    tokenizer = ConvTokenizer([in_chans, *[conv_width] * (conv_layers - 1), embed_dim], conv_kernel)
    return CompactTransformer(
        tokenizer,
        _blocks(depth, embed_dim, num_heads, mlp_ratio, dropout, attn_dropout, drop_path_rate),
        num_tokens=tokenizer.grid(img_size) ** 2,
        embed_dim=embed_dim,
        num_classes=num_classes,
        dropout=dropout,
    )


def patch_transformer(
    *,
    class_token: bool,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
    attn_dropout: float,
    drop_path_rate: float,
) -> nn.Module:
    """Build a compact transformer with a patch embedding and a learned position embedding: ViT-Lite or CVT.

    Args:
        class_token: use a class token (ViT-Lite) instead of sequence pooling (CVT).
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: patch size in pixels, which divides ``img_size``.
        embed_dim: D.
        depth: number of blocks.
        num_heads: number of attention heads, which divides ``embed_dim``.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate on the tokens before the first block, after the attention's projection and after both
            layers of the MLP.
        attn_dropout: dropout rate on the attention weights.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
    """
    return CompactTransformer(
        PatchTokenizer(in_chans, embed_dim, patch_size),
        _blocks(depth, embed_dim, num_heads, mlp_ratio, dropout, attn_dropout, drop_path_rate),
        num_tokens=(img_size // patch_size) ** 2,
        embed_dim=embed_dim,
        num_classes=num_classes,
        dropout=dropout,
        class_token=class_token,
    )
