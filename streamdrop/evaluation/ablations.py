"""Sections of the page on reproduction about our own variants: rule against rule, the default policy, ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from streamdrop.evaluation.claims import ABLATIONS, RULES, SWEEP
from streamdrop.evaluation.fit_cells import Cell, group_cells
from streamdrop.evaluation.fit_summary import Summary, spread
from streamdrop.evaluation.fit_tables import format_spread, strategy_value, summary_value
from streamdrop.evaluation.markdown import table
from streamdrop.evaluation.paper_numbers import contradictions
from streamdrop.evaluation.reproduction_data import Grid, Read, per_network, select

DEFAULT = "auto"
"""The variant that is the package's default policy."""

SAVED_TIME = strategy_value("drop", "saved_time_percent")
SAVED_MACS = strategy_value("drop", "saved_macs_percent")
TO_SGD, TO_SAME_TIME = summary_value("accuracy_difference"), summary_value("same_time_difference")
DROPPED = strategy_value("drop", "cut")
TOTAL: Read = summary_value("layers")


def _values(cells: Sequence[Cell], read: Read) -> list[float | None]:
    return [read(cell.summary) for cell in cells if cell.summary]


def rules_section(grids: Sequence[Grid]) -> str:
    """Where the paper disagrees with itself, and what came of taking it either way."""
    lines = ["## Where the paper disagrees with itself", "\n".join(f"- {line}" for line in contradictions())]
    pairs = {name: {(g.name, *c.key[:2], c.seed): c for g in grids for c in select([g], name)}
             for name in ("paper", "prefix-sum")}  # fmt: skip
    both = [key for key in pairs["paper"] if key in pairs["prefix-sum"]]
    if not both:
        return "\n\n".join([*lines, f"`paper` against `prefix-sum`: not measured yet: `{RULES}`"])
    head = ["run", "data", "network", "n"]
    columns = (("ΔT %", SAVED_TIME, ".1f"), ("A to sgd", TO_SGD, "+.2f"), ("layers dropped", DROPPED, ".1f"))
    head += [f"`{name}`: {what}" for name in pairs for what, _, _ in columns]
    rows = []
    for network in dict.fromkeys(key[:3] for key in both):
        seeds = [key for key in both if key[:3] == network]
        cells = {name: [found[key] for key in seeds] for name, found in pairs.items()}
        shown = [format_spread(_values(cells[name], read), form) for name in pairs for _, read, form in columns]
        rows.append([*network, str(len(seeds)), *shown])
    means = {name: _mean(SAVED_TIME, [found[key] for key in both]) for name, found in pairs.items()}
    accuracy = {name: _mean(TO_SGD, [found[key] for key in both]) for name, found in pairs.items()}
    said = ", ".join(f"`{name}` saves {means[name]} % at {accuracy[name]} points to sgd" for name in pairs)
    note = f"Over the {len(both)} experiments that have both: {said}."
    return "\n\n".join([*lines, "`paper` (the equations) against `prefix-sum` (the text):", table(head, rows, 3), note,
                        *_held_back(grids, "paper")])  # fmt: skip


def _mean(read: Read, cells: Sequence[Cell]) -> str:
    found = spread(_values(cells, read))
    return "–" if found is None else f"{found.mean:.1f}"


AUTO_COLUMNS: tuple[tuple[str, Read, str], ...] = (
    ("ΔT drop %", SAVED_TIME, ".1f"),
    ("bound %", summary_value("bound_time_percent"), ".1f"),
    ("of bound %", summary_value("share_of_bound_percent"), ".1f"),
    ("ΔT freeze %", strategy_value("freeze", "saved_time_percent"), ".1f"),
    ("ΔMACs %", SAVED_MACS, ".1f"),
    ("A sgd %", strategy_value("sgd", "accuracy", 100), ".2f"),
    ("A to sgd", TO_SGD, "+.2f"),
    ("A to same time", TO_SAME_TIME, "+.2f"),
    ("dropped MACs %", summary_value("dropped_macs_percent"), ".1f"),
    ("epoch × freeze's", summary_value("faster_than_freeze"), ".1f"),
)


def auto_section(grids: Sequence[Grid]) -> str:
    """The default policy on every network, against its bound and the same-time baseline, and its targets."""
    cells = [(grid.name, cell) for grid in grids for cell in select([grid], DEFAULT)]
    if not cells:
        return f"## Ours: the default policy `{DEFAULT}`\n\nNot measured yet: `{SWEEP}`"
    rows = []
    for run in dict.fromkeys(name for name, _ in cells):
        for (dataset, model, _), group in group_cells([cell for name, cell in cells if name == run]).items():
            shown = [format_spread(_values(group, read), form) for _, read, form in AUTO_COLUMNS]
            rows.append([run, dataset, model, str(len(group)), *shown])
    head = ("run", "data", "network", "n", *(heading for heading, _, _ in AUTO_COLUMNS))
    note = (
        "The bound: what a free head from the first decision on would save. *epoch × freeze's*: seconds of an epoch of "
        "strong freezing over those of dropping, after the last drop."
    )
    title = f"## Ours: the default policy `{DEFAULT}`"
    return "\n\n".join(
        [title, table(head, rows, 3), note, _targets([c for _, c in cells]), *_held_back(grids, DEFAULT)]
    )


def _targets(cells: Sequence[Cell]) -> str:
    """What we set out to reach, by numeric rules."""

    def judge(text: str, read: Read, held: Callable[[list[float]], bool], form: str) -> str:
        values = per_network(cells, read)
        if not values:
            return f"- {text}: not measured yet"
        (low, least), mean = min(values.items(), key=lambda item: item[1]), fmean(values.values())
        state = "met" if held(list(values.values())) else "**missed**"
        return f"- {text}: {state}; mean {mean:{form}}, least {least:{form}} ({low[1]} on {low[0]})"

    share, dropped = summary_value("share_of_bound_percent"), summary_value("dropped_macs_percent")
    faster = summary_value("faster_than_freeze")

    def long(summary: Summary) -> float | None:
        return SAVED_TIME(summary) if summary["epochs"] >= 60 else None

    lines = [
        judge("at least 90 % of the bound saved, on average", share, lambda v: fmean(v) >= 90, ".1f"),
        judge("at least 80 % of all time saved in 60 epochs or more, mean", long, lambda v: fmean(v) >= 80, ".1f"),
        judge("accuracy at least sgd's less 0.5 points on every network", TO_SGD, lambda v: min(v) >= -0.5, "+.2f"),
        judge("accuracy above sgd's in the same time on every network", TO_SAME_TIME, lambda v: min(v) > 0, "+.2f"),
        judge("at least 95 % of the droppable MACs dropped on every network", dropped, lambda v: min(v) >= 95, ".1f"),
        judge("epochs after the last drop 3 × faster than strong freezing's, on average", faster,
              lambda v: fmean(v) >= 3, ".1f"),
    ]  # fmt: skip
    return "Targets (means over seeds, per network):\n\n" + "\n".join(lines)


def _held_back(grids: Sequence[Grid], variant: str) -> list[str]:
    """Which rule held how many layers back, by network; empty where nothing was."""
    told: dict[tuple[str, ...], list[int]] = {}
    for grid in grids:
        for cell in select([grid], variant):
            held = (cell.summary or {})["held_back"]
            if held:
                told.setdefault((grid.name, cell.model, cell.dataset, held), []).append(cell.seed)
    lines = [
        f"- {run}: {model} on {dataset}, seed {', '.join(map(str, seeds))}: {held}"
        for (run, model, dataset, held), seeds in told.items()
    ]
    return [f"What held the rest back under `{variant}`:\n\n" + "\n".join(lines)] if lines else []


def ablation_section(grids: Sequence[Grid]) -> str:
    """One row per run and variant; the last columns compare with the default on the same experiments."""
    rows = []
    for grid in grids:
        for variant in dict.fromkeys(cell.variant for cell in grid.cells):
            cells = select([grid], variant)
            if any(SAVED_TIME(cell.summary) is not None for cell in cells if cell.summary):
                rows.append(_ablation_row(grid, variant, cells))
    if not rows:
        return f"## Ablations\n\nNot measured yet: `{ABLATIONS}`"
    head = ("run", "variant", "networks", "n", "ΔT %", "ΔMACs %", "A to sgd", "A to same time",
            "stored bytes × input", f"ΔT less `{DEFAULT}`'s", f"A less `{DEFAULT}`'s")  # fmt: skip
    note = (
        "n experiments; mean over networks, ± the standard deviation over seeds of that mean. The last two columns are "
        f"means of differences to `{DEFAULT}` on the same data, network and seed."
    )
    return f"## Ablations\n\n{table(head, rows, 2)}\n\n{note}"


def _ablation_row(grid: Grid, variant: str, cells: Sequence[Cell]) -> list[str]:
    columns = ((SAVED_TIME, ".1f"), (SAVED_MACS, ".1f"), (TO_SGD, "+.2f"), (TO_SAME_TIME, "+.2f"), (_bytes, ".2f"))
    default = {(*cell.key[:2], cell.seed): cell for cell in select([grid], DEFAULT)}
    pairs = [(cell, default[place]) for cell in cells if (place := (*cell.key[:2], cell.seed)) in default]
    compared = [(SAVED_TIME, "+.1f"), (strategy_value("drop", "accuracy", 100), "+.2f")]
    return [
        grid.name,
        f"`{variant}`",
        str(len({cell.key[:2] for cell in cells})),
        str(len(cells)),
        *(format_spread(_by_seed(cells, read), form) for read, form in columns),
        *("–" if variant == DEFAULT else _difference(pairs, read, form) for read, form in compared),
    ]


def _bytes(summary: dict[str, object]) -> float | None:
    stored, own = summary["stored_bytes"], summary["input_bytes"]
    return stored / own if isinstance(stored, (int, float)) and isinstance(own, (int, float)) and own else None


def _by_seed(cells: Sequence[Cell], read: Read) -> list[float | None]:
    """For each seed the mean over its cells."""
    seeds: dict[int, list[float | None]] = {}
    for cell in cells:
        seeds.setdefault(cell.seed, []).extend(_values([cell], read))
    means = [spread(values) for values in seeds.values()]
    return [None if mean is None else mean.mean for mean in means]


def _difference(pairs: Sequence[tuple[Cell, Cell]], read: Read, form: str) -> str:
    found = []
    for one, other in pairs:
        (mine,), (its,) = _values([one], read), _values([other], read)
        if mine is not None and its is not None:
            found.append(mine - its)
    return f"{fmean(found):{form}}" if found else "–"
