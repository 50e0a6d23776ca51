"""The report of an experiment or a sweep: one HTML page that needs nothing else, neither files nor a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from streamdrop.errors import DataError
from streamdrop.evaluation import fit_tables as tables
from streamdrop.evaluation.fit_cells import Cell, Key, group_cells, lone_cell, pair_cells
from streamdrop.evaluation.fit_charts import COLOURS, charts
from streamdrop.evaluation.fit_summary import Result, number, ordered, spread
from streamdrop.evaluation.report import Card, render, write_page

FULL_SECTIONS = 12
"""Cells of a sweep that get charts and a table per epoch; the others their tables and figures in numbers."""


def write_fit_report(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    sweep: dict[str, Any] | None = None,
    title: str = "Layer dropping: report",
) -> None:
    """Write one self-contained HTML page about results (contents of ``result.json``).

    With ``sweep`` (content of ``sweep.json``) ``results`` are those of its finished cells, in order, and a table over
    seeds stands first. Raises DataError for no results or as many as do not fit, OutputError when it cannot be written.
    """
    cells = pair_cells(sweep, results) if sweep else [lone_cell(result) for result in results]
    if not cells:
        raise DataError("no results to report on: run `streamdrop fit` first")
    page = render(
        "fit_report.html",
        title=title,
        source=_source(cells, sweep),
        hardware=(sweep or results[0]).get("hardware") or "",
        cards=_cards(cells),
        grid=_grid(cells) if len(cells) > 1 else None,
        bars=_bars(cells) if len(cells) > 1 else None,
        gaps=tables.describe_gaps(cells),
        sections=_sections(cells, results),
        colours=COLOURS,
        show=tables,
    )
    write_page(os.fspath(path), page)


def _source(cells: Sequence[Cell], sweep: dict[str, Any] | None) -> str:
    done = [cell for cell in cells if cell.summary]
    if sweep:
        return f"{sweep.get('name', 'sweep')}: {len(done)} of {len(cells)} cells done"
    return tables.describe(done[0].summary or {}) if len(done) == 1 else f"{len(done)} experiments"


def _cards(cells: Sequence[Cell]) -> list[Card]:
    """The five numbers that matter; of a page on several experiments, means over those of one variant."""
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    variant = "auto" if "auto" in variants else variants[0]
    summaries = [cell.summary for cell in cells if cell.summary and cell.variant == variant]
    word = f"{variant}, mean of {len(summaries)}" if len(cells) > 1 else ""
    bound = _mean([s["bound_time_percent"] for s in summaries], 1, " %")
    saved = [tables.strategy_value("drop", "saved_time_percent")(s) for s in summaries]
    macs = [tables.strategy_value("drop", "saved_macs_percent")(s) for s in summaries]
    cards: list[Card] = [
        ("Time saved by drop", _mean(saved, 1, " %"), word or "against sgd, storing included"),
        ("Of what was possible", _mean([s["share_of_bound_percent"] for s in summaries], 1, " %"), f"bound: {bound}"),
        ("Forward MACs saved", _mean(macs, 1, " %"), word or "over the whole training"),
        ("Accuracy to sgd", _mean([s["accuracy_difference"] for s in summaries], 2, "", "+"), "points"),
        ("To sgd in the same time", _mean([s["same_time_difference"] for s in summaries], 2, "", "+"), "points"),
    ]
    return [card for card in cards if card[1] != tables.NOTHING]


def _mean(values: Sequence[float | None], digits: int, unit: str, sign: str = "") -> str:
    found = spread(values)
    return tables.NOTHING if found is None else f"{found.mean:{sign}.{digits}f}{unit}"


def _grid(cells: Sequence[Cell]) -> dict[str, Any]:
    """The table over seeds; a row links to the section of its first seed."""
    head, columns = tables.sweep_columns(cells)
    rows = [
        {"key": key, "values": tables.sweep_row(group, columns), "link": _anchor(key)}
        for key, group in group_cells(cells).items()
    ]
    return {"head": head, "rows": rows}


def _anchor(key: Key) -> str:
    return "-".join("".join(c if c.isalnum() else f"_{ord(c):x}" for c in part) for part in key)


def _bars(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Mean time saved per data set, model and variant, with the bound, in percent of sgd's."""
    rows = []
    for key, group in group_cells(cells).items():
        summaries = [cell.summary for cell in group if cell.summary]
        values = [tables.strategy_value("drop", "saved_time_percent")(s) for s in summaries]
        saved, bound = spread(values), spread([s["bound_time_percent"] for s in summaries])
        if saved:
            rows.append(
                {
                    "name": " · ".join(key),
                    "link": _anchor(key),
                    "text": f"{tables.format_spread(values, '.1f')} %",
                    "width": min(max(saved.mean, 0.0), 100.0),
                    "bound": min(max(bound.mean, 0.0), 100.0) if bound else None,
                }
            )
    return rows


def _sections(cells: Sequence[Cell], results: Sequence[Result]) -> list[dict[str, Any]]:
    """One section per finished cell; the first ones have charts and tables per epoch."""
    sections, anchors = [], set()
    finished = [cell for cell in cells if cell.summary]
    for i, (cell, result) in enumerate(zip(finished, results, strict=True)):
        full = i < FULL_SECTIONS
        anchor = _anchor(cell.key)
        summary = cell.summary or {}
        sections.append(
            {
                "title": f"{' · '.join(cell.key)} · seed {cell.seed}",
                "anchor": None if anchor in anchors else anchor,
                "about": tables.describe(summary),
                "summary": summary,
                "lines": tables.closing_lines(summary),
                "charts": charts(result) if full else [],
                "epochs": _epochs(result) if full else [],
                "epochs_of": "drop" if "drop" in result["strategies"] else next(iter(ordered(result)), ""),
            }
        )
        anchors.add(anchor)
    return sections


def _epochs(result: Result) -> list[dict[str, Any]]:
    """The table per epoch: drop's rows, with sgd's seconds and accuracy beside them."""
    strategies = result["strategies"]
    name = "drop" if "drop" in strategies else next(iter(ordered(result)), "")
    beside = {row["epoch"]: row for row in strategies.get("sgd", {"epochs": []})["epochs"]}
    return [_epoch(row, beside.get(row["epoch"], {})) for row in strategies[name]["epochs"]] if name else []


def _epoch(row: dict[str, Any], sgd: dict[str, Any]) -> dict[str, Any]:
    said = [word for word, key in (("stores", "stored"), ("thawed", "thawed")) if row.get(key) and row["cut"]]
    numbers = ("loss", "accuracy", "seconds", "store_seconds", "parameters", "forward_macs")
    return {
        "epoch": row["epoch"],
        "cut": row["cut"],
        "next_cut": row.get("next_cut", row["cut"]),
        "said": ", ".join(said),
        **{key: number(row.get(key)) for key in numbers},
        "sgd_accuracy": number(sgd.get("accuracy")),
        "sgd_seconds": number(sgd.get("seconds")),
    }
