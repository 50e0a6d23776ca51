"""How many threads torch may use while a tracker works."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")
Other = TypeVar("Other")


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Part], Result], parts: Sequence[Part], workers: int) -> Iterator[Result]:
    """``work`` on each part, results in order; with several ``workers`` at once, on one thread of torch's each.

    The results are those of one thread of torch's, to the last bit. The first part is worked on before the others
    begin, for what is made once and kept.
    """
    if workers == 1 or len(parts) < 2:
        yield from map(work, parts)
        return
    yield work(parts[0])
    with ThreadPoolExecutor(workers, "tracker", torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, parts[1:])


def both(work: Callable[[], Result], other: Callable[[], Other], workers: int) -> tuple[Result, Other]:
    """The results of both; with several ``workers`` the ``other`` is worked on meanwhile, as in ``in_order``."""
    if workers == 1:
        return work(), other()
    with ThreadPoolExecutor(1, "tracker", torch.set_num_threads, (1,)) as pool:
        beside = pool.submit(other)
        return work(), beside.result()


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
