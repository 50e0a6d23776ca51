"""A target that is suddenly elsewhere in the frame: how soon it is found again, by a glance and by sweeping alone.

    python benchmarks/jumps.py [FOLDER] [--arms glance,sweep] [--jumps 3] [--every 2] [--sequences a,b] [--seeds 0]
                               [--set key=value] [--output FILE]

FOLDER holds sequences as ``streamdrop evaluate`` takes them; left out, it is ${STREAMDROP_DATA}/sequences. From each
jump on the frames are rolled, as on a cylinder both ways, so that no true box until the next jump is cut by the seam.
Arms: ``glance``, the tracker as it is; ``sweep``, with ``lost.likely=0``: a lost target is looked for outwards from
where it was. ``found`` is the share of jumps after which a box that overlaps the target by more than one half comes
before the next one, ``after`` the median of frames until then (those not found counted as the whole span).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sequence_options import parsed, parser_of

from streamdrop.atomic import replace_text
from streamdrop.boxes import Array, Box
from streamdrop.cli.arguments import names
from streamdrop.columns import align
from streamdrop.errors import DataError, StreamdropError
from streamdrop.evaluation.arms import tracker_builder
from streamdrop.evaluation.hardware import describe_hardware
from streamdrop.evaluation.jobs import Job, run_job, schedule
from streamdrop.evaluation.protocol import FrameReader, OnlineTracker
from streamdrop.evaluation.sequences import VideoSequence, read_sequences
from streamdrop.types import Image, Track

ARMS = {"glance": [], "sweep": ["lost.likely=0"]}
STEPS = 10  # shifts that are tried each way, in shares of the frame

Shift = tuple[int, int]
"""Pixels to the right and down."""


@dataclass(frozen=True)
class Jumping:
    """A sequence with the shift of every frame; ``starts``: the frames that follow a jump."""

    sequence: VideoSequence
    shifts: tuple[Shift, ...]
    starts: tuple[int, ...]


class Rolled:
    """A tracker that sees the frames of a sequence rolled; its boxes are where they are without."""

    def __init__(self, tracker: OnlineTracker, shifts: Sequence[Shift]) -> None:
        self._tracker, self._shifts, self._index = tracker, shifts, 0

    def init(self, image: Image, box: Box) -> Track:
        """Start on the first frame, which is not rolled."""
        self._index = 0
        return self._tracker.init(image, box)

    def update(self, image: Image) -> Track:
        """The next frame."""
        self._index += 1
        dx, dy = self._shifts[self._index]
        track = self._tracker.update(np.roll(image, (dy, dx), (0, 1)))
        x, y = track.box.centre
        height, width = image.shape[:2]
        u, v = (x - dx) % width, (y - dy) % height
        return replace(track, box=Box(u - track.box.w / 2, v - track.box.h / 2, track.box.w, track.box.h))

    def close(self) -> None:
        """Let go of the target."""
        close = getattr(self._tracker, "close", None)
        if close is not None:
            close()


def main() -> int:
    options = parse()
    runs: list[dict[str, Any]] = []
    try:
        sequences = read_sequences(options.folder, options.sequences)
        cases = {one.name: jumping(one.part(slice(None, None, options.every)), options.jumps) for one in sequences}
        for job in schedule([case.sequence for case in cases.values()], options.arms, (), options.seeds):
            runs.append(measure(job, cases[job.sequence.name], options.set))
            print(f"{job}: AUC {runs[-1]['auc']:.3f}, found after {runs[-1]['after']}", file=sys.stderr, flush=True)
    except StreamdropError as error:
        print(f"jumps.py: {error}", file=sys.stderr)
        return 1
    found = {"command": " ".join(["python", *sys.argv]), "hardware": describe_hardware(), "runs": runs}
    if options.output is not None:
        replace_text(options.output, json.dumps(found, indent=1) + "\n")
    print(table(runs, options.arms), describe_hardware(), sep="\n")
    return 0


def jumping(sequence: VideoSequence, jumps: int) -> Jumping:
    """``jumps`` jumps at equal distances, each to another shift than before. Raises DataError for too few frames."""
    spans = [part.tolist() for part in np.array_split(np.arange(len(sequence)), jumps + 1)]
    if min(map(len, spans)) < 2:
        raise DataError(f"{sequence.name}: {len(sequence)} frames are too few for {jumps} jumps: leave it out")
    height, width = FrameReader()(sequence.frames[0]).shape[:2]
    shifts: list[Shift] = []
    for number, span in enumerate(spans):
        fitting = [(0, 0)] if number == 0 else uncut(sequence.truth[span], width, height)
        farthest = max(fitting, key=lambda at: apart(at, shifts[-1], width, height)) if shifts else (0, 0)
        shifts += [farthest] * len(span)
    return Jumping(sequence, tuple(shifts), tuple(span[0] for span in spans[1:]))


def uncut(truth: Array, width: int, height: int) -> list[Shift]:
    """Shifts under which no true box that lies inside the frame is cut by the seam; no shift where there are none."""
    inside = (truth[:, :2] >= 0).all(1) & (truth[:, 0] + truth[:, 2] <= width) & (truth[:, 1] + truth[:, 3] <= height)
    x, y, w, h = truth[inside].T
    found = []
    for p in range(STEPS):
        for q in range(STEPS):
            dx, dy = p * width // STEPS, q * height // STEPS
            if ((x + dx) % width + w <= width).all() and ((y + dy) % height + h <= height).all():
                found.append((dx, dy))
    return found or [(0, 0)]


def apart(one: Shift, other: Shift, width: int, height: int) -> float:
    """How far a target jumps between two shifts, on the cylinder, in shares of the frame."""
    across, down = abs(one[0] - other[0]) / width, abs(one[1] - other[1]) / height
    return float(np.hypot(min(across, 1 - across), min(down, 1 - down)))


def measure(job: Job, case: Jumping, settings: list[str]) -> dict[str, Any]:
    """One run: AUC, and frames from each jump until the target was found, None where it was not."""
    build = tracker_builder(None, [*settings, *ARMS[job.arm]])
    outcome = run_job(job, lambda arm, seed: Rolled(build("drop", seed), case.shifts), None, lambda index: None)
    ends = [*case.starts[1:], len(case.sequence)]
    after = []
    for start, end in zip(case.starts, ends, strict=True):
        right = np.flatnonzero(outcome.overlaps[start:end] > 0.5)
        after.append(int(right[0]) + 1 if len(right) else None)
    spans = [end - start for start, end in zip(case.starts, ends, strict=True)]
    facts = {"name": job.sequence.name, "arm": job.arm, "seed": job.seed, "auc": outcome.scores["auc"]}
    return {**facts, "after": after, "spans": spans, "lost": int(outcome.run.lost.sum())}


def table(runs: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    """A line for each arm over all runs."""
    lines = [["arm", "runs", "AUC", "found", "after"]]
    for arm in arms:
        own = [run for run in runs if run["arm"] == arm]
        waits = [wait for run in own for wait in run["after"]]
        spans = [span for run in own for span in run["spans"]]
        counted = [span if wait is None else wait for wait, span in zip(waits, spans, strict=True)]
        found = sum(wait is not None for wait in waits) / len(waits)
        auc = np.mean([run["auc"] for run in own])
        lines.append([arm, str(len(own)), f"{auc:.3f}", f"{found:.0%}", f"{np.median(counted):g}"])
    return "\n".join(align(lines, left=1))


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--arms", type=names, default=list(ARMS), help="of " + ", ".join(ARMS))
    parser.add_argument("--jumps", type=int, default=3)
    parser.add_argument("--every", type=int, default=2, help="leave frames out")
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parsed(parser, arms=ARMS)
    if options.jumps < 1 or options.every < 1:
        parser.error("--jumps and --every are whole numbers of at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
