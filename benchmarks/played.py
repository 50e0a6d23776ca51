"""The tracker on videos that nobody tuned it on: the same sequences backwards, and with frames left out.

    python benchmarks/played.py [FOLDER] [--plays "forwards,every 2nd backwards"] [--arms drop] [--peers csrt,nano]
                                [--models DIR] [--sequences a,b] [--seeds 0] [--set key=value] [--output FILE]

FOLDER holds sequences as ``streamdrop evaluate`` takes them; left out, it is ${STREAMDROP_DATA}/sequences. Backwards
the first box is the last true one, so that another person's draw, another size and another view of the target are
learned; with every second to fourth frame only it moves and changes two to four times as fast. AUC is the mean over
sequences; *elsewhere* counts frames without overlap, or without a target, that the tracker did not call lost.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sequence_options import parsed, parser_of

from streamdrop.atomic import replace_text
from streamdrop.cli.arguments import names
from streamdrop.columns import align
from streamdrop.errors import DataError, StreamdropError
from streamdrop.evaluation.arms import tracker_builder
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.jobs import run_job, schedule
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.results import collect
from streamdrop.evaluation.sequences import VideoSequence, read_sequences

FORWARDS = {"forwards": 1, "every 2nd": 2, "every 3rd": 3, "every 4th": 4}
BACKWARDS = {"backwards": -1, "every 2nd backwards": -2, "every 3rd backwards": -3, "every 4th backwards": -4}
PLAYS = FORWARDS | BACKWARDS


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
                print(f"{job}: AUC {outcome.scores['auc']:.3f}", file=sys.stderr, flush=True)
                outcomes.append((play, outcome))
    except StreamdropError as error:
        print(f"played.py: {error}", file=sys.stderr)
        return 1
    rows = summarise(outcomes, [*options.arms, *options.peers])
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
    name = f"{sequence.name} {play}"
    return replace(sequence, name=name, frames=frames, truth=sequence.truth[kept], absent=sequence.absent[kept])


def summarise(outcomes: Sequence[tuple[str, Outcome]], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By play, and over all plays, an arm's row as ``streamdrop evaluate`` has it, and the lowest AUC of its runs."""
    plays = {play: [o for name, o in outcomes if name == play] for play, _ in outcomes}
    plays["all"] = [o for _, o in outcomes]
    rows = {}
    for play, own in plays.items():
        found = collect(own, arms, "", {})
        lowest = {arm: min(one["auc"] for one in found["sequences"] if one["arm"] == arm) for arm in arms}
        rows[play] = {arm: {**row, "lowest": lowest[arm]} for arm, row in found["arms"].items()}
    return rows


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
                f"{own[arm]['lowest']:.3f}",
                str(own[arm]["lost_counts"]["missed"]),
            )
        ]
        for play, own in rows.items()
    ]
    return "\n".join(align([head, *lines], left=1))


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--plays", type=names, default=list(PLAYS), help="of " + ", ".join(PLAYS))
    parser.add_argument("--arms", type=names, default=["drop"])
    parser.add_argument("--peers", type=names, default=[])
    parser.add_argument("--models", type=Path, help="folder of the rivals' networks")
    parser.add_argument("--output", type=Path, help="write JSON here")
    return parsed(parser, plays=PLAYS)


if __name__ == "__main__":
    sys.exit(main())
