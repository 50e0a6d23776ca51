"""The report of an evaluation: one HTML page with curves, scores per sequence and costs of every arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup

from streamdrop.evaluation.figures import Line, line_chart
from streamdrop.evaluation.metrics import PIXELS, THRESHOLDS
from streamdrop.evaluation.report import render, write_page
from streamdrop.evaluation.results import SCORES

COLOURS = 8


def write_arms_report(path: str | Path, results: dict[str, Any], title: str = "Evaluation report") -> None:
    """Write ``results`` (the content of ``results.json``) as one self-contained HTML page; raises OutputError."""
    arms: dict[str, dict[str, Any]] = results["arms"]
    names = list(dict.fromkeys(record["name"] for record in results["sequences"]))
    page = render(
        "arms_report.html",
        title=title,
        source=f"{len(names)} sequences, {len(results['sequences'])} runs",
        hardware=results["hardware"],
        arms=arms,
        colours={arm: i % COLOURS for i, arm in enumerate(arms)},
        scores=SCORES,
        best={key: max((a[key] for a in arms.values() if a[key] is not None), default=None) for key in SCORES},
        charts=_charts(arms, results["sequences"]),
        names=names,
        table={name: {arm: _cell(results["sequences"], name, arm) for arm in arms} for name in names},
    )
    write_page(path, page)


def _charts(arms: dict[str, dict[str, Any]], records: Sequence[dict[str, Any]]) -> list[Markup]:
    coloured = [(i % COLOURS, arm, values) for i, (arm, values) in enumerate(arms.items())]
    success = [Line(f"{arm} {v['auc'] or 0:.3f}", THRESHOLDS, v["curves"]["success"], i) for i, arm, v in coloured]
    near = [Line(f"{arm} {v['precision'] or 0:.3f}", PIXELS, v["curves"]["precision"], i) for i, arm, v in coloured]
    charts = [
        line_chart("Success (AUC)", success, x_label="overlap threshold", x_range=(0, 1), y_range=(0, 1)),
        line_chart("Precision (at 20 px)", near, x_label="centre distance, px", x_range=(0, 50), y_range=(0, 1)),
    ]
    rounds = [(i, arm, _over_rounds(records, arm)) for i, arm, values in coloured if values["rounds"]]
    if rounds:
        cost = [Line(arm, range(1, len(ms) + 1), ms, i) for i, arm, (ms, _) in rounds]
        cuts = [Line(arm, range(1, len(cut) + 1), cut, i, "step") for i, arm, (_, cut) in rounds]
        charts.append(line_chart("Milliseconds per round (mean over runs)", cost, x_label="round"))
        charts.append(line_chart("Cut: layers dropped (mean over runs)", cuts, x_label="round"))
    return charts


def _over_rounds(records: Sequence[dict[str, Any]], arm: str) -> tuple[list[float], list[float]]:
    """Mean milliseconds and mean cut of an arm's n-th rounds, over the runs that have so many."""
    runs = [record for record in records if record["arm"] == arm and record["rounds"]]
    longest = max(record["rounds"] for record in runs)
    nth = [[record for record in runs if record["rounds"] > n] for n in range(longest)]
    ms = [fmean(record["round_ms"][n] for record in part) for n, part in enumerate(nth)]
    return ms, [fmean(record["cuts"][n] for record in part) for n, part in enumerate(nth)]


def _cell(records: Sequence[dict[str, Any]], name: str, arm: str) -> dict[str, float | None]:
    """An arm's AUC on a sequence: mean and spread over seeds."""
    values = [r["auc"] for r in records if r["name"] == name and r["arm"] == arm and r["auc"] is not None]
    return {"mean": fmean(values) if values else None, "spread": stdev(values) if len(values) > 1 else None}
