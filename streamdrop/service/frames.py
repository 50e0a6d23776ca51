"""The frames of a stream between its reader and its tracker: the next one in time, those too late counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamdrop.types import Image

_STEPS = 12  # frames in which a backlog is gone through


@dataclass(frozen=True)
class Arrival:
    """A frame that came at ``at`` (monotonic seconds): its ``number`` in the stream, its ``position`` in the source."""

    number: int
    position: int
    image: Image
    at: float


class FrameBuffer:
    """Keeps the last frames, up to ``seconds`` and ``most_bytes``; ``take`` gives the tracker its next one.

    A frame that has waited for ``late`` seconds is passed over for newer ones, so that latency does not grow. After
    ``rewind`` the frames since then are gone through in strides until the present is reached.
    """

    def __init__(
        self, seconds: float, most_bytes: float, late: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._most_bytes, self._late, self._clock = seconds, most_bytes, late, clock
        self._frames: deque[Arrival] = deque()
        self._bytes = 0
        self._taken = -1
        self._steps = 0
        self._from: int | None = None
        self._changed = threading.Condition()

    def put(self, arrival: Arrival) -> None:
        """Append the newest frame."""
        with self._changed:
            self._frames.append(arrival)
            self._bytes += arrival.image.nbytes
            while len(self._frames) > 1 and self._full():
                self._bytes -= self._frames.popleft().image.nbytes
            self._changed.notify_all()

    def _full(self) -> bool:
        wanted = self._from is not None and self._frames[0].number >= self._from
        old = self._frames[-1].at - self._frames[0].at > self._seconds
        return self._bytes > self._most_bytes or (old and not wanted)

    def take(self, timeout: float, oldest: bool = False) -> Arrival | None:
        """The next frame to look at (``oldest``: however late); None when none comes within ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(self.waiting, timeout):
                return None
            chosen = self._strided() if self._steps else self._fresh(oldest)
            self._taken = chosen.number
            return chosen

    def waiting(self) -> bool:
        """Whether there is a frame that was not taken yet."""
        return bool(self._frames) and self._frames[-1].number > self._taken

    def _fresh(self, oldest: bool) -> Arrival:
        """The oldest one while it is in time, else one half-way to the newest: bursts cost no frame, overload does."""
        self._from = None
        pending = self._pending()
        late = not oldest and pending[0].at < self._clock() - self._late
        return pending[len(pending) // 2] if late else pending[0]

    def _strided(self) -> Arrival:
        """One of the frames up to the present, which is reached in as many steps as are left, come what may."""
        pending = self._pending()
        stride = max(2, -(-len(pending) // self._steps)) if len(pending) > 2 else 1
        self._steps = self._steps - 1 if len(pending) > 2 else 0
        if not self._steps:
            self._from = None
        return pending[stride - 1]

    def _pending(self) -> list[Arrival]:
        pending: list[Arrival] = []
        for frame in reversed(self._frames):
            if frame.number <= self._taken:
                break
            pending.append(frame)
        return pending[::-1]

    def find(self, number: int) -> Arrival | None:
        """The kept frame of that number."""
        with self._changed:
            return next((frame for frame in reversed(self._frames) if frame.number == number), None)

    def between(self, after: int, until: int) -> list[Arrival]:
        """Frames kept from behind number ``after`` to number ``until``, in strides that make a few of them."""
        with self._changed:
            kept = [frame for frame in self._frames if after < frame.number <= until]
        stride = max(1, -(-len(kept) // _STEPS))
        return kept[::-stride][::-1]  # the last one is among them

    def newest(self) -> Arrival | None:
        """The frame that came last."""
        with self._changed:
            return self._frames[-1] if self._frames else None

    def kept(self) -> tuple[int, int] | None:
        """Numbers of the oldest and the newest kept frame."""
        with self._changed:
            return (self._frames[0].number, self._frames[-1].number) if self._frames else None

    def keep(self, number: int) -> None:
        """Keep frames from ``number`` on, however old, as far as there is room: ``rewind`` will go back there."""
        with self._changed:
            self._from = number

    def rewind(self, number: int) -> None:
        """Go on with the frame after ``number``, in strides up to the present."""
        with self._changed:
            self._taken, self._steps = number, _STEPS
            self._changed.notify_all()

    def wake(self) -> None:
        """Let whoever waits in ``take`` look again."""
        with self._changed:
            self._changed.notify_all()
