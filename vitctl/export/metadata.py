"""Metadata of exported files: how to prepare their input and read their output."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.config import HOLDOUT_RULES, VAL_PROTOCOLS
from vitctl.data import DATASETS
from vitctl.data.reading import FITS, FULL, parse_range
from vitctl.errors import RequestError
from vitctl.export.request import Form
from vitctl.inference.provenance import Provenance
from vitctl.registry import Value

FORMAT = 1
"""Version of the metadata; every later vitctl reads this version."""

EXPORT_AGAIN = "export the checkpoint again with vitctl export"
"""Hint for a damaged file."""

_NESTED = {"form", "provenance"}
_FORM_TEXTS = {"normalize", "input", "layout", "values", "resize"}


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata in every exported file: a string per field, with numbers and lists as JSON.

    Attributes:
        vitctl: version of vitctl that wrote the file.
        net: name of the network.
        net_options: options of the network.
        classes: class names, in the order of the logits.
        size: height and width of the images in pixels.
        channels: 1 for grey, 3 for RGB.
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel.
        form: input and output.
        provenance: the training data; its fields are stored alongside the others, not nested.
        run: name of the run's folder, or empty.
        checkpoint: file name of the checkpoint.
        checkpoint_sha256: SHA-256 of the checkpoint file.
        weights: ``ema`` for averaged weights, else ``model``.
        epoch: number of epochs trained.
        accuracy: accuracies of these weights in percent: ``val_acc`` and ``test_acc`` as the run measured them; for a
            quantized file, its own ``held_out_acc``, and ``held_out_drop``, the loss from the float32 file.
        quantized: ``none``, or a name of :data:`vitctl.export.QUANTIZERS`.
        verified_on: images on which the file was compared with the model, or empty.
    """

    vitctl: str
    net: str
    net_options: Mapping[str, Value]
    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    form: Form
    provenance: Provenance
    run: str
    checkpoint: str
    checkpoint_sha256: str
    weights: str
    epoch: int
    accuracy: Mapping[str, float]
    quantized: str = "none"
    verified_on: str = ""

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as strings, the form in which ONNX and safetensors store it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NESTED}
        values |= dataclasses.asdict(self.provenance)
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
        return {
            "format": str(FORMAT),
            **texts,
            "normalize": self.form.normalize,
            "input": self.form.dtype,
            "layout": self.form.layout,
            "values": self.form.values,
            "softmax": json.dumps(self.form.softmax),
            "resize": FITS[self.provenance.fit],
            "verified": json.dumps(bool(self.verified_on)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as a JSON object."""
        fields = (*dataclasses.fields(self), *dataclasses.fields(Provenance))
        texts = {f.name for f in fields if f.type == "str"} | _FORM_TEXTS
        return {key: text if key in texts else json.loads(text) for key, text in self.to_strings().items()}

    @classmethod
    def from_json(cls, document: Any, path: str) -> Metadata:
        """Parse the result of :meth:`to_json`; see :meth:`from_strings`."""
        items = document.items() if isinstance(document, dict) else ()
        return cls.from_strings({k: v if isinstance(v, str) else json.dumps(v) for k, v in items}, path)

    @classmethod
    def from_strings(cls, texts: Mapping[str, str], path: str) -> Metadata:
        """Parse metadata from an untrusted file, checking every field.

        Args:
            texts: the strings in the file.
            path: name of the file in error messages.

        Raises:
            RequestError: the file has no metadata of vitctl, or of a later version, or the metadata is damaged.
        """
        if "vitctl" not in texts or "format" not in texts:
            raise RequestError(
                f"{path} was not written by vitctl export: it has no metadata of vitctl",
                hint="use a checkpoint, or a file that vitctl export wrote",
            )
        if texts["format"] != str(FORMAT):
            raise RequestError(
                f"{path} has metadata of version {texts['format']}; this vitctl reads version {FORMAT}",
                hint="upgrade vitctl: pip install --upgrade vitctl",
            )
        # Earlier files of this version lack these fields.
        dataset = DATASETS.get(texts.get("dataset", ""))
        defaults = {
            "limit_train": "null",
            "flips": json.dumps(dataset is None or dataset.flip),
            "holdout_by": "position",
            "test_fraction": "null",
            "data_sha256": "",
            "fit": "crop",
            "value_range": FULL,
        }
        texts = {**defaults, **texts}
        try:
            values, trained_on = (
                {f.name: _read(str(f.type), texts[f.name]) for f in dataclasses.fields(kind) if f.name not in _NESTED}
                for kind in (cls, Provenance)
            )
            form = Form(
                normalize=texts["normalize"],
                dtype=texts["input"],
                layout=texts["layout"],
                softmax=json.loads(texts["softmax"]),
            )
            record = cls(**values, form=form, provenance=Provenance(**trained_on))
            record._check()
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError, RequestError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            if isinstance(error, RequestError):
                reason = error.message
            raise RequestError(f"{path} is damaged: invalid metadata ({reason})", hint=EXPORT_AGAIN) from error
        return record

    def _check(self) -> None:
        if not (4 <= self.size <= 4096 and self.channels in (1, 3) and len(self.classes) >= 1):
            raise ValueError("size, channels or classes out of range")
        data = self.provenance
        if data.val not in VAL_PROTOCOLS or not 0 < data.val_fraction < 1:
            raise ValueError("val or val_fraction out of range")
        if data.holdout_by not in HOLDOUT_RULES or (data.test_fraction is not None and not 0 < data.test_fraction < 1):
            raise ValueError("holdout_by or test_fraction out of range")
        if data.limit_train is not None and data.limit_train < 1:
            raise ValueError("limit_train out of range")
        if data.fit not in FITS:
            raise ValueError(f"unknown fit {data.fit!r}")
        if data.value_range != FULL:
            parse_range(data.value_range)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean or std of the wrong length")
        if not all(math.isfinite(number) for number in (*self.mean, *self.std)) or not all(std > 0 for std in self.std):
            raise ValueError("mean or std out of range")


def _read(kind: str, text: str) -> Any:
    """Parse the value of a field; ``kind`` is its annotation."""
    if kind == "str":
        return text
    value = json.loads(text)
    if kind == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind == "tuple[float, ...]":
        if isinstance(value, list) and all(_is_number(item) for item in value):
            return tuple(map(float, value))
    elif kind.startswith("Mapping"):
        if isinstance(value, dict):
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif value is None and kind.endswith("| None"):
        return None
    elif _is_number(value):
        if kind.startswith("float"):
            return float(value)
        if int(value) == value:
            return int(value)
    raise ValueError(f"{text[:40]!r} is not {kind}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
