"""Results on stdout: Rich tables, or one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vitctl.units import format_bytes, format_duration, json_text, plural, quoted

if TYPE_CHECKING:
    from vitctl.doctor.examine import Examination
    from vitctl.inference.predict import Prediction
    from vitctl.inference.scoring import Scores
    from vitctl.report.tables import Table

MAX_CONFUSION = 20
"""Largest number of classes whose confusion matrix and sizes are printed."""

Record = dict[str, Any]


def print_json(document: Any) -> None:
    """Print ``document`` as one JSON document."""
    print(json_text(document))


def print_next(*words: object, more: str = "") -> None:
    """Print the command that is useful next, below a result.

    Args:
        *words: its words, quoted for the shell where needed.
        more: placeholders for words that the user adds, such as ``IMAGE...``.
    """
    print(f"next: {' '.join(map(quoted, words))}{more and f' {more}'}")


def print_bold(text: str) -> None:
    """Print a heading."""
    from vitctl.cli.grid import stdout_console

    stdout_console().print(text, style="bold", markup=False, soft_wrap=True)


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print rows of name and value."""
    from rich.markup import escape
    from rich.table import Table

    from vitctl.cli.grid import show, stdout_console

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    print_bold(title)  # a table's own title wraps at the table's width
    show(stdout_console(), table)


LABEL = 24
"""Width of a class with its probability, such as ``automobile (99.9 %)``; longer cells are wrapped."""

FIGURE = 16
"""Width of figures such as ``53.01 ± 0.47 % *``; longer cells are text."""


def print_comparison(comparison: Table) -> None:
    """Print figures side by side, with a star at the best of each row."""
    from rich.text import Text

    from vitctl.cli.grid import Column, print_grid, stdout_console
    from vitctl.report.tables import best

    console = stdout_console()
    console.print(comparison.title, style="bold", markup=False, soft_wrap=True)
    marks = [best(row) for row in comparison.rows]
    columns = [Column(comparison.corner, text=True)]
    for i, name in enumerate(comparison.columns):
        cells = [name, *(row.cells[i].text for row in comparison.rows)]
        columns.append(Column(name, text=max(map(len, cells)) + 2 > FIGURE))
    rows: list[list[str | Text]] = [
        [
            row.label,
            *(
                Text(f"{cell.text} *", style="bold green") if i in marked else cell.text
                for i, cell in enumerate(row.cells)
            ),
        ]
        for row, marked in zip(comparison.rows, marks, strict=True)
    ]
    print_grid(columns, rows)
    for note in [*(["* best of the row"] if any(marks) else []), *comparison.notes]:
        console.print(note, markup=False)


def print_summary(summary: Record) -> None:
    """Print the final figures of a run."""
    weights = "EMA weights" if summary["weights"] == "ema" else "last weights"
    rows = [
        ("test accuracy", f"{summary['test_acc']:.2f} %"),
        *(
            [("balanced test accuracy", f"{balanced:.2f} %")]
            if (balanced := summary.get("test_balanced_acc")) is not None
            else []
        ),
        ("test loss", f"{summary['test_loss']:.4f}"),
    ]
    if "test_acc_tta" in summary:
        rows += [(f"test accuracy with --tta {summary['tta']}", f"{summary['test_acc_tta']:.2f} %")]
    if "best_epoch" in summary:
        rows += [
            ("held-out accuracy", f"{summary['val_acc']:.2f} %"),
            ("best held-out accuracy", f"{summary['best_val_acc']:.2f} % (epoch {summary['best_epoch']})"),
        ]
    rows += [
        ("training accuracy", f"{summary['train_acc']:.2f} %"),
        ("training loss", f"{summary['train_loss']:.4f}"),
        (
            "epochs / steps",
            f"{summary['epoch']} / {summary['step']:,}{' (stopped early)' if summary['stopped_early'] else ''}",
        ),
        (
            "images train / val / test",
            " / ".join(f"{summary[f'{part}_images']:,}" for part in ("train", "val", "test")),
        ),
        (
            "epoch duration",
            format_duration(summary["epoch_time"])
            + (" (extrapolated)" if summary["step"] < summary.get("steps_per_epoch", 0) else ""),
        ),
        ("training speed", f"{summary['images_per_second']:,.0f} images/s"),
        ("time waiting for data", f"{100 * summary['data_wait']:.1f} %"),
        ("total time", format_duration(summary["seconds"])),
        ("peak memory", format_bytes(summary["peak_memory"])),
        ("parameters", f"{summary['params']:,}"),
        *([("compile time", format_duration(summary["compile_time"]))] if "compile_time" in summary else []),
        ("device", f"{summary['device']} ({summary['device_name']}, {plural(summary['threads'], 'thread')})"),
        ("precision", summary["precision"]),
        ("torch / vitctl / seed", f"{summary['torch']} / {summary['vitctl']} / {summary['seed']}"),
    ]
    when = "tested after every epoch" if summary.get("val_split") == "test" else "tested once"
    print_table(f"{summary['name']}: {weights}, {when}", rows)


def print_dry_run(cost: Record) -> None:
    """Print the estimated cost of a run."""
    print_table(
        f"dry run: {cost['net']}",
        [
            ("parameters", f"{cost['params']:,}"),
            ("forward pass", f"{cost['mflop']:,} MFLOP per image"),
            ("tokens", str(cost["tokens"]) if cost["tokens"] else "-"),
            ("training images", f"{cost['train_images']:,}"),
            ("images per class", class_sizes(cost["class_images"])),
            ("steps", f"{cost['total_steps']:,} ({cost['steps_per_epoch']:,} per epoch)"),
            ("micro-batch", f"{cost['micro_batch']} images"),
            (
                "step time",
                format_duration(cost["step_time"]) if cost["step_time"] >= 1 else f"{1000 * cost['step_time']:.0f} ms",
            ),
            ("training speed", f"{cost['images_per_second']:,.0f} images/s"),
            ("complete run (estimate)", format_duration(cost["eta"])),
            ("peak memory", format_bytes(cost["peak_memory"])),
            ("device", f"{cost['device']} ({cost['device_name']}, {plural(cost['threads'], 'thread')})"),
            ("precision", cost["precision"]),
            *([("compile time", format_duration(cost["compile_time"]))] if "compile_time" in cost else []),
        ],
    )
    if cost["uneven_classes"] and cost["config"]["class_weights"] == "none":
        print("the classes are uneven: --class-weights balanced gives all the same weight in the loss")


def class_sizes(images: dict[str, int]) -> str:
    """Return the number of images of each class as text, or the range of numbers if there are many classes."""
    least, most = min(images, key=images.__getitem__), max(images, key=images.__getitem__)
    if images[least] == images[most]:
        return f"{images[least]:,} each of {len(images)} classes"
    if len(images) <= MAX_CONFUSION:
        return ", ".join(f"{name} {count:,}" for name, count in images.items())
    return f"{images[least]:,} ({least}) to {images[most]:,} ({most}), {len(images)} classes"


BLANK = 0.02
"""Fraction of images blanked by the augmentation above which the preview warns."""


def print_preview(preview: Record) -> None:
    """Print what the image of ``--preview-batch`` shows."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{preview['file']}: {preview['shown']} augmented images of {preview['dataset']} at {preview['size']} px\n"
        f"augmentation: {preview['augmentation']}\n"
        f"blank (one color, apart from padding): {100 * preview['blank']:.1f} % of {preview['images']:,} images, "
        f"{100 * preview['blank_stored']:.1f} % before augmentation",
        markup=False,
    )
    if preview["blank"] - preview["blank_stored"] > BLANK:
        console.print(
            "The augmentation is too strong for images of this size: nothing can be learned from blank ones.",
            markup=False,
        )


def print_lr_finder(found: Record) -> None:
    """Print the result of a learning-rate range test."""
    from rich.console import Console

    def rate(value: float | None) -> str:
        return f"{value:.2g}" if value is not None else "-"

    end = "diverged" if found["diverged"] else "did not diverge"
    print_table(
        f"learning-rate range test: {found['net']}, {found['opt']}",
        [
            ("suggested --lr (steepest descent)", rate(found["suggestion"])),
            *((f"suggested {name}", rate(value)) for name, value in found["second_lr"].items()),
            ("lr at the lowest loss / 10", rate(found["lowest_tenth"])),
            ("lr at the lowest loss", rate(found["lowest"])),
            ("--lr of the settings", rate(found["config"]["lr"])),
            ("steps", f"{found['steps']} ({end})"),
            ("total time", format_duration(found["seconds"])),
            ("device", f"{found['device']} ({found['device_name']}, {plural(found['threads'], 'thread')})"),
        ],
    )
    console = Console(highlight=False, soft_wrap=True)
    if found["suggestion"] is None:
        reason, hint = "the loss did not fall noticeably", f"use more steps: --max-steps {2 * found['steps']}"
        if found["diverged"] and found["lr"][-1] < found["config"]["lr"]:
            reason, hint = "the loss diverged before it fell", f"use --lr {found['config']['lr'] / 100:g}"
        console.print(f"no suggestion: {reason}\nhint: {hint}", markup=False)
    if found["plot"]:
        console.print(f"plot: {found['plot']}", markup=False)


def print_scores(scores: Scores) -> None:
    """Print the figures of ``vitctl eval``."""
    from rich.text import Text

    from vitctl.cli.grid import Column, print_grid, short_labels

    figures = scores.figures
    print_table(
        f"{figures['checkpoint']} on {figures['dataset']} {figures['split']}",
        [
            ("top-1 accuracy", f"{figures['top1']:.2f} %"),
            ("top-5 accuracy", f"{figures['top5']:.2f} %" if figures["top5"] is not None else "-"),
            *(
                [("balanced accuracy", f"{balanced:.2f} %")]
                if (balanced := figures["balanced_acc"]) is not None
                else []
            ),
            ("loss", f"{figures['loss']:.4f}"),
            *(
                [(f"top-1 accuracy with --tta {figures['tta']}", f"{figures['top1_tta']:.2f} %")]
                if "tta" in figures
                else []
            ),
            ("images", f"{figures['images']:,}"),
            *([("changed images", figures["accepted_data"])] if "accepted_data" in figures else []),
            ("weights", f"{figures['net']}, {figures['weights']}, epoch {figures['epoch']}"),
            ("engine", figures["engine"]),
            *(
                [
                    ("speed", f"{figures['images_per_second']:,.0f} images/s"),
                    (
                        "device",
                        f"{figures['device']} ({figures['device_name']}, {plural(figures['threads'], 'thread')})",
                    ),
                ]
                if figures["images_per_second"] is not None
                else []
            ),
        ],
    )
    print_grid(
        [Column("class", text=True), *map(Column, ("precision", "recall", "F1", "images"))],
        [
            [
                row["class"],
                *("–" if row[key] is None else f"{row[key]:.2f} %" for key in ("precision", "recall", "f1")),
                f"{row['support']:,}",
            ]
            for row in scores.classes
        ],
    )
    names = [row["class"] for row in scores.classes]
    if len(names) > MAX_CONFUSION:
        print(f"(the confusion matrix of {len(names)} classes is in --json)")
        return
    print_bold("confusion matrix: true classes in rows, predicted classes in columns")
    labels = short_labels(names)
    if labels is None:
        labels = [str(number) for number in range(1, len(names) + 1)]
        names = [f"{number} {name}" for number, name in zip(labels, names, strict=True)]
    print_grid(
        [Column("", text=True), *map(Column, labels)],
        [
            [name, *(Text(str(count), style="bold" if i == j else "") for j, count in enumerate(counts))]
            for i, (name, counts) in enumerate(zip(names, scores.confusion, strict=True))
        ],
    )


def print_export(report: Record) -> None:
    """Print the report of ``vitctl export``: a column for the model and one for each file."""
    from vitctl.cli.grid import Column, print_grid, stdout_console

    network, files = report["network"], report["files"]
    rows: list[list[str]] = []

    def row(name: str, cell: Callable[[Record], str | None]) -> None:
        cells = [cell(each) for each in (network, *files)]
        if any(text is not None for text in cells):
            rows.append([name, *(text or "" for text in cells)])

    def figure(key: str, show: Callable[[Any], str]) -> Callable[[Record], str | None]:
        return lambda each: None if each.get(key) is None else show(each[key])

    def changed(each: Record) -> str | None:
        if "changed" not in each:
            return None
        return f"{each['changed']:,}" + (f" ({plural(each['ties'], 'tie')})" if each["ties"] else "")

    row("engine", lambda each: each.get("engine", f"torch {report['torch']}").partition("+")[0])
    row("size", figure("bytes", format_bytes))
    for count in ("1", "3", "17"):
        row(f"difference, batch {count}", lambda each, count=count: _difference(each, count))  # type: ignore[misc]
    row("largest difference", figure("max_difference", "{:.1e}".format))
    row("largest difference, probs", figure("max_difference_probs", "{:.1e}".format))
    row("changed predictions", changed)
    row("top-1 accuracy", figure("top1", "{:.2f} %".format))
    row("held-out accuracy", figure("held_out_top1", "{:.2f} %".format))
    row("accuracy lost", figure("drop", "{:.2f} points".format))
    row(
        "layers in float",
        lambda each: f"{len(each['layers_in_float'])} of {each['layers']}" if each.get("quantized") == "int8" else None,
    )
    row("latency p50, batch 1", figure("latency_p50", lambda seconds: f"{1000 * seconds:.2f} ms"))
    row("latency p95, batch 1", figure("latency_p95", lambda seconds: f"{1000 * seconds:.2f} ms"))
    batch = network.get("speed_batch")
    row(f"images/s, batch {batch}", figure("images_per_second", "{:,.0f}".format))
    console = stdout_console()
    compared = f"compared on {report['compared_on']}" if report["verified"] else "not verified (--no-verify)"
    title = f"{report['checkpoint']}: {report['net']}, epoch {report['epoch']}, {compared}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    columns = [Column("", text=True), *map(Column, ("model", *(file["label"] for file in files)))]
    print_grid(columns, rows)
    for file in files:
        console.print(", ".join([file["path"], *file["beside"]]), markup=False, soft_wrap=True)


def _difference(each: Record, count: str) -> str | None:
    batches = {str(batch): value for batch, value in each.get("batches", {}).items()}
    return f"{batches[count]:.1e}" if count in batches else None


def print_predictions(predictions: Sequence[Prediction], top: int) -> None:
    """Print the most likely classes of each image."""
    from vitctl.cli.grid import Column, print_grid

    rows = []
    for each in predictions:
        cells = [f"{name} ({100 * p:.1f} %)" for name, p in each.top] or [f"cannot be read: {each.error}"]
        rows.append([each.image, *cells, *[""] * (top - len(cells))])
    columns = [Column("image", text=True)]
    for rank in range(1, top + 1):
        columns.append(Column(f"{rank}.", text=max((len(row[rank]) for row in rows), default=0) > LABEL))
    print_grid(columns, rows)


def print_examination(found: Examination) -> None:
    """Print the report of ``vitctl doctor``."""
    from rich.text import Text

    from vitctl.cli.grid import Column, print_grid
    from vitctl.devices.faults import FAULTS

    rows = [(name, "\n".join(value) if isinstance(value, list) else value) for name, value in found.system.items()]
    print_table(f"vitctl doctor on {found.device}", [(name, value or "none") for name, value in rows])
    if all(found.affects(fault) == "no" for fault in FAULTS):
        print_bold(f"\nknown faults of PyTorch: none of {len(FAULTS)} affects {found.device}")
    else:
        print_bold(f"\nknown faults of PyTorch on {found.device}")
        print_grid(
            [Column(name, text=True) for name in ("fault", "affects you", "check", "what vitctl does")],
            [[fault.problem, found.affects(fault), found.seen(fault) or "-", fault.remedy] for fault in FAULTS],
        )
    print_bold("\nchecks against float64 on the CPU")
    print_grid(
        [Column("check", text=True), Column("result", text=True), Column("time"), Column("detail", text=True)],
        [
            [
                each.name,
                Text(each.state, style="bold red" if each.off else ""),
                f"{each.seconds:.1f} s",
                "; ".join(filter(None, (each.detail, "vitctl avoids this" if each.avoided else ""))),
            ]
            for each in found.outcomes
        ],
    )
    print_bold("\nwhat costs speed")
    if found.brakes:
        print_grid(
            [Column("cause", text=True), Column("remedy", text=True)],
            [[each.what, each.remedy or "-"] for each in found.brakes],
        )
    else:
        print("nothing found")
    wrong = f"{len(found.off)} wrong: {'; '.join(found.off)}" if found.off else "none wrong"
    print_bold(f"\n{plural(len(found.outcomes), 'check')} in {format_duration(found.seconds)}, {wrong}")
