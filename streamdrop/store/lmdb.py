"""The durable store: one LMDB folder, written by one process and read by any number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from typing_extensions import Self

from streamdrop.errors import StoreError, StoreVersionError
from streamdrop.store.environment import attach, detach
from streamdrop.store.intake import Incoming, check_keys, check_max_samples, check_room, missing, take_in
from streamdrop.store.layout import EXACT, Layout, byte_view, codec_name
from streamdrop.store.memory import stack_or_none
from streamdrop.store.promotion import LmdbStage
from streamdrop.store.protocol import Step, Targets
from streamdrop.store.records import decode_entry, entry_key, entry_pinned
from streamdrop.store.state import Drift, State
from streamdrop.store.tables import BATCH, Tables, encode_value
from streamdrop.types import Activations, SampleInfo, Target

T = TypeVar("T")
TRANSACTION_BYTES = 64 << 20
"""LMDB keeps a transaction's pages in memory: larger puts are split, and become visible with the last part."""


class LmdbStore:
    """A FeatureStore in the folder ``path``, created when there is none (cut 0, version '').

    One writer, held by a lock that dies with its process; ``read_only`` opens beside it and creates nothing. Each
    ``put_many`` survives a killed process when it returns, and a power cut once ``flush``, ``advance`` or ``mark`` has
    returned; neither can tear the file. ``max_samples``: the oldest unpinned samples make room. ``dtype`` "float16" or
    "bfloat16" halves floating tensors (``error`` tells at what error); None takes the store's own, exact for a new one.
    Threads may share it; a forked child must open its own.

    Raises StoreLockedError, StoreVersionError (foreign, newer, other ``dtype``), StoreCorruptError, StoreError.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        max_samples: int | None = None,
        dtype: str | torch.dtype | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = Path(path)
        self.max_samples = check_max_samples(max_samples)
        self.read_only = read_only
        self._seen: tuple[bytes, State] | None = None
        self._staged: LmdbStage | None = None
        codec = codec_name(dtype)
        self._environment = attach(self.path, read_only)
        self._closed = False
        try:
            self._settle(codec)
        except BaseException:
            self._let_go()
            raise

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self.state().cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self.state().version

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        return self.state().drift.report()

    def state(self) -> State:
        """The store's state as last committed."""
        with self.reading() as (_, state):
            return state

    def __len__(self) -> int:
        return self.state().count

    def __contains__(self, key: object) -> bool:
        with self.reading() as (tables, _):
            return isinstance(key, bytes) and bool(key) and tables.find(key) is not None

    def keys(self) -> list[bytes]:
        """All keys, oldest arrival first."""
        with self.reading() as (tables, state):
            return [entry_key(entry) for _, entry in tables.living(state.last)]

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
    ) -> None:
        """Store samples, all or none. Raises DataError before anything is written, StoreFullError."""
        with self.writing():
            state = self.state()
            incoming, layout = take_in(samples, targets, info, state.layout, state.codec)
            if layout is None or not incoming:
                return
            self._check_room(state, incoming)
            parts = _split(incoming, layout)
            first = state.last + 1
            try:
                for part in parts[:-1]:
                    state = self._write_part(state, layout, part, first)
                    first += len(part)
                self._write_last(state, layout, incoming, parts[-1], first)
            except BaseException:
                self._sweep_quietly(len(parts) > 1)
                raise

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        with self.reading() as (tables, state):
            found = self._find(tables, keys)
            return read_values(tables, state, found) if state.layout else ()

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        with self.reading() as (tables, _):
            return stack_or_none(keys, [tables.target(seq) for seq in self._find(tables, keys)])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        with self.reading() as (tables, _):
            return [decode_entry(tables.entry(seq))[1] for seq in self._find(tables, keys)]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored. Durable after ``flush``."""
        wanted = list(dict.fromkeys(check_keys(list(keys))))

        def work(tables: Tables, state: State) -> State:
            gone = [(key, seq) for key in wanted if (seq := tables.find(key)) is not None]
            state = replace(state, last=state.last + bool(gone))
            for key, seq in gone:
                tables.drop_key(key)
                state = tables.bury(state, seq, state.last)
            return state

        self.change(work)

    def flush(self) -> None:
        """Everything put and discarded so far survives a power cut when this returns."""
        self._check_open()
        if not self.read_only:
            self._environment.sync()

    def advance(self, cut: int, step: Step, version: str, chunk: int = 64) -> None:
        """Promote every sample with ``step``, all or none. Raises StoreError, StoreVersionError, DataError."""
        with self.stage(cut, version) as staged:
            staged.commit(step, chunk)

    def stage(self, cut: int, version: str) -> LmdbStage:
        """Start a later cut beside the present one, which stays readable. Raises StoreError, StoreVersionError."""
        with self.writing():
            if self._staged is not None:
                raise StoreError("another promotion of this store is under way: leave or commit it first")
            self._staged = LmdbStage(self, cut, version)
            return self._staged

    def unstage(self, stage: LmdbStage) -> None:
        """A promotion is over: another may begin."""
        if self._staged is stage:
            self._staged = None

    def mark(self) -> int:
        """Make all durable and return a mark for ``rollback``; from now on what is removed is held."""
        self.change(lambda _, state: state.marked())
        self.flush()
        return self.state().last

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError."""

        def work(tables: Tables, state: State) -> State:
            state.check_mark(mark)
            held = [(seq, entry) for seq, died, entry in tables.held() if died > mark]
            for seq, entry in [(s, bytes(e)) for s, e in tables.living(state.last, mark + 1)]:
                tables.drop_key(entry_key(entry))
                state = tables.bury(state, seq, state.last)
                tables.release(state, seq)
            for seq, entry in held:
                if seq > mark:
                    tables.release(state, seq)
                else:
                    state = tables.revive(state, seq, entry)
            return state.rolled_back(mark)

        self.change(work)
        self.flush()

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""

        def work(tables: Tables, state: State) -> State:
            dead = list(islice((seq for seq, died, _ in tables.held() if died <= mark), BATCH))
            for seq in dead:
                tables.release(state, seq)
            nonlocal more
            more = len(dead) == BATCH
            return state.released(mark)

        more = True
        while more:
            self.change(work)

    def close(self) -> None:
        """Flush and let go of the files and the lock. Twice is fine."""
        if not self._closed:
            try:
                self.flush()
            finally:
                self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[tuple[Tables, State]]:
        """The tables and the state in one consistent view."""
        self._check_open()
        with self._environment.read() as txn:
            tables = Tables(txn, self._environment.tables)
            yield tables, self._state_in(tables)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One thread at a time; refused when read-only."""
        self._check_open()
        if self.read_only:
            raise StoreError(f"{self.path} was opened read-only: open it without read_only to change it")
        self._environment.check_process()
        with self._environment.turn:
            yield

    def change(self, work: Callable[[Tables, State], State], need: int = 0) -> None:
        """One transaction: ``work`` writes and returns the state that makes it visible."""

        def run(txn: object) -> None:
            tables = Tables(txn, self._environment.tables)
            before = self._state_in(tables)
            after = work(tables, before)
            if after != before:
                tables.set_state(after)

        with self.writing():
            self._environment.write(run, need)

    def sweep(self) -> None:
        """Delete, in bounded transactions, what no state shows."""
        more = True

        def work(tables: Tables, state: State) -> State:
            nonlocal more
            more = tables.sweep(state) == BATCH
            return state

        while more:
            self.change(work)

    def _settle(self, codec: str | None) -> None:
        def begin(txn: object) -> None:
            tables = Tables(txn, self._environment.tables)
            if tables.raw_state() is None:
                tables.set_state(State(codec or EXACT))

        if not self.read_only:
            self._environment.write(begin)
        state = self.state()
        if codec is not None and codec != state.codec:
            raise StoreVersionError(
                f"{self.path} keeps {state.codec}, not {codec}: open it with dtype={state.codec!r}, or use a new path"
            )
        if not self.read_only:
            self.sweep()

    def _state_in(self, tables: Tables) -> State:
        raw = tables.raw_state()
        if raw is None:
            raise StoreError(f"{self.path} is an empty store that was never finished: open it for writing once")
        if self._seen is None or self._seen[0] != raw:
            self._seen = (bytes(raw), State.from_bytes(bytes(raw)))
        return self._seen[1]

    def _find(self, tables: Tables, keys: Sequence[bytes]) -> list[int]:
        wanted = check_keys(keys)
        found = [tables.find(key) for key in wanted]
        absent = [key for key, seq in zip(wanted, found, strict=True) if seq is None]
        if absent:
            raise missing(absent)
        return [seq for seq in found if seq is not None]

    def _check_room(self, state: State, incoming: Sequence[Incoming]) -> None:
        if self.max_samples is None:
            return
        with self.reading() as (tables, _):
            found = [seq for item in incoming if (seq := tables.find(item.key)) is not None]
            replaced = sum(entry_pinned(tables.entry(seq)) for seq in found)
        pinned = state.pinned - replaced + sum(item.info.pinned for item in incoming)
        check_room(pinned, incoming, self.max_samples)

    def _encode(self, state: State, layout: Layout, part: Sequence[Incoming]) -> tuple[list[bytes], Drift]:
        packed = [layout.pack(item.activations) for item in part]
        drift = Drift.over(layout, [item.activations for item in part], packed)
        return [encode_value(p) for p in packed], drift

    def _write_part(self, state: State, layout: Layout, part: Sequence[Incoming], first: int) -> State:
        """Records above the clock: nobody sees them before the last part is written."""
        values, drift = self._encode(state, layout, part)

        def run(txn: object) -> None:
            _put_part(Tables(txn, self._environment.tables), state, part, values, first)

        self._environment.write(run, _weight(values, part))
        return replace(state, drift=state.drift + drift)

    def _write_last(
        self, state: State, layout: Layout, incoming: Sequence[Incoming], part: Sequence[Incoming], first: int
    ) -> None:
        values, drift = self._encode(state, layout, part)
        clock = state.last

        def work(tables: Tables, _: State) -> State:
            _put_part(tables, state, part, values, first)
            after = replace(state, layout=layout, last=clock + len(incoming), drift=state.drift + drift)
            for seq, item in enumerate(incoming, clock + 1):
                after = tables.point(after, item.key, seq)
            return self._evict(tables, after)

        self.change(work, _weight(values, part))

    def _evict(self, tables: Tables, state: State) -> State:
        excess = 0 if self.max_samples is None else state.count - self.max_samples
        if excess <= 0:
            return state
        free = ((seq, bytes(e)) for seq, e in tables.living(state.last) if not entry_pinned(e))
        for seq, entry in list(islice(free, excess)):
            tables.drop_key(entry_key(entry))
            state = tables.bury(state, seq, state.last)
        return state

    def _sweep_quietly(self, needed: bool) -> None:
        if needed:
            try:
                self.sweep()
            except StoreError:  # no room to tidy up: the next opening does it
                return

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed: open it again")

    def _let_go(self) -> None:
        self._closed = True
        detach(self._environment, self.read_only)


def read_values(tables: Tables, state: State, found: Sequence[int]) -> Activations:
    """Activations of samples, gathered straight from LMDB's pages: one allocation per tensor, one copy."""
    assert state.layout is not None
    batch = state.layout.allocate(len(found))
    places = [(byte_view(t), *span) for t, span in zip(batch, state.layout.spans, strict=True)]
    nbytes, generation = state.layout.nbytes, state.generation
    for row, seq in enumerate(found):
        value = tables.value(generation, seq, nbytes)
        for view, start, stop in places:
            size = stop - start
            view[row * size : (row + 1) * size] = value[start:stop]
    return state.layout.restore(batch)


def _put_part(tables: Tables, state: State, part: Sequence[Incoming], values: Sequence[bytes], first: int) -> None:
    for seq, (item, value) in enumerate(zip(part, values, strict=True), first):
        tables.put_value(state.generation, seq, value)
        tables.put_sample(seq, item.key, item.info, item.target)


def _split(incoming: Sequence[Incoming], layout: Layout) -> list[Sequence[Incoming]]:
    size = max(1, TRANSACTION_BYTES // max(1, layout.nbytes))
    parts = math.ceil(len(incoming) / size)
    return [incoming[i * size : (i + 1) * size] for i in range(parts)]


def _weight(values: Sequence[bytes], part: Sequence[Incoming]) -> int:
    return sum(map(len, values)) + sum(len(item.target or b"") + len(item.key) + 64 for item in part)
