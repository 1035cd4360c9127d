"""Attention rollout: which parts of an image the output of a transformer depends on.

Abnar & Zuidema 2020, arXiv 2005.00928. The attention of a block, averaged over its heads, is added to the identity for the
residual connection, normalised by row, and multiplied with that of the blocks before it. It follows the attention
only: MLPs, norms and the values themselves are ignored.

Shapes: B batch, h heads, M tokens of the output, N tokens, S side of the grid of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitctl.models.cct import CompactTransformer
from vitctl.models.hybrid import Hybrid


class AttentionRecorder(TorchFunctionMode):
    """Records the attention weights of every call of ``scaled_dot_product_attention``.

    Attributes:
        weights: weights of each call, averaged over the heads, float32 ``[B, M, N]``; M is 1 where a block computes only
            the class token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.weights.append(_weights(*args[:2], *args[3:4], **kwargs).mean(dim=1))
        return func(*args, **kwargs)


def _weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_: object
) -> Tensor:
    """Return the weights of torch's ``scaled_dot_product_attention`` without dropout, float32 ``[B, h, M, N]``."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    products = factor * query.float() @ key.float().transpose(-2, -1)  # [B, h, M, N]
    if attn_mask is not None:
        products = products + attn_mask.float()
    return products.softmax(-1)


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Return how much each token of the output depends on each token of the input, float ``[B, M, N]``.

    Args:
        attentions: weights of each block averaged over its heads, first block first, ``[B, N, N]``; those of the last may
            be ``[B, M, N]`` for its first M tokens.
    """
    result = None
    for attention in attentions:
        joined = attention + torch.eye(*attention.shape[1:], device=attention.device)  # [B, M, N]
        joined = joined / joined.sum(-1, keepdim=True)
        result = joined if result is None else joined @ result
    if result is None:
        raise ValueError("no attention to roll out")
    return result


def explainable(model: nn.Module) -> bool:
    """Return whether :func:`attention_map` knows the network: ViT, CCT, CVT, ViT-Lite or a hybrid, with blocks."""
    known = isinstance(model, (VisionTransformer, CompactTransformer, Hybrid))
    return known and getattr(model, "attn_pool", None) is None and len(getattr(model, "blocks", ())) > 0


@torch.inference_mode()
def attention_map(model: nn.Module, images: Tensor) -> Tensor:
    """Return how much the head's input depends on each patch, by attention rollout.

    The rows of the rollout are weighted as the head's input weights the tokens: the class token, their mean, or the learned
    weights of sequence pooling. A class token's own share is left out. Of hybrid networks whose last convolutions follow the
    blocks, the map is that of the blocks: the tokens that enter these convolutions count equally.

    Args:
        model: a network that is :func:`explainable`, in eval mode.
        images: input of the network, float ``[B, C, H, W]``.

    Returns:
        Shares of the patches that sum to 1, float32 ``[B, S, S]`` on the CPU.
    """
    pooled: list[Tensor] = []
    handle = None
    if isinstance(model, CompactTransformer) and model.attention_pool is not None:
        handle = model.attention_pool.register_forward_hook(lambda _, __, scores: pooled.append(scores))  # [B, N, 1]
    try:
        with AttentionRecorder() as recorder:
            model(images)
    finally:
        if handle is not None:
            handle.remove()
    rolled = rollout(recorder.weights)  # [B, M, N]
    prefix = _prefix_tokens(model)
    if pooled:
        tokens = (pooled[0].float().softmax(dim=1) * rolled).sum(1)  # [B, N]
    elif _uses_class_token(model):
        tokens = rolled[:, 0]
    else:
        skipped = 0 if getattr(model, "pool_include_prefix", False) else prefix
        tokens = rolled[:, skipped:].mean(1)
    patches = tokens[:, prefix:]
    side = math.isqrt(patches.shape[1])
    return (patches / patches.sum(1, keepdim=True)).reshape(-1, side, side).cpu()  # [B, S, S]


def _prefix_tokens(model: nn.Module) -> int:
    """Return the number of tokens before those of the patches."""
    if isinstance(model, VisionTransformer):
        return int(model.num_prefix_tokens)
    return int(getattr(model, "cls_token", None) is not None)


def _uses_class_token(model: nn.Module) -> bool:
    """Return whether the head's input is the class token only."""
    if isinstance(model, VisionTransformer):
        return str(model.global_pool) == "token"
    return isinstance(model, CompactTransformer) and model.cls_token is not None
