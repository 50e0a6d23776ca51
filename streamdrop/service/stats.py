"""Figures of one stream: counters that survive a restart, rates, distributions, and what the charts show."""

from __future__ import annotations

import dataclasses
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamdrop.types import RoundReport, Track

BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the distributions' classes, in seconds."""

_WINDOW = 5.0  # seconds over which rates are taken
_POINTS = 1500  # frames and rounds kept for the charts


@dataclass
class Histogram:
    """How many values fell into each class of ``BUCKETS`` (one more for the rest), and their sum, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more value."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


@dataclass
class Counters:
    """Since the stream was made: frames of the source, those tracked, dropped for being late, lost; and so on."""

    frames: int = 0
    tracked: int = 0
    dropped: int = 0
    lost: int = 0
    rounds: int = 0
    failures: int = 0
    saves: int = 0
    save_failures: int = 0
    output_failures: int = 0

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Counters:
        """From ``dataclasses.asdict``; what is missing or no number is 0."""
        names = {one.name for one in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names and isinstance(value, int)})


class Stats:
    """``counters``, and of this process: ``latency`` (arrival to result), ``update`` and ``round`` distributions."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.latency, self.update, self.round = Histogram(), Histogram(), Histogram()
        self.saved_at: float | None = None
        self._frames: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self._rounds: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self._times: deque[float] = deque(maxlen=1000)

    def tracked(self, tracks: Mapping[int, Track], events: list[dict[str, Any]], latency: float) -> None:
        """A frame was tracked: ``events`` are its own and those of its rounds."""
        counters = self.counters
        counters.tracked += 1
        counters.lost += any(track.lost for track in tracks.values())
        self._times.append(time.monotonic())
        self.latency.add(latency)
        self.update.add(sum(track.ms for track in tracks.values()) / 1e3)
        self.learned([report for track in tracks.values() for report in track.reports], events)

    def learned(self, reports: Sequence[RoundReport], events: list[dict[str, Any]]) -> None:
        """Rounds have ended."""
        self.counters.rounds += len(reports)
        for report in reports:
            self.round.add(report.seconds)
        self.remember(events)

    def remember(self, events: list[dict[str, Any]]) -> None:
        """Keep events of frames and rounds for the charts."""
        for event in events:
            if "after_frame" in event:
                self._rounds.append(event)
            elif "score" in event:
                self._frames.append(event)

    @property
    def fps(self) -> float:
        """Frames tracked a second, of late."""
        now, times = time.monotonic(), list(self._times)
        recent = len(times) - bisect_left(times, now - _WINDOW)
        return recent / min(_WINDOW, max(now - times[0], 1e-3)) if recent and len(times) > 1 else 0.0

    def rounds(self, last: int) -> list[dict[str, Any]]:
        """The last rounds, oldest first."""
        return list(self._rounds)[-last:]

    def frames(self, last: int) -> list[dict[str, Any]]:
        """The last tracked frames, oldest first."""
        return list(self._frames)[-last:]
