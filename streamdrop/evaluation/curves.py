"""Figures of an experiment, after the paper's Figures 1, 3, 5 and 6: PNG and SVG beside result.json."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from streamdrop.errors import OutputError
from streamdrop.evaluation.fit_summary import SAME_TIME, Result, Rows, column, ordered
from streamdrop.evaluation.layer_curves import agreement_figure, importance_pair_figure, layers_figure


@dataclass(frozen=True)
class Pen:
    """How a strategy is drawn: where two coincide, the wider one shows behind the narrower."""

    colour: str
    width: float = 1.6
    alpha: float = 1.0


PENS = {
    "sgd": Pen("#4b5563"),
    "freeze-full": Pen("#f59e0b", 5.0, 0.55),
    "freeze": Pen("#60a5fa", 3.2, 0.9),
    "drop": Pen("#15803d", 1.4),
    SAME_TIME: Pen("#be185d", 1.0),
}


def draw_curves(result: Result, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of a ``result.json`` into ``folder``; returns the files written; raises OutputError.

    Epochs that an arm did not reach and numbers that are none (a diverged run) leave gaps.
    """
    figures = {
        "accuracy-and-time": _accuracy_and_time(result),
        "accuracy-over-seconds": _accuracy_over_seconds(result),
        "parameters-and-macs": _parameters_and_macs(result),
        "layers": layers_figure(result),
        "agreement": agreement_figure(result),
    }
    return [path for name, figure in figures.items() if figure for path in _save(figure, Path(folder), name)]


def draw_importance_pairs(results: Sequence[Result], folder: str | os.PathLike[str]) -> list[Path]:
    """Fig. 3 for every network that ``results`` hold with and without BatchNorm (``vgg11_bn``, ``vgg11``) on one data
    set: importance per layer, side by side, of the first seed; returns the files; raises OutputError.
    """
    known = {(result["dataset"], result["model"]): result for result in reversed(results)}
    paths: list[Path] = []
    for (dataset, model), result in known.items():
        without = known.get((dataset, model.replace("_bn", "")))
        if "_bn" in model and without is not None:
            name = f"importance-with-and-without-bn-{dataset}-{model}"
            paths += _save(importance_pair_figure(result, without), Path(folder), name)
    return paths


def _save(figure: Figure, folder: Path, name: str) -> Iterator[Path]:
    for suffix in ("png", "svg"):
        path = folder / f"{name}.{suffix}"
        try:
            with warnings.catch_warnings():
                # A data set may be named in any script; a box in its title is no reason to alarm anyone.
                warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
                figure.savefig(path, dpi=130)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}): free space or give a folder you may write"
            ) from None
        yield path


def _figure(title: str, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.4 * columns, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _legend(figure: Figure, *axes: Axes) -> None:
    """One legend under all axes, each label once: never over the curves."""
    labelled: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=len(labelled), frameon=False, fontsize=9
    )


def _style(strategy: str) -> dict[str, Any]:
    pen = PENS.get(strategy, Pen("#7c3aed"))
    return {"color": pen.colour, "linewidth": pen.width, "alpha": pen.alpha, "label": strategy}


def _arms(result: Result) -> Iterator[tuple[str, Rows, list[int]]]:
    """Name, epochs and their numbers, of each strategy that has any."""
    for name, entry in ordered(result).items():
        rows: Rows = entry["epochs"]
        if rows:
            yield name, rows, [row["epoch"] for row in rows]


def _title(result: Result) -> str:
    diverged = [name for name, entry in ordered(result).items() if entry.get("status") == "diverged"]
    more = f" ({', '.join(diverged)} diverged)" if diverged else ""
    return f"{result['model']} on {result['dataset']}, seed {result['seed']}{more}"


def _accuracy_and_time(result: Result) -> Figure:
    """Fig. 5: accuracy and seconds per epoch; epochs that stored activations are starred."""
    figure, (left, right) = _figure(_title(result), 2)
    for name, rows, epochs in _arms(result):
        accuracy = column(rows, "accuracy")
        left.plot(epochs, accuracy, **_style(name))
        right.plot(epochs, column(rows, "seconds"), **_style(name))
        if name == SAME_TIME:
            left.axhline(
                accuracy[-1], color=PENS[name].colour, linestyle="--", linewidth=1, label=f"{name}, at its end"
            )
        stored = [(row["epoch"], row["seconds"]) for row in rows if row.get("stored") and row["cut"]]
        if stored and name == "drop":
            x, y = zip(*stored, strict=True)
            right.plot(x, y, "*", color=PENS[name].colour, markersize=12, label=f"{name}: this epoch stores")
    left.set_ylabel("test accuracy")
    right.set_ylabel("seconds per epoch")
    right.set_ylim(bottom=0)
    _legend(figure, left, right)
    return figure


def _accuracy_over_seconds(result: Result) -> Figure:
    """Accuracy against the time spent so far: what each strategy gives for the same seconds."""
    figure, (axis,) = _figure(_title(result), 1)
    for name, rows, _ in _arms(result):
        axis.plot(list(accumulate(column(rows, "seconds"))), column(rows, "accuracy"), marker=".", **_style(name))
    axis.xaxis.set_major_locator(MaxNLocator())
    axis.set_xlabel("seconds of training and storing")
    axis.set_ylabel("test accuracy")
    axis.set_xlim(left=0)
    _legend(figure, axis)
    return figure


def _parameters_and_macs(result: Result) -> Figure:
    """Fig. 6: parameters still trained and forward MACs run, per epoch."""
    figure, (left, right) = _figure(f"{_title(result)}: what each epoch trains and runs", 2)
    for name, rows, epochs in _arms(result):
        left.step(epochs, column(rows, "parameters", 1e-6), where="mid", **_style(name))
        right.step(epochs, column(rows, "forward_macs", 1e-9), where="mid", **_style(name))
    left.set_ylabel("parameters trained, millions")
    right.set_ylabel("forward MACs, billions")
    for axis in (left, right):
        axis.set_ylim(0, 1.05 * axis.dataLim.y1 if axis.lines else 1.0)
    _legend(figure, left, right)
    return figure
