"""One pass over a video that follows all its targets at once: each is given in its first true frame, let go after its
last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streamdrop.boxes import Box
from streamdrop.evaluation.protocol import FrameReader, Run, summarise_run
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.types import Image, Track


class GroupTracker(Protocol):
    """What can be evaluated on several targets at once, as ``Targets`` is: each is known by an id from 1 on."""

    def init(self, image: Image, boxes: Mapping[int, object]) -> dict[int, Track]:
        """Start on a frame (uint8 H×W×3 RGB), forgetting all targets."""
        ...

    def update(self, image: Image) -> dict[int, Track]:
        """Find all targets in the next frame."""
        ...

    def add(self, image: Image, box: object, key: int) -> Track:
        """One more target, in the frame that was last looked at."""
        ...

    def remove(self, key: int) -> None:
        """Let go of a target."""
        ...


@dataclass
class _Seen:
    """What was said of one target, frame by frame."""

    tracks: list[Track] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


def group_pass(
    tracker: GroupTracker,
    targets: Mapping[int, VideoSequence],
    first_boxes: Mapping[int, Box],
    on_frame: Callable[[int], None] | None = None,
) -> dict[int, Run]:
    """Follow all targets of one video in one pass; their runs by the same keys. Raises DataError as ``one_pass``.

    A run's milliseconds (and CPU seconds) of a frame are those of all targets together: what the video took. How long
    a target takes to learn is its own. ``on_frame`` is called with the count of frames seen before.
    """
    paths = {one.start + at: path for one in targets.values() for at, path in enumerate(one.frames)}
    seen = {key: _Seen() for key in targets}
    followed: set[int] = set()
    read = FrameReader()
    for count, frame in enumerate(sorted(paths)):
        image = read(paths[frame])
        for key in sorted(key for key in followed if frame >= targets[key].start + len(targets[key])):
            tracker.remove(key)
            followed.remove(key)
        _update(tracker, image, {key: seen[key] for key in followed})
        for key in (key for key, one in targets.items() if frame == one.start):
            _begin(tracker, image, key, first_boxes[key], seen)
            followed.add(key)
        if on_frame is not None:
            on_frame(count)
    return {key: summarise_run(one.tracks, one.ms, one.cpu_s) for key, one in seen.items()}


def by_video(sequences: Sequence[VideoSequence]) -> list[tuple[VideoSequence, ...]]:
    """Sequences by video: the targets of one are next to each other, where the first of them was."""
    videos: dict[str, list[VideoSequence]] = {}
    for one in sequences:
        videos.setdefault(one.video or one.name, []).append(one)
    return [tuple(targets) for targets in videos.values()]


def most_at_once(targets: Sequence[VideoSequence]) -> int:
    """How many targets of one video are followed at once, at most."""
    spans = [(one.start, one.start + len(one)) for one in targets]
    return max(sum(first <= start < end for first, end in spans) for start, _ in spans)


def _update(tracker: GroupTracker, image: Image, seen: Mapping[int, _Seen]) -> None:
    if not seen:
        return
    cpu_began, began = time.process_time(), time.perf_counter()
    tracks = tracker.update(image)
    ms, cpu = (time.perf_counter() - began) * 1000, time.process_time() - cpu_began
    for key, one in seen.items():
        one.tracks.append(tracks[key])
        one.ms.append(ms)
        one.cpu_s += cpu


def _begin(tracker: GroupTracker, image: Image, key: int, box: Box, seen: Mapping[int, _Seen]) -> None:
    began = time.perf_counter()
    anew = not any(one.tracks for one in seen.values())
    track = tracker.init(image, {key: box})[key] if anew else tracker.add(image, box, key)
    seen[key].tracks.append(track)
    seen[key].ms.append((time.perf_counter() - began) * 1000)
