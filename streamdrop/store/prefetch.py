"""Reading ahead: the next batches come out of a store while the caller computes on the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from streamdrop.errors import ConfigError
from streamdrop.store.protocol import FeatureStore
from streamdrop.types import Activations, SampleInfo, Target


@dataclass(frozen=True)
class Stored:
    """One batch out of a store: activations [N, ...], targets and (if asked for) infos in the order of ``keys``."""

    keys: list[bytes]
    activations: Activations
    targets: Target | None
    info: list[SampleInfo]


def read_ahead(
    store: FeatureStore, order: Iterable[Sequence[bytes]], depth: int = 2, info: bool = True, pin: bool = False
) -> Generator[Stored, None, None]:
    """The batches that ``order`` names, up to ``depth`` of them gathered ahead by a thread while the caller computes.

    Activations are valid until the next batch is asked for: their memory is used again. ``depth`` 0 reads in line.
    ``pin`` asks for page-locked memory, from which a GPU copies.
    ``order`` is drawn in the caller's thread, ``depth`` batches before their turn. What ``order`` or the store raises
    comes at the batch it belongs to; the thread ends with the generator, also when that is closed early. A batch shows
    the store as it was when it was gathered. Raises ConfigError for a negative ``depth``.
    """
    if depth < 0:
        raise ConfigError(f"depth is {depth}: give a whole number of at least 0")
    read = _Reader(store, info, pin)
    if depth == 0:
        return _in_line(read, order)
    return _in_background(read, order, depth)


def _in_line(read: _Reader, order: Iterable[Sequence[bytes]]) -> Generator[Stored, None, None]:
    buffers: list[Tensor] = []
    for keys in order:
        yield read(list(keys), buffers)


def _in_background(read: _Reader, order: Iterable[Sequence[bytes]], depth: int) -> Generator[Stored, None, None]:
    upcoming = iter(order)
    pending: deque[tuple[Future[Stored], list[Tensor]]] = deque()
    # The executor's thread is joined when the interpreter ends, so a generator that nobody closes cannot hang it.
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        pool.submit(int)  # begins the thread
    except RuntimeError:  # none can be had; what a later submit would leave queued could fill buffers of another batch
        yield from _in_line(read, upcoming)
        return

    def ask(buffers: list[Tensor]) -> None:
        try:
            keys = next(upcoming, None)
        except Exception as error:
            future: Future[Stored] = Future()
            future.set_exception(error)
        else:
            if keys is None:
                return
            future = pool.submit(read, list(keys), buffers)
        pending.append((future, buffers))

    try:
        for _ in range(depth + 1):
            ask([])
        while pending:
            future, buffers = pending.popleft()
            yield future.result()
            ask(buffers)  # the caller wants the next one: what it had is free
    finally:
        pool.shutdown(cancel_futures=True)


class _Reader:
    """Reads one batch into ``buffers``, which it makes and exchanges as needed: they belong to one batch at a time."""

    def __init__(self, store: FeatureStore, info: bool, pin: bool) -> None:
        self._store, self._info, self._pin = store, info, pin
        self._read_into: Callable[[list[bytes], list[Tensor] | None], Activations] | None
        self._read_into = getattr(store, "read_into", None)

    def __call__(self, keys: list[bytes], buffers: list[Tensor]) -> Stored:
        activations = self._activations(keys, buffers)
        targets = self._store.get_targets(keys)
        if self._pin and targets is not None:
            targets = _pinned(targets) if isinstance(targets, tuple) else targets.pin_memory()
        return Stored(keys, activations, targets, self._store.get_info(keys) if self._info else [])

    def _activations(self, keys: list[bytes], buffers: list[Tensor]) -> Activations:
        if self._read_into is None:
            fresh = self._store.get_many(keys)
            return _pinned(fresh) if self._pin else fresh
        room = bool(buffers) and len(buffers[0]) >= len(keys)
        given = [tensor[: len(keys)] for tensor in buffers] if room else None
        filled = self._read_into(keys, given)
        if given is not None and _same(filled, given):
            return filled
        buffers[:] = filled = _pinned(filled) if self._pin else filled
        return tuple(filled)


def _pinned(tensors: Sequence[Tensor]) -> Activations:
    return tuple(tensor.pin_memory() for tensor in tensors)


def _same(filled: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    return [tensor.data_ptr() for tensor in filled] == [tensor.data_ptr() for tensor in given]
