"""Details of a network for ``vitctl list-models``: its options, layers and costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import timm
import torch

from vitctl.models import MODELS, build_model, find_model, table_row
from vitctl.models.count import count_parameters, forward_cost, layer_table
from vitctl.registry import Option, split_spec


def describe_network(spec: str, size: int | None) -> dict[str, Any]:
    """Describe a network with given options, for 3 channels and 10 classes.

    Args:
        spec: ``NAME[:key=value,...]``.
        size: height and width of the images; None for the network's default.

    Returns:
        The row of :func:`vitctl.models.table_row`, with ``params, mflop, tokens, img_size`` for these options and this
        size; ``options``, a list of ``name, value, allowed, help``; and ``layers``, a list of ``name, kind, shape,
        params``.

    Raises:
        RequestError: unknown network or option, or impossible size.
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
    """Return a short description of the valid values of an option."""
    if option.choices:
        return ", ".join(str(choice) if choice != "" else "''" for choice in option.choices)
    kind = {bool: "true or false", int: "whole number", float: "number", str: "text"}[type(option.default)]
    bounds = [(option.low, "from {:g}"), (option.high, "to {:g}"), (option.below, "below {:g}")]
    return " ".join([kind, *(text.format(bound) for bound, text in bounds if bound is not None)])


def timm_rows(names: list[str]) -> list[dict[str, Any]]:
    """Return ``name, img_size, pretrained`` of networks of timm, as JSON values."""
    rows: list[dict[str, Any]] = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        assert config is not None  # every registered name has one
        rows.append({"name": f"timm/{name}", "img_size": config.input_size[-1], "pretrained": bool(config.has_weights)})
    return rows
