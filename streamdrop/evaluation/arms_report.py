"""The report of an evaluation: one HTML page with curves, tables, costs and failures of every arm, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from streamdrop.evaluation.arms_charts import accuracy_charts, best_of, cost_charts, overlap_charts
from streamdrop.evaluation.failures import film_strip, worst_failures
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.paired import SCORES
from streamdrop.evaluation.report import render, write_page
from streamdrop.evaluation.sequences import VideoSequence

COLOURS = 8


def write_arms_report(
    path: str | Path,
    results: dict[str, Any],
    outcomes: Sequence[Outcome] = (),
    sequences: Sequence[VideoSequence] = (),
    title: str = "Evaluation report",
) -> None:
    """Write ``results`` (the content of ``results.json``) as one self-contained HTML page; raises OutputError.

    The runs themselves (``outcomes``) add time per frame and overlap per frame, and with their ``sequences`` film
    strips of the longest failures.
    """
    arms: dict[str, dict[str, Any]] = results["arms"]
    names = list(dict.fromkeys(record["name"] for record in results["sequences"]))
    colours = {arm: i % COLOURS for i, arm in enumerate(arms)}
    page = render(
        "arms_report.html",
        title=title,
        source=f"{_count(len(names), 'sequence')}, {_count(len(results['sequences']), 'run')}",
        hardware=results["hardware"],
        arms=arms,
        colours=colours,
        scores=SCORES,
        best={key: best_of([arm[key] for arm in arms.values()]) for key in SCORES},
        paired=[_pair(row) for row in results["paired"]],
        realtime=results.get("realtime"),
        asked_fps=results["settings"].get("realtime"),
        perturbed=results.get("perturbed"),
        charts=accuracy_charts(arms, colours),
        cost=cost_charts(arms, results["sequences"], outcomes, colours),
        overlaps=overlap_charts(outcomes, list(arms), colours) if outcomes else [],
        strips=_strips(outcomes, sequences),
        names=names,
        frames={record["name"]: record["frames"] for record in results["sequences"]},
        table={name: {arm: _cell(results["sequences"], name, arm) for arm in arms} for name in names},
    )
    write_page(path, page)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _strips(outcomes: Sequence[Outcome], sequences: Sequence[VideoSequence]) -> list[dict[str, Any]]:
    known = {sequence.name: sequence for sequence in sequences}
    failures = [failure for failure in worst_failures(outcomes) if failure.outcome.sequence in known]
    return [film_strip(failure, known[failure.outcome.sequence]) for failure in failures]


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    """A row of paired differences, with where its AUC's interval lies on a scale of ±``reach``, in percent."""
    estimate = row["auc"]
    values = [abs(estimate[key]) for key in ("mean", "low", "high") if estimate[key] is not None]
    reach = max([0.02, *values]) * 1.1
    places = {key: None if estimate[key] is None else 50 + 50 * estimate[key] / reach for key in estimate}
    return {**row, "places": places, "reach": reach}


def _cell(records: Sequence[dict[str, Any]], name: str, arm: str) -> dict[str, float | None]:
    """An arm's AUC on a sequence: mean and spread over seeds."""
    values = [r["auc"] for r in records if r["name"] == name and r["arm"] == arm and r["auc"] is not None]
    return {"mean": fmean(values) if values else None, "spread": stdev(values) if len(values) > 1 else None}
