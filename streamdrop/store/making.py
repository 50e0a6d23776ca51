"""A new generation of rows in the making, beside the one that counts; what a kill left of it is taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamdrop.store.drift import Drift
from streamdrop.store.intake import check_activations
from streamdrop.store.layout import Layout
from streamdrop.store.rows import Found, Packer, RowFile, encoded, prepared, started
from streamdrop.store.slab import Place
from streamdrop.store.state import State
from streamdrop.store.tables import VALUES, Tables
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore

BUFFER_BYTES = 64 << 20
"""Staged rows are recorded each time so many bytes are on the disk: a killed promotion goes on from there."""
_PAGE = 1024
_AHEAD = 2
"""Writes under way at most: a promotion waits for the disk rather than filling the memory."""


class Making:
    """A new generation of values in the making: its slab, its records, what a killed process left of it."""

    def __init__(self, store: LmdbStore, cut: int, version: str) -> None:
        self.store, self.cut, self.version = store, cut, version
        state = store.now()
        self.generation, self.compression, self.codec = state.generation + 1, state.compression, state.codec
        self.layout: Layout | None = None
        self.drift = self._noted = Drift()  # of all rows; of those that were recorded
        self._file: RowFile | None = None
        self._written: dict[int, Place] = {}  # since the last record
        self._weight = 0
        self._writes: list[Future[None]] = []
        self._recording: tuple[list[Future[None]], dict[int, Place]] | None = None  # on its way to the disk
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="promotion")
        self._go_on(state)

    def _go_on(self, state: State) -> None:
        """Take up what was recorded of the same promotion; do away with any other."""
        with self.store.folder.reading() as (tables, _):
            raw = tables.meta(b"staged")
            left: dict[str, Any] = json.loads(bytes(raw)) if raw is not None else {}
        if left and left["aim"] == self._aim(state):
            self.layout, self.drift = Layout.from_json(left["layout"]), Drift(*left["drift"])
            self._noted = self.drift
            with self.store.folder.environment.errors(0):
                self._file = self._open(int(left["units"]))
        elif left:
            forget_staged(self.store)

    def _aim(self, state: State) -> list[Any]:
        return [self.cut, self.version, state.generation, state.cut, state.version]

    def _open(self, end: int) -> RowFile:
        assert self.layout is not None
        unit = Packer(self.layout, self.compression).unit
        return self.store.folder.files.adopt(VALUES, self.generation, unit, end)

    def _begin(self) -> RowFile:
        """A slab of this promotion's own, noted so that a sweep leaves it alone."""
        with self.store.folder.environment.errors(0):
            file = self._open(0)
        self.store.folder.change(lambda tables, state: self._note(tables, state, file))
        self._file = file
        return file

    def fit(self, samples: Mapping[bytes, Activations]) -> None:
        """Settle the layout by the first sample. Raises DataError for samples that do not fit it."""
        self.layout = check_activations(samples, self.layout, self.codec)

    def take(self, seqs: Sequence[int], rows: Sequence[Activations]) -> None:
        """Fit and keep samples that a step gave. Raises DataError, StoreFullError."""
        samples = {b"%d" % seq: row for seq, row in zip(seqs, rows, strict=True)}
        self.fit(samples)
        self.keep(seqs, samples)

    def keep(self, seqs: Sequence[int], samples: Mapping[bytes, Activations]) -> None:
        """Write samples' rows in the background; waits when too much is under way. Raises StoreFullError, DataError.

        Where it raises, what was not recorded yet is missing again: no record may lead to a row that was not written.
        """
        if seqs:
            with self._or_missing():
                self._keep(seqs, samples)

    def _keep(self, seqs: Sequence[int], samples: Mapping[bytes, Activations]) -> None:
        assert self.layout is not None
        file, packer = self._file or self._begin(), Packer(self.layout, self.compression)
        rest = list(seqs)
        for columns in encoded(self.layout, samples, self._seen):
            now, rest = rest[: len(columns[0])], rest[len(columns[0]) :]
            write, placed = prepared(file, packer, columns, now)
            self._writes.append(started(self._pool, write))
            self._written.update(zip(now, placed, strict=True))
            self._weight += sum(place.length for place in placed)
            self._wait(_AHEAD)
        if self._weight >= BUFFER_BYTES:
            self._begin_record()

    @contextmanager
    def _or_missing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            wait([*self._writes, *(self._recording[0] if self._recording is not None else ())])
            self._writes, self._written, self._weight, self._recording = [], {}, 0, None
            self.drift = self._noted
            raise

    def _seen(self, drift: Drift) -> None:
        self.drift = self.drift + drift

    def _wait(self, most: int) -> None:
        while len(self._writes) > most:
            with self.store.folder.environment.errors(self._weight):
                self._writes.pop(0).result()

    def record(self) -> None:
        """Record all that was written, once it is on the disk. Raises as ``keep`` does."""
        with self._or_missing():
            self._begin_record()
            self._end_record()

    def _begin_record(self) -> None:
        """Let the disk take what was written; it is recorded when that is done, at the next of these at the latest."""
        self._end_record()
        if self._written and self._file is not None:
            self._writes.append(started(self._pool, self._file.slab.sync))
            self._recording = (self._writes, self._written)
            self._writes, self._written, self._weight = [], {}, 0

    def _end_record(self) -> None:
        if self._recording is None:
            return
        writes, written = self._recording
        file = self._file
        assert file is not None
        with self.store.folder.environment.errors(sum(place.length for place in written.values())):
            for write in writes:
                write.result()

        def work(tables: Tables, state: State) -> State:
            there = tables.places(VALUES, state.generation, list(written))
            kept = [one for one, old in zip(written.items(), there, strict=True) if old is not None]  # not gone since
            tables.put_places(VALUES, self.generation, kept)
            return self._note(tables, state, file)

        self.store.folder.change(work, 64 * len(written))
        self._recording, self._noted = None, self.drift

    def _note(self, tables: Tables, state: State, file: RowFile) -> State:
        assert self.layout is not None
        drift = [self.drift.largest, self.drift.total, self.drift.count]
        end, layout = file.space.end, self.layout.to_json()
        note = {"aim": self._aim(state), "layout": layout, "drift": drift, "units": end}
        tables.set_meta(b"staged", json.dumps(note).encode())
        return state

    def missing(self, found: Sequence[int]) -> list[int]:
        """Those of some samples that have no row in this generation yet."""
        with self.store.folder.reading() as (tables, _):
            places = tables.places(VALUES, self.generation, found)
        under_way = self._recording[1] if self._recording is not None else {}
        known = self._written.keys() | under_way.keys()
        return [seq for seq, place in zip(found, places, strict=True) if place is None and seq not in known]

    def flip(self, after: Callable[[State], State]) -> None:
        """Make this generation the one that counts. Durable when it returns."""
        self.record()
        self.store.flush()

        def work(tables: Tables, state: State) -> State:
            if state.generation >= self.generation:  # an earlier call did, and failed at what follows
                return state
            tables.set_meta(b"staged", None)
            state = after(state)
            nbytes = state.source_bytes + _live_bytes(tables, state)
            return replace(state, nbytes=nbytes, units=self._file.space.end if self._file else 0)

        self.store.folder.change(work)
        self.store.flush()
        self.store.folder.sweep()

    def close(self) -> None:
        """Wait for what is under way, whatever became of it; let go of the slab."""
        self._pool.shutdown(wait=True)
        file, self._file = self._file, None
        self._writes, self._recording = [], None
        if file is not None and not self.store.closed and not self._wanted():
            file.slab.cut_off(0)  # now, not when the last traceback that holds it is gone
            file.slab.close()

    def _wanted(self) -> bool:
        """Whether the slab's rows count, or are recorded: what follows the flip, and forgetting them, may fail."""
        with self.store.folder.reading() as (tables, state):
            return state.generation >= self.generation or tables.meta(b"staged") is not None

    def abandon(self) -> None:
        """Do away with what was made. Raises StoreError; then it is left for another promotion to take up or remove."""
        self._pool.shutdown(wait=True)
        try:
            forget_staged(self.store)
        finally:
            self.close()


def _live_bytes(tables: Tables, state: State) -> int:
    """Bytes of the living's rows in the present generation."""
    if state.layout is None or state.compression is None:
        return state.count * (state.layout.nbytes if state.layout is not None else 0)
    living = [seq for seq, _ in tables.living(state.last)]
    return sum(place.length for place in tables.places(VALUES, state.generation, living) if place is not None)


def forget_staged(store: LmdbStore) -> None:
    """Do away with a promotion in the making, if there is one."""
    with store.folder.reading() as (tables, _):
        if tables.meta(b"staged") is None:
            return

    def work(tables: Tables, state: State) -> State:
        tables.set_meta(b"staged", None)
        return state

    store.folder.change(work)
    store.folder.sweep()


def pages(store: LmdbStore, making: Making, chunk: int) -> Iterator[list[Found]]:
    """Samples whose rows the new generation lacks, ``chunk`` at a time, held ones too."""
    start: int | None = 0
    waiting: list[Found] = []
    while start is not None:
        seen, start = _page(store, start)
        lacking = set(making.missing([seq for seq, _ in seen]))
        waiting += [one for one in seen if one[0] in lacking]
        while len(waiting) >= chunk or (waiting and start is None):
            yield waiting[:chunk]
            waiting = waiting[chunk:]


def _page(store: LmdbStore, start: int) -> tuple[list[Found], int | None]:
    """Places of the present generation from ``start`` on, and where to go on."""
    seen: list[Found] = []
    with store.folder.reading() as (tables, state):
        for one in tables.placed(VALUES, state.generation, start):
            seen.append(one)
            if len(seen) == _PAGE:
                return seen, seen[-1][0] + 1
    return seen, None
