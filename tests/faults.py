"""Errors of the system put in where it is called: at the n-th call, or from the n-th call on."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lmdb
import pytest

from streamdrop.errors import StoreError
from streamdrop.store.environment import Environment

Seam = tuple[Any, str]
FILES: tuple[Seam, ...] = (
    (os, "open"), (os, "mkdir"), (os, "write"), (os, "pwrite"), (os, "ftruncate"), (os, "fsync"), (os, "fdatasync"),
    (os, "replace"), (os, "unlink"), (mmap, "mmap"),
)  # fmt: skip
"""What Python calls of the system to change files."""
STORES: tuple[Seam, ...] = (*FILES, (Environment, "_commit"), (Environment, "sync"))
"""Those, and LMDB's commits and syncs."""
_OTHERS: dict[str, type[Exception]] = {"_commit": lmdb.DiskError, "sync": StoreError}


class Faults:
    """How many calls there were, and whether one of them failed."""

    def __init__(self, at: int, lasting: bool) -> None:
        self.at, self.lasting = at, lasting
        self.calls = 0

    @property
    def fired(self) -> bool:
        """Whether a call failed."""
        return self.calls >= self.at

    def before(self, name: str) -> None:
        """Count a call; fail where it is its turn."""
        self.calls += 1
        if self.calls == self.at or (self.lasting and self.calls > self.at):
            raise _OTHERS.get(name, OSError)(errno.ENOSPC, f"put in at {name}")


@contextmanager
def failing(seams: tuple[Seam, ...], at: int, lasting: bool = False) -> Iterator[Faults]:
    """Within the block the ``at``-th call of the seams fails, and all later ones where it is ``lasting``."""
    faults = Faults(at, lasting)

    def faulty(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            faults.before(name)
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in seams:
            if hasattr(owner, name):
                patch.setattr(owner, name, faulty(getattr(owner, name), name))
        yield faults
