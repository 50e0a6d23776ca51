"""One stream in the daemon, as others see it: what it says about itself, and what can be asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamdrop.boxes import Box, check_inside
from streamdrop.errors import ConfigError, ConflictError, StreamdropError, UnknownError
from streamdrop.service import orders
from streamdrop.service.capture import Signal
from streamdrop.service.frames import Arrival
from streamdrop.service.settings import SessionSettings
from streamdrop.service.share import Share
from streamdrop.service.wanted import Wanted
from streamdrop.service.worker import Worker

_COMMAND = 10.0  # seconds that a command may wait for the worker


class StreamSession:
    """Reads, tracks, learns, saves and tells (``broadcast``); ``start`` it, and ``stop`` it in the end.

    Isolated: whatever goes wrong in one session, no other is touched. Killed at any point, one made anew on the same
    folder goes on with the same target. Raises OutputError where its folder cannot be used.
    """

    def __init__(self, settings: SessionSettings, folder: Path, share: Share) -> None:
        self._worker = Worker(settings, folder, share)
        self.settings, self.name = settings, settings.stream.name
        self.stats, self.broadcast = self._worker.stats, self._worker.broadcast
        self._adding = threading.Lock()

    def start(self) -> None:
        """Begin. A file with a target waits until the tracker is there."""
        self._worker.start()

    def stop(self) -> None:
        """Begin to end: the frame under way is finished, everything is saved."""
        self._worker.stop()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came within ``timeout`` seconds."""
        return self._worker.join(timeout)

    def set_target(self, box: Box, frame: int | None = None) -> int:
        """Learn the target in ``box`` of the frame of that number (None: the newest); returns the number.

        It takes the place of the first target. Raises BoxError for a box outside, ConflictError for a frame that is not
        kept.
        """
        return self._want(min(self._worker.state.targets, default=1), box, frame, "drawn")

    def clear_target(self) -> None:
        """Let go of the first target. Raises ConflictError when the stream does not answer, OutputError."""
        self._forget(min(self._worker.state.targets, default=1))

    def add_target(self, box: Box, frame: int | None = None) -> tuple[int, int]:
        """Learn one more target; returns its id and the number of the frame. Raises as ``set_target`` does."""
        state, tracker = self._worker.state, self.settings.tracker
        arrival = self._arrival(box, frame)
        with self._adding:
            there = len({*state.targets, *self._worker.wanted.ids()})
            try:
                tracker.check_targets(there + 1)
            except ConfigError as error:
                raise ConflictError(f"{self.name}: {error}") from None
            key = self._new_id()
            self._ask(key, box, arrival, "drawn")
        return key, arrival.number

    def redraw_target(self, key: int, box: Box, frame: int | None = None) -> int:
        """Learn a target anew; returns the number of the frame. Raises UnknownError, and as ``set_target`` does."""
        self._check(key)
        return self._want(key, box, frame, "drawn")

    def remove_target(self, key: int) -> None:
        """Let go of a target. Raises UnknownError, ConflictError when the stream does not answer, OutputError."""
        self._check(key)
        self._forget(key)

    def _new_id(self) -> int:
        """An id that no target of this stream ever had."""
        state = self._worker.state
        state.newest = max(state.newest, 0, *state.targets, *self._worker.wanted.ids()) + 1
        return state.newest

    def _check(self, key: int) -> None:
        known = {*self._worker.state.targets, *self._worker.wanted.ids()}
        if key not in known:
            words = ", ".join(map(str, sorted(known))) or "none"
            raise UnknownError(f"{self.name}: no target {key}: the targets are {words}")

    def _want(self, key: int, box: Box, frame: int | None, why: str) -> int:
        arrival = self._arrival(box, frame)
        self._ask(key, box, arrival, why)
        return arrival.number

    def _ask(self, key: int, box: Box, arrival: Arrival, why: str) -> None:
        self._worker.wanted.ask(Wanted(box, arrival, why, key))
        self._worker.buffer.wake()

    def _arrival(self, box: Box, frame: int | None) -> Arrival:
        """The frame that a box was drawn on. Raises BoxError, ConflictError."""
        arrival = self._worker.buffer.newest() if frame is None else self._worker.buffer.find(frame)
        if arrival is None:
            kept = self._worker.buffer.kept()
            if kept is None:
                raise ConflictError(f"{self.name}: no frame has come yet: wait until the stream is up")
            raise ConflictError(
                f"{self.name}: frame {frame} is not kept, {kept[0]} to {kept[1]} are: draw on a newer one"
            )
        height, width = arrival.image.shape[:2]
        check_inside(box, width, height)
        return arrival

    def _forget(self, key: int) -> None:
        self._worker.wanted.give_up(key)
        try:
            self._do(lambda: orders.forget(self._worker, key))
        except StreamdropError:
            self._worker.wanted.kept(key)
            raise

    def pause(self) -> None:
        """Stop tracking and learning; a file stands still."""
        self._do(lambda: orders.set_paused(self._worker, True))

    def resume(self) -> None:
        """Go on."""
        self._do(lambda: orders.set_paused(self._worker, False))

    def thaw(self) -> None:
        """Train all trainable layers again: the target is learned anew where it now is. Raises ConflictError."""
        self._do(lambda: orders.thaw(self._worker))

    def checkpoint(self) -> None:
        """Save now. Raises ConflictError without a target, OutputError."""
        self._do(lambda: orders.save_now(self._worker))

    @property
    def signal(self) -> Signal:
        """What is known about the source."""
        return self._worker.capture.signal

    def status(self) -> dict[str, Any]:
        """What the API says about the stream."""
        state, signal, first = self._worker.state, self._worker.capture.signal, self._worker.state.first
        report = (first and first.report) or {}
        return {
            "name": self.name,
            "state": self._word(),
            "frame": max(self._worker.furthest, 0),
            "fps": round(self.stats.fps, 2),
            "dropped_frames": self.stats.counters.dropped,
            "target": None if first is None else first.shown,
            "targets": state.shown,
            "cut": report.get("next_cut"),
            "layers": self._worker.following.layers or None,
            "round": report.get("round", 0),
            "loss": report.get("loss"),
            "paused": state.paused,
            "error": self._worker.error or signal.error or self.broadcast.error,
            "source": self.settings.stream.shown_source,
            "source_fps": signal.fps,
            "live": signal.live,
            "size": list(signal.size) if signal.size else None,
            "tracked_frames": self.stats.counters.tracked,
            "skipped_frames": signal.skipped,
            "reconnects": signal.reconnects,
            "saved": self.stats.saved_at,
        }

    def _word(self) -> str:
        """The stream's state in one word."""
        state, signal = self._worker.state, self._worker.capture.signal
        if self._worker.phase != "running":
            return self._worker.phase
        if state.paused:
            return "paused"
        if not signal.up:
            return "ended" if signal.ended else "reconnecting" if signal.error else "starting"
        targets = list(dict(state.targets).values())
        if not targets:
            return "waiting"
        if all(target.lost for target in targets):
            return "lost"
        certain = self.settings.tracker.update.certain
        return "tracking" if all(not one.lost and one.score >= certain for one in targets) else "uncertain"

    def _do(self, command: Callable[[], None]) -> None:
        """Have the worker run a command between two frames."""
        try:
            self._worker.commands.ask(command, _COMMAND)
        except ConflictError as error:
            raise ConflictError(f"{self.name}, {self._word()}: {error}") from None


def first_of(targets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of targets as ``status`` shows them the first, without its id; None where there is none."""
    return {name: value for name, value in targets[0].items() if name != "id"} if targets else None
