"""Report of an optimizer comparison: tables, a JSON document and plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vitctl.benchmark.plan import FACTOR
from vitctl.benchmark.statistics import LEVEL, Pair, Spread, compare
from vitctl.config import ORIGINAL_BATCH
from vitctl.registry import format_spec
from vitctl.report.chart import Chart, Intervals, Line, Mark, Points
from vitctl.report.curves import mean_curve
from vitctl.report.rendering import Section
from vitctl.report.tables import NOTHING, Cell, Row, Table
from vitctl.units import format_bytes, format_duration, plural

if TYPE_CHECKING:
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

    # -- page --------------------------------------------------------------------------------------------------------

    @property
    def verdict(self) -> str:
        """What the comparison says, in two sentences at most."""
        best = self.best
        values = list(self.values(best, self.key).values())
        first = f"{best} reaches the best {self.measured_on}: {percent(Spread.of(values))}."
        if len(self.plan.seeds) == 1:
            return f"{first} One seed cannot show whether the others are worse by more than noise."
        words: dict[str, list[str]] = {}
        for label in self.labels:
            if label != best:
                pair = self.compared_with_best(label)
                words.setdefault(pair.verdict if pair.seeds else "diverged", []).append(
                    label if pair.difference is None else f"{label} ({pair.difference:+.2f} points)"
                )
        others = "; ".join(f"{verdict}: {', '.join(labels)}" for verdict, labels in words.items())
        return f"{first} {others[0].upper()}{others[1:]}."

    def plots(self) -> list[Section]:
        """Return the charts of the results by optimizer, by epoch if there are several, and of the learning-rate search."""
        seeds = len(self.plan.seeds)
        of = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else f"seed {self.plan.seeds[0]}"
        key, axis = (
            ("val_acc", "validation accuracy in %") if self.val_split else ("train_acc", "training accuracy in %")
        )
        loss, word = ("train_loss", "training loss")
        epochs = max((len(run.history) for runs in self.result.runs.values() for run in runs if run.summary), default=0)
        compared = [self._differences()] if any(pair.low is not None for pair in self.pairs) else []
        intro = f"{of}."
        if compared:
            intro += " Small dots are seeds. An interval that reaches 0 means that the difference may be noise."
        if epochs <= 1:
            charts = [self._seeds(key, axis), self._seeds(loss, word), *compared]
            return [Section(id="curves", title="Results", intro=intro, charts=charts), *self._searched()]
        charts = [self._seeds(self.key, f"{self.measured_on} in %"), *compared]
        curves = [self._curves(key, axis), self._curves(loss, word)]
        return [
            Section(id="results", title="Results", intro=intro, charts=charts),
            Section(id="curves", title="Curves", intro=f"{of}.", charts=curves),
            *self._searched(),
        ]

    def _searched(self) -> list[Section]:
        """Return the section of the learning-rate search, if there was one."""
        marks: list[Mark] = []
        for label, outcomes in self.result.search.items():
            done = [(run.task.config.lr, run.summary["val_acc"]) for run in outcomes if run.summary]
            if done:
                rates, values = zip(*sorted(done), strict=True)
                number = self.labels.index(label)
                style: dict[str, Any] = {
                    "label": label,
                    "tone": number,
                    "series": f"s{number}",
                    "x": rates,
                    "y": values,
                }
                texts = [
                    f"{label}, learning rate {rate:g}: {value:.2f} %" for rate, value in zip(rates, values, strict=True)
                ]
                marks += [Line(**style, guide=True), Points(**style, texts=texts)]
        if not marks:
            return []
        chosen = ", ".join(
            f"{label} {rate:g}" for label, rate in self.result.rates.items() if label in self.result.search
        )
        chart = Chart(
            id="search",
            title="Held-out accuracy by learning rate",
            description=f"chosen learning rates: {chosen}" if chosen else "no learning rate was chosen",
            x="learning rate",
            y="held-out accuracy in %",
            marks=marks,
            width=480,
            height=300,
            x_log=True,
        )
        intro = f"Runs with seed {self.plan.seeds[0]}; diverged ones have no point."
        return [Section(id="search", title="Learning-rate search", intro=intro, charts=[chart])]

    def _curves(self, key: str, axis: str) -> Chart:
        """Return a figure of the records by epoch: means over the seeds, with a band of their standard deviation."""
        lines = []
        for number, label in enumerate(self.labels):
            histories = [run.history for run in self.result.runs[label] if run.summary]
            line = mean_curve(histories, key, label=label, tone=number, series=f"s{number}")
            if line is not None:
                lines.append(replace(line, dots=len(line.x) <= _DOTTED))
        ends = "; ".join(f"{line.label} {line.y[-1]:.4g}" for line in lines)
        return Chart(
            id=f"curves-{key.replace('_', '-')}",
            title=axis[0].upper() + axis[1:],
            description=f"by epoch, last values: {ends}",
            x="epoch",
            y=axis,
            marks=lines,
            width=440,
            height=280,
        )

    def _seeds(self, key: str, axis: str) -> Chart:
        """Return a figure of each optimizer's finished runs: seeds, their mean and standard deviation."""
        rows: list[tuple[float, float, float] | None] = []
        single, texts = [], []
        show = plain if "loss" in key else percent
        for label in self.labels:
            values = list(self.values(label, key).values())
            single.append(values if len(values) > 1 else [])
            if values:
                spread = Spread.of(values)
                half = spread.deviation or 0.0
                rows.append((spread.mean, spread.mean - half, spread.mean + half))
                texts.append(f"{label}: {show(spread)}")
            else:
                rows.append(None)
                texts.append(f"{label}: {'; '.join(self.diverged(label)) or 'unknown'}")
        return self._intervals(f"seeds-{key.replace('_', '-')}", axis, rows, texts, single)

    def _differences(self) -> Chart:
        """Return each optimizer's difference from the best, with its confidence interval."""
        rows: list[tuple[float, float, float] | None] = []
        texts = []
        for label in self.labels:
            pair = None if label == self.best else self.compared_with_best(label)
            if pair is None:
                rows.append((0.0, 0.0, 0.0))
                texts.append(f"{label}: best")
            elif pair.difference is not None and pair.low is not None and pair.high is not None:
                rows.append((pair.difference, pair.low, pair.high))
                texts.append(
                    f"{label}: {pair.difference:+.2f} points [{pair.low:+.2f}, {pair.high:+.2f}], {pair.verdict}"
                )
            else:
                rows.append(None)
                texts.append(f"{label}: {pair.verdict}")
        return self._intervals("differences", f"difference from {self.best} in points", rows, texts, [])

    def _intervals(
        self,
        id: str,
        axis: str,
        rows: Sequence[tuple[float, float, float] | None],
        texts: Sequence[str],
        single: Sequence[Sequence[float]],
    ) -> Chart:
        return Chart(
            id=id,
            title=axis[0].upper() + axis[1:],
            description="; ".join(texts),
            x=axis,
            marks=[
                Intervals(
                    names=self.labels,
                    values=[row[0] if row else None for row in rows],
                    low=[row[1] if row else 0.0 for row in rows],
                    high=[row[2] if row else 0.0 for row in rows],
                    texts=texts,
                    tones=range(len(self.labels)),
                    single=single,
                )
            ],
            width=440,
            height=60 + 26 * max(3, len(self.labels)),
        )


_DOTTED = 30
"""Epochs up to which each has a dot on a curve."""


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
