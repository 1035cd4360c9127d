"""Progress of runs on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vitctl.observer import Observer, Record, RunStart
from vitctl.units import format_bytes, format_duration, plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR = 24
"""Width of a bar on a terminal of at least 100 columns."""

LINE_EVERY = 30.0
"""Seconds between two lines within an epoch."""


def make_observer() -> ProgressLines:
    """Return an observer that prints to stderr: bars on a terminal, lines elsewhere."""
    return ProgressBars() if sys.stderr.isatty() else ProgressLines()


def epoch_parts(record: Record, epochs: int) -> list[str]:
    """Format the figures of an epoch's record."""
    parts = [
        f"epoch {record['epoch']}/{epochs}",
        f"loss {record['train_loss']:.4f}",
        f"acc {record['train_acc']:.2f} %",
    ]
    if "val_acc" in record:
        label = "test (every epoch)" if record["val_split"] == "test" else "val"
        total = f" (sum {record['val_loss_sum']:.2f})" if "val_loss_sum" in record else ""
        parts += [f"{label} loss {record['val_loss']:.4f}{total}", f"{label} acc {record['val_acc']:.2f} %"]
    return [*parts, f"lr {record['lr']:.2e}", format_duration(record["epoch_time"]), *_speed(record)]


def _speed(record: Record) -> list[str]:
    return [f"{record['images_per_second']:,.0f} images/s", f"waiting for data {100 * record['data_wait']:.1f} %"]


class ProgressLines(Observer):
    """Prints one line per epoch, and one every :data:`LINE_EVERY` seconds."""

    def __init__(self) -> None:
        self.epochs = 0
        self.last_line = time.monotonic()
        self._download, self._from, self._since = "", 0, 0.0

    def print(self, text: str) -> None:
        """Print one or more lines to stderr."""
        print(_printable_lines(text), file=sys.stderr, flush=True)

    def print_parts(self, parts: list[str]) -> None:
        """Print figures as one line."""
        self.print(" | ".join(parts))

    def _due(self) -> bool:
        if time.monotonic() - self.last_line < LINE_EVERY:
            return False
        self.last_line = time.monotonic()
        return True

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        """Print the progress of decoding or downloading."""
        if download:
            if self._new(download, done, total) or self._due() or done == total:
                self.print(f"{format_bytes(done)} of {format_bytes(total)}{self._rest(done, total)}")
        elif self._due() or done == total:
            self.print(f"decoding images: {done:,} of {total:,}")

    def _new(self, download: str, done: int, count: int) -> bool:
        """Announce a new download and start to measure its speed; return whether it is new."""
        if download == self._download:
            return False
        self._download, self._from, self._since = download, done, time.monotonic()
        self.last_line = time.monotonic()
        self.print(download)
        return True

    def _rest(self, done: int, count: int) -> str:
        """Return speed and remaining time of a download, once it can be estimated."""
        seconds = time.monotonic() - self._since
        if done == self._from or seconds < 0.5:
            return ""
        speed = (done - self._from) / seconds
        left = f", {format_duration((count - done) / speed)} left" if done < count else ""
        return f", {format_bytes(speed)}/s{left}"

    def started(self, run: RunStart) -> None:
        """Print the settings, device and folder of the run."""
        settings = run.settings
        self.epochs = run.epochs
        self.last_line = time.monotonic()
        test = f", {run.test_images:,} test"
        if run.val_split == "test":
            images = f"{test} (evaluated after each epoch)"
        elif run.val_split is not None:
            images = f", {run.val_images:,} {'held-out' if run.val_split == 'holdout' else 'validation'}{test}"
        else:
            images = test
        tokens = f"{run.tokens:,} tokens, " if run.tokens else ""
        cost = f"{tokens}{run.mflop:,.1f} MFLOP per image"
        frozen = f" ({run.trainable:,} trained)" if settings["freeze_backbone"] else ""
        micro = f" (micro-batch {run.micro_batch})" if run.micro_batch != settings["bs"] else ""
        accumulated = f" x {settings['accumulate']}" if settings["accumulate"] > 1 else ""
        self.print(
            f"{run.network}\n"
            f"{run.params:,} parameters{frozen}, {cost}\n"
            f"{settings['dataset']}: {run.train_images:,} train{images} images\n"
            f"{settings['opt']}, lr {settings['lr']:g}, batch {settings['bs']}{accumulated}{micro}, "
            f"{plural(run.total_steps, 'step')}, {plural(run.epochs, 'epoch')}\n"
            f"{run.device} ({run.device_name}), {run.precision}\n"
            f"{run.folder}"
        )
        if run.skipped:
            self.print(
                f"skipped {plural(len(run.skipped), 'unreadable image')}: {', '.join(run.skipped[:5])}"
                f"{', ...' if len(run.skipped) > 5 else ''}"
            )
        if run.step:
            self.print(f"resuming at step {run.step:,} of {run.total_steps:,}")

    def stepped(self, record: Record) -> None:
        """Print the figures of the current epoch, every :data:`LINE_EVERY` seconds."""
        self.epochs = record["epochs"]  # --max-time may change it during the run
        if record["train_loss"] is not None and self._due():
            self.print_parts(
                [
                    f"epoch {record['epoch']}/{record['epochs']} step {record['step_in_epoch']}/{record['steps']}",
                    f"loss {record['train_loss']:.4f}",
                    f"acc {record['train_acc']:.2f} %",
                    f"lr {record['lr']:.2e}",
                    *_speed(record),
                    f"{format_duration(record['eta'])} left",
                ]
            )

    def working(self, text: str) -> None:
        """Print the description of the work."""
        self.print(text)

    def running(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        """Print the number of finished runs and the next run."""
        if what:
            left = "" if seconds_left is None else f", {format_duration(seconds_left)} left"
            self.print(f"{done} of {total} runs finished{left}; next: {what}")

    def evaluating(self, what: str, done: int, total: int) -> None:
        """Print the progress of a long evaluation."""
        if done < total and self._due():
            self.print(f"evaluating {what}: {done:,} of {total:,} images")

    def epoch_done(self, record: Record) -> None:
        """Print the line of the epoch."""
        self.last_line = time.monotonic()
        self.print_parts(epoch_parts(record, self.epochs))

    def message(self, text: str) -> None:
        """Print a message."""
        self.print(text)


class ProgressBars(ProgressLines):
    """Shows bars for epochs and steps with current figures, below one line per finished epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._working = ""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column as RichColumn

        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<9}", table_column=RichColumn(no_wrap=True)),
            BarColumn(bar_width=BAR if console.width >= 100 else BAR // 2),
            MofNCompleteColumn(table_column=RichColumn(no_wrap=True)),
            TextColumn("{task.fields[figures]}", table_column=RichColumn(no_wrap=True)),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        if self._progress:
            self._progress.console.print(_printable_lines(text), markup=False, soft_wrap=True)
        else:
            super().print(text)

    def print_parts(self, parts: list[str]) -> None:
        """Print figures, broken only between them where the terminal is narrow."""
        width = self._progress.console.width if self._progress else 0
        lines = [parts[0]]
        for part in parts[1:]:
            if width and len(lines[-1]) + 3 + len(part) > width:
                lines.append(f"  {part}")
            else:
                lines[-1] += f" | {part}"
        self.print("\n".join(lines))

    def _show(self, name: str, done: float, count: int | None, *figures: str) -> None:
        """Update a bar; ``figures`` are shown in order of importance, as many as fit."""
        if self._progress is None:
            return
        width = self._progress.console.width
        bar = BAR if width >= 100 else BAR // 2
        room = width - max(9, len(name)) - bar - (2 * len(str(count)) + 1 if count is not None else 3) - 3
        text = ""
        for figure in figures:
            longer = f"{text} | {figure}" if text else figure
            if len(longer) > room:
                break
            text = longer
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=count, figures="")
        self._progress.update(self._tasks[name], completed=done, total=count, figures=text)

    def _hide(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        """Update the bar of downloaded MiB or decoded images."""
        name = "download" if download else "decoding"
        if download:
            self._new(download, done, total)
            self._show(name, done >> 20, total >> 20, f"MiB{self._rest(done, total)}")
        else:
            self._show(name, done, total)
        if done == total:
            self._hide(name)

    def stepped(self, record: Record) -> None:
        """Update the bars of epochs and steps."""
        self.epochs = record["epochs"]
        figures = [*_speed(record), f"lr {record['lr']:.2e}"]
        if record["train_loss"] is not None:
            figures = [f"loss {record['train_loss']:.4f}", f"acc {record['train_acc']:.2f} %", *figures]
        done = record["epoch"] - 1 + record["step_in_epoch"] / record["steps"]
        self._show("epoch", done, record["epochs"], f"{format_duration(record['eta'])} left")
        self._show("step", record["step_in_epoch"], record["steps"], *figures)

    def working(self, text: str) -> None:
        """Show a bar for the work until other work starts."""
        if self._working:
            self._hide(self._working)
        self._working = text
        self._show(text, 0, None)

    def running(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        """Update the bar of runs."""
        super().running(what, done, total, seconds_left)
        for name in ("step", "epoch"):
            self._hide(name)
        left = "" if seconds_left is None else f"{format_duration(seconds_left)} left"
        self._show("runs", done, total, left)

    def evaluating(self, what: str, done: int, total: int) -> None:
        """Update the bar of evaluated images."""
        self._show(what, done, total)
        if done == total:
            self._hide(what)

    def epoch_done(self, record: Record) -> None:
        """Print the line of the epoch above the bars."""
        self._show("epoch", record["epoch"], self.epochs)
        self._hide("step")
        self.print_parts(epoch_parts(record, self.epochs))


def _printable_lines(text: str) -> str:
    """Return a text in which terminal sequences, such as in the name of a file, are escaped."""
    return "\n".join(map(printable, text.split("\n")))
