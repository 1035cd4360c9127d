"""Facts about the network of a weights file, from the file or the ``config.json`` next to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.registry import format_spec


def _beside(path: Path) -> dict[str, Any]:
    """Return the ``config.json`` that Hugging Face and timm write next to a weights file; empty if there is none."""
    try:
        document = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes in the order of the logits; empty if unknown.

    Args:
        path: the weights file.
        content: values of the file besides its tensors; see :func:`vitctl.models.state_files.read_state`.
    """
    beside, metadata = _beside(path), content.get("metadata")
    found = content.get("classes") or beside.get("label_names")
    if not found and isinstance(metadata, dict):
        with contextlib.suppress(ValueError, TypeError):
            found = json.loads(metadata.get("classes", ""))
    labels = beside.get("id2label")
    if not found and isinstance(labels, dict):
        with contextlib.suppress(ValueError):
            found = [labels[key] for key in sorted(labels, key=int)]
            if all(name == f"LABEL_{i}" for i, name in enumerate(found)):  # the default of transformers
                found = []
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else []


def flags_of_run(content: Mapping[str, Any]) -> str | None:
    """Return ``--net`` and ``--size`` of the run that wrote a checkpoint, or None for other files."""
    config = content.get("config")
    if not isinstance(config, dict):
        return None
    net, options, size = config.get("net"), config.get("net_options"), config.get("size")
    if not isinstance(net, str) or not isinstance(options, dict):
        return None
    try:
        defaults = find_model(net).resolve_options({}, f"--net {net}")
    except RequestError:
        return None
    changed = {name: value for name, value in options.items() if defaults.get(name) != value}
    return f"--net {format_spec(net, changed)} --size {size}"


def num_heads(path: Path, content: Mapping[str, Any]) -> int | None:
    """Return the number of attention heads, or None if unknown; see :func:`class_names` for the arguments."""
    config = content.get("config")
    options = config.get("net_options") if isinstance(config, dict) else None
    found = options.get("num_heads") if isinstance(options, dict) else _beside(path).get("num_attention_heads")
    return found if isinstance(found, int) else None
