"""A bounded memory in front of the durable store: puts return at once and are committed together, in the background."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from streamdrop.errors import ConfigError, StoreError
from streamdrop.interrupts import held
from streamdrop.store.batches import stack_or_none
from streamdrop.store.entries import Entry
from streamdrop.store.front import Front
from streamdrop.store.intake import check_keys, take_in
from streamdrop.store.layout import fitting
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.memory_shelf import fill_rows
from streamdrop.store.promotion import LmdbStage
from streamdrop.store.protocol import OneOfAKind, Sources, Step, Targets
from streamdrop.store.write_behind import WriteBehind
from streamdrop.types import Activations, SampleInfo, Target


class TieredStore(OneOfAKind):
    """An LmdbStore behind a memory: ``put_many`` and ``discard`` return at once, a thread commits them.

    One commit each ``commit_seconds``, at the end of a round where there are rounds (``round_done``), or when
    ``commit_bytes`` wait (or a 128th of a bounded store: room is used again only after a commit); ``flush`` waits for
    it. A killed process loses at most what had not been committed, never a part of a batch. What was put is read back
    at once, always. When twice as much waits, ``put_many`` waits too; the newest committed samples stay in memory up to
    ``memory_bytes`` in all. A commit that fails is told by the next ``put_many`` or ``flush`` and tried again by that
    ``flush``. Other options as LmdbStore's; other processes may read the folder with ``LmdbStore(path,
    read_only=True)`` and see what is committed.

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
        self.retention, self.path = self.durable.retention, self.durable.path
        self._lock = threading.RLock()
        self._closed = False
        try:
            self._front = Front(self.durable, memory_bytes)
            self._writer = WriteBehind(self._front, self._lock, commit_seconds, min(commit_bytes, memory_bytes // 4))
        except BaseException:
            self.durable.close()
            raise
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
    def identity(self) -> str:
        """A word that no other store has, '' for one of an earlier release."""
        return self.durable.identity

    @property
    def waiting(self) -> int:
        """Samples that wait for their commit."""
        with self._lock:
            return self._front.fresh.count

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        with self._lock:
            return self._front.drift.report()

    def __len__(self) -> int:
        with self._lock:
            self._check_open()
            return self._front.count

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._front.fresh.records or (key not in self._front.gone and key in self.durable)

    def keys(self, stream: str | None = None) -> list[bytes]:
        """All keys, or those of one stream, oldest arrival first."""
        with self._lock:
            self._check_open()
            fresh = self._front.fresh.records
            old = [key for key in self.durable.keys(stream) if key not in fresh and key not in self._front.gone]
            return old + self._front.fresh.keys(stream)

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
            self._writer.raise_error()
            codec = self.durable.now().codec
            incoming, layout = take_in(samples, targets, info, self._front.layout, codec, sources)
            if layout is not None and incoming:
                self._writer.wait_for_room(len(incoming) * layout.nbytes)
                self._check_open()  # it may have been closed meanwhile
                with held():
                    self._front.take(incoming, layout, self.durable.clock())
                    self._writer.note()

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        return self.read_into(keys, None)

    def read_into(self, keys: Sequence[bytes], buffers: Sequence[torch.Tensor] | None) -> Activations:
        """As ``get_many``, but in the memory of ``buffers``, activations of an earlier call, where that fits."""
        wanted = check_keys(keys)
        with self._lock:
            self._check_open()
            self._front.check_there(wanted)
            rows = [self._front.row(key) for key in wanted]
            layout = self._front.layout
            if layout is None or not any(rows):
                return self.durable.read_into(wanted, buffers)
            columns = fitting(layout, len(rows), buffers)
            fill_rows(columns, rows)
            places = [i for i, row in enumerate(rows) if row is None]
            if places:
                self.durable.columns([wanted[i] for i in places], into=(columns, places))
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
            self._check_open()
            return self._front.merged(keys, lambda record: record.source, self.durable.get_sources)

    def entries(self, keys: Sequence[bytes]) -> list[Entry]:
        """Everything beside the rows: info, arrival, encoded target. Raises MissingKeyError."""
        with self._lock:
            self._check_open()
            return self._front.merged(keys, lambda r: Entry(r.key, r.info, r.arrived, r.target), self.durable.entries)

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored."""
        with self._lock:
            self._check_open()
            wanted = dict.fromkeys(check_keys(list(keys)))
            with held():
                self._front.remove(wanted)
                self._writer.note()

    # ---------------------------------------------------------------- commits

    def round_done(self) -> None:
        """A round is over: what has waited for a while is committed in the background, before the next frames come."""
        with self._lock:
            self._writer.round_done()

    def flush(self) -> None:
        """Everything put and discarded so far survives a power cut when this returns. Raises StoreFullError."""
        with self._lock:
            self._check_open()
            self._writer.drain()
            self.durable.flush()

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
        with self.settled(), self._reloaded():
            self.durable.thaw(cut, embed, version, chunk)

    def compact(self) -> None:
        """Rewrite the slabs without gaps and give the room back. Needs room for a copy. Raises StoreFullError."""
        with self.settled():
            self.durable.compact()

    def mark(self) -> int:
        """Make all durable and return a mark for ``rollback``; from now on what is removed is held."""
        with self.settled():
            return self.durable.mark()

    def count_at(self, mark: int) -> int:
        """How many samples ``rollback`` to ``mark`` would leave. Raises StoreError as that does."""
        with self.settled():
            return self.durable.count_at(mark)

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError."""
        with self.settled(), self._reloaded():
            self.durable.rollback(mark)

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""
        with self.settled():
            self.durable.release(mark)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, everything is committed and nobody else changes the store."""
        with self._lock:
            self._check_open()
            self._writer.drain()
            yield

    @contextmanager
    def _reloaded(self) -> Iterator[None]:
        """What is in memory afterwards is what the durable store shows, whatever was raised in the block."""
        try:
            yield
        finally:
            with held():
                self._front.reload()

    # ---------------------------------------------------------------- open and closed

    def close(self) -> None:
        """Commit what waits and let go. Twice is fine. Raises what made the last commit fail."""
        with self._lock:
            if self.durable.closed:
                return
            self._closed = True
        try:
            with self._lock:
                self._writer.drain()
        finally:
            with held():
                self._writer.end()
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
        with self._store.settled(), self._store._reloaded():
            self._stage.commit(step, chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, trace)
