"""Arms against arms on the same sequences and seeds: mean differences and bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamdrop.boxes import Array

RESAMPLES = 5000
LEVEL = 0.95
SCORES = ("auc", "precision", "ao", "sr50")


def paired_differences(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """The first arm minus each other, per score: ``mean``, ``low`` and ``high`` (95 %).

    ``records`` are those of ``results.json``. A difference is taken on the same sequence and seed (a rival's one run
    meets every seed); sequences without it in both arms are left out.
    """
    rows = []
    for other in arms[1:]:
        row: dict[str, Any] = {"arm": arms[0], "against": other}
        for score in SCORES:
            groups = _differences(records, arms[0], other, score)
            row["sequences"], row["n"] = len(groups), sum(len(group) for group in groups)
            row[score] = bootstrap(groups)
        rows.append(row)
    return rows


def bootstrap(groups: Sequence[Array]) -> dict[str, float | None]:
    """Mean over groups of their means, and its percentile interval (Efron and Tibshirani 1993, chapter 13).

    Groups (sequences) are drawn anew, each whole: seeds of one sequence are not independent. Where there is one group,
    its members are drawn. One number has no interval. The draws are the same on every call.
    """
    if not groups:
        return {"mean": None, "low": None, "high": None}
    values = np.array([group.mean() for group in groups]) if len(groups) > 1 else groups[0]
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _differences(records: Sequence[Mapping[str, Any]], arm: str, other: str, score: str) -> list[Array]:
    """Per sequence, the differences of its seeds."""
    found = {(r["name"], r["arm"], r["seed"]): r[score] for r in records if r[score] is not None}
    groups: dict[str, list[float]] = {}
    for (name, of, seed), value in found.items():
        theirs = found.get((name, other, seed), found.get((name, other, 0)))
        if of == arm and theirs is not None:
            groups.setdefault(name, []).append(value - theirs)
    return [np.array(group) for group in groups.values()]
