"""The paper's claims, each with the rule by which our numbers decide on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from streamdrop.evaluation.fit_cells import Cell
from streamdrop.evaluation.fit_summary import rank_correlation
from streamdrop.evaluation.fit_tables import strategy_value, summary_value
from streamdrop.evaluation.paper_numbers import MEAN_SAVED, MOST_LOST, TABLE_1, TABLE_2, PaperRow
from streamdrop.evaluation.reproduction_data import (
    Evidence,
    has_batch_norm,
    is_family,
    network_of,
    per_network,
    select,
)

SWEEP = "streamdrop fit --sweep configs/fit/mini.yaml --output runs/mini"
FIG_3 = "streamdrop fit --sweep configs/fit/batch-norm.yaml --output runs/batch-norm"
ABLATIONS = "streamdrop fit --sweep configs/fit/ablations.yaml --output runs/ablations"
RULES = "streamdrop fit --sweep configs/fit/rules.yaml --output runs/rules"
STORE = (
    "python benchmarks/store.py --only writes,reads --output runs/store "
    "--rivals 'sequential write,raw memory map,pickle per sample,pickle per batch,torch.save,npy files'"
)


@dataclass(frozen=True)
class Verdict:
    """``state`` is reproduced, partly, not reproduced or not tested; ``why`` gives the numbers that decided."""

    state: str
    why: str


@dataclass(frozen=True)
class Claim:
    """What the paper says and where, by which rule it is judged, and the command that measures it."""

    text: str
    source: str
    rule: str
    judge: Callable[[Evidence], Verdict | None]
    command: str = RULES

    def verdict(self, evidence: Evidence) -> Verdict:
        """What our numbers say; not tested where there are none."""
        return self.judge(evidence) or Verdict("not tested", f"not measured yet: `{self.command}`")


def graded(full: bool, part: bool, why: str) -> Verdict:
    """Reproduced, partly or not reproduced."""
    return Verdict("reproduced" if full else "partly" if part else "not reproduced", why)


def _listed(values: dict[tuple[str, str], float], digits: int = 1, unit: str = " %") -> str:
    return ", ".join(f"{model} on {dataset} {value:.{digits}f}{unit}" for (dataset, model), value in values.items())


def _saving(family: str, rows: Sequence[PaperRow]) -> Claim:
    low, high = min(r.drop_saved for r in rows), max(r.drop_saved for r in rows)
    mean = MEAN_SAVED[family]
    name = {"vgg": "VGG", "resnet": "ResNet"}[family]

    def judge(evidence: Evidence) -> Verdict | None:
        read = strategy_value("drop", "saved_time_percent")
        values = per_network(select(evidence.grids, "paper", is_family(family)), read)
        if not values:
            return None
        ours = fmean(values.values())
        return graded(
            ours >= low, ours >= mean / 2, f"`paper` saves {ours:.1f} % on average of {len(values)}: {_listed(values)}"
        )

    return Claim(
        f"Dropping saves {low:.0f} to {high:.0f} % of the time on {name}, {mean:.2f} % on average.",
        f"Table {1 if family == 'vgg' else 2}, section 6",
        f"Mean ΔT of variant `paper` over networks: ≥ {low} % (the least in the paper's table) reproduced, "
        f"≥ {mean / 2:.1f} % (half the paper's mean) partly.",
        judge,
    )


def _freezing(evidence: Evidence) -> Verdict | None:
    cells = select(evidence.grids, "paper")
    full = per_network(cells, strategy_value("freeze-full", "saved_time_percent"))
    if not full:
        return None
    strong = per_network(cells, strategy_value("freeze", "saved_time_percent"))
    more = f"; strong freezing (no graph below the boundary) saves {fmean(strong.values()):.1f} %" if strong else ""
    ours = fmean(full.values())
    return graded(ours <= 8, ours <= 16, f"freezing the paper's way saves {ours:.1f} %: {_listed(full)}{more}")


def _accuracy(evidence: Evidence) -> Verdict | None:
    read = summary_value("accuracy_difference")
    found = {f: per_network(select(evidence.grids, "paper", is_family(f)), read) for f in MOST_LOST}
    if not any(found.values()):
        return None
    held = [value >= -MOST_LOST[family] for family, values in found.items() for value in values.values()]
    means = [fmean(values.values()) >= -MOST_LOST[family] for family, values in found.items() if values]
    why = "; ".join(_listed(values, 2, "") for values in found.values() if values)
    return graded(all(held), all(means), f"accuracy of drop less that of sgd, points: {why}")


def _same_accuracy(evidence: Evidence) -> Verdict | None:
    known = [c.summary for grid in evidence.grids for c in grid.cells if c.summary]
    same = [s["same_as_freeze"] for s in known if s["same_as_freeze"] is not None]
    if not same:
        return None
    arms = [[s["strategies"][name]["accuracy"] for name in ("drop", "freeze")] for s in known
            if s["same_as_freeze"] is not None]  # fmt: skip
    close = all(None not in pair and abs(pair[0] - pair[1]) <= 0.01 for pair in arms)
    why = f"loss, accuracy and cut of every epoch are the same numbers in {sum(same)} of {len(same)} experiments"
    return graded(all(same), close, f"{why}; the tests compare the weights bit for bit")


def _macs(evidence: Evidence) -> Verdict | None:
    read, cells = strategy_value("drop", "saved_macs_percent"), select(evidence.grids, "paper")
    families = {f: per_network([c for c in cells if is_family(f)(c.model)], read) for f in ("vgg", "resnet")}
    values = {key: value for part in families.values() for key, value in part.items()}
    if not values:
        return None
    enough = all(value >= 17 for value in values.values())
    grows = [rho for rho in map(_growth, families.values()) if rho is not None]
    order = ", ".join(f"{rho:+.2f}" for rho in grows) or "not measured"
    why = f"{_listed(values)}; rank correlation with depth within a family: {order}"
    return graded(enough and bool(grows) and min(grows) >= 0.5, enough, why)


def _growth(values: dict[tuple[str, str], float]) -> float | None:
    """Rank correlation of the saving with the depth; None for fewer than three networks."""
    depths: dict[int, list[float]] = {}
    for (_, model), value in values.items():
        network = network_of(model)
        if network:
            depths.setdefault(network[1], []).append(value)
    ordered = [fmean(depths[depth]) for depth in sorted(depths)]
    return rank_correlation(ordered) if len(ordered) > 2 else None


def _order(evidence: Evidence) -> Verdict | None:
    def mean(with_norm: bool) -> float | None:
        cells = [c for g in evidence.grids for c in g.cells if c.summary and has_batch_norm(c.model) is with_norm]
        values = per_network(cells, summary_value("score_order"))
        return fmean(values.values()) if values else None

    with_norm, without = mean(True), mean(False)
    if with_norm is None and without is None:
        return None
    first, second = with_norm is not None and with_norm >= 0.3, without is not None and without <= -0.3
    said = ["not measured" if rho is None else f"{rho:+.2f}" for rho in (with_norm, without)]
    return graded(first and second, first or second, f"with BatchNorm {said[0]}, without {said[1]}"
                  + ("" if without is not None else f" (`{FIG_3}`)"))  # fmt: skip


def _together(evidence: Evidence) -> Verdict | None:
    paper, free = (_drop_sizes(select(evidence.grids, name)) for name in ("paper", "prefix-sum"))
    if not free:
        sizes = f"`paper` dropped {min(paper)} to {max(paper)} layers at a time (n = {len(paper)})" if paper else ""
        missing = f"{sizes}, but Algorithm 1 forbids it one; `prefix-sum`, free to, is not measured yet: `{RULES}`"
        return Verdict("not tested", missing) if paper else None
    several = sum(size > 1 for size in free) / len(free)
    also = f"; `paper`, which may not drop one, {min(paper)} to {max(paper)}" if paper else ""
    sizes = f"`prefix-sum` dropped {min(free)} to {max(free)} layers at a time"
    why = f"{sizes}, several in {100 * several:.0f} % of {len(free)} drops{also}"
    return graded(several == 1, several >= 0.75, why)


def _drop_sizes(cells: Sequence[Cell]) -> list[int]:
    return [after - before for cell in cells for _, before, after in (cell.summary or {}).get("drops", [])]


def _store_epochs(evidence: Evidence) -> Verdict | None:
    ratios = [r for g in evidence.grids for c in g.cells if c.summary for r in c.summary["store_cost"]]
    if not ratios:
        return None
    middle, worst = median(ratios), max(ratios)
    why = f"a storing epoch takes {middle:.2f} × the epoch before it (median of {len(ratios)}; most {worst:.2f})"
    return graded(middle <= 1.15, middle <= 1.5, why)


PICKLE, BOUND = "pickle per sample", "sequential write"
"""Arms of benchmarks/store.py: the paper's way to store, and what the disk does at best, which is no store."""


def _pickle(evidence: Evidence) -> Verdict | None:
    cases: dict[str, dict[str, float]] = {}
    for row in evidence.store:
        if row["arm"] != BOUND:
            cases.setdefault(f"{row['section']}, {row['case']}", {})[row["arm"]] = row["median"]
    known = {case: arms for case, arms in cases.items() if {PICKLE, "torch.save", "npy files"} <= arms.keys()}
    if not known:
        return None
    won = [arms[PICKLE] >= max(arms["torch.save"], arms["npy files"]) for arms in known.values()]
    fastest = {case: max(arms, key=lambda arm, rates=arms: rates[arm]) for case, arms in known.items()}  # type: ignore[misc]
    why = "; ".join(_rates(case, arms, fastest[case]) for case, arms in known.items())
    return graded(all(arm == PICKLE for arm in fastest.values()), all(won),
                  f"faster than files of NumPy and PyTorch in {sum(won)} of {len(won)} cases. GB/s: {why}")  # fmt: skip


def _rates(case: str, arms: dict[str, float], fastest: str) -> str:
    shown = dict.fromkeys([PICKLE, "npy files", "torch.save", *(["LmdbStore"] if "LmdbStore" in arms else []), fastest])
    return f"{case}: " + ", ".join(f"{arm} {arms[arm]:.2f}" for arm in shown)


CLAIMS = (
    _saving("vgg", TABLE_1),
    _saving("resnet", TABLE_2),
    Claim(
        "Freezing with the same decisions saves only 1 to 8 % of the time.",
        "Tables 1, 2",
        "Mean ΔT of `freeze-full` (frozen parameters, whole graph), variant `paper`: ≤ 8 % reproduced, ≤ 16 % partly.",
        _freezing,
    ),
    Claim(
        "Dropping loses at most 2.38 points of accuracy on VGG and 3.2 on ResNet.",
        "section 4.3",
        "Variant `paper`: no network's mean loss above its family's limit reproduced; no family's mean partly.",
        _accuracy,
    ),
    Claim(
        "Freezing and dropping reach the same accuracy.",
        "columns A of Tables 1, 2",
        "Loss, accuracy and cut of every epoch equal in all experiments that ran both reproduced; "
        "final accuracies within one point in all partly.",
        _same_accuracy,
    ),
    Claim(
        "Dropping saves 17 to 84 % of the forward MACs, more for deeper networks.",
        "Table 3",
        "Variant `paper`: ≥ 17 % on every network partly; reproduced if moreover the rank correlation of saving and "
        "depth is ≥ 0.5 in each family of three networks or more.",
        _macs,
    ),
    Claim(
        "With BatchNorm layers stop learning from the input on; without it the order is reversed.",
        "Fig. 3, section 4.1",
        "Rank correlation of P with nearness to the input (median over the epochs before the first drop, mean over "
        "networks): ≥ 0.3 with BatchNorm and ≤ -0.3 without reproduced, one of the two partly.",
        _order,
        FIG_3,
    ),
    Claim(
        "Several layers are dropped together, never one by one.",
        "section 5",
        "Judged on variant `prefix-sum`, for Algorithm 1's n* > 1 forbids `paper` to drop one layer: all drops of "
        "several layers reproduced, ≥ 75 % partly.",
        _together,
    ),
    Claim(
        "Epochs that store feature maps cost little.",
        "Fig. 5, section 5",
        "Seconds of a storing epoch over those of the epoch before it, median: ≤ 1.15 reproduced, ≤ 1.5 partly.",
        _store_epochs,
    ),
    Claim(
        "Pickle is the fastest way to store feature maps (the paper compared files of NumPy and PyTorch).",
        "section 4",
        "`pickle per sample` at least as fast as `npy files` and `torch.save`, durable writes and warm reads, in all "
        "cases partly; reproduced if moreover no other store measured is faster in any.",
        _pickle,
        STORE,
    ),
)
"""In the order of the page."""
