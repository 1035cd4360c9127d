"""Swin Transformers for small images: attention within windows, shifted by half a window in every other block.

Liu et al. 2021, arXiv 2103.14030. As in the original scripts, this differs from timm's: the four stages divide the
height and width by 2, 2, 2 and 1; the heads of a block share one table of relative positions; queries, keys and values
have no bias; and patch merging is a linear layer with a bias and without a norm.

Shapes: B batch, C channels, H and W height and width of a map, D its width, w window size, n = w * w tokens of a
window, m windows of a map, h heads, d head width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vitctl.models.weights import init_preserving_scale, init_weights

FACTORS = (2, 2, 2, 1)
"""Factors by which the stages reduce height and width."""


class Merge(nn.Module):
    """Patch merging: ``[B, H, W, C]`` to ``[B, H / factor, W / factor, D]``.

    Args:
        in_dim: C.
        out_dim: D.
        factor: height and width of the patches that are merged into one position.
    """

    def __init__(self, in_dim: int, out_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(factor * factor * in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map."""
        p = self.factor
        if p > 1:
            x = rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=p, q=p)  # [B, H / p, W / p, C * p * p]
        merged: Tensor = self.proj(x)
        return merged


class WindowAttention(nn.Module):
    """Self-attention within windows of a map: ``[B, H, W, D]`` to ``[B, H, W, D]``.

    Args:
        dim: D.
        num_heads: h.
        head_dim: d.
        window_size: w, which divides ``side``.
        side: H and W.
        shifted: shift the map cyclically by half a window, and back afterwards. Tokens that are adjacent only because
            of the shift do not attend to each other.
        dropout: dropout rate after the output projection.
    """

    index: Tensor
    mask: Tensor

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, window_size: int, side: int, shifted: bool, dropout: float
    ) -> None:
        super().__init__()
        inner_dim = num_heads * head_dim
        self.num_heads, self.window_size = num_heads, window_size
        self.shift = window_size // 2 if shifted else 0
        self.qkv = nn.Linear(dim, 3 * inner_dim, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(2 * window_size - 1, 2 * window_size - 1))
        self.proj = nn.Linear(inner_dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.register_buffer("index", relative_positions(window_size), persistent=False)  # [n, n]
        self.register_buffer("mask", border_mask(side, window_size, self.shift), persistent=False)  # [m or 1, n, n]

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        w, h, rows = self.window_size, self.num_heads, x.shape[1] // self.window_size
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        bias = self.pos_embed.flatten()[self.index].to(x.dtype)  # [n, n]
        qkv = rearrange(self.qkv(x), "b (y p) (x q) (t h d) -> t b (y x h) (p q) d", p=w, q=w, t=3, h=h)
        # Windows and heads share a dimension, so that one mask serves every image of the batch.
        mask = (bias + self.mask.to(x.dtype)).repeat_interleave(h, dim=0)  # [m * h, n, n], or h for all windows
        mask = mask.expand(qkv.shape[2], -1, -1) if self.shift else mask[:1]
        q, k, v = qkv.unbind(0)  # [B, m * h, n, d] each
        out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])  # [B, m * h, n, d]
        out = torch.unflatten(torch.unflatten(out, 2, (w, w)), 1, (rows, -1, h))  # [B, y, x, h, p, q, d]
        # An explicit copy: a reshape sometimes returns a view, which is invalid for the memory layout of the attention
        # in exported models.
        out = out.permute(0, 1, 4, 2, 5, 3, 6).clone(memory_format=torch.contiguous_format)  # [B, y, p, x, q, h, d]
        out = out.flatten(5).flatten(3, 4).flatten(1, 2)  # [B, H, W, h * d]
        out = self.proj_drop(self.proj(out))
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        return out


def relative_positions(window_size: int) -> Tensor:
    """Return int64 ``[n, n]``: for each pair of tokens in a window, the index of its offset in the flattened table."""
    steps = torch.arange(window_size)
    offsets = steps[None, :] - steps[:, None] + window_size - 1  # [w, w], 0 to 2w - 2, for rows and for columns
    table = offsets[:, None, :, None] * (2 * window_size - 1) + offsets[None, :, None, :]  # [w, w, w, w]
    return table.reshape(window_size**2, window_size**2)  # [n, n]


def border_mask(side: int, window_size: int, shift: int) -> Tensor:
    """Return the attention mask for shifted windows, or zeros ``[1, 1, 1]`` for shift 0.

    The mask is float ``[m, n, n]``: minus infinity for tokens that are adjacent only because of the shift, else 0.
    """
    if not shift:
        return torch.zeros(1, 1, 1)
    wrapped = (torch.arange(side) >= side - shift).long()  # positions that the shift brings from the opposite side
    region = 2 * wrapped[:, None] + wrapped[None, :]  # [H, W]
    windows = rearrange(region, "(y p) (x q) -> (y x) (p q)", p=window_size, q=window_size)  # [m, n]
    apart = windows[:, :, None] != windows[:, None, :]  # [m, n, n]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))


class Block(nn.Module):
    """Pre-norm block: ``[B, H, W, D]`` to ``[B, H, W, D]``.

    Args:
        attention: attention layer.
        dim: D.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after both layers of the MLP.
        drop_path: chance that an image skips a branch in training.
    """

    def __init__(
        self, attention: WindowAttention, dim: int, mlp_ratio: float, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """Patch merging followed by blocks: ``[B, H, W, C]`` to ``[B, H / factor, W / factor, D]``."""

    def __init__(self, merge: Merge, blocks: list[Block]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        out: Tensor = self.blocks(self.merge(x))
        return out


class Swin(nn.Module):
    """Swin Transformer: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        stages: the four stages.
        embed_dim: width of the last stage.
        num_classes: K.
    """

    def __init__(self, stages: list[Stage], *, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        x = self.stages(x.permute(0, 2, 3, 1))  # [B, H, W, D]
        logits: Tensor = self.head(self.norm(x.mean(dim=(1, 2))))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {
            "stem": r"^stages\.0\.merge",
            "blocks": [
                (r"^stages\.(\d+)\.merge", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99_999,)),
            ],
        }


def swin(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    window_size: int,
    embed_dim: int,
    depth: int,
    head_dim: int,
    mlp_ratio: float,
    dropout: float,
    drop_path_rate: float,
    init: str,
) -> nn.Module:
    """Build a Swin Transformer for small images.

    Args:
        img_size: H and W, in pixels, a multiple of ``8 * window_size``.
        in_chans: C.
        num_classes: K.
        window_size: window size in positions of the feature map.
        embed_dim: width of the first stage, a multiple of ``head_dim``, doubled in each later stage.
        depth: blocks of the third stage; the other stages have 2.
        head_dim: head width; the number of heads is the stage's width divided by it.
        mlp_ratio: hidden width of the MLP divided by the stage's width.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.
        init: ``vit`` (linear layers and positions: normal with std 0.02; patch merging: std that preserves the scale of
            its input) or ``predecessor`` (linear layers: torch's default; positions: N(0, 1)).

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``. The head's input is the normalised mean of the
        last map.
    """
    depths = (2, 2, depth, 2)
    rates = [drop_path_rate * i / (sum(depths) - 1) for i in range(sum(depths))]
    stages: list[Stage] = []
    side, before = img_size, in_chans
    for factor, count, dim in zip(FACTORS, depths, (embed_dim << i for i in range(4)), strict=True):
        side //= factor
        blocks = []
        for i in range(count):
            attention = WindowAttention(dim, dim // head_dim, head_dim, window_size, side, i % 2 == 1, dropout)
            blocks.append(Block(attention, dim, mlp_ratio, dropout, rates.pop(0)))
        stages.append(Stage(Merge(before, dim, factor), blocks))
        before = dim
    model = Swin(stages, embed_dim=before, num_classes=num_classes)
    init_weights(model, init, [block.pos_embed for block in model.modules() if isinstance(block, WindowAttention)])
    if init == "vit":
        for stage in stages:
            init_preserving_scale(stage.merge.proj.weight)  # no norm follows to undo a smaller scale
    return model
