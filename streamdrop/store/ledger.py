"""Who is live: every change to the living, inside one transaction, with the state that makes it visible."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import xxhash

from streamdrop.errors import StoreCorruptError
from streamdrop.store.entries import Entry, decode, is_pinned, key_of
from streamdrop.store.retention import Candidate, Pool, Retention
from streamdrop.store.slab import Place
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Raw, Tables, as_number, number

_COUNTS = struct.Struct("<QQI")  # unpinned, pinned, checksum of both and of the pool
Freed = tuple[bytes, int, Place]
"""A table of places, a generation, and a place in its slab that nothing shows any more."""


class New(NamedTuple):
    """A sample whose row is written."""

    seq: int
    entry: Entry
    raw: bytes
    place: Place
    source: Place | None


class Ledger:
    """The living of a store within a transaction.

    ``freed`` gathers the places that the commit sets free, ``gone`` the keys that mean nothing after it, or another.
    """

    def __init__(self, tables: Tables, retention: Retention) -> None:
        self.tables, self.retention = tables, retention
        self.freed: list[Freed] = []
        self.gone: list[bytes] = []
        self.revived = False  # old samples are back: their keys stand in the midst of the order

    def add(self, state: State, new: Sequence[New]) -> State:
        """Show samples whose records and places are written; their keys mean nothing else by now."""
        tables = self.tables
        tables.point([(one.entry.key, one.seq) for one in new])
        nbytes = sources = pinned = 0
        for one in new:
            tables.join_stream(one.entry.info.stream, (one.seq,))
            nbytes, pinned = nbytes + one.place.length, pinned + one.entry.info.pinned
            sources += one.source.length if one.source else 0
            self._enrol(one.seq, one.entry, 1)
        return replace(
            state, count=state.count + len(new), pinned=state.pinned + pinned,
            nbytes=state.nbytes + nbytes + sources, source_bytes=state.source_bytes + sources,
        )  # fmt: skip

    def remove(self, state: State, gone: Sequence[tuple[bytes, int]], died: int | None) -> State:
        """Take live samples (key, sequence number) out: held back when the store holds, forgotten otherwise.

        Without ``died`` they are forgotten in any case.
        """
        for key, seq in gone:
            raw = self.tables.raw_entry(seq)
            self.tables.drop_key(key)
            self.gone.append(key)
            state = self._uncount(state, seq, decode(raw))
            if state.holding and died is not None:
                self.tables.hold(seq, died, raw)
            else:
                self.forget(state, seq)
            self.tables.remove_entry(seq)
        return replace(state, epoch=state.epoch + bool(gone))

    def revive(self, state: State, seq: int, raw: bytes) -> State:
        """Take a held sample back among the living."""
        entry = decode(raw)
        self.revived = True
        self.tables.put_entries([(seq, raw)])
        self.tables.let_go(seq)
        (place,) = self.tables.places(VALUES, state.generation, [seq])
        (source,) = self.tables.places(SOURCES, state.source_generation, [seq])
        assert place is not None
        return replace(self.add(state, [New(seq, entry, raw, place, source)]), epoch=state.epoch + 1)

    def release(self, state: State, seq: int) -> None:
        """Forget a held sample for good."""
        self.forget(state, seq)
        self.tables.let_go(seq)

    def forget(self, state: State, seq: int) -> None:
        """Delete where a sample's rows lie, of a cut in the making too: their room is free after the commit."""
        for table, generation in (
            (VALUES, state.generation),
            (VALUES, state.generation + 1),
            (SOURCES, state.source_generation),
            (SOURCES, state.source_generation + 1),
        ):
            place = self.tables.take_place(table, generation, seq)
            if place is not None:
                self.freed.append((table, generation, place))

    def rank_all(self, last: int) -> None:
        """Index the living anew for this retention."""
        for table in (b"pools", b"ranks"):
            cursor = self.tables.cursor(table)
            while cursor.first():
                cursor.delete()
        for seq, raw in list(self.tables.living(last)) if self.retention.ranked else ():
            self._enrol(seq, decode(raw), 1)

    def _uncount(self, state: State, seq: int, entry: Entry) -> State:
        tables = self.tables
        tables.leave_stream(entry.info.stream, seq)
        self._enrol(seq, entry, -1)
        (place,) = tables.places(VALUES, state.generation, [seq])
        (source,) = tables.places(SOURCES, state.source_generation, [seq])
        sources = source.length if source else 0
        return replace(
            state, count=state.count - 1, pinned=state.pinned - entry.info.pinned,
            nbytes=state.nbytes - (place.length if place else 0) - sources,
            source_bytes=state.source_bytes - sources,
        )  # fmt: skip

    def _enrol(self, seq: int, entry: Entry, by: int) -> None:
        """Count a sample in its pool, and rank it unless it is pinned."""
        if not self.retention.ranked:
            return
        pool = self.retention.pool(entry.info)
        name, counts = _pool_name(pool), self.tables.cursor(b"pools")
        free, pinned = _pool_of(counts.value())[1] if counts.set_key(name) else (0, 0)
        free, pinned = free + by * (not entry.info.pinned), pinned + by * entry.info.pinned
        if free or pinned:
            counts.put(name, _pool_record(pool, free, pinned))
        else:
            counts.delete()
        if not entry.info.pinned:
            ranks = self.tables.cursor(b"ranks")
            place = name + number(self.retention.rank(entry.key, seq)) + number(seq)
            if by > 0:
                ranks.put(place, b"")
            elif ranks.set_key(place):
                ranks.delete()


class LmdbShelf:
    """What is live, as retention asks for it; candidates leave out the keys that are ``hidden``."""

    def __init__(
        self, tables: Tables, state: State, retention: Retention, hidden: Callable[[bytes], bool] | None = None
    ) -> None:
        self._tables, self._state, self._retention, self._hidden = tables, state, retention, hidden

    @property
    def count(self) -> int:
        """All live samples."""
        return self._state.count

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""
        return self._state.nbytes

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts."""
        if not self._retention.ranked:
            return {("", None): (self._state.count - self._state.pinned, self._state.pinned)}
        return dict(_pool_of(raw) for raw in self._tables.cursor(b"pools").iternext(keys=False))

    def candidates(self, pool: Pool) -> Iterator[Candidate]:
        """Unpinned samples of a pool, highest rank first."""
        if not self._retention.ranked:
            yield from self.aged()
            return
        name, cursor = _pool_name(pool), self._tables.cursor(b"ranks")
        more = cursor.prev() if cursor.set_range(_after(name)) else cursor.last()
        while more and bytes(cursor.key()[:8]) == name:
            seq = as_number(cursor.key()[16:])
            raw = self._tables.raw_entry(seq)
            if self._hidden is None or not self._hidden(key_of(raw)):
                yield self._candidate(seq, raw)
            more = cursor.prev()

    def aged(self) -> Iterator[Candidate]:
        """Unpinned samples, oldest arrival first."""
        for seq, raw in self._tables.living(self._state.last):
            if not is_pinned(raw) and (self._hidden is None or not self._hidden(key_of(raw))):
                yield self._candidate(seq, raw)

    def find(self, key: bytes) -> Candidate | None:
        """The live sample that a new one of this key would replace."""
        (seq,) = self._tables.find_each([key])
        return None if seq is None else self._candidate(seq, self._tables.raw_entry(seq))

    def _candidate(self, seq: int, raw: Raw) -> Candidate:
        entry = decode(raw)
        nbytes = 0
        if self._retention.max_bytes is not None:
            places = (
                *self._tables.places(VALUES, self._state.generation, [seq]),
                *self._tables.places(SOURCES, self._state.source_generation, [seq]),
            )
            nbytes = sum(place.length for place in places if place is not None)
        return self._retention.candidate(entry.key, seq, nbytes, entry.info, entry.arrived)


def _pool_record(pool: Pool, free: int, pinned: int) -> bytes:
    name = json.dumps(pool).encode()
    return _COUNTS.pack(free, pinned, _pool_check(free, pinned, name)) + name


def _pool_of(raw: Raw) -> tuple[Pool, tuple[int, int]]:
    """A pool and its counts. Raises StoreCorruptError."""
    if len(raw) >= _COUNTS.size:
        free, pinned, check = _COUNTS.unpack_from(raw)
        name = bytes(raw[_COUNTS.size :])
        if check == _pool_check(free, pinned, name):
            stream, label = json.loads(name)
            return (stream, label), (free, pinned)
    raise StoreCorruptError("a pool's counts have changed since they were written: restore the store from a copy")


def _pool_check(free: int, pinned: int, name: bytes) -> int:
    return int(xxhash.xxh32_intdigest(b"%d %d %s" % (free, pinned, name)))


def _pool_name(pool: Pool) -> bytes:
    return bytes(xxhash.xxh3_64_digest(json.dumps(pool).encode()))


def _after(name: bytes) -> bytes:
    """The smallest key above all that begin with ``name``."""
    return (int.from_bytes(name, "big") + 1).to_bytes(9, "big")[-8:] if name != b"\xff" * 8 else name + b"\xff" * 17
