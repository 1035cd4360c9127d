"""``vitctl export``: load, write in memory, compare with the network, and only then put files on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from vitctl.data.dataset import Dataset
from vitctl.errors import Interrupted, RequestError, RunFailed
from vitctl.export import EXPORTERS, QUANTIZERS, files
from vitctl.export.formats import Deployed, Format, Run, as_tuple, quiet, said_of
from vitctl.export.metadata import Metadata
from vitctl.export.onnx import serialize
from vitctl.export.quantize import HeldBack, Quantized, hold_back, measure
from vitctl.export.request import ExportRequest, Form
from vitctl.export.verify import Agreement, Sample, compare, make_reference, make_sample, measure_speed
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.provenance import Provenance
from vitctl.inference.scoring import load_data_for
from vitctl.inference.trained import Trained, load_trained
from vitctl.observer import Observer

NETWORK = "network"
"""What the network itself is called among the files."""

Record = dict[str, Any]


@dataclass
class Product:
    """A file that is being made.

    Attributes:
        label: what it is called in tables: ``onnx``, ``onnx int8``.
        format: its name in the table.
        record: what it says of itself.
        parts: its bytes, by suffix; the first is the file that users name.
        paths: where they go.
        run: runs it.
        quantized: how it was made smaller, and at what cost.
        agreement: with the network.
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
    """Export a checkpoint into every format asked for; either all files are written and checked, or none is.

    Args:
        request: what to do.
        observer: is notified of progress.

    Returns:
        ``checkpoint``, ``checkpoint_sha256``, ``net``, ``weights``, ``epoch``, ``run``, ``verified``, ``compared_on``
        (or None), ``tolerance``; under ``network`` its ``bytes`` (of the weights), ``top1``, ``latency_p50``,
        ``latency_p95`` (seconds), ``images_per_second``, ``speed_batch``; under ``files`` a record for each file with
        the same, and ``path, format, quantized, sha256, engine, batches, max_difference, changed, ties``; and what
        machine and versions these figures are of.

    Raises:
        RequestError: no such checkpoint, data or folder; nothing was written.
        RunFailed: a file does not compute what the network does, or lost too much accuracy, or cannot be written.
        Interrupted: a signal came; nothing was written.
    """
    with _stoppable():
        return _export(request, observer)


def _export(request: ExportRequest, observer: Observer) -> Record:
    device = torch.device("cpu")
    trained = load_trained(request.path, weights=request.weights, device=device, warn=observer.message)
    paths = files.plan(request, trained.path)
    # A file computes in float32, whatever the training did, so the network that it is compared with does too.
    classifier = classifier_of(replace(trained, config=replace(trained.config, precision="fp32")), device)
    data = _data_at_hand(request, classifier, observer)
    sample = None
    if request.verify:
        whole_numbers = request.form.dtype == "uint8"
        sample = make_sample(classifier, data, request.verify_on, whole_numbers=whole_numbers)
    record = _record(request, trained, sample)
    products = [_export_as(name, request, trained, record, observer) for name in dict.fromkeys(request.formats)]
    if request.quantize:
        assert data is not None
        base = next(product for product in products if product.format == "onnx")
        products += _make_smaller(base, request, classifier, data, observer)
    for product in products:
        product.paths = paths[product.format, product.record.quantized]
    report = _verify(products, request, trained, classifier, sample, observer)
    files.write_all(
        {path: part for each in products for path, part in zip(each.paths, each.parts.values(), strict=True)}
    )
    return report


def _data_at_hand(request: ExportRequest, classifier: Classifier, observer: Observer) -> Dataset | None:
    """Return the data set to check on, or None where it is not here and was not asked for by name."""
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
            raise RequestError(
                f"--quantize {request.quantize[0]} takes images to calibrate and to measure on, and they are not at "
                f"hand: {error}"
            ) from error
        if request.verify_on is None:
            raise RequestError(f"--verify-on all takes the test images, and they are not at hand: {error}") from error
        observer.message(f"no images at hand, so generated ones are compared ({error})")
        return None


def _record(request: ExportRequest, trained: Trained, sample: Sample | None) -> Metadata:
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
        provenance=Provenance.of(config),
        run=_run_name(trained.path),
        checkpoint=trained.path.name,
        checkpoint_sha256=trained.sha256,
        weights=trained.weights,
        epoch=trained.epoch,
        accuracy=_measured(trained),
        verified_on=sample.title if sample is not None else "",
    )


def _run_folder(checkpoint: Path) -> Path | None:
    folder = checkpoint.absolute().parent.parent
    return folder if checkpoint.absolute().parent.name == "checkpoints" and (folder / "config.json").is_file() else None


def _run_name(checkpoint: Path) -> str:
    folder = _run_folder(checkpoint)
    return folder.name if folder else ""


def _measured(trained: Trained) -> dict[str, float]:
    """Return the accuracies that the run measured with exactly these weights, in percent."""
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
    """Write the network in one format, in memory."""
    entry = EXPORTERS[name]
    observer.working(f"writing {name}" + (f", operator set {request.opset}" if name == "onnx" else ""))
    if entry.caution:
        observer.message(f"{name}: {entry.caution}")
    if entry.bare:
        record = replace(record, form=Form(normalize="none"))
    network = Deployed(trained.model, trained.mean, trained.std, record.form, trained.config.size)
    writer: Format = entry.load()()
    with _fails_as(name):
        parts = writer.export(network, record, opset=request.opset)
    return Product(label=name, format=name, record=record, parts=parts)


def _make_smaller(
    base: Product, request: ExportRequest, classifier: Classifier, data: Dataset, observer: Observer
) -> list[Product]:
    """Return a smaller file for each ``--quantize``, held to its bound on held-out images."""
    images: HeldBack = hold_back(classifier, data)
    if images.trained_on:
        observer.message(
            f"the run held nothing out (--val {classifier.provenance.val}), so the drop is measured on images that it trained on"
        )
    whole = base.parts[".onnx"]
    with _fails_as("the onnx file"):
        top1 = measure(whole, base.record, images, "held-out images, float32", observer.evaluating)
    products: list[Product] = []
    for name in dict.fromkeys(request.quantize):
        observer.working(f"quantizing to {name}")
        record = replace(base.record, quantized=name)
        quantize = QUANTIZERS[name].load()
        with _fails_as(f"the file cannot be quantized to {name}"):
            made: Quantized = quantize(
                whole, record, images, max_drop=request.max_drop, top1=top1, progress=observer.evaluating
            )
        if made.drop > request.max_drop and not request.allow_drop:
            raise RunFailed(
                f"{name} loses {made.drop:.2f} points of accuracy on {len(images.labels):,} held-out images "
                f"({top1:.2f} -> {made.top1:.2f} %), more than --max-drop {request.max_drop:g}; nothing was exported: "
                f"raise it, or take --allow-drop"
            )
        own = {"held_out_acc": made.top1, "held_out_drop": made.drop}
        record = replace(record, accuracy=own)
        parts = {".onnx": serialize(onnx.load_from_string(made.data), record)}
        products.append(Product(label=f"onnx {name}", format="onnx", record=record, parts=parts, quantized=made))
    return products


def _verify(
    products: list[Product],
    request: ExportRequest,
    trained: Trained,
    classifier: Classifier,
    sample: Sample | None,
    observer: Observer,
) -> Record:
    """Compare each file with the network, and return the report.

    Raises:
        RunFailed: a file does not compute what the network does.
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
            raise RunFailed(f"the network of {trained.path} gives values that are not finite; nothing was exported")
        network["top1"] = reference.top1(sample)
        for product in products:
            with _fails_as(product.label):
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
            failure = None if product.quantized else product.agreement.failure(request.tolerance)
            if failure:
                raise RunFailed(
                    f"the {product.label} file does not compute what the network does on {sample.title}: {failure}; "
                    f"nothing was exported"
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
    """Reload a file from its bytes, as a user would, and take its record from there.

    Raises:
        RunFailed: the record is not the one that was written.
    """
    reader: Format = EXPORTERS[product.format].load()()
    with quiet():
        record, product.run = reader.open(product.parts)
    states, wrote = record.to_strings(), product.record.to_strings()
    wrong = [name for name, text in wrote.items() if states.get(name) != text]
    if wrong:
        raise RunFailed(
            f"the {product.label} file does not say of itself what was written ({', '.join(wrong)}); nothing was exported"
        )
    product.record = record


@contextlib.contextmanager
def _fails_as(label: str) -> Iterator[None]:
    """Turn whatever an engine raises of a file into one sentence.

    Raises:
        RunFailed: the file cannot be opened, run or made smaller.
    """
    try:
        yield
    except (RequestError, RunFailed):
        raise
    except OSError as error:  # of the folder for temporary files, as nothing else is written yet
        raise RunFailed(
            f"{label}: cannot write to the folder for temporary files, {tempfile.gettempdir()}: "
            f"{error.strerror or error}; nothing was exported: make room, or set TMPDIR"
        ) from error
    except Exception as error:  # engines have classes of their own for each of their complaints
        raise RunFailed(f"{label}: {said_of(error)}; nothing was exported") from error


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
        made = product.quantized
        row.update(held_out_top1=made.top1, drop=made.drop, layers=made.layers, layers_in_float=list(made.in_float))
    return row


class _Stop(BaseException):
    """A signal came. Not an Exception, as exporters try again after any of those."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an orderly end, so that temporary files are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        raise _Stop(signum)

    before = {signum: signal.getsignal(signum) for signum in files.stopping()}
    for signum in before:
        signal.signal(signum, stop)
    try:
        yield
    except _Stop as caught:
        raise Interrupted("stopped; nothing was exported", caught.signum) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
