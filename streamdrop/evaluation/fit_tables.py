"""The paper's Tables 1 to 3 for one experiment or a sweep, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamdrop.columns import align
from streamdrop.evaluation.fit_cells import Cell, group_cells, pair_cells, policy_name
from streamdrop.evaluation.fit_summary import SAME_TIME, Result, Summary, spread, summarise

NOTHING = "-"
"""Stands where there is no number."""


def format_result(result: Result) -> str:
    """One experiment: T, A and ΔT of every strategy (Tables 1, 2), forward MACs (Table 3), bound, bytes, layers."""
    summary = summarise(result)
    head = ("strategy", "T", "A (%)", "saved time (ΔT)", "forward MACs", "saved MACs (Δ)", "epochs", "dropped")
    rows = [head, *(_strategy_row(name, entry, summary) for name, entry in summary["strategies"].items())]
    return "\n".join([describe(summary), "", *align(rows), "", *closing_lines(summary)])


def describe(summary: Summary) -> str:
    """What was trained on what, in one line."""
    parts = [f"{summary['epochs']} epochs, {summary['warm_up']} of them warm-up"]
    if summary["train_samples"]:
        size = f" of {summary['image_size']} px" if summary["image_size"] else ""
        parts.append(f"{summary['train_samples']:,} images{size}")
    if summary["batch_size"]:
        parts.append(f"batch {summary['batch_size']}")
    parts.append(f"policy {policy_name(summary['policy'])}")
    return f"{summary['model']} on {summary['dataset']}, seed {summary['seed']}: {', '.join(parts)}"


def _strategy_row(name: str, entry: dict[str, Any], summary: Summary) -> tuple[str, ...]:
    return (
        name if entry["status"] == "done" else f"{name} ({entry['status']})",
        format_seconds(entry["seconds"]),
        percent(None if entry["accuracy"] is None else 100 * entry["accuracy"], 2, ""),
        NOTHING if name in ("sgd", SAME_TIME) else percent(entry["saved_time_percent"], 1),
        format_count(entry["forward_macs"]),
        NOTHING if name in ("sgd", SAME_TIME) else percent(entry["saved_macs_percent"], 1),
        str(entry["epochs"]),
        f"{entry['cut']}/{summary['layers']}" if summary["layers"] else str(entry["cut"]),
    )


def closing_lines(summary: Summary) -> list[str]:
    """Bound, differences of accuracy, bytes, layers, and what held the rest back: one sentence each, where known."""
    return [line for line in (part(summary) for part in (_bound, _differences, _bytes, _layers, _held_back)) if line]


def _bound(summary: Summary) -> str:
    bound, share = summary["bound_time_percent"], summary["share_of_bound_percent"]
    if bound is None:
        return ""
    saved = summary["strategies"].get("drop", {}).get("saved_time_percent")
    text = (
        f"Bound: a free head from the first decision on (after epoch {summary['first_asked']}) would save {bound:.1f} %"
    )
    return f"{text}." if share is None else f"{text}; drop saved {saved:.1f} % = {share:.1f} % of it."


def _differences(summary: Summary) -> str:
    known = [
        f"{summary[key]:+.2f} points to {to}"
        for key, to in (("accuracy_difference", "sgd"), ("same_time_difference", "sgd given only drop's time"))
        if summary[key] is not None
    ]
    return f"Accuracy of drop: {', '.join(known)}." if known else ""


def _bytes(summary: Summary) -> str:
    stored, own = summary["stored_bytes"], summary["input_bytes"]
    if stored is None:
        return ""
    against = f", the input {own:,.0f} (× {stored / own:.2f})" if own else ""
    return f"Stored: {stored:,.0f} bytes per sample at the last cut{against}."


def _layers(summary: Summary) -> str:
    drop = summary["strategies"].get("drop")
    if drop is None or not summary["layers"]:
        return ""
    macs = summary["dropped_macs_percent"]
    share = "" if macs is None else f", {macs:.1f} % of the droppable forward MACs"
    return f"Dropped: {drop['cut']} of {summary['layers']} layers{share}."


def _held_back(summary: Summary) -> str:
    return f"Held the rest back: {summary['held_back']}." if summary["held_back"] else ""


Column = tuple[str, Callable[[Summary], float | None], str]
"""Heading, the number of a summary, how it is formatted."""


def strategy_value(strategy: str, key: str, factor: float = 1.0) -> Callable[[Summary], float | None]:
    """Reads ``key`` of a strategy off a summary, times ``factor``; None where it did not run or not to the end."""

    def read(summary: Summary) -> float | None:
        entry = summary["strategies"].get(strategy, {})
        value = entry.get(key) if entry.get("status") == "done" else None
        return None if value is None else factor * value

    return read


def summary_value(key: str) -> Callable[[Summary], float | None]:
    """Reads ``key`` off a summary."""
    return lambda summary: summary[key]


SWEEP_COLUMNS: tuple[Column, ...] = (
    ("A sgd %", strategy_value("sgd", "accuracy", 100), ".2f"),
    ("A drop %", strategy_value("drop", "accuracy", 100), ".2f"),
    ("to sgd", summary_value("accuracy_difference"), "+.2f"),
    ("to same time", summary_value("same_time_difference"), "+.2f"),
    ("ΔT freeze-full %", strategy_value("freeze-full", "saved_time_percent"), ".1f"),
    ("ΔT freeze %", strategy_value("freeze", "saved_time_percent"), ".1f"),
    ("ΔT drop %", strategy_value("drop", "saved_time_percent"), ".1f"),
    ("of bound %", summary_value("share_of_bound_percent"), ".1f"),
    ("ΔMACs %", strategy_value("drop", "saved_macs_percent"), ".1f"),
    ("dropped MACs %", summary_value("dropped_macs_percent"), ".1f"),
)


def format_sweep(sweep: dict[str, Any], results: Sequence[Result]) -> str:
    """A sweep, seeds averaged: mean ± standard deviation per data set, model and variant.

    ``results`` are those of the finished cells, in order. Failed and missing cells are counted and named.
    """
    cells = pair_cells(sweep, results)
    head, columns = sweep_columns(cells)
    rows = [("dataset", "model", "variant", *head)]
    rows += [(*key, *sweep_row(group, columns)) for key, group in group_cells(cells).items()]
    done = sum(cell.status == "done" for cell in cells)
    note = "± is the standard deviation over seeds; differences of accuracy in points (drop less the other)."
    lines = [f"{sweep.get('name', 'sweep')}: {done} of {len(cells)} cells done", "", *align(rows, left=3), "", note]
    return "\n".join([*lines, *describe_gaps(cells)])


def sweep_columns(cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[Column, ...]]:
    """A sweep's headings, and what its columns read: those of SWEEP_COLUMNS that any cell has something for."""
    summaries = [cell.summary for cell in cells if cell.summary is not None]
    columns = tuple(c for c in SWEEP_COLUMNS if any(c[1](s) is not None for s in summaries)) or SWEEP_COLUMNS[:1]
    return ("n", *(heading for heading, _, _ in columns)), columns


def sweep_row(group: Sequence[Cell], columns: Sequence[Column]) -> list[str]:
    """``n`` (finished of all where some are not) and the mean ± spread of every column."""
    summaries = [cell.summary for cell in group if cell.summary is not None]
    n = str(len(summaries)) if len(summaries) == len(group) else f"{len(summaries)} of {len(group)}"
    if not summaries:
        return [n, *(_states(group) if i == 0 else NOTHING for i in range(len(columns)))]
    return [n, *(format_spread([read(s) for s in summaries], form) for _, read, form in columns)]


def _states(group: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(cell.status for cell in group))


def describe_gaps(cells: Sequence[Cell]) -> list[str]:
    """Cells without a result, and why; arms that diverged, which no mean counts."""
    lines = []
    for cell in cells:
        where = f"{cell.dataset} / {cell.model} / {cell.variant} / seed {cell.seed}"
        if cell.summary is None:
            lines.append(f"{cell.status}: {where}" + (f": {cell.error}" if cell.error else ""))
            continue
        strategies = cell.summary["strategies"]
        broken = [f"{name} {entry['status']}" for name, entry in strategies.items() if entry["status"] != "done"]
        lines += [f"{', '.join(broken)}: {where}: left out of the means"] if broken else []
    return lines


def format_spread(values: Sequence[float | None], form: str) -> str:
    """``62.1 ± 3.4``, as much of it as is known."""
    found = spread(values)
    if found is None:
        return NOTHING
    return f"{found.mean:{form}}" + ("" if found.deviation is None else f" ± {found.deviation:{form.lstrip('+')}}")


def format_seconds(seconds: float | None) -> str:
    """``123.4 s``; minutes from ten minutes on."""
    if seconds is None:
        return NOTHING
    return f"{seconds / 60:.1f} min" if seconds > 600 else f"{seconds:.1f} s"


def percent(value: float | None, digits: int, unit: str = " %") -> str:
    """A number with its unit, or the sign for none."""
    return NOTHING if value is None else f"{value:.{digits}f}{unit}"


def format_count(value: float | None) -> str:
    """A large count with a prefix: ``1.23 T``."""
    if value is None:
        return NOTHING
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:,.0f}"
