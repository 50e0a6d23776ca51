"""The charts of an evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from streamdrop.boxes import Array
from streamdrop.evaluation.figures import Line, line_chart
from streamdrop.evaluation.metrics import PIXELS, THRESHOLDS
from streamdrop.evaluation.outcomes import Outcome

Colours = Mapping[str, int]
"""A colour number per arm."""

STRETCHES = 150
"""Points of a line over the frames of a sequence."""

SEQUENCES = 12
"""Sequences whose overlap is drawn frame by frame: those on which the first arm is worst."""


def accuracy_charts(arms: Mapping[str, dict[str, Any]], colours: Colours) -> list[Markup]:
    """Success and precision of arms that have them, and what scores mean where they mean something."""
    scored = {arm: v for arm, v in arms.items() if v["auc"] is not None}

    def drawn(score: str, curve: str, at: Array) -> list[Line]:
        return [Line(f"{a} {v[score]:.3f}", at, v["curves"][curve], colours[a]) for a, v in scored.items()]

    charts = []
    if scored:
        success, near = drawn("auc", "success", THRESHOLDS), drawn("precision", "precision", PIXELS)
        charts = [
            line_chart("Success (AUC)", success, x_label="overlap threshold", x_range=(0, 1), y_range=(0, 1)),
            line_chart("Precision (at 20 px)", near, x_label="centre distance, px", x_range=(0, 50), y_range=(0, 1)),
        ]
    judged = {arm: v for arm, v in arms.items() if v["curves"]["calibration"]}
    if judged:
        lines = [_calibration(arm, values, colours[arm]) for arm, values in judged.items()]
        lines.append(Line("ideal", [0, 1], [0, 1], 8, "dashed"))
        title = "Calibration: share of boxes with overlap > 0.5 (error)"
        charts.append(line_chart(title, lines, x_label="score", x_range=(0, 1), y_range=(0, 1)))
    return charts


def cost_charts(
    arms: Mapping[str, dict[str, Any]],
    records: Sequence[dict[str, Any]],
    outcomes: Sequence[Outcome],
    colours: Colours,
) -> list[Markup]:
    """Time per frame (where the runs are at hand), time per round, and the cut, over time."""
    charts = _frame_charts(outcomes, colours)
    learning = [arm for arm, values in arms.items() if values["rounds"]]
    if learning:
        rounds = {arm: _over_rounds(records, arm) for arm in learning}
        cost = [Line(arm, range(1, len(ms) + 1), ms, colours[arm]) for arm, (ms, _, _) in rounds.items()]
        cuts = [_cut_line(arm, first, later, colours[arm]) for arm, (_, first, later) in rounds.items()]
        charts.append(line_chart("Milliseconds per round (mean over runs)", cost, x_label="round"))
        label = "round (0 and below: on the first frame)"
        charts.append(line_chart("Cut: layers dropped (mean over runs)", cuts, x_label=label))
    return charts


def overlap_charts(outcomes: Sequence[Outcome], arms: Sequence[str], colours: Colours) -> list[Markup]:
    """Overlap frame by frame under the first seed, all arms, for the sequences on which the first arm is worst."""
    plain = [o for o in outcomes if o.protocol == "ope"]
    first = {(o.sequence, o.arm): o for o in sorted(plain, key=lambda o: -o.seed)}  # the lowest seed comes last
    names = dict.fromkeys(o.sequence for o in plain if not np.isnan(o.scores["auc"]))
    worst = sorted(names, key=lambda name: first[name, arms[0]].scores["auc"])[:SEQUENCES]
    return [_overlap_chart([first[name, arm] for arm in arms if (name, arm) in first], colours) for name in worst]


def _overlap_chart(outcomes: Sequence[Outcome], colours: Colours) -> Markup:
    start, frames = outcomes[0].start, len(outcomes[0].overlaps)
    lines = [
        Line(f"{o.arm} {o.scores['auc']:.3f}", np.arange(frames) + start, o.overlaps, colours[o.arm]) for o in outcomes
    ]
    extent = (float(start), float(start + frames - 1))
    return line_chart(outcomes[0].sequence, lines, x_label="frame", x_range=extent, y_range=(0, 1))


def _calibration(arm: str, values: dict[str, Any], colour: int) -> Line:
    curve = values["curves"]["calibration"]
    style = "line" if len(curve) > 1 else "dots"
    label = f"{arm} {values['calibration_error']:.3f}"
    return Line(label, [score for score, _, _ in curve], [share for _, share, _ in curve], colour, style)


def _frame_charts(outcomes: Sequence[Outcome], colours: Colours) -> list[Markup]:
    plain = [o for o in outcomes if o.protocol == "ope"]
    times = {
        arm: np.concatenate([_updates(o) for o in plain if o.arm == arm]) for arm in dict.fromkeys(o.arm for o in plain)
    }
    if not times:
        return []
    shares = np.linspace(0, 0.995, 200)  # the last frames are far out
    spread = [Line(arm, np.quantile(ms, shares), shares, colours[arm]) for arm, ms in times.items()]
    most = max(float(np.quantile(ms, 0.995)) for ms in times.values()) * 1.05
    over = [Line(arm, *_over_frames([o for o in plain if o.arm == arm]), colours[arm]) for arm in times]
    return [
        line_chart("Frames done within … ms", spread, x_label="milliseconds", x_range=(0, most), y_range=(0, 1)),
        line_chart("Milliseconds per frame (mean over runs)", over, x_label="frame"),
    ]


def _updates(outcome: Outcome) -> Array:
    ms = outcome.run.ms[1:]
    found: Array = ms[np.isfinite(ms)]
    return found


def _over_frames(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """Mean milliseconds over stretches of frames, over the runs that are so long."""
    longest = max(len(o.run.ms) for o in outcomes)
    padded = np.full((len(outcomes), longest), np.nan)
    for row, outcome in zip(padded, outcomes, strict=True):
        row[1 : len(outcome.run.ms)] = outcome.run.ms[1:]
    parts = np.array_split(np.arange(1, longest), min(STRETCHES, longest - 1))
    known = [part for part in parts if np.isfinite(padded[:, part]).any()]
    return [float(part.mean()) for part in known], [float(np.nanmean(padded[:, part])) for part in known]


def _over_rounds(records: Sequence[dict[str, Any]], arm: str) -> tuple[list[float], list[float], list[float]]:
    """Mean milliseconds of an arm's n-th rounds, mean cuts of those on the first frame and of the later ones."""
    runs = [record for record in records if record["arm"] == arm and record["rounds"]]
    ms = [fmean(values) for values in _nth([record["round_ms"] for record in runs])]
    first = [fmean(values) for values in _nth([record["first_cuts"][::-1] for record in runs])][::-1]
    return ms, first, [fmean(values) for values in _nth([record["cuts"] for record in runs])]


def _nth(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The n-th values of the rows that have so many."""
    return [[row[n] for row in rows if len(row) > n] for n in range(max((len(row) for row in rows), default=0))]


def _cut_line(arm: str, first: Sequence[float], later: Sequence[float], colour: int) -> Line:
    return Line(arm, range(1 - len(first), len(later) + 1), [*first, *later], colour, "step")


def best_of(values: Sequence[float | None]) -> float | None:
    """The largest of the numbers among ``values``."""
    return max((v for v in values if v is not None and not math.isnan(v)), default=None)
