"""Draws charts: as SVG that follows the theme of the page around it, and as files (SVG, PNG, PDF) on white.

All come from the same list of shapes. In a page, texts stay texts, colours are variables of the style sheet, and each
series has its name, so that the page's script can switch it off. matplotlib would do the same at the cost of a
dependency, half a second per chart and ten times the size.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from vitctl.report.chart import Bars, Chart, Intervals, Line, Matrix, Parallel, Points, Rows, Segment, Tone
from vitctl.units import printable

if TYPE_CHECKING:
    from PIL.Image import Image

SERIES = (
    "#1f5fbf", "#c2410c", "#15803d", "#8b2fd6", "#0e7490", "#b4155e", "#7a5c00", "#4b5563", "#5b7f00", "#b3261e",
)  # fmt: skip
"""Colours of series on white; further series begin again. The style sheet has the same, and others on black."""

_ROLES = {
    "text": "#1b1f24",
    "muted": "#6b7280",
    "good": "#1f5fbf",
    "bad": "#c2410c",
    "grid": "#d9dde3",
    "bar": "#c3cad4",
    "on": "#ffffff",
    "paper": "#ffffff",
}

_LEVELS = 8
"""Shades of a matrix's cells."""

_LIGHT_TEXT = 0.85
"""Opacity of a cell from which its number is drawn in the colour of the background."""

_LONGEST = 24
"""Characters of a class's name beside a matrix or interval; readouts and tables have all of it."""

_BELOW = 14
"""Characters of a name below an axis, where it may have to be upright."""

_NAMED, _NUMBERED = 60, 20
"""Classes up to which a matrix has names, and numbers in its cells."""

_SIZE, _SMALL = 11, 9.5
"""Sizes of text in CSS pixels: axes, and names of classes."""

_SCALE = 3
"""Pixels of a PNG per CSS pixel."""

_HALO = 1.5
"""Width of a halo in CSS pixels."""

FORMATS = ("png", "svg", "pdf")
"""Kinds of files with charts."""

_DASHES: dict[str, tuple[float, ...]] = {"solid": (), "dashed": (5, 3), "dotted": (1.5, 2.5)}
"""Lengths of dashes and gaps in CSS pixels."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape in CSS pixels from the upper left.

    Attributes:
        kind: ``line`` through points, ``area`` inside of points, ``dots`` at points, or ``boxes`` from pairs of opposite
            corners.
        points: the points; NaN interrupts a line.
        tone: its colour.
        width: width of a line, or radius of dots.
        dash: lengths of dashes and gaps; empty for none.
        opacity: from 0 to 1.
        series: name of its series, or empty.
        inside: whether it belongs to the data, which zooming moves and the plot's edges cut off.
    """

    kind: str
    points: Sequence[Point]
    tone: Tone | str
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    series: str = ""
    inside: bool = False


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text.

    Attributes:
        x: horizontal position of its anchor.
        y: vertical position of its middle.
        text: the text.
        anchor: ``start``, ``middle`` or ``end``.
        size: font size.
        tone: its colour.
        upright: whether it is turned by 90 degrees, to be read from below.
        axis: ``x`` or ``y`` for a number at a tick, which zooming replaces.
        halo: whether it stands out from lines behind it.
    """

    x: float
    y: float
    text: str
    anchor: str = "middle"
    size: float = _SIZE
    tone: str = "text"
    upright: bool = False
    axis: str = ""
    halo: bool = False


@dataclass
class Scene:
    """A chart laid out in pixels.

    Attributes:
        chart: the chart.
        left, top, right, bottom: edges of the plot.
        shapes: its shapes, the first at the back.
        labels: its texts.
        readout: its values by position, as JSON values for the page's script.
    """

    chart: Chart
    left: float
    top: float
    right: float
    bottom: float
    shapes: list[Shape] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    readout: dict[str, Any] = field(default_factory=dict)


# -- layout ------------------------------------------------------------------------------------------------------------


def lay_out(chart: Chart) -> Scene:
    """Return the shapes and texts of a chart."""
    first = chart.marks[0] if chart.marks else None
    if isinstance(first, Matrix):
        scene = _lay_out_matrix(chart, first)
    elif isinstance(first, Intervals):
        scene = _lay_out_intervals(chart, first)
    elif isinstance(first, Rows):
        scene = _lay_out_rows(chart, first)
    elif isinstance(first, Parallel):
        scene = _lay_out_parallel(chart, first)
    else:
        scene = _lay_out_plane(chart)
    box = {side: round(getattr(scene, side), 1) for side in ("left", "top", "right", "bottom")}
    scene.readout |= {**box, "width": chart.width, "height": chart.height}
    return scene


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two positive numbers, with 2 and 5 times them if there are few, or round numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in decades for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / 7)]
    return ticks(low, high, 3)


def number_text(value: float) -> str:
    """Return a number at a tick: ``1,200``, ``0.25`` or ``2e-05``."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:.4g}"


def _lay_out_plane(chart: Chart) -> Scene:
    """Lay out lines, points and bars over two axes of numbers, or of names and numbers."""
    scaled = math.log10 if chart.x_log else float
    (x_low, x_high), across = _horizontal(chart, scaled)
    y_low, y_high = chart.y_range or _range([value for mark in chart.marks for value in _values(mark, "y")], 0.06)
    upward = ticks(y_low, y_high, 5)
    margin = max((_width(number_text(value), _SIZE) for value in upward), default=0) + 8
    scene = Scene(chart, left=margin + (20 if chart.y else 0), top=8, right=chart.width - 10, bottom=chart.height - 38)
    longest = max((_width(text, _SIZE) for _, text in across), default=0)
    upright = bool(chart.x_names) and longest > (scene.right - scene.left) / len(chart.x_names) - 4
    below = longest - 8 if upright else 0.0
    scene.bottom -= below

    def place(x: float, y: float) -> Point:
        return (
            scene.left + (scaled(x) - x_low) / (x_high - x_low) * (scene.right - scene.left),
            scene.bottom - (y - y_low) / (y_high - y_low) * (scene.bottom - scene.top),
        )

    for value in upward:
        y = scene.bottom - (value - y_low) / (y_high - y_low) * (scene.bottom - scene.top)
        scene.shapes.append(Shape(kind="line", points=[(scene.left, y), (scene.right, y)], tone="grid"))
        scene.labels.append(Label(x=scene.left - 6, y=y, text=number_text(value), anchor="end", axis="y"))
    for value, text in across:
        x, _ = place(value, y_low)
        if upright:
            scene.labels.append(Label(x=x, y=scene.bottom + 6, text=text, anchor="end", upright=True))
        else:
            scene.labels.append(Label(x=x, y=scene.bottom + 12, text=text, axis="x"))
    for mark in chart.marks:
        if isinstance(mark, Bars):
            scene.shapes += _bars(mark, place, y_low)
        elif isinstance(mark, Line):
            scene.shapes += _line(mark, place)
        elif isinstance(mark, Points):
            dots = [place(x, y) for x, y in zip(mark.x, mark.y, strict=True)]
            more: dict[str, Any] = {"tone": mark.tone, "series": mark.series, "inside": True}
            scene.shapes.append(Shape(kind="dots", points=dots, width=3.6, opacity=0.8, **more))
    base = [(scene.left, scene.bottom), (scene.right, scene.bottom)]
    scene.shapes.append(Shape(kind="line", points=base, tone="muted"))
    _name_axes(scene, below)
    points = [mark for mark in chart.marks if isinstance(mark, Points)]
    lines = [mark for mark in chart.marks if isinstance(mark, Line) and not mark.guide]
    texts = [text for mark in chart.marks if isinstance(mark, Bars) for text in mark.texts]
    if texts:
        scene.readout = {"kind": "columns", "texts": texts}
    elif points:
        stops = [(place(x, y), text) for mark in points for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True)]
        scene.readout = _stops([([at], text) for at, text in sorted(stops)])
    elif lines and not chart.x_log:
        scene.readout = {
            "kind": "lines",
            "x": [x_low, x_high],
            "y": [y_low, y_high],
            "name": chart.x,
            "series": [
                {
                    "label": line.label,
                    "series": line.series,
                    "tone": str(line.tone),
                    "x": [_rounded(value) for value in line.x],
                    "y": [_rounded(value) for value in line.y],
                }
                for line in lines
            ],
        }
    return scene


def _values(mark: Any, axis: str) -> Iterable[float]:
    if isinstance(mark, Bars):
        return mark.edges if axis == "x" else (0.0, *mark.values)
    if isinstance(mark, Line):
        return mark.x if axis == "x" else (*mark.y, *mark.low, *mark.high)
    if isinstance(mark, Points):
        return mark.x if axis == "x" else mark.y
    return ()


def _horizontal(chart: Chart, scaled: Callable[[float], float]) -> tuple[Point, list[tuple[float, str]]]:
    """Return the ends of the horizontal axis, scaled, and its ticks with their texts."""
    if chart.x_names:
        return (-0.5, len(chart.x_names) - 0.5), [
            (place, _short(name, _BELOW)) for place, name in enumerate(chart.x_names)
        ]
    values = [scaled(value) for mark in chart.marks for value in _values(mark, "x")]
    low, high = chart.x_range or _range(values, 0.03, clamped=not chart.x_log)
    found = log_ticks(10**low, 10**high) if chart.x_log else ticks(low, high, 5)
    if chart.x in ("epoch", "trial"):
        found = sorted({round(value) for value in found if low <= round(value) <= high})
    return (low, high), [(value, number_text(value)) for value in found]


def _stops(stops: Sequence[tuple[Sequence[Point], str]]) -> dict[str, Any]:
    """Return the readout of texts at points; each text has one or more."""
    places = [[[round(x, 1), round(y, 1)] for x, y in points] for points, _ in stops]
    return {"kind": "points", "at": places, "texts": [text for _, text in stops]}


def _range(values: Sequence[float], margin: float, clamped: bool = True) -> tuple[float, float]:
    """Return the range of the finite values with a margin; if ``clamped``, the margin does not make it negative."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = margin * (high - low) or abs(high) * 0.1 or 0.5
    return (low - room if not clamped or low < 0 or low > room else min(low, 0.0)), high + room


def _line(line: Line, place: Callable[[float, float], Point]) -> list[Shape]:
    shapes = []
    more: dict[str, Any] = {"tone": line.tone, "series": line.series, "inside": True}
    if line.low:
        there = [place(x, y) for x, y in zip(line.x, line.high, strict=True)]
        back = [place(x, y) for x, y in zip(line.x, line.low, strict=True)]
        shapes.append(Shape(kind="area", points=[*there, *reversed(back)], opacity=0.18, **more))
    points = [place(x, y) if math.isfinite(y) else (math.nan, math.nan) for x, y in zip(line.x, line.y, strict=True)]
    width = 1.2 if line.guide else 1.8
    shapes.append(Shape(kind="line", points=points, width=width, dash=_DASHES[line.dash], **more))
    finite = [point for point in points if math.isfinite(point[1])]
    if line.dots or len(finite) == 1:
        shapes.append(Shape(kind="dots", points=finite, width=3.2, **more))
    return shapes


def _bars(bars: Bars, place: Callable[[float, float], Point], low: float) -> list[Shape]:
    corners = []
    for left, right, value in zip(bars.edges[:-1], bars.edges[1:], bars.values, strict=True):
        (x0, y0), (x1, y1) = place(left, max(low, 0.0)), place(right, value)
        corners += [(x0 + 1, y1), (x1 - 1, y0)]
    return [Shape(kind="boxes", points=corners, tone=bars.tone, inside=True)]


def _rows(chart: Chart, names: Sequence[str], low: float, high: float, right: float) -> tuple[Scene, _Across, _Middle]:
    """Return a plot with a row per name, the first on top, and the places of values and rows in it."""
    names = [_short(name) for name in names]
    margin = max((_width(name, _SIZE) for name in names), default=0) + 10
    scene = Scene(chart, left=margin, top=6, right=chart.width - right, bottom=chart.height - 38)
    height = (scene.bottom - scene.top) / max(1, len(names))

    def across(value: float) -> float:
        return scene.left + (value - low) / (high - low) * (scene.right - scene.left)

    def middle(row: int) -> float:
        return scene.top + (row + 0.5) * height

    quarters = [0.0, 25.0, 50.0, 75.0, 100.0]
    for value in quarters if (low, high) == (0, 100) else ticks(low, high, 4):
        x = across(value)
        tone = "muted" if value == 0 and low < 0 < high else "grid"
        scene.shapes.append(Shape(kind="line", points=[(x, scene.top), (x, scene.bottom)], tone=tone))
        scene.labels.append(Label(x=x, y=scene.bottom + 12, text=number_text(value)))
    for row, name in enumerate(names):
        scene.labels.append(Label(x=scene.left - 8, y=middle(row), text=name, anchor="end"))
    _name_axes(scene)
    return scene, across, middle


_Across = Callable[[float], float]
_Middle = Callable[[int], float]


def _lay_out_intervals(chart: Chart, intervals: Intervals) -> Scene:
    """Lay out a row per name, with an interval and a dot in each."""
    values = [value for value in intervals.values if value is not None]
    single = [value for row in intervals.single for value in row]
    low, high = chart.x_range or _range([*values, *intervals.low, *intervals.high, *single], 0.06)
    scene, across, middle = _rows(chart, intervals.names, low, high, 14)
    for row, value in enumerate(intervals.values):
        tone, y = intervals.tones[row] if intervals.tones else 0, middle(row)
        if value is None:
            continue
        ends = [(across(intervals.low[row]), y), (across(intervals.high[row]), y)]
        scene.shapes.append(Shape(kind="line", points=ends, tone=tone, width=5, opacity=0.4, inside=True))
        small = [(across(each), y) for each in intervals.single[row]] if intervals.single else []
        scene.shapes.append(Shape(kind="dots", points=small, tone=tone, width=2, inside=True))
        scene.shapes.append(Shape(kind="dots", points=[(across(value), y)], tone=tone, width=3.8, inside=True))
    scene.readout = {"kind": "rows", "texts": list(intervals.texts)}
    return scene


def _lay_out_rows(chart: Chart, rows: Rows) -> Scene:
    """Lay out a horizontal bar per name, with a text after it."""
    lengths = [sum(lengths) for lengths in zip(*(part.values for part in rows.parts), strict=True)]
    high = max((length for length in lengths if math.isfinite(length)), default=0.0) or 1.0
    room = max((_width(text, _SIZE) for text in rows.ends), default=0) + 10
    low, high = chart.x_range or (0.0, high)
    scene, across, middle = _rows(chart, rows.names, low, high, room)
    half = min(9.0, 0.32 * (scene.bottom - scene.top) / max(1, len(rows.names)))
    starts = [0.0] * len(rows.names)
    for part in rows.parts:
        corners: list[Point] = []
        for row, value in enumerate(part.values):
            y = middle(row)
            corners += [(across(starts[row]), y - half), (across(starts[row] + value), y + half)]
            starts[row] += value
        scene.shapes.append(Shape(kind="boxes", points=corners, tone=part.tone, series=part.series))
    for row, text in enumerate(rows.ends):
        scene.labels.append(Label(x=across(lengths[row]) + 5, y=middle(row), text=text, anchor="start"))
    scene.readout = {"kind": "rows", "texts": list(rows.texts)}
    return scene


def _lay_out_parallel(chart: Chart, parallel: Parallel) -> Scene:
    """Lay out vertical axes side by side, with lines across them."""
    count = len(parallel.axes)
    margin = max((_width(text, _SMALL) for _, text in parallel.axes[0].ticks), default=0) + 10
    last = _width(parallel.axes[-1].name, _SIZE) / 2
    scene = Scene(
        chart,
        left=max(margin, _width(parallel.axes[0].name, _SIZE) / 2 + 2),
        top=34,
        right=chart.width - max(12, last + 2),
        bottom=chart.height - 12,
    )
    step = (scene.right - scene.left) / max(1, count - 1)
    longest = max(_width(axis.name, _SIZE) for axis in parallel.axes)

    def place(number: int, height: float) -> Point:
        return scene.left + number * step, scene.bottom - height * (scene.bottom - scene.top)

    lines = [[place(number, each) for number, each in enumerate(line)] for line in parallel.lines]
    for line, weight in zip(lines, parallel.weights, strict=True):
        scene.shapes.append(Shape(kind="line", points=line, tone=0, width=1.6, opacity=weight, inside=True))
    for number, axis in enumerate(parallel.axes):
        x, _ = place(number, 0)
        scene.shapes.append(Shape(kind="line", points=[(x, scene.top), (x, scene.bottom)], tone="muted"))
        # Long names take turns on two lines.
        y = scene.top - 14 - (12 if longest > step - 6 and number % 2 else 0)
        scene.labels.append(Label(x=x, y=y, text=_short(axis.name)))
        for height, text in axis.ticks:
            _, y = place(number, height)
            scene.labels.append(Label(x=x - 5, y=y, text=_short(text), anchor="end", size=_SMALL, halo=True))
    scene.readout = _stops(list(zip(lines, parallel.texts, strict=True))[::-1])
    return scene


def _lay_out_matrix(chart: Chart, matrix: Matrix) -> Scene:
    """Lay out a square of cells with the names of rows on the left and of columns on top."""
    size = len(matrix.names)
    names = [_short(name) for name in matrix.names] if size <= _NAMED else []
    margin = max((_width(name, _SMALL) for name in names), default=0) + 8
    left = top = margin + 18
    side = min(chart.width - left - 4, chart.height - top - 4)
    scene = Scene(chart, left=left, top=top, right=left + side, bottom=top + side)
    cell = side / size
    counts = np.asarray(matrix.counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    levels = np.ceil(np.sqrt(shares) * _LEVELS).astype(int)  # the square root shows small shares too
    diagonal = np.eye(size, dtype=bool)
    gap = min(1.0, cell / 12)
    for level in range(1, _LEVELS + 1):
        for tone, where in (("good", diagonal), ("bad", ~diagonal)):
            corners = []
            for row, column in zip(*np.nonzero((levels == level) & where), strict=True):
                x, y = left + column * cell, top + row * cell
                corners += [(x + gap, y + gap), (x + cell - gap, y + cell - gap)]
            if corners:
                scene.shapes.append(Shape(kind="boxes", points=corners, tone=tone, opacity=level / _LEVELS))
    frame = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]
    scene.shapes.append(Shape(kind="line", points=frame, tone="grid"))
    for place, name in enumerate(names):
        middle = left + (place + 0.5) * cell
        scene.labels.append(Label(x=left - 6, y=top + (place + 0.5) * cell, text=name, anchor="end", size=_SMALL))
        scene.labels.append(Label(x=middle, y=top - 6, text=name, anchor="start", size=_SMALL, upright=True))
    if size <= _NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            tone = "on" if levels[row, column] / _LEVELS >= _LIGHT_TEXT else "text"
            x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
            scene.labels.append(Label(x=x, y=y, text=str(counts[row, column]), size=_SMALL, tone=tone))
    scene.labels.append(Label(x=left + side / 2, y=8, text=chart.x, tone="muted"))
    scene.labels.append(Label(x=8, y=top + side / 2, text=chart.y, tone="muted", upright=True))
    cells = [[int(row), int(column), int(counts[row, column])] for row, column in zip(*np.nonzero(counts), strict=True)]
    scene.readout = {"kind": "matrix", "names": list(matrix.names), "cells": cells}
    return scene


def _frame(scene: Scene) -> tuple[float, float, float, float]:
    """Return the edges of what is drawn of the data: the plot with room for half a dot."""
    return scene.left - 4, scene.top - 4, scene.right + 4, scene.bottom + 1


def _name_axes(scene: Scene, below: float = 0.0) -> None:
    """Add the names of the axes, the horizontal one ``below`` pixels further down."""
    middle = (scene.left + scene.right) / 2
    scene.labels.append(Label(x=middle, y=scene.bottom + 29 + below, text=scene.chart.x, tone="muted"))
    if scene.chart.y:
        middle = (scene.top + scene.bottom) / 2
        scene.labels.append(Label(x=9, y=middle, text=scene.chart.y, tone="muted", upright=True))


def _short(name: str, longest: int = _LONGEST) -> str:
    """Shorten a long name in the middle, as many differ only at the end."""
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[1 - longest // 2 :]}"


def _width(text: str, size: float) -> float:
    """Return about how wide a text is in the widest of the usual fonts."""
    return size * sum(
        1.0
        if unicodedata.east_asian_width(each) in "WF"
        else 0.92
        if each in _WIDE
        else 0.72
        if each.isupper()
        else 0.6
        for each in text
    )


_WIDE = frozenset("mwMW@%<>=+~&#…")


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


# -- SVG ---------------------------------------------------------------------------------------------------------------


def svg(scene: Scene) -> Markup:
    """Return a chart as an element of a page, with a name and a description for readers who cannot see it."""
    chart = scene.chart
    clip = f"{chart.id}-clip"
    left, top, right, bottom = _frame(scene)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img"',
        f' aria-labelledby="{chart.id}-name {chart.id}-text">',
        f'<title id="{chart.id}-name">{escape(chart.title)}</title>',
        f'<desc id="{chart.id}-text">{escape(chart.description)}</desc>',
        f'<clipPath id="{clip}"><rect {box}/></clipPath>',
    ]
    parts += [_svg_shape(shape, variable) for shape in scene.shapes if not shape.inside and shape.tone == "grid"]
    inside = "".join(_svg_shape(shape, variable) for shape in scene.shapes if shape.inside)
    parts.append(f'<g clip-path="url(#{clip})"><g class="data">{inside}</g></g>')
    parts += [_svg_shape(shape, variable) for shape in scene.shapes if not shape.inside and shape.tone != "grid"]
    parts += [_svg_label(label, variable) for label in scene.labels if label.text]
    return Markup("".join([*parts, "</svg>"]))


def variable(tone: Tone | str) -> str:
    """Return the colour of a tone as a variable of the style sheet."""
    return f"var(--series-{tone % len(SERIES)})" if isinstance(tone, int) else f"var(--chart-{tone})"


_Paint = Callable[[Tone | str], str]
"""A function from a tone to its colour."""


def _svg_shape(shape: Shape, paint: _Paint, clip: str = "") -> str:
    colour, data = paint(shape.tone), ""
    if shape.kind == "boxes":
        corners = zip(shape.points[::2], shape.points[1::2], strict=True)
        data = "".join(f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}z" for (x0, y0), (x1, y1) in corners)
    elif shape.kind == "dots":  # lines without length, whose round ends keep their size when the plot is zoomed
        data = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in shape.points)
    else:
        pen = "M"
        for x, y in shape.points:
            if math.isfinite(y):
                data += f"{pen}{x:.1f} {y:.1f}"
            pen = "L" if math.isfinite(y) else "M"
        data += "z" if shape.kind == "area" and data else ""
    if shape.kind in ("boxes", "area"):
        style = f"fill:{colour};stroke:none"
    else:
        width = 2 * shape.width if shape.kind == "dots" else shape.width
        style = f"fill:none;stroke:{colour};stroke-width:{width:g}"
        style += ";stroke-linecap:round" if shape.kind == "dots" else ""
        style += f";stroke-dasharray:{' '.join(f'{each:g}' for each in shape.dash)}" if shape.dash else ""
    if shape.opacity < 1:  # not that of the element, whose blending adds up rounding errors under many lines
        style += f";{'fill' if shape.kind in ('boxes', 'area') else 'stroke'}-opacity:{shape.opacity:g}"
    series = f' data-series="{escape(shape.series)}"' if shape.series else ""
    kind = ' class="dots"' if shape.kind == "dots" else ' class="grid"' if shape.tone == "grid" else ""
    cut = f' clip-path="url(#{clip})"' if clip else ""
    return f'<path d="{data}" style="{style}"{kind}{series}{cut}/>'


def _svg_label(label: Label, paint: _Paint) -> str:
    turn = f' transform="rotate(-90 {label.x:.1f} {label.y:.1f})"' if label.upright else ""
    anchor = "" if label.anchor == "start" else f";text-anchor:{label.anchor}"
    axis = f' class="tick-{label.axis}"' if label.axis else ""
    style = f"font-size:{label.size:g}px;fill:{paint(label.tone)}{anchor}"
    style += f";paint-order:stroke;stroke:{paint('paper')};stroke-width:{2 * _HALO:g}px" if label.halo else ""
    # A shift by a third of the size centres capitals in all browsers; dominant-baseline does so only in some.
    shift = label.size * 0.35
    x, y = (label.x + shift, label.y) if label.upright else (label.x, label.y + shift)
    if label.upright:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}"{axis}{turn}>{escape(printable(label.text))}</text>'


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass
class Sheet:
    """Charts side by side on white, with their titles and one legend.

    Attributes:
        width: width in CSS pixels.
        height: height in CSS pixels.
        shapes: shapes with the number of the frame that cuts them off, or None.
        labels: texts.
        frames: left, top, right and bottom edges.
    """

    width: float
    height: float
    shapes: list[tuple[Shape, int | None]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    frames: list[tuple[float, float, float, float]] = field(default_factory=list)


_TITLE, _ENTRY, _GAP, _EDGE = 24, 15, 24, 8
"""Heights of a title and a line of the legend, and widths between charts and around them, in CSS pixels."""


def arrange(charts: Sequence[Chart], title: str = "", columns: int = 2) -> Sheet:
    """Return charts in rows, below a title and above a legend of their lines, points and parts."""
    grid = [charts[start : start + columns] for start in range(0, len(charts), columns)]
    width = max(sum(chart.width for chart in row) + _GAP * (len(row) - 1) for row in grid) + 2 * _EDGE
    sheet = Sheet(width, _EDGE)
    if title:
        sheet.labels.append(Label(x=_EDGE, y=_EDGE + 9, text=title, anchor="start", size=14))
        sheet.height += _TITLE
    for row in grid:
        x = float(_EDGE)
        for chart in row:
            y = sheet.height + _TITLE
            sheet.labels.append(Label(x=x, y=y - 12, text=chart.title, anchor="start", size=13))
            scene = lay_out(chart)
            left, top, right, bottom = _frame(scene)
            sheet.frames.append((left + x, top + y, right + x, bottom + y))
            for shape in scene.shapes:
                frame = len(sheet.frames) - 1 if shape.inside else None
                sheet.shapes.append((replace(shape, points=[(px + x, py + y) for px, py in shape.points]), frame))
            sheet.labels += [replace(label, x=label.x + x, y=label.y + y) for label in scene.labels if label.text]
            x += chart.width + _GAP
        sheet.height += _TITLE + max(chart.height for chart in row)
    _add_legend(sheet, _entries(charts))
    sheet.height += _EDGE
    return sheet


def _entries(charts: Sequence[Chart]) -> list[tuple[str, Tone, str]]:
    """Return label, tone, and dash (or an empty text for a mark without a line) of the entries of a legend."""
    entries: dict[tuple[str, Tone], str] = {}
    for mark in (mark for chart in charts for mark in chart.marks):
        if isinstance(mark, Line) and not mark.guide:
            entries.setdefault((mark.label, mark.tone), mark.dash)
        for each in mark.parts if isinstance(mark, Rows) else [mark]:
            if isinstance(each, Points | Segment):
                entries.setdefault((each.label, each.tone), "")
    found = [(label, tone, dash) for (label, tone), dash in entries.items() if label]
    return found if len(found) > 1 else []


@dataclass(frozen=True)
class Key:
    """An entry of a page's legend: a series that its script can switch off."""

    id: str
    label: str
    tone: Tone


def keys(charts: Sequence[Chart]) -> list[Key]:
    """Return the series of charts by which their marks can be switched off; empty if there is only one."""
    found: dict[str, Key] = {}
    for mark in (mark for chart in charts for mark in chart.marks):
        for each in mark.parts if isinstance(mark, Rows) else [mark]:
            if isinstance(each, Line | Points | Segment) and each.series and each.label:
                found.setdefault(each.series, Key(each.series, each.label, each.tone))
    return list(found.values()) if len(found) > 1 else []


def _add_legend(sheet: Sheet, entries: Sequence[tuple[str, Tone, str]]) -> None:
    x = float(_EDGE)
    for label, tone, dash in entries:
        wide = 28 + _width(label, 10) + 14
        if x > _EDGE and x + wide > sheet.width - _EDGE:
            x, sheet.height = float(_EDGE), sheet.height + _ENTRY
        y = sheet.height + _ENTRY / 2
        if dash:
            line = Shape(kind="line", points=[(x, y), (x + 22, y)], tone=tone, width=1.8, dash=_DASHES[dash])
        else:
            line = Shape(kind="dots", points=[(x + 11, y)], tone=tone, width=4)
        sheet.shapes.append((line, None))
        sheet.labels.append(Label(x=x + 28, y=y, text=label, anchor="start", size=10))
        x += wide
    if entries:
        sheet.height += _ENTRY


def render(charts: Sequence[Chart], kind: str, title: str = "") -> bytes:
    """Return charts as a file.

    Args:
        charts: at least one chart.
        kind: one of :data:`FORMATS`; a PDF holds an image of 288 dots per inch.
        title: a line above all charts.
    """
    sheet = arrange(charts, title)
    if kind == "svg":
        return _svg_file(sheet).encode()
    content = io.BytesIO()
    _image(sheet).save(content, kind, **({"resolution": 96 * _SCALE} if kind == "pdf" else {}))
    return content.getvalue()


def _svg_file(sheet: Sheet) -> str:
    size = f'width="{sheet.width:g}" height="{sheet.height:g}" viewBox="0 0 {sheet.width:g} {sheet.height:g}"'
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, Helvetica, Arial, sans-serif">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, (left, top, right, bottom) in enumerate(sheet.frames):
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<clipPath id="frame-{number}"><rect {box}/></clipPath>')
    parts += [_svg_shape(each, _colour, "" if frame is None else f"frame-{frame}") for each, frame in sheet.shapes]
    parts += [_svg_label(label, _colour) for label in sheet.labels]
    return "\n".join([*parts, "</svg>\n"])


def _image(sheet: Sheet) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    size = (math.ceil(sheet.width * _SCALE), math.ceil(sheet.height * _SCALE))
    image = Image.new("RGB", size, "white")
    for shape, number in sheet.shapes:
        x0, y0, x1, y1 = _extent(shape, sheet.frames[number] if number is not None else (0, 0, *size))
        if x1 <= x0 or y1 <= y0:
            continue
        layer = Image.new("L", (x1 - x0, y1 - y0))

        def at(points: Sequence[Point], x0: int = x0, y0: int = y0) -> list[Point]:
            return [(x * _SCALE - x0, y * _SCALE - y0) for x, y in points]

        _png_shape(ImageDraw.Draw(layer), shape, at)
        image.paste(_colour(shape.tone), (x0, y0), layer.point(lambda value, by=shape.opacity: round(value * by)))
    for label in sheet.labels:
        font = ImageFont.load_default(label.size * _SCALE)
        anchor = {"start": "lm", "middle": "mm", "end": "rm"}[label.anchor]
        x, y, fill = label.x * _SCALE, label.y * _SCALE, _colour(label.tone)
        text = printable(label.text).replace("\N{MINUS SIGN}", "-")  # Pillow's font has no minus sign
        if not label.upright:
            halo = round(_HALO * _SCALE) if label.halo else 0
            more: dict[str, Any] = {"stroke_width": halo, "stroke_fill": _colour("paper")}
            ImageDraw.Draw(image).text((x, y), text, fill=fill, font=font, anchor=anchor, **more)
            continue
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        piece = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
        ImageDraw.Draw(piece).text((-left, -top), text, fill=255, font=font, anchor="ls")
        piece = piece.rotate(90, expand=True)
        up = {"start": piece.height, "middle": piece.height / 2, "end": 0}[label.anchor]
        image.paste(fill, (round(x - piece.width / 2), round(y - up)), piece)
    return image


def _extent(shape: Shape, frame: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Return the pixels that a shape may cover within a frame."""
    finite = [(x, y) for x, y in shape.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return 0, 0, 0, 0
    room = shape.width + 1
    xs, ys = zip(*finite, strict=True)
    left, top, right, bottom = frame
    return (
        math.floor(max(min(xs) - room, left) * _SCALE),
        math.floor(max(min(ys) - room, top) * _SCALE),
        math.ceil(min(max(xs) + room, right) * _SCALE),
        math.ceil(min(max(ys) + room, bottom) * _SCALE),
    )


def _colour(tone: Tone | str) -> str:
    return SERIES[tone % len(SERIES)] if isinstance(tone, int) else _ROLES[tone]


def _png_shape(draw: Any, shape: Shape, at: Callable[[Sequence[Point]], list[Point]]) -> None:
    """Draw a shape in white."""
    points, width = at(shape.points), shape.width * _SCALE
    if shape.kind == "boxes":
        for low, high in zip(points[::2], points[1::2], strict=True):
            if high[1] > low[1]:
                draw.rectangle([low, high], fill=255)
    elif shape.kind == "dots":
        for x, y in points:
            draw.ellipse([x - width, y - width, x + width, y + width], fill=255)
    elif shape.kind == "area":
        draw.polygon(points, fill=255)
    else:
        for piece in _dashes(points, [each * _SCALE for each in shape.dash]):
            draw.line(piece, fill=255, width=round(width), joint="curve")


def _dashes(points: Sequence[Point], dash: Sequence[float]) -> Iterable[list[Point]]:
    """Yield the drawn pieces of a line, which NaN and gaps between dashes interrupt."""
    piece: list[Point] = []
    left, drawn = (dash[0], True) if dash else (math.inf, True)
    for before, after in zip([(math.nan, math.nan), *points], points, strict=False):
        if not math.isfinite(after[1]) or not math.isfinite(before[1]):
            if len(piece) > 1:
                yield piece
            piece = [after] if math.isfinite(after[1]) else []
            continue
        length, done = math.dist(before, after), 0.0
        while length - done > left:
            done += left
            share = done / length
            here = (before[0] + share * (after[0] - before[0]), before[1] + share * (after[1] - before[1]))
            if drawn:
                yield [*piece, here]
            piece, drawn = [here], not drawn
            left = dash[0] if drawn else dash[1]
        left -= length - done
        piece = [*piece, after] if drawn else [after]
    if drawn and len(piece) > 1:
        yield piece
