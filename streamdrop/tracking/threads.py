"""How torch is set while a tracker works, and work on several threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from streamdrop.errors import ConfigError, TrainingError
from streamdrop.interrupts import held
from streamdrop.tracing.kept import recording

Part = TypeVar("Part")
Result = TypeVar("Result")
Other = TypeVar("Other")


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Part], Result], parts: Sequence[Part], workers: int) -> Iterator[Result]:
    """``work`` on each part, results in order; with several ``workers`` at once, on one thread of torch's each.

    The results are those of one thread of torch's, to the last bit. The first part is worked on before the others
    begin, for what is made once and kept. Raises TrainingError where the system starts no more threads.
    """
    if workers == 1 or len(parts) < 2:
        yield from map(work, parts)
        return
    yield work(parts[0])
    with ThreadPoolExecutor(workers, "tracker", torch.set_num_threads, (1,)) as pool:
        for part in [_submitted(pool, partial(work, one)) for one in parts[1:]]:
            yield part.result()


def both(work: Callable[[], Result], other: Callable[[], Other], workers: int) -> tuple[Result, Other]:
    """The results of both; with several ``workers`` the ``other`` is worked on meanwhile. Raises as ``in_order``."""
    if workers == 1:
        return work(), other()
    with ThreadPoolExecutor(1, "tracker", torch.set_num_threads, (1,)) as pool:
        beside = _submitted(pool, other)
        return work(), beside.result()


def _submitted(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Future[Result]:
    try:
        with held():  # an interruption inside would leave the pool's lock locked
            return pool.submit(work)
    except RuntimeError as error:
        raise TrainingError(
            f"no thread to learn the first frame on ({error}): raise the limit (ulimit -u), or end other programs"
        ) from None


@contextlib.contextmanager
def computing(count: int | None) -> Iterator[None]:
    """Inside, torch is as a tracker needs it, whatever the application has set; on ``count`` threads, as ``threads``.

    Gradients are recorded, nothing is cast, and tensors are made on the CPU. Raises ConfigError where torch's default
    dtype is another than float32: that is every thread's, and not changed here.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ConfigError(
            f"torch's default dtype is {torch.get_default_dtype()}, and a tracker computes in float32: "
            "torch.set_default_dtype(torch.float32) first"
        )
    with contextlib.ExitStack() as settings:
        if torch.empty(0).device.type != "cpu":
            settings.enter_context(torch.device("cpu"))  # it sees every call of torch's, which takes time
        settings.enter_context(recording())
        settings.enter_context(threads(count))
        yield


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
