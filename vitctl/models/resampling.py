"""Resampling of position embeddings and patch projections of vitctl's own networks, with timm's functions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vitctl.models.vit import PatchTokens


def resampled(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resample position embeddings and patch projections as timm does; other tensors are returned as they are.

    Args:
        tensors: tensors by the names of ``model``.
        model: a network of vitctl, whose state dict has the sizes to resample to.
    """
    out, own = dict(tensors), model.state_dict()
    if "pos_embed" in out and "pos_embed" in own:
        out["pos_embed"] = _resampled_positions(out["pos_embed"], own["pos_embed"])
    for name, module in model.named_modules():
        if isinstance(module, PatchTokens):
            _resample_patch_tokens(out, f"{name}.", module)
    stem = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem[1].kernel_size == stem[1].stride:
        name, weight = f"{stem[0]}.weight", stem[1].weight
        if name in out and out[name].ndim == 4 and out[name].shape[:2] == weight.shape[:2]:
            out[name] = resample_patch_embed(out[name], list(weight.shape[2:]))
    return out


def _resampled_positions(theirs: Tensor, own: Tensor) -> Tensor:
    """Resample ``[1, N, D]`` to the number of tokens of ``own``; a class token keeps its position."""
    if theirs.ndim != 3 or own.ndim != 3 or theirs.shape[::2] != own.shape[::2]:
        return theirs
    for extra in (0, 1):  # only one of them leaves a square
        sides = [math.isqrt(tensor.shape[1] - extra) for tensor in (theirs, own)]
        if all(side and side**2 == tensor.shape[1] - extra for side, tensor in zip(sides, (theirs, own), strict=True)):
            out: Tensor = resample_abs_pos_embed(theirs, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=extra)
            return out
    return theirs


def _resample_patch_tokens(tensors: dict[str, Tensor], prefix: str, own: PatchTokens) -> None:
    """Resample the projection of flattened patches, in place; the norm before it, if any, is folded into it."""
    weight, size = tensors.get(f"{prefix}proj.weight"), own.patch_size
    channels = own.proj.in_features // size**2
    if weight is None or weight.ndim != 2 or weight.shape == own.proj.weight.shape:
        return
    theirs = math.isqrt(weight.shape[1] // channels)
    if theirs**2 * channels != weight.shape[1]:
        return
    gain, shift, bias = (tensors.get(f"{prefix}{name}") for name in ("norm.weight", "norm.bias", "proj.bias"))
    if gain is not None and shift is not None and bias is not None:
        tensors[f"{prefix}proj.bias"] = bias + weight @ shift
        weight = weight * gain
        tensors[f"{prefix}norm.weight"] = torch.ones(own.proj.in_features)
        tensors[f"{prefix}norm.bias"] = torch.zeros(own.proj.in_features)
    kernel = rearrange(weight, "d (p q c) -> d c p q", p=theirs, q=theirs)
    tensors[f"{prefix}proj.weight"] = rearrange(resample_patch_embed(kernel, [size, size]), "d c p q -> d (p q c)")


def describe_resampling(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return a note for each tensor whose size :func:`resampled` or timm changed.

    Args:
        before: tensors of the file.
        after: the same tensors, resampled.
    """
    notes = []
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.ndim != old.ndim or new.ndim < 2:
            continue
        if name == "pos_embed" and new.ndim == 3 and new.shape[1] != old.shape[1]:
            sides = [math.isqrt(tensor.shape[1]) for tensor in (old, new)]  # a class token does not change the root
            notes.append("positions resampled from {0}x{0} to {1}x{1}".format(*sides))
        elif name.endswith(".weight") and new.shape[0] == old.shape[0] and new.shape[2:] != old.shape[2:]:
            notes.append(f"patches resampled from {old.shape[-1]} to {new.shape[-1]} px")
        elif name.endswith("patch_embed.proj.weight") and new.ndim == 2 and new.shape != old.shape:
            notes.append("patches resampled")
    return notes
