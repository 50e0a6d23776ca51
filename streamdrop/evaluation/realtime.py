"""The real-time protocol: frames arrive at a fixed rate and go by while the tracker is busy.

The clock starts when ``init`` returns: how long that takes is reported apart (``init_s``). A tracker that is free waits
for the next frame; one that was busy takes the newest, and those in between go by unseen. What counts for a frame is
what the tracker said last before the next frame arrived; so a result that comes late counts for a later frame.
Decoding stands outside the clock, and so do frames after the last.

VOT's real-time experiment forgives a slow first frame too (its "grace", which the first frame is the first to use up),
but then some slow frames more; here every later frame counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamdrop.boxes import Box
from streamdrop.evaluation.protocol import FrameReader, OnFrame, OnlineTracker, Run, hold_last, told
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.types import Track

_SOON = 1e-9


class Clock(Protocol):
    """What tells the time and lets it pass, in seconds."""

    def now(self) -> float:
        """Seconds from any beginning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass; threads of the tracker may use them."""
        ...


class WallClock:
    """The machine's own."""

    def now(self) -> float:
        """Seconds of the performance counter."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


@dataclass(frozen=True)
class Said:
    """What a tracker said about the frame it saw, and when: seconds since the clock started (0 for the first)."""

    at: float
    frame: int
    track: Track
    ms: float


def realtime_pass(
    tracker: OnlineTracker,
    sequence: VideoSequence,
    fps: float,
    clock: Clock | None = None,
    on_frame: OnFrame | None = None,
    first_box: Box | None = None,
) -> Run:
    """Run a tracker over a sequence whose frames arrive at ``fps``; raises DataError for a frame that does not decode.

    ``on_frame(index, image, track)`` is called for the frames it sees. CPU seconds are those of its updates.
    """
    clock = clock or WallClock()
    said: list[Said] = []
    cpu = 0.0
    read = FrameReader()
    index, started = 0, 0.0  # started: the clock's time at which the first frame was shown
    while index < len(sequence):
        decoding = clock.now()
        image = read(sequence.frames[index])
        started += clock.now() - decoding
        began, cpu_began = clock.now(), time.process_time()
        track = tracker.update(image) if index else tracker.init(image, first_box or sequence.first_box)
        ended = clock.now()
        if index == 0:
            started = ended
        else:
            cpu += time.process_time() - cpu_began
        said.append(Said(ended - started, index, track, (ended - began) * 1000))
        if on_frame is not None:
            on_frame(index, image, track)
        index = next_frame(index, clock.now() - started, fps, len(sequence))
        early = index / fps - (clock.now() - started)
        if index < len(sequence) and early > 0:
            clock.sleep(early)
    return realtime_run(said, len(sequence), fps, cpu)


def next_frame(index: int, elapsed: float, fps: float, frames: int) -> int:
    """The frame to see after ``index``: the newest that has arrived after ``elapsed`` seconds, or else the next."""
    arrived = min(int(elapsed * fps + _SOON), frames - 1)
    return max(index + 1, arrived)


def standing(said: Sequence[Said], frames: int, fps: float) -> list[int]:
    """For each frame the position in ``said`` of what had been said when the next frame arrived."""
    at, result = 0, []
    for frame in range(frames):
        while at + 1 < len(said) and said[at + 1].at <= (frame + 1) / fps + _SOON:
            at += 1
        result.append(at)
    return result


def realtime_run(said: Sequence[Said], frames: int, fps: float, cpu_s: float) -> Run:
    """What counts for each frame, as a Run; ``ms`` is NaN for frames that went by unseen."""
    boxes = hold_last([one.track.box for one in said], [one.track.lost for one in said])
    counted = standing(said, frames, fps)
    ms = np.full(frames, np.nan)
    ms[[one.frame for one in said]] = [one.ms for one in said]
    return Run(
        boxes=boxes[counted],
        scores=np.array([said[i].track.score for i in counted], float),
        lost=np.array([said[i].track.lost for i in counted], bool),
        ms=ms,
        cpu_s=cpu_s,
        **told([(one.frame, one.track) for one in said]),
    )
