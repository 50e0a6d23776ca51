"""Clocks, ratios, rows, files: what every section of the store benchmark uses."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Target:
    """What a row is held against: its ratio to ``rival`` (measured beside it), or its own value where there is none.

    ``least`` and ``most`` bound the median; neither: shown for information.
    """

    rival: str = ""
    least: float | None = None
    most: float | None = None


@dataclass
class Row:
    """One arm's values, a value per turn, and what came of its targets."""

    section: str
    case: str
    arm: str
    unit: str
    values: list[float]
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row with its median."""
        return {**asdict(self), "median": statistics.median(self.values), "n": len(self.values)}


def taking_turns(arms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """A B C … A B C …: a slow moment of the machine meets every arm."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, turn in arms.items():
            values[name].append(turn())
    return values


def rows_of(
    section: str,
    case: str,
    unit: str,
    values: Mapping[str, list[float]],
    targets: Mapping[str, Sequence[Target]],
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """A row per arm, judged by its targets; an arm without any is not judged."""
    rows = []
    for arm, own in values.items():
        verdicts = [verdict(own, target, values) for target in targets.get(arm, ()) if target.rival != arm]
        row = Row(section, case, arm, unit, own, [v for v in verdicts if v], (notes or {}).get(arm, ""))
        rows.append(row)
    return rows


def verdict(own: list[float], target: Target, values: Mapping[str, list[float]]) -> dict[str, Any] | None:
    """Median and range of the turn-by-turn ratios, and whether the target is met; None when the rival did not run."""
    if target.rival and target.rival not in values:
        return None
    ratios = [a / b for a, b in zip(own, values[target.rival], strict=True)] if target.rival else own
    median = statistics.median(ratios)
    met: bool | None = None
    if target.least is not None:
        met = median >= target.least
    elif target.most is not None:
        met = median <= target.most
    return {"ratio": median, "low": min(ratios), "high": max(ratios), **asdict(target), "met": met}


def table(rows: Sequence[Row]) -> str:
    """The rows of one section and case as text."""
    first, wide = rows[0], max(len(row.arm) for row in rows)
    lines = [f"== {first.section}: {first.case} ({first.unit}, median (min–max), n = {len(first.values)})"]
    for row in rows:
        span = f"{number(statistics.median(row.values)):>8}{spread(row.values)}"
        parts = [f"  {row.arm:<{wide}} {span:<27}", *map(in_words, row.verdicts), row.note]
        lines.append("  ".join(part for part in parts if part).rstrip())
    return "\n".join(lines)


def in_words(judged: Mapping[str, Any]) -> str:
    """A verdict as it stands in the table."""
    span = f"{number(judged['ratio'])} × {judged['rival']}{spread((judged['low'], judged['high']))}"
    limit = f"≥ {judged['least']}" if judged["least"] is not None else f"≤ {judged['most']}"
    outcome = "" if judged["met"] is None else f"[{limit}: {'met' if judged['met'] else 'MISSED'}]"
    return f"{span} {outcome}".rstrip() if judged["rival"] else outcome


def spread(values: Sequence[float]) -> str:
    """The range, where there is one."""
    low, high = number(min(values)), number(max(values))
    return f" ({low}–{high})" if low != high else ""


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def key_of(index: int) -> bytes:
    """A sample's key: big-endian, as keys are."""
    return index.to_bytes(8, "big")


def put_all(store: Any, samples: torch.Tensor, first: int = 0, limit: int = 256) -> None:
    """Put the rows of ``samples`` under the keys from ``first`` on, ``limit`` or at most 64 MB at a time."""
    size = min(limit, max(1, (64 << 20) // samples[0].nbytes))
    for start in range(0, len(samples), size):
        rows = samples[start : start + size].unbind(0)
        store.put_many({key_of(first + start + i): (row,) for i, row in enumerate(rows)})


def files_in(folder: Path) -> Iterable[Path]:
    """Every file and folder below, and the folder itself."""
    yield folder
    for at, folders, files in os.walk(folder):
        yield from (Path(at, name) for name in (*folders, *files))


def disk_bytes(folder: Path) -> int:
    """Bytes that the folder takes on disk: allocated blocks of all that is in it."""
    return sum(path.lstat().st_blocks * 512 for path in files_in(folder))


def drop_cache(folder: Path) -> None:
    """Write the folder's files out and let the kernel forget their pages; works for files that nobody has mapped."""
    for path in files_in(folder):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def resident(process: int | str = "self") -> dict[str, int]:
    """Bytes of a process in memory: its own (anon) and mapped files' (file)."""
    status = Path(f"/proc/{process}/status").read_text()
    return {name: int(status.split(f"Rss{name.title()}:")[1].split()[0]) << 10 for name in ("anon", "file")}
