"""The machine, shared by many trackers: a few compute at once, frames go before rounds, and nobody starves."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ALONE, FRAME, ROUND = 0, 1, 2
"""What waits: for all slots, with a frame to look at, or in a round between two iterations. Lower numbers go first."""

_ALL = 1 << 30  # slots, those of one that is alone: however many there are or will be
_MEMORY = 0.25  # seconds of computing by which a stream can be ahead of the others, or behind


@dataclass
class _Waiter:
    name: str
    kind: int
    passed: int = 0
    ready: threading.Event = field(default_factory=threading.Event)

    @property
    def slots(self) -> int:
        """How many it takes."""
        return _ALL if self.kind == ALONE else 1


class Share:
    """``slots`` trackers compute at once. Who has used the least goes first; rounds let waiting frames go before them.

    ``between`` is to be called between the iterations of a round, by the thread that has the turn: ``watch_rounds``
    sees to it. A round that has let as many frames pass as there are other streams goes on, so that overload slows
    rounds but stops no stream. ``clock``: seconds, for tests.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._busy = slots, 0
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._used: dict[str, float] = {}  # decides who goes first; held within _MEMORY of the others'
        self._total: dict[str, float] = {}
        self._local = threading.local()

    @contextlib.contextmanager
    def turn(self, name: str, interrupt: Callable[[], None] | None = None, kind: int = FRAME) -> Iterator[None]:
        """Inside, the calling thread has a slot. ``interrupt`` is called between iterations and may raise."""
        self._enter(_Waiter(name, kind))
        self._local.name, self._local.interrupt, self._local.began = name, interrupt, self._clock()
        try:
            yield
        finally:
            self._local.name = None
            self._leave(name, 1, self._clock() - self._local.began)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Inside, nobody else has a turn: for what changes torch for all threads, as tracing a network does."""
        self._enter(_Waiter(name, ALONE))
        try:
            yield
        finally:
            self._leave(name, _ALL, 0.0)

    def between(self) -> None:
        """Let the frames that wait go first. Does nothing in a thread that has no turn."""
        name = getattr(self._local, "name", None)
        if name is None:
            return
        if self._local.interrupt is not None:
            self._local.interrupt()
        with self._lock:
            if all(waiter.kind == ROUND for waiter in self._waiting):
                return
        self._leave(name, 1, self._clock() - self._local.began)
        self._enter(_Waiter(name, ROUND))
        self._local.began = self._clock()

    @property
    def slots(self) -> int:
        """How many compute at once."""
        return self._slots

    def resize(self, slots: int) -> None:
        """Let so many compute at once from now on; turns under way are finished."""
        with self._lock:
            self._slots = slots
            self._grant()

    def forget(self, name: str) -> None:
        """A stream has gone: its account is closed."""
        with self._lock:
            self._used.pop(name, None)
            self._total.pop(name, None)

    def used(self) -> dict[str, float]:
        """Seconds of turns by name."""
        with self._lock:
            return dict(self._total)

    def _enter(self, waiter: _Waiter) -> None:
        with self._lock:
            self._level(waiter.name)
            self._waiting.append(waiter)
            self._grant()
        waiter.ready.wait()

    def _level(self, name: str) -> None:
        """What was used long ago counts for little: learning a target must not be paid for by seconds of waiting."""
        least = min((used for other, used in self._used.items() if other != name), default=0.0)
        self._used[name] = min(max(self._used.get(name, least), least - _MEMORY), least + _MEMORY)

    def _leave(self, name: str, slots: int, seconds: float) -> None:
        with self._lock:
            self._busy -= slots
            if name in self._used:
                self._used[name] += seconds
                self._total[name] = self._total.get(name, 0.0) + seconds
            self._grant()

    def _grant(self) -> None:
        """Give free slots to those who go first; one that needs all slots holds the others back until they are free."""
        while self._waiting:
            first = min(self._waiting, key=self._rank)
            if self._busy >= (1 if first.kind == ALONE else self._slots):
                return
            self._busy += first.slots
            self._waiting.remove(first)
            for waiter in self._waiting:
                waiter.passed += 1
            first.ready.set()

    def _rank(self, waiter: _Waiter) -> tuple[int, float]:
        if waiter.kind == ROUND and waiter.passed >= len(self._used) - 1:
            return FRAME, -1.0  # it has let everybody pass
        return waiter.kind, self._used.get(waiter.name, 0.0)


@contextlib.contextmanager
def watch_rounds(share: Share) -> Iterator[None]:
    """Inside, ``share.between`` runs after every step of any optimiser, in the thread that made the step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        share.between()

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield
    finally:
        handle.remove()
