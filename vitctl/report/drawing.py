"""Draws charts: as SVG that follows the theme of the page around it, and as PNG through Pillow.

Both come from the same list of shapes. In the SVG, texts stay texts, colours are variables of the page's style sheet, and
each series has its name, so that the page's script can switch it off. matplotlib would do the same at the cost of a
dependency, half a second per chart and ten times the size.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from vitctl.report.chart import Bars, Chart, Intervals, Line, Matrix, Tone

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
}

_LEVELS = 8
"""Shades of a matrix's cells."""

_LIGHT_TEXT = 0.85
"""Opacity of a cell from which its number is drawn in the colour of the background."""

_LONGEST = 24
"""Characters of a class's name beside a matrix or interval; readouts and tables have all of it."""

_NAMED, _NUMBERED = 60, 20
"""Classes up to which a matrix has names, and numbers in its cells."""

_SIZE, _SMALL = 11, 9.5
"""Sizes of text in CSS pixels: axes, and names of classes."""

_SCALE = 3
"""Pixels of a PNG per CSS pixel."""

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
    """

    x: float
    y: float
    text: str
    anchor: str = "middle"
    size: float = _SIZE
    tone: str = "text"
    upright: bool = False
    axis: str = ""


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
    matrices = [mark for mark in chart.marks if isinstance(mark, Matrix)]
    rows = [mark for mark in chart.marks if isinstance(mark, Intervals)]
    if matrices:
        scene = _lay_out_matrix(chart, matrices[0])
    elif rows:
        scene = _lay_out_intervals(chart, rows[0])
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


def number_text(value: float) -> str:
    """Return a number at a tick: ``1,200``, ``0.25`` or ``2e-05``."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:.4g}"


def _lay_out_plane(chart: Chart) -> Scene:
    """Lay out lines and bars over two axes of numbers."""
    x_low, x_high = chart.x_range or _range([value for mark in chart.marks for value in _values(mark, "x")], 0.03)
    y_low, y_high = chart.y_range or _range([value for mark in chart.marks for value in _values(mark, "y")], 0.06)
    across = ticks(x_low, x_high, 5)
    if chart.x == "epoch":
        across = sorted({round(value) for value in across if x_low <= round(value) <= x_high})
    upward = ticks(y_low, y_high, 5)
    margin = max((_width(number_text(value), _SIZE) for value in upward), default=0) + 8
    scene = Scene(chart, left=margin + (16 if chart.y else 0), top=8, right=chart.width - 10, bottom=chart.height - 38)

    def place(x: float, y: float) -> Point:
        return (
            scene.left + (x - x_low) / (x_high - x_low) * (scene.right - scene.left),
            scene.bottom - (y - y_low) / (y_high - y_low) * (scene.bottom - scene.top),
        )

    for value in upward:
        _, y = place(x_low, value)
        scene.shapes.append(Shape(kind="line", points=[(scene.left, y), (scene.right, y)], tone="grid"))
        scene.labels.append(Label(x=scene.left - 6, y=y, text=number_text(value), anchor="end", axis="y"))
    for value in across:
        x, _ = place(value, y_low)
        scene.labels.append(Label(x=x, y=scene.bottom + 12, text=number_text(value), axis="x"))
    for mark in chart.marks:
        if isinstance(mark, Bars):
            scene.shapes += _bars(mark, place, y_low)
        elif isinstance(mark, Line):
            scene.shapes += _line(mark, place)
    base = [(scene.left, scene.bottom), (scene.right, scene.bottom)]
    scene.shapes.append(Shape(kind="line", points=base, tone="muted"))
    _name_axes(scene)
    lines = [mark for mark in chart.marks if isinstance(mark, Line) and not mark.guide]
    texts = [text for mark in chart.marks if isinstance(mark, Bars) for text in mark.texts]
    if texts:
        scene.readout = {"kind": "columns", "texts": texts}
    elif lines:
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
    return ()


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return the range of the finite values with a margin, which does not make it negative."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = margin * (high - low) or abs(high) * 0.1 or 0.5
    return (low - room if low < 0 or low > room else min(low, 0.0)), high + room


def _line(line: Line, place: Callable[[float, float], Point]) -> list[Shape]:
    shapes = []
    more: dict[str, Any] = {"tone": line.tone, "series": line.series, "inside": True}
    if line.low:
        there = [place(x, y) for x, y in zip(line.x, line.high, strict=True)]
        back = [place(x, y) for x, y in zip(line.x, line.low, strict=True)]
        shapes.append(Shape(kind="area", points=[*there, *reversed(back)], opacity=0.18, **more))
    points = [place(x, y) if math.isfinite(y) else (math.nan, math.nan) for x, y in zip(line.x, line.y, strict=True)]
    dash: tuple[float, ...] = {"solid": (), "dashed": (5, 3), "dotted": (1.5, 2.5)}[line.dash]
    shapes.append(Shape(kind="line", points=points, width=1.2 if line.guide else 1.8, dash=dash, **more))
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


def _lay_out_intervals(chart: Chart, intervals: Intervals) -> Scene:
    """Lay out a row per name, the first on top, over an axis from 0 to 100 percent."""
    names = [_short(name) for name in intervals.names]
    margin = max(_width(name, _SIZE) for name in names) + 10
    scene = Scene(chart, left=margin, top=6, right=chart.width - 14, bottom=chart.height - 38)
    height = (scene.bottom - scene.top) / len(names)

    def across(value: float) -> float:
        return scene.left + value / 100 * (scene.right - scene.left)

    for quarter in (0, 25, 50, 75, 100):
        x = across(quarter)
        scene.shapes.append(Shape(kind="line", points=[(x, scene.top), (x, scene.bottom)], tone="grid"))
        scene.labels.append(Label(x=x, y=scene.bottom + 12, text=str(quarter)))
    dots: list[Point] = []
    for row, (name, value) in enumerate(zip(names, intervals.values, strict=True)):
        y = scene.top + (row + 0.5) * height
        scene.labels.append(Label(x=scene.left - 8, y=y, text=name, anchor="end"))
        if value is not None:
            ends = [(across(intervals.low[row]), y), (across(intervals.high[row]), y)]
            scene.shapes.append(Shape(kind="line", points=ends, tone=intervals.tone, width=5, opacity=0.4, inside=True))
            dots.append((across(value), y))
    scene.shapes.append(Shape(kind="dots", points=dots, tone=intervals.tone, width=3.4, inside=True))
    _name_axes(scene)
    scene.readout = {"kind": "rows", "texts": list(intervals.texts)}
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


def _name_axes(scene: Scene) -> None:
    middle = (scene.left + scene.right) / 2
    scene.labels.append(Label(x=middle, y=scene.bottom + 29, text=scene.chart.x, tone="muted"))
    if scene.chart.y:
        middle = (scene.top + scene.bottom) / 2
        scene.labels.append(Label(x=9, y=middle, text=scene.chart.y, tone="muted", upright=True))


def _short(name: str) -> str:
    """Shorten a long name in the middle, as many differ only at the end."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[1 - _LONGEST // 2 :]}"


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
    parts += [_svg_shape(shape) for shape in scene.shapes if not shape.inside and shape.tone == "grid"]
    inside = "".join(_svg_shape(shape) for shape in scene.shapes if shape.inside)
    parts.append(f'<g clip-path="url(#{clip})"><g class="data">{inside}</g></g>')
    parts += [_svg_shape(shape) for shape in scene.shapes if not shape.inside and shape.tone != "grid"]
    parts += [_svg_label(label) for label in scene.labels if label.text]
    return Markup("".join([*parts, "</svg>"]))


def variable(tone: Tone | str) -> str:
    """Return the colour of a tone as a variable of the style sheet."""
    return f"var(--series-{tone % len(SERIES)})" if isinstance(tone, int) else f"var(--chart-{tone})"


def _svg_shape(shape: Shape) -> str:
    colour, data = variable(shape.tone), ""
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
        style += f";stroke-dasharray:{' '.join(f'{each:g}' for each in shape.dash)}" if shape.dash else ""
    style += f";opacity:{shape.opacity:g}" if shape.opacity < 1 else ""
    series = f' data-series="{escape(shape.series)}"' if shape.series else ""
    kind = ' class="dots"' if shape.kind == "dots" else ' class="grid"' if shape.tone == "grid" else ""
    return f'<path d="{data}" style="{style}"{kind}{series}/>'


def _svg_label(label: Label) -> str:
    turn = f' transform="rotate(-90 {label.x:.1f} {label.y:.1f})"' if label.upright else ""
    anchor = "" if label.anchor == "start" else f";text-anchor:{label.anchor}"
    axis = f' class="tick-{label.axis}"' if label.axis else ""
    style = f"font-size:{label.size:g}px;fill:{variable(label.tone)}{anchor}"
    # A shift by a third of the size centres capitals in all browsers; dominant-baseline does so only in some.
    shift = label.size * 0.35
    x, y = (label.x + shift, label.y) if label.upright else (label.x, label.y + shift)
    if label.upright:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}"{axis}{turn}>{escape(label.text)}</text>'


# -- PNG ---------------------------------------------------------------------------------------------------------------


def png(scene: Scene) -> bytes:
    """Return a chart as a PNG file on white, with its title and a legend of its lines."""
    from PIL import Image, ImageDraw, ImageFont

    chart = scene.chart
    lines = [mark for mark in chart.marks if isinstance(mark, Line) and mark.label and not mark.guide]
    entries = lines if len(lines) > 1 else []
    above, below = 24, 14 * len(entries)
    size = (chart.width * _SCALE, (chart.height + above + below) * _SCALE)
    image = Image.new("RGB", size, "white")

    def at(points: Sequence[Point]) -> list[Point]:
        return [(x * _SCALE, (y + above) * _SCALE) for x, y in points]

    def write(label: Label) -> None:
        font = ImageFont.load_default(label.size * _SCALE)
        anchor = {"start": "lm", "middle": "mm", "end": "rm"}[label.anchor]
        fill = _colour(label.tone)
        ((x, y),) = at([(label.x, label.y)])
        if not label.upright:
            ImageDraw.Draw(image).text((x, y), label.text, fill=fill, font=font, anchor=anchor)
            return
        left, top, right, bottom = font.getbbox(label.text, anchor="ls")
        piece = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
        ImageDraw.Draw(piece).text((-left, -top), label.text, fill=255, font=font, anchor="ls")
        piece = piece.rotate(90, expand=True)
        up = {"start": piece.height, "middle": piece.height / 2, "end": 0}[label.anchor]
        image.paste(fill, (round(x - piece.width / 2), round(y - up)), piece)

    for shape in scene.shapes:
        layer = Image.new("L", size)
        _png_shape(ImageDraw.Draw(layer), shape, at)
        if shape.inside:
            left, top, right, bottom = _frame(scene)
            frame = [round(each) for pair in at([(left, top), (right, bottom)]) for each in pair]
            kept = Image.new("L", size)
            kept.paste(layer.crop(tuple(frame)), frame[:2])  # type: ignore[arg-type]
            layer = kept
        image.paste(_colour(shape.tone), (0, 0), layer.point(lambda value, by=shape.opacity: round(value * by)))
    for label in scene.labels:
        write(label)
    write(Label(x=8, y=-10, text=chart.title, anchor="start", size=13))
    for place, line in enumerate(entries):
        y = chart.height + 4 + 14 * place
        dash: tuple[float, ...] = {"solid": (), "dashed": (5, 3), "dotted": (1.5, 2.5)}[line.dash]
        sample = Shape(
            kind="line", points=[(scene.left, y), (scene.left + 22, y)], tone=line.tone, width=1.8, dash=dash
        )
        layer = Image.new("L", size)
        _png_shape(ImageDraw.Draw(layer), sample, at)
        image.paste(_colour(sample.tone), (0, 0), layer)
        write(Label(x=scene.left + 28, y=y, text=line.label, anchor="start", size=10))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


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
