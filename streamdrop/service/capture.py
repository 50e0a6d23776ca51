"""The reader of one stream: opens its source, plays files in time, starts them again, comes back after failures."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streamdrop.errors import StreamdropError, StreamError
from streamdrop.service.frames import Arrival
from streamdrop.service.redact import redacted
from streamdrop.service.settings import LimitsConfig, StreamConfig
from streamdrop.streams import Stream, open_stream
from streamdrop.types import Sample

DEFAULT_FPS = 25.0
_BEHIND = 1.0  # seconds behind its clock after which a file's clock is set anew: it was paused, or reads slowly


@dataclass
class Signal:
    """What is known about a source: ``up`` while frames come, ``ended`` for good, else ``error`` and ``retry_at``.

    ``reconnects``: how often it came back; ``skipped``: frames that did not decode.
    """

    up: bool = False
    ended: bool = False
    live: bool = False
    error: str | None = None
    retry_at: float | None = None
    reconnects: int = 0
    skipped: int = 0
    fps: float | None = None
    size: tuple[int, int] | None = None


class Capture:
    """Reads one source in a thread of its own until ``stop``; nothing that goes wrong there gets out.

    ``deliver`` gets every frame, ``changed`` is called when the signal comes, goes or ends, ``preview`` gets the frame
    that a file stands still before. ``number`` and ``position``: of the first frame to deliver; what a file has before
    is read over.
    """

    def __init__(
        self,
        config: StreamConfig,
        limits: LimitsConfig,
        deliver: Callable[[Arrival], None],
        changed: Callable[[Signal], None],
        preview: Callable[[Arrival], None],
        number: int = 0,
        position: int = 0,
    ) -> None:
        self.signal = Signal()
        self._config, self._limits = config, limits
        self._deliver, self._changed, self._preview = deliver, changed, preview
        self._number, self._position = number, position
        self._stopping, self._running = threading.Event(), threading.Event()
        self._running.set()
        self._holds: set[str] = set()
        self._changing = threading.Lock()  # of what other threads ask for: holds, the stream to be closed
        self._failures = self._skipped = 0
        self._last = time.monotonic()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture {config.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading, without waiting for a source that hangs."""
        with self._changing:
            self._stopping.set()
            self._running.set()
        self._close_soon()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end, at most ``timeout`` seconds."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def hold(self, why: str) -> None:
        """A file stands still until every reason is released; a live source is read on."""
        with self._changing:
            self._holds.add(why)
            if not self._stopping.is_set():  # else the thread would not end
                self._running.clear()

    def release(self, why: str) -> None:
        """That reason is gone."""
        with self._changing:
            self._holds.discard(why)
            if not self._holds:
                self._running.set()

    def check(self) -> None:
        """Take a live source that has been silent for too long for broken: it is opened again."""
        signal = self.signal
        if self._stream is None or not (signal.up and signal.live):
            return
        if time.monotonic() - self._last > self._config.stale:
            signal.error = f"{self._config.shown_source}: no frame for {self._config.stale:g} s: is it still on?"
            self._close_soon()

    def _close_soon(self) -> None:
        """Close the stream, once, while nobody waits: a device that hangs takes its time."""
        with self._changing:
            stream, self._stream = self._stream, None
        if stream is not None:
            threading.Thread(target=stream.close, daemon=True).start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except StreamdropError as error:
                self._failed(redacted(str(error)))
            except Exception as error:  # a decoder's surprise must not end the daemon, nor another stream
                self._failed(redacted(f"{self._config.shown_source}: {type(error).__name__}: {error}"))
            if self.signal.ended:
                return

    def _failed(self, error: str) -> None:
        if self._stopping.is_set():
            return
        self._failures += 1
        wait = backoff(self._failures, self._limits.retry_first, self._limits.retry_most)
        self.signal.up, self.signal.error, self.signal.retry_at = False, error, time.time() + wait
        self._changed(self.signal)
        self._stopping.wait(wait)

    def _read(self) -> None:
        """One connection to the source, or one playing of a file and its repetitions."""
        with open_stream(self._config.source) as stream:
            self._stream = stream
            signal = self.signal
            signal.live, signal.size = stream.live, stream.size
            signal.fps = self._config.fps or stream.fps or (None if stream.live else DEFAULT_FPS)
            while not self._stopping.is_set():
                before = self._number
                for sample in self._timed(stream):
                    self._hand_over(sample, stream)
                if self._stopping.is_set():
                    return
                if stream.live:
                    raise StreamError(self.signal.error or f"{self._config.shown_source} has ended: is it still on?")
                self._finish(stream, before)
                if signal.ended:
                    return

    def _finish(self, stream: Stream, before: int) -> None:
        """A file is at its end: from the start again, or over."""
        if self._number == before and self._position == 0:
            raise StreamError(f"{self._config.shown_source}: holds no frame that can be decoded: check the source")
        self._position = 0
        self._skipped += stream.skipped
        if not self._config.loop:
            self.signal.up, self.signal.ended = False, True
            self._changed(self.signal)

    def _hand_over(self, sample: Sample, stream: Stream) -> None:
        if not hasattr(sample, "image"):
            raise StreamError(f"{self._config.shown_source}: holds labelled images, not a video: give a video")
        self._last = time.monotonic()
        if not self.signal.up:
            self._came_up()
        height, width = sample.image.shape[:2]
        self.signal.size = (width, height)
        if stream.live:  # frames that came while this thread was busy have numbers too
            self._number += max(sample.index - self._position, 0)
        self._position = sample.index + 1
        self.signal.skipped = self._skipped + stream.skipped
        self._deliver(Arrival(self._number, sample.index, sample.image, self._last))
        self._number += 1

    def _stand_still(self, sample: Sample) -> None:
        """Wait until the file may go on; its next frame is shown meanwhile."""
        if hasattr(sample, "image"):
            self._preview(Arrival(self._number, sample.index, sample.image, time.monotonic()))
        self._running.wait()

    def _came_up(self) -> None:
        signal = self.signal
        signal.reconnects += self._failures > 0
        self._failures = 0
        signal.up, signal.error, signal.retry_at = True, None, None
        self._changed(signal)

    def _timed(self, stream: Stream) -> Iterator[Sample]:
        """The stream's samples; those of a file when their time has come, from the position on."""
        if stream.live:
            self._position = 0
            yield from stream
            return
        period = 1.0 / (self.signal.fps or DEFAULT_FPS)
        due, start = time.monotonic(), self._position
        for sample in stream:
            if getattr(sample, "index", start) < start:
                if self._stopping.is_set():
                    return
                continue
            if not self._running.is_set():
                self._stand_still(sample)
                due = time.monotonic()
            due = max(due, time.monotonic() - _BEHIND)
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            yield sample
            due += period


def backoff(failures: int, first: float, most: float) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, between ``first`` and ``most``, ± 20 %."""
    share = random.SystemRandom().uniform(0.8, 1.2)  # the process's own would seem drawn by a network being traced
    return float(min(most, first * 2 ** min(failures - 1, 20)) * share)
