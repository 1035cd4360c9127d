"""Charts described as data, independent of the library that draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = int | Literal["text", "muted", "bar"]
"""Colour of a mark by its role: the number of a series, or a role; the page's theme decides how it looks."""

Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points.

    Attributes:
        label: what it shows, for readouts.
        x: horizontal positions, ascending.
        y: values; NaN interrupts the line.
        low: lower edge of a band around it; empty for none.
        high: upper edge of the band.
        tone: its colour.
        dash: its style.
        series: name of the series that the page's legend switches on and off.
        dots: whether each point has a dot.
        guide: whether it only guides the eye, without readout and entry in the legend.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    tone: Tone = 0
    dash: Dash = "solid"
    series: str = ""
    dots: bool = False
    guide: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Vertical bars.

    Attributes:
        edges: edges of the bars, one more than values.
        values: heights.
        tone: their colour.
        texts: readout of each bar.
    """

    edges: Sequence[float]
    values: Sequence[float]
    tone: Tone = "bar"
    texts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Points:
    """Separate points.

    Attributes:
        x: horizontal positions.
        y: vertical positions.
        texts: readout of each point.
        label: what they are, for the legend.
        tone: their colour.
        series: name of the series that the page's legend switches on and off.
    """

    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str]
    label: str = ""
    tone: Tone = 0
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Horizontal intervals with a dot, one per row, the first on top.

    Attributes:
        names: name of each row.
        values: position of each dot; None for no dot.
        low: lower end of each interval.
        high: upper end of each interval.
        texts: readout of each row.
        tones: colour of each row; empty for the first colour.
        single: values behind each row's dot, drawn as small dots; empty for none.
    """

    names: Sequence[str]
    values: Sequence[float | None]
    low: Sequence[float]
    high: Sequence[float]
    texts: Sequence[str]
    tones: Sequence[Tone] = ()
    single: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of each bar of :class:`Rows`.

    Attributes:
        label: what it is, for the legend; empty for no entry.
        values: its length in each row.
        tone: its colour.
        series: name of the series that the page's legend switches on and off.
    """

    label: str
    values: Sequence[float]
    tone: Tone = 0
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Horizontal bars from 0, one per row, the first on top.

    Attributes:
        names: name of each row.
        parts: parts of the bars, from the left.
        ends: text after each bar.
        texts: readout of each row.
    """

    names: Sequence[str]
    parts: Sequence[Segment]
    ends: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of :class:`Parallel`.

    Attributes:
        name: its name.
        ticks: position from 0 to 1 and text of each tick.
    """

    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Lines across parallel vertical axes.

    Attributes:
        axes: the axes, from the left.
        lines: positions from 0 to 1 of each line on the axes, the first line at the back.
        weights: opacity of each line, from 0 to 1.
        texts: readout of each line.
    """

    axes: Sequence[Axis]
    lines: Sequence[Sequence[float]]
    weights: Sequence[float]
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A square matrix of counts; darker cells have a larger share of their row.

    Attributes:
        names: names of rows and columns.
        counts: counts by row and column.
    """

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


Mark = Line | Points | Bars | Intervals | Rows | Parallel | Matrix


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with one pair of axes.

    Attributes:
        id: name that is unique on the page, of letters, digits and hyphens; also that of the PNG file.
        title: short title.
        description: what it shows, for readers who cannot see it.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        marks: what to draw, the first at the back.
        width: width in CSS pixels.
        height: height in CSS pixels.
        x_range: ends of the horizontal axis; None for the data's.
        y_range: ends of the vertical axis; None for the data's.
        x_log: whether the horizontal axis is logarithmic.
        x_names: names of the horizontal positions 0, 1, ..., instead of numbers.
    """

    id: str
    title: str
    description: str
    x: str = ""
    y: str = ""
    marks: Sequence[Mark] = field(default_factory=tuple)
    width: int = 340
    height: int = 230
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    x_names: Sequence[str] = ()
