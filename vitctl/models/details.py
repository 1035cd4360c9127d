"""A network in detail: options, layers and what it costs with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import timm
import torch

from vitctl.models import MODELS, build_model, find_model, table_row
from vitctl.models.count import count_parameters, forward_cost, layer_table
from vitctl.registry import Option, split_spec


def describe_network(spec: str, size: int | None) -> dict[str, Any]:
    """Return a network's row, its options and its layers, and what it costs with the options asked for.

    Args:
        spec: ``NAME[:key=value,...]``.
        size: side of the images; None is the network's own.

    Returns:
        The row as :func:`vitctl.models.table_row` gives it, with ``params, mflop, tokens, img_size`` as with these
        options at this size, 3 channels and 10 classes; ``options`` as a list of ``name, value, allowed, help``; and
        ``layers`` as one of ``name, kind, shape, params``.

    Raises:
        RequestError: no such network or option, or it cannot take the size.
    """
    net, given = split_spec(spec, "--details")
    entry = find_model(net)
    options = entry.resolve_options(given, f"--details {net}")
    img_size = entry.img_size if size is None else size
    entry.check_size(net, options, img_size)

    def build() -> torch.nn.Module:
        return build_model(net, options, img_size=img_size, in_chans=3, num_classes=10)

    with torch.device("meta"):
        params = count_parameters(build())
    cost = forward_cost(build, 3, img_size)
    return {
        **table_row(net, entry),
        "params": params,
        "mflop": round(cost.mflop, 1),
        "tokens": cost.tokens,
        "img_size": img_size,
        "options": [
            {
                "name": name,
                "value": options.get(name, option.default if net in MODELS else None),
                "allowed": allowed(option),
                "help": option.help,
            }
            for name, option in entry.options.items()
        ],
        "layers": [asdict(row) for row in layer_table(build, 3, img_size)],
    }


def allowed(option: Option) -> str:
    """Return what an option may be, in a few words."""
    if option.choices:
        return ", ".join(str(choice) if choice != "" else "''" for choice in option.choices)
    kind = {bool: "true or false", int: "whole number", float: "number", str: "text"}[type(option.default)]
    bounds = [(option.low, "from {:g}"), (option.high, "to {:g}"), (option.below, "below {:g}")]
    return " ".join([kind, *(text.format(bound) for bound, text in bounds if bound is not None)])


def timm_rows(names: list[str]) -> list[dict[str, Any]]:
    """Return timm's networks as JSON values: ``name, img_size, pretrained``."""
    rows: list[dict[str, Any]] = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        assert config is not None  # there is one for every registered name
        rows.append({"name": f"timm/{name}", "img_size": config.input_size[-1], "pretrained": bool(config.has_weights)})
    return rows
