"""What the runs say: an arm against the one whose backbone never learns, and whether deeper training pays."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from streamdrop.columns import align
from streamdrop.evaluation.paired import paired_differences
from streamdrop.evaluation.results import format_interval, format_score

Record = Mapping[str, Any]

WORTH = 0.01
"""AUC that a gain must have to be worth a second before the first box."""

RULE = (
    f"pays: the gain's 95 % interval (over sequences) lies above 0 and its mean is at least {WORTH}; costs: the "
    f"interval lies below 0; does not: a gain of {WORTH} lies above the interval; undecided: the rest"
)


def verdict(gain: Mapping[str, float | None]) -> str:
    """``pays``, ``costs``, ``does not`` or ``undecided``, by RULE, of a ``mean`` and its ``low`` and ``high``."""
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    if mean is None or low is None or high is None:
        return "undecided"
    if high < 0:
        return "costs"
    if high < WORTH:
        return "does not"
    return "pays" if low > 0 and mean >= WORTH else "undecided"


def summarise(records: Sequence[Record], base: str) -> list[dict[str, Any]]:
    """A row per arm of one condition's records: scores, costs, and the gain over ``base`` where both ran."""
    arms = list(dict.fromkeys(record["arm"] for record in records))
    return [_row(records, arm, base) for arm in arms]


def _row(records: Sequence[Record], arm: str, base: str) -> dict[str, Any]:
    own = [record for record in records if record["arm"] == arm]
    rounds = [ms for record in own for ms in record["round_ms"]]
    row: dict[str, Any] = {
        "arm": arm,
        "n": len(own),
        **{key: statistics.fmean(record[key] for record in own) for key in ("auc", "precision", "init_s")},
        "round_ms": statistics.median(rounds) if rounds else None,
    }
    if arm != base and any(record["arm"] == base for record in records):
        row |= gain_over(records, arm, base)
    return row


def gain_over(records: Sequence[Record], arm: str, base: str) -> dict[str, Any]:
    """AUC of ``arm`` minus ``base``'s over equal sequences and seeds: mean, standard error, interval, verdict."""
    found = {(r["name"], r["arm"], r["seed"]): r["auc"] for r in records}
    pairs = [
        auc - found[name, base, seed]
        for (name, of, seed), auc in found.items()
        if of == arm and (name, base, seed) in found
    ]
    if not pairs:
        return {}
    both = [r for r in records if (r["name"], base, r["seed"]) in found]
    (interval,) = paired_differences(both, [arm, base])
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    gain = interval["auc"]
    return {"pairs": len(pairs), "gain": gain, "standard_error": error, "verdict": verdict(gain)}


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]], base: str) -> str:
    """All conditions as lines of text."""
    head = ("condition", "arm", "AUC", "precision", f"AUC - {base}'s", "s.e.", "n", "round ms", "first box s", "pays?")
    cells = [_cells(condition, row) for condition, own in rows.items() for row in own]
    return "\n".join(align([head, *cells], left=2))


def _cells(condition: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    error = row.get("standard_error")
    return (
        condition,
        row["arm"],
        *(format_score(row[key], None) for key in ("auc", "precision")),
        format_interval(row["gain"]) if "gain" in row else "",
        "" if error is None else f"{error:.3f}",
        str(row.get("pairs", row["n"])),
        "-" if row["round_ms"] is None else f"{row['round_ms']:.0f}",
        f"{row['init_s']:.1f}",
        row.get("verdict", "") if row["arm"] != "none" else "",  # it trains nothing
    )
