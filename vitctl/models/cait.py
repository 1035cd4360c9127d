"""CaiT: self-attention layers over the patch tokens, then class-attention layers that update only a class token.

Touvron et al. 2021, arXiv 2103.17239. timm's CaiT requires the widths of the heads to add up to the token width;
``cait_small`` of the original scripts has 6 heads of width 64 at token width 512.

Shapes: B batch, C channels, H and W image height and width, P patch size, N tokens, M context tokens, D token width,
h heads, d head width, K classes.
"""

from __future__ import annotations

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vitctl.models.vit import PatchTokens
from vitctl.models.weights import init_weights


class TalkingHeadsAttention(nn.Module):
    """Attention with heads mixed before and after the softmax (Shazeer et al. 2020, arXiv 2003.02436).

    Fused attention kernels do not support the mixing.

    Args:
        dim: D.
        num_heads: h.
        head_dim: d; ``h * d`` may differ from D.
        proj_drop: dropout rate after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, proj_drop: float) -> None:
        super().__init__()
        inner_dim = num_heads * head_dim
        self.num_heads, self.scale = num_heads, head_dim**-0.5
        self.q = nn.Linear(dim, inner_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.mix_before = nn.Parameter(torch.empty(num_heads, num_heads))
        self.mix_after = nn.Parameter(torch.empty(num_heads, num_heads))
        self.proj = nn.Linear(inner_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from the tokens ``x``, ``[B, N, D]``, to ``context``, ``[B, M, D]``; return ``[B, N, D]``."""
        q = torch.unflatten(self.q(x) * self.scale, -1, (self.num_heads, -1))  # [B, N, h, d]
        k, v = torch.unflatten(self.kv(context), -1, (2, self.num_heads, -1)).unbind(2)  # [B, M, h, d] each
        products = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # [B, h, N, M]
        weights = self.mix(self.mix_before, products).softmax(dim=-1)
        attended = self.mix(self.mix_after, weights) @ v.transpose(1, 2)  # [B, h, N, d]
        out: Tensor = self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))  # [B, N, h * d]
        return out

    def mix(self, matrix: Tensor, maps: Tensor) -> Tensor:
        """Mix attention maps, ``[B, h, N, M]``: new map g is the sum over h of ``matrix[h, g] * maps[:, h]``."""
        # One matrix product over flattened maps; einsum would permute the heads to the end and back.
        mixed = matrix.T.to(maps.dtype) @ maps.flatten(2)  # [B, h, N * M]
        return torch.unflatten(mixed, 2, maps.shape[2:])  # [B, h, N, M]


class Layer(nn.Module):
    """Pre-norm layer with LayerScale: tokens ``[B, N, D]`` to ``[B, N, D]``.

    Args:
        dim: D.
        num_heads: h.
        head_dim: d.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        layer_dropout: chance that an image skips the layer in training; the other images are not rescaled.
        scale: initial value of LayerScale in both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        mlp_ratio: float,
        dropout: float,
        layer_dropout: float,
        scale: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TalkingHeadsAttention(dim, num_heads, head_dim, dropout)
        self.gamma1 = nn.Parameter(torch.full((dim,), scale))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.gamma2 = nn.Parameter(torch.full((dim,), scale))
        self.layer_dropout = layer_dropout

    def forward(self, x: Tensor, patches: Tensor | None = None) -> Tensor:
        """Update the tokens ``x``, which attend to themselves and to ``patches``, ``[B, M, D]``.

        The layer normalises only ``x``, not ``patches``.
        """
        normed = self.norm1(x)
        context = normed if patches is None else torch.cat((normed, patches), dim=1)
        out: Tensor = x + self.gamma1 * self.attn(normed, context)
        out = out + self.gamma2 * self.mlp(self.norm2(out))
        if self.training and self.layer_dropout:
            # Drawn per image, not per batch, so that layers always get gradients and micro-batches make no difference.
            kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.layer_dropout
            return torch.where(kept, out, x)
        return out


class CaiT(nn.Module):
    """CaiT: float ``[B, C, H, W]`` to logits ``[B, K]``.

    Args:
        patch_embed: patch embedding.
        blocks: self-attention layers over the patch tokens.
        class_blocks: class-attention layers, in which the class token attends to itself and the patch tokens.
        embed_dim: D.
        num_classes: K.
        emb_dropout: dropout rate on the patch tokens before the first layer.
    """

    def __init__(
        self,
        patch_embed: PatchTokens,
        blocks: list[Layer],
        class_blocks: list[Layer],
        *,
        embed_dim: int,
        num_classes: int,
        emb_dropout: float,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(torch.empty(1, patch_embed.num_patches, embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_drop = nn.Dropout(emb_dropout)
        self.blocks = nn.Sequential(*blocks)
        self.class_blocks = nn.ModuleList(class_blocks)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[B, K]``."""
        patches = self.blocks(self.pos_drop(self.patch_embed(x) + self.pos_embed))  # [B, N, D]
        token = self.cls_token.expand(patches.shape[0], -1, -1)  # [B, 1, D]
        for block in self.class_blocks:
            token = block(token, patches)
        logits: Tensor = self.head(self.norm(token[:, 0]))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's grouping of parameters by depth, for layer-wise learning-rate decay."""
        return {
            "stem": r"^patch_embed|pos_embed|cls_token",
            "blocks": r"^blocks\.(\d+)",
            "class_blocks": [(r"^class_blocks\.(\d+)", None), (r"^norm", (99_999,))],
        }


def cait(
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    class_depth: int,
    num_heads: int,
    head_dim: int,
    mlp_ratio: float,
    dropout: float,
    emb_dropout: float,
    layer_dropout: float,
    init: str,
) -> nn.Module:
    """Build a CaiT with the architecture of vit-pytorch's.

    LayerScale starts at 0.1 in the first 18 layers, at 1e-5 in the next 6 and at 1e-6 in all further ones, as in
    section 2 of the paper.

    Args:
        img_size: H and W, in pixels.
        in_chans: C.
        num_classes: K.
        patch_size: P, which divides ``img_size``.
        embed_dim: D.
        depth: number of self-attention layers over the patch tokens.
        class_depth: number of class-attention layers.
        num_heads: h.
        head_dim: d; ``h * d`` may differ from D.
        mlp_ratio: hidden width of the MLP divided by D.
        dropout: dropout rate after the attention's projection and after both layers of the MLP.
        emb_dropout: dropout rate on the patch tokens before the first layer.
        layer_dropout: chance that an image skips a layer in training.
        init: ``vit`` (linear layers and embeddings: normal with std 0.02; mixing matrices: identity plus normal with
            std 0.02) or ``predecessor`` (linear layers: torch's default; embeddings and mixing matrices: N(0, 1)).

    Returns:
        A module that maps float ``[B, C, H, W]`` to logits ``[B, K]``.
    """

    def layers(count: int) -> list[Layer]:
        scales = [0.1 if i < 18 else 1e-5 if i < 24 else 1e-6 for i in range(count)]
        return [Layer(embed_dim, num_heads, head_dim, mlp_ratio, dropout, layer_dropout, scale) for scale in scales]

    model = CaiT(
        PatchTokens(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim),
        layers(depth),
        layers(class_depth),
        embed_dim=embed_dim,
        num_classes=num_classes,
        emb_dropout=emb_dropout,
    )
    init_weights(model, init, (model.pos_embed, model.cls_token))
    for module in model.modules():
        if isinstance(module, TalkingHeadsAttention):
            for matrix in (module.mix_before, module.mix_after):
                if init == "predecessor":
                    nn.init.normal_(matrix)
                else:
                    nn.init.eye_(matrix)
                    matrix.data += 0.02 * torch.randn_like(matrix)
    return model
