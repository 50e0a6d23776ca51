"""A bounded memory in front of the durable store: puts return at once and are committed together, in the background."""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from typing_extensions import Self

from streamdrop.errors import ConfigError, StoreError
from streamdrop.store.batches import stack_or_none
from streamdrop.store.drift import Drift
from streamdrop.store.entries import Entry
from streamdrop.store.intake import Incoming, check_keys, missing, take_in
from streamdrop.store.layout import Layout
from streamdrop.store.lmdb import LmdbStore, fitting
from streamdrop.store.memory_shelf import MemoryShelf, Record, Row, rows_of
from streamdrop.store.promotion import LmdbStage
from streamdrop.store.protocol import Sources, Step, Targets
from streamdrop.store.retention import retain
from streamdrop.store.tier_shelf import TierShelf
from streamdrop.types import Activations, SampleInfo, Target

T = TypeVar("T")
_FRESH = 1 << 62
"""Numbers of samples that wait for their commit: above all that the durable store gives."""


class _Batch(NamedTuple):
    """What one commit takes along."""

    records: list[Record]
    gone: set[bytes]
    layout: Layout | None
    drift: Drift


class TieredStore:
    """An LmdbStore behind a memory: ``put_many`` and ``discard`` return at once, a thread commits them.

    One commit each ``commit_seconds``, or when ``commit_bytes`` wait, or when a round is done (``round_done``);
    ``flush`` waits for it. A killed process loses at most what had not been committed, never a part of a batch. What
    was put is read back at once, always. When more than twice ``commit_bytes`` wait, ``put_many`` waits too; the newest
    committed samples stay in memory up to ``memory_bytes`` in all. A commit that fails is told by the next ``put_many``
    or ``flush`` and tried again by that ``flush``. Other options as LmdbStore's; other processes may read the folder
    with ``LmdbStore(path, read_only=True)`` and see what is committed.

    Raises ConfigError, and as LmdbStore does.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        memory_bytes: int = 256 << 20,
        commit_seconds: float = 1.0,
        commit_bytes: int = 64 << 20,
        **options: Any,
    ) -> None:
        for what, value in (("memory_bytes", memory_bytes), ("commit_bytes", commit_bytes)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{what}={value!r} is not a whole number of bytes of at least 1")
        if not commit_seconds > 0:
            raise ConfigError(f"commit_seconds={commit_seconds!r} is not a time above 0")
        if options.get("read_only"):
            raise ConfigError("a tiered store writes: open LmdbStore(path, read_only=True) to read beside it")
        self.durable = LmdbStore(path, **options)
        self.memory_bytes, self.commit_seconds, self.commit_bytes = memory_bytes, commit_seconds, commit_bytes
        self.retention, self.path = self.durable.retention, self.durable.path
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._ring: OrderedDict[bytes, Row] = OrderedDict()  # committed, newest last
        self._ring_bytes = 0
        self._gone: set[bytes] = set()  # the durable store still shows them
        self._arrivals = 0
        self._drift = self._moving = self._committed = Drift()  # of what waits, of the commit under way, of the rest
        self._wanted = False  # a commit was asked for
        self._since: float | None = None  # when the oldest change that waits was made
        self._error: Exception | None = None
        self._closing = self._closed = False
        self._reload()
        self._thread = threading.Thread(target=self._commit_always, name="write-behind", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # ---------------------------------------------------------------- what it is

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self.durable.cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self.durable.version

    @property
    def lineage(self) -> tuple[tuple[int, str], ...]:
        """The (cut, version) of every promotion's origin, oldest first."""
        return self.durable.lineage

    @property
    def codec(self) -> str:
        """How floating tensors are kept: "float32" (exact), "float16", "bfloat16", "int8"."""
        return self.durable.codec

    @property
    def waiting(self) -> int:
        """Samples that wait for their commit."""
        with self._lock:
            return self._fresh.count

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        with self._lock:
            return (self._committed + self._moving + self._drift).report()

    def __len__(self) -> int:
        with self._lock:
            self._check_open()
            return self._shelf.count

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._fresh.records or (key not in self._gone and key in self.durable)

    def keys(self, stream: str | None = None) -> list[bytes]:
        """All keys, or those of one stream, oldest arrival first."""
        with self._lock:
            self._check_open()
            fresh = self._fresh.records
            old = [key for key in self.durable.keys(stream) if key not in fresh and key not in self._gone]
            return old + self._fresh.keys(stream)

    # ---------------------------------------------------------------- samples in and out

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Take samples in, all or none; a commit will follow. Raises DataError, StoreFullError."""
        with self._lock:
            self._check_open()
            self._raise_error()
            codec = self.durable.now().codec
            incoming, layout = take_in(samples, targets, info, self._layout, codec, sources)
            if layout is not None and incoming:
                self._wait_for_room(len(incoming) * layout.nbytes)
                self._take(incoming, layout)
                self._note()

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        return self.read_into(keys, None)

    def read_into(self, keys: Sequence[bytes], buffers: Sequence[torch.Tensor] | None) -> Activations:
        """As ``get_many``, but in the memory of ``buffers``, activations of an earlier call, where that fits."""
        wanted = check_keys(keys)
        with self._lock:
            self._check_open()
            self._check_there(wanted)
            rows = [self._row(key) for key in wanted]
            layout = self._layout
            if None not in rows:
                if layout is None:
                    return ()
                columns = fitting(layout, len(rows), buffers)
                _fill(columns, [(i, row) for i, row in enumerate(rows) if row is not None])
                return layout.decode(columns)
            if not any(rows):
                return self.durable.read_into(wanted, buffers)
            assert layout is not None
            columns = fitting(layout, len(rows), buffers)
            _fill(columns, [(i, row) for i, row in enumerate(rows) if row is not None])
            places = [i for i, row in enumerate(rows) if row is None]
            _, found = self.durable.columns([wanted[i] for i in places])
        for out, part in zip(columns, found, strict=True):
            out[places] = part
        return layout.decode(columns)

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        return stack_or_none(keys, [entry.target for entry in self.entries(keys)])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        return [entry.info for entry in self.entries(keys)]

    def get_sources(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The encoded inputs kept beside the activations, None where none was given. Raises MissingKeyError."""
        with self._lock:
            return self._merged(keys, lambda record: record.source, self.durable.get_sources)

    def entries(self, keys: Sequence[bytes]) -> list[Entry]:
        """Everything beside the rows: info, arrival, encoded target. Raises MissingKeyError."""
        with self._lock:
            return self._merged(keys, lambda r: Entry(r.key, r.info, r.arrived, r.target), self.durable.entries)

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored."""
        with self._lock:
            self._check_open()
            self._remove(dict.fromkeys(check_keys(list(keys))))
            self._note()

    # ---------------------------------------------------------------- commits

    def round_done(self) -> None:
        """A round is over: what waits is committed in the background."""
        with self._lock:
            if self._fresh.count or self._gone:
                self._wanted = True
                self._changed.notify_all()

    def flush(self) -> None:
        """Everything put and discarded so far survives a power cut when this returns. Raises StoreFullError."""
        with self._lock:
            self._check_open()
            self._drain()
            self.durable.flush()

    def _drain(self) -> None:
        """Wait until nothing waits. Raises what made a commit fail, after trying once more."""
        self._error = None
        while self._fresh.count or self._gone:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait()
            self._raise_error()

    def _note(self) -> None:
        """A change was made: the thread has something to wait for."""
        if self._since is None and (self._fresh.count or self._gone):
            self._since = time.monotonic()
            self._changed.notify_all()
        elif self._fresh.nbytes() >= self.commit_bytes:
            self._changed.notify_all()

    def _wait_for_room(self, nbytes: int) -> None:
        while self._fresh.count and self._fresh.nbytes() + nbytes > 2 * self.commit_bytes:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait()
            self._raise_error()

    def _commit_always(self) -> None:
        """The thread: one commit whenever one is due, until the store closes."""
        while (batch := self._next()) is not None:
            error: Exception | None = None
            try:
                if batch.layout is not None:
                    self.durable.apply(batch.records, batch.layout, list(batch.gone), batch.drift)
                else:
                    self.durable.discard(batch.gone)
            except Exception as failure:  # told by the next put or flush: a thread has nobody else to tell
                error = failure
            with self._lock:
                self._done(batch, error)

    def _next(self) -> _Batch | None:
        """Wait for a commit to be due; None when the store closes."""
        with self._lock:
            while not self._due():
                if self._closing:
                    return None
                waits = self._since is not None and self._error is None
                self._changed.wait(self._rest() if waits else None)
            self._wanted, self._since = False, None
            self._moving, self._drift = self._drift, Drift()
            return _Batch(list(self._fresh.records.values()), set(self._gone), self._layout, self._moving)

    def _due(self) -> bool:
        if self._error is not None or not (self._fresh.count or self._gone):
            return False
        return self._wanted or self._fresh.nbytes() >= self.commit_bytes or self._rest() <= 0

    def _rest(self) -> float:
        return self.commit_seconds - (time.monotonic() - self._since) if self._since is not None else 0.0

    def _done(self, batch: _Batch, error: Exception | None) -> None:
        """A commit is over: its samples move from those that wait to the ring, unless they have changed since."""
        self._error = error
        self._moving = Drift()
        if error is not None:
            self._drift = batch.drift + self._drift
        else:
            self._committed = self._committed + batch.drift
            self._gone -= batch.gone
            for record in batch.records:
                if self._fresh.records.get(record.key) is record:
                    self._shelf.settle(record.key)
                    self._keep(record.key, record.row)
        if self._since is None and (self._fresh.count or self._gone):
            self._since = time.monotonic()
        self._changed.notify_all()

    # ---------------------------------------------------------------- other cuts and marks: the durable store's

    def advance(self, cut: int, step: Step, version: str, chunk: int = 64) -> None:
        """Promote every sample with ``step``, all or none. Raises StoreError, StoreVersionError, DataError."""
        with self.stage(cut, version) as staged:
            staged.commit(step, chunk)

    def stage(self, cut: int, version: str) -> TierStage:
        """Start a later cut beside the present one, which stays readable. Raises StoreError, StoreVersionError."""
        with self.settled():
            return TierStage(self, self.durable.stage(cut, version))

    def thaw(self, cut: int, embed: Callable[[list[bytes]], Activations], version: str, chunk: int = 64) -> None:
        """Make every sample anew at a lower cut (or this one) from its source. Raises StoreError, DataError."""
        with self.settled():
            self.durable.thaw(cut, embed, version, chunk)
            self._reload()

    def compact(self) -> None:
        """Rewrite the slabs without gaps and give the room back. Needs room for a copy. Raises StoreFullError."""
        with self.settled():
            self.durable.compact()

    def mark(self) -> int:
        """Make all durable and return a mark for ``rollback``; from now on what is removed is held."""
        with self.settled():
            return self.durable.mark()

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError."""
        with self.settled():
            self.durable.rollback(mark)
            self._reload()

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""
        with self.settled():
            self.durable.release(mark)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, everything is committed and nobody else changes the store."""
        with self._lock:
            self._check_open()
            self._drain()
            yield

    # ---------------------------------------------------------------- open and closed

    def close(self) -> None:
        """Commit what waits and let go. Twice is fine. Raises what made the last commit fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._drain()
            finally:
                self._closing = True
                self._changed.notify_all()
        self._thread.join()
        self.durable.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed: open it again")
        self.durable.folder.environment.check_process()  # a forked child has no thread to commit

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # ---------------------------------------------------------------- who is where

    def _reload(self) -> None:
        """Take over what the durable store holds; nothing waits."""
        state = self.durable.now()
        self._layout: Layout | None = state.layout
        self._committed = state.drift
        self._shelf: TierShelf = TierShelf(self.durable, state.layout.nbytes if state.layout is not None else 0)
        self._fresh: MemoryShelf = self._shelf.fresh
        self._ring.clear()
        self._ring_bytes = 0

    def _take(self, incoming: Sequence[Incoming], layout: Layout) -> None:
        now, retention = self.durable.clock(), self.retention
        gone: Sequence[bytes] = ()
        if retention.bounded:
            arriving = [
                retention.candidate(item.key, seq, layout.nbytes + len(item.source or b""), item.info, now)
                for seq, item in enumerate(incoming, _FRESH + self._arrivals)
            ]
            with self._shelf.viewed(self._gone) as view:
                kept, gone = retain(retention, view, arriving, now)
            stay = {candidate.key for candidate in kept}
            gone = [*gone, *(item.key for item in incoming if item.key not in stay)]
            incoming = [item for item in incoming if item.key in stay]
        keys = [item.key for item in incoming]
        samples = [item.activations for item in incoming]
        columns = layout.encode(samples, keys)
        self._drift = self._drift + Drift.over(layout, samples, columns)
        self._layout, self._fresh.row_bytes = layout, layout.nbytes
        self._remove([*gone, *keys])
        for item, row in zip(incoming, rows_of(columns) if incoming else (), strict=True):
            born, self._arrivals = _FRESH + self._arrivals, self._arrivals + 1
            self._fresh.add(Record(born, item.key, row, item.target, item.info, now, item.source))
            self._gone.discard(item.key)

    def _remove(self, keys: Iterable[bytes]) -> None:
        with self._shelf.viewed(self._gone) as view:
            for key in keys:
                if view.drop(key):
                    self._gone.add(key)
                    row = self._ring.pop(key, None)
                    self._ring_bytes -= _nbytes(row) if row is not None else 0

    def _keep(self, key: bytes, row: Row) -> None:
        """Into the ring, whose oldest make room."""
        self._ring[key] = row
        self._ring_bytes += _nbytes(row)
        while self._ring and self._ring_bytes + self._fresh.nbytes() > self.memory_bytes:
            _, old = self._ring.popitem(last=False)
            self._ring_bytes -= _nbytes(old)

    def _row(self, key: bytes) -> Row | None:
        record = self._fresh.records.get(key)
        return record.row if record is not None else self._ring.get(key)

    def _check_there(self, keys: Sequence[bytes]) -> None:
        absent = [key for key in keys if key in self._gone and key not in self._fresh.records]
        if absent:
            raise missing(absent)

    def _merged(
        self, keys: Sequence[bytes], of: Callable[[Record], T], durable: Callable[[Sequence[bytes]], list[T]]
    ) -> list[T]:
        self._check_open()
        wanted, fresh = check_keys(keys), self._fresh.records
        self._check_there(wanted)
        rest = [key for key in wanted if key not in fresh]
        found = dict(zip(rest, durable(rest), strict=True))
        return [of(fresh[key]) if key in fresh else found[key] for key in wanted]


class TierStage:
    """A later cut of a TieredStore in the making."""

    def __init__(self, store: TieredStore, stage: LmdbStage) -> None:
        self._store, self._stage = store, stage

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""
        with self._store.settled():
            self._stage.put_many(samples)

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged with ``step``, then flip. Durable when it returns. Raises DataError."""
        with self._store.settled():
            self._stage.commit(step, chunk)
            self._store._reload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, trace)


def _nbytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row)


def _fill(columns: Sequence[torch.Tensor], rows: Sequence[tuple[int, Row]]) -> None:
    """Rows from memory into their places in a batch."""
    for j, column in enumerate(columns):
        if len(rows) == len(column):
            torch.stack([row[j] for _, row in rows], out=column)
        else:
            for i, row in rows:
                column[i] = row[j]
