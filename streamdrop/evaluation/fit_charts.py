"""An experiment's charts for an HTML page: inline SVG after the paper's Figures 1, 3, 5 and 6."""

from __future__ import annotations

import math

from markupsafe import Markup

from streamdrop.evaluation.figures import Line, line_chart, stacked_bars
from streamdrop.evaluation.fit_summary import SAME_TIME, Result, Rows, column, number, ordered
from streamdrop.evaluation.layer_curves import layer_names

COLOURS = {"sgd": 8, "freeze-full": 1, "freeze": 0, "drop": 2, SAME_TIME: 4}
"""Which of the page's colours a strategy has."""

SHOWN_LAYERS = 9
"""Layers drawn in a chart, spread from the input to the output; the PNG and SVG figures have all of them."""

LAYER_COLOURS = (3, 0, 6, 2, 7, 5, 1, 4, 8)
"""The page's colours from the input to the output: purple, blue, green, yellow, red, grey."""

Arms = list[tuple[str, Rows]]


def charts(result: Result) -> list[Markup]:
    """Accuracy, time, MACs, parameters and cut over the epochs; where the seconds went; a few layers' scores."""
    arms = [(name, entry["epochs"]) for name, entry in ordered(result).items() if entry["epochs"]]
    last = max((row["epoch"] for _, rows in arms for row in rows), default=1)
    return [
        _accuracy(arms, last),
        _seconds(arms, last),
        _per_epoch("Forward MACs per epoch, billions", arms, "forward_macs", last, 1e-9),
        _per_epoch("Parameters trained, millions", arms, "parameters", last, 1e-6),
        _cut(arms, last),
        *_store_parts(arms),
        *_layer_charts(result, arms, last),
    ]


def _lines(arms: Arms, key: str, factor: float = 1.0, style: str = "line") -> list[Line]:
    return [
        Line(name, [row["epoch"] for row in rows], column(rows, key, factor), COLOURS.get(name, 3), style)
        for name, rows in arms
    ]


def _per_epoch(title: str, arms: Arms, key: str, last: int, factor: float) -> Markup:
    return line_chart(title, _lines(arms, key, factor, "step"), x_label="epoch", x_range=(1, last))


def _accuracy(arms: Arms, last: int) -> Markup:
    lines = _lines([arm for arm in arms if arm[0] != SAME_TIME], "accuracy")
    for name, rows in arms:
        if name == SAME_TIME:
            end = column(rows, "accuracy")[-1]
            lines.append(Line(f"{name}, at its end", [1, last], [end, end], COLOURS[name], "dashed"))
    return line_chart("Test accuracy (Fig. 5)", lines, x_label="epoch", x_range=(1, last))


def _seconds(arms: Arms, last: int) -> Markup:
    lines = _lines(arms, "seconds")
    for name, rows in arms:
        stored = [row for row in rows if row.get("stored") and row["cut"]]
        if name == "drop" and stored:
            x = [row["epoch"] for row in stored]
            lines.append(Line("drop: this epoch stores", x, column(stored, "seconds"), 3, "dots"))
    return line_chart("Seconds per epoch (Fig. 5)", lines, x_label="epoch", x_range=(1, last))


def _cut(arms: Arms, last: int) -> Markup:
    lines = _lines([arm for arm in arms if arm[0] != SAME_TIME], "cut", style="step")
    return line_chart("Cut: layers dropped", lines, x_label="epoch", x_range=(1, last), whole=True)


def _store_parts(arms: Arms) -> list[Markup]:
    """What drop's seconds went into, stacked."""
    rows = dict(arms).get("drop", [])
    names = [("training the head", "train_seconds", 0), ("running the tail", "tail_seconds", 3)]
    names += [("reading", "read_seconds", 6), ("storing", "store_seconds", 2)]
    if not rows or any(key not in row for row in rows for _, key, _ in names):
        return []
    parts = [(label, [max(v, 0.0) for v in _finite(rows, key)], colour) for label, key, colour in names]
    return [stacked_bars("Seconds of drop's epochs", [row["epoch"] for row in rows], parts, x_label="epoch")]


def _finite(rows: Rows, key: str) -> list[float]:
    return [number(row.get(key)) or 0.0 for row in rows]


def _layer_charts(result: Result, arms: Arms, last: int) -> list[Markup]:
    """Figures 1 and 3 for a few layers from the input to the output."""
    rows = dict(arms).get("drop") or (arms[0][1] if arms else [])
    layers = layer_names(result)
    count = min(SHOWN_LAYERS, len(layers))
    shown = [layers[round(i * (len(layers) - 1) / max(count - 1, 1))] for i in range(count)]
    of = f", {count} of {len(layers)} layers" if count < len(layers) else ""
    drawn = []
    for title, key in (("Magnitude (Fig. 1), log10", "magnitude"), ("Importance P (Fig. 3)", "importance")):
        found = [(_layer_course(rows, layer, key), place, layer) for place, layer in enumerate(shown)]
        lines = [Line(layer, x, y, LAYER_COLOURS[place]) for (x, y), place, layer in found if x]
        known = [value for (_, y), _, _ in found for value in y if math.isfinite(value)]
        if known:
            extent = (min(known) - 0.02, max(known) + 0.02)
            drawn.append(line_chart(title + of, lines, x_label="epoch", x_range=(1, last), y_range=extent))
    return drawn


def _layer_course(rows: Rows, layer: str, key: str) -> tuple[list[int], list[float]]:
    """Epochs that scored the layer, and the scores; magnitudes as their logarithm."""
    known = [row for row in rows if layer in (row.get(key) or {})]
    found = [number(row[key][layer]) for row in known]
    if key == "magnitude":
        found = [math.log10(value) if value else None for value in found]
    return [row["epoch"] for row in known], [math.nan if value is None else value for value in found]
