"""Report of a device comparison: the table of the original scripts, a breakdown of the step time, and a bar chart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vitctl.benchmark.figures import PARTS, Figures, Quartiles
from vitctl.benchmark.report import format_seconds, is_partial_epoch
from vitctl.config import ORIGINAL_BATCH
from vitctl.report.chart import Chart, Rows, Segment
from vitctl.report.rendering import Section
from vitctl.report.tables import NOTHING, Cell, Row, Table
from vitctl.units import format_bytes, format_duration, plural

if TYPE_CHECKING:
    from vitctl.config import TrainConfig

DISTURBED = 0.1
"""Share of the CPU time used by other processes above which the figures are marked."""

FASTER = 0.05
"""Share by which another device must be faster for a note."""


class DeviceReport:
    """Tables, JSON document and plot of a device comparison.

    Args:
        config: settings that the devices share.
        figures: figures of each device, in the order of the command line, including missing devices.
        environment: versions and machine, from :func:`vitctl.devices.environment`.
    """

    def __init__(
        self, config: TrainConfig, figures: Sequence[Figures], environment: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self.environment = dict(environment or {})
        self.columns = figures
        self.available = [each for each in figures if not each.missing]

    def tables(self) -> list[Table]:
        """Return the table of the original scripts and the breakdown of the step time."""
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
        all_extrapolated = all(self._extrapolated(each) for each in self.available)

        def epoch(each: Figures) -> Cell:
            mark = " (extrapolated)" if self._extrapolated(each) and not all_extrapolated else ""
            return Cell(f"{format_duration(seconds(each))}{mark}", seconds(each))

        def stable(each: Figures) -> Cell:
            assert each.step is not None
            return Cell(_quartiles(each.step), each.step.median)

        def validation(each: Figures) -> Cell:
            assert each.validation is not None
            return Cell(_quartiles(each.validation), each.validation.median)

        def speedup(each: Figures) -> Cell:
            ratio = seconds(self.available[0]) / seconds(each)
            return Cell(f"{ratio:.2f}x", ratio)

        def seconds(each: Figures) -> float:
            value = each.trained["epoch_time"] if each.trained else each.epoch_time
            assert value is not None
            return float(value)

        rows = (
            self._row(f"Epoch duration{' (extrapolated)' if all_extrapolated else ''}", epoch, "low"),
            self._row("Step time (initial)", lambda each: Cell(format_seconds(each.initial), each.initial), "low"),
            self._row("Step time (stabilized)", stable, "low"),
            self._row("Final training accuracy", lambda each: _accuracy(each, "train_acc"), "high"),
            self._row(f"Validation step time (batch {ORIGINAL_BATCH})", validation, "low"),
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
                seconds, total = each.split[name], sum(each.split.values())
                return Cell(f"{format_seconds(seconds)} ({100 * seconds / total:.1f} %)", seconds)

            return cell

        def parity(each: Figures) -> Cell:
            assert each.parity is not None
            worst = max(each.parity.logits, each.parity.gradients, key=lambda value: (math.isnan(value), value))
            return Cell(f"{worst:.1e} ({'TOO LARGE' if each.parity.exceeded else 'ok'})", worst)

        def compiling(each: Figures) -> Cell:
            return NOTHING if each.compile_time is None else Cell(format_duration(each.compile_time), each.compile_time)

        rows = [
            *[self._row(name.capitalize(), part(name), "low") for name in PARTS],
            self._row("Images/s", lambda each: Cell(f"{each.images_per_second:.1f}", each.images_per_second), "high"),
            self._row("GFLOP/s", lambda each: Cell(f"{each.gflops:.1f}", each.gflops), "high"),
            self._row(
                "Share of measured GEMM peak",
                lambda each: Cell(
                    f"{100 * each.gflops / each.gemm_gflops:.0f} % of {each.gemm_gflops:.0f} GFLOP/s"
                    if each.gemm_gflops
                    else "–",
                    each.gflops / each.gemm_gflops if each.gemm_gflops else None,
                ),
            ),
            self._row("Peak memory", lambda each: Cell(format_bytes(each.peak_memory), each.peak_memory)),
            self._row("Relative difference from CPU fp32", parity),
            self._row(
                "Precision, micro-batch",
                lambda each: Cell(f"{each.precision}, {plural(each.micro_batch, 'image')}", each.precision),
            ),
        ]
        if self.config.compile:
            rows.append(self._row("Compile time", compiling))
        return Table(
            title="Breakdown of the step time",
            corner="Metric",
            columns=tuple(each.label for each in self.columns),
            rows=tuple(rows),
            notes=(
                "percentages of data, forward, backward and optimizer: shares of the step time",
                "backward includes the loss and gradient clipping; GFLOP/s count it as twice the forward pass",
                "GEMM peak: fastest matrix product with the shapes of the network's layers",
                "peak memory: of the device on CUDA, otherwise of this process",
                "relative difference: the larger one of logits and gradients, in Euclidean norm",
            ),
        )

    def _extrapolated(self, each: Figures) -> bool:
        return not each.trained or is_partial_epoch(each.trained, self.config)

    def _notes(self) -> list[str]:
        notes = []
        for each in self.available:
            counted = plural(len(each.steps), "step")
            if each.pieces:
                counted = f"{len(each.pieces)} micro-batches of {counted}"
            threads = f", {plural(each.threads, 'thread')}" if each.device == "cpu" else ""
            notes.append(f"{each.label}: {each.device_name}{threads}; step time: median (quartiles) over {counted}")
        if self.environment:
            notes.append(
                f"torch {self.environment['torch']}, vitctl {self.environment['vitctl']}, seed {self.config.seed}"
            )
        images = [each.trained["train_images"] for each in self.available if each.trained]
        if images:
            notes.append(f"an epoch has {images[0]:,} images, without those held out for validation")
        extrapolated = [each for each in self.available if self._extrapolated(each)]
        if extrapolated:
            remedy = "" if images else "; add --epochs 1 to train an epoch and measure accuracy"
            notes.append(f"extrapolated to {extrapolated[0].epoch_images:,} images from the measured steps{remedy}")
        if len(self.available) > 1:
            notes.append(f"speedup: relative to {self.available[0].label}")
        notes += self._faster_devices()
        others = max((each.others or 0.0 for each in self.available), default=0.0)
        if others > DISTURBED:
            notes.append(
                f"DISTURBED: other processes used {100 * others:.0f} % of the CPU time; repeat the measurement on an idle machine"
            )
        notes += [f"{each.label}: training failed: {each.failed}" for each in self.available if each.failed]
        notes += [
            f"{each.label}: the difference from CPU fp32 is measured without --compile"
            for each in self.available
            if each.compile_time is not None
        ]
        notes += [f"{each.label}: {each.missing}" for each in self.columns if each.missing]
        for each in self.available:
            if each.parity is not None and each.parity.exceeded:
                notes.append(
                    f"{each.label}: WRONG RESULTS: logits differ from CPU fp32 by {each.parity.logits:.1e} and gradients by "
                    f"{each.parity.gradients:.1e}, more than the tolerance of {each.parity.tolerance:g}"
                )
        return notes

    def _faster_devices(self) -> list[str]:
        """Return a note for each accelerator that is slower than another measured device, or probably than the CPU."""
        fastest = max(self.available, key=lambda each: each.images_per_second, default=None)
        notes = []
        for each in self.available:
            if each.device == "cpu" or fastest is None or each.step is None:
                continue
            ratio = fastest.images_per_second / each.images_per_second
            if ratio > 1 + FASTER:
                notes.append(
                    f"{fastest.label} trains {self.config.net} {ratio:.1f} times as fast as {each.label}: "
                    f"use --device {fastest.device}"
                )
            elif each.cpu_step is not None and each.cpu_step < each.step.median and not self._has_cpu:
                notes.append(
                    f"the CPU takes about {format_seconds(each.cpu_step)} per step, less than {each.label}: "
                    f"compare them with vitctl bench-device cpu {each.label} --net {self.config.net}"
                )
        return notes

    @property
    def _has_cpu(self) -> bool:
        return any(each.device == "cpu" for each in self.available)

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        devices = []
        for each in self.columns:
            values = dataclasses.asdict(each)
            if each.parity is not None:
                values["parity"]["off"] = each.parity.exceeded
            devices.append({key: value for key, value in values.items() if value not in (None, "", [], {})})
        return {"devices": devices, "config": self.config.to_dict(), "environment": self.environment}

    @property
    def verdict(self) -> str:
        """What the comparison says, in two sentences at most."""
        fastest = max(self.available, key=lambda each: each.images_per_second, default=None)
        if fastest is None:
            return "No device could be measured."
        words = [f"{fastest.label} trains {self.config.net} fastest, at {fastest.images_per_second:,.1f} images/s"]
        words += [
            f"{fastest.images_per_second / each.images_per_second:.1f} times as fast as {each.label}"
            for each in self.available
            if each is not fastest and each.images_per_second
        ]
        if len(self.available) == 1:
            words = [f"{fastest.label} trains {self.config.net} at {fastest.images_per_second:,.1f} images/s"]
        wrong = [each.label for each in self.available if each.parity is not None and each.parity.exceeded]
        warning = f" The results of {', '.join(wrong)} are wrong: see the notes." if wrong else ""
        return f"{', '.join(words)}.{warning}"

    def plots(self) -> list[Section]:
        """Return charts of the training speed and the parts of a step, with a bar for each device."""
        if not self.available:
            return []
        names = [each.label for each in self.available]
        speeds = [each.images_per_second for each in self.available]
        splits = {part: [1000 * each.split[part] / each.batch for each in self.available] for part in PARTS}
        totals = [sum(times) for times in zip(*splits.values(), strict=True)]
        charts = [
            _bars(
                "speed",
                "Training speed",
                "images/s",
                names,
                [Segment(label="", values=speeds, tone="bar")],
                [f"{speed:,.1f}" for speed in speeds],
                [f"{name}: {speed:,.1f} images/s" for name, speed in zip(names, speeds, strict=True)],
            ),
            _bars(
                "parts",
                "Parts of the step time",
                "ms per image",
                names,
                [
                    Segment(label=part, values=times, tone=number, series=part)
                    for number, (part, times) in enumerate(splits.items())
                ],
                [f"{total:.3g}" for total in totals],
                [
                    f"{name}: " + ", ".join(f"{part} {times[row]:.3g} ms" for part, times in splits.items())
                    for row, name in enumerate(names)
                ],
            ),
        ]
        return [Section(id="bars", title="Speed", charts=charts)]


def _bars(
    id: str, title: str, unit: str, names: list[str], parts: list[Segment], ends: list[str], texts: list[str]
) -> Chart:
    return Chart(
        id=id,
        title=title,
        description="; ".join(texts),
        x=unit,
        marks=[Rows(names=names, parts=parts, ends=ends, texts=texts)],
        width=440,
        height=60 + 30 * max(2, len(names)),
    )


def _accuracy(each: Figures, name: str) -> Cell:
    if not each.trained or name not in each.trained:
        return NOTHING
    return Cell(f"{each.trained[name]:.2f} %", each.trained[name])


def _quartiles(quartiles: Quartiles) -> str:
    if quartiles.count < 2:
        return format_seconds(quartiles.median)
    low, high = format_seconds(quartiles.low), format_seconds(quartiles.high)
    return f"{format_seconds(quartiles.median)} ({low} – {high})"
