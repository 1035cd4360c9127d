"""Results on stdout: Rich tables, or one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vitctl.units import format_bytes, format_duration, json_text, plural

if TYPE_CHECKING:
    from vitctl.benchmark.tables import Table
    from vitctl.inference.predict import Prediction
    from vitctl.inference.scoring import Scores

MAX_CONFUSION = 20
"""The most classes whose confusion matrix a terminal has room for."""

Record = dict[str, Any]


def print_json(document: Any) -> None:
    """Print ``document`` as one JSON document."""
    print(json_text(document))


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print rows of name and value."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False, soft_wrap=True)  # a table's own title wraps at its width
    console.print(table)


FIGURE = 16
"""Characters of a column that figures such as ``53.01 ± 0.47 % *`` have room in; only words are broken to less."""
LABEL = 18
"""Characters of the column of labels, where there is little room."""


def print_comparison(comparison: Table) -> None:
    """Print figures side by side, with a star at the best of each row; in several tables where the terminal is narrow."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    from vitctl.benchmark.tables import best

    console = Console(highlight=False)
    console.print(comparison.title, style="bold", markup=False, soft_wrap=True)
    marks = [best(row) for row in comparison.rows]
    for columns in columns_that_fit(comparison, console.width):
        grid = Grid()
        grid.add_column(escape(comparison.corner), style="bold", overflow="fold")
        for i in columns:
            grid.add_column(escape(comparison.columns[i]), justify="right", overflow="fold")
        for row, marked in zip(comparison.rows, marks, strict=True):
            texts = [escape(row.cells[i].text) for i in columns]
            grid.add_row(
                escape(row.label),
                *(f"[bold green]{text} *[/]" if i in marked else text for i, text in zip(columns, texts, strict=True)),
            )
        console.print(grid)
    for note in [*(["* the best of its row"] if any(marks) else []), *comparison.notes]:
        console.print(note, markup=False)


def columns_that_fit(comparison: Table, width: int) -> list[list[int]]:
    """Return the columns of each of the tables that a comparison is shown as, in ``width`` characters."""
    parts: list[list[int]] = []
    room = 0
    for i, name in enumerate(comparison.columns):
        texts = [name, *(f"{row.cells[i].text} *" for row in comparison.rows)]
        needed = min(FIGURE, max(map(len, texts))) + 3  # borders
        if not parts or room < needed:
            parts.append([])
            room = width - LABEL - 4
        parts[-1].append(i)
        room -= needed
    return parts


def print_summary(summary: Record) -> None:
    """Print the final figures of a run."""
    weights = "EMA weights" if summary["weights"] == "ema" else "last weights"
    rows = [
        ("test accuracy", f"{summary['test_acc']:.2f} %"),
        ("test loss", f"{summary['test_loss']:.4f}"),
    ]
    if "test_acc_tta" in summary:
        rows += [("test accuracy, TTA flip", f"{summary['test_acc_tta']:.2f} %")]
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
        ("epoch duration", format_duration(summary["epoch_time"])),
        ("training speed", f"{summary['images_per_second']:,.0f} images/s"),
        ("data wait", f"{100 * summary['data_wait']:.1f} %"),
        ("total time", format_duration(summary["seconds"])),
        ("peak memory", format_bytes(summary["peak_memory"])),
        ("parameters", f"{summary['params']:,}"),
        *([("compile time", format_duration(summary["compile_time"]))] if "compile_time" in summary else []),
        ("device", f"{summary['device']} ({summary['device_name']}, {plural(summary['threads'], 'thread')})"),
        ("precision", summary["precision"]),
        ("torch / vitctl / seed", f"{summary['torch']} / {summary['vitctl']} / {summary['seed']}"),
    ]
    looks = "tested after every epoch" if summary.get("val_split") == "test" else "tested once"
    print_table(f"{summary['name']}: {weights}, {looks}", rows)


def print_dry_run(cost: Record) -> None:
    """Print what a run would cost."""
    print_table(
        f"dry run: {cost['net']}",
        [
            ("parameters", f"{cost['params']:,}"),
            ("forward pass", f"{cost['mflop']:,} MFLOP an image"),
            ("tokens", str(cost["tokens"]) if cost["tokens"] else "-"),
            ("training images", f"{cost['train_images']:,}"),
            ("steps", f"{cost['total_steps']:,} ({cost['steps_per_epoch']:,} an epoch)"),
            ("pieces", f"{cost['micro_batch']} images"),
            (
                "step time",
                format_duration(cost["step_time"]) if cost["step_time"] >= 1 else f"{1000 * cost['step_time']:.0f} ms",
            ),
            ("training speed", f"{cost['images_per_second']:,.0f} images/s"),
            ("whole run", f"about {format_duration(cost['eta'])}"),
            ("peak memory", format_bytes(cost["peak_memory"])),
            ("device", f"{cost['device']} ({cost['device_name']}, {plural(cost['threads'], 'thread')})"),
            ("precision", cost["precision"]),
            *([("compile time", format_duration(cost["compile_time"]))] if "compile_time" in cost else []),
        ],
    )


BLANK = 0.02
"""Share of blank images, beyond that of the stored ones, from which on the preview says that something is wrong."""


def print_preview(preview: Record) -> None:
    """Print what a contact sheet shows."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{preview['file']}: {preview['shown']} images of {preview['dataset']} as the network sees them, at "
        f"{preview['size']} px\naugmentation: {preview['augmentation']}\n"
        f"blank: {100 * preview['blank']:.1f} % of {preview['images']:,} images are of one flat colour, but for the rim that crop "
        f"pads ({100 * preview['blank_stored']:.1f} % before augmentation)",
        markup=False,
    )
    if preview["blank"] - preview["blank_stored"] > BLANK:
        console.print(
            "Nothing can be learned from blank images: this augmentation is too strong for images of this size.",
            markup=False,
        )


def print_lr_finder(found: Record) -> None:
    """Print what a learning-rate range test suggests."""
    from rich.console import Console

    def rate(value: float | None) -> str:
        return f"{value:.2g}" if value is not None else "-"

    end = "the loss ran away" if found["diverged"] else "the loss did not run away"
    print_table(
        f"learning-rate range test: {found['net']}, {found['opt']}",
        [
            ("suggested --lr: the loss falls steepest", rate(found["suggestion"])),
            *((f"{name} with it", rate(value)) for name, value in found["second_lr"].items()),
            ("a tenth of the lowest", rate(found["lowest_tenth"])),
            ("rate at the lowest loss", rate(found["lowest"])),
            ("--lr of these settings", rate(found["config"]["lr"])),
            ("steps", f"{found['steps']} ({end})"),
            ("total time", format_duration(found["seconds"])),
            ("device", f"{found['device']} ({found['device_name']}, {plural(found['threads'], 'thread')})"),
        ],
    )
    console = Console(highlight=False, soft_wrap=True)
    if found["suggestion"] is None:
        hint = (
            f"it ran away first; look lower: --lr {found['config']['lr'] / 100:g}"
            if found["diverged"] and found["lr"][-1] < found["config"]["lr"]
            else f"more steps may help: --max-steps {2 * found['steps']}"
        )
        console.print(f"The loss did not fall by more than its noise, so nothing is suggested; {hint}.", markup=False)
    if found["plot"]:
        console.print(f"plot: {found['plot']}", markup=False)


def print_scores(scores: Scores) -> None:
    """Print what ``vitctl eval`` found."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    figures = scores.figures
    print_table(
        f"{figures['checkpoint']} on {figures['dataset']} {figures['split']}",
        [
            ("top-1 accuracy", f"{figures['top1']:.2f} %"),
            ("top-5 accuracy", f"{figures['top5']:.2f} %" if figures["top5"] is not None else "-"),
            ("loss", f"{figures['loss']:.4f}"),
            *([("top-1, TTA flip", f"{figures['top1_tta']:.2f} %")] if "top1_tta" in figures else []),
            ("images", f"{figures['images']:,}"),
            ("weights", f"{figures['net']}, {figures['weights']}, epoch {figures['epoch']}"),
            ("speed", f"{figures['images_per_second']:,.0f} images/s"),
            ("runs on", figures["engine"]),
            ("device", f"{figures['device']} ({figures['device_name']}, {plural(figures['threads'], 'thread')})"),
        ],
    )
    console = Console(highlight=False)
    table = Table()
    table.add_column("class", style="bold")
    for heading in ("precision", "recall", "F1", "images"):
        table.add_column(heading, justify="right")
    for row in scores.classes:
        table.add_row(
            escape(row["class"]), *(f"{row[key]:.2f} %" for key in ("precision", "recall", "f1")), f"{row['support']:,}"
        )
    console.print(table)
    if len(scores.classes) > MAX_CONFUSION:
        console.print(f"(the confusion matrix of {len(scores.classes)} classes is in --json)")
        return
    console.print("confusion matrix: rows are true classes, columns predicted ones", style="bold")
    matrix = Table()
    matrix.add_column("", style="bold")
    for row in scores.classes:
        matrix.add_column(escape(row["class"][:5]), justify="right")
    for i, row in enumerate(scores.classes):
        matrix.add_row(
            escape(row["class"]),
            *(f"[bold]{count}[/]" if i == j else str(count) for j, count in enumerate(scores.confusion[i])),
        )
    console.print(matrix)


def print_export(report: Record) -> None:
    """Print what ``vitctl export`` wrote, a column for the network and one for each file."""
    from rich.console import Console
    from rich.table import Table

    network, files = report["network"], report["files"]
    table = Table()
    table.add_column("", style="bold", no_wrap=True)
    for heading in ("network", *(file["label"] for file in files)):
        table.add_column(heading, justify="right")

    def row(name: str, cell: Callable[[Record], str | None]) -> None:
        cells = [cell(each) for each in (network, *files)]
        if any(text is not None for text in cells):
            table.add_row(name, *(text or "" for text in cells))

    def figure(key: str, show: Callable[[Any], str]) -> Callable[[Record], str | None]:
        return lambda each: None if each.get(key) is None else show(each[key])

    def changed(each: Record) -> str | None:
        if "changed" not in each:
            return None
        return f"{each['changed']:,}" + (f" ({plural(each['ties'], 'tie')})" if each["ties"] else "")

    row("runs on", lambda each: each.get("engine", f"torch {report['torch']}").partition("+")[0])
    row("size", figure("bytes", format_bytes))
    for count in ("1", "3", "17"):
        row(f"difference, batch {count}", lambda each, count=count: _difference(each, count))  # type: ignore[misc]
    row("greatest difference", figure("max_difference", "{:.1e}".format))
    row("in probabilities", figure("max_difference_probs", "{:.1e}".format))
    row("changed predictions", changed)
    row("top-1 accuracy", figure("top1", "{:.2f} %".format))
    row("held-out accuracy", figure("held_out_top1", "{:.2f} %".format))
    row("points lost", figure("drop", "{:.2f}".format))
    row(
        "layers left in float",
        lambda each: f"{len(each['layers_in_float'])} of {each['layers']}" if each.get("quantized") == "int8" else None,
    )
    row("latency p50, batch 1", figure("latency_p50", lambda seconds: f"{1000 * seconds:.2f} ms"))
    row("latency p95, batch 1", figure("latency_p95", lambda seconds: f"{1000 * seconds:.2f} ms"))
    batch = network.get("speed_batch")
    row(f"images/s, batch {batch}", figure("images_per_second", "{:,.0f}".format))
    console = Console(highlight=False)
    compared = f"compared on {report['compared_on']}" if report["verified"] else "not verified (--no-verify)"
    title = f"{report['checkpoint']}: {report['net']}, epoch {report['epoch']}, {compared}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)
    for file in files:
        console.print(", ".join([file["path"], *file["beside"]]), markup=False, soft_wrap=True)


def _difference(each: Record, count: str) -> str | None:
    batches = {str(batch): value for batch, value in each.get("batches", {}).items()}
    return f"{batches[count]:.1e}" if count in batches else None


def print_predictions(predictions: Sequence[Prediction], top: int) -> None:
    """Print the likeliest classes of each image."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("image", style="bold", overflow="fold")
    for rank in range(1, top + 1):
        table.add_column(f"{rank}.", overflow="fold")
    for each in predictions:
        cells = [escape(f"{name} ({100 * p:.1f} %)") for name, p in each.top]
        table.add_row(escape(each.image), *(cells or [escape(f"cannot be read: {each.error}")]))
    Console(highlight=False).print(table)
