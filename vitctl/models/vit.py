"""Vision Transformers on timm's frame: ``vit``, ``vit_small`` for small data sets, and ``dyt``.

timm's ``VisionTransformer`` holds the tokens, the stack of blocks, the pooling and the head. The layers here are
those that it does not have: blocks whose heads need not add up to the width of the tokens, patches as rows of pixels,
shifted patch tokenization, locality self-attention and Dynamic Tanh.

Shapes: B batch, C channels, H and W sides of the image, P side of a patch, N tokens, D width of the tokens,
h heads, d width of a head, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitctl.models.weights import draw_weights, sincos_positions

SINCOS_SCALE = 0.3
"""What the tokens of normalised patches start at: a std of 0.02 over the 240 numbers of ``vit_small``'s."""


class PatchTokens(nn.Module):
    """Cut an image into patches and project each to a token.

    Maps float ``[B, C, H, W]`` to ``[B, N, D]`` with ``N = (H / P) * (W / P)``, row by row; a patch's pixels are
    ordered row, column, channel.

    Args:
        img_size: H and W.
        patch_size: P, which divides ``img_size``.
        in_chans: C.
        embed_dim: D.
        _: what timm passes to patch embeddings besides.
    """

    def __init__(self, *, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: object) -> None:
        super().__init__()
        assert img_size % patch_size == 0
        self.patch_size = patch_size
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Linear(patch_size * patch_size * in_chans, embed_dim)

    def cut(self, x: Tensor) -> Tensor:
        """Return the patches of ``[B, C, H, W]`` as ``[B, N, P * P * C]``."""
        p = self.patch_size
        return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)  # [B, N, P * P * C]

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens ``[B, N, D]`` of the images ``[B, C, H, W]``."""
        tokens: Tensor = self.proj(self.cut(x))
        return tokens


class ShiftedPatchTokens(PatchTokens):
    """Shifted patch tokenization: each token also sees its patch moved by one pixel in four directions.

    The image and its shifts, right, left, down and up, zeros coming in at the border, are stacked as channels, cut
    into patches, normalised and projected: ``[B, C, H, W]`` to ``[B, N, D]``. Lee et al. 2021, arXiv 2112.13492, who
    shift by half a patch along the diagonals; the one pixel along the axes is that of vit-pytorch, whose weights fit.

    Args:
        in_chans: C.
        **more: as :class:`PatchTokens`.
    """

    SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    """How far the image moves down and right, in the order of the stacked channels."""

    def __init__(self, *, in_chans: int, **more: Any) -> None:
        super().__init__(in_chans=len(self.SHIFTS) * in_chans, **more)
        self.norm = nn.LayerNorm(self.proj.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens ``[B, N, D]`` of the images ``[B, C, H, W]``."""
        height, width = x.shape[-2:]
        # One padded copy, of which every shift is a window: only the stacking copies again.
        padded = F.pad(x, (1, 1, 1, 1))  # [B, C, H + 2, W + 2]
        windows = [
            padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in self.SHIFTS
        ]
        stacked = torch.cat(windows, dim=1)  # [B, 5 * C, H, W]
        tokens: Tensor = self.proj(self.norm(self.cut(stacked)))
        return tokens


class SelfAttention(nn.Module):
    """Multi-head self-attention whose heads need not add up to the width of the tokens.

    Maps tokens ``[B, N, D]`` to ``[B, N, D]``, or to the first of them alone, ``[B, 1, D]``.

    Args:
        dim: D.
        num_heads: h.
        attn_head_dim: d; ``h * d`` need not be D.
        proj_drop: dropout of the projected output; the attention weights are not dropped.
        proj_bias: whether the projection has a bias; queries, keys and values have none.
    """

    def __init__(
        self, dim: int, *, num_heads: int, attn_head_dim: int, proj_drop: float, proj_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.inner_dim = num_heads, num_heads * attn_head_dim
        self.qkv = nn.Linear(dim, 3 * self.inner_dim, bias=False)
        self.proj = nn.Linear(self.inner_dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        """Return what the tokens ``[B, N, D]`` see, for all of them or for the first."""
        if first_only:
            to_q, to_kv = self.qkv.weight[: self.inner_dim], self.qkv.weight[self.inner_dim :]
            q = torch.unflatten(F.linear(x[:, :1], to_q), -1, (self.num_heads, -1))  # [B, 1, h, d]
            k, v = torch.unflatten(F.linear(x, to_kv), -1, (2, self.num_heads, -1)).unbind(2)  # [B, N, h, d] each
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # [B, N, h, d] each
        mixed = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # [B, h, N, d], or of 1 token
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))  # [B, N, h * d]
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the values weighted by the products of queries and keys, ``[B, h, N, d]`` each."""
        return F.scaled_dot_product_attention(q, k, v)


class LocalitySelfAttention(SelfAttention):
    """Self-attention in which no token sees itself and the sharpness is learned (Lee et al. 2021).

    The products are multiplied by ``exp(temperature)``, which starts at ``1 / sqrt(d)``, and their diagonal is masked.

    Args:
        dim: D.
        num_heads: h.
        attn_head_dim: d.
        proj_drop: dropout of the projected output.
        num_tokens: N.
    """

    diagonal: Tensor

    def __init__(self, dim: int, *, num_heads: int, attn_head_dim: int, proj_drop: float, num_tokens: int) -> None:
        super().__init__(dim, num_heads=num_heads, attn_head_dim=attn_head_dim, proj_drop=proj_drop)
        self.temperature = nn.Parameter(torch.tensor(float(attn_head_dim)).log() * -0.5)
        # Floats, to be added to the products: torch would turn booleans into these on every call. A lone token has
        # nobody else to look at; masking it would leave a softmax over nothing, which is NaN.
        away = float("-inf") if num_tokens > 1 else 0.0
        diagonal = torch.zeros(num_tokens, num_tokens).fill_diagonal_(away)
        self.register_buffer("diagonal", diagonal[None, None], persistent=False)  # [1, 1, N, N]

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the values weighted by the sharpened products off the diagonal."""
        # The temperature goes in with the queries, so that its gradient comes back through them and the products
        # themselves stay inside the fused kernel. Autocast may have made q narrower than the parameters.
        q = q * self.temperature.exp().to(q.dtype)
        mask = self.diagonal[:, :, : q.shape[2]].to(q.dtype)  # [1, 1, N, N], or the row of the first token
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


class DynamicTanh(nn.Module):
    """``tanh(alpha * x) * weight + bias`` in the place of a norm: ``[..., D]`` to ``[..., D]``.

    Zhu et al. 2025, arXiv 2503.10622.

    Args:
        dim: D.
        alpha: what the one learned ``alpha`` starts at.
        _: what timm passes to norms besides.
    """

    def __init__(self, dim: int, alpha: float = 0.5, **_: object) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the squashed tokens."""
        return torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)


class Block(nn.Module):
    """Pre-norm transformer block, attention and then MLP, each added to its input: ``[B, N, D]`` to ``[B, N, D]``.

    Takes the place of timm's, which cannot have heads of any width; the names inside are the same. Where
    ``first_only`` is set, the block computes nothing but the first token: in the last one, no other is looked at.

    Args:
        attention: makes the attention layer from D.
        dim: D.
        mlp_ratio: hidden width of the MLP over D.
        proj_drop: dropout, twice in the MLP.
        drop_path: chance that a sample skips a branch in training.
        norm_layer: makes a norm from D.
        act_layer: what the MLP's hidden units pass through.
        _: what timm passes to blocks besides.
    """

    def __init__(
        self,
        attention: Callable[[int], SelfAttention],
        *,
        dim: int,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        **_: object,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attention(dim)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.first_only = False

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens ``[B, N, D]`` for tokens ``[B, N, D]``, or the first of them alone, ``[B, 1, D]``."""
        seen = self.drop_path(self.attn(self.norm1(x), first_only=self.first_only))
        x = (x[:, :1] if self.first_only else x) + seen
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


def vit(
    *,
    kind: str,
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
    emb_dropout: float,
    drop_path_rate: float,
    pool: str,
    init: str,
    pos_init: str = "normal",
) -> nn.Module:
    """Build the Vision Transformer of Dosovitskiy et al. 2021 (arXiv 2010.11929), as vit-pytorch lays it out.

    The module maps float ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``. The tokens are
    normalised after the last block. ``pool="cls"`` puts a learned token before those of the patches and gives it to
    the head; ``pool="avg"`` has no such token, and the head sees the mean of the patches' tokens.

    Args:
        kind: ``vit``; or ``small``, the one for small data sets of Lee et al. 2021 (arXiv 2112.13492), with shifted
            patch tokenization and locality self-attention, where what is normalised after the last block is not every
            token but the one vector that the head sees: the class token with ``pool="cls"``, the mean of all tokens,
            the class token among them, with ``pool="avg"``; or ``dyt``, with Dynamic Tanh in the place of every norm.
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D.
        depth: number of blocks.
        num_heads: h.
        head_dim: d; the attention's inner width is ``h * d``.
        mlp_ratio: hidden width of the MLP over D.
        dropout: after each projection of a block, twice in its MLP.
        emb_dropout: on the tokens before the first block.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        pool: ``cls`` or ``avg``.
        init: ``vit`` (linear layers and embeddings normal of std 0.02) or ``predecessor`` (torch's own linear layers,
            embeddings N(0, 1)).
        pos_init: what the learned positions of the patches start from: ``normal``, as ``init`` has it, or ``sincos``, the
            sines and cosines of simplevit (Beyer et al. 2022, arXiv 2205.01580) at :data:`SINCOS_SCALE`.
    """
    small = kind == "small"
    attention: Any = partial(
        LocalitySelfAttention if small else SelfAttention,
        num_heads=num_heads,
        attn_head_dim=head_dim,
        proj_drop=dropout,
    )
    if small:
        attention = partial(attention, num_tokens=(img_size // patch_size) ** 2 + 1)
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
        pos_drop_rate=emb_dropout,
        drop_path_rate=drop_path_rate,
        class_token=small or pool == "cls",
        global_pool="token" if pool == "cls" else "avg",
        pool_include_prefix=small,
        fc_norm=small,
        weight_init="skip",
        norm_layer=DynamicTanh if kind == "dyt" else nn.LayerNorm,
        embed_layer=ShiftedPatchTokens if small else PatchTokens,
        block_fn=block,
    )
    if pool == "cls":  # a tenth of the work, of which the head would see nothing
        cast(Block, model.blocks[-1]).first_only = True
    draw_weights(model, init, (model.cls_token, model.pos_embed))
    if pos_init == "sincos":
        assert model.pos_embed is not None
        with torch.no_grad():
            side = img_size // patch_size
            model.pos_embed[0, -side * side :] = SINCOS_SCALE * sincos_positions(
                side, embed_dim
            )  # [N, D], after a class token
    return model
