"""What a comparison of devices found: the table of the scripts that vitctl replaces, where the time goes, and bars."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vitctl.benchmark.figures import PARTS, Figures, Quartiles
from vitctl.benchmark.report import format_seconds
from vitctl.benchmark.tables import NOTHING, Cell, Row, Table
from vitctl.config import PREDECESSOR_BATCH
from vitctl.units import format_bytes, format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitctl.config import TrainConfig

_PART_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73")


DISTURBED = 0.1
"""Share of the CPU time that others may take before the figures are marked."""


class DeviceReport:
    """Figures of several devices, ready to be shown.

    Args:
        config: the settings that they share.
        figures: of each device, in the order in which they were named; those not there among them.
        environment: versions and machine, as :func:`vitctl.devices.environment` has them.
    """

    def __init__(
        self, config: TrainConfig, figures: Sequence[Figures], environment: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self.environment = dict(environment or {})
        self.columns = figures
        self.there = [each for each in figures if not each.missing]

    def tables(self) -> list[Table]:
        """Return the scripts' table, and where the time goes."""
        return [self._main(), self._details()]

    def _row(
        self,
        label: str,
        cell: Callable[[Figures], Cell],
        better: Literal["low", "high"] | None = None,
    ) -> Row:
        return Row(label, tuple(NOTHING if each.missing else cell(each) for each in self.columns), better)

    def _main(self) -> Table:
        config = self.config

        def epoch(each: Figures) -> Cell:
            if each.trained:
                return Cell(format_duration(each.trained["epoch_time"]), each.trained["epoch_time"])
            assert each.epoch_time is not None
            return Cell(f"{format_duration(each.epoch_time)} est.", each.epoch_time)

        def stable(each: Figures) -> Cell:
            assert each.step is not None
            return Cell(_quartiles(each.step), each.step.median)

        def validation(each: Figures) -> Cell:
            assert each.validation is not None
            return Cell(_quartiles(each.validation), each.validation.median)

        def speedup(each: Figures) -> Cell:
            ratio = seconds(self.there[0]) / seconds(each)
            return Cell(f"{ratio:.2f}x", ratio)

        def seconds(each: Figures) -> float:
            value = each.trained["epoch_time"] if each.trained else each.epoch_time
            assert value is not None
            return float(value)

        rows = (
            self._row("Epoch duration", epoch, "low"),
            self._row("Step time (initial)", lambda each: Cell(format_seconds(each.initial), each.initial), "low"),
            self._row("Step time (stabilized)", stable, "low"),
            self._row("Final training accuracy", lambda each: _accuracy(each, "train_acc"), "high"),
            self._row(f"Validation step time (batch {PREDECESSOR_BATCH})", validation, "low"),
            self._row("Final validation accuracy", lambda each: _accuracy(each, "val_acc"), "high"),
            self._row("Speedup (epoch time)", speedup, "high"),
            Row(
                "Backend",
                tuple(
                    Cell(each.missing, each.missing)
                    if each.missing
                    else Cell(f'torch.device("{each.device}")', each.device)
                    for each in self.columns
                ),
            ),
        )
        return Table(
            title=f"{config.net}, {config.opt}, lr {config.lr:g}, batch {config.bs * config.accumulate}",
            corner="Metric",
            columns=tuple(each.label for each in self.columns),
            rows=rows,
            notes=tuple(self._notes()),
        )

    def _details(self) -> Table:
        def part(name: str) -> Callable[[Figures], Cell]:
            def cell(each: Figures) -> Cell:
                seconds, whole = each.split[name], sum(each.split.values())
                return Cell(f"{format_seconds(seconds)} ({100 * seconds / whole:.1f} %)", seconds)

            return cell

        def parity(each: Figures) -> Cell:
            assert each.parity is not None
            worst = max(each.parity.logits, each.parity.gradients, key=lambda value: (math.isnan(value), value))
            return Cell(f"{'OFF' if each.parity.off else 'ok'} ({worst:.1e})", worst)

        def compiling(each: Figures) -> Cell:
            return NOTHING if each.compile_time is None else Cell(format_duration(each.compile_time), each.compile_time)

        rows = [
            *[self._row(name.capitalize(), part(name), "low") for name in PARTS],
            self._row("Images/s", lambda each: Cell(f"{each.images_per_second:.1f}", each.images_per_second), "high"),
            self._row("GFLOP/s", lambda each: Cell(f"{each.gflops:.1f}", each.gflops), "high"),
            self._row(
                "Share of measured GEMM peak",
                lambda each: Cell(
                    f"{100 * each.gflops / each.gemm_gflops:.0f} % of {each.gemm_gflops:.0f}"
                    if each.gemm_gflops
                    else "–",
                    each.gflops / each.gemm_gflops if each.gemm_gflops else None,
                ),
            ),
            self._row("Peak memory", lambda each: Cell(format_bytes(each.peak_memory), each.peak_memory)),
            self._row("Arithmetic against CPU fp32", parity),
            self._row(
                "Precision, micro-batch", lambda each: Cell(f"{each.precision}, {each.micro_batch}", each.precision)
            ),
        ]
        if self.config.compile:
            rows.append(self._row("Compile time", compiling))
        return Table(
            title="Where the time of a step goes",
            corner="Part",
            columns=tuple(each.label for each in self.columns),
            rows=tuple(rows),
            notes=(
                "backward includes the loss and the clipping of gradients; GFLOP/s count it as twice the forward pass",
                "peak memory: of the device on CUDA, else of this process",
            ),
        )

    def _notes(self) -> list[str]:
        notes = []
        for each in self.there:
            counted = (
                f"{len(each.pieces)} pieces of {len(each.steps)} steps" if each.pieces else f"{len(each.steps)} steps"
            )
            threads = f", {each.threads} threads" if each.device == "cpu" else ""
            notes.append(f"{each.label}: {each.device_name}{threads}; median and quartiles over {counted}")
        if self.environment:
            notes.append(
                f"torch {self.environment['torch']}, vitctl {self.environment['vitctl']}, seed {self.config.seed}"
            )
        first = self.there[0] if self.there else None
        if first and first.trained:
            notes.append(f"an epoch is {first.trained['train_images']:,} images; the others are held out to validate")
        elif first:
            notes.append(
                f"est.: extrapolated to {first.epoch_images:,} images from steps that were measured; --epochs 1 trains really"
            )
        others = max((each.others or 0.0 for each in self.there), default=0.0)
        if others > DISTURBED:
            notes.append(
                f"DISTURBED: other processes took {100 * others:.0f} % of this machine's CPU time meanwhile; the figures are not those "
                f"of a quiet machine"
            )
        notes += [f"{each.label}: not trained: {each.failed}" for each in self.there if each.failed]
        notes += [
            f"{each.label}: arithmetic is compared without --compile"
            for each in self.there
            if each.compile_time is not None
        ]
        notes += [f"{each.label}: {each.missing}" for each in self.columns if each.missing]
        for each in self.there:
            if each.parity is not None and each.parity.off:
                notes.append(
                    f"{each.label}: its arithmetic is OFF: logits differ from the CPU's by {each.parity.logits:.1e}, gradients by "
                    f"{each.parity.gradients:.1e} of their size, and {each.parity.tolerance:g} is allowed; do not trust its results"
                )
        return notes

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        devices = []
        for each in self.columns:
            values = dataclasses.asdict(each)
            if each.parity is not None:
                values["parity"]["off"] = each.parity.off
            devices.append({key: value for key, value in values.items() if value not in (None, "", [], {})})
        return {"devices": devices, "config": self.config.to_dict(), "environment": self.environment}

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """Return what draws each image."""
        return {"bars": self.bars}

    def bars(self) -> Figure:
        """Draw images a second, and the parts of a step, a bar for each device."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 1.6 + 0.7 * len(self.there)), layout="constrained")
        speed, split = figure.subplots(1, 2, sharey=True)
        labels = [each.label for each in self.there]
        bars = speed.barh(labels, [each.images_per_second for each in self.there], color="#0072B2", height=0.6)
        speed.bar_label(bars, fmt="%.1f", padding=3)
        speed.margins(x=0.15)
        speed.set_xlabel("images a second")
        self._draw_split(split, labels)
        for axes in (speed, split):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
        figure.suptitle(self.tables()[0].title, fontsize=11)
        figure.legend(*split.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
        return figure

    def _draw_split(self, axes: Axes, labels: list[str]) -> None:
        left = [0.0] * len(labels)
        for part, colour in zip(PARTS, _PART_COLOURS, strict=True):
            widths = [1000 * each.split[part] / each.batch for each in self.there]
            axes.barh(labels, widths, left=left, color=colour, label=part, height=0.6)
            left = [before + width for before, width in zip(left, widths, strict=True)]
        axes.set_xlabel("milliseconds an image")


def _accuracy(each: Figures, name: str) -> Cell:
    if not each.trained or name not in each.trained:
        return NOTHING
    return Cell(f"{each.trained[name]:.2f} %", each.trained[name])


def _quartiles(quartiles: Quartiles) -> str:
    if quartiles.count < 2:
        return format_seconds(quartiles.median)
    low, high = format_seconds(quartiles.low), format_seconds(quartiles.high)
    return f"{format_seconds(quartiles.median)} ({low} – {high})"
