"""Rounds beside inference: a thread learns on the network; frames are looked at with a copy, swapped in whole."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamdrop.boxes import Box
from streamdrop.checkpoint import Snapshot
from streamdrop.errors import StreamdropError, TrainingError
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.eye import Eye, Look
from streamdrop.tracking.first_frame import Example
from streamdrop.tracking.first_training import Pieces
from streamdrop.tracking.learner import Learner
from streamdrop.tracking.regression import BoxRegression
from streamdrop.tracking.rounds import Rounds, Turn
from streamdrop.types import Activations, Image, RoundReport


@dataclass(frozen=True)
class _Seen:
    """A frame to learn from; its activations were made at ``cut``."""

    frame: int
    cut: int
    activations: Activations
    box: Box
    weight: float


@dataclass
class _News:
    """What the thread has come to, not yet taken. A state's weights are taken together, between two frames."""

    weights: dict[str, Tensor] | None = None
    eye: Eye | None = None  # where the store has moved: other pieces
    correction: Tensor | None = None
    reports: list[RoundReport] = field(default_factory=list)


class BesideRounds(Rounds):
    """Rounds run in a thread, on the learner's network; ``look`` uses a copy that is brought up to it between frames.

    While the thread runs nobody else touches the learner: what it is given waits in a bounded queue. A round that is
    due while another is under way is put off. What goes wrong in the thread is raised by the next ``turn`` and all
    that follow, until the target is let go of.
    """

    def __init__(self, config: TrackerConfig, learner: Learner) -> None:
        super().__init__(config, learner)
        self._eye: Eye | None = None
        self._thread: threading.Thread | None = None
        self._piece = threading.Lock()  # held while the thread works on the learner
        self._entry = threading.RLock()  # a Condition, entered itself, stays locked where Ctrl-C comes into its methods
        self._changed = threading.Condition(self._entry)  # guards all below
        self._seen: deque[_Seen] = deque(maxlen=config.update.memory)
        self._asked: BoxRegression | None = None  # a round is due; the regression to correct with it
        self._under_way: Pieces | None = None
        self._news = _News()
        self._error: BaseException | None = None
        self._stopping = self._held = False

    def start(
        self,
        examples: Sequence[Example],
        fit_boxes: Callable[[Activations], None],
        began: float,
        backbone: Mapping[str, Tensor] | None = None,
    ) -> list[RoundReport]:
        """As far as the first frame's time goes; the thread goes on from there."""
        self._stop()
        reports = self._learner.start(examples, fit_boxes, backbone)
        self._under_way = self._learner.first.rest()
        ran, least, until = 0, self._learner.first.least, began + (self._config.realtime.first or 0.0)
        while self._under_way is not None and (ran < least or time.perf_counter() < until):
            self._run_piece()
            ran += 1
        reports += self._news.reports
        self._eye, self._news = self._learner.eye.copied(), _News()
        return reports

    def look(self, crops: Sequence[Image]) -> Look:
        """One pass over crops with the copy, which first takes all that the thread has come to."""
        with self._entry:
            eye, weights = self._news.eye or self._eye, self._news.weights
            self._news.eye = self._news.weights = None
        assert eye is not None
        if weights is not None:
            eye.take(weights)
        self._eye = eye
        self._launch()
        return eye(crops)

    def remember(
        self, frame: int, activations: Activations, box: Box, weight: float, crop: Image | None = None
    ) -> None:
        """Hand a frame's search crop to the thread; the oldest is forgotten where too many wait."""
        assert self._eye is not None
        with self._entry:
            self._seen.append(_Seen(frame, self._eye.cut, activations, box, weight))
            self._changed.notify_all()

    def turn(self, due: bool, regression: BoxRegression, began: float, lost: bool = False) -> Turn:
        """Hear which rounds ended; ask for the round that is due, unless one is under way.

        After a round that moved the cut the next waits a frame, in which a checkpoint that names it can be written.
        """
        with self._entry:
            self._check()
            reports, correction = tuple(self._news.reports), self._news.correction
            self._news.reports, self._news.correction = [], None
            moved = any(report.next_cut != report.cut for report in reports)
            begun = due and not moved and self._under_way is None and self._asked is None
            if begun:
                self._asked = regression
                self._changed.notify_all()
        if correction is not None:
            regression.take(correction)
        return Turn(begun, due and not begun, reports)

    def whole(self, regression: BoxRegression) -> tuple[RoundReport, ...]:
        """What is under way is brought to its end first; the thread waits meanwhile."""
        with self._holding():
            self._remember_all()
            while self._under_way is not None:
                self._run_piece()
            reports = super().whole(regression)
            with self._entry:
                reports, self._news = (*self._news.reports, *reports), _News(eye=self._learner.eye.copied())
        return reports

    def snapshot(self, extra: dict[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
        """Taken between two pieces of a round, of the newest weights."""
        with self._holding():
            self._remember_all()
            return super().snapshot(extra, tensors)

    def written(self, taken: Snapshot, path: str | os.PathLike[str], hold: bool = False) -> None:
        """Said between two pieces of a round."""
        with self._holding():
            super().written(taken, path, hold)

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Training on the first frame goes on; a round that was under way is given up."""
        self._stop()
        extra = super().restore(path)
        self._eye = self._learner.eye.copied()
        self._under_way = self._learner.first.rest()
        return extra

    def close(self) -> None:
        """Wait for the piece under way, end the thread."""
        self._stop()
        super().close()

    # ---------------------------------------------------------------- the tracker's thread

    def _launch(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="rounds", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise TrainingError(
                    f"no thread for rounds beside inference ({error}): try realtime.beside=false"
                ) from None
            self._thread = thread

    def _stop(self) -> None:
        """No thread, nothing waiting."""
        with self._entry:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._under_way is not None:
            self._under_way.close()
        self._thread, self._under_way, self._asked, self._error = None, None, None, None
        self._eye, self._news, self._stopping = None, _News(), False
        self._seen.clear()

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Inside, the thread waits between two pieces."""
        with self._entry:
            self._check()
            self._held = True
        try:
            with self._piece:
                yield
        finally:
            with self._entry:
                self._held = False
                self._changed.notify_all()

    def _check(self) -> None:
        error = self._error
        if isinstance(error, StreamdropError):
            raise error
        if error is not None:
            said = f"{type(error).__name__}: {error}"
            raise TrainingError(f"a round beside inference failed ({said}): try realtime.beside=false") from error

    # ---------------------------------------------------------------- the rounds' thread

    def _work(self) -> None:
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)
        try:
            while self._wait():
                with self._piece:
                    self._remember_all()
                    self._begin()
                    self._run_piece()
        except BaseException as error:  # whatever it is, the tracker's thread has to hear of it
            with self._entry:
                self._error = error

    def _wait(self) -> bool:
        """Wait for something to do; whether there is."""
        with self._entry:
            self._changed.wait_for(lambda: self._stopping or (self._work_waits() and not self._held))
            return not self._stopping

    def _work_waits(self) -> bool:
        return bool(self._seen) or self._asked is not None or self._under_way is not None

    def _remember_all(self) -> None:
        with self._entry:
            seen = list(self._seen)
            self._seen.clear()
        for one in seen:
            self._learner.remember(one.frame, self._learner.raised(one.activations, one.cut), one.box, one.weight)

    def _begin(self) -> None:
        """The round that was asked for."""
        regression = self._asked
        if regression is None:
            return
        correction = regression.corrected()
        with self._entry:
            self._news.correction, self._asked, self._under_way = correction, None, self._learner.round()

    def _run_piece(self) -> None:
        """A piece of the round under way; lay down what it came to."""
        if self._under_way is None:
            return
        report: RoundReport | None = None
        before = self._learner.tuner.store.cut
        try:
            next(self._under_way)
        except StopIteration as ended:
            report = ended.value
        weights = self._learner.weights()
        eye = None if self._learner.tuner.store.cut == before else self._learner.eye.copied()
        with self._entry:
            self._news.weights = weights
            self._news.eye = eye or self._news.eye
            if report is not None:
                self._news.reports.append(report)
                self._under_way = self._learner.first.rest()  # the first frame's may have to be done again
