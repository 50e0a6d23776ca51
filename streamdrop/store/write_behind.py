"""The thread that commits what waits in a tiered store: when, and what becomes of a commit that fails."""

from __future__ import annotations

import threading
import time

from streamdrop.errors import StoreError
from streamdrop.store.front import Batch, Front

_SHARE = 128
"""Of a bounded store's bytes, the part that one commit may bring."""
_LEAST = 1 << 20
"""Bytes below which that would mean too many commits."""


class WriteBehind:
    """Commits a front's waiting changes together. Its methods are called with ``lock`` held, but for ``end``."""

    def __init__(self, front: Front, lock: threading.RLock, seconds: float, nbytes: int) -> None:
        self._front, self._seconds, self._nbytes = front, seconds, nbytes
        self._changed = threading.Condition(lock)
        self._wanted = self._closing = False  # a commit was asked for; the store closes
        self._since: float | None = None  # when the oldest change that waits was made
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="write-behind", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise StoreError(
                f"{front.durable.path} has no thread to commit with ({error}): end other work, or use an LmdbStore"
            ) from error

    def note(self) -> None:
        """A change was made: a commit is due in time, or now when much waits."""
        if self._since is None and self._front.waiting:
            self._since = time.monotonic()
            self._changed.notify_all()
        elif self._front.fresh.nbytes() >= self._enough():
            self._changed.notify_all()

    def round_done(self) -> None:
        """Now is a good time for a commit that would soon be due."""
        if self._rest() < self._seconds / 2:
            self.hurry()

    def hurry(self) -> None:
        """Commit what waits as soon as possible."""
        if self._front.waiting:
            self._wanted = True
            self._changed.notify_all()

    def wait_for_room(self, nbytes: int) -> None:
        """Wait until ``nbytes`` more may wait. Raises what made a commit fail."""
        while self._front.fresh.count and self._front.fresh.nbytes() + nbytes > 2 * self._enough():
            self._wait()

    def drain(self) -> None:
        """Wait until nothing waits. Raises what made a commit fail, after trying once more."""
        self._error = None
        while self._front.waiting and self._thread.is_alive():
            self._wait()

    def raise_error(self) -> None:
        """Raise what made the last commit fail."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let the thread commit what still waits and end, and wait for that, without the lock."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _wait(self) -> None:
        self.hurry()
        self._changed.wait()
        self.raise_error()

    def _run(self) -> None:
        """One commit whenever one is due, until the store closes."""
        while (batch := self._next()) is not None:
            error: Exception | None = None
            try:
                batch.commit(self._front.durable)
            except Exception as failure:  # told by the next put or flush: a thread has nobody else to tell
                error = failure
            with self._changed:
                self._error = error
                self._front.done(batch, committed=error is None)
                if self._since is None and self._front.waiting:
                    self._since = time.monotonic()
                self._changed.notify_all()

    def _next(self) -> Batch | None:
        """Wait for a commit to be due; None when the store closes."""
        with self._changed:
            while not self._due():
                if self._closing:
                    return None
                waits = self._since is not None and self._error is None
                self._changed.wait(self._rest() if waits else None)
            self._wanted, self._since = False, None
            return self._front.batch()

    def _due(self) -> bool:
        if self._error is not None or not self._front.waiting:
            return False
        return self._closing or self._wanted or self._front.fresh.nbytes() >= self._enough() or self._rest() <= 0

    def _enough(self) -> int:
        """Bytes that are worth a commit. A bounded store grows by what one commit brings before it takes away."""
        if not self._front.retention.bounded:
            return self._nbytes
        return max(min(self._nbytes, self._front.nbytes() // _SHARE), min(self._nbytes, _LEAST))

    def _rest(self) -> float:
        """Seconds until a commit is due by time."""
        return self._seconds - (time.monotonic() - self._since) if self._since is not None else self._seconds
