"""Files that a kill cannot tear."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_text(path: Path, text: str, mode: int = 0o666) -> None:
    """A text file (UTF-8), durable, whole or as it was; ``mode``: its permissions where it is new. Raises OSError.

    What is there and no file, such as a device or a pipe, is written to.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f"{path.name}.new")
    try:
        write_text(temporary, text, mode)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # what was raised first says more
            temporary.unlink()  # on a full disk it would keep it full
        raise
    sync(path.parent)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """A text file (UTF-8), durable once its folder is synced. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a file's content durable, or what was created, renamed or removed in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
