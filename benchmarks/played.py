"""The tracker on videos that nobody tuned it on: the same sequences backwards, and with frames left out.

    python benchmarks/played.py [FOLDER] [--plays "forwards; backwards, every 2nd"] [--arms drop] [--peers csrt,nano]
                                [--models DIR] [--sequences a,b] [--seeds 0] [--set key=value] [--output FILE]

FOLDER holds sequences as ``streamdrop evaluate`` takes them; left out, it is ${STREAMDROP_DATA}/sequences. Backwards
the first box is the last true one, so that another person's draw, another size and another view of the target are
learned; with every second to fourth frame only it moves and changes two to four times as fast. AUC is the mean over
sequences; *elsewhere* counts frames without overlap that the tracker did not call lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from streamdrop.atomic import replace_text
from streamdrop.columns import align
from streamdrop.errors import DataError, StreamdropError
from streamdrop.evaluation.arms import tracker_builder
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.jobs import run_job, schedule
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.sequences import VideoSequence, read_sequences

STEPS = {"": 1, "every 2nd": 2, "every 3rd": 3, "every 4th": 4}
PLAYS = {
    ", ".join(filter(None, (way, step))): (sign * stride)
    for way, sign in (("forwards", 1), ("backwards", -1))
    for step, stride in STEPS.items()
}


def main() -> int:
    options = parse()
    try:
        sequences = read_sequences(options.folder, options.sequences)
        build = tracker_builder(None, options.set)
        outcomes: list[tuple[str, Outcome]] = []
        for play in options.plays:
            turned = [played(sequence, play) for sequence in sequences]
            for job in schedule(turned, options.arms, options.peers, options.seeds):
                outcome = run_job(job, build, options.models, lambda index: None)
                print(f"{play}, {job}: AUC {outcome.scores['auc']:.3f}", file=sys.stderr, flush=True)
                outcomes.append((play, outcome))
    except StreamdropError as error:
        print(f"played.py: {error}", file=sys.stderr)
        return 1
    rows = summarise(outcomes, options)
    found = {"command": " ".join(["python", *sys.argv]), "hardware": describe_hardware(), "rows": rows}
    if options.output is not None:
        replace_text(options.output, json.dumps(found, indent=1) + "\n")
    print(table(rows, [*options.arms, *options.peers]), describe_hardware(), sep="\n")
    return 0


def played(sequence: VideoSequence, play: str) -> VideoSequence:
    """Its frames as ``play`` shows them, from the first on whose target is known. Raises DataError for too few."""
    chosen = list(range(len(sequence))[:: PLAYS[play]])
    known = [at for at, index in enumerate(chosen) if not np.isnan(sequence.truth[index]).any()]
    kept = chosen[known[0] :] if known else []
    if len(kept) < 2:
        raise DataError(f"{sequence.name}, {play}: fewer than two frames are left to track: leave one of them out")
    frames = tuple(sequence.frames[index] for index in kept)
    return replace(sequence, frames=frames, truth=sequence.truth[kept], absent=sequence.absent[kept])


def summarise(outcomes: Sequence[tuple[str, Outcome]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By play, and over all plays, what each arm came to."""
    arms = [*options.arms, *options.peers]
    plays = {play: [o for name, o in outcomes if name == play] for play in options.plays}
    plays["all"] = [o for _, o in outcomes]
    return {play: {arm: row([o for o in own if o.arm == arm]) for arm in arms} for play, own in plays.items()}


def row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over runs, and each run's AUC."""
    by_seed = {o.seed: [x.scores["auc"] for x in outcomes if x.seed == o.seed] for o in outcomes}
    overlaps = [(o.overlaps, np.asarray(o.run.lost, bool)) for o in outcomes]
    return {
        "runs": len(outcomes),
        "auc": fmean(o.scores["auc"] for o in outcomes),
        "seeds": {seed: fmean(values) for seed, values in by_seed.items()},
        "precision": fmean(o.scores["precision"] for o in outcomes),
        "frames": int(sum(np.isfinite(overlap).sum() for overlap, _ in overlaps)),
        "elsewhere": int(sum(((overlap == 0) & ~lost).sum() for overlap, lost in overlaps)),
        "each": [(o.sequence, o.seed, o.scores["auc"]) for o in outcomes],
    }


def table(rows: dict[str, dict[str, Any]], arms: Sequence[str]) -> str:
    """A line for each play."""
    head = ["", "runs", "frames", *(f"{arm}: {name}" for arm in arms for name in ("AUC", "lowest", "elsewhere"))]
    lines = [
        [play, str(own[arms[0]]["runs"]), str(own[arms[0]]["frames"])]
        + [
            text
            for arm in arms
            for text in (
                f"{own[arm]['auc']:.3f}",
                f"{min(auc for *_, auc in own[arm]['each']):.3f}",
                str(own[arm]["elsewhere"]),
            )
        ]
        for play, own in rows.items()
    ]
    return "\n".join(align([head, *lines], left=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("STREAMDROP_DATA")
    parser.add_argument("folder", nargs="?", default=data and f"{data}/sequences")
    parser.add_argument("--plays", type=parts, default=list(PLAYS), help="of " + "; ".join(PLAYS) + ", by semicolons")
    parser.add_argument("--arms", type=words, default=["drop"])
    parser.add_argument("--peers", type=words, default=[])
    parser.add_argument("--models", type=Path, help="folder of the rivals' networks")
    parser.add_argument("--sequences", type=words)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in words(text)], default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parser.parse_args()
    if options.folder is None:
        parser.error("no FOLDER and STREAMDROP_DATA is not set: give a folder of sequences")
    if unknown := set(options.plays) - set(PLAYS):
        parser.error(f"{'; '.join(sorted(unknown))}: not known; choose from {'; '.join(PLAYS)}")
    torch.set_num_threads(1)
    return options


def words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
