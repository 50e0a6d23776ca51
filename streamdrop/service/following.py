"""The targets of one stream: their trackers, built once and taking their turns, and what survives of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict

from streamdrop import checkpoint
from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError, OutputError, StoreError, StoreFullError, StreamdropError
from streamdrop.service.memory import give_back
from streamdrop.service.saving import Saving
from streamdrop.service.share import ROUND, Share
from streamdrop.service.state import StateFolder, StreamState, as_text
from streamdrop.service.stats import Stats
from streamdrop.tracking import Targets, TrackerConfig
from streamdrop.types import Image, RoundReport, Track


class Interrupted(Exception):
    """Learning a target was given up between two iterations: another one came, or the stream is to end."""


class Following:
    """Trackers and the ``state`` that is saved with them. Every computation takes a turn of ``share``.

    ``waiting``: whether the next frame is there; a round of the only target makes way for it.
    """

    def __init__(
        self,
        config: TrackerConfig,
        folder: StateFolder,
        state: StreamState,
        share: Share,
        stats: Stats,
        waiting: Callable[[], bool],
    ) -> None:
        self.config, self.state, self.layers = config, state, 0
        self._folder, self._share, self._stats, self._waiting = folder, share, stats, waiting
        self._targets: Targets | None = None
        self._unsaved: set[int] = set()
        self._saving: Saving | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The targets that ``look`` can find."""
        return () if self._targets is None else self._targets.ids

    @property
    def learned(self) -> bool:
        """Whether there is a target that ``look`` can find."""
        return bool(self.ids)

    @property
    def built(self) -> bool:
        """Whether there is what can follow a target."""
        return self._targets is not None

    @property
    def early(self) -> bool:
        """Whether a target is so new that each of its frames has a round."""
        return any(self._built().tracker(key).early for key in self.ids)

    @property
    def pending(self) -> list[int]:
        """Targets that are still to be learned."""
        return sorted(key for key in self.state.targets if key not in self.ids)

    def build(self) -> None:
        """Make what follows a target. Raises WeightsError and what else a tracker raises."""
        if self._targets is None:
            with self._share.alone(self.config.name):
                self._targets = Targets(self.config, self._waiting)
            self.layers = self._targets.layers
            give_back()

    def want(self, key: int, box: Box) -> None:
        """Remember that the target in ``box`` is to be learned: a kill while learning does not forget it."""
        self.state.give(key, box)
        self.write()

    def learn(self, key: int, image: Image, box: Box, interrupted: Callable[[], bool]) -> Track:
        """Learn the target in ``box``. Raises Interrupted once ``interrupted`` says so, BoxError."""

        def interrupt() -> None:
            if interrupted():
                raise Interrupted

        targets = self._built()
        with self._share.alone(self.config.name):
            targets.reserve(key)
        with self._share.turn(self.config.name, interrupt):
            track = self._noted(key, targets.add(image, box, key))
        give_back()
        return track

    def look(self, image: Image, hurry: bool = False) -> dict[int, Track]:
        """Find all targets in the next frame; in a ``hurry`` each in one crop at most."""
        targets = self._built()
        with self._share.turn(self.config.name):
            return {key: self._noted(key, track) for key, track in targets.update(image, hurry).items()}

    def spare(self) -> dict[int, tuple[RoundReport, ...]]:
        """Learn until the next frame waits; reports of rounds that ended, by target."""
        targets = self._built()
        if self._saving is not None or not targets.spares:
            return {}
        with self._share.turn(self.config.name, kind=ROUND):
            reports = targets.spare()
        self._unsaved.update(reports)
        return reports

    def catch_up(self, key: int, image: Image) -> Track:
        """Find one target in a frame that the others have behind them."""
        with self._share.turn(self.config.name):
            return self._noted(key, self._built().tracker(key).update(image))

    def _noted(self, key: int, track: Track) -> Track:
        target = self.state.targets[key]
        target.box = [float(value) for value in track.box]
        target.score, target.lost = float(track.score), track.lost
        if track.reports or not target.learned:
            self._unsaved.add(key)
        return track

    def save(self) -> None:
        """Save, and wait until it is durable. Raises OutputError, StoreError."""
        self.begin_save()
        self.settle()

    def begin_save(self) -> None:
        """Take down the trackers that have learned, then what stands beside them; a thread writes it.

        Where none has learned, all: they have moved. A disk may take seconds, for which no frame should wait. No round
        begins before it is durable, so that a kill loses one at most; rounds that run within ``look`` wait for it here.
        ``settle`` says how it went.
        """
        with contextlib.suppress(StreamdropError):  # what failed is saved once more now
            self.settle()
        keys = sorted(self._unsaved & set(self.ids)) or self.ids
        new = [key for key in keys if not self.state.targets[key].learned]
        saving = Saving(self._folder, {key: self._built().tracker(key) for key in keys}, new)
        self._unsaved.difference_update(keys)
        for key in keys:
            self.state.targets[key].learned = True
            self.state.targets[key].borrows = self._built().borrows(key)
        saving.start(self._text())
        self._saving = saving
        if len(self.ids) > 1 or self.config.realtime.fps is not None:
            saving.wait()

    @property
    def unheard(self) -> bool:
        """Whether a save is over and ``settle`` has not yet said how it went."""
        return self._saving is not None and self._saving.over

    def settle(self) -> None:
        """Wait until what was taken down is durable. Raises OutputError, StoreError; it counts as unsaved then."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.finish()
        except StreamdropError:
            self._stats.counters.save_failures += 1
            self._unsaved.update(saving.trackers)
            for key in saving.new:
                self.state.targets[key].learned = False
            raise
        self._stats.saved_at = time.time()
        self._stats.counters.saves += 1

    def write(self) -> None:
        """The state alone. Raises OutputError."""
        with contextlib.suppress(StreamdropError):  # counted; the next save says it again
            self.settle()
        self._folder.write(self._text())

    def _text(self) -> str:
        self.state.counters = asdict(self._stats.counters)
        return as_text(self.state)

    def restore(self, key: int) -> None:
        """Go on with a target from its checkpoint.

        Raises CheckpointError (none, or another tracker's), StoreFullError.
        """
        path = self._folder.tracker(key)
        if not checkpoint.exists(path):
            raise CheckpointError(f"{path}: no checkpoint: the target is learned anew")
        targets, borrows = self._built(), self.state.targets[key].borrows
        with self._share.alone(self.config.name):
            targets.reserve(key, borrows)
        try:
            with self._share.turn(self.config.name):
                targets.restore_one(key, path, borrows)
        except StoreFullError:
            raise  # the checkpoint is whole, and will do once there is room
        except StoreError as error:
            raise CheckpointError(f"{path}: its store cannot be used ({error})") from None

    def forget(self, key: int) -> None:
        """Let go of a target, for good. Raises OutputError; then it is followed as before."""
        with contextlib.suppress(StreamdropError):
            self.settle()
        targets = self.state.targets
        self.state.drop(key)
        try:
            self.write()
        except OutputError:
            self.state.targets = targets
            raise
        self.let_go(key)
        self._folder.forget(key)

    def let_go(self, key: int) -> None:
        """Follow a target no more, whether or not the folder is to remember it."""
        self.state.drop(key)
        self._unsaved.discard(key)
        if key in self.ids:
            self._built().remove(key)

    def close(self) -> None:
        """Let go of the trackers; ``build`` makes others. What goes wrong now is no news."""
        with contextlib.suppress(StreamdropError):
            self.settle()
        targets, self._targets = self._targets, None
        if targets is not None:
            with contextlib.suppress(StreamdropError, RuntimeError, OSError):
                targets.close()

    def _built(self) -> Targets:
        self.build()
        assert self._targets is not None
        return self._targets
