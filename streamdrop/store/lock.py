"""The lock of a store's one writer."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from streamdrop.errors import StoreError, StoreLockedError

try:
    import fcntl
except ImportError:  # Windows: no lock between processes
    fcntl = None  # type: ignore[assignment]


class WriterLock:
    """Held by at most one process for a folder; dies with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def taken(self) -> bool:
        """Whether this object holds it."""
        return self._file is not None

    def take(self) -> None:
        """Make the folder if need be and become its writer. Raises StoreLockedError, StoreError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}; give a folder that can") from error
        if fcntl is None:
            return
        try:
            # A record lock: it dies with the process and, unlike flock's, is not kept alive by forked children.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            self.drop()
            raise StoreLockedError(
                f"{self.path} is being written by process {holder}: close it there, or open with read_only=True"
            ) from error
        with contextlib.suppress(OSError):  # a word for others only: it holds without
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def drop(self) -> None:
        """Let another writer in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
