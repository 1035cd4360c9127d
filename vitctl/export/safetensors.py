"""The bare weights as safetensors, and a JSON file beside them from which vitctl or timm rebuilds the network."""

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

from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.export.formats import Deployed, Files, Run, as_tuple
from vitctl.export.metadata import Metadata
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.trained import Trained
from vitctl.models import MODELS, build_model
from vitctl.registry import lookup

RECORD = "vitctl"
"""The key of the record in the JSON file."""

TIMM = "timm/"
"""What the names of timm's own networks begin with."""


FOREIGN = {
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
"""Arguments of ``timm.create_model`` that say where weights come from, or how code is made of the network."""


class SafeTensors:
    """See :class:`vitctl.export.formats.Format`."""

    engine = f"torch {torch.__version__}"

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the bytes of the weights and of the JSON file.

        The latter has the record under ``vitctl``; for a network of timm's it is also the ``config.json`` that timm
        writes beside weights.
        """
        config = timm_config(network.model, record) if record.net.startswith(TIMM) else {}
        tensors = {name: tensor.clone().contiguous() for name, tensor in network.model.state_dict().items()}
        document = json.dumps({**config, RECORD: record.to_json()}, indent=2) + "\n"
        return {".safetensors": safetensors.torch.save(tensors, record.to_strings()), ".json": document.encode()}

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the record and the rebuilt network, which takes normalised images."""
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
    """Return timm's ``config.json`` for a network that timm built."""
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
    """Return the network that a JSON file describes, in eval mode, its weights not yet loaded.

    A network of timm's is built by timm from what is timm's in the file, without vitctl's own table.
    """
    if "architecture" in document:
        import timm

        # Only what says how the network is built: the file may be a stranger's, and timm's arguments can name weights to get
        # from a hub, an address or a path.
        architecture, given = str(document["architecture"]), dict(document.get("model_args", {}))
        if not timm.is_model(architecture.partition(".")[0]) or not FOREIGN.isdisjoint(given):
            named = ", ".join(sorted(FOREIGN & given.keys())) or repr(architecture)
            raise RequestError(
                f"the file beside the weights asks timm for more than a network ({named}); it was not opened"
            )
        model: nn.Module = timm.create_model(
            architecture, pretrained=False, **{"num_classes": document["num_classes"], **given}
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
    """Return where the JSON file of a safetensors file lies.

    It has the same name but for the ending; that of ``model.safetensors`` is ``config.json``, the pair of names that
    timm's ``local-dir:`` and the Hugging Face hub look for.
    """
    return weights.with_name("config.json") if weights.name == "model.safetensors" else weights.with_suffix(".json")


def open_safetensors(path: Path, device: torch.device) -> Classifier:
    """Open weights that ``vitctl export`` wrote, with the JSON file beside them.

    Raises:
        RequestError: one of the two is not there, damaged, or not written by vitctl.
    """
    if not path.is_file():
        raise RequestError(f"{path} is {'a folder, not a file' if path.exists() else 'not there'}")
    beside = config_path(path)
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
        described = document[RECORD]
    except FileNotFoundError as error:
        raise RequestError(f"{path} cannot be rebuilt without {beside}, which is not there") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{beside} is damaged, or was not written by vitctl export") from error
    record = Metadata.from_json(described, str(beside))
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path} is damaged, or no safetensors file: {error}") from error
    try:
        model = rebuild(document, record)
        model.load_state_dict(tensors)
        with torch.inference_mode():
            logits = model(torch.zeros(1, record.channels, record.size, record.size))
        if logits.shape != (1, len(record.classes)):
            raise ValueError(f"it gives {list(logits.shape)} for an image of {len(record.classes)} classes")
    except RequestError:
        raise
    except Exception as error:  # whatever a foreign name or option makes a builder stumble over
        raise RequestError(
            f"{path} does not hold the weights of what {beside} describes: {_last_line(error)}"
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
            limit_train=record.provenance.limit_train,
            flip="on" if record.provenance.flips else "off",
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
    )
    return classifier_of(trained, device)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _shortened(lines[-1].strip()) if lines else type(error).__name__


def _shortened(text: str, most: int = 200) -> str:
    """Return a sentence cut off where torch lists every weight."""
    return text if len(text) <= most else f"{text[:most]}..."
