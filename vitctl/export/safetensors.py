"""Export of weights as safetensors, with a JSON file from which vitctl or timm rebuilds the network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.export.formats import Deployed, Files, Run, as_tuple
from vitctl.export.metadata import EXPORT_AGAIN, Metadata
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.trained import Trained
from vitctl.models import MODELS, build_model
from vitctl.registry import lookup

RECORD = "vitctl"
"""Key of the metadata in the JSON file."""

TIMM = "timm/"
"""Prefix of the names of timm's networks."""


FORBIDDEN_ARGUMENTS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
}
"""Arguments of ``timm.create_model`` that load weights or change how the network is compiled."""


class SafeTensors:
    """See :class:`vitctl.export.formats.Format`."""

    engine = f"torch {torch.__version__}"

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the content of the weights file and of the JSON file.

        The JSON file has the metadata under ``vitctl``; for a network of timm it is also a ``config.json`` of timm.
        """
        config = timm_config(network.model, record) if record.net.startswith(TIMM) else {}
        tensors = {name: tensor.clone().contiguous() for name, tensor in network.model.state_dict().items()}
        document = json.dumps({**config, RECORD: record.to_json()}, indent=2) + "\n"
        return {".safetensors": safetensors.torch.save(tensors, record.to_strings()), ".json": document.encode()}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the metadata, and a function that runs the rebuilt network on normalised images."""
        document = json.loads(files[".json"])
        record = Metadata.from_json(document[RECORD], "the exported file")
        tensors = safetensors.torch.load(files[".safetensors"])
        model = rebuild(document, record)
        model.load_state_dict(tensors)

        def run(images: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return as_tuple(model(images))

        return record, run


def timm_config(model: nn.Module, record: Metadata) -> dict[str, Any]:
    """Return the content of timm's ``config.json`` for a network that timm built."""
    from timm.models import save_for_hf

    settings = {
        "label_names": list(record.classes),
        "pretrained_cfg": {
            "mean": record.mean,
            "std": record.std,
            "input_size": (record.channels, record.size, record.size),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    }
    with tempfile.TemporaryDirectory(prefix="vitctl-") as folder:
        save_for_hf(model, folder, model_config=settings, safe_serialization=True)
        document: dict[str, Any] = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return document


def rebuild(document: Mapping[str, Any], record: Metadata) -> nn.Module:
    """Build the network that a JSON file describes, in eval mode and with random weights.

    Networks of timm are built from timm's part of the file, not from vitctl's table of networks.

    Raises:
        RequestError: unknown network or option, or an argument of timm that could load other weights.
    """
    if "architecture" in document:
        import timm

        # The file is untrusted, and arguments of timm can name weights on a hub, at a URL or at a path.
        architecture, arguments = str(document["architecture"]), dict(document.get("model_args", {}))
        if not timm.is_model(architecture.partition(".")[0]):
            raise RequestError(f"unknown timm network {architecture!r}", hint=EXPORT_AGAIN)
        if forbidden := sorted(FORBIDDEN_ARGUMENTS & arguments.keys()):
            raise RequestError(f"forbidden arguments of timm: {', '.join(forbidden)}", hint=EXPORT_AGAIN)
        model: nn.Module = timm.create_model(
            architecture, pretrained=False, **{"num_classes": document["num_classes"], **arguments}
        )
    else:
        entry = lookup(MODELS, record.net, "--net")
        model = build_model(
            record.net,
            entry.resolve_options(record.net_options, f"--net {record.net}"),
            img_size=record.size,
            in_chans=record.channels,
            num_classes=len(record.classes),
        )
    return model.eval()


def config_path(weights: Path) -> Path:
    """Return the path of the JSON file of a safetensors file.

    It differs only in the suffix, but ``model.safetensors`` goes with ``config.json``: timm's ``local-dir:`` and the
    Hugging Face hub look for these two names.
    """
    return weights.with_name("config.json") if weights.name == "model.safetensors" else weights.with_suffix(".json")


def open_safetensors(path: Path, device: torch.device) -> Classifier:
    """Open weights that ``vitctl export`` wrote, and their JSON file.

    Raises:
        RequestError: one of the two files is missing, damaged, or not written by vitctl.
    """
    if not path.is_file():
        raise RequestError(
            f"{path} {'is not a file' if path.exists() else 'not found'}",
            hint="use the path of a file that vitctl export wrote",
        )
    config = config_path(path)
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
        described = document[RECORD]
    except FileNotFoundError as error:
        raise RequestError(
            f"{path} needs {config}, which was not found", hint=f"copy both files, or {EXPORT_AGAIN}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{config} is damaged or was not written by vitctl export", hint=EXPORT_AGAIN) from error
    record = Metadata.from_json(described, str(config))
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path} is damaged or not a safetensors file: {error}", hint=EXPORT_AGAIN) from error
    try:
        model = rebuild(document, record)
        model.load_state_dict(tensors)
        with torch.inference_mode():
            logits = model(torch.zeros(1, record.channels, record.size, record.size))
        if logits.shape != (1, len(record.classes)):
            raise ValueError(f"the output has the shape {list(logits.shape)} for {len(record.classes)} classes")
    except RequestError as error:
        error.add_context(str(config))
        raise
    except Exception as error:  # a builder may raise anything for a foreign name or option
        raise RequestError(
            f"{path} does not fit the network in {config}: {_last_line(error)}", hint=EXPORT_AGAIN
        ) from error
    trained = Trained(
        model=model.to(device),
        config=TrainConfig(
            net=record.net,
            net_options=dict(record.net_options),
            size=record.size,
            dataset=record.provenance.dataset,
            val=record.provenance.val,
            val_fraction=record.provenance.val_fraction,
            split_seed=record.provenance.split_seed,
            holdout_by=record.provenance.holdout_by,
            test_fraction=record.provenance.test_fraction,
            limit_train=record.provenance.limit_train,
            flip="on" if record.provenance.flips else "off",
            fit=record.provenance.fit,
            value_range=record.provenance.value_range,
            epochs=1,
        ),
        classes=record.classes,
        mean=record.mean,
        std=record.std,
        path=path,
        weights=record.weights,
        epoch=record.epoch,
        step=0,
        history=[],
        data_sha256=record.provenance.data_sha256,
        precision=devices.nearest_precision("auto", device),
    )
    return classifier_of(trained, device)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _truncate(lines[-1].strip()) if lines else type(error).__name__


def _truncate(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}..."  # torch lists every missing weight
