"""One save of a stream: taken down in the worker's thread, made durable in a thread of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from streamdrop.checkpoint import Snapshot
from streamdrop.errors import OutputError, StreamdropError
from streamdrop.service.state import StateFolder
from streamdrop.tracking import Tracker


class Saving:
    """``trackers`` by target, of which ``new`` have no checkpoint yet, on their way into ``folder``."""

    def __init__(self, folder: StateFolder, trackers: Mapping[int, Tracker], new: Sequence[int]) -> None:
        self.trackers, self.new = trackers, new
        self._folder = folder
        self._taken: dict[int, Snapshot] = {}
        self._done: Future[None] = Future()

    def start(self, text: str) -> None:
        """Take the trackers down and begin to write them, then the state's ``text``."""
        try:
            self._taken = {key: tracker.snapshot().copied() for key, tracker in self.trackers.items()}
        except StreamdropError as error:
            self._done.set_exception(error)
            return
        thread = ThreadPoolExecutor(1, "saving")
        try:
            self._done = thread.submit(self._write, text)
        except RuntimeError as error:  # no thread can be started
            self._done.set_exception(OutputError(f"{self._folder.path}: cannot be saved ({error}): end other work"))
        thread.shutdown(wait=False)  # it ends when this is written

    @property
    def over(self) -> bool:
        """Whether all is durable, or has failed."""
        return self._done.done()

    def wait(self) -> None:
        """Until it is over."""
        wait([self._done])

    def finish(self) -> None:
        """Wait; then what only earlier checkpoints need can go. Raises OutputError, StoreError."""
        self._done.result()
        for key, tracker in self.trackers.items():
            tracker.written(self._taken[key], self._folder.tracker(key))

    def _write(self, text: str) -> None:
        try:
            for key, taken in self._taken.items():
                taken.write(self._folder.tracker(key))
            self._folder.write(text)
        except OSError as error:
            raise OutputError(f"{self._folder.path}: cannot be saved ({error}): free some space") from None
