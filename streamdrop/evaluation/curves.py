"""Figures of an experiment, after the paper's Figures 1, 5 and 6: PNG and SVG beside result.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"sgd": "#6b7280", "freeze": "#2563eb", "drop": "#16a34a"}
Rows = list[dict[str, Any]]


def draw_curves(result: dict[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of a ``result.json`` into ``folder``; returns the files written."""
    figures = {
        "accuracy-and-time": _accuracy_and_time(result),
        "parameters-and-macs": _parameters_and_macs(result),
        "layers": _layers(result),
    }
    written = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            written.append(Path(folder) / f"{name}.{suffix}")
            figure.savefig(written[-1], dpi=130)
    return written


def _figure(title: str, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.2 * columns, 3.8), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("epoch")
    return figure, axes


def _accuracy_and_time(result: dict[str, Any]) -> Figure:
    """Fig. 5: accuracy and seconds per epoch; epochs that stored activations are starred."""
    figure, (left, right) = _figure(f"{result['model']} on {result['dataset']}, seed {result['seed']}", 2)
    for name, entry in result["strategies"].items():
        rows: Rows = entry["epochs"]
        epochs, seconds = [row["epoch"] for row in rows], [row["seconds"] for row in rows]
        left.plot(epochs, [row["accuracy"] for row in rows], color=COLOURS[name], label=name)
        right.plot(epochs, seconds, color=COLOURS[name], label=name)
        stored = [(row["epoch"], row["seconds"]) for row in rows if row["stored"]]
        if stored:
            right.plot(*zip(*stored, strict=True), "*", color=COLOURS[name], markersize=12, label=f"{name}: stores")
    left.set_ylabel("test accuracy")
    right.set_ylabel("seconds per epoch")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


def _parameters_and_macs(result: dict[str, Any]) -> Figure:
    """Fig. 6: parameters still trained and forward MACs run, per epoch."""
    figure, (left, right) = _figure("What each epoch trains and runs", 2)
    for name, entry in result["strategies"].items():
        rows: Rows = entry["epochs"]
        epochs = [row["epoch"] for row in rows]
        left.step(epochs, [row["parameters"] / 1e6 for row in rows], where="mid", color=COLOURS[name], label=name)
        right.step(epochs, [row["forward_macs"] / 1e9 for row in rows], where="mid", color=COLOURS[name], label=name)
    left.set_ylabel("parameters trained, millions")
    right.set_ylabel("forward MACs, billions")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    return figure


def _layers(result: dict[str, Any]) -> Figure:
    """Fig. 1: magnitude (Eq. 1) and importance (Eq. 2) of each layer, input side purple, output side red."""
    name = "drop" if "drop" in result["strategies"] else next(iter(result["strategies"]))
    rows: Rows = result["strategies"][name]["epochs"]
    layers = list(rows[0]["importance"] or {})
    figure, (left, right) = _figure(f"Layers under {name}: purple near the input, red near the output", 2)
    shades = mpl.colormaps["rainbow"]
    for i, layer in enumerate(layers):
        colour = shades(i / max(1, len(layers) - 1))
        for axis, key in ((left, "magnitude"), (right, "importance")):
            points = [(row["epoch"], row[key][layer]) for row in rows if layer in row[key]]
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker=".")
    left.set_ylabel("magnitude (Eq. 1)")
    left.set_yscale("log")
    right.set_ylabel("importance P (Eq. 2)")
    return figure
