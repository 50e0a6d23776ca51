"""What others ask of a thread: run between two of its frames, answered to who asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue

from streamdrop.errors import ConflictError

Command = Callable[[], None]


class Commands:
    """``ask`` from any thread, ``run`` in the one that obeys; ``wake`` is called so that it looks."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._queue: SimpleQueue[tuple[Command, Future[None]]] = SimpleQueue()

    def ask(self, command: Command, timeout: float) -> None:
        """Have a command run and wait for it. Raises what it raises, ConflictError when there is no answer in time."""
        future: Future[None] = Future()
        self._queue.put((command, future))
        self._wake()
        wait([future], timeout)
        if not future.done() and future.cancel():
            raise ConflictError(f"no answer within {timeout:g} s: try again in a moment")
        future.result()

    def run(self) -> None:
        """Run what was asked for, in order."""
        while True:
            try:
                command, future = self._queue.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                _fulfil(future, command)


def _fulfil(future: Future[None], command: Command) -> None:
    try:
        command()
    except Exception as error:  # it is the asker's to hear
        future.set_exception(error)
    else:
        future.set_result(None)
