"""Records in LMDB's tables, within one transaction.

======== ============================== =====================================================================
table    key                            value
======== ============================== =====================================================================
meta     b"state"                       ``State`` as JSON: written last, it makes everything else visible
index    key's slot                     sequence number of its live sample
entries  sequence number                info and key of a live sample; numbers above the state's ``last`` do not count
targets  sequence number                encoded target, if it has one
values   generation, sequence number    activations, raw, and their CRC-32; one generation for each cut
held     sequence number                when it was removed, then its entry: kept for rollback
======== ============================== =====================================================================

Numbers are big-endian: the order of keys is the order of arrival.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lmdb

from streamdrop.errors import StoreCorruptError
from streamdrop.store.intake import missing
from streamdrop.store.layout import byte_view
from streamdrop.store.records import decode_entry, encode_entry, entry_key, entry_pinned
from streamdrop.store.state import State
from streamdrop.types import Activations, SampleInfo

CRC = struct.Struct("<I")
_LONGEST_SLOT = 500  # LMDB's keys end at 511 bytes
_NUMBER = struct.Struct(">Q")
_VALUE = struct.Struct(">IQ")
number, value_key = _NUMBER.pack, _VALUE.pack
BATCH = 4096
"""Records removed in one transaction."""


def slot(key: bytes) -> bytes:
    """A key as LMDB can index it: itself, or a digest when it is too long."""
    return b"k" + key if len(key) < _LONGEST_SLOT else b"h" + hashlib.blake2b(key, digest_size=32).digest()


def as_number(raw: bytes | memoryview) -> int:
    """A sequence number as stored. Raises StoreCorruptError."""
    if len(raw) != _NUMBER.size:
        raise StoreCorruptError("a sequence number does not decode: restore the store from a copy")
    return int.from_bytes(raw, "big")


def encode_value(packed: Activations) -> bytes:
    """Tensors of one sample, packed → raw bytes and their CRC-32."""
    views = [byte_view(t) for t in packed]
    crc = 0
    for view in views:
        crc = zlib.crc32(view, crc)
    return b"".join([*views, CRC.pack(crc)])


class Tables:
    """The tables of a store inside a transaction."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[bytes, Any]) -> None:
        self.txn = txn
        self._t = tables

    def raw_state(self) -> bytes | memoryview | None:
        """The state's bytes, if the store was ever finished."""
        raw: bytes | memoryview | None = self.txn.get(b"state", db=self._t[b"meta"])
        return raw

    def set_state(self, state: State) -> None:
        """Make what this transaction did visible."""
        self.txn.put(b"state", state.to_bytes(), db=self._t[b"meta"])

    def find(self, key: bytes) -> int | None:
        """Sequence number of a live sample."""
        raw = self.txn.get(slot(key), db=self._t[b"index"])
        return None if raw is None else as_number(raw)

    def find_all(self, keys: Sequence[bytes]) -> list[int]:
        """Sequence numbers of live samples. Raises MissingKeyError naming what is missing."""
        found = [self.find(key) for key in keys]
        if None in found:
            raise missing(key for key, seq in zip(keys, found, strict=True) if seq is None)
        return [seq for seq in found if seq is not None]

    def entry(self, seq: int) -> bytes | memoryview:
        """Info and key of a live sample. Raises StoreCorruptError."""
        return self._must(self.txn.get(number(seq), db=self._t[b"entries"]), "info", seq)

    def target(self, seq: int) -> bytes | memoryview | None:
        """A sample's encoded target."""
        raw: bytes | memoryview | None = self.txn.get(number(seq), db=self._t[b"targets"])
        return raw

    def value(self, generation: int, seq: int, nbytes: int) -> bytes | memoryview:
        """A sample's activations, raw. Raises StoreCorruptError when missing or not of ``nbytes``."""
        raw = self._must(self.txn.get(value_key(generation, seq), db=self._t[b"values"]), "activations", seq)
        if len(raw) != nbytes + CRC.size:
            raise StoreCorruptError(
                f"sample {seq} has {len(raw) - CRC.size} bytes of activations, not {nbytes}: restore it from a copy"
            )
        return raw

    def has_value(self, generation: int, seq: int) -> bool:
        """Whether a sample has activations of this generation, without reading them."""
        return bool(self.txn.cursor(self._t[b"values"]).set_key(value_key(generation, seq)))

    def put_sample(self, seq: int, key: bytes, info: SampleInfo, target: bytes | None) -> None:
        """Write what promotion does not touch."""
        self.txn.put(number(seq), encode_entry(key, info), db=self._t[b"entries"])
        if target is not None:
            self.txn.put(number(seq), target, db=self._t[b"targets"])

    def put_value(self, generation: int, seq: int, value: bytes) -> None:
        """Write activations as ``encode_value`` made them."""
        self.txn.put(value_key(generation, seq), value, db=self._t[b"values"])

    def point(self, state: State, key: bytes, seq: int) -> State:
        """Let ``key`` mean sample ``seq``; what it meant before is buried at the time ``seq``."""
        old = self.find(key)
        if old is not None:
            state = self.bury(state, old, seq)
        self.txn.put(slot(key), number(seq), db=self._t[b"index"])
        pinned = entry_pinned(self.entry(seq))
        return replace(state, count=state.count + 1, pinned=state.pinned + pinned)

    def bury(self, state: State, seq: int, died: int) -> State:
        """Remove a live sample: hold it back when the store holds, forget it otherwise. Its index is the caller's."""
        entry = self.entry(seq)
        pinned = entry_pinned(entry)
        if state.holding:
            self.txn.put(number(seq), number(died) + bytes(entry), db=self._t[b"held"])
        else:
            self.forget(state, seq)
        self.txn.delete(number(seq), db=self._t[b"entries"])
        return replace(state, count=state.count - 1, pinned=state.pinned - pinned)

    def drop_key(self, key: bytes) -> None:
        """Forget what ``key`` meant."""
        self.txn.delete(slot(key), db=self._t[b"index"])

    def forget(self, state: State, seq: int) -> None:
        """Delete a sample's activations (of a cut in the making too) and target for good."""
        for generation in (state.generation, state.generation + 1):
            self.txn.delete(value_key(generation, seq), db=self._t[b"values"])
        self.txn.delete(number(seq), db=self._t[b"targets"])

    def revive(self, state: State, seq: int, entry: bytes) -> State:
        """Take a held sample back among the living."""
        self.txn.put(number(seq), entry, db=self._t[b"entries"])
        self.txn.delete(number(seq), db=self._t[b"held"])
        self.txn.put(slot(entry_key(entry)), number(seq), db=self._t[b"index"])
        return replace(state, count=state.count + 1, pinned=state.pinned + entry_pinned(entry))

    def release(self, state: State, seq: int) -> None:
        """Forget a held sample for good."""
        self.forget(state, seq)
        self.txn.delete(number(seq), db=self._t[b"held"])

    def living(self, last: int, start: int = 0) -> Iterator[tuple[int, bytes | memoryview]]:
        """(sequence number, entry) of live samples from ``start`` on, oldest first."""
        cursor = self.txn.cursor(self._t[b"entries"])
        if cursor.set_range(number(start)):
            for raw, entry in cursor:
                seq = as_number(raw)
                if seq > last:
                    return
                yield seq, entry

    def held(self) -> Iterator[tuple[int, int, bytes]]:
        """(sequence number, when it was removed, entry) of held samples, oldest first."""
        for raw, value in self.txn.cursor(self._t[b"held"]):
            yield as_number(raw), as_number(value[: _NUMBER.size]), bytes(value[_NUMBER.size :])

    def held_count(self) -> int:
        """How many samples are held back."""
        return int(self.txn.stat(self._t[b"held"])["entries"])

    def sequence(self, generation: int, start: int, count: int) -> list[int]:
        """Up to ``count`` sequence numbers with activations of ``generation``, from ``start`` on."""
        cursor = self.txn.cursor(self._t[b"values"])
        found: list[int] = []
        more = cursor.set_range(value_key(generation, start))
        while more and len(found) < count:
            owner, seq = _VALUE.unpack(bytes(cursor.key()))
            if owner != generation:
                break
            found.append(seq)
            more = cursor.next()
        return found

    def sweep(self, state: State, keep_staged: bool, count: int = BATCH) -> int:
        """Delete up to ``count`` records that no state shows: other generations, puts that never finished."""
        gone = self._sweep_values(state, keep_staged, count)
        for name in (b"entries", b"targets"):
            cursor = self.txn.cursor(self._t[name])
            while gone < count and cursor.set_range(number(state.last + 1)):
                cursor.delete()
                gone += 1
        return gone

    def _sweep_values(self, state: State, keep_staged: bool, count: int) -> int:
        cursor, gone = self.txn.cursor(self._t[b"values"]), 0
        while gone < count and cursor.first() and int.from_bytes(bytes(cursor.key())[:4], "big") < state.generation:
            cursor.delete()
            gone += 1
        staged = value_key(state.generation + 1, 0)
        while gone < count and cursor.set_range(value_key(state.generation, state.last + 1)):
            if keep_staged and bytes(cursor.key()) >= staged:
                break
            cursor.delete()
            gone += 1
        return gone

    def _must(self, raw: bytes | memoryview | None, what: str, seq: int) -> bytes | memoryview:
        if raw is None:
            raise StoreCorruptError(f"the {what} of sample {seq} is missing: restore the store from a copy")
        return raw

    def read(self, state: State, found: Sequence[int]) -> Activations:
        """Activations of samples, straight from LMDB's pages: one allocation per tensor, one copy."""
        assert state.layout is not None
        batch = state.layout.allocate(len(found))
        places = [(byte_view(t), *span) for t, span in zip(batch, state.layout.spans, strict=True)]
        nbytes, generation = state.layout.nbytes, state.generation
        for row, seq in enumerate(found):
            value = self.value(generation, seq, nbytes)
            for view, start, stop in places:
                size = stop - start
                view[row * size : (row + 1) * size] = value[start:stop]
        return state.layout.restore(batch)

    def infos(self, last: int) -> Iterator[tuple[bytes, SampleInfo]]:
        """(key, info) of live samples, oldest first."""
        for _, entry in self.living(last):
            yield decode_entry(entry)
