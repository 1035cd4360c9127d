"""Vision Transformers based on timm's: ``vit``, ``vit_small`` for small data sets, and ``dyt``.

timm's ``VisionTransformer`` provides embeddings, the sequence of blocks, pooling and the head. This module has the
layers that timm lacks: attention with heads of any width, patches flattened to vectors, shifted patch tokenization,
locality self-attention and Dynamic Tanh.

Shapes: B batch, C channels, H and W image height and width, P patch size, N tokens, D token width, h heads, d head
width, K classes.
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

from vitctl.models.weights import init_weights, sincos_positions

SINCOS_SCALE = 0.3
"""Scale of the initial sin-cos positions, about the std of ``vit_small``'s initial tokens, ``0.02 * sqrt(240)``."""


class PatchTokens(nn.Module):
    """Patch embedding: float ``[B, C, H, W]`` to ``[B, N, D]`` with ``N = (H / P) * (W / P)``.

    Patches are in row-major order. The values of a patch are ordered by row, column, channel.

    Args:
        img_size: H and W.
        patch_size: P, which divides ``img_size``.
        in_chans: C.
        embed_dim: D.
        _: further arguments of timm, ignored.
    """

    def __init__(self, *, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: object) -> None:
        super().__init__()
        assert img_size % patch_size == 0
        self.patch_size = patch_size
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Linear(patch_size * patch_size * in_chans, embed_dim)

    def patchify(self, x: Tensor) -> Tensor:
        """Flatten the patches of ``[B, C, H, W]`` to ``[B, N, P * P * C]``."""
        p = self.patch_size
        return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)  # [B, N, P * P * C]

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[B, N, D]``."""
        tokens: Tensor = self.proj(self.patchify(x))
        return tokens


class ShiftedPatchTokens(PatchTokens):
    """Shifted patch tokenization (Lee et al. 2021, arXiv 2112.13492): ``[B, C, H, W]`` to ``[B, N, D]``.

    The image and four copies, shifted by one pixel right, left, down and up with zeros at the border, are stacked as
    channels, cut into patches, normalised and projected. The paper shifts diagonally by half a patch; this follows
    vit-pytorch, whose weights can be loaded.

    Args:
        in_chans: C.
        **more: further arguments of :class:`PatchTokens`.
    """

    SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    """Shifts in pixels (down, right), in the order of the stacked channels."""

    def __init__(self, *, in_chans: int, **more: Any) -> None:
        super().__init__(in_chans=len(self.SHIFTS) * in_chans, **more)
        self.norm = nn.LayerNorm(self.proj.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[B, N, D]``."""
        height, width = x.shape[-2:]
        # Every shift is a view of one padded copy, so only the stacking copies again.
        padded = F.pad(x, (1, 1, 1, 1))  # [B, C, H + 2, W + 2]
        shifted = [
            padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in self.SHIFTS
        ]
        stacked = torch.cat(shifted, dim=1)  # [B, 5 * C, H, W]
        tokens: Tensor = self.proj(self.norm(self.patchify(stacked)))
        return tokens


class SelfAttention(nn.Module):
    """Multi-head self-attention with heads of any width.

    Maps tokens ``[B, N, D]`` to ``[B, N, D]``, or to ``[B, 1, D]`` for the first token only.

    Args:
        dim: D.
        num_heads: h.
        attn_head_dim: d; ``h * d`` may differ from D.
        proj_drop: dropout rate after the output projection; there is no dropout on the attention weights.
        proj_bias: whether the output projection has a bias; queries, keys and values have none.
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
        """Return the output for all tokens, ``[B, N, D]``, or for the first only, ``[B, 1, D]``."""
        if first_only:
            to_q, to_kv = self.qkv.weight[: self.inner_dim], self.qkv.weight[self.inner_dim :]
            q = torch.unflatten(F.linear(x[:, :1], to_q), -1, (self.num_heads, -1))  # [B, 1, h, d]
            k, v = torch.unflatten(F.linear(x, to_kv), -1, (2, self.num_heads, -1)).unbind(2)  # [B, N, h, d] each
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # [B, N, h, d] each
        attended = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # [B, h, N or 1, d]
        out: Tensor = self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))  # [B, N or 1, h * d]
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries to keys and values, ``[B, h, N, d]`` each."""
        return F.scaled_dot_product_attention(q, k, v)


class LocalitySelfAttention(SelfAttention):
    """Self-attention with a learned temperature, in which no token attends to itself (Lee et al. 2021).

    The products are multiplied by ``exp(temperature)``, initially ``1 / sqrt(d)``, and their diagonal is masked.

    Args:
        dim: D.
        num_heads: h.
        attn_head_dim: d.
        proj_drop: dropout rate after the output projection.
        num_tokens: N.
    """

    diagonal: Tensor

    def __init__(self, dim: int, *, num_heads: int, attn_head_dim: int, proj_drop: float, num_tokens: int) -> None:
        super().__init__(dim, num_heads=num_heads, attn_head_dim=attn_head_dim, proj_drop=proj_drop)
        self.temperature = nn.Parameter(torch.tensor(float(attn_head_dim)).log() * -0.5)
        # A float mask, as torch would convert a boolean one in every call. With a single token there is no mask,
        # because a softmax over masked products only is NaN.
        masked = float("-inf") if num_tokens > 1 else 0.0
        diagonal = torch.zeros(num_tokens, num_tokens).fill_diagonal_(masked)
        self.register_buffer("diagonal", diagonal[None, None], persistent=False)  # [1, 1, N, N]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries to keys and values, ``[B, h, N, d]`` each."""
        # Scaling the queries instead of the products keeps the fused kernel usable and gives the temperature its
        # gradient. Under autocast, q may have a lower precision than the parameters.
        q = q * self.temperature.exp().to(q.dtype)
        mask = self.diagonal[:, :, : q.shape[2]].to(q.dtype)  # [1, 1, N or 1, N]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


class DynamicTanh(nn.Module):
    """Dynamic Tanh, a replacement for norms: ``tanh(alpha * x) * weight + bias``, ``[..., D]`` to ``[..., D]``.

    Zhu et al. 2025, arXiv 2503.10622.

    Args:
        dim: D.
        alpha: initial value of the learned scalar ``alpha``.
        _: further arguments of timm, ignored.
    """

    def __init__(self, dim: int, alpha: float = 0.5, **_: object) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``tanh(alpha * x) * weight + bias``."""
        return torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)


class Block(nn.Module):
    """Pre-norm transformer block: ``[B, N, D]`` to ``[B, N, D]``.

    Replaces timm's, which does not support heads of any width; the names of its layers are the same. With
    ``first_only`` set, the block computes only the first token, as suits the last block before a head that uses only
    the class token.

    Args:
        attention: builds the attention layer from D.
        dim: D.
        mlp_ratio: hidden width of the MLP divided by D.
        proj_drop: dropout rate after both layers of the MLP.
        drop_path: chance that an image skips a branch in training.
        norm_layer: builds a norm from D.
        act_layer: activation of the MLP.
        _: further arguments of timm, ignored.
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
        """Return the updated tokens, ``[B, N, D]``, or only the first, ``[B, 1, D]``."""
        attended = self.drop_path(self.attn(self.norm1(x), first_only=self.first_only))
        x = (x[:, :1] if self.first_only else x) + attended
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
    head_hidden: int = 0,
) -> nn.Module:
    """Build the Vision Transformer of Dosovitskiy et al. 2021 (arXiv 2010.11929) with vit-pytorch's architecture.

    With ``pool="cls"``, the head's input is a class token. With ``pool="avg"``, there is no class token, and the head's
    input is the mean of the patch tokens. Kinds:

    - ``vit``: tokens are normalised after the last block.
    - ``small``: variant for small data sets (Lee et al. 2021, arXiv 2112.13492) with shifted patch tokenization and
      locality self-attention. It always has a class token, which ``pool="avg"`` includes in the mean. The norm after
      the last block is applied after pooling.
    - ``dyt``: ``vit`` with Dynamic Tanh instead of every norm.

    Args:
        kind: ``vit``, ``small`` or ``dyt``.
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D.
        depth: number of blocks.
        num_heads: h.
        head_dim: d; ``h * d`` may differ from D.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        emb_dropout: dropout rate on the tokens before the first block.
        drop_path_rate: drop path rate of the last block; it rises linearly from 0 in the first.
        pool: ``cls`` or ``avg``.
        init: ``vit`` (linear layers and embeddings: normal with std 0.02) or ``predecessor`` (linear layers: torch's
            default; embeddings: N(0, 1)).
        pos_init: initial position embedding of the patches: ``normal``, according to ``init``, or ``sincos``, that of
            simplevit (Beyer et al. 2022, arXiv 2205.01580) multiplied by :data:`SINCOS_SCALE`.
        head_hidden: hidden width of a head of two layers, as in vit-pytorch until 2020; 0 for one layer.

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
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
    if head_hidden:
        model.head = cast(Any, Mlp(embed_dim, head_hidden, num_classes, act_layer=nn.GELU, drop=dropout))
    if pool == "cls":  # saves about a tenth of the operations, as the head uses no other token
        cast(Block, model.blocks[-1]).first_only = True
    init_weights(model, init, (model.cls_token, model.pos_embed))
    if pos_init == "sincos":
        assert model.pos_embed is not None
        with torch.no_grad():
            side = img_size // patch_size
            positions = sincos_positions(side, embed_dim)  # [N, D]
            model.pos_embed[0, -side * side :] = SINCOS_SCALE * positions  # a class token comes first
    return model
