"""Where a tracker failed, and what that looked like: film strips of the longest failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamdrop.boxes import Array
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.pictures import encode
from streamdrop.evaluation.protocol import FrameReader
from streamdrop.evaluation.sequences import VideoSequence

LEAST = 5
"""Frames in a row without any overlap that make a failure."""

STRIPS = 8
PER_ARM = 3
SHOTS = 6
"""Pictures of a strip: the last frame before, four of the failure, the first after it (or its last)."""

WIDTH = 300


@dataclass(frozen=True)
class Failure:
    """Frames ``first`` … ``last`` of a run in which its boxes overlap the truth nowhere; ``frames`` with a truth."""

    outcome: Outcome
    first: int
    last: int
    frames: int

    @property
    def recovered(self) -> bool:
        """Whether the target was found again."""
        return self.last < len(self.outcome.overlaps) - 1


def find_failures(outcome: Outcome) -> list[Failure]:
    """The failures of a run; frames without truth neither begin nor end one."""
    failures: list[Failure] = []
    first, count, last = -1, 0, -1
    for frame, overlap in enumerate([*outcome.overlaps.tolist(), 1.0]):
        if overlap == 0:
            first = frame if first < 0 else first
            count, last = count + 1, frame
        elif overlap > 0:
            if count >= LEAST:
                failures.append(Failure(outcome, first, last, count))
            first, count = -1, 0
    return failures


def worst_failures(outcomes: Sequence[Outcome]) -> list[Failure]:
    """The longest failures of the one pass under the first seed: one per arm and sequence, a few per arm."""
    plain = [o for o in outcomes if o.protocol == "ope"]
    seeds = {arm: min(o.seed for o in plain if o.arm == arm) for arm in {o.arm for o in plain}}
    found = [max(find_failures(o), key=lambda f: f.frames, default=None) for o in plain if o.seed == seeds[o.arm]]
    chosen: list[Failure] = []
    for failure in sorted((f for f in found if f is not None), key=lambda f: -f.frames):
        if sum(one.outcome.arm == failure.outcome.arm for one in chosen) < PER_ARM and len(chosen) < STRIPS:
            chosen.append(failure)
    return chosen


def film_strip(failure: Failure, sequence: VideoSequence) -> dict[str, Any]:
    """What a page needs to show a failure; raises DataError where a frame does not decode."""
    outcome = failure.outcome
    return {
        "arm": outcome.arm,
        "sequence": outcome.sequence,
        "first": failure.first + outcome.start,
        "last": failure.last + outcome.start,
        "frames": failure.frames,
        "recovered": failure.recovered,
        "shots": [_shot(outcome, sequence, frame) for frame in shown_frames(failure)],
    }


def shown_frames(failure: Failure) -> list[int]:
    """Which frames a strip shows."""
    inside = np.linspace(failure.first, failure.last, SHOTS - 2).round().astype(int).tolist()
    after = failure.last + 1 if failure.recovered else failure.last
    return sorted({max(failure.first - 1, 0), *inside, after})


def _shot(outcome: Outcome, sequence: VideoSequence, frame: int) -> dict[str, Any]:
    return {
        "picture": encode(FrameReader()(sequence.frames[frame]), WIDTH),
        "frame": frame + outcome.start,
        "box": outcome.run.boxes[frame].tolist(),
        "truth": _known(sequence.truth[frame]),
        "lost": bool(outcome.run.lost[frame]),
        "score": float(outcome.run.scores[frame]),
        "overlap": float(outcome.overlaps[frame]),
    }


def _known(box: Array) -> list[float] | None:
    return box.tolist() if np.isfinite(box).all() else None
