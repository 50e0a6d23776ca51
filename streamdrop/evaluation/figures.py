"""Charts as HTML with inline SVG: they stretch to any width, follow the page's light or dark scheme, and need nothing.

The drawing is stretched, the text is not: lines are SVG with strokes that do not scale, labels are HTML laid over it.
Colours are the page's CSS variables ``--c0`` to ``--c8``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from streamdrop.boxes import Array

MAX_POINTS = 1600
"""A longer line is thinned to this many points: the lowest and the highest of every stretch stay."""

SIZE = 1000.0
"""Width and height of a drawing in its own units."""


@dataclass(frozen=True)
class Line:
    """One series: ``x`` and ``y`` [n] (NaN leaves a gap); ``colour`` 0-8; ``style`` line, step, dots or dashed."""

    label: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    colour: int = 0
    style: str = "line"


@dataclass(frozen=True)
class Axes:
    """The visible range of data, and where it lies in a drawing."""

    x0: float
    x1: float
    y0: float
    y1: float

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Data to drawing units, y downwards."""
        return (x - self.x0) / (self.x1 - self.x0) * SIZE, (self.y1 - y) / (self.y1 - self.y0) * SIZE


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    shaded: Sequence[tuple[float, float]] = (),
    shaded_label: str = "",
    whole: bool = False,
) -> Markup:
    """Lines over a common x, as HTML; ``shaded`` are spans of x, ``whole`` asks for whole numbers on the y axis."""
    axes = _axes(lines, x_range, y_range)
    y_ticks = nice_ticks(axes.y0, axes.y1, 5, whole)
    x_ticks = nice_ticks(axes.x0, axes.x1, 6, whole=axes.x1 - axes.x0 > 2)
    drawing = [*_grid(axes, y_ticks), *(_shade(axes, span) for span in shaded), *(_draw(axes, line) for line in lines)]
    legend = [_swatch(line) for line in lines] if len(lines) > 1 or shaded_label else []
    if shaded_label and shaded:
        legend.append(f'<span><i class="shade"></i>{escape(shaded_label)}</span>')
    return Markup(_frame(title, legend, drawing, _labels(axes, x_ticks, y_ticks), x_label, _hover(axes, lines)))


def stacked_bars(
    title: str, x: Sequence[int], parts: Sequence[tuple[str, Sequence[float], int]], *, x_label: str
) -> Markup:
    """Bars at ``x`` made of ``parts`` (label, heights, colour) on top of each other, as HTML."""
    heights = np.array([values for _, values, _ in parts], float).reshape(len(parts), len(x))
    top = np.vstack([np.zeros(len(x)), np.cumsum(heights, axis=0)])
    position = np.array(x, float)
    axes = Axes(position.min() - 0.5, position.max() + 0.5, 0.0, max(float(top.max()) * 1.05, 1e-9))
    y_ticks = nice_ticks(axes.y0, axes.y1, 5)
    x_ticks = nice_ticks(axes.x0, axes.x1, 6, whole=True)
    drawing = _grid(axes, y_ticks)
    for (_, _, colour), low, high in zip(parts, top[:-1], top[1:], strict=True):
        drawing.append(_bars(axes, position, low, high, colour))
    legend = [_swatch(Line(label, [], [], colour)) for label, _, colour in parts]
    series = [Line(label, position, values, colour) for label, values, colour in parts]
    return Markup(_frame(title, legend, drawing, _labels(axes, x_ticks, y_ticks), x_label, _hover(axes, series)))


def nice_ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high`` (1, 2 or 5 times a power of ten apart)."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(x: npt.ArrayLike, y: npt.ArrayLike, points: int = MAX_POINTS) -> tuple[Array, Array]:
    """At most ``points`` of a line [n]: the lowest and the highest of every stretch, in order."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) <= points:
        return xs, ys
    keep: set[int] = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), points // 2 - 1):
        known = part[~np.isnan(ys[part])]
        keep |= {int(known[ys[known].argmin()]), int(known[ys[known].argmax()])} if len(known) else {int(part[0])}
    order = np.array(sorted(keep))
    return xs[order], ys[order]


def _axes(lines: Sequence[Line], x_range: tuple[float, float] | None, y_range: tuple[float, float] | None) -> Axes:
    x0, x1 = x_range or _extent([np.asarray(line.x, float) for line in lines])
    y0, y1 = y_range or (0.0, _extent([np.asarray(line.y, float) for line in lines])[1] * 1.05)
    return Axes(x0, x1 if x1 > x0 else x0 + 1, y0, y1 if y1 > y0 else y0 + 1)


def _extent(values: Sequence[Array]) -> tuple[float, float]:
    known = np.concatenate([v[np.isfinite(v)] for v in values] or [np.zeros(0)])
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _draw(axes: Axes, line: Line) -> str:
    x, y = axes.place(*thin(line.x, line.y))
    if line.style == "dots":
        path = "".join(f"M{a:.1f} {b:.1f}h.01" for a, b in zip(x, y, strict=True) if not math.isnan(b))
    else:
        path = _path(x, y, line.style == "step")
    return f'<path class="{line.style}" style="--c:var(--c{line.colour})" d="{path}"/>'


def _path(x: Array, y: Array, step: bool) -> str:
    """Path data; NaN lifts the pen."""
    parts: list[str] = []
    pen_down = False
    for a, b in zip(x, y, strict=True):
        if math.isnan(b):
            pen_down = False
            continue
        if not pen_down:
            parts.append(f"M{a:.1f} {b:.1f}")
        else:
            parts.append(f"H{a:.1f}V{b:.1f}" if step else f"L{a:.1f} {b:.1f}")
        pen_down = True
    return "".join(parts)


def _bars(axes: Axes, x: Array, low: Array, high: Array, colour: int) -> str:
    left, bottom = axes.place(x - 0.4, low)
    right, top = axes.place(x + 0.4, high)
    rows = zip(left, right, top, bottom, strict=True)
    path = "".join(f"M{a:.1f} {c:.1f}H{b:.1f}V{d:.1f}H{a:.1f}Z" for a, b, c, d in rows)
    return f'<path class="bar" style="--c:var(--c{colour})" d="{path}"/>'


def _grid(axes: Axes, y_ticks: Sequence[float]) -> list[str]:
    _, rows = axes.place(np.zeros(len(y_ticks)), np.array(y_ticks, float))
    return [f'<path class="grid" d="M0 {y:.1f}H{SIZE:.0f}"/>' for y in rows]


def _shade(axes: Axes, span: tuple[float, float]) -> str:
    (left, right), _ = axes.place(np.array(span, float), np.zeros(2))
    return f'<rect class="shade" x="{left:.1f}" y="0" width="{max(right - left, 2):.1f}" height="{SIZE:.0f}"/>'


def _labels(axes: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
    x, _ = axes.place(np.array(x_ticks, float), np.zeros(len(x_ticks)))
    _, y = axes.place(np.zeros(len(y_ticks)), np.array(y_ticks, float))
    across = [f'<span class="tx" style="left:{a / 10:.2f}%">{t:g}</span>' for a, t in zip(x, x_ticks, strict=True)]
    return across + [
        f'<span class="ty" style="top:{b / 10:.2f}%">{t:g}</span>' for b, t in zip(y, y_ticks, strict=True)
    ]


def _swatch(line: Line) -> str:
    return f'<span><i class="{line.style}" style="--c:var(--c{line.colour})"></i>{escape(line.label)}</span>'


def _hover(axes: Axes, lines: Sequence[Line]) -> str:
    """What the page's script needs to read values off under the pointer."""
    series = []
    for line in lines:
        x, y = thin(line.x, line.y)
        rows = [(float(f"{a:.5g}"), float(f"{b:.4g}")) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
        series.append({"label": line.label, "x": [a for a, _ in rows], "y": [b for _, b in rows]})
    return escape(json.dumps({"range": [axes.x0, axes.x1], "series": series}, separators=(",", ":")))


def _frame(
    title: str, legend: Sequence[str], drawing: Sequence[str], labels: Sequence[str], x_label: str, hover: str
) -> str:
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span class="legend">{"".join(legend)}</span>'
        f'</figcaption><div class="plot" data-values="{hover}" data-x="{escape(x_label)}">'
        f'<svg viewBox="0 0 {SIZE:.0f} {SIZE:.0f}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'{"".join(drawing)}</svg>{"".join(labels)}</div><div class="xlabel">{escape(x_label)}</div></figure>'
    )
