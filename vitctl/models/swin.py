"""Swin Transformers for small images: attention within windows, shifted by half a window in every other block.

Liu et al. 2021, arXiv 2103.14030, with what the predecessor's differs in from timm's: the stages halve the image
2, 2, 2 and 1 times, all heads of a block share one table of relative positions, queries, keys and values have no bias,
and patches are merged by a linear layer with a bias and no norm.

Shapes: B batch, C channels, H and W sides of a map, D its width, w side of a window, n = w * w tokens of a window,
m windows of a map, h heads, d width of a head, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vitctl.models.weights import draw_weights, spread

FACTORS = (2, 2, 2, 1)
"""What each stage divides the sides of its map by."""


class Merge(nn.Module):
    """Join squares of positions into one: ``[B, H, W, C]`` to ``[B, H / factor, W / factor, D]``.

    Args:
        in_dim: C.
        out_dim: D.
        factor: side of the squares.
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
        shifted: move the map by half a window first, and back afterwards. Tokens that the move brought together over
            the border do not see each other.
        dropout: of the projected output.
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
        """Return what the positions of the map see within their windows."""
        w, h, rows = self.window_size, self.num_heads, x.shape[1] // self.window_size
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        bias = self.pos_embed.flatten()[self.index].to(x.dtype)  # [n, n]
        qkv = rearrange(self.qkv(x), "b (y p) (x q) (t h d) -> t b (y x h) (p q) d", p=w, q=w, t=3, h=h)
        # Windows stand beside the heads, so that one mask serves every image of the batch.
        mask = (bias + self.mask.to(x.dtype)).repeat_interleave(h, dim=0)  # [m * h, n, n], or h for all windows
        mask = mask.expand(qkv.shape[2], -1, -1) if self.shift else mask[:1]
        q, k, v = qkv.unbind(0)  # [B, m * h, n, d] each
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])  # [B, m * h, n, d]
        seen = torch.unflatten(torch.unflatten(seen, 2, (w, w)), 1, (rows, -1, h))  # [B, y, x, h, p, q, d]
        # Copied by hand, where a reshape would find a view to do at times: exporters write the attention anew, and lay its
        # result out in another order, of which that view is none.
        seen = seen.permute(0, 1, 4, 2, 5, 3, 6).clone(memory_format=torch.contiguous_format)  # [B, y, p, x, q, h, d]
        seen = seen.flatten(5).flatten(3, 4).flatten(1, 2)  # [B, H, W, h * d]
        out: Tensor = self.proj_drop(self.proj(seen))
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        return out


def relative_positions(window_size: int) -> Tensor:
    """Return int64 ``[n, n]``: for each pair of tokens of a window, the place of its offset in the flattened table."""
    steps = torch.arange(window_size)
    offsets = steps[None, :] - steps[:, None] + window_size - 1  # [w, w], 0 to 2w - 2, of columns and of rows alike
    table = offsets[:, None, :, None] * (2 * window_size - 1) + offsets[None, :, None, :]  # [w, w, w, w]
    return table.reshape(window_size**2, window_size**2)  # [n, n]


def border_mask(side: int, window_size: int, shift: int) -> Tensor:
    """Return float ``[m, n, n]``: minus infinity where two tokens of a shifted window lie on two sides of the border.

    Without a shift it is zero, ``[1, 1, 1]``.
    """
    if not shift:
        return torch.zeros(1, 1, 1)
    wrapped = (torch.arange(side) >= side - shift).long()  # after the move, these come from the other side
    region = 2 * wrapped[:, None] + wrapped[None, :]  # [H, W]
    windows = rearrange(region, "(y p) (x q) -> (y x) (p q)", p=window_size, q=window_size)  # [m, n]
    apart = windows[:, :, None] != windows[:, None, :]  # [m, n, n]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))


class Block(nn.Module):
    """Pre-norm block: ``[B, H, W, D]`` to ``[B, H, W, D]``.

    Args:
        attention: within windows.
        dim: D.
        mlp_ratio: hidden width of the MLP over D.
        dropout: twice in the MLP.
        drop_path: chance that a sample skips a branch in training.
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
        """Return the map."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """A merging, then blocks: ``[B, H, W, C]`` to ``[B, H / factor, W / factor, D]``.

    Args:
        merge: makes the stage's map.
        blocks: what it passes through.
    """

    def __init__(self, merge: Merge, blocks: list[Block]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        out: Tensor = self.blocks(self.merge(x))
        return out


class Swin(nn.Module):
    """Float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        stages: four of them.
        embed_dim: width of the last one.
        num_classes: K.
    """

    def __init__(self, stages: list[Stage], *, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of the images ``[B, C, H, W]``."""
        x = self.stages(x.permute(0, 2, 3, 1))  # [B, H, W, D]
        logits: Tensor = self.head(self.norm(x.mean(dim=(1, 2))))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's description of which parameters follow which, for layer-wise learning rates."""
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

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``. The head sees the mean
    of the last map, normalised.

    Args:
        img_size: H and W, in pixels, a multiple of 8 windows.
        in_chans: C.
        num_classes: K.
        window_size: side of a window, in positions of a map.
        embed_dim: width of the first stage's map, a multiple of ``head_dim``; each stage doubles it.
        depth: blocks of the third stage; the others have 2.
        head_dim: width of a head; a stage has as many as fill its width.
        mlp_ratio: hidden width of the MLP over that of the map.
        dropout: after each projection of a block, twice in its MLP.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        init: ``vit`` (linear layers and positions normal of std 0.02, mergings to the scale of what they merge) or
            ``predecessor`` (torch's own linear layers, positions N(0, 1)).
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
    draw_weights(model, init, [block.pos_embed for block in model.modules() if isinstance(block, WindowAttention)])
    if init == "vit":
        for stage in stages:
            spread(stage.merge.proj.weight)  # no norm follows: a smaller scale would fade from stage to stage
    return model
