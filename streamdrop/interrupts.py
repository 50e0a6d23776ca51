"""Ctrl-C where it must not come between: what is half done is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP")
_NUMBERS: tuple[int, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_Handler: TypeAlias = Callable[[int, "FrameType | None"], Any]


@contextmanager
def held() -> Iterator[None]:
    """Within the block signals wait; what their handlers raise is raised at its end. May be nested.

    Python handles signals in the main thread only: elsewhere, and where a signal has no handler of Python's, nothing
    is changed.
    """
    if threading.current_thread() is not threading.main_thread() or isinstance(signal.getsignal(_NUMBERS[0]), _Notes):
        yield
        return
    handlers = {number: handler for number in _NUMBERS if callable(handler := signal.getsignal(number))}
    notes = _Notes()
    try:
        for one in handlers:
            signal.signal(one, notes)
        yield
    finally:
        try:
            _restore(handlers)
        except BaseException:  # the first of them was called at once
            _restore(handlers)
            raise
    for number, frame in notes.came:
        handlers[number](number, frame)


class _Notes:
    """A handler that notes which signals came."""

    def __init__(self) -> None:
        self.came: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came.append((number, frame))


def _restore(handlers: Mapping[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
