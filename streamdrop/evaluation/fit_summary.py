"""One experiment (``result.json``) as the few numbers that tables and pages show: small, plain data, JSON all through.

Keys that an older result lacks are worked out where its epochs allow, and None where not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

Result = dict[str, Any]
Summary = dict[str, Any]
Rows = list[dict[str, Any]]

SAME_TIME = "sgd-same-time"

STRATEGIES = ("sgd", "freeze", "freeze-full", "drop", SAME_TIME)
"""``freeze`` builds no graph below the boundary, ``freeze-full`` the whole one (the paper's kind)."""

ORDER = ("sgd", "freeze-full", "freeze", "drop", SAME_TIME)
"""The same in the order in which tables and figures show them: the paper's kind of freezing before ours."""


class Spread(NamedTuple):
    """Mean, standard deviation over seeds (None for one) and count of what is known."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean ± standard deviation of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def number(value: Any) -> float | None:
    """A finite number, or None for None, NaN and infinities."""
    return float(value) if value is not None and math.isfinite(value) else None


def column(rows: Rows, key: str, factor: float = 1.0) -> list[float]:
    """One number per epoch, times ``factor``, NaN where it is none."""
    found = [number(row.get(key)) for row in rows]
    return [math.nan if value is None else factor * value for value in found]


def ordered(result: Result) -> dict[str, dict[str, Any]]:
    """The strategies of a result by name, in the order of the tables; unknown ones last."""
    strategies: dict[str, dict[str, Any]] = result["strategies"]
    known = [name for name in ORDER if name in strategies]
    return {name: strategies[name] for name in [*known, *(n for n in strategies if n not in known)]}


def summarise(result: Result) -> Summary:
    """The numbers of one result: a few hundred bytes per strategy, whatever its epochs and layers.

    Percentages are 0 … 100, accuracies fractions, differences of accuracy points (hundredths), times seconds.
    """
    strategies = ordered(result)
    drop, sgd = strategies.get("drop"), strategies.get("sgd")
    keys = ("model", "dataset", "seed", "epochs", "warm_up", "policy", "layers", "batch_size", "train_samples")
    more = ("image_size", "optimizer", "hardware", "input_bytes", "droppable_macs")
    summary: Summary = {key: result.get(key) for key in (*keys, *more)}
    summary["strategies"] = {name: _entry(entry, sgd) for name, entry in strategies.items()}
    summary["accuracy_difference"] = _points(drop, sgd)
    summary["same_time_difference"] = _points(drop, strategies.get(SAME_TIME))
    views = result.get("config", {}).get("views", {}).get("count", 1)
    summary |= _bound(result, drop, sgd) | _dropped(drop, views)
    summary["same_as_freeze"] = _same_course(drop, strategies.get("freeze"))
    summary["faster_than_freeze"] = _after_last_drop(drop, strategies.get("freeze"))
    summary["score_order"] = _score_order(strategies)
    return summary


def _entry(entry: dict[str, Any], sgd: dict[str, Any] | None) -> dict[str, Any]:
    rows: Rows = entry["epochs"]
    return {
        "seconds": number(entry.get("seconds")),
        "fill_seconds": number(entry.get("fill_seconds")),
        "accuracy": number(entry.get("accuracy")),
        "best_accuracy": number(entry.get("best_accuracy")),
        "forward_macs": number(entry.get("forward_macs")),
        "saved_time_percent": _saved(entry, sgd, "saved_time_percent", "seconds"),
        "saved_macs_percent": _saved(entry, sgd, "saved_macs_percent", "forward_macs"),
        "epochs": len(rows),
        "cut": entry.get("cut", rows[-1]["cut"] if rows else 0),
        "status": entry.get("status", "done"),
    }


def _saved(entry: dict[str, Any], sgd: dict[str, Any] | None, key: str, of: str) -> float | None:
    """Eq. 5, as the result gives it or worked out; None without sgd and for an arm that did not finish."""
    if entry.get("status", "done") != "done":
        return None
    given = number(entry.get(key))
    if given is not None or sgd is None or sgd.get("status", "done") != "done" or not sgd.get(of):
        return given
    return 100.0 * (float(sgd[of]) - float(entry[of])) / float(sgd[of])


def _points(drop: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """Accuracy of drop less another's, in points (hundredths); None unless both trained to the end."""
    if drop is None or other is None or any(arm.get("status", "done") != "done" for arm in (drop, other)):
        return None
    mine, its = number(drop.get("accuracy")), number(other.get("accuracy"))
    return None if mine is None or its is None else 100.0 * (mine - its)


def _bound(result: Result, drop: dict[str, Any] | None, sgd: dict[str, Any] | None) -> dict[str, Any]:
    """What a free head from the first decision on would save, and drop's share of it, in percent."""
    asked = result["warm_up"] + 1 if drop is None else drop.get("first_asked", result["warm_up"] + 1)
    bound = None if drop is None else number(drop.get("bound_time_percent"))
    if bound is None and sgd is not None and asked is not None:
        seconds = [float(row["seconds"]) for row in sgd["epochs"]]
        bound = 100.0 * (1 - sum(seconds[:asked]) / sum(seconds)) if sum(seconds) else None
    saved = None if drop is None else _saved(drop, sgd, "saved_time_percent", "seconds")
    share = None if not bound or saved is None else 100.0 * saved / bound
    return {"first_asked": asked, "bound_time_percent": bound, "share_of_bound_percent": share}


def _dropped(drop: dict[str, Any] | None, views: int) -> dict[str, Any]:
    """What was dropped and when; ``stored_bytes`` are a sample's, all its views together."""
    entry = drop or {}
    stored = number(entry.get("stored_bytes"))
    rows: Rows = entry.get("epochs", [])
    return {
        "first_decision": entry.get("first_decision"),
        "dropped_macs_percent": number(entry.get("dropped_macs_percent")),
        "held_back": entry.get("held_back"),
        "stored_bytes": None if stored is None else stored * views,
        "drops": [[b["epoch"], a["cut"], b["cut"]] for a, b in pairwise(rows) if b["cut"] > a["cut"]],
        "store_cost": _store_cost(rows),
        "store_seconds": sum(float(row.get("store_seconds") or 0.0) for row in rows) if rows else None,
    }


def _store_cost(rows: Rows) -> list[float]:
    """Seconds of each storing epoch over those of the epoch before it, which it replaces."""
    pairs = pairwise(rows)
    return [b["seconds"] / a["seconds"] for a, b in pairs if b.get("stored") and not a.get("stored") and a["seconds"]]


def _same_course(drop: dict[str, Any] | None, freeze: dict[str, Any] | None) -> bool | None:
    """Whether every epoch's loss, accuracy and cut are the same number in both."""
    if drop is None or freeze is None:
        return None
    courses = [
        [(number(row["loss"]), number(row["accuracy"]), row["cut"]) for row in arm["epochs"]] for arm in (drop, freeze)
    ]
    return courses[0] == courses[1]


def _after_last_drop(drop: dict[str, Any] | None, freeze: dict[str, Any] | None) -> float | None:
    """Strong freezing's seconds per epoch over drop's, medians of the epochs after the last drop."""
    if drop is None or freeze is None:
        return None
    pairs = [(f["seconds"], d["seconds"]) for f, d in zip(freeze["epochs"], drop["epochs"], strict=False)
             if d["cut"] == drop.get("cut", d["cut"]) and d["cut"] and not d.get("stored")]  # fmt: skip
    return median(f for f, _ in pairs) / median(d for _, d in pairs) if pairs else None


def _score_order(strategies: dict[str, dict[str, Any]]) -> float | None:
    """Rank correlation of importance with a layer's nearness to the input, -1 … 1: median over the epochs at cut 0.

    Positive: layers near the input have the higher P, so they stop learning first.
    """
    arm = strategies.get("drop") or strategies.get("sgd") or next(iter(strategies.values()), None)
    rows = [row for row in (arm["epochs"] if arm else []) if row["cut"] == 0 and len(row.get("importance") or {}) > 2]
    found = [rank_correlation([number(p) for p in reversed(row["importance"].values())]) for row in rows]
    known = [value for value in found if value is not None]
    return median(known) if known else None


def rank_correlation(values: Sequence[float | None]) -> float | None:
    """Spearman's rho of values against their positions; ties share their rank; None where it is undefined."""
    if any(value is None for value in values):
        return None
    ranks = _ranks([value for value in values if value is not None])
    places = [float(i) for i in range(len(values))]
    middle = (len(values) - 1) / 2
    above = sum((r - middle) * (p - middle) for r, p in zip(ranks, places, strict=True))
    squares = [sum((v - middle) ** 2 for v in part) for part in (ranks, places)]
    return above / math.sqrt(squares[0] * squares[1]) if squares[0] and squares[1] else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered_values = sorted(values)
    return [ordered_values.index(v) + (ordered_values.count(v) - 1) / 2 for v in values]
