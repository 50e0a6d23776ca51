"""The thread of one stream: takes frames, learns and follows its target, saves, obeys."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streamdrop.boxes import as_box, check_inside
from streamdrop.errors import BoxError, CheckpointError, StoreFullError, StreamdropError
from streamdrop.service.broadcast import Broadcast, stream_events, stream_rounds
from streamdrop.service.capture import Capture, Signal, backoff
from streamdrop.service.commands import Commands
from streamdrop.service.following import Following, Interrupted
from streamdrop.service.frames import Arrival, FrameBuffer
from streamdrop.service.redact import redacted
from streamdrop.service.settings import SessionSettings
from streamdrop.service.share import Share
from streamdrop.service.state import StateFolder, remembered
from streamdrop.service.stats import Counters, Stats
from streamdrop.service.wanted import Wanted, WantedTargets
from streamdrop.types import Track

log = logging.getLogger("streamdrop")

_POLL = 0.2  # seconds after which a worker without frames looks for commands
_LATE = 0.01  # seconds a frame has waited, when it is looked at in a hurry …
_HURRIES = 3  # … so many in a row at most: a lost target is found by looking elsewhere only
_IDLE_SAVE = 30.0  # seconds after which state is saved though no round ran
_STUBBORN = 3  # failures in a row after which the checkpoint is taken for their cause


class Worker:
    """Owns all that one stream is made of; its thread runs ``run`` from ``start`` to ``stop``.

    ``wanted`` holds targets to learn next, ``commands`` (see ``orders``) are run between two frames. Raises OutputError
    where ``folder`` cannot be used.
    """

    def __init__(self, settings: SessionSettings, folder: Path, share: Share) -> None:
        stream, limits = settings.stream, settings.limits
        self.settings, self.name, self.stats = settings, stream.name, Stats()
        self.error: str | None = None
        self.phase = "starting"
        state_folder = StateFolder(folder)
        self.state = remembered(state_folder.read_if_whole(), stream)
        self.stats.counters = Counters.restored(self.state.counters)
        self.broadcast = Broadcast(stream.name, settings.outputs, limits, folder, stream.fps, self.stats)
        self.buffer = FrameBuffer(limits.buffer_seconds, limits.buffer_mb * 2**20, limits.late_seconds)
        self.following = Following(settings.tracker, state_folder, self.state, share, self.stats, self.buffer.waiting)
        number, position = self.state.number, self.state.position
        self.capture = Capture(stream, limits, self._came, self._signalled, self._preview, number, position)
        self.commands = Commands(self.buffer.wake)
        self.wanted = WantedTargets()
        self.last: Arrival | None = None
        self.furthest = -1
        self._failures = self._unsaved = self._since = 0
        self._tried = time.monotonic()  # to save; the time of day may jump
        self._ended, self._hurries = False, 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"stream {self.name}", daemon=True)

    def start(self) -> None:
        """Begin. A file with a target waits until the tracker is there."""
        if self.state.paused:
            self.capture.hold("paused")
        if self.state.targets:
            self.capture.hold("starting")
        self._thread.start()
        self.capture.start()

    def stop(self) -> None:
        """Begin to end: the frame under way is finished, everything is saved."""
        self._stopping.set()
        self.capture.stop()
        self.buffer.wake()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came within ``timeout`` seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self.capture.join(0.1)
        return not self._thread.is_alive()

    # ---------------------------------------------------------------- the reader's thread

    def _came(self, arrival: Arrival) -> None:
        self.stats.counters.frames += 1
        self.buffer.put(arrival)
        if not self.state.targets or self.state.paused or self.phase != "running":
            self.broadcast.show(arrival, self.state.shown)

    def _preview(self, arrival: Arrival) -> None:
        if self.broadcast.pictures.newest is None:
            self.broadcast.show(arrival, self.state.shown)

    def _signalled(self, signal: Signal) -> None:
        if signal.up:
            self.broadcast.tell({"event": "up"})
        elif not signal.ended:
            log.warning("%s: %s", self.name, signal.error)
            self.broadcast.tell({"event": "down", "error": signal.error})

    # ---------------------------------------------------------------- the worker's thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._work()
            except Exception as error:  # noqa: PERF203  whatever happens to one stream, the others go on
                self._crashed(error)
        self._close()

    def _work(self) -> None:
        self.following.build()
        self._go_on()
        self.phase = "running"
        self.capture.release("starting")
        while not self._stopping.is_set():
            self._obey()
            self._hear()
            self.capture.check()
            arrival = self.buffer.take(0.0 if self._save_due() else _POLL, oldest=bool(self.following.pending))
            if arrival is not None:
                self._frame(arrival)
            elif self._save_due():  # while no frame waits
                self._save()
            elif self.capture.signal.ended and not self._ended:  # and its last frame was looked at
                self._ended = True
                self.broadcast.tell({"event": "ended"})
            if self.following.learned and time.monotonic() - self._tried > _IDLE_SAVE:
                self._save()

    def _obey(self) -> None:
        """Carry out what was asked for, in order; then learn a target that was drawn."""
        self.commands.run()
        wanted = self.wanted.next()
        if wanted is not None:
            self._learn(wanted)

    def _frame(self, arrival: Arrival) -> None:
        """Look at a frame, then learn the targets that are to be learned on it."""
        state = self.state
        if state.paused or not state.targets:
            self._pass(arrival)
            self.broadcast.show(arrival, state.shown)
            return
        self.stats.counters.dropped += max(0, arrival.number - self.furthest - 1) if self.furthest >= 0 else 0
        if self.following.learned:
            self._look(arrival)
        for key in self.following.pending:
            if not self._stopping.is_set() and key not in self.wanted.ids():  # drawn anew: it comes in its turn
                self._learn(Wanted(as_box(state.targets[key].box), arrival, "remembered", key))

    def _look(self, arrival: Arrival) -> None:
        hurry = self._hurries < _HURRIES and time.monotonic() - arrival.at > _LATE
        self._hurries = self._hurries + 1 if hurry else 0
        tracks = self.following.look(arrival.image, hurry)
        self._record(arrival, tracks)
        self._failures = 0
        rounds = sum(len(track.reports) for track in tracks.values()) + self._use_time(arrival)
        self._unsaved += rounds
        self._since = 0 if rounds else self._since + 1
        wait = 0 if self.following.early else self.settings.tracker.update.every // 2
        if self._save_due() and self._since >= wait:
            self._save()  # at the latest before a target's next round

    def _use_time(self, arrival: Arrival) -> int:
        """Learn until the next frame is there; how many rounds ended."""
        ended = self.following.spare()
        for key, reports in ended.items():
            events = stream_rounds(arrival.number, key, reports)
            self.state.targets[key].report = events[-1]
            self.stats.learned(reports, events)
            for event in events:
                self.broadcast.tell(event)
        return sum(map(len, ended.values()))

    def _save_due(self) -> bool:
        return self._unsaved >= self.settings.limits.save_rounds

    def _pass(self, arrival: Arrival) -> None:
        """The stream has come this far."""
        self.furthest, self.last = max(self.furthest, arrival.number), arrival
        self.state.number = arrival.number + 1
        self.state.position = 0 if self.capture.signal.live else arrival.position + 1

    def _learn(self, wanted: Wanted) -> None:
        """Learn a target on a frame that is kept, then go on from there to the present."""
        arrival, key = wanted.arrival, wanted.key
        height, width = arrival.image.shape[:2]
        try:
            box = check_inside(wanted.box, width, height)
        except BoxError as error:
            self._refuse(key, str(error))
            return
        self._quietly(lambda: self.following.want(key, box))
        told = {"event": "target", "target": key, "frame": arrival.number, "box": list(box), "why": wanted.why}
        self.broadcast.tell(told)
        self.phase = "learning"
        self.capture.hold("learning")
        self.buffer.keep(arrival.number)
        try:
            self._learned(wanted, self.following.learn(key, arrival.image, box, lambda: self._distracted(key)))
        except Interrupted:
            return
        finally:
            self.phase = "running"
            self.capture.release("learning")

    def _learned(self, wanted: Wanted, track: Track) -> None:
        """A target alone goes on from its frame; beside others it goes on to where they are, before they go on."""
        arrival, key = wanted.arrival, wanted.key
        self.error = None
        alone = self.following.ids == (key,)
        if alone:
            self._pass(arrival)
        self._record(arrival, {key: track}, film=alone)
        for passed in () if alone else self.buffer.between(arrival.number, self.furthest):
            if self._distracted(key):
                break
            self._record(passed, {key: self.following.catch_up(key, passed.image)}, film=False)
        self._save()
        self.buffer.rewind(arrival.number if alone else self.furthest)

    def _distracted(self, key: int) -> bool:
        return self._stopping.is_set() or self.wanted.withdrawn(key)

    def _refuse(self, key: int, error: str) -> None:
        """There is no such target; the stream waits for one to be drawn."""
        self.error = error
        self._quietly(lambda: self.following.forget(key))
        self.following.let_go(key)  # though it could not be written: it would be tried on every frame
        self.broadcast.tell({"event": "error", "target": key, "error": error})

    def _record(self, arrival: Arrival, tracks: dict[int, Track], film: bool = True) -> None:
        """Everybody hears about a tracked frame; the stream has come this far, unless a target is catching up."""
        if arrival.number >= self.furthest:
            self._pass(arrival)
        latency = time.monotonic() - arrival.at
        events = stream_events(arrival.number, tracks, latency)
        for event in events:
            if "after_frame" in event:
                self.state.targets[event["target"]].report = event
        self.broadcast.show(self.last or arrival, self.state.shown)
        self.stats.tracked(tracks, events, latency)
        for event in events:
            self.broadcast.tell(event)
        self.broadcast.record(arrival, tracks, film)

    # ---------------------------------------------------------------- what survives

    def _go_on(self) -> None:
        """Take up the targets that the folder remembers."""
        restored = [key for key, target in sorted(self.state.targets.items()) if target.learned and self._restored(key)]
        if restored:
            self.broadcast.tell({"event": "restored", "frame": self.state.number, "targets": restored})

    def _restored(self, key: int) -> bool:
        target = self.state.targets[key]
        try:
            self.following.restore(key)
        except CheckpointError as error:
            log.warning("%s: %s", self.name, error)
            target.learned = False
            if target.lost:  # where it last was is not where it is
                self._refuse(key, f"{error}: the target was lost: draw it anew")
            else:
                self.broadcast.tell({"event": "error", "target": key, "error": str(error)})
            return False
        return True

    def _save(self) -> None:
        """Begin to save; ``_hear`` tells how it went."""
        self._hear()
        self.following.begin_save()
        self._unsaved, self._tried = 0, time.monotonic()

    def _hear(self) -> None:
        """A save that is over is known to be."""
        if self.following.unheard:
            self._quietly(self.following.settle)

    def _quietly(self, write: Callable[[], None]) -> None:
        """Run what writes; a failure is told, and the stream goes on."""
        self.broadcast.written("state", write)

    def _crashed(self, error: Exception) -> None:
        """Say what happened, wait a while, then begin again from what was last saved."""
        self._failures += 1
        self.stats.counters.failures += 1
        wait = backoff(self._failures, self.settings.limits.retry_first, self.settings.limits.retry_most)
        said = redacted(str(error) if isinstance(error, StreamdropError) else f"{type(error).__name__}: {error}")
        log.error("%s: %s; again in %.1f s", self.name, said, wait, exc_info=not isinstance(error, StreamdropError))
        self.error, self.phase = said, "failed"
        suspect = self.following.built and not isinstance(error, StoreFullError)  # that will do once there is room
        self.following.close()
        for target in self.state.targets.values() if suspect and self._failures >= _STUBBORN else ():
            target.learned = False
        self.broadcast.tell({"event": "failed", "error": said})
        self.capture.hold("starting")
        self._stopping.wait(wait)
        self.error = None

    def _close(self) -> None:
        self._quietly(self.following.save if self.following.learned else self.following.write)
        self.phase = "stopped"  # first: who hears of it asks for the state
        self.broadcast.tell({"event": "stopped", "frame": max(self.furthest, 0)})
        self.following.close()
        self.broadcast.close()
