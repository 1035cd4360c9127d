"""The predecessor's saved weights as a checkpoint of ours."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vitctl.config import resolve_config
from vitctl.data.cifar import CIFAR10, CIFAR100
from vitctl.errors import RequestError
from vitctl.models import build_model
from vitctl.models.legacy import RULES, translate
from vitctl.models.state_files import read_state
from vitctl.registry import split_spec, unknown
from vitctl.training.checkpoint import FORMAT, save_checkpoint
from vitctl.training.session import Progress

DATA = {spec.name: (spec.classes, spec.mean, spec.std) for spec in (CIFAR10, CIFAR100)}
"""Classes, mean and deviation that the predecessor's scripts trained with."""


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
    """Turn weights that the predecessor's scripts saved into a checkpoint that eval, predict and export take.

    Args:
        old: ``{"model": ...}`` of the fork or ``{"net": ..., "acc": ..., "epoch": ...}`` of upstream, or a plain state
            dict, with or without a ``module.`` prefix.
        output: where to write the checkpoint; nothing is there yet.
        net: a network of the predecessor, ``NAME[:key=value,...]``.
        dataset: ``cifar10`` or ``cifar100``.
        size: side of the images that it was trained on; None is the scripts' default.
        patch: as ``--patch``; None is the scripts' default.
        convkernel: likewise.

    Returns:
        ``net, params, tensors, epoch, acc, dataset, size, output``; ``epoch`` and ``acc`` as the file has them, or None.

    Raises:
        RequestError: no such network or file, or its tensors are not that network's.
        RunFailed: the checkpoint cannot be written.
    """
    name, _ = split_spec(net, "--net")
    if name not in RULES:
        raise unknown("--net", name, RULES)
    if dataset not in DATA:
        raise unknown("--dataset", dataset, DATA)
    if not output.absolute().parent.is_dir():
        raise RequestError(f"--output {output}: the folder {output.absolute().parent} is not there")
    if output.exists():
        same = old.exists() and output.samefile(old)
        what = "a folder" if output.is_dir() else "the file to convert" if same else "there already"
        raise RequestError(f"--output {output} is {what}; name another")
    size = size or (384 if name == "vit_timm" else 32)
    check_predecessor_size(name, size)
    if name == "mobilevit":
        net = _with_option(net, "reduction", 32)
    if patch is not None and name == "swin":
        net, patch = _with_option(net, "window_size", patch), None  # what the scripts' --patch was there
    settings = {"recipe": "seed", "net": net, "size": size, "dataset": "cifar10", "pretrained": "false"}
    settings |= {key: value for key, value in (("patch", patch), ("convkernel", convkernel)) if value is not None}
    config = dataclasses.replace(resolve_config(settings), dataset=dataset)
    tensors, more = read_state(old, str(old))
    classes, mean, std = DATA[dataset]
    torch.manual_seed(0)
    model = build_model(config.net, config.net_options, img_size=size, in_chans=3, num_classes=len(classes))
    try:
        state = translate(config.net, config.net_options, tensors, model.state_dict())
    except RequestError as error:
        raise RequestError(f"{old}: {error}") from error
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


def check_predecessor_size(net: str, size: int) -> None:
    """Refuse a size at which the predecessor's network could not run, or computed something that ours does not.

    Raises:
        RequestError: the message says why.
    """
    if net.startswith("res") and size != 32:
        raise RequestError(
            f"--size {size}: the predecessor's --net {net} pooled 4x4 positions of its last map whatever the size, and "
            f"ours pools all of them, which is the same at 32 px alone"
        )
    if net == "vgg" and not 32 <= size < 64:
        raise RequestError(f"--size {size}: the predecessor's --net vgg ran on images of 32 to 63 px alone")
    if net == "mlpmixer" and size != 32:
        raise RequestError(
            f"--size {size}: the predecessor's --net mlpmixer took images of 32 px, whatever --size said"
        )
    if net == "mobilevit" and size % 64:
        raise RequestError(
            f"--size {size}: the predecessor's --net mobilevit ran on multiples of 64 px alone; say which --size it was"
        )


def _with_option(net: str, option: str, value: int) -> str:
    return f"{net}{',' if ':' in net else ':'}{option}={value}"


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
