"""How many threads torch may use while a tracker works."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on ``count`` threads (None: as it is set); the caller's setting comes back.

    Networks this small gain little from a second thread, and lose much to it where something else needs the core:
    waiting threads spin. The last bits of a result depend on the count too, so that a fixed one gives the same boxes
    on machines with other numbers of cores.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
