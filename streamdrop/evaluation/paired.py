"""Arms against arms on the same sequences and seeds: mean differences and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from streamdrop.boxes import Array

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
            row[score] = interval(groups)
        rows.append(row)
    return rows


def interval(groups: Sequence[Array]) -> dict[str, float | None]:
    """Mean over groups of their means, and Student's interval of it (Gosset 1908).

    A group (sequence) counts as one number: seeds of one sequence are not independent. Where there is one group, its
    members are the numbers. One number has no interval. A percentile bootstrap would be too narrow for so few.
    """
    if not groups:
        return {"mean": None, "low": None, "high": None}
    values = np.array([group.mean() for group in groups]) if len(groups) > 1 else groups[0]
    count, mean = len(values), float(values.mean())
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(count))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _differences(records: Sequence[Mapping[str, Any]], arm: str, other: str, score: str) -> list[Array]:
    """Per sequence, the differences of its seeds."""
    known = [r for r in records if r[score] is not None and not math.isnan(r[score])]
    found = {(r["name"], r["arm"], r["seed"]): r[score] for r in known}
    groups: dict[str, list[float]] = {}
    for (name, of, seed), value in found.items():
        theirs = found.get((name, other, seed), found.get((name, other, 0)))
        if of == arm and theirs is not None:
            groups.setdefault(name, []).append(value - theirs)
    return [np.array(group) for group in groups.values()]
