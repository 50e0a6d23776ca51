"""How well the tracker tracks and what its rounds cost, arm against arm and against a rival, on sequences with truth.

    python benchmarks/tracking.py [FOLDER] [--arms drop,full,fixed,none] [--peers csrt] [--seeds 0,1,2] [--frames N]

FOLDER holds NAME/color/*.jpg and NAME/groundtruth.txt; left out, it is ${STREAMDROP_DATA}/sequences. Prints tables and
writes benchmark.json beside the evaluation's own results.json and report.html. Differences are paired: the same
sequence and seed under two arms. Memory is measured in a process per arm, on the longest sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from streamdrop.cli.arguments import names, wholes, words
from streamdrop.errors import StreamdropError
from streamdrop.evaluation.arms import evaluate
from streamdrop.evaluation.sequences import read_sequences


def main() -> int:
    options = parse()
    try:
        results = evaluate(
            options.folder,
            options.arms,
            options.peers,
            options.sequences,
            options.frames,
            options.seeds,
            options.output,
            options.config,
            options.set,
        )
        report = {
            "command": " ".join(["python", *sys.argv]),
            "hardware": results["hardware"],
            "arms": {name: without_curves(arm) for name, arm in results["arms"].items()},
            "paired": [paired(results, options.base, arm) for arm in results["arms"] if arm != options.base],
            "round_cost": round_cost(results, options.base),
            "memory_mb": {arm: peak_memory(options, arm) for arm in options.arms} if options.memory else {},
        }
    except StreamdropError as error:
        print(f"tracking.py: {error}", file=sys.stderr)
        return 1
    print(describe(report, options.base))
    path = Path(options.output) / "benchmark.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"figures: {path}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("STREAMDROP_DATA")
    parser.add_argument("folder", nargs="?", default=data and f"{data}/sequences")
    parser.add_argument("--arms", type=names, default=["drop", "full", "fixed", "none"])
    parser.add_argument("--peers", type=words, default=["csrt"])
    parser.add_argument("--sequences", type=names)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--seeds", type=wholes, default=[0, 1, 2])
    parser.add_argument("--base", default="drop", help="the arm that the others are compared with")
    parser.add_argument("--config")
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--output", default="runs/benchmark-tracking")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the runs for memory")
    options = parser.parse_args()
    if options.folder is None:
        parser.error("no FOLDER and STREAMDROP_DATA is not set: give a folder of sequences")
    return options


def paired(results: dict[str, Any], base: str, other: str) -> dict[str, Any]:
    """Difference in AUC, ``base`` minus ``other``, over equal (sequence, seed); a rival's one run meets every seed."""
    found = {(r["name"], r["arm"], r["seed"]): r["auc"] for r in results["sequences"]}
    seeds = results["arms"][other]["seeds"]
    differences = [
        auc - found[name, other, seed if seed in seeds else seeds[0]]
        for (name, arm, seed), auc in found.items()
        if arm == base
    ]
    n = len(differences)
    spread = statistics.stdev(differences) if n > 1 else math.nan
    fps = {arm: results["arms"][arm]["fps"] for arm in (base, other)} if differences else {}
    return {
        "arms": [base, other],
        "n": n,
        "auc": statistics.fmean(differences) if n else None,
        "standard_error": spread / math.sqrt(n) if n > 1 else None,
        "fps_ratio": fps[base] / fps[other] if n else None,
    }


def round_cost(results: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """Median milliseconds of a round, ``base`` against the others, and their ratio per (sequence, seed)."""
    found = {(r["name"], r["arm"], r["seed"]): r["round_ms"] for r in results["sequences"] if r["round_ms"]}
    rows = []
    for other in results["arms"]:
        pairs = [
            (statistics.median(ms), statistics.median(found[name, other, seed]))
            for (name, arm, seed), ms in found.items()
            if arm == base and other != base and (name, other, seed) in found
        ]
        if pairs:
            ratios = [mine / theirs for mine, theirs in pairs]
            rows.append(
                {
                    "arms": [base, other],
                    "n": len(pairs),
                    "median_ms": [statistics.median(column) for column in zip(*pairs, strict=True)],
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                }
            )
    return rows


def peak_memory(options: argparse.Namespace, arm: str) -> float:
    """Most resident memory, MiB, of a fresh process that runs one arm on the longest sequence."""
    longest = max(read_sequences(options.folder, options.sequences, options.frames), key=len).name
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_memory, (options.folder, arm, longest, options.frames, options.config, options.set))


def measure_memory(
    folder: str, arm: str, sequence: str, frames: int | None, config: str | None, overrides: list[str]
) -> float:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for the rest of this process)
    with tempfile.TemporaryDirectory() as output:
        evaluate(folder, [arm], (), [sequence], frames, [0], output, config, overrides)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def without_curves(arm: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arm.items() if key != "curves"}


def describe(report: dict[str, Any], base: str) -> str:
    """Paired differences, cost of rounds and memory as lines of text."""
    lines = ["", f"{base} against     AUC, paired (n)               fps"]
    for row in report["paired"]:
        if row["n"]:
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f} s.e."
            lines.append(
                f"  {row['arms'][1]:<12}  {row['auc']:+.3f}{error} ({row['n']})".ljust(46) + f"× {row['fps_ratio']:.2f}"
            )
    if report["round_cost"]:
        lines += ["", "round, median ms"]
    for row in report["round_cost"]:
        (mine, theirs), (low, high) = row["median_ms"], row["ratio_range"]
        name = f"  {row['arms'][0]} / {row['arms'][1]}"
        lines.append(f"{name:<18}{mine:.1f} / {theirs:.1f} = {row['ratio']:.3f} ({low:.3f} … {high:.3f}, n {row['n']})")
    if report["memory_mb"]:
        memory = ", ".join(f"{arm} {mb:.0f} MB" for arm, mb in report["memory_mb"].items())
        lines += ["", f"peak memory of a process: {memory}"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
