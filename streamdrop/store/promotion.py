"""Promotion in LMDB: a new generation of values beside the old one, one flip, then the old one goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.store.batches import check_chunk, stepped
from streamdrop.store.intake import check_activations, missing
from streamdrop.store.layout import Layout
from streamdrop.store.protocol import Step
from streamdrop.store.state import Drift, State
from streamdrop.store.tables import Tables, encode_value
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore

BUFFER_BYTES = 16 << 20
"""Staged values are gathered up to this size before they are written: nothing staged needs to last before the flip."""


class LmdbStage:
    """A later cut of an LmdbStore in the making; the present one stays readable."""

    def __init__(self, store: LmdbStore, cut: int, version: str) -> None:
        with store.reading() as (tables, state):
            empty = not state.count and not tables.held_count()
        self._store, self._cut, self._version = store, cut, version
        self._needed = state.check_cut(cut, version, empty)
        self._generation = state.generation + 1
        self._layout: Layout | None = None
        self._drift = Drift()
        self._pending: dict[int, bytes] = {}
        self._weight = 0
        self._done = False

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""
        with self._store.writing():
            self._check_running()
            with self._store.reading() as (tables, state):
                layout = check_activations(samples, self._layout, state.codec)
                found = {key: tables.find(key) for key in samples}
            if any(seq is None for seq in found.values()):
                raise missing(key for key, seq in found.items() if seq is None)
            if self._needed and layout is not None:
                self._layout = layout
                self._keep([s for s in found.values() if s is not None], [tuple(a) for a in samples.values()])

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged with ``step``, then flip. Durable when it returns. Raises DataError."""
        check_chunk(chunk)
        with self._store.writing():
            self._check_running()
            if self._needed:
                self._write()
                self._promote(step, chunk)
                self._write()
                self._store.flush()
                self._store.change(self._flip)
                self._store.flush()
            self._done = True
        self._store.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.unstage(self)
        if not self._done:
            self._done = True
            self._pending = {}
            try:
                self._store.sweep()
            except StoreError:  # closed, or no room to tidy up: the next opening does it
                if error is None and not self._store.closed:
                    raise

    def _check_running(self) -> None:
        if self._done:
            raise StoreError("this promotion is over: start another with stage()")

    def _keep(self, found: Sequence[int], activations: Sequence[Activations]) -> None:
        assert self._layout is not None
        for seq, sample in zip(found, activations, strict=True):
            packed = self._layout.pack(sample)
            self._drift += Drift.over(self._layout, [sample], [packed])
            self._weight += self._layout.nbytes
            self._pending[seq] = encode_value(packed)
            if self._weight >= BUFFER_BYTES:
                self._write()

    def _write(self) -> None:
        def work(tables: Tables, state: State) -> State:
            for seq, value in self._pending.items():
                if tables.has_value(state.generation, seq):  # else it was discarded since
                    tables.put_value(self._generation, seq, value)
            return state

        if self._pending:
            self._store.change(work, self._weight)
        self._pending, self._weight = {}, 0

    def _promote(self, step: Step, chunk: int) -> None:
        start = 0
        while True:
            found, batch, following = self._next(start, chunk)
            if following is None:
                return
            start = following
            if batch:
                rows = stepped(step, batch, len(found))
                names = {b"%d" % seq: row for seq, row in zip(found, rows, strict=True)}
                self._layout = check_activations(names, self._layout, self._store.now().codec)
                self._keep(found, rows)

    def _next(self, start: int, chunk: int) -> tuple[list[int], Activations, int | None]:
        with self._store.reading() as (tables, state):
            found: list[int] = []
            while len(found) < chunk:
                seen = tables.sequence(state.generation, start, chunk - len(found))
                if not seen:
                    break
                start = seen[-1] + 1
                found += [seq for seq in seen if not tables.has_value(self._generation, seq)]
            return found, tables.read(state, found) if found else (), start if found else None

    def _flip(self, tables: Tables, state: State) -> State:
        return replace(
            state,
            cut=self._cut,
            version=self._version,
            generation=self._generation,
            layout=self._layout,
            drift=self._drift,
        )
