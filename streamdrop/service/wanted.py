"""Targets that are to be learned: asked for by one thread, learned by another, given up by either."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from streamdrop.boxes import Box
from streamdrop.service.frames import Arrival


@dataclass(frozen=True)
class Wanted:
    """A target to learn, the frame it was drawn on, and its id."""

    box: Box
    arrival: Arrival
    why: str
    key: int = 1


class WantedTargets:
    """Those that wait to be learned, oldest first; of one id only what was asked for last."""

    def __init__(self) -> None:
        self._waiting: list[Wanted] = []
        self._given_up: set[int] = set()
        self._lock = threading.Lock()

    def ask(self, wanted: Wanted) -> None:
        """Have it learned, instead of what waits under its id."""
        with self._lock:
            self._waiting = [*(one for one in self._waiting if one.key != wanted.key), wanted]
            self._given_up.discard(wanted.key)

    def next(self) -> Wanted | None:
        """The one to learn now, None: none."""
        with self._lock:
            found = next((one for one in self._waiting if one.key not in self._given_up), None)
            self._waiting = [one for one in self._waiting if one is not found]
            return found

    def give_up(self, key: int) -> None:
        """Hold back what waits under this id, and let go of learning it, until ``forgotten`` or ``kept``."""
        with self._lock:
            self._given_up.add(key)

    def forgotten(self, key: int) -> None:
        """Whoever gave it up has been obeyed; what was asked for since stays."""
        with self._lock:
            if key in self._given_up:
                self._waiting = [one for one in self._waiting if one.key != key]
                self._given_up.discard(key)

    def kept(self, key: int) -> None:
        """Whoever gave it up has been refused: what waits under this id may be learned."""
        with self._lock:
            self._given_up.discard(key)

    def withdrawn(self, key: int) -> bool:
        """Whether it is no use to go on learning what is being learned under this id."""
        with self._lock:
            return key in self._given_up or any(one.key == key for one in self._waiting)

    def ids(self) -> set[int]:
        """The ids of those that wait, and are not given up."""
        with self._lock:
            return {one.key for one in self._waiting} - self._given_up

    def __bool__(self) -> bool:
        return bool(self.ids())
