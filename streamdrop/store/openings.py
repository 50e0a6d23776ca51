"""Environments of this process by path: LMDB forbids opening a file twice in one process, so openings share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from streamdrop.errors import StoreLockedError
from streamdrop.store.environment import Environment

_OPEN: dict[str, Environment] = {}
_OPEN_LOCK = threading.Lock()


def attach(path: Path, read_only: bool) -> Environment:
    """The environment at ``path``: opened, or shared with a reader or writer in this process.

    Raises StoreLockedError for a second writer, StoreError, StoreVersionError, StoreCorruptError.
    """
    name = os.path.realpath(path)
    with _OPEN_LOCK:
        environment = _OPEN.get(name)
        if environment is not None and environment.pid != os.getpid():
            environment.env.close()  # inherited over a fork: this lets go of our copy, the parent keeps its own
            environment = None
        if environment is None:
            environment = Environment(path, read_only)
            _OPEN[name] = environment
        elif not read_only:
            if environment.read_only or environment.lock.taken:
                state = "already being written" if environment.lock.taken else "open for reading"
                raise StoreLockedError(
                    f"{path} is {state} in this process: close it first, or use the store that is open"
                )
            environment.write_again()
        environment.users += 1
        return environment


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether this process has the files at ``path`` open."""
    with _OPEN_LOCK:
        return os.path.realpath(path) in _OPEN


def detach(environment: Environment, read_only: bool) -> None:
    """Undo one ``attach``; the last one closes."""
    with _OPEN_LOCK:
        environment.users -= 1
        if not read_only and environment.pid == os.getpid() and environment.users:
            environment.lock.drop()  # readers of this process keep the files open
        name = os.path.realpath(environment.path)
        if not environment.users:
            environment.close()
            if _OPEN.get(name) is environment:
                del _OPEN[name]
