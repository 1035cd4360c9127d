"""Report of an optimizer comparison: tables, a JSON document and plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vitctl.benchmark.plan import FACTOR
from vitctl.benchmark.statistics import LEVEL, Pair, Spread, compare
from vitctl.benchmark.tables import NOTHING, Cell, Row, Table
from vitctl.config import ORIGINAL_BATCH
from vitctl.registry import format_spec
from vitctl.units import format_bytes, format_duration, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitctl.benchmark.optimizers import Comparison, Outcome
    from vitctl.config import TrainConfig

_VALIDATED_ON = {"holdout": "held out", "val": "val/ folder", "test": "test set, each epoch"}
"""What each validation split is called in tables and plots."""

Record = dict[str, Any]


def format_seconds(seconds: float) -> str:
    """Return ``850 µs``, ``12.3 ms``, ``13.2 s`` or ``2 min 5 s``."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)


def percent(spread: Spread) -> str:
    """Return ``67.3 ± 0.4 %``."""
    return f"{_plus_minus(spread, 2)} %"


def plain(spread: Spread) -> str:
    """Return ``0.9123 ± 0.0041``."""
    return _plus_minus(spread, 4)


def duration(spread: Spread) -> str:
    """Return ``12.3 ± 0.4 s`` or ``850.0 ± 3.1 ms``."""
    scale, unit, digits = (1e3, "ms", 1) if spread.mean < 1 else (1.0, "s", 2 if spread.mean < 10 else 1)
    scaled = Spread(spread.mean * scale, None if spread.deviation is None else spread.deviation * scale, spread.count)
    return f"{_plus_minus(scaled, digits)} {unit}"


def _plus_minus(spread: Spread, digits: int) -> str:
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def is_partial_epoch(summary: Record, config: TrainConfig) -> bool:
    """Return whether a run ended within its first epoch, so that its epoch duration is extrapolated."""
    images = summary["step"] * config.bs * config.accumulate
    return bool(images + 1 < summary["train_images"])  # a single image that is left over may be dropped


class Report:
    """Tables, JSON document and plot of an optimizer comparison."""

    def __init__(self, result: Comparison) -> None:
        self.result = result
        self.plan = result.plan
        self.labels = [each.label for each in result.plan.contestants]
        self.val_split = next(
            (run.summary.get("val_split") for runs in result.runs.values() for run in runs if run.summary), None
        )

    # -- figures -----------------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Figure by which optimizers are compared: validation accuracy, or test accuracy if nothing is validated."""
        return "val_acc" if self.val_split is not None else "test_acc"

    @property
    def measured_on(self) -> str:
        """Description of :attr:`key`."""
        if self.val_split:
            return f"validation accuracy ({_VALIDATED_ON[self.val_split]})"
        return "test accuracy (last weights)"

    def values(self, label: str, figure: str | Callable[[Outcome], float | None]) -> dict[int, float]:
        """Return a figure of a contestant's finished runs, by seed.

        Args:
            label: the contestant.
            figure: key of a run's summary, or a function of a run.
        """
        found = {}
        for run in self.result.runs[label]:
            value = figure(run) if callable(figure) else (run.summary or {}).get(figure)
            if run.summary is not None and isinstance(value, (int, float)) and math.isfinite(value):
                found[run.task.config.seed] = float(value)
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """Comparisons of every two contestants by :attr:`key` over their common seeds."""
        return compare({label: self.values(label, self.key) for label in self.labels})

    @cached_property
    def best(self) -> str:
        """The contestant with the best mean of :attr:`key`, among those with the most finished runs."""
        means = {label: list(self.values(label, self.key).values()) for label in self.labels}
        return max(means, key=lambda label: (len(means[label]), sum(means[label]) / max(1, len(means[label]))))

    def compared_with_best(self, label: str) -> Pair:
        """Return the comparison of a contestant with the best."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (label, self.best):
                return pair
            if (pair.second, pair.first) == (label, self.best):
                return pair.reversed()
        raise AssertionError(f"{label} is not compared with {self.best}")

    def diverged(self, label: str) -> list[str]:
        """Describe a contestant's diverged runs."""
        lost = [run for run in self.result.runs[label] if run.diverged_step is not None]
        if not self.result.runs[label]:
            steps = [run.diverged_step for run in self.result.search[label]]
            return [f"diverged at every learning rate of the search (steps {', '.join(map(str, steps))})"]
        if len(self.result.runs[label]) == 1:
            return [f"diverged at step {run.diverged_step}" for run in lost]
        return [f"diverged at step {run.diverged_step} (seed {run.task.config.seed})" for run in lost]

    @cached_property
    def shared(self) -> bool:
        """Whether runs shared the machine, so that their times are not comparable."""
        return any(run.shared for runs in self.result.runs.values() for run in runs)

    @cached_property
    def extrapolated(self) -> bool:
        """Whether runs are shorter than an epoch, so that its duration is extrapolated."""
        finished = (run for runs in self.result.runs.values() for run in runs if run.summary)
        return any(is_partial_epoch(run.summary or {}, run.task.config) for run in finished)

    # -- tables ------------------------------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """Return the table of the comparison, and that of the learning-rate search if there was one."""
        return [self._main(), *([self._search()] if self.result.search else [])]

    def _row(
        self,
        name: str,
        figure: str | Callable[[Outcome], float | None],
        show: Callable[[Spread], str],
        better: Literal["low", "high"] | None,
    ) -> Row:
        cells = []
        for label in self.labels:
            values = list(self.values(label, figure).values())
            if values:
                spread = Spread.of(values)
                cells.append(Cell(show(spread), spread.mean))
            else:
                lost = self.diverged(label) if not self.values(label, "train_loss") else []
                cells.append(Cell("; ".join(lost)) if lost and figure == self.key else NOTHING)
        return Row(name, tuple(cells), better)

    def _main(self) -> Table:
        result, plan = self.result, self.plan
        times: Literal["low"] | None = None if self.shared else "low"
        mark = " (shared machine)" if self.shared else ""
        on = f" ({_VALIDATED_ON[self.val_split]})" if self.val_split else ""
        part = " (extrapolated)" if self.extrapolated else ""
        costs = [result.costs[label] for label in self.labels]
        rows = [
            self._row(f"Epoch duration{part}{mark}", "epoch_time", duration, times),
            self._row("Final training accuracy", "train_acc", percent, "high"),
            self._row(f"Validation step time (batch {ORIGINAL_BATCH}){mark}", step_time, duration, times),
            self._row(f"Final validation accuracy{on}", "val_acc", percent, "high"),
            self._row("Validation loss", "val_loss", plain, "low"),
        ]
        if plan.config.loss_sum:
            rows.append(
                self._row(f"Validation loss (sum over batches of {ORIGINAL_BATCH})", "val_loss_sum", plain, "low")
            )
        rows += [
            Row("Optimizer source", tuple(Cell(cost.source, cost.source) for cost in costs)),
            Row(
                "Optimizer time per step",
                tuple(Cell(format_seconds(cost.step_time), cost.step_time) for cost in costs),
                "low",
            ),
            Row(
                "Optimizer state",
                tuple(Cell(format_bytes(cost.state_bytes), cost.state_bytes) for cost in costs),
                "low",
            ),
            self._row("Test accuracy (last weights)", "test_acc", percent, "high"),
            Row("Learning rate", tuple(self._rate(label) for label in self.labels)),
            Row(
                "Weight decay",
                tuple(Cell(f"{each.config.weight_decay:g}", each.config.weight_decay) for each in plan.contestants),
            ),
            *self._comparison_rows(),
            Row("Finished runs", tuple(self._runs(label) for label in self.labels)),
        ]
        return Table(
            title=f"{result.folder.name}: {format_spec(plan.config.net, {})} on {plan.config.dataset}, "
            f"{plural(len(plan.seeds), 'seed')} ({', '.join(map(str, plan.seeds))})",
            corner="Metric",
            columns=tuple(self.labels),
            rows=tuple(rows),
            notes=tuple(self.notes()),
        )

    def _rate(self, label: str) -> Cell:
        rate = self.result.rates.get(label)
        if rate is None:
            return NOTHING
        origin = " (from search)" if label in self.result.search else ""
        return Cell(f"{rate:g}{origin}", rate)

    def _runs(self, label: str) -> Cell:
        runs = self.result.runs[label]
        done = sum(run.summary is not None for run in runs)
        words = [f"{done} of {len(self.plan.seeds)}", *self.diverged(label)]
        return Cell("; ".join(words), done)

    def _comparison_rows(self) -> list[Row]:
        best = self.best
        differences, intervals, verdicts = [], [], []
        for label in self.labels:
            if label == best:
                differences.append(Cell("best"))
                intervals.append(NOTHING)
                verdicts.append(NOTHING)
                continue
            pair = self.compared_with_best(label)
            known = pair.difference is not None
            differences.append(Cell(f"{pair.difference:+.2f}", pair.difference) if known else NOTHING)
            bounded = pair.low is not None and pair.high is not None
            intervals.append(
                Cell(f"[{pair.low:+.2f}, {pair.high:+.2f}]", f"{pair.low} {pair.high}") if bounded else NOTHING
            )
            verdicts.append(Cell(pair.verdict, pair.verdict) if pair.seeds else NOTHING)
        return [
            Row("Difference from the best (points)", tuple(differences)),
            Row("Confidence interval (points)", tuple(intervals)),
            Row("Verdict", tuple(verdicts)),
        ]

    def _search(self) -> Table:
        result = self.result
        count = self.plan.lr_search
        middle = (count - 1) / 2
        rows = []
        for label, outcomes in result.search.items():
            cells = []
            for run in outcomes:
                rate = f"{run.task.config.lr:g}: "
                if run.summary is None:
                    cells.append(Cell(f"{rate}diverged at step {run.diverged_step}"))
                else:
                    cells.append(Cell(f"{rate}{run.summary['val_acc']:.2f} %", run.summary["val_acc"]))
            rows.append(Row(label, tuple(cells), "high"))
        columns = tuple(f"lr x {FACTOR ** (i - middle):.3g}" for i in range(count))
        notes = [
            f"Cells: learning rate and held-out accuracy of a run with seed {self.plan.seeds[0]}; all runs have the same length.",
            "Columns: multiples of the optimizer's learning rate without a search.",
        ]
        for label, outcomes in result.search.items():
            rates = [run.task.config.lr for run in outcomes]
            if result.rates.get(label) in (rates[0], rates[-1]):
                notes.append(f"{label} is best at the edge of the search: a learning rate beyond it may be better.")
        return Table(
            title="Learning rates tried", corner="Optimizer", columns=columns, rows=tuple(rows), notes=tuple(notes)
        )

    def notes(self) -> list[str]:
        """Return the notes below the table: methods, units and caveats."""
        result, plan, environment = self.result, self.plan, self.result.environment
        notes = [
            f"{plural(len(plan.seeds), 'seed')}: mean ± sample standard deviation.",
            "With the same seed, all optimizers have the same initial weights, data order and augmentation.",
            f"Points: percentage points of {self.measured_on}.",
        ]
        tested = sum(pair.p is not None for pair in self.pairs)
        if len(plan.seeds) == 1:
            notes.append("One seed cannot show the noise between seeds; use --seeds 3 or more.")
        elif tested:
            notes.append(
                f"Verdicts: paired t-tests over seeds, at a joint confidence of {100 * LEVEL:.0f} % for {plural(tested, 'pair')} "
                f"(Holm's correction). Each interval has the confidence level of its test."
            )
        if self.val_split == "test":
            notes.append("With --val test, validation uses the test set: do not choose an optimizer by these figures.")
        if result.search:
            notes.append(
                f"The learning rates were chosen by held-out accuracy with seed {plan.seeds[0]}; test images had no part in it."
            )
        lost = [label for label in self.labels if self.diverged(label)]
        if lost:
            notes.append(f"Diverged runs of {', '.join(lost)} are not included in the figures.")
        if self.extrapolated:
            notes.append("The runs are shorter than an epoch: its duration is extrapolated from their steps.")
        if self.shared:
            notes.append("The runs shared the machine (--jobs): do not compare their times.")
        summaries = [each.summary for outcomes in result.runs.values() for each in outcomes if each.summary]
        precisions = sorted({summary["precision"] for summary in summaries if "precision" in summary})
        if len(precisions) > 1:  # a comparison that was resumed on another machine, or by another version
            notes.append(f"The runs differ in precision ({', '.join(precisions)}): do not compare their figures.")
        notes += plan.unequal_settings()
        if result.data_sha256:
            notes.append(f"All runs used the same images, with the digest {result.data_sha256[:12]}.")
        notes.append(
            f"{environment['device']} ({environment['device_name']}, {plural(environment['threads'], 'thread')}), torch "
            f"{environment['torch']}, vitctl {environment['vitctl']}{''.join(f', {each}' for each in precisions)}."
        )
        return notes

    # -- for machines ------------------------------------------------------------------------------------------------

    def document(self) -> Record:
        """Return the JSON document."""
        result, plan = self.result, self.plan
        contestants = []
        for each in plan.contestants:
            label = each.label
            config = each.config
            figures = {
                name: dataclasses.asdict(Spread.of(list(values.values())))
                for name, figure in _FIGURES.items()
                if (values := self.values(label, figure))
            }
            contestants.append(
                {
                    "label": label,
                    "opt": config.opt,
                    "opt_options": config.opt_options,
                    "lr": result.rates.get(label),
                    "weight_decay": config.weight_decay,
                    "lr_searched": label in result.search,
                    "optimizer": dataclasses.asdict(result.costs[label]),
                    "figures": figures,
                    "runs": [_run(run) for run in result.runs[label]],
                    "search": [_run(run) for run in result.search.get(label, [])],
                }
            )
        return {
            "name": result.folder.name,
            "folder": str(result.folder),
            "seeds": list(plan.seeds),
            "val_split": self.val_split,
            "compared_by": self.key,
            "best": self.best,
            "confidence": LEVEL,
            "optimizers": contestants,
            "pairs": [{**dataclasses.asdict(pair), "verdict": pair.verdict} for pair in self.pairs],
            "shared_times": self.shared,
            "environment": result.environment,
            "data_sha256": result.data_sha256,
            "config": {**plan.config.to_dict(), "opt": None, "opt_options": None, "lr": None, "weight_decay": None},
            "notes": self.notes(),
        }

    # -- plots -------------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """Return a function that draws each plot, by name."""
        return {"curves": self.curves}

    def curves(self) -> Figure:
        """Draw accuracy and training loss.

        Over several epochs, lines are means over the seeds and bands their standard deviation. For a single epoch, points
        are seeds and bars their mean.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.4), layout="constrained")
        accuracy, loss = figure.subplots(1, 2)
        epochs = max((len(run.history) for runs in self.result.runs.values() for run in runs if run.summary), default=0)
        key, label = (
            ("val_acc", "validation accuracy (%)") if self.val_split else ("train_acc", "training accuracy (%)")
        )
        for axes, name, word in ((accuracy, key, label), (loss, "train_loss", "training loss")):
            if epochs > 1:
                self._draw_curves(axes, name)
                axes.set_xlabel("epoch")
                axes.xaxis.get_major_locator().set_params(integer=True)
            else:
                self._draw_points(axes, name)
            on = f", {_VALIDATED_ON[self.val_split]}" if name == "val_acc" and self.val_split else ""
            axes.set_ylabel(f"{word}{on}")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        seeds = len(self.plan.seeds)
        spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else f"seed {self.plan.seeds[0]}"
        figure.suptitle(f"{self.plan.config.net} on {self.plan.config.dataset}: {spread}", fontsize=11)
        if epochs > 1:
            handles, names = accuracy.get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=min(5, max(1, len(names))), frameon=False)
        return figure

    def _draw_curves(self, axes: Axes, name: str) -> None:
        for i, label in enumerate(self.labels):
            by_epoch: dict[int, list[float]] = {}
            for run in self.result.runs[label]:
                for row in run.history if run.summary else []:
                    if name in row:
                        by_epoch.setdefault(row["epoch"], []).append(row[name])
            if not by_epoch:
                axes.plot([], [], color=_COLOURS[i % len(_COLOURS)], label=f"{label} (diverged)")
                continue
            epochs = sorted(by_epoch)
            spreads = [Spread.of(by_epoch[epoch]) for epoch in epochs]
            means = [spread.mean for spread in spreads]
            colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS) % len(_STYLES)]
            axes.plot(epochs, means, style, color=colour, label=label, marker=_MARKERS[i % len(_MARKERS)], markersize=4)
            lows = [spread.mean - (spread.deviation or 0.0) for spread in spreads]
            highs = [spread.mean + (spread.deviation or 0.0) for spread in spreads]
            axes.fill_between(epochs, lows, highs, color=colour, alpha=0.18, linewidth=0)

    def _draw_points(self, axes: Axes, name: str) -> None:
        for i, label in enumerate(self.labels):
            values = list(self.values(label, name).values())
            colour = _COLOURS[i % len(_COLOURS)]
            if not values:
                axes.annotate(
                    "diverged", (i, 0.5), xycoords=("data", "axes fraction"), ha="center", rotation=90, color=colour
                )
                continue
            spread = Spread.of(values)
            axes.plot([i] * len(values), values, _MARKERS[i % len(_MARKERS)], color=colour, alpha=0.75, markersize=6)
            axes.hlines(spread.mean, i - 0.28, i + 0.28, color=colour, linewidth=2)
            if spread.deviation:
                axes.errorbar(i, spread.mean, spread.deviation, color=colour, capsize=5, linewidth=1)
        rotated = len(self.labels) > 4 or max(map(len, self.labels)) > 10
        axes.set_xticks(
            range(len(self.labels)), self.labels, rotation=25 if rotated else 0, ha="right" if rotated else "center"
        )
        axes.set_xlim(-0.6, len(self.labels) - 0.4)


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito, for colour-blind readers."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", ":")


def step_time(run: Outcome) -> float | None:
    """Return the seconds to validate 100 images, the mean over a run's epochs."""
    rows = [row["eval_time"] for row in run.history if "eval_time" in row]
    images = (run.summary or {}).get(
        "test_images" if (run.summary or {}).get("val_split") == "test" else "val_images", 0
    )
    return sum(rows) / len(rows) / images * ORIGINAL_BATCH if rows and images else None


_NAMES = ("train_loss", "train_acc", "val_loss", "val_acc", "val_loss_sum", "test_loss", "test_acc")
_FIGURES: dict[str, str | Callable[[Outcome], float | None]] = {
    **{name: name for name in (*_NAMES, "epoch_time", "images_per_second", "seconds")},
    "val_step_time": step_time,
}


def _run(run: Outcome) -> Record:
    return {
        "name": run.task.name,
        "seed": run.task.config.seed,
        "lr": run.task.config.lr,
        "state": "diverged" if run.diverged_step is not None else "finished",
        "diverged_step": run.diverged_step,
        "shared": run.shared,
        "summary": run.summary,
        "history": run.history,
    }
