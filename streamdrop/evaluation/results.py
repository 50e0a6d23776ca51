"""What an evaluation found, as plain data (``results.json``) and as a table.

An arm's score is the mean over seeds of the mean over sequences; its spread the standard deviation over seeds of that
mean (None for one seed). Its fps are all frames over all seconds; its rounds are those of all its runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamdrop._version import __version__
from streamdrop.atomic import replace_text
from streamdrop.boxes import Array
from streamdrop.columns import align
from streamdrop.errors import OutputError
from streamdrop.evaluation.comparisons import compare_perturbed, compare_realtime, mean, unseen
from streamdrop.evaluation.confidence import Calibration, LostCount
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.paired import SCORES, paired_differences
from streamdrop.evaluation.protocol import Run


def collect(
    outcomes: Sequence[Outcome], arms: Iterable[str], hardware: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """All of ``results.json``; what is not a number becomes None.

    ``arms`` and ``sequences`` are of the one pass; ``realtime`` and ``perturbed`` hold the same of theirs, if any.
    """
    arms = list(arms)
    plain = [outcome for outcome in outcomes if outcome.protocol == "ope"]
    results = {"hardware": hardware, "version": __version__, "settings": settings, **_part(plain, arms)}
    results["paired"] = paired_differences(results["sequences"], [arm for arm in arms if arm in results["arms"]])
    for protocol, compare in (("realtime", compare_realtime), ("perturbed", compare_perturbed)):
        own = [outcome for outcome in outcomes if outcome.protocol == protocol]
        if own:
            part = _part(own, arms)
            for arm, summary in part["arms"].items():
                summary |= compare([o for o in own if o.arm == arm], [o for o in plain if o.arm == arm])
            results[protocol] = part
    found: dict[str, Any] = _plain(results)
    return found


def _part(outcomes: Sequence[Outcome], arms: Sequence[str]) -> dict[str, Any]:
    by_arm = {arm: [o for o in outcomes if o.arm == arm] for arm in arms}
    return {
        "arms": {arm: summarise_arm(part) for arm, part in by_arm.items() if part},
        "sequences": [_record(outcome) for outcome in outcomes],
    }


def summarise_arm(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One arm's row: scores, their spread over seeds, speed, rounds, memory, curves."""
    runs = [outcome.run for outcome in outcomes]
    seeds = sorted({outcome.seed for outcome in outcomes})
    means = {key: [mean(o.scores[key] for o in outcomes if o.seed == seed) for seed in seeds] for key in SCORES}
    updates = sum(run.updates for run in runs)
    told = sum((o.lost for o in outcomes), LostCount())
    calibration = _pooled([o.calibration for o in outcomes if o.calibration is not None])
    memory = [o.peak_mb for o in outcomes if o.peak_mb is not None]
    return {
        **{key: mean(values) for key, values in means.items()},
        "fps": updates / max(sum(run.update_s for run in runs), 1e-9),
        "frame_ms": _percentiles([ms for run in runs for ms in _update_ms(run)]),
        "round_ms": _percentiles([ms for run in runs for ms in run.round_ms]),
        "spread": {key: float(np.std(values, ddof=1)) if len(seeds) > 1 else None for key, values in means.items()},
        "seeds": seeds,
        "runs": len(runs),
        "rounds": sum(len(run.round_ms) for run in runs),
        "frames": sum(len(run.ms) for run in runs),
        "lost": int(sum(run.lost.sum() for run in runs)),
        "lost_precision": told.precision,
        "lost_recall": told.recall,
        "lost_counts": asdict(told),
        "calibration_error": calibration.error if calibration else None,
        "cpu_fps": updates / max(sum(run.cpu_s for run in runs), 1e-9),
        "init_s": mean(run.init_s for run in runs),
        "peak_mb": max(memory) if memory else None,
        "curves": {
            "success": _mean_curve([o.curves[0] for o in outcomes]),
            "precision": _mean_curve([o.curves[1] for o in outcomes]),
            "calibration": calibration.curve() if calibration else [],
        },
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write ``results.json`` whole or not at all; raises OutputError."""
    try:
        replace_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give a folder you may write") from None


def format_table(results: dict[str, Any]) -> str:
    """The arms as lines of text: scores ± spread over seeds, speed, cost of rounds."""
    head = ("arm", "AUC", "precision", "AO", "SR0.5", "fps", "round ms (p99)", "rounds", "lost (P, R)", "ECE", "init s",
            "peak MB")  # fmt: skip
    rows = [head, *(_row(name, arm) for name, arm in results["arms"].items())]
    sequences = len({record["name"] for record in results["sequences"]})
    seeds = max(len(arm["seeds"]) for arm in results["arms"].values())
    spread = "; ± is the standard deviation over seeds" if seeds > 1 else ""
    return "\n".join(
        [
            *align(rows),
            *_more_lines(results),
            f"{_counted(sequences, 'sequence')}{_followed(results)}, {_counted(seeds, 'seed')}{spread}; "
            f"{results['hardware']}",
            "lost: frames reported lost (P: of these, the target was absent or the box overlapped nothing; R: of all "
            "such frames, those reported); ECE: expected calibration error of the score (0.5: even odds of overlap "
            "above 0.5)",
        ]
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _followed(results: dict[str, Any]) -> str:
    videos = {record["video"] for record in results["sequences"] if record["target"] is not None}
    how = "in one pass, frames/s are the video's" if results["settings"].get("together") else "each by itself"
    return f" ({', '.join(sorted(videos))}: several targets, {how})" if videos else ""


def _more_lines(results: dict[str, Any]) -> list[str]:
    """Lines on paired differences, and on real time and perturbed first boxes where they were run."""
    lines = []
    for row in results["paired"]:
        interval = format_interval(row["auc"])
        lines.append(
            f"{row['arm']} - {row['against']}: AUC {interval}, "
            f"{_counted(row['sequences'], 'sequence')}, {_counted(row['n'], 'pair')}"
        )
    for name, arm in results.get("realtime", {"arms": {}})["arms"].items():
        lines.append(
            f"in real time, {name}: AUC {format_score(arm['auc'], arm['spread']['auc'])} ({0 - arm['auc_loss']:+.3f}), "
            f"{100 * arm['unseen_share']:.1f} % of the frames went by unseen; a frame takes "
            f"{_milliseconds(arm['frame_ms'])}; rounds: {arm['rounds'] - arm['cut_short']} whole, "
            f"{arm['cut_short']} cut short, {arm['put_off']} put off"
        )
    for name, arm in results.get("perturbed", {"arms": {}})["arms"].items():
        lines.append(
            f"from {arm['variants']} first boxes off by up to 10 %, {name}: AUC {format_score(arm['auc'], None)} "
            f"({0 - arm['auc_loss']:+.3f}), worst {format_score(arm['auc_worst'], None)}, "
            f"spread {format_score(arm['auc_spread'], None)}"
        )
    return lines


def _row(name: str, arm: dict[str, Any]) -> tuple[str, ...]:
    rounds = arm["round_ms"]
    return (
        name,
        *(format_score(arm[key], arm["spread"][key]) for key in SCORES),
        f"{arm['fps']:.1f}",
        "-" if rounds["median"] is None else f"{rounds['median']:.0f} ({rounds['p99']:.0f})",
        str(arm["rounds"]),
        f"{100 * arm['lost'] / arm['frames']:.0f} % ({_share(arm['lost_precision'])}, {_share(arm['lost_recall'])})",
        format_score(arm["calibration_error"], None),
        f"{arm['init_s']:.2f}",
        "-" if arm["peak_mb"] is None else f"{arm['peak_mb']:.0f}",
    )


def _milliseconds(found: dict[str, float | None]) -> str:
    """``21 ms (p99 38)``."""
    return "-" if found["median"] is None else f"{found['median']:.0f} ms (p99 {found['p99']:.0f})"


def format_interval(estimate: dict[str, float | None]) -> str:
    """``+0.012 (95 %: -0.003 … +0.027)``, as much of it as is known."""
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    if mean is None:
        return "-"
    return f"{mean:+.3f}" if low is None or high is None else f"{mean:+.3f} (95 %: {low:+.3f} … {high:+.3f})"


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
        "first_cuts": list(run.first_cuts),
        "video": outcome.video or outcome.sequence,
        "target": outcome.target,
        "start": outcome.start,
        "lost": int(run.lost.sum()),
        "lost_precision": outcome.lost.precision,
        "lost_recall": outcome.lost.recall,
        "calibration_error": outcome.calibration.error if outcome.calibration else None,
        "cpu_fps": run.updates / max(run.cpu_s, 1e-9),
        "frame_ms": _percentiles(_update_ms(run)),
        "unseen": unseen(run),
        **({"variant": outcome.variant} if outcome.variant else {}),
        "round_ms": list(run.round_ms),
        "round_frames": list(run.round_frames),
        "peak_mb": outcome.peak_mb,
    }


def _mean_curve(curves: Sequence[Array]) -> list[float]:
    """The mean of those that are known; NaN where none is."""
    known = [curve for curve in curves if not np.isnan(curve).any()]
    return np.mean(known or curves, axis=0).tolist()  # type: ignore[no-any-return]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _pooled(parts: Sequence[Calibration]) -> Calibration | None:
    return sum(parts[1:], parts[0]) if parts else None


def _update_ms(run: Run) -> list[float]:
    return [ms for ms in run.ms[1:].tolist() if math.isfinite(ms)]


def _percentiles(ms: Sequence[float]) -> dict[str, float | None]:
    if not ms:
        return {"median": None, "p99": None}
    return {"median": float(np.median(ms)), "p99": float(np.percentile(ms, 99))}


def _plain(value: Any) -> Any:
    """JSON has no NaN: None stands for it; numbers keep six digits."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
