"""The target of one stream: its tracker, built once and taking its turns, and what survives of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from streamdrop import checkpoint
from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError, OutputError, StoreError, StoreFullError, StreamdropError
from streamdrop.service.frames import Arrival
from streamdrop.service.memory import give_back
from streamdrop.service.share import Share
from streamdrop.service.state import StateFolder, StreamState
from streamdrop.service.stats import Stats
from streamdrop.tracking import Tracker, TrackerConfig
from streamdrop.types import Image, Track


@dataclass(frozen=True)
class Wanted:
    """A target to learn, and the frame it was drawn on."""

    box: Box
    arrival: Arrival
    why: str


class Interrupted(Exception):
    """Learning a target was given up between two iterations: another one came, or the stream is to end."""


class Following:
    """A tracker and the ``state`` that is saved with it. Every computation takes a turn of ``share``."""

    def __init__(
        self, config: TrackerConfig, folder: StateFolder, state: StreamState, share: Share, stats: Stats
    ) -> None:
        self.config, self.state, self.layers = config, state, 0
        self._folder, self._share, self._stats = folder, share, stats
        self._tracker: Tracker | None = None

    @property
    def learned(self) -> bool:
        """Whether there is a target that ``look`` can find."""
        return self._tracker is not None and self._tracker.frames > 0

    def build(self) -> None:
        """Make the tracker. Raises WeightsError and what else a tracker raises."""
        if self._tracker is None:
            with self._share.alone(self.config.name):
                self._tracker = Tracker(self.config)
            self.layers = self._tracker.layers
            give_back()

    def want(self, box: Box) -> None:
        """Remember that the target in ``box`` is to be learned: a kill while learning does not forget it."""
        self.state.box, self.state.score, self.state.lost = list(box), 1.0, False
        self.state.learned = False
        self.write()

    def learn(self, image: Image, box: Box, interrupted: Callable[[], bool]) -> Track:
        """Learn the target in ``box``. Raises Interrupted once ``interrupted`` says so, BoxError."""

        def interrupt() -> None:
            if interrupted():
                raise Interrupted

        tracker = self._built()
        with self._share.turn(self.config.name, interrupt):
            track = self._noted(tracker.init(image, box))
        give_back()
        return track

    def look(self, image: Image) -> Track:
        """Find the target in the next frame."""
        tracker = self._built()
        with self._share.turn(self.config.name):
            return self._noted(tracker.update(image))

    def _noted(self, track: Track) -> Track:
        self.state.box = [float(value) for value in track.box]
        self.state.score, self.state.lost = float(track.score), track.lost
        return track

    def save(self) -> None:
        """The tracker's checkpoint, then what stands beside it. Raises OutputError, StoreError."""
        try:
            self._built().save(self._folder.tracker)
            self.state.learned = True
            self.write()
        except StreamdropError:
            self._stats.counters.save_failures += 1
            raise
        except OSError as error:
            self._stats.counters.save_failures += 1
            raise OutputError(f"{self._folder.path}: cannot be saved ({error}): free some space") from None
        self._stats.saved_at = time.time()
        self._stats.counters.saves += 1

    def write(self) -> None:
        """The state alone. Raises OutputError."""
        self.state.counters = asdict(self._stats.counters)
        self._folder.write(self.state)

    def restore(self) -> None:
        """Go on from the checkpoint. Raises CheckpointError (none, or another tracker's), StoreFullError."""
        if not checkpoint.exists(self._folder.tracker):
            raise CheckpointError(f"{self._folder.tracker}: no checkpoint: the target is learned anew")
        tracker = self._built()
        try:
            with self._share.turn(self.config.name):
                tracker.restore(self._folder.tracker)
        except StoreFullError:
            raise  # the checkpoint is whole, and will do once there is room
        except StoreError as error:
            raise CheckpointError(f"{self._folder.tracker}: its store cannot be used ({error})") from None

    def forget(self) -> None:
        """Let go of the target. Raises OutputError."""
        self.state.box, self.state.learned, self.state.report = None, False, None
        if self._tracker is not None:
            self._tracker.close()
        self.write()

    def close(self) -> None:
        """Let go of the tracker; ``build`` makes another. What goes wrong now is no news."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with contextlib.suppress(StreamdropError, RuntimeError, OSError):
                tracker.close()

    def _built(self) -> Tracker:
        self.build()
        assert self._tracker is not None
        return self._tracker
