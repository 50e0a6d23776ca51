"""Figures with one curve per layer, coloured from the input (purple) to the output (red), however many layers."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from streamdrop.errors import ConfigError
from streamdrop.evaluation.fit_summary import Result, Rows, number, ordered
from streamdrop.policies import policy_from

NAMED_LAYERS = 20
"""Up to so many layers, the colour bar names each; of more, it counts them."""

LINEAR = 10.0
"""Agreements beyond this size are drawn on a scale that is logarithmic outside of ±4."""


def layers_figure(result: Result) -> Figure:
    """Fig. 1: magnitude (Eq. 1) and importance (Eq. 2) of each layer over the epochs."""
    name, rows = _scored_arm(result, "importance")
    figure = _wide()
    figure.suptitle(f"{result['model']} on {result['dataset']}: layers under {name}", fontsize=11, parse_math=False)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    layers = layer_names(result)
    draw_layers(left, rows, layers, "magnitude")
    draw_layers(right, rows, layers, "importance")
    left.set_ylabel("magnitude (Eq. 1)")
    if any(value > 0 for line in left.lines for value in np.asarray(line.get_ydata())):
        left.set_yscale("log")
    right.set_ylabel("importance P (Eq. 2)")
    _colour_bar(figure, [left, right], layers)
    return figure


def importance_pair_figure(with_bn: Result, without_bn: Result) -> Figure:
    """Fig. 3: importance per layer of two networks on a common scale, each with its own colour bar."""
    figure = _wide()
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, sharey=left)
    for axis, result, what in ((left, with_bn, "with BatchNorm"), (right, without_bn, "without BatchNorm")):
        _, rows = _scored_arm(result, "importance")
        layers = layer_names(result)
        draw_layers(axis, rows, layers, "importance")
        axis.set_title(f"{result['model']} on {result['dataset']}, {what}", fontsize=10, parse_math=False)
        axis.set_ylabel("importance P (Eq. 2)")
        _colour_bar(figure, [axis], layers)
    return figure


def agreement_figure(result: Result) -> Figure | None:
    """How far each layer's gradients agree beyond chance (z), over the epochs; None where no epoch has it."""
    name, rows = _scored_arm(result, "agreement")
    if not any(row.get("agreement") for row in rows):
        return None
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axis = figure.add_subplot()
    layers = layer_names(result)
    draw_layers(axis, rows, layers, "agreement")
    axis.set_title(
        f"{result['model']} on {result['dataset']}: gradients' agreement under {name}", fontsize=10, parse_math=False
    )
    axis.set_ylabel("agreement z (0: noise)")
    _compress(axis)
    threshold = agreement_threshold(result)
    if threshold is not None:
        axis.axhline(threshold, color="#111827", linestyle="--", linewidth=1.2)
        axis.annotate(f"learns above {threshold:g}", (1, threshold), xycoords=("axes fraction", "data"),
                      xytext=(-4, 4), textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    _colour_bar(figure, [axis], layers)
    return figure


def agreement_threshold(result: Result) -> float | None:
    """The z above which the run's policy takes a layer to learn still; None for policies that have none."""
    policy = result.get("policy")
    if policy is None or (isinstance(policy, dict) and "schedule" in policy):
        return None
    try:
        critical = getattr(policy_from(policy), "critical", None)
    except ConfigError:  # a result of another version: its curves are worth drawing all the same
        return None
    return None if critical is None else float(critical)


def _compress(axis: Axes) -> None:
    """A scale on which both noise around 0 and the large z of the first epochs can be read, ticks as plain numbers."""
    low, high = axis.dataLim.y0, axis.dataLim.y1
    if max(abs(low), abs(high)) > LINEAR:
        axis.set_yscale("symlog", linthresh=4, linscale=1.5)
        axis.set_yticks(
            [t for t in (-50, -20, -10, -4, -2, 0, 2, 4, 10, 20, 50, 100, 200) if low - 1 <= t <= high * 1.2]
        )
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_locator(NullLocator())


def layer_names(result: Result) -> list[str]:
    """All layers in order of execution: as the result lists them, else as its first scores do."""
    if result.get("layer_names"):
        return list(result["layer_names"])
    names: dict[str, None] = {}
    for entry in ordered(result).values():
        for row in entry["epochs"]:
            names |= dict.fromkeys(row.get("importance") or {})
    return list(names)


def draw_layers(axis: Axes, rows: Rows, layers: list[str], key: str) -> None:
    """One curve per layer over the epochs that scored it."""
    shades = mpl.colormaps["rainbow"]
    many = len(layers) > NAMED_LAYERS
    for i, layer in enumerate(layers):
        points = [(row["epoch"], _value(row, key, layer)) for row in rows if layer in (row.get(key) or {})]
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=shades(i / max(1, len(layers) - 1)), linewidth=0.7 if many else 1.2,
                      marker="." if len(points) < 40 else "", markersize=3 if many else 5)  # fmt: skip
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _value(row: dict[str, Any], key: str, layer: str) -> float:
    value = number(row[key][layer])
    return math.nan if value is None else value


def _scored_arm(result: Result, key: str) -> tuple[str, Rows]:
    """The strategy whose scores are shown: drop, else the first that has any."""
    arms = ordered(result)
    names = sorted(arms, key=lambda name: name != "drop")
    scored = [name for name in names if any(row.get(key) for row in arms[name]["epochs"])]
    name = next(iter(scored or names))
    return name, arms[name]["epochs"]


def _wide() -> Figure:
    return Figure(figsize=(11.6, 4.2), layout="constrained")


def _colour_bar(figure: Figure, axes: list[Axes], layers: list[str]) -> None:
    """Which colour is which layer: by name where they fit, by number otherwise."""
    count = max(len(layers), 1)
    shades = mpl.colormaps["rainbow"].resampled(count) if count <= NAMED_LAYERS else mpl.colormaps["rainbow"]
    bar = figure.colorbar(ScalarMappable(Normalize(0.5, count + 0.5), shades), ax=axes, pad=0.02, aspect=30)
    bar.ax.invert_yaxis()
    if count <= NAMED_LAYERS:
        bar.set_ticks([i + 1.0 for i in range(len(layers))], labels=layers)
        bar.ax.tick_params(labelsize=7, length=0)
    else:
        bar.set_label("layer, 1 nearest the input")
        room = count / 20  # the labels of the ends keep so much to themselves
        between = MaxNLocator(6, integer=True).tick_values(1, count)
        bar.set_ticks([1, *(t for t in between if 1 + room < t < count - room), count])
