"""Runs against runs: what real time costs, and what a first box that is a little off costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.protocol import Run


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are one; NaN when none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def unseen(run: Run) -> int:
    """Frames that went by while the tracker was busy."""
    return len(run.ms) - 1 - run.updates


def compare_realtime(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> dict[str, Any]:
    """AUC lost against the one pass of the same sequences and seeds, the share of frames that went by unseen, and what
    became of rounds that had no time."""
    reference = {(o.sequence, o.seed): o.scores["auc"] for o in plain}
    later = sum(len(o.run.ms) - 1 for o in outcomes)
    return {
        "auc_loss": mean(reference[o.sequence, o.seed] - o.scores["auc"] for o in outcomes),
        "unseen_share": sum(unseen(o.run) for o in outcomes) / max(later, 1),
        "cut_short": sum(o.run.cut_short for o in outcomes),
        "put_off": sum(o.run.put_off for o in outcomes),
    }


def compare_perturbed(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> dict[str, Any]:
    """AUC lost against the true first box, that of the worst first box, and the spread over first boxes.

    Each is a mean over sequences and seeds; the spread (standard deviation) and the worst count the true box too.
    """
    reference = {(o.sequence, o.seed): o.scores["auc"] for o in plain}
    found = {key: [o.scores["auc"] for o in outcomes if (o.sequence, o.seed) == key] for key in reference}
    groups = [(reference[key], values) for key, values in found.items() if values]
    return {
        "auc_loss": mean(true - mean(values) for true, values in groups),
        "auc_worst": mean(min([true, *values]) for true, values in groups),
        "auc_spread": mean(float(np.std([true, *values], ddof=1)) for true, values in groups),
        "variants": max(len(values) for _, values in groups),
    }
