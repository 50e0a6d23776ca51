"""A results folder belongs to one run at a time: two would write over each other's state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from streamdrop.errors import OutputError, StoreError, StoreLockedError
from streamdrop.store.lock import WriterLock

_POLL = 0.1


@contextlib.contextmanager
def claimed(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Inside, the folder, made if need be, is this process's own; ``patience`` seconds are left to a run that ends.

    Raises OutputError where it cannot be written, or another process has it still.
    """
    lock, until = WriterLock(folder), time.monotonic() + patience
    while not _taken(lock):
        if time.monotonic() >= until:
            raise OutputError(f"{folder}: another run is writing there: wait for its end, or give another --output")
        time.sleep(_POLL)
    try:
        yield
    finally:
        lock.drop()


def _taken(lock: WriterLock) -> bool:
    try:
        lock.take()
    except StoreLockedError:
        return False
    except StoreError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        raise OutputError(f"{lock.path}: cannot be written ({reason}): choose another --output") from None
    return True
