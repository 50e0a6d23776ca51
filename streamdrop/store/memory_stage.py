"""Another cut in memory: its rows are gathered beside the present ones, then swapped in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.store.batches import check_chunk, stepped
from streamdrop.store.drift import Drift, kept_drift
from streamdrop.store.intake import check_activations
from streamdrop.store.layout import Layout
from streamdrop.store.memory_shelf import Record, Row, batch_of, rows_of
from streamdrop.store.protocol import Step
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.memory import MemoryStore

Embed = Callable[[list[bytes]], Activations]
"""Encoded inputs → batched activations, one sample for each."""


class NextRows:
    """Rows of another cut in the making, by sequence number."""

    def __init__(self, codec: str) -> None:
        self.layout: Layout | None = None
        self.drift = Drift()
        self.rows: dict[int, Row] = {}
        self._codec = codec

    def keep(self, records: Sequence[Record], samples: Sequence[Activations]) -> None:
        """Take in the activations of some records. Raises DataError."""
        keys = [r.key for r in records]
        self.layout = check_activations(dict(zip(keys, samples, strict=True)), self.layout, self._codec)
        if self.layout is not None:
            columns = self.layout.encode(samples, keys)
            self.drift += kept_drift(self.layout, samples, columns, keys)
            self.rows.update(zip([r.born for r in records], rows_of(columns), strict=True))


class MemoryStage:
    """A later cut of a MemoryStore in the making."""

    def __init__(self, store: MemoryStore, cut: int, version: str) -> None:
        self._store, self._cut, self._version = store, cut, version
        self._needed = store._state.check_cut(cut, version, not store._records())
        self._next = NextRows(store._state.codec)
        self._done = False

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""
        with self._store._lock:
            self._check_running()
            check_activations(samples, self._next.layout, self._store._state.codec)
            records = self._store._find(list(samples))
            if self._needed and records:
                self._next.keep(records, [tuple(a) for a in samples.values()])

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged and flip. Raises DataError when ``step`` does not fit; then nothing changed."""
        check_chunk(chunk)
        with self._store._lock:
            self._check_running()
            if self._needed:
                self._promote(step, chunk)
                state, after = self._store._state, self._next
                self._store._flip(state.promoted(self._cut, self._version, after.layout, after.drift), after.rows)
            self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._store._lock:
            self._done = True
            self._next.rows = {}
            if self._store._staged is not None and self._store._staged() is self:
                self._store._staged = None

    def _check_running(self) -> None:
        self._store._check_open()
        if self._done:
            raise StoreError("this promotion is over: start another with stage()")

    def _promote(self, step: Step, chunk: int) -> None:
        before = self._store._state.layout
        rest = [r for r in self._store._records() if r.born not in self._next.rows]
        for start in range(0, len(rest) if before else 0, chunk):
            assert before is not None
            records = rest[start : start + chunk]
            self._next.keep(records, stepped(step, batch_of(before, [r.row for r in records]), len(records)))


def thawed_rows(records: Sequence[Record], embed: Embed, codec: str, chunk: int) -> NextRows:
    """Every record made anew from its source. Raises StoreError for one without, DataError when ``embed`` misfits."""
    bare = next((r.key for r in records if r.source is None), None)
    if bare is not None:
        raise StoreError(
            f"sample {bare!r} has no source to make it anew from: put samples with sources= (one that was replaced "
            "or discarded may be held for a mark: release that first)"
        )
    made = NextRows(codec)
    for start in range(0, len(records), chunk):
        some = records[start : start + chunk]
        made.keep(some, _embedded(embed, [r.source for r in some if r.source is not None]))
    return made


def _embedded(embed: Embed, sources: list[bytes]) -> list[Activations]:
    return stepped(lambda _: embed(sources), (), len(sources))
