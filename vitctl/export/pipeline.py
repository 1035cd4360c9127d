"""The export pipeline: load a checkpoint, export it in memory, verify the result, and only then write files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import torch

from vitctl import __version__, devices
from vitctl.config import is_run
from vitctl.data.dataset import Dataset
from vitctl.errors import Interrupted, RequestError, RunFailed
from vitctl.export import EXPORTERS, QUANTIZERS, files
from vitctl.export.formats import Deployed, Format, Run, as_tuple, first_line, quiet
from vitctl.export.metadata import Metadata
from vitctl.export.onnx import serialize
from vitctl.export.quantize import Quantized, measure, select_data
from vitctl.export.request import ExportRequest, Form
from vitctl.export.verify import Agreement, Sample, compare, make_reference, make_sample, measure_speed
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.provenance import Provenance
from vitctl.inference.scoring import load_data_for
from vitctl.inference.trained import Trained, load_trained
from vitctl.models.sources import CHECKPOINTS
from vitctl.observer import Observer
from vitctl.process.signals import stop_signals
from vitctl.units import escaped

NETWORK = "network"
"""Name of the model among the files, when measuring speed."""

Record = dict[str, Any]


@dataclass
class Product:
    """A file to export, in one format and quantization.

    Attributes:
        label: name in tables and messages: ``onnx``, ``onnx int8``.
        format: name of the format.
        record: metadata.
        parts: contents by suffix, the main file first.
        paths: paths of ``parts``, in the same order.
        run: runs the file, once it has been opened.
        quantized: result of the quantization, if any.
        agreement: result of the comparison with the model, if any.
    """

    label: str
    format: str
    record: Metadata
    parts: dict[str, bytes]
    paths: list[Path] = field(default_factory=list)
    run: Run | None = None
    quantized: Quantized | None = None
    agreement: Agreement | None = None


def export(request: ExportRequest, observer: Observer) -> Record:
    """Export a checkpoint to every requested format, and write all files or none.

    Args:
        request: the settings.
        observer: receives progress events.

    Returns:
        ``checkpoint``, ``checkpoint_sha256``, ``net``, ``weights``, ``epoch``, ``run``, ``verified``, ``compared_on``
        (or None) and ``tolerance``; under ``network`` the model's ``bytes`` (of the weights), ``top1``, ``latency_p50``,
        ``latency_p95`` (seconds), ``images_per_second`` and ``speed_batch``; under ``files``, for each file, the same
        figures and ``path, format, quantized, sha256, engine, batches, max_difference, changed, ties``; and the device
        and versions.

    Raises:
        RequestError: the checkpoint or data are missing, or a path cannot be written.
        RunFailed: a file does not match the model, lost too much accuracy, or could not be written.
        Interrupted: a signal stopped the export.
    """
    with _interruptible():
        return _export(request, observer)


def _export(request: ExportRequest, observer: Observer) -> Record:
    device = torch.device("cpu")
    trained = load_trained(request.path, weights=request.weights, device=device, warn=observer.message)
    paths = files.plan(request, trained.path)
    # Files compute in float32, so the model must too, whatever the precision in training.
    classifier = classifier_of(replace(trained, precision="fp32"), device)
    data = _load_data(request, classifier, observer)
    sample = None
    if request.verify:
        sample = make_sample(classifier, data, request.verify_on, uint8_input=request.form.dtype == "uint8")
    record = _metadata(request, trained, sample)
    products = [_export_as(name, request, trained, record, observer) for name in dict.fromkeys(request.formats)]
    if request.quantize:
        assert data is not None
        base = next(product for product in products if product.format == "onnx")
        products += _quantize(base, request, classifier, data, observer)
    for product in products:
        product.paths = paths[product.format, product.record.quantized]
    report = _verify(products, request, trained, classifier, sample, observer)
    files.write_all(
        {path: part for each in products for path, part in zip(each.paths, each.parts.values(), strict=True)}
    )
    return report


def _load_data(request: ExportRequest, classifier: Classifier, observer: Observer) -> Dataset | None:
    """Return the data set to verify and quantize on, or None if it is not needed, or missing and not required."""
    if not request.verify and not request.quantize:
        return None
    named = request.dataset is not None or request.data_dir is not None
    needed = named or bool(request.quantize) or request.verify_on is None
    try:
        return load_data_for(
            classifier,
            dataset=request.dataset,
            data_dir=request.data_dir,
            observer=observer,
            download=needed,
        )
    except RequestError as error:
        if named:
            raise
        if request.quantize:
            error.add_context(f"--quantize {request.quantize[0]} needs images")
            raise
        if request.verify_on is None:
            error.add_context("--verify-on all needs the test images")
            raise
        observer.message(f"verifying on generated images: {error.message}")
        return None


def _metadata(request: ExportRequest, trained: Trained, sample: Sample | None) -> Metadata:
    config = trained.config
    return Metadata(
        vitctl=__version__,
        net=config.net,
        net_options=config.net_options,
        classes=trained.classes,
        size=config.size,
        channels=len(trained.mean),
        mean=trained.mean,
        std=trained.std,
        form=request.form,
        provenance=Provenance.of(config, trained.data_sha256),
        run=escaped(_run_name(trained.path)),
        checkpoint=escaped(trained.path.name),
        checkpoint_sha256=trained.sha256,
        weights=trained.weights,
        epoch=trained.epoch,
        accuracy=_run_accuracies(trained),
        verified_on=sample.title if sample is not None else "",
    )


def _run_folder(checkpoint: Path) -> Path | None:
    checkpoints = checkpoint.absolute().parent
    return checkpoints.parent if checkpoints.name == CHECKPOINTS and is_run(checkpoints.parent) else None


def _run_name(checkpoint: Path) -> str:
    folder = _run_folder(checkpoint)
    return folder.name if folder else ""


def _run_accuracies(trained: Trained) -> dict[str, float]:
    """Return the accuracies in percent that the run measured at this checkpoint's step."""
    figures: dict[str, float] = {}
    if trained.history and trained.history[-1]["step"] == trained.step and "val_acc" in trained.history[-1]:
        held_out = trained.history[-1].get("val_split") != "test"
        figures["val_acc" if held_out else "test_acc"] = trained.history[-1]["val_acc"]
    folder = _run_folder(trained.path)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8")) if folder else {}
        if summary.get("step") == trained.step:
            figures["test_acc"] = float(summary["test_acc"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return figures


def _export_as(name: str, request: ExportRequest, trained: Trained, record: Metadata, observer: Observer) -> Product:
    entry = EXPORTERS[name]
    observer.working(f"exporting to {name}" + (f", opset {request.opset}" if name == "onnx" else ""))
    if entry.caution:
        observer.message(f"{name}: {entry.caution}")
    if entry.weights_only:
        record = replace(record, form=Form(normalize="none"))
    network = Deployed(trained.model, trained.mean, trained.std, record.form, trained.config.size)
    writer: Format = entry.load()()
    with _converted_errors(name):
        parts = writer.export(network, record, opset=request.opset)
    return Product(label=name, format=name, record=record, parts=parts)


def _quantize(
    base: Product, request: ExportRequest, classifier: Classifier, data: Dataset, observer: Observer
) -> list[Product]:
    """Return a quantized file for each ``--quantize``.

    Raises:
        RunFailed: a file loses more accuracy than ``--max-drop``.
    """
    images = select_data(classifier, data)
    if images.trained_on:
        observer.message(
            f"the run held out no images (--val {classifier.provenance.val}): measuring accuracy on training images"
        )
    float32 = base.parts[".onnx"]
    with _converted_errors("onnx"):
        top1 = measure(float32, base.record, images, "held-out images, float32", observer.evaluating)
    products: list[Product] = []
    for name in dict.fromkeys(request.quantize):
        observer.working(f"quantizing to {name}")
        record = replace(base.record, quantized=name)
        quantize = QUANTIZERS[name].load()
        with _converted_errors(f"cannot quantize to {name}"):
            result: Quantized = quantize(
                float32, record, images, max_drop=request.max_drop, top1=top1, progress=observer.evaluating
            )
        if result.drop > request.max_drop and not request.allow_drop:
            raise RunFailed(
                f"{name} loses {result.drop:.2f} points ({top1:.2f} -> {result.top1:.2f} %), more than --max-drop "
                f"{request.max_drop:g}; nothing was exported",
                hint=f"use --max-drop {math.ceil(result.drop)}, or add --allow-drop",
            )
        record = replace(record, accuracy={"held_out_acc": result.top1, "held_out_drop": result.drop})
        parts = {".onnx": serialize(onnx.load_from_string(result.data), record)}
        products.append(Product(label=f"onnx {name}", format="onnx", record=record, parts=parts, quantized=result))
    return products


def _verify(
    products: list[Product],
    request: ExportRequest,
    trained: Trained,
    classifier: Classifier,
    sample: Sample | None,
    observer: Observer,
) -> Record:
    """Compare each file with the model, and return the report.

    Raises:
        RunFailed: a file does not match the model.
    """
    network: Record = {"bytes": sum(4 * tensor.numel() for tensor in trained.model.state_dict().values())}
    report: Record = {
        "checkpoint": str(trained.path),
        "checkpoint_sha256": products[0].record.checkpoint_sha256,
        "net": trained.config.net,
        "run": products[0].record.run,
        "weights": trained.weights,
        "epoch": trained.epoch,
        "verified": request.verify,
        "compared_on": sample.title if sample else None,
        "tolerance": request.tolerance,
        "network": network,
        "files": [],
        **devices.environment(classifier.device),
    }
    speeds: dict[str, dict[str, Any]] = {}
    if sample is not None:
        reference = make_reference(classifier, sample, observer.evaluating)
        if not reference.logits.isfinite().all():
            raise RunFailed(
                f"{trained.path} gives logits that are not finite; nothing was exported",
                hint="use another checkpoint of the run, such as best.pt",
            )
        network["top1"] = reference.top1(sample)
        for product in products:
            with _converted_errors(product.label):
                _open(product)
                assert product.run is not None
                product.agreement = compare(
                    product.record,
                    product.run,
                    sample,
                    reference,
                    tolerance=request.tolerance,
                    batch=classifier.batch,
                    title=product.label,
                    progress=observer.evaluating,
                )
            mismatch = None if product.quantized else product.agreement.failure(request.tolerance)
            if mismatch:
                raise RunFailed(
                    f"the {product.label} file does not match the model on {sample.title}: {mismatch.message}; "
                    f"nothing was exported",
                    hint=mismatch.hint,
                )
        observer.working("measuring speed")
        eager = Deployed(trained.model, trained.mean, trained.std, request.form, trained.config.size)
        speeds = measure_speed(
            {
                NETWORK: (_eager(eager), replace(products[0].record, form=request.form)),
                **{product.label: (product.run, product.record) for product in products if product.run is not None},
            },
            sample,
        )
        network.update(speeds[NETWORK])
    for product in products:
        report["files"].append(_file_report(product) | speeds.get(product.label, {}))
    return report


def _open(product: Product) -> None:
    """Open the content of a file as a user would, and take the metadata from it.

    Raises:
        RunFailed: the metadata differs from what was written.
    """
    reader: Format = EXPORTERS[product.format].load()()
    with quiet():
        record, product.run = reader.open(product.parts)
    states, wrote = record.to_strings(), product.record.to_strings()
    wrong = [name for name, text in wrote.items() if states.get(name) != text]
    if wrong:
        raise RunFailed(
            f"the export to {product.label} changed the metadata: {', '.join(wrong)}; nothing was exported",
            hint="use another --format",
        )
    product.record = record


@contextlib.contextmanager
def _converted_errors(label: str) -> Iterator[None]:
    """Convert unexpected errors of exporters and engines to RunFailed; ``label`` begins the message."""
    try:
        yield
    except (RequestError, RunFailed):
        raise
    except OSError as error:  # only temporary files have been written so far
        raise RunFailed(
            f"{label}: cannot write temporary files in {tempfile.gettempdir()}: {error.strerror or error}; "
            f"nothing was exported",
            hint="free some space, or set TMPDIR to another folder",
        ) from error
    except Exception as error:  # engines raise exceptions of many classes
        raise RunFailed(f"{label}: {first_line(error)}; nothing was exported") from error


def _eager(network: Deployed) -> Run:
    def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return as_tuple(network(images))

    return run


def _file_report(product: Product) -> Record:
    writer: type[Format] = EXPORTERS[product.format].load()
    main = next(iter(product.parts.values()))
    row: Record = {
        "path": str(product.paths[0]),
        "beside": [str(path) for path in product.paths[1:]],
        "format": product.format,
        "quantized": product.record.quantized,
        "label": product.label,
        "bytes": len(main),
        "sha256": hashlib.sha256(main).hexdigest(),
        "engine": writer.engine,
    }
    if product.agreement is not None:
        row.update(asdict(product.agreement))
    if product.quantized is not None:
        result = product.quantized
        row.update(
            held_out_top1=result.top1, drop=result.drop, layers=result.layers, layers_in_float=list(result.in_float)
        )
    return row


class _Stop(BaseException):
    """A signal arrived. Not an Exception, because exporters catch those and try again."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Convert signals to Interrupted, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process immediately
        raise _Stop(signum)

    before = {signum: signal.getsignal(signum) for signum in stop_signals()}
    for signum in before:
        signal.signal(signum, stop)
    try:
        yield
    except _Stop as caught:
        raise Interrupted("stopped; nothing was exported", caught.signum) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
