"""Records in LMDB's tables, within one transaction. Rows of activations and sources lie in slabs beside it.

======== ============================== =====================================================================
table    key                            value
======== ============================== =====================================================================
meta     b"state"                       ``State``: written last, it makes everything else visible
meta     b"staged"                      a later cut in the making, so that a killed promotion goes on
index    key's slot                     sequence number of its live sample, checked against the slot
entries  sequence number                ``entries``: key, info, target; above the state's ``last`` they do not count
places   generation, sequence number    where its row lies in the values' slab; one generation for each cut
sources  generation, sequence number    where its encoded input lies in the sources' slab
held     sequence number                when it was removed, then its entry: kept for rollback
streams  stream's digest, sequence no.  nothing: a stream's samples in order of arrival
pools    pool's digest                  the pool and its counts (only where retention ranks)
ranks    pool's digest, rank, seq. no.  nothing: who leaves first stands last (only where retention ranks)
======== ============================== =====================================================================

Numbers are big-endian: the order of keys is the order of arrival.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lmdb
import xxhash

from streamdrop.errors import StoreCorruptError
from streamdrop.store.entries import Entry, checked, decode, key_of
from streamdrop.store.intake import missing
from streamdrop.store.slab import Place

_LONGEST_SLOT = 500  # LMDB's keys end at 511 bytes
_NUMBER = struct.Struct(">Q")
_PLACED = struct.Struct(">IQ")
_PLACE = struct.Struct("<QQQ")
_INDEX = struct.Struct(">QI")
number, placed = _NUMBER.pack, _PLACED.pack
Raw = bytes | memoryview
VALUES, SOURCES = b"places", b"sources"
"""The two tables of places."""
BATCH = 4096
"""Records removed in one transaction."""


def slot(key: bytes) -> bytes:
    """A key as LMDB can index it: itself, or a digest when it is too long."""
    return b"k" + key if len(key) < _LONGEST_SLOT else b"h" + hashlib.blake2b(key, digest_size=32).digest()


def digest(name: str) -> bytes:
    """8 bytes for a stream's name."""
    return bytes(xxhash.xxh3_64_digest(name.encode()))


def as_number(raw: Raw) -> int:
    """A sequence number as stored. Raises StoreCorruptError."""
    if len(raw) != _NUMBER.size:
        raise StoreCorruptError("a sequence number does not decode: restore the store from a copy")
    return int.from_bytes(raw, "big")


class Tables:
    """The tables of a store inside a transaction."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[bytes, Any]) -> None:
        self.txn = txn
        self._t = tables

    def cursor(self, table: bytes) -> lmdb.Cursor:
        """A cursor over one table."""
        return self.txn.cursor(self._t[table])

    def meta(self, name: bytes) -> Raw | None:
        """The bytes under a name in the meta table."""
        raw: Raw | None = self.txn.get(name, db=self._t[b"meta"])
        return raw

    def set_meta(self, name: bytes, value: bytes | None) -> None:
        """Set, or remove, what stands under a name in the meta table."""
        if value is None:
            self.txn.delete(name, db=self._t[b"meta"])
        else:
            self.txn.put(name, value, db=self._t[b"meta"])

    # ---------------------------------------------------------------- which sample a key means

    def find_each(self, keys: Sequence[bytes]) -> list[int | None]:
        """Sequence numbers of live samples, None where there is none. Raises StoreCorruptError."""
        slots = [slot(key) for key in keys]
        found = self.cursor(b"index").getmulti(slots)
        if len(found) == len(slots):
            return [_indexed(name, raw) for name, (_, raw) in zip(slots, found, strict=True)]
        there = {bytes(name): raw for name, raw in found}
        return [_indexed(name, there[name]) if name in there else None for name in slots]

    def find_all(self, keys: Sequence[bytes]) -> list[int]:
        """Sequence numbers of live samples. Raises MissingKeyError naming what is missing."""
        found = self.find_each(keys)
        if None in found:
            raise missing(key for key, seq in zip(keys, found, strict=True) if seq is None)
        return [seq for seq in found if seq is not None]

    def point(self, keys: Iterable[tuple[bytes, int]]) -> None:
        """Let keys mean samples."""
        items = []
        for key, seq in keys:
            name = slot(key)
            items.append((name, _INDEX.pack(seq, xxhash.xxh32_intdigest(name, seq & 0xFFFFFFFF))))
        self.cursor(b"index").putmulti(items)

    def drop_key(self, key: bytes) -> None:
        """Forget what ``key`` meant."""
        self.txn.delete(slot(key), db=self._t[b"index"])

    # ---------------------------------------------------------------- entries

    def raw_entries(self, found: Sequence[int]) -> list[Raw]:
        """The records of live samples. Raises StoreCorruptError."""
        rows = self.cursor(b"entries").getmulti([number(seq) for seq in found])
        return [raw for _, raw in rows] if len(rows) == len(found) else [self.raw_entry(seq) for seq in found]

    def raw_entry(self, seq: int) -> Raw:
        """The record of a live sample. Raises StoreCorruptError."""
        raw: Raw | None = self.txn.get(number(seq), db=self._t[b"entries"])
        if raw is None:
            raise StoreCorruptError(f"the record of sample {seq} is missing: restore the store from a copy")
        return raw

    def entry(self, seq: int) -> Entry:
        """The decoded record of a live sample. Raises StoreCorruptError."""
        return decode(self.raw_entry(seq))

    def put_entries(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Write records of new samples."""
        self.cursor(b"entries").putmulti([(number(seq), raw) for seq, raw in entries])

    def remove_entry(self, seq: int) -> None:
        """Delete a record."""
        self.txn.delete(number(seq), db=self._t[b"entries"])

    def living(self, last: int, start: int = 0) -> Iterator[tuple[int, Raw]]:
        """(sequence number, record) of live samples from ``start`` on, oldest first."""
        cursor = self.cursor(b"entries")
        if cursor.set_range(number(start)):
            for raw, entry in cursor:
                seq = as_number(raw)
                if seq > last:
                    return
                yield seq, entry

    # ---------------------------------------------------------------- streams

    def join_stream(self, stream: str, seqs: Iterable[int]) -> None:
        """List samples under their stream; those of no stream are not listed."""
        if stream:
            name = digest(stream)
            self.cursor(b"streams").putmulti([(name + number(seq), b"") for seq in seqs])

    def leave_stream(self, stream: str, seq: int) -> None:
        """Take a sample off its stream's list."""
        if stream:
            self.txn.delete(digest(stream) + number(seq), db=self._t[b"streams"])

    def stream_keys(self, stream: str, last: int) -> list[bytes]:
        """Keys of one stream's live samples, oldest first."""
        if not stream:
            return [e.key for e in (decode(raw) for _, raw in self.living(last)) if not e.info.stream]
        name = digest(stream)
        cursor, found = self.cursor(b"streams"), []
        if cursor.set_range(name + number(0)):
            for raw in cursor.iternext(keys=True, values=False):
                if bytes(raw[:8]) != name or (seq := as_number(raw[8:])) > last:
                    break
                found.append(seq)
        return [key_of(checked(raw)) for raw in self.raw_entries(found)]

    # ---------------------------------------------------------------- places of rows

    def places(self, table: bytes, generation: int, found: Sequence[int]) -> list[Place | None]:
        """Where rows lie; None where a sample has none of this generation."""
        names = [placed(generation, seq) for seq in found]
        rows = self.cursor(table).getmulti(names)
        if len(rows) == len(names):
            return [_place(raw) for _, raw in rows]
        there = {bytes(name): raw for name, raw in rows}
        return [_place(there[name]) if name in there else None for name in names]

    def put_places(self, table: bytes, generation: int, places: Iterable[tuple[int, Place]]) -> None:
        """Write where rows lie."""
        self.cursor(table).putmulti([(placed(generation, seq), _PLACE.pack(*place)) for seq, place in places])

    def take_place(self, table: bytes, generation: int, seq: int) -> Place | None:
        """Remove a place and return it."""
        raw = self.txn.pop(placed(generation, seq), db=self._t[table])
        return None if raw is None else _place(raw)

    def placed(self, table: bytes, generation: int, start: int = 0) -> Iterator[tuple[int, Place]]:
        """(sequence number, place) of a generation's rows, in order of arrival."""
        cursor = self.cursor(table)
        if cursor.set_range(placed(generation, start)):
            for raw, place in cursor:
                owner, seq = _PLACED.unpack(raw)
                if owner != generation:
                    return
                yield seq, _place(place)

    # ---------------------------------------------------------------- held samples

    def hold(self, seq: int, died: int, entry: Raw) -> None:
        """Keep a removed sample's record for a rollback."""
        self.txn.put(number(seq), number(died) + bytes(entry), db=self._t[b"held"])

    def let_go(self, seq: int) -> None:
        """A held sample is held no more."""
        self.txn.delete(number(seq), db=self._t[b"held"])

    def held(self) -> Iterator[tuple[int, int, bytes]]:
        """(sequence number, when it was removed, record) of held samples, oldest first."""
        for raw, value in self.cursor(b"held"):
            yield as_number(raw), as_number(value[: _NUMBER.size]), bytes(value[_NUMBER.size :])

    def count(self, table: bytes) -> int:
        """How many records a table has."""
        return int(self.txn.stat(self._t[table])["entries"])

    # ---------------------------------------------------------------- leftovers

    def sweep(self, last: int, wanted: set[tuple[bytes, int]]) -> int:
        """Delete up to BATCH records that no state shows; ``wanted`` are the generations of places that count."""
        gone, count = 0, BATCH
        for table in (VALUES, SOURCES):
            gone += self._sweep_places(table, last, wanted, count - gone)
        cursor = self.cursor(b"entries")
        while gone < count and cursor.set_range(number(last + 1)):
            cursor.delete()
            gone += 1
        return gone

    def _sweep_places(self, table: bytes, last: int, wanted: set[tuple[bytes, int]], count: int) -> int:
        cursor, gone = self.cursor(table), 0
        more = cursor.first()
        while more and gone < count:
            generation, seq = _PLACED.unpack(cursor.key())
            if (table, generation) in wanted:
                beyond = cursor.set_range(placed(generation, max(seq, last + 1)))
                if not beyond or _PLACED.unpack(cursor.key())[0] != generation:
                    more = cursor.set_range(placed(generation + 1, 0))
                    continue
            cursor.delete()
            more = bool(cursor.key())
            gone += 1
        return gone


def _indexed(name: bytes, raw: Raw) -> int:
    try:
        seq, check = _INDEX.unpack(raw)
    except struct.error as error:
        raise StoreCorruptError(f"the index does not decode ({error}): restore the store from a copy") from error
    if check != xxhash.xxh32_intdigest(name, seq & 0xFFFFFFFF):
        raise StoreCorruptError("the index has changed since it was written: restore the store from a copy")
    return int(seq)


def _place(raw: Raw) -> Place:
    try:
        return Place._make(_PLACE.unpack(raw))
    except struct.error as error:
        raise StoreCorruptError(f"a row's place does not decode ({error}): restore the store from a copy") from error
