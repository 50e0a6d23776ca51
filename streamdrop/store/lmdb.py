"""The durable store: a folder with LMDB's records and slabs of rows, written by one process, read by any number."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

import torch
from typing_extensions import Self

from streamdrop.errors import StoreCorruptError, StoreError
from streamdrop.interrupts import held
from streamdrop.store.batches import stack_or_none
from streamdrop.store.compress import compressor
from streamdrop.store.drift import Drift
from streamdrop.store.entries import Entry, checked, decode, target_of
from streamdrop.store.folder import Folder
from streamdrop.store.intake import check_keys, take_in
from streamdrop.store.layout import Layout, codec_name, fitting
from streamdrop.store.ledger import LmdbShelf
from streamdrop.store.marks import count_at, release, rollback
from streamdrop.store.memory_shelf import Record
from streamdrop.store.promotion import LmdbStage
from streamdrop.store.protocol import OneOfAKind, Sources, Step, Targets
from streamdrop.store.retention import Retention, retain
from streamdrop.store.rewriting import compact, thaw
from streamdrop.store.rows import PACKED_UNIT, Packer, gather, read_row
from streamdrop.store.slab import MAP_BYTES
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Tables
from streamdrop.store.writing import RECORDS, put_records, put_samples
from streamdrop.types import Activations, SampleInfo, Target


class LmdbStore(OneOfAKind):
    """A FeatureStore in the folder ``path``, created when there is none (cut 0, version '').

    One writer, held by a lock that dies with its process; ``read_only`` opens beside it and creates nothing. Each
    ``put_many`` survives a killed process when it returns, and a power cut once ``flush``, ``advance`` or ``mark`` has
    returned; neither can tear the store. ``max_samples`` or a whole ``retention`` bound it. ``dtype`` "float16",
    "bfloat16" or "int8" shrinks floating tensors (``error`` tells at what error), ``compression`` "lz4" or "zstd" loses
    nothing; both are the store's own from its first opening on, None takes what it has. ``verify`` checks every row
    that is read against its checksum; files larger than ``map_bytes`` are read without a map in this process's memory.
    ``clock`` gives seconds, for ages. Threads may share a store; a forked child must open its own.

    Raises StoreLockedError, StoreVersionError (foreign, newer, other ``dtype``), StoreCorruptError, StoreError.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        max_samples: int | None = None,
        retention: Retention | None = None,
        dtype: str | torch.dtype | None = None,
        compression: str | None = None,
        verify: bool = True,
        map_bytes: int = MAP_BYTES,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.read_only, self.verify, self.clock = Path(path), read_only, verify, clock
        self.retention = Retention.of(max_samples, retention)
        codec = codec_name(dtype)
        if compression is not None:
            compressor(compression)
        self.folder = Folder(self.path, read_only, self.retention, map_bytes, codec, compression)
        # Weak: an interruption may come between the stage and whoever would leave it.
        self._staged: weakref.ref[LmdbStage] | None = None

    # ---------------------------------------------------------------- what it is

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self.now().cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self.now().version

    @property
    def lineage(self) -> tuple[tuple[int, str], ...]:
        """The (cut, version) of every promotion's origin, oldest first."""
        return self.now().lineage

    @property
    def codec(self) -> str:
        """How floating tensors are kept: "float32" (exact), "float16", "bfloat16", "int8"."""
        return self.now().codec

    @property
    def identity(self) -> str:
        """A word that no other store has, '' for one of an earlier release; copies of the folder have the same."""
        return self.folder.identity()

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        return self.now().drift.report()

    def now(self) -> State:
        """The facts about the store as last committed."""
        return self.folder.now()

    def __len__(self) -> int:
        return self.now().count

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes) or not key:
            return False
        with self.folder.reading() as (tables, _):
            return tables.find_each([key])[0] is not None

    def keys(self, stream: str | None = None) -> list[bytes]:
        """All keys, or those of one stream, oldest arrival first."""
        with self.folder.reading() as (tables, state):
            if stream is not None:
                return tables.stream_keys(stream, state.last)
            return self.folder.known.keys(tables, state)

    # ---------------------------------------------------------------- samples in and out

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Store samples, all or none. Raises DataError before anything is written, StoreFullError."""
        with self.folder.writing():
            state = self.now()
            incoming, layout = take_in(samples, targets, info, state.layout, state.codec, sources)
            if layout is not None and incoming:
                with held():
                    put_samples(self, layout, incoming)

    def apply(self, records: Sequence[Record], layout: Layout, gone: Sequence[bytes], drift: Drift) -> None:
        """One commit for a tier that has settled what comes, encoded already, and what leaves. Raises StoreError."""
        with self.folder.writing(), held():
            put_records(self, layout, records, gone, drift)

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        return self.read_into(keys, None)

    def read_into(self, keys: Sequence[bytes], buffers: Sequence[torch.Tensor] | None) -> Activations:
        """As ``get_many``, but in the memory of ``buffers``, activations of an earlier call, where that fits.

        Raises MissingKeyError, StoreCorruptError.
        """
        layout, columns = self.columns(keys, buffers)
        return layout.decode(columns) if layout is not None else ()

    def columns(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[torch.Tensor] | None = None,
        into: tuple[Sequence[torch.Tensor], Sequence[int]] | None = None,
    ) -> tuple[Layout | None, Sequence[torch.Tensor]]:
        """Samples as stored: the layout, and a tensor [N, ...] for each of its columns.

        ``into``: columns of a larger batch and the samples' places there, to be filled instead of new ones.
        """
        locate = self.folder.known.locate
        while True:
            with self.folder.reading() as (tables, state):
                if state.layout is None:
                    locate(tables, state, keys)
                    return None, ()
                found = locate(tables, state, keys)
                packer = Packer(state.layout, state.compression)
                try:
                    file = self.folder.files.reading(VALUES, state.generation, packer.unit) if found else None
                except FileNotFoundError:
                    self._still_there(state)
                    continue
                columns, at = into if into is not None else (fitting(packer.layout, len(found), buffers), None)
                if file is not None:
                    gather(file, packer, found, columns, self.verify, at)
            return packer.layout, columns

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        with self.folder.reading() as (tables, state):
            found = [seq for seq, _ in self.folder.known.locate(tables, state, keys)]
            return stack_or_none(keys, [target_of(checked(raw)) for raw in tables.raw_entries(found)])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        return [entry.info for entry in self.entries(keys)]

    def entries(self, keys: Sequence[bytes]) -> list[Entry]:
        """Everything beside the rows: info, arrival, encoded target. Raises MissingKeyError, StoreCorruptError."""
        with self.folder.reading() as (tables, state):
            found = [seq for seq, _ in self.folder.known.locate(tables, state, keys)]
            return [decode(raw) for raw in tables.raw_entries(found)]

    def get_sources(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The encoded inputs, None where none was given. Raises MissingKeyError, StoreCorruptError."""
        while True:
            with self.folder.reading() as (tables, state):
                found = [seq for seq, _ in self.folder.known.locate(tables, state, keys)]
                try:
                    return self.sources_of(tables, state, found)
                except FileNotFoundError:
                    self._still_there(state)

    def sources_of(self, tables: Tables, state: State, found: Sequence[int]) -> list[bytes | None]:
        """The sources of samples by sequence number. Raises FileNotFoundError when the state is no longer current."""
        places = tables.places(SOURCES, state.source_generation, found)
        if all(place is None for place in places):
            return [None] * len(places)
        slab = self.folder.files.reading(SOURCES, state.source_generation, PACKED_UNIT).slab
        return [
            None if place is None else bytes(read_row(slab, seq, place, self.verify))
            for seq, place in zip(found, places, strict=True)
        ]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored. Durable after ``flush``."""
        wanted = list(dict.fromkeys(check_keys(list(keys))))
        for at in range(0, len(wanted), RECORDS):
            self._discard(wanted[at : at + RECORDS])

    def _discard(self, wanted: Sequence[bytes]) -> None:
        def work(tables: Tables, state: State) -> State:
            found = zip(wanted, tables.find_each(wanted), strict=True)
            gone = [(key, seq) for key, seq in found if seq is not None]
            state = replace(state, last=state.last + bool(gone))
            return self.folder.ledger(tables).remove(state, gone, state.last)

        self.folder.change(work)

    def flush(self) -> None:
        """Everything put and discarded so far survives a power cut when this returns."""
        self.folder.check_open()
        if not self.read_only:
            self.folder.environment.sync()

    # ---------------------------------------------------------------- other cuts

    def advance(self, cut: int, step: Step, version: str, chunk: int = 64) -> None:
        """Promote every sample with ``step``, all or none. Raises StoreError, StoreVersionError, DataError."""
        with self.stage(cut, version) as staged:
            staged.commit(step, chunk)

    def stage(self, cut: int, version: str) -> LmdbStage:
        """Start a later cut beside the present one, which stays readable, or go on with one that was killed.

        Raises StoreError, StoreVersionError.
        """
        with self.folder.writing(), held():
            self._check_unstaged()
            return self._noted(LmdbStage(self, cut, version))

    def _noted(self, stage: LmdbStage) -> LmdbStage:
        self._staged = weakref.ref(stage)
        return stage

    def _check_unstaged(self) -> None:
        if self._staged is not None and self._staged() is not None:
            raise StoreError("another promotion of this store is under way: leave or commit it first")

    def unstage(self, stage: LmdbStage) -> None:
        """A promotion is over: another may begin."""
        if self._staged is not None and self._staged() is stage:
            self._staged = None

    def thaw(self, cut: int, embed: Callable[[list[bytes]], Activations], version: str, chunk: int = 64) -> None:
        """Make every sample anew at a lower cut (or this one): ``embed`` turns sources into activations there.

        All or none, durable when it returns. Raises StoreError for a sample without a source, DataError.
        """
        with self.folder.writing():
            self._check_unstaged()
            thaw(self, cut, embed, version, chunk)

    def compact(self) -> None:
        """Rewrite the slabs without gaps and give the room back. Needs room for a copy. Raises StoreFullError."""
        with self.folder.writing():
            self._check_unstaged()
            compact(self)

    # ---------------------------------------------------------------- marks

    def mark(self) -> int:
        """Make all durable and return a mark for ``rollback``; from now on what is removed is held."""
        self.folder.change(lambda _, state: state.marked())
        self.flush()
        return self.now().last

    def count_at(self, mark: int) -> int:
        """How many samples ``rollback`` to ``mark`` would leave. Raises StoreError as that does."""
        return count_at(self.folder, mark)

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError."""
        rollback(self.folder, mark)
        self.flush()

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""
        release(self.folder, mark)

    # ---------------------------------------------------------------- open and closed

    def close(self) -> None:
        """Flush and let go of the files and the lock. Twice is fine."""
        if not self.closed:
            try:
                self.flush()
            finally:
                self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.folder.closed

    # ---------------------------------------------------------------- for the parts of this package

    def shrink(self) -> None:
        """Rows have become larger: evict down to the limits."""
        if self.retention.max_bytes is not None:
            with self.folder.reading() as (tables, state):
                _, gone = retain(self.retention, LmdbShelf(tables, state, self.retention), (), self.clock())
            if gone:
                self.discard(gone)

    def _still_there(self, state: State) -> None:
        """Raise StoreCorruptError unless a later state explains why a slab is gone."""
        if self.now().generation == state.generation:
            file = self.folder.files.path(VALUES, state.generation)
            raise StoreCorruptError(f"{file} is missing: restore the store from a copy, or start anew")
