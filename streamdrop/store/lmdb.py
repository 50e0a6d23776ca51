"""The durable store: one LMDB folder, written by one process and read by any number."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType

import torch
from lmdb import Transaction
from typing_extensions import Self

from streamdrop.errors import StoreError, StoreVersionError
from streamdrop.store.batches import stack_or_none
from streamdrop.store.environment import attach, detach
from streamdrop.store.intake import check_keys, check_max_samples, take_in
from streamdrop.store.layout import EXACT, codec_name
from streamdrop.store.promotion import LmdbStage
from streamdrop.store.protocol import Step, Targets
from streamdrop.store.records import decode_entry, entry_key
from streamdrop.store.state import State
from streamdrop.store.tables import BATCH, Tables
from streamdrop.store.writing import put_samples
from streamdrop.types import Activations, SampleInfo, Target


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
        self.environment = attach(self.path, read_only)
        self._let_go = weakref.finalize(self, detach, self.environment, read_only)  # also when nobody calls close
        try:
            self._settle(codec)
        except BaseException:
            self._let_go()
            raise

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self.now().cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self.now().version

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        return self.now().drift.report()

    def now(self) -> State:
        """The facts about the store as last committed."""
        with self.reading() as (_, state):
            return state

    def __len__(self) -> int:
        return self.now().count

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
            state = self.now()
            incoming, layout = take_in(samples, targets, info, state.layout, state.codec)
            if layout is None or not incoming:
                return
            put_samples(self, state, layout, incoming)

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        with self.reading() as (tables, state):
            found = tables.find_all(check_keys(keys))
            return tables.read(state, found) if state.layout else ()

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        with self.reading() as (tables, _):
            return stack_or_none(keys, [tables.target(seq) for seq in tables.find_all(check_keys(keys))])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        with self.reading() as (tables, _):
            return [decode_entry(tables.entry(seq))[1] for seq in tables.find_all(check_keys(keys))]

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
            self.environment.sync()

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
        return self.now().last

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

        more = True

        def work(tables: Tables, state: State) -> State:
            nonlocal more
            dead = list(islice((seq for seq, died, _ in tables.held() if died <= mark), BATCH))
            for seq in dead:
                tables.release(state, seq)
            more = len(dead) == BATCH
            return state.released(mark)

        while more:
            self.change(work)

    def close(self) -> None:
        """Flush and let go of the files and the lock. Twice is fine."""
        if not self.closed:
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
        with self.environment.read() as txn:
            tables = Tables(txn, self.environment.tables)
            yield tables, self._state_in(tables)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One thread at a time; refused when read-only."""
        self._check_open()
        if self.read_only:
            raise StoreError(f"{self.path} was opened read-only: open it without read_only to change it")
        self.environment.check_process()
        with self.environment.turn:
            yield

    def change(self, work: Callable[[Tables, State], State], need: int = 0) -> None:
        """One transaction: ``work`` writes and returns the state that makes it visible."""

        def run(txn: Transaction) -> None:
            tables = Tables(txn, self.environment.tables)
            before = self._state_in(tables)
            after = work(tables, before)
            if after != before:
                tables.set_state(after)

        with self.writing():
            self.environment.write(run, need)

    def sweep(self) -> None:
        """Delete, in bounded transactions, what no state shows."""
        more = True

        def work(tables: Tables, state: State) -> State:
            nonlocal more
            more = tables.sweep(state, keep_staged=self._staged is not None) == BATCH
            return state

        while more:
            self.change(work)

    def _settle(self, codec: str | None) -> None:
        def begin(txn: Transaction) -> None:
            tables = Tables(txn, self.environment.tables)
            if tables.raw_state() is None:
                tables.set_state(State(codec or EXACT))

        if not self.read_only:
            self.environment.write(begin)
        state = self.now()
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
        seen = self._seen
        if seen is None or seen[0] != raw:
            self._seen = seen = (bytes(raw), State.from_bytes(bytes(raw)))
        return seen[1]

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._let_go.alive

    def _check_open(self) -> None:
        if self.closed:
            raise StoreError(f"{self.path} is closed: open it again")
