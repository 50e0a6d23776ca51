"""What a tiered store holds in memory, over what its durable store shows and has not lost since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import merge
from typing import NamedTuple, TypeVar

import torch

from streamdrop.store.arena import Arena
from streamdrop.store.drift import Drift, kept_drift
from streamdrop.store.intake import Incoming, check_keys, missing
from streamdrop.store.layout import Layout
from streamdrop.store.ledger import LmdbShelf
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.memory_shelf import MemoryShelf, Record, Row, rows_of
from streamdrop.store.retention import Candidate, Pool, retain

T = TypeVar("T")
_FRESH = 1 << 62
"""Numbers of samples that wait for their commit: above all that the durable store gives."""


class Batch(NamedTuple):
    """What one commit takes along."""

    records: list[Record]
    gone: set[bytes]
    layout: Layout | None
    drift: Drift

    def commit(self, durable: LmdbStore) -> None:
        """Write it, all or none. Raises StoreFullError."""
        if self.layout is not None:
            durable.apply(self.records, self.layout, list(self.gone), self.drift)
        else:
            durable.discard(self.gone)


class Front:
    """Samples that wait for their commit, keys whose removal does, and rows kept in memory after it.

    The counts of committed samples are kept here: a commit under way may or may not show in the durable store yet.
    """

    def __init__(self, durable: LmdbStore, memory_bytes: int) -> None:
        self.durable, self._memory_bytes = durable, memory_bytes
        self.retention = durable.retention
        self.fresh = MemoryShelf(self.retention)
        self.gone: set[bytes] = set()  # the durable store still shows them
        self._arena: Arena | None = None
        self._slots: dict[int, int] = {}  # of samples that wait, by their number
        self._ring: OrderedDict[bytes, int] = OrderedDict()  # slots of committed samples, newest last
        self._late: list[int] | None = None  # while a commit is under way: slots that it may still read
        self._arrivals = self._count = self._nbytes = 0
        self._pools: dict[Pool, tuple[int, int]] = {}
        self._drift = self._moving = self._committed = Drift()  # of what waits, of the commit under way, of the rest
        self.layout: Layout | None = None
        self.reload()

    def reload(self) -> None:
        """Take over what the durable store holds; nothing waits."""
        with self.durable.folder.reading() as (tables, state):
            self._count, self._nbytes, self.layout, self._committed = (
                state.count,
                state.nbytes,
                state.layout,
                state.drift,
            )
            self._pools = dict(LmdbShelf(tables, state, self.retention).pools())
        self.fresh.row_bytes = self.layout.nbytes if self.layout is not None else 0
        self._ring.clear()
        self._arena = Arena(self.layout, self._memory_bytes) if self.layout is not None else None

    @property
    def waiting(self) -> bool:
        """Whether anything waits for a commit."""
        return bool(self.fresh.count or self.gone)

    @property
    def drift(self) -> Drift:
        """Of all that is live or waits."""
        return self._committed + self._moving + self._drift

    # ---------------------------------------------------------------- in and out

    def take(self, incoming: Sequence[Incoming], layout: Layout, now: float) -> None:
        """Take in what retention lets in. Raises StoreFullError, DataError; then nothing has changed."""
        with self._viewed() as view:
            gone: Sequence[bytes] = ()
            if self.retention.bounded:
                incoming, gone = self._chosen(view, incoming, layout, now)
            keys, samples = [item.key for item in incoming], [item.activations for item in incoming]
            columns = layout.encode(samples, keys)
            self._drift = self._drift + kept_drift(layout, samples, columns, keys)
            self.layout, self.fresh.row_bytes = layout, layout.nbytes
            self._remove(view, [*gone, *keys])
        for item, (row, slot) in zip(incoming, self._kept(columns), strict=True):
            born, self._arrivals = _FRESH + self._arrivals, self._arrivals + 1
            self.fresh.add(Record(born, item.key, row, item.target, item.info, now, item.source))
            self.gone.discard(item.key)
            if slot is not None:
                self._slots[born] = slot

    def _kept(self, columns: Sequence[torch.Tensor]) -> list[tuple[Row, int | None]]:
        """Rows in the arena, the ring giving way; what does not fit there in memory of its own."""
        if not len(columns[0]):
            return []
        assert self.layout is not None
        arena = self._arena = self._arena or Arena(self.layout, self._memory_bytes)
        while self._ring and arena.room < len(columns[0]):
            arena.give_back(self._ring.popitem(last=False)[1])
        slots = arena.fill(columns)
        rest = [column[len(slots) :] for column in columns]
        kept: list[tuple[Row, int | None]] = [(arena.row(slot), slot) for slot in slots]
        return kept + [(row, None) for row in (rows_of(rest) if len(rest[0]) else ())]

    def _chosen(
        self, view: _View, incoming: Sequence[Incoming], layout: Layout, now: float
    ) -> tuple[list[Incoming], list[bytes]]:
        arriving = [
            self.retention.candidate(item.key, seq, layout.nbytes + len(item.source or b""), item.info, now)
            for seq, item in enumerate(incoming, _FRESH + self._arrivals)
        ]
        kept, gone = retain(self.retention, view, arriving, now)
        stay = {candidate.key for candidate in kept}
        refused = [item.key for item in incoming if item.key not in stay]
        return [item for item in incoming if item.key in stay], [*gone, *refused]

    def remove(self, keys: Iterable[bytes]) -> None:
        """Take live samples out; keys that are not there are ignored."""
        with self._viewed() as view:
            self._remove(view, keys)

    def _remove(self, view: _View, keys: Iterable[bytes]) -> None:
        for key in keys:
            waiting = self.fresh.records.get(key)
            if view.drop(key):
                self.gone.add(key)
                slot = self._ring.pop(key, None) if waiting is None else self._slots.pop(waiting.born, None)
                self._give_back(slot)

    def _give_back(self, slot: int | None) -> None:
        if slot is not None and self._arena is not None:
            if self._late is not None:
                self._late.append(slot)
            else:
                self._arena.give_back(slot)

    def row(self, key: bytes) -> Row | None:
        """A sample's row, if it is in memory; valid while the lock is held."""
        record = self.fresh.records.get(key)
        if record is not None:
            return record.row
        slot = self._ring.get(key)
        return None if slot is None or self._arena is None else self._arena.row(slot)

    def check_there(self, keys: Sequence[bytes]) -> None:
        """Raise MissingKeyError for keys whose removal waits."""
        absent = [key for key in keys if key in self.gone and key not in self.fresh.records]
        if absent:
            raise missing(absent)

    def merged(
        self, keys: Sequence[bytes], of: Callable[[Record], T], durable: Callable[[Sequence[bytes]], list[T]]
    ) -> list[T]:
        """Something of each sample: ``of`` those that wait, ``durable`` of the others. Raises MissingKeyError."""
        wanted, fresh = check_keys(keys), self.fresh.records
        self.check_there(wanted)
        rest = [key for key in wanted if key not in fresh]
        found = dict(zip(rest, durable(rest), strict=True))
        return [of(fresh[key]) if key in fresh else found[key] for key in wanted]

    # ---------------------------------------------------------------- commits

    def batch(self) -> Batch:
        """All that waits, for one commit; it waits on until ``done``."""
        self._moving, self._drift, self._late = self._drift, Drift(), []
        return Batch(list(self.fresh.records.values()), set(self.gone), self.layout, self._moving)

    def done(self, batch: Batch, committed: bool) -> None:
        """A commit is over: its samples move from those that wait to the ring, unless they have changed since."""
        self._moving, late, self._late = Drift(), self._late or [], None
        for slot in late:
            self._give_back(slot)
        if not committed:
            self._drift = batch.drift + self._drift
            return
        self._committed = self._committed + batch.drift
        self.gone -= batch.gone
        for record in batch.records:
            if self.fresh.records.get(record.key) is record:
                candidate = self.fresh.find(record.key)
                assert candidate is not None
                self.fresh.remove(record.key)
                self.tally(candidate, 1)
                kept = self._slots.pop(record.born, None)
                if kept is not None:
                    self._ring[record.key] = kept

    # ---------------------------------------------------------------- counts

    @property
    def count(self) -> int:
        """All live samples."""
        return self._count + self.fresh.count

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""
        return self._nbytes + self.fresh.nbytes()

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts."""
        found = dict(self._pools)
        for pool, (free, pinned) in self.fresh.pools().items():
            old = found.get(pool, (0, 0))
            found[pool] = (old[0] + free, old[1] + pinned)
        return found

    def tally(self, candidate: Candidate, by: int) -> None:
        """Count committed samples."""
        free, pinned = self._pools.get(candidate.pool, (0, 0))
        self._pools[candidate.pool] = (free + by * (not candidate.pinned), pinned + by * candidate.pinned)
        self._count += by
        self._nbytes += by * candidate.nbytes

    @contextmanager
    def _viewed(self) -> Iterator[_View]:
        """One view of what waits and of the durable store, for as long as the block lasts."""
        with self.durable.folder.reading() as (tables, state):
            fresh, gone = self.fresh.records, self.gone
            hidden = LmdbShelf(tables, state, self.retention, lambda key: key in fresh or key in gone)
            yield _View(self, hidden)


class _View:
    """A tiered store's ``Shelf``, and the way out of it."""

    def __init__(self, front: Front, durable: LmdbShelf) -> None:
        self._front, self._durable = front, durable

    @property
    def count(self) -> int:
        """All live samples."""
        return self._front.count

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""
        return self._front.nbytes()

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts."""
        return self._front.pools()

    def candidates(self, pool: Pool) -> Iterator[Candidate]:
        """Unpinned samples, highest rank first."""
        durable, fresh = self._durable.candidates(pool), self._front.fresh.candidates(pool)
        return merge(durable, fresh, key=lambda candidate: -candidate.rank)

    def aged(self) -> Iterator[Candidate]:
        """Unpinned samples, oldest arrival first."""
        yield from self._durable.aged()
        yield from self._front.fresh.aged()

    def find(self, key: bytes) -> Candidate | None:
        """The live sample of this key."""
        fresh = self._front.fresh.find(key)
        return fresh if fresh is not None or key in self._front.gone else self._durable.find(key)

    def drop(self, key: bytes) -> bool:
        """Take a live sample off the counts; whether there was one."""
        if key in self._front.fresh.records:
            self._front.fresh.remove(key)
            return True
        candidate = self.find(key)
        if candidate is not None:
            self._front.tally(candidate, -1)
        return candidate is not None
