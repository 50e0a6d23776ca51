"""The transfer sections as dots: a column per sample size, a row per section."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from storebench.measure import Row, number
from storebench.rivals import DISK, MAP

SECTIONS = ("reads, page cache warm", "reads, page cache dropped", "writes, durable")
OURS, BOUND, OTHER = "#0b6e4f", "#c46210", "#7b8794"


def draw(rows: Sequence[Row], hardware: str, folder: Path) -> None:
    """store.png and store.svg. Nothing where no transfer section ran."""
    kinds = [kind for kind in SECTIONS if any(row.section.startswith(kind) for row in rows)]
    cases = list(dict.fromkeys(row.case for row in rows if row.section.startswith(SECTIONS)))
    if not kinds:
        return
    size = (1.6 + 4.4 * len(cases), 0.8 + 3.6 * len(kinds))
    figure, axes = pyplot.subplots(
        len(kinds), len(cases), figsize=size, squeeze=False, layout="constrained", sharex="row"
    )
    for line, kind in zip(axes, kinds, strict=True):
        for panel, case in zip(line, cases, strict=True):
            dots(panel, [row for row in rows if row.section.startswith(kind) and row.case == case])
            panel.set_title(f"{kind}\n{case}", fontsize=9)
    figure.supxlabel(f"GB/s, logarithmic: median and range of the turns. {hardware}", fontsize=8)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"store.{suffix}", dpi=130)
    pyplot.close(figure)


def dots(panel: Axes, rows: Sequence[Row]) -> None:
    """One line per arm, the fastest on top."""
    ranked = sorted(rows, key=lambda row: statistics.median(row.values))
    for place, row in enumerate(ranked):
        middle = statistics.median(row.values)
        panel.plot((min(row.values), max(row.values)), (place, place), color=colour(row.arm), linewidth=3, alpha=0.45)
        panel.plot(middle, place, "o", color=colour(row.arm), markersize=7)
        panel.annotate(number(middle), (max(row.values), place), (7, 0), textcoords="offset points", va="center",
                       fontsize=7)  # fmt: skip
    panel.set_yticks(range(len(ranked)), [row.arm for row in ranked], fontsize=8)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.12)
    panel.grid(axis="both", color="#e4e7eb", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(axis="x", labelsize=8, labelbottom=True)
    panel.spines[["top", "right"]].set_visible(False)


def colour(arm: str) -> str:
    return OURS if "Store" in arm else BOUND if arm in (DISK, MAP) else OTHER
