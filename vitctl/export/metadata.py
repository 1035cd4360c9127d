"""What an exported file says of itself, so that it can be used without anything else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.config import VAL_PROTOCOLS
from vitctl.data import DATASETS
from vitctl.errors import RequestError
from vitctl.export.request import Form
from vitctl.inference.provenance import Provenance
from vitctl.registry import Value

FORMAT = 1
"""The version of these records; a later vitctl reads this one for ever."""

RESIZE = "shorter side to size, bilinear with antialiasing, then the middle of the longer one is cut out"
"""How an image of another size becomes one of ``size`` by ``size`` pixels."""


_NESTED = {"form", "provenance"}
_FORM_TEXTS = {"normalize", "input", "layout", "values", "resize"}


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The record in every exported file: a text per field, numbers and lists as JSON.

    Attributes:
        vitctl: the version that wrote it.
        net: the network's name.
        net_options: its options.
        classes: what the logits stand for, in order.
        size: side of the images in pixels.
        channels: 1 for grey, 3 for red, green and blue.
        mean: per channel, of images scaled to 0-1.
        std: likewise.
        form: what goes in and comes out.
        provenance: the training data; stored in a file alongside the other fields, not nested.
        run: the name of its run's folder, or empty.
        checkpoint: the name of the checkpoint's file.
        checkpoint_sha256: of the checkpoint's file.
        weights: ``ema`` when they are an average of weights, else ``model``.
        epoch: epochs trained.
        accuracy: what the run measured with these weights, in percent: ``val_acc``, ``test_acc``; of a quantized file,
            its own ``held_out_acc``, and how far that is below the float32 file's, ``held_out_drop``.
        quantized: ``none``, or a name of ``--quantize``.
        verified_on: what it was compared with the network on, or empty.
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
        """Return the record as texts, as ONNX and safetensors keep them."""
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
            "resize": RESIZE,
            "verified": json.dumps(bool(self.verified_on)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the record as one JSON object."""
        fields = (*dataclasses.fields(self), *dataclasses.fields(Provenance))
        texts = {f.name for f in fields if f.type == "str"} | _FORM_TEXTS
        return {key: text if key in texts else json.loads(text) for key, text in self.to_strings().items()}

    @classmethod
    def from_json(cls, document: Any, path: str) -> Metadata:
        """Rebuild what :meth:`to_json` gave; as :meth:`from_strings`."""
        items = document.items() if isinstance(document, dict) else ()
        return cls.from_strings({k: v if isinstance(v, str) else json.dumps(v) for k, v in items}, path)

    @classmethod
    def from_strings(cls, texts: Mapping[str, str], path: str) -> Metadata:
        """Rebuild the record, checking every field: the file may be anybody's.

        Args:
            texts: what the file carries.
            path: how to call it in an error.

        Raises:
            RequestError: the file is not vitctl's, of a later version, or its record is damaged.
        """
        if "vitctl" not in texts or "format" not in texts:
            raise RequestError(
                f"{path} was not written by vitctl export: it does not say what its images and classes are"
            )
        if texts["format"] != str(FORMAT):
            raise RequestError(
                f"{path} carries records of format {texts['format']}; this vitctl reads {FORMAT}: upgrade it"
            )
        # What earlier records of this format do not say.
        dataset = DATASETS.get(texts.get("dataset", ""))
        texts = {"limit_train": "null", "flips": json.dumps(dataset is None or dataset.flip), **texts}
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
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise RequestError(f"{path} is damaged: its record of what it is cannot be read ({reason})") from error
        return record

    def _check(self) -> None:
        if not (4 <= self.size <= 4096 and self.channels in (1, 3) and len(self.classes) >= 1):
            raise ValueError("size, channels or classes")
        data = self.provenance
        if data.val not in VAL_PROTOCOLS or not 0 < data.val_fraction < 1:
            raise ValueError("val or val_fraction")
        if data.limit_train is not None and data.limit_train < 1:
            raise ValueError("limit_train")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean or std")
        if not all(math.isfinite(number) for number in (*self.mean, *self.std)) or not all(std > 0 for std in self.std):
            raise ValueError("mean or std")


def _read(kind: str, text: str) -> Any:
    """Return a field's value, of the type that its annotation names."""
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
    elif value is None and kind == "int | None":
        return None
    elif _is_number(value):
        if kind == "float":
            return float(value)
        if int(value) == value:
            return int(value)
    raise ValueError(f"{text[:40]!r} is not {kind}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
