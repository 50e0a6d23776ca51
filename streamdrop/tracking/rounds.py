"""When rounds run: whole and in line, or a piece at a time in what frames leave of their time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamdrop.boxes import Box
from streamdrop.checkpoint import Snapshot
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.eye import Look
from streamdrop.tracking.first_frame import Example
from streamdrop.tracking.first_training import Pieces
from streamdrop.tracking.learner import Learner
from streamdrop.tracking.regression import BoxRegression
from streamdrop.types import Activations, Image, RoundReport

_SHARE = 0.9  # of a frame's time that may be used: a box that comes late counts for nothing
_PATIENCE = 0.2  # seconds without room for a piece, after which one runs all the same
_ALL = 1 << 30  # pieces: more than a round has
_KNOWN = 0.2  # share of a new piece in what pieces are known to take


@dataclass(frozen=True)
class Turn:
    """What came of the time to learn after a frame: the round that was due began or was put off; these have ended."""

    begun: bool = False
    put_off: bool = False
    reports: tuple[RoundReport, ...] = ()


class Rounds:
    """Every round runs whole where it is due: no clock has a say, and the same frames give the same boxes."""

    def __init__(self, config: TrackerConfig, learner: Learner) -> None:
        self._config, self._learner = config, learner

    def start(
        self,
        examples: Sequence[Example],
        fit_boxes: Callable[[Activations], None],
        began: float,
        backbone: Mapping[str, Tensor] | None = None,
    ) -> list[RoundReport]:
        """Learn a new target from the first frame; the reports of the rounds that ended.

        ``began``: when the frame came, a time of the performance counter; the others are as in ``Learner.start``.
        """
        return self._learner.start(examples, fit_boxes, backbone)

    def look(self, crops: Sequence[Image]) -> Look:
        """One pass over crops."""
        return self._learner.eye(crops)

    def remember(
        self, frame: int, activations: Activations, box: Box, weight: float, crop: Image | None = None
    ) -> None:
        """Keep a frame's search crop to learn from, as ``Learner.remember`` has it."""
        self._learner.remember(frame, activations, box, weight, crop)

    def turn(self, due: bool, regression: BoxRegression, began: float, lost: bool = False) -> Turn:
        """Use what is left of the frame that came at ``began``, a time of the performance counter."""
        return Turn(begun=True, reports=self.whole(regression)) if due else Turn()

    @property
    def late(self) -> bool:
        """Whether the last frame took longer than it had, and the next should be looked at in a hurry."""
        return False

    @property
    def spares(self) -> bool:
        """Whether ``spare`` has something to do, and time for it."""
        return False

    def spare(self) -> tuple[RoundReport, ...]:
        """Use the time until the next frame comes; the reports of rounds that ended."""
        return ()

    def whole(self, regression: BoxRegression) -> tuple[RoundReport, ...]:
        """A round now, to its end; the reports of all that ended."""
        regression.adapt()
        return (self._learner.adapt(),)

    def snapshot(self, extra: dict[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
        """A checkpoint's content, with the caller's plain data and tensors. Raises StoreError."""
        return self._learner.snapshot(extra, tensors)

    def written(self, taken: Snapshot, path: str | os.PathLike[str], hold: bool = False) -> None:
        """A snapshot is at ``path`` now, as the tuner's ``written`` has it."""
        self._learner.tuner.written(taken, path, hold)

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on from a checkpoint; the caller's data. Raises CheckpointError, StoreError."""
        return self._learner.restore(path)

    def close(self) -> None:
        """Let go of the target. Twice is fine."""
        self._learner.close()


class SpareRounds(Rounds):
    """Rounds run by pieces, as many after each frame as there is room for; the rest waits for later frames.

    There is room until the frame's time at ``fps`` is over (None: it has no end). With ``waiting`` pieces run in
    ``spare``, when the frame's box is known to all, and until it says that the next frame is there. A round that is due
    while another is under way is put off: its samples are learned from by the next one.
    """

    def __init__(
        self,
        config: TrackerConfig,
        learner: Learner,
        fps: float | None,
        waiting: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(config, learner)
        self._frame, self._clock = math.inf if fps is None else _SHARE / fps, clock
        self._waiting, self._least, self._late = waiting, 0, False
        self._under_way: Pieces | None = None
        self._cost = 0.0  # seconds a piece takes, as far as known
        self._starving: float | None = None  # since when no frame has left room for a piece

    def start(
        self,
        examples: Sequence[Example],
        fit_boxes: Callable[[Activations], None],
        began: float,
        backbone: Mapping[str, Tensor] | None = None,
    ) -> list[RoundReport]:
        """As far as the first frame's time goes; what is left goes on after later frames."""
        self._end()
        reports = self._learner.start(examples, fit_boxes, backbone)
        self._under_way = self._learner.first.rest()
        until = began + (self._config.realtime.first or 0.0)
        return [*reports, *self._run(until, self._learner.first.least)]

    def turn(self, due: bool, regression: BoxRegression, began: float, lost: bool = False) -> Turn:
        """Begin the round that is due, unless one is under way; run the pieces that fit.

        While the target is lost one runs whatever the time: nothing is gained by keeping up without it.
        """
        begun = due and self._under_way is None
        if begun:
            self._under_way = self._round(regression)
        self._least = int(lost)
        reports = () if self._waiting is not None else tuple(self._run(began + self._frame, self._least))
        self._late = not self._late and self._clock() - began > self._frame
        return Turn(begun, due and not begun, reports)

    @property
    def late(self) -> bool:
        """At most every other frame: a lost target is found by looking elsewhere only."""
        return self._late

    @property
    def spares(self) -> bool:
        """Whether a round is under way, and no frame waits that it should make way for."""
        return self._waiting is not None and self._under_way is not None and self._may(math.inf, self._least)

    def spare(self) -> tuple[RoundReport, ...]:
        """Pieces, until the next frame is there."""
        return () if self._waiting is None else tuple(self._run(math.inf, self._least))

    def whole(self, regression: BoxRegression) -> tuple[RoundReport, ...]:
        """What is under way is brought to its end first."""
        return (*self._run(math.inf, _ALL), *super().whole(regression))

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Training on the first frame goes on; a round that was under way is given up."""
        self._end()
        extra = self._learner.restore(path)
        self._under_way = self._learner.first.rest()
        return extra

    def close(self) -> None:
        """What is under way is given up."""
        self._end()
        super().close()

    def _round(self, regression: BoxRegression) -> Pieces:
        regression.adapt()
        yield
        return (yield from self._learner.round())

    def _end(self) -> None:
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def _run(self, until: float, least: int = 0) -> list[RoundReport]:
        """Pieces that should end before ``until``, and ``least`` of them anyhow; the reports of rounds that end."""
        if self._under_way is None or not self._may(until, least):
            return []
        self._starving, ran, before = None, 0, self._clock()
        reports: list[RoundReport] = []
        while self._under_way is not None:
            try:
                next(self._under_way)
            except StopIteration as ended:
                reports.append(ended.value)
                self._under_way = self._learner.first.rest()  # the first frame's may have to be done again
                now = self._clock()
            else:
                ran, now = ran + 1, self._clock()
                self._cost += (now - before - self._cost) * (_KNOWN if self._cost else 1.0)
            if ran >= least and not self._room(now, until):
                break
            before = now
        return reports

    def _may(self, until: float, least: int) -> bool:
        """Whether a piece may begin: there is room, or there has been none for too long."""
        now = self._clock()
        if least or self._room(now, until):
            return True
        self._starving = now if self._starving is None else self._starving
        return now - self._starving >= _PATIENCE

    def _room(self, now: float, until: float) -> bool:
        return now + self._cost <= until and not (self._waiting is not None and self._waiting())
