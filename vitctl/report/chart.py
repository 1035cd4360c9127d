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
class Intervals:
    """Horizontal intervals with a dot, one per row, the first on top, over an axis from 0 to 100 percent.

    Attributes:
        names: name of each row.
        values: position of each dot; None for no dot.
        low: lower end of each interval.
        high: upper end of each interval.
        texts: readout of each row.
        tone: their colour.
    """

    names: Sequence[str]
    values: Sequence[float | None]
    low: Sequence[float]
    high: Sequence[float]
    texts: Sequence[str]
    tone: Tone = 0


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A square matrix of counts; darker cells have a larger share of their row.

    Attributes:
        names: names of rows and columns.
        counts: counts by row and column.
    """

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


Mark = Line | Bars | Intervals | Matrix


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
