"""Text outputs of a run: files that begin anew with their first line, not when they are opened."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeAlias

from streamdrop.errors import OutputError

PathLike: TypeAlias = str | os.PathLike[str]


class Lines:
    """A text output, line by line; each is in the file when ``write`` returns.

    What a file held before stands until the first line comes: a run that is refused, for whatever reason, takes no
    earlier result away, and leaves no empty file. A file that is open already is written to as it is; its errors are
    left as they are, for they belong to whoever opened it. Raises OutputError where a file cannot be opened.
    """

    def __init__(self, output: PathLike | IO[str]) -> None:
        self._path: Path | None = None
        self._begun = self._failed = self._new = False
        if not isinstance(output, (str, os.PathLike)):
            self._file = output
            return
        self._path = Path(output)
        self._new = not self._path.exists()
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(self._path, error) from None

    def write(self, text: str) -> None:
        """Append whole lines; raises OutputError."""
        with self._checked():
            if not self._begun and self._path is not None and _is_regular(self._file):
                self._file.truncate(0)
            self._begun = True
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Idempotent. Raises OutputError, but not again what ``write`` has raised."""
        with contextlib.suppress(OutputError) if self._failed else contextlib.nullcontext(), self._checked():
            self._file.close()
        if self._path is not None and self._new and not self._begun:
            self._path.unlink(missing_ok=True)
        self._new = False

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            if self._path is None:
                raise
            raise OutputError(
                f"{self._path}: cannot be written ({error.strerror}): free some space, or choose another place"
            ) from None


def _is_regular(file: IO[str]) -> bool:
    """Pipes and devices hold nothing that could be cut off."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def opened(output: PathLike | IO[str] | Lines | None) -> Lines | None:
    """A text output; what is one already, as it is. Raises OutputError."""
    return output if output is None or isinstance(output, Lines) else Lines(output)


def check_writable(path: PathLike | None) -> None:
    """Refuse now what could only fail after the work: a folder that is missing or read-only."""
    if path is None:
        return
    existed = Path(path).exists()
    try:
        with Path(path).open("ab"):
            pass
        if not existed:
            Path(path).unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: PathLike, error: OSError) -> OutputError:
    """An output that cannot even be opened."""
    return OutputError(f"{path}: cannot be written ({error.strerror}): choose a folder that exists and is writable")
