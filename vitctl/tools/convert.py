"""Conversion of weights from the original scripts to a checkpoint."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitctl.config import resolve_config
from vitctl.data.cifar import CIFAR10, CIFAR100
from vitctl.errors import RequestError
from vitctl.files import check_writable
from vitctl.models import MODELS, build_model
from vitctl.models.foreign import recognise
from vitctl.models.legacy import RULES, has_rule, original_network, original_options, translate
from vitctl.models.state_files import read_state
from vitctl.registry import Value, lookup, split_spec, suggest
from vitctl.training.checkpoint import FORMAT, save_checkpoint
from vitctl.training.session import Progress

DATA = {spec.name: (spec.classes, spec.mean, spec.std) for spec in (CIFAR10, CIFAR100)}
"""Classes, mean and standard deviation of the data sets of the original scripts."""


def convert(
    old: Path,
    output: Path,
    net: str,
    *,
    dataset: str,
    size: int | None = None,
    patch: int | None = None,
    convkernel: int | None = None,
) -> dict[str, Any]:
    """Convert weights from the original scripts to a checkpoint for eval, predict and export.

    Args:
        old: the weights: ``{"model": ...}`` of the fork, ``{"net": ..., "acc": ..., "epoch": ...}`` of upstream, or a
            plain state dict, with or without prefixes such as ``module.``.
        output: path of the checkpoint to create; it must not exist.
        net: a network of the original scripts, ``NAME[:key=value,...]``.
        dataset: ``cifar10`` or ``cifar100``.
        size: image size in training; None for the scripts' default.
        patch: ``--patch`` in training; None for the scripts' default.
        convkernel: ``--convkernel`` in training; None for the scripts' default.

    Returns:
        ``net, params, tensors, epoch, acc, dataset, size, output``; ``epoch`` and ``acc`` are None if the file lacks
        them.

    Raises:
        RequestError: unknown network, unreadable file, tensors of another network, or an output that cannot be written.
        RunFailed: writing the checkpoint failed.
    """
    name, given = split_spec(net, "--net")
    if name not in RULES:
        raise RequestError(f"--net {name} is not a network of the original scripts", hint=suggest(name, RULES))
    lookup(DATA, dataset, "--dataset")
    check_writable(output, "--output")
    if output.exists():
        same = old.exists() and output.samefile(old)
        what = "is the file to convert" if same else "already exists"
        raise RequestError(f"--output {output} {what}", hint="use --output with a new path")
    size = size or (384 if name == "vit_timm" else 32)
    check_original_size(name, size)
    if name == "mobilevit":
        net = _with_option(net, "reduction", 32)
    if patch is not None and name == "swin":
        net, patch = _with_option(net, "window_size", patch), None  # the scripts passed --patch as Swin's window size
    tensors, more = read_state(old, str(old))
    if {"format", "config"} <= more.keys():
        raise RequestError(
            f"{old} is already a vitctl checkpoint", hint=f"use it as it is: vitctl eval {shlex.quote(str(old))}"
        )
    for option, value in original_options(name, tensors).items():
        net = net if option in given else _with_option(net, option, value)
    settings = {"recipe": "seed", "net": net, "size": size, "dataset": "cifar10", "pretrained": "false"}
    settings |= {key: value for key, value in (("patch", patch), ("convkernel", convkernel)) if value is not None}
    config = dataclasses.replace(resolve_config(settings), dataset=dataset)
    classes, mean, std = DATA[dataset]
    torch.manual_seed(0)
    model = build_model(config.net, config.net_options, img_size=size, in_chans=3, num_classes=len(classes))
    try:
        state = translate(config.net, config.net_options, tensors, model.state_dict())
    except RequestError as error:
        raise _explained(error, old, name, tensors, model.state_dict()) from error
    epoch, acc = _number(more.get("epoch")), _number(more.get("acc"))
    save_checkpoint(
        {
            "format": FORMAT,
            "config": config.to_dict(),
            "model": state,
            "ema": None,
            "optimizer": {},
            "scheduler": {},
            "scaler": None,
            "rng": {},
            "epoch": 0 if epoch is None else int(epoch) + 1,  # the scripts count from 0
            "step": 0,
            "progress": asdict(Progress()),
            "history": [],
            "classes": list(classes),
            "mean": list(mean),
            "std": list(std),
        },
        output,
    )
    return {
        "net": config.net,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "tensors": len(tensors),
        "epoch": None if epoch is None else int(epoch) + 1,
        "acc": acc,
        "dataset": dataset,
        "size": size,
        "output": str(output),
    }


def check_original_size(net: str, size: int) -> None:
    """Refuse an image size at which the original network could not run or gave other results than ours.

    Raises:
        RequestError: the size is not supported.
    """
    if net.startswith("res") and size != 32:  # the scripts pooled 4x4 positions at any size, where ours pools all
        raise RequestError(f"--size {size}: {net} of the original scripts converts only at 32 px", hint="use --size 32")
    if net == "vgg" and not 32 <= size < 64:
        raise RequestError(
            f"--size {size}: {net} of the original scripts accepted only 32 to 63 px", hint="use a --size from 32 to 63"
        )
    if net == "mlpmixer" and size != 32:
        raise RequestError(
            f"--size {size}: {net} of the original scripts ignored --size and used 32 px", hint="use --size 32"
        )
    if net == "mobilevit" and size % 64:
        raise RequestError(
            f"--size {size}: {net} of the original scripts accepted only multiples of 64 px",
            hint="use the --size of the training, such as --size 64",
        )


def _explained(
    error: RequestError, old: Path, net: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> RequestError:
    """Return the error for a file that does not convert as ``net``; its hint is for what the file is."""
    original = original_network(tensors)
    if original is not None:
        name, flags = original
        hint = f"use {flags}" if flags else error.hint if name == net else f"use --net {name}"
        return RequestError(f"{old}: {error.message}", hint=hint)
    known = has_rule(net, MODELS[net].resolve_options({}, f"--net {net}"))
    kind, flags = recognise(tensors)
    if kind is None and sum(name in own for name in tensors) > sum(map(known, tensors)):
        fits = all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in own.items())
        kind, flags = f"weights of vitctl's {net}", f"--net {net if fits else f'{net}:KEY=VALUE,...'}"
    if kind is None or (net != "vit_timm" and sum(map(known, tensors)) > len(tensors) // 2):
        return RequestError(f"{old}: {error.message}", hint=error.hint)
    return RequestError(
        f"{old} has {kind}, not of the original scripts",
        hint=f"use it as it is: vitctl train {flags} --pretrained {shlex.quote(str(old))}"
        if flags
        else "use a file that the original scripts saved",
    )


def _with_option(net: str, option: str, value: Value) -> str:
    return f"{net}{',' if ':' in net else ':'}{option}={value}"


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
