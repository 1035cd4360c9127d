"""Charts and tables of a sweep, and the page and files that show them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitctl.errors import RequestError, RunFailed
from vitctl.files import write_bytes
from vitctl.report import drawing, rendering
from vitctl.report.chart import Axis, Chart, Line, Mark, Parallel, Points, Rows, Segment
from vitctl.report.rendering import Section
from vitctl.report.tables import Cell, Row, Table
from vitctl.sweep.ledger import root_of
from vitctl.sweep.space import CHOICES, Parameter, Value, show
from vitctl.sweep.sweep import Sweep, TrialRow
from vitctl.units import plural

_STATES = {"complete": (0, "complete"), "pruned": (1, "stopped early")}
"""Colour and word for the trials with a value, by state."""

_BEST = 5
"""Trials in the table of the best."""

_FANOVA = 200
"""Complete trials up to which importance is that of fANOVA, which takes seconds; beyond, that of PED-ANOVA, which looks
only at the best tenth of the trials."""


@dataclass(frozen=True)
class _Scale:
    """Positions of a parameter's or the metric's values on an axis.

    Attributes:
        name: its name.
        log: whether the axis is logarithmic.
        choices: the values of a categorical parameter; empty for numbers.
    """

    name: str
    log: bool = False
    choices: tuple[Value, ...] = ()

    @classmethod
    def of(cls, parameter: Parameter) -> _Scale:
        if parameter.distribution in CHOICES:
            return cls(parameter.name, choices=tuple(parameter.choices))
        return cls(parameter.name, log=parameter.log)

    def place(self, value: Value) -> float:
        """Return the position of a value; on a logarithmic axis, its logarithm."""
        if self.choices:
            return float(self.choices.index(value))
        number = float(value)  # type: ignore[arg-type]
        return math.log10(number) if self.log else number

    def axis(self, values: Sequence[Value]) -> tuple[Axis, list[float]]:
        """Return the axis that spans the values, and their positions on it from 0 to 1."""
        places = [self.place(value) for value in values]
        low, high = (0.0, len(self.choices) - 1.0) if self.choices else (min(places), max(places))
        span = high - low or 1.0
        if self.choices:
            ticks = [((place - low) / span, show(value)) for place, value in enumerate(self.choices)]
        elif self.log:
            found = drawing.log_ticks(10**low, 10**high) if high > low else [10**low]
            ticks = [((math.log10(value) - low) / span, drawing.number_text(value)) for value in found]
        else:
            ticks = [((value - low) / span, drawing.number_text(value)) for value in drawing.ticks(low, high, 5)]
        return Axis(name=self.name, ticks=ticks), [(place - low) / span for place in places]


class SweepReport:
    """The charts and tables of a sweep.

    Args:
        sweep: a sweep with at least one complete trial.

    Raises:
        RequestError: no trial is complete.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.best = sweep.best()
        self.metric = sweep.file.metric.name
        self.order = sweep.file.order
        self.ledger = sweep.ledger()
        self.rows = sweep.rows(self.ledger)
        sign = sweep.file.metric.sign
        self.valued = [row for row in self.rows if row.state in _STATES and row.value is not None]
        self.valued.sort(key=lambda row: (row.state != "complete", sign * (row.value or 0.0), row.trial))

    # -- sections ------------------------------------------------------------------------------------------------------

    def history(self) -> Section:
        """Return the value of each trial, and the best so far."""
        done = sorted((row for row in self.valued if row.state == "complete"), key=lambda row: row.trial)
        steps: list[tuple[int, float]] = []
        for row in done:
            before = [best for _, best in steps[-1:]]
            steps += [(row.trial, best) for best in before]
            steps.append((row.trial, self.sweep.file.metric.best([*before, row.value or 0.0])))
        x, y = zip(*steps, strict=True)
        marks: list[Mark] = [
            Line(label="best so far", x=x, y=y, tone=2, series="best-so-far"),
            *self._points(lambda row: row.trial),
        ]
        title = f"{self.metric} by trial"
        chart = self._chart("history", title, f"best: {self._value(self.best)}", "trial", marks, width=460)
        return Section(id="history", title="History", charts=[chart])

    def values(self) -> Section | None:
        """Return the values of the trials against each parameter; None if no parameter varies."""
        charts = []
        for name in self.order:
            scale = _Scale.of(self.sweep.file.space.varying[name])

            def position(row: TrialRow, scale: _Scale = scale, name: str = name) -> float:
                place = scale.place(row.params[name])
                return 10**place if scale.log else place

            charts.append(
                self._chart(
                    f"values-{_identifier(name)}",
                    name,
                    f"{self.metric} of each trial by {name}",
                    name,
                    self._points(position),
                    x_log=scale.log,
                    x_names=[show(value) for value in scale.choices],
                )
            )
        if not charts:
            return None
        return Section(id="values", title="Values by parameter", charts=charts)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Importance of each parameter, most important first; they sum to 1. Empty with too few complete trials."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        complete = self.ledger.count("complete")
        if complete < 2:
            return {}
        evaluator = FanovaImportanceEvaluator(seed=0) if complete <= _FANOVA else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = get_param_importances(self.sweep.reader, evaluator=evaluator)
            except (ValueError, RuntimeError):
                return {}
        known = {name: float(share) for name, share in found.items() if math.isfinite(share)}
        return dict(sorted(known.items(), key=lambda item: -item[1]))

    def importances(self) -> Section | None:
        """Return the importance of each parameter; None with too few complete trials."""
        if not self.shares:
            return None
        shares = [100 * share for share in self.shares.values()]
        texts = [f"{name}: {share:.1f} %" for name, share in zip(self.shares, shares, strict=True)]
        rows = Rows(
            names=list(self.shares),
            parts=[Segment(label="", values=shares)],
            ends=[f"{share:.0f} %" for share in shares],
            texts=texts,
        )
        chart = Chart(
            id="importances",
            title="Importance of parameters",
            description="; ".join(texts),
            x="share of the importance in %",
            marks=[rows],
            width=440,
            height=60 + 26 * max(3, len(shares)),
        )
        method = "fANOVA" if self.ledger.count("complete") <= _FANOVA else "PED-ANOVA"
        intro = f"How much each parameter explains of the differences between complete trials (Optuna's {method})."
        return Section(id="importances", title="Importance", intro=intro, charts=[chart])

    def parallel(self) -> Section | None:
        """Return the trials as lines across their parameters and values; None if no parameter varies."""
        if not self.order:
            return None
        rows = self.valued[::-1]  # the best in front
        scales = [_Scale.of(self.sweep.file.space.varying[name]) for name in self.order]
        columns: list[list[Value]] = [[row.params[name] for row in rows] for name in self.order]
        columns.append([row.value for row in rows])
        axes, places = [], []
        for scale, values in zip([*scales, _Scale(self.metric)], columns, strict=True):
            axis, positions = scale.axis(values)
            axes.append(axis)
            places.append(positions)
        weights = [0.15 + 0.85 * (rank / max(1, len(rows) - 1)) ** 2 for rank in range(len(rows))]
        lines = list(zip(*places, strict=True))
        mark = Parallel(axes=axes, lines=lines, weights=weights, texts=[self._text(row) for row in rows])
        chart = Chart(
            id="parallel",
            title="Parameters of the trials",
            description=f"one line per trial across {', '.join([*self.order, self.metric])}; better trials stand out",
            marks=[mark],
            width=max(460, 150 * len(axes)),
            height=320,
        )
        return Section(id="parallel", title="Parallel coordinates", intro="Better trials stand out.", charts=[chart])

    def curves(self) -> Section:
        """Return the metric of each trial by epoch, with where trials were stopped early."""
        reported = {root_of(trial): trial.intermediate_values for trial in self.ledger.trials}
        marks: list[Mark] = []
        ends: dict[str, list[tuple[int, float, str]]] = {"pruned": [], "complete": [], "best": []}
        for row in self.valued[::-1]:
            values = {epoch: value for epoch, value in sorted(reported[row.trial].items()) if math.isfinite(value)}
            if not values:
                continue
            kind: str = "best" if row.trial == self.best.trial else row.state
            tone, word = _STATES.get(kind, (2, "best"))
            marks.append(
                Line(
                    label=word,
                    x=list(values),
                    y=list(values.values()),
                    tone=tone,
                    dash="dashed" if kind == "pruned" else "solid",
                    series=kind,
                    guide=kind != "best",
                )
            )
            last = max(values)
            ends[kind].append((last, values[last], self._text(row)))
        for series, found in ends.items():
            if found:
                x, y, texts = zip(*found, strict=True)
                tone, word = _STATES.get(series, (2, "best"))
                marks.append(Points(label=word, x=x, y=y, texts=texts, tone=tone, series=series))
        stopped = [row for row in self.rows if row.state == "pruned"]
        intro = "No trial was stopped early."
        if stopped:
            most = max(row.epochs for row in self.valued if row.state == "complete")
            mean = statistics.fmean(row.epochs for row in stopped)
            intro = (
                f"{plural(len(stopped), 'trial')} of {len(self.rows)} stopped early, after {mean:.1f} epochs on average; "
                f"complete trials have up to {plural(most, 'epoch')}."
            )
        chart = self._chart("curves", f"{self.metric} by epoch", intro, "epoch", marks, width=480, height=320)
        tables = [self._table("Trials that were stopped early", stopped)] if stopped else []
        return Section(id="curves", title="Curves and early stops", intro=intro, charts=[chart], tables=tables)

    # -- page --------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Title of the page."""
        return f"sweep {self.sweep.id} ({self.sweep.file.name})"

    @property
    def verdict(self) -> str:
        """What the sweep found, in a few sentences."""
        text = f"Trial {self.best.trial} has the best {self.metric}: {self._value(self.best)}"
        params = ", ".join(f"{name} {show(value)}" for name, value in self.best.params.items())
        text += f" with {params}." if params else "."
        counts = {_STATES.get(state, (0, state))[1]: count for state, count in self.ledger.counts.items() if count}
        text += f" Trials: {', '.join(f'{count} {word}' for word, count in counts.items())}."
        if len(self.shares) > 1:
            name, share = next(iter(self.shares.items()))
            text += f" The most important parameter is {name} ({100 * share:.0f} %)."
        return text

    def sections(self) -> list[Section]:
        """Return all sections of the page."""
        top = [row for row in self.valued[:_BEST] if row.state == "complete"]
        id, place = self.sweep.id, self.sweep.place
        commands = [
            ("Settings of the best trial", f"vitctl sweep best {id} --config{place} > best.yaml"),
            ("Train with them", "vitctl train --config best.yaml"),
            ("Run more trials", self.sweep.agent_command),
        ]
        charts = [self.importances(), self.values(), self.parallel(), self.history(), self.curves()]
        return [
            Section(id="best", title="Best trials", tables=[self._table("Best trials", top)]),
            *filter(None, charts),
            Section(id="trials", title="All trials", tables=[self._table("All trials", self.rows)]),
            Section(id="repeat", title="Repeat", commands=commands),
        ]

    def page(self, sections: Sequence[Section]) -> str:
        """Return a page of sections."""
        state = self.sweep.state(self.ledger, self.sweep.control())
        notes = [] if state == "finished" else [f"The sweep is {state}."]
        return rendering.page(self.title, self.verdict, sections, notes)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _chart(
        self,
        id: str,
        title: str,
        description: str,
        x: str,
        marks: Sequence[Mark],
        *,
        width: int = 380,
        height: int = 260,
        x_log: bool = False,
        x_names: Sequence[str] = (),
    ) -> Chart:
        return Chart(
            id=id,
            title=title,
            description=description,
            x=x,
            y=self.metric,
            marks=marks,
            width=width,
            height=height,
            x_log=x_log,
            x_names=x_names,
        )

    def _points(self, position: Callable[[TrialRow], float]) -> list[Mark]:
        """Return the trials with values as points, by state."""
        marks: list[Mark] = []
        for state, (tone, word) in list(_STATES.items())[::-1]:
            rows = [row for row in self.valued if row.state == state]
            if rows:
                marks.append(
                    Points(
                        label=word,
                        x=[position(row) for row in rows],
                        y=[row.value or 0.0 for row in rows],
                        texts=[self._text(row) for row in rows],
                        tone=tone,
                        series=state,
                    )
                )
        return marks

    def _value(self, row: TrialRow) -> str:
        return self.sweep.format_value(row.value)

    def _text(self, row: TrialRow) -> str:
        """Return the readout of a trial."""
        state = f"stopped early after {plural(row.epochs, 'epoch')}" if row.state == "pruned" else row.state
        return "\n".join(
            [
                f"trial {row.trial}, {state}",
                f"{self.metric}: {self._value(row)}",
                *(f"{name}: {show(value)}" for name, value in row.params.items()),
            ]
        )

    def _table(self, title: str, rows: Sequence[TrialRow]) -> Table:
        """Return trials as a table, one per row."""
        lines = []
        for row in rows:
            state = _STATES.get(row.state, (0, row.state))[1]
            params = [Cell(show(row.params[name])) if name in row.params else Cell("–") for name in self.order]
            value = self._value(row) if row.value is not None else "–"
            lines.append(
                Row(
                    str(row.trial), (Cell(value, row.value), *params, Cell(str(row.epochs)), Cell(row.failure or state))
                )
            )
        columns = (self.metric, *self.order, "epochs", "state")
        return Table(title=title, corner="trial", columns=columns, rows=tuple(lines), words=("state",), sortable=True)


def _identifier(name: str) -> str:
    """Return a parameter's name with hyphens only."""
    return "".join(each if each.isalnum() and each.isascii() else "-" for each in name)


KINDS: dict[str, Callable[[SweepReport], Section | None]] = {
    "history": SweepReport.history,
    "parallel": SweepReport.parallel,
    "importances": SweepReport.importances,
    "curves": SweepReport.curves,
    "values": SweepReport.values,
}
"""Kinds of plots."""

FORMATS = ("png", "html", "svg")
"""Kinds of files."""


def plot(
    sweep: Sweep, kinds: Sequence[str], formats: Sequence[str], out: Path, warn: Callable[[str], None]
) -> list[Path]:
    """Draw plots of a sweep and return the paths of the files.

    Args:
        sweep: a sweep with at least one complete trial.
        kinds: names in :data:`KINDS`.
        formats: names in :data:`FORMATS`; for a single file, its format.
        out: folder for a file of each kind and format, created if missing; or a file, which gets all kinds.
        warn: receives a message for each plot that needs more trials.

    Raises:
        RequestError: no trial is complete, or the folder cannot be created.
        RunFailed: a file cannot be written.
    """
    report = SweepReport(sweep)
    sections = []
    for kind in kinds:
        section = KINDS[kind](report)
        if section is None:
            warn(f"skipping {kind}: it needs two complete trials with different parameters")
        else:
            sections.append(section)

    def content(shown: Sequence[Section], form: str) -> bytes:
        if form == "html":
            return report.page(shown).encode()
        return drawing.render([chart for section in shown for chart in section.charts], form, report.title)

    if is_file(out):
        files = {out: content(sections, out.suffix.lower().removeprefix("."))} if sections else {}
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"cannot create {out}: {error.strerror}", hint="use --out with another folder"
            ) from error
        files = {out / f"{each.id}.{form}": content([each], form) for form in formats for each in sections}
    for path, data in files.items():
        try:
            write_bytes(path, data)
        except RunFailed as error:
            raise RunFailed(error.message, hint="use --out with a path in another folder") from error
    return list(files)


def is_file(out: Path) -> bool:
    """Return whether ``--out`` names a file, by its suffix."""
    return out.suffix.lower().removeprefix(".") in FORMATS and not out.is_dir()
