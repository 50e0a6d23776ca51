"""A stream's events on disk: JSON lines, whole to the last full one whatever happens, in files of bounded size."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import IO, Any

from streamdrop.errors import OutputError

_TAIL = 256 * 1024


class Journal:
    """Appends events to ``path``; at ``most_bytes`` the file becomes ``NAME.1.jsonl`` (``files`` are kept).

    A line that a kill tore in two is cut off when the file is opened again. Raises OutputError where it cannot be.
    """

    def __init__(self, path: Path, most_bytes: float, files: int) -> None:
        self._path, self._most_bytes, self._files = path, most_bytes, files
        self._ended = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            self._file = self._opened()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}): choose a folder that is writable"
            ) from None

    def write(self, event: dict[str, Any]) -> None:
        """Append one event in one write. Raises OutputError; what the file then holds are whole lines."""
        line = json.dumps(event, separators=(", ", ": ")).encode() + b"\n"
        try:
            if self._file.closed and not self._ended:  # a rotation that failed left it so
                self._file = self._opened()
            size = os.fstat(self._file.fileno()).st_size
            self._append(line, size)
            if size + len(line) >= self._most_bytes:
                self._rotate()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror}): free some space") from None

    def _append(self, line: bytes, size: int) -> None:
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(size)
            raise

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file. Twice is fine."""
        self._ended = True
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        names = [self._path, *(self._path.with_suffix(f".{n}.jsonl") for n in range(1, self._files))]
        if len(names) == 1:
            self._path.unlink()
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                os.replace(newer, older)
        self._file = self._opened()

    def _opened(self) -> IO[bytes]:
        return self._path.open("ab", buffering=0)


def last_events(path: Path) -> list[dict[str, Any]]:
    """The whole events in the last part of a file, oldest first; none where there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    events = []
    for line in lines[bool(start) : -1]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        while size > 0:
            start = max(0, size - 65536)
            file.seek(start)
            end = file.read(size - start).rfind(b"\n")
            if end >= 0:
                file.truncate(start + end + 1)
                return
            size = start
        file.truncate(0)
