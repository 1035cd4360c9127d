"""Weights of other libraries: tables that map their names to timm's, and recognition of those without a table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitctl.models.state_files import without_prefix
from vitctl.registry import Value, format_spec

_LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
_END = r"(weight|bias)"


@dataclass(frozen=True)
class ForeignNames:
    """Names of a Vision Transformer in another library.

    Attributes:
        title: what messages call the weights.
        names: regular expressions for full names, and templates of timm's names; None for unused tensors.
    """

    title: str
    names: tuple[tuple[str, str | None], ...]

    def knows(self, name: str) -> bool:
        """Return whether a name is in the table."""
        return any(re.fullmatch(pattern, name) for pattern, _ in self.names)

    def to_timm(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under timm's names, with queries, keys and values joined; unknown names do not change."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            match, template = next(
                ((match, template) for pattern, template in self.names if (match := re.fullmatch(pattern, name))),
                (None, name),
            )
            if template is not None:
                found[match.expand(template) if match else name] = tensor
        for query in [name for name in found if ".attn.query." in name]:
            parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            shapes = {found[part].shape for part in parts if part in found}
            if all(part in found for part in parts) and len(shapes) == 1 and found[query].ndim:
                found[query.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in parts])
        return found


FOREIGN = (
    ForeignNames(
        "Hugging Face's ViT",
        (
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.distillation_token", "dist_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (rf"embeddings\.patch_embeddings\.projection\.{_END}", r"patch_embed.proj.\1"),
            (rf"{_LAYER}attention\.attention\.(query|key|value)\.{_END}", r"blocks.\1.attn.\2.\3"),
            (rf"{_LAYER}attention\.output\.dense\.{_END}", r"blocks.\1.attn.proj.\2"),
            (rf"{_LAYER}intermediate\.dense\.{_END}", r"blocks.\1.mlp.fc1.\2"),
            (rf"{_LAYER}output\.dense\.{_END}", r"blocks.\1.mlp.fc2.\2"),
            # transformers 5 in memory, also in files of torch.save
            (rf"{_LAYER}attention\.q_proj\.{_END}", r"blocks.\1.attn.query.\2"),
            (rf"{_LAYER}attention\.k_proj\.{_END}", r"blocks.\1.attn.key.\2"),
            (rf"{_LAYER}attention\.v_proj\.{_END}", r"blocks.\1.attn.value.\2"),
            (rf"{_LAYER}attention\.o_proj\.{_END}", r"blocks.\1.attn.proj.\2"),
            (rf"{_LAYER}mlp\.(fc[12])\.{_END}", r"blocks.\1.mlp.\2.\3"),
            (rf"{_LAYER}layernorm_before\.{_END}", r"blocks.\1.norm1.\2"),
            (rf"{_LAYER}layernorm_after\.{_END}", r"blocks.\1.norm2.\2"),
            (rf"layernorm\.{_END}", r"norm.\1"),
            (rf"(?:cls_)?classifier\.{_END}", r"head.\1"),
            (rf"distillation_classifier\.{_END}", r"head_dist.\1"),
            (rf"pooler\.dense\.{_END}", None),  # only for pretraining
        ),
    ),
    ForeignNames(
        "torchvision's ViT",
        (
            (r"class_token", "cls_token"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (rf"conv_proj\.{_END}", r"patch_embed.proj.\1"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.{_END}", r"blocks.\1.norm\2.\3"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_{_END}", r"blocks.\1.attn.qkv.\2"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.{_END}", r"blocks.\1.attn.proj.\2"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.{_END}", r"blocks.\1.mlp.fc1.\2"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.{_END}", r"blocks.\1.mlp.fc2.\2"),
            (rf"encoder\.ln\.{_END}", r"norm.\1"),
            (rf"heads\.head\.{_END}", r"head.\1"),
        ),
    ),
)
"""Libraries whose Vision Transformer computes the same as timm's."""

TIMM_VIT = ForeignNames(
    "timm's ViT",
    (
        (r"cls_token|pos_embed", r"\g<0>"),
        (rf"(patch_embed\.proj|norm|head)\.{_END}", r"\g<0>"),
        (rf"blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{_END}", r"\g<0>"),
    ),
)
"""timm's names of the tensors of a plain ViT with a class token."""

_KINDS = (
    (r"visual\.(transformer\.resblocks|trunk)\.", "CLIP weights"),
    (r"vision_model\.encoder\.layers\.", "CLIP or SigLIP weights of Hugging Face"),
    (r"relative_position_bias_table", "weights of a Swin Transformer or BEiT"),
    (r"encoder\.layer\.\d+\.layer_scale1\.", "DINOv2 weights of Hugging Face"),
    (r"decoder_blocks\.\d+\.|decoder\.decoder_layers\.", "weights of a masked autoencoder with its decoder"),
    (r"transformer\.layers\.\d+\.0\.(norm|to_qkv)\.", "weights of vit-pytorch"),
    (r"layer\d\.\d+\.conv\d\.weight", "weights of a ResNet"),
    (r"stages\.\d+\.(blocks\.|layers\.)?\d+\.(conv_dw|dwconv|depthwise_conv)\.", "weights of a ConvNeXt"),
    (r"features\.\d+\.", "weights of a network of torchvision"),
    (r"text_model\.|token_embedding\.|lm_head\.|embed_tokens\.", "weights of a language model"),
)
"""Regular expressions for part of a tensor's name, and the weights without a table that have it."""


def recognise(tensors: Mapping[str, Tensor], num_heads: int | None = None) -> tuple[str | None, str | None]:
    """Return a description of the weights, and the flags of a network that loads them; each None if unknown.

    Weights of the original scripts are not recognised; see :mod:`vitctl.models.legacy`.

    Args:
        tensors: tensors by name.
        num_heads: number of attention heads, which the tensors do not show; None for heads of width 64.
    """
    for names in (*FOREIGN, TIMM_VIT):
        stripped, _ = without_prefix(tensors, names.knows)
        named = names.to_timm(stripped)
        if {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.bias"} <= named.keys():
            plain = all(map(TIMM_VIT.knows, named)) and "cls_token" in named
            return f"weights of {names.title}", _vit_flags(named, num_heads) if plain else None
    for pattern, kind in _KINDS:
        if any(re.search(rf"(^|\.)(?:{pattern})", name) for name in tensors):
            return kind, None
    return None, None


def _vit_flags(tensors: Mapping[str, Tensor], num_heads: int | None) -> str | None:
    """Return the flags of ``vit_timm`` for weights of a ViT in timm's names, or None for unexpected shapes."""
    names = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    kernel, positions, hidden = (list(tensors[name].shape) if name in tensors else [] for name in names)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if (len(kernel), len(positions), len(hidden)) != (4, 3, 2):
        return None
    return _vit_timm_flags(kernel[-1], kernel[0], depth, num_heads, hidden[0], positions[1])


def _vit_timm_flags(patch: int, width: int, depth: int, num_heads: int | None, hidden: int, tokens: int) -> str:
    """Return ``--net`` and ``--size`` of the ViT with these sizes."""
    options: dict[str, Value] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": num_heads or max(1, width // 64),
        "mlp_ratio": hidden / max(1, width),
    }
    # A class token does not change the root.
    return f"--net {format_spec('vit_timm', options)} --size {patch * math.isqrt(tokens)}"


def google_vit(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
    """Return the numbers of blocks, attention heads and classes (0 without a head) of Google's ViT.

    Args:
        shapes: shapes of the arrays in an ``.npz`` file.

    Returns:
        None for arrays of another network.
    """
    query = _ending(shapes, "/query/kernel", 3)
    if query is None or _ending(shapes, "embedding/kernel", 4) is None:
        return None
    numbers = [re.search(r"encoderblock_(\d+)/", name) for name in shapes]
    depth = len({number[1] for number in numbers if number}) or query[0]  # big_vision stacks its blocks
    return depth, query[-2], (_ending(shapes, "head/bias", 1) or (0,))[-1]


def google_flags(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the flags of ``vit_timm`` for the shapes of Google's ViT, or None if an array is missing."""
    vit = google_vit(shapes)
    kernel, positions = _ending(shapes, "embedding/kernel", 4), _ending(shapes, "pos_embedding", 2)
    hidden = _ending(shapes, "/Dense_0/kernel", 2)
    if vit is None or kernel is None or positions is None or hidden is None:
        return None
    return _vit_timm_flags(kernel[0], kernel[-1], vit[0], vit[1], hidden[-1], positions[-2])


def _ending(shapes: Mapping[str, tuple[int, ...]], end: str, ndim: int) -> tuple[int, ...] | None:
    """Return the first shape of at least ``ndim`` dimensions whose name ends with ``end``, or None."""
    return next((shape for name, shape in shapes.items() if name.endswith(end) and len(shape) >= ndim), None)
