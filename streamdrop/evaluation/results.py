"""What an evaluation found, as plain data (``results.json``) and as a table.

An arm's score is the mean over seeds of the mean over sequences; its spread the standard deviation over seeds of that
mean (None for one seed). Its fps are all frames over all seconds; its rounds are those of all its runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamdrop._version import __version__
from streamdrop.boxes import Array
from streamdrop.errors import OutputError
from streamdrop.evaluation.protocol import Run

SCORES = ("auc", "precision", "ao", "sr50")


@dataclass(frozen=True)
class Outcome:
    """One run and its scores; ``curves`` are success [21] and precision [51], ``peak_mb`` the process's peak in MiB."""

    sequence: str
    arm: str
    seed: int
    start: int
    run: Run
    scores: dict[str, float]
    curves: tuple[Array, Array]
    peak_mb: float | None = None


def collect(
    outcomes: Sequence[Outcome], arms: Iterable[str], hardware: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """All of ``results.json``; what is not a number becomes None."""
    by_arm = {arm: [o for o in outcomes if o.arm == arm] for arm in arms}
    results = {
        "hardware": hardware,
        "version": __version__,
        "settings": settings,
        "arms": {arm: summarise_arm(part) for arm, part in by_arm.items() if part},
        "sequences": [_record(outcome) for outcome in outcomes],
    }
    plain: dict[str, Any] = _plain(results)
    return plain


def summarise_arm(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One arm's row: scores, their spread over seeds, speed, rounds, memory, curves."""
    runs = [outcome.run for outcome in outcomes]
    seeds = sorted({outcome.seed for outcome in outcomes})
    means = {key: [_mean(o.scores[key] for o in outcomes if o.seed == seed) for seed in seeds] for key in SCORES}
    updates = sum(len(run.ms) - 1 for run in runs)
    memory = [o.peak_mb for o in outcomes if o.peak_mb is not None]
    return {
        **{key: _mean(values) for key, values in means.items()},
        "fps": updates / max(sum(run.update_s for run in runs), 1e-9),
        "round_ms": _percentiles([ms for run in runs for ms in run.round_ms]),
        "spread": {key: float(np.std(values, ddof=1)) if len(seeds) > 1 else None for key, values in means.items()},
        "seeds": seeds,
        "runs": len(runs),
        "rounds": sum(len(run.round_ms) for run in runs),
        "frames": sum(len(run.ms) for run in runs),
        "lost": int(sum(run.lost.sum() for run in runs)),
        "cpu_fps": updates / max(sum(run.cpu_s for run in runs), 1e-9),
        "init_s": _mean(run.init_s for run in runs),
        "calibration_error": _mean(o.scores.get("calibration_error", math.nan) for o in outcomes),
        "peak_mb": max(memory) if memory else None,
        "curves": {
            "success": np.nanmean([o.curves[0] for o in outcomes], axis=0).tolist(),
            "precision": np.nanmean([o.curves[1] for o in outcomes], axis=0).tolist(),
        },
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write ``results.json`` whole or not at all; raises OutputError."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give a folder you may write") from None


def format_table(results: dict[str, Any]) -> str:
    """The arms as lines of text: scores ± spread over seeds, speed, cost of rounds."""
    head = ("arm", "AUC", "precision", "AO", "SR0.5", "fps", "round ms (p99)", "rounds", "lost", "init s", "peak MB")
    rows = [head, *(_row(name, arm) for name, arm in results["arms"].items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    sequences = len({record["name"] for record in results["sequences"]})
    seeds = max(len(arm["seeds"]) for arm in results["arms"].values())
    spread = "; ± is the standard deviation over seeds" if seeds > 1 else ""
    return "\n".join(
        [*lines, f"{sequences} sequences, {seeds} seed{'s' if seeds > 1 else ''}{spread}; {results['hardware']}"]
    )


def _row(name: str, arm: dict[str, Any]) -> tuple[str, ...]:
    rounds = arm["round_ms"]
    return (
        name,
        *(format_score(arm[key], arm["spread"][key]) for key in SCORES),
        f"{arm['fps']:.1f}",
        "-" if rounds["median"] is None else f"{rounds['median']:.0f} ({rounds['p99']:.0f})",
        str(arm["rounds"]),
        f"{100 * arm['lost'] / arm['frames']:.0f} %",
        f"{arm['init_s']:.2f}",
        "-" if arm["peak_mb"] is None else f"{arm['peak_mb']:.0f}",
    )


def format_score(value: float | None, spread: float | None) -> str:
    """``0.612 ± 0.004``, as much of it as is known."""
    if value is None:
        return "-"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _record(outcome: Outcome) -> dict[str, Any]:
    run = outcome.run
    return {
        "name": outcome.sequence,
        "arm": outcome.arm,
        "seed": outcome.seed,
        "frames": len(run.ms),
        **outcome.scores,
        "fps": run.fps,
        "init_s": run.init_s,
        "rounds": len(run.round_ms),
        "cuts": list(run.cuts),
        "start": outcome.start,
        "lost": int(run.lost.sum()),
        "cpu_fps": (len(run.ms) - 1) / max(run.cpu_s, 1e-9),
        "frame_ms": _percentiles(run.ms[1:].tolist()),
        "round_ms": list(run.round_ms),
        "round_frames": list(run.round_frames),
        "peak_mb": outcome.peak_mb,
    }


def _percentiles(ms: Sequence[float]) -> dict[str, float | None]:
    if not ms:
        return {"median": None, "p99": None}
    return {"median": float(np.median(ms)), "p99": float(np.percentile(ms, 99))}


def _mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are one; NaN when none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(value: Any) -> Any:
    """JSON has no NaN: None stands for it; numbers keep six digits."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
