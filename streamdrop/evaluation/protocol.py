"""One-pass evaluation: initialise with the first true box, then update frame by frame, once, without help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Array, Box, check_inside
from streamdrop.errors import BoxError, DataError
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.pixels import Tones, as_rgb
from streamdrop.types import Image, Track

OnFrame = Callable[[int, Image, Track], None]
"""Called with a frame's index, image and track."""


class OnlineTracker(Protocol):
    """What can be evaluated: anything with ``init`` and ``update`` that return a Track."""

    def init(self, image: Image, box: Box) -> Track:
        """Start on a frame (uint8 H×W×3 RGB) where the target is in ``box``."""
        ...

    def update(self, image: Image) -> Track:
        """Find the target in the next frame."""
        ...


@dataclass(frozen=True)
class Run:
    """What a tracker did on one sequence of N frames, the first frame (where it was told the box) included.

    ``boxes`` [N, 4] (when lost: the last box), ``scores`` [N] in [0, 1], ``lost`` [N]; ``ms`` [N] wall-clock of
    ``init`` (first) and each ``update``, NaN for frames that went by unseen (they keep what was said last);
    ``cpu_s`` CPU seconds of all updates, over all threads.
    ``round_ms``, ``round_frames``, ``cuts``: milliseconds, frame, and cut trained at, of each adaptation round;
    ``first_cuts``: the cuts of the rounds on the first frame, which are part of ``init``. ``cut_short``: how many of
    the rounds a deadline ended; ``put_off``: how many more were due and had no time.
    """

    boxes: Array
    scores: Array
    lost: npt.NDArray[np.bool_]
    ms: Array
    cpu_s: float
    round_ms: tuple[float, ...] = ()
    round_frames: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    first_cuts: tuple[int, ...] = ()
    cut_short: int = 0
    put_off: int = 0

    @property
    def init_s(self) -> float:
        """Seconds before the first box."""
        return float(self.ms[0]) / 1000

    @property
    def update_s(self) -> float:
        """Seconds in ``update``, rounds that ran in line included; no decoding."""
        return float(np.nansum(self.ms[1:])) / 1000

    @property
    def updates(self) -> int:
        """Frames after the first that the tracker saw."""
        return int(np.isfinite(self.ms[1:]).sum())

    @property
    def fps(self) -> float:
        """Updates per second in ``update``: (frames − 1) / seconds where all frames were seen."""
        return self.updates / max(self.update_s, 1e-9)


def one_pass(
    tracker: OnlineTracker,
    sequence: VideoSequence,
    on_frame: OnFrame | None = None,
    first_box: Box | None = None,
) -> Run:
    """Run a tracker over a sequence, once; raises DataError when a frame cannot be decoded.

    ``on_frame(index, image, track)`` is called after every frame, outside the timing. ``first_box`` is told in the
    place of the true one.
    """
    tracks: list[Track] = []
    ms: list[float] = []
    cpu = 0.0
    read = FrameReader()
    for index, path in enumerate(sequence.frames):
        image = read(path)
        cpu_began, began = time.process_time(), time.perf_counter()
        track = tracker.update(image) if index else tracker.init(image, first_box or sequence.first_box)
        ms.append((time.perf_counter() - began) * 1000)
        cpu += (time.process_time() - cpu_began) if index else 0.0
        tracks.append(track)
        if on_frame is not None:
            on_frame(index, image, track)
    return summarise_run(tracks, ms, cpu)


def summarise_run(tracks: list[Track], ms: list[float], cpu_s: float) -> Run:
    """Tracks and their measured times as a Run; a lost frame keeps the last box that was not lost.

    Rounds count from the first ``update`` on: what ``init`` trains is part of ``init_s``.
    """
    return Run(
        boxes=hold_last([t.box for t in tracks], [t.lost for t in tracks]),
        scores=np.array([t.score for t in tracks], float),
        lost=np.array([t.lost for t in tracks], bool),
        ms=np.array(ms, float),
        cpu_s=cpu_s,
        **told(list(enumerate(tracks))),
    )


def told(tracks: Sequence[tuple[int, Track]]) -> dict[str, Any]:
    """A Run's fields about rounds, from the tracks of the frames that were seen, by index; the first is ``init``'s."""
    rounds = [(frame, report) for frame, track in tracks[1:] for report in track.reports]
    return {
        "round_ms": tuple(report.seconds * 1000 for _, report in rounds),
        "round_frames": tuple(frame for frame, _ in rounds),
        "cuts": tuple(report.cut for _, report in rounds),
        "first_cuts": tuple(report.cut for report in tracks[0][1].reports),
        "cut_short": sum(report.cut_short for _, report in rounds),
        "put_off": sum(track.put_off for _, track in tracks),
    }


def hold_last(boxes: list[Box], lost: list[bool]) -> Array:
    """Boxes [N, 4] with the last found box in the place of lost ones (the first is always taken as found)."""
    held: list[Box] = []
    for box, missing in zip(boxes, lost, strict=True):
        held.append(held[-1] if missing and held else box)
    return np.array(held, float).reshape(-1, 4)


def check_first_boxes(sequences: Iterable[VideoSequence]) -> None:
    """Refuse, before work starts, a first frame that does not decode and a first box outside it; raises DataError."""
    for sequence in sequences:
        height, width = FrameReader()(sequence.frames[0]).shape[:2]
        try:
            check_inside(sequence.first_box, width, height)
        except BoxError as error:
            raise DataError(f"{sequence.name}, {sequence.frames[0].name}: {error}") from None


class FrameReader:
    """Reads frames of one video from disk, uint8 H×W×3 RGB; 16 bits are shown in the range of the first one read."""

    def __init__(self) -> None:
        self.tones: Tones | None = None

    def __call__(self, path: Path) -> Image:
        """One frame; raises DataError where it does not decode."""
        import cv2

        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is None:
            raise DataError(f"{path} cannot be decoded: replace it, or leave its sequence out")
        rgb = image[..., ::-1]
        self.tones = self.tones or Tones.of(rgb)
        return np.ascontiguousarray(as_rgb(rgb, self.tones, str(path)))
