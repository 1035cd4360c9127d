"""Hybrid networks: the convolutions of the CIFAR-10 speed records, with transformer blocks on a few tokens.

The convolutions are those of :mod:`vitctl.models.airbench` (Jordan 2024, arXiv 2404.00498), in the smallest network with a
strided first one. Convolutions before the blocks help small Vision Transformers (Xiao et al. 2021, arXiv 2106.14881). In
the larger networks, the last group of convolutions follows the blocks: on more tokens, blocks of equally many operations
have fewer weights, and the networks overfit less.

The blocks follow the speed records of language models (https://github.com/KellerJordan/modded-nanogpt): norms without
parameters, a squared ReLU (So et al. 2021, arXiv 2109.08668), no biases, and a zero-initialised last layer in each branch,
so that a block starts as the identity.

Shapes: B batch, C channels, H and W image height and width, S side of the stem's map, N = S * S tokens, D token width,
h heads, d = D / h head width, E channels of the last map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.models.airbench import LOGIT_SCALE, ConvGroup, ConvStem


class Attention(nn.Module):
    """Self-attention: ``[B, N, D]`` to ``[B, N, D]``.

    Args:
        dim: D.
        num_heads: h, which divides ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values of all tokens, averaged by attention."""
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, h, N, d]
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, h, N, d]
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(B, N, D))
        return out


class Mlp(nn.Module):
    """Two linear layers with a squared ReLU between them: ``[B, N, D]`` to ``[B, N, D]``.

    Args:
        dim: D.
        hidden: width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of each token."""
        out: Tensor = self.fc2(F.relu(self.fc1(x)).square())
        return out


class Block(nn.Module):
    """Pre-norm transformer block: ``[B, N, D]`` to ``[B, N, D]``.

    Args:
        dim: D.
        num_heads: number of attention heads, which divides ``dim``.
        mlp_ratio: hidden width of the MLP divided by D.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return the updated tokens."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class Hybrid(nn.Module):
    """Convolutions, transformer blocks, and perhaps further convolutions: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        stem: maps images to ``[B, stem_dim, S, S]``.
        blocks: transformer blocks; without any, the network has only convolutions.
        late_groups: convolutions after the blocks, from ``[B, D, S, S]`` to ``[B, E, ., .]``; perhaps none.
        stem_dim: channels of the stem's map.
        embed_dim: D.
        out_dim: E; D without ``late_groups``.
        num_classes: K.
    """

    def __init__(
        self,
        stem: ConvStem,
        blocks: Sequence[Block],
        late_groups: Sequence[ConvGroup],
        *,
        stem_dim: int,
        embed_dim: int,
        out_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.embed = nn.Linear(stem_dim, embed_dim, bias=False) if embed_dim != stem_dim else nn.Identity()
        self.pos_embed = nn.Parameter(torch.zeros(1, stem.side**2, embed_dim)) if blocks else None
        self.blocks = nn.Sequential(*blocks)
        self.late_groups = nn.Sequential(*late_groups)
        self.head = nn.Linear(out_dim, num_classes, bias=False)
        nn.init.normal_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        x = self.embed(self.stem(x).flatten(2).transpose(1, 2))  # [B, N, D]
        if self.pos_embed is not None:
            x = self.blocks(x + self.pos_embed)
        x = torch.unflatten(x.transpose(1, 2), 2, (self.stem.side, self.stem.side))  # [B, D, S, S]
        x = self.late_groups(x).mean(dim=(2, 3))  # [B, E]
        logits: Tensor = self.head(x) * LOGIT_SCALE
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {
            "stem": r"^stem\.whiten",
            "groups": r"^stem\.groups\.(\d+)",
            "embed": r"^embed|^pos_embed",
            "blocks": r"^blocks\.(\d+)",
            "late_groups": r"^late_groups\.(\d+)",
        }


def hybrid(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    groups: int,
    late_groups: int,
    width: int,
    growth: int,
    late_width: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    stride: int,
    bn_momentum: float,
) -> nn.Module:
    """Build a hybrid network.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        groups: number of groups of convolutions before the blocks, each of which halves the map.
        late_groups: number of groups of convolutions after the blocks.
        width: channels of the first group.
        growth: channels of each further group before the blocks divided by those of the one before.
        late_width: E, the channels of each group after the blocks.
        embed_dim: D.
        depth: number of transformer blocks.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the blocks' MLP divided by D.
        stride: stride of the whitened patches, in pixels; neighbours share a row or column of pixels.
        bn_momentum: weight of a batch in BatchNorm's running statistics.

    Returns:
        A module that maps float ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``.
    """
    widths = [width * growth**i for i in range(groups)]
    stem = ConvStem(
        img_size=img_size,
        in_chans=in_chans,
        widths=widths,
        kernel_size=stride + 1,
        stride=stride,
        bn_momentum=bn_momentum,
    )
    blocks = [Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)]
    late, side = list[ConvGroup](), stem.side
    for in_dim, out_dim in pairwise([embed_dim, *[late_width] * late_groups]):
        late.append(ConvGroup(in_dim, out_dim, pool=side > 1, bn_momentum=bn_momentum))
        side = max(1, side // 2)
    return Hybrid(
        stem,
        blocks,
        late,
        stem_dim=widths[-1],
        embed_dim=embed_dim,
        out_dim=late_width if late_groups else embed_dim,
        num_classes=num_classes,
    )
