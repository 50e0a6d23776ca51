"""What a tiered store holds in memory, over what its durable store shows and has not lost since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import merge
from typing import NamedTuple, TypeVar

from streamdrop.store.drift import Drift
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
        self._ring: OrderedDict[bytes, Row] = OrderedDict()  # committed, newest last
        self._ring_bytes = self._arrivals = self._count = self._nbytes = 0
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
        self._ring_bytes = 0

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
            self._drift = self._drift + Drift.over(layout, samples, columns)
            self.layout, self.fresh.row_bytes = layout, layout.nbytes
            self._remove(view, [*gone, *keys])
        for item, row in zip(incoming, rows_of(columns) if incoming else (), strict=True):
            born, self._arrivals = _FRESH + self._arrivals, self._arrivals + 1
            self.fresh.add(Record(born, item.key, row, item.target, item.info, now, item.source))
            self.gone.discard(item.key)

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
            if view.drop(key):
                self.gone.add(key)
                row = self._ring.pop(key, None)
                self._ring_bytes -= _nbytes(row) if row is not None else 0

    def row(self, key: bytes) -> Row | None:
        """A sample's row, if it is in memory."""
        record = self.fresh.records.get(key)
        return record.row if record is not None else self._ring.get(key)

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
        self._moving, self._drift = self._drift, Drift()
        return Batch(list(self.fresh.records.values()), set(self.gone), self.layout, self._moving)

    def done(self, batch: Batch, committed: bool) -> None:
        """A commit is over: its samples move from those that wait to the ring, unless they have changed since."""
        self._moving = Drift()
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
                self._keep(record.key, record.row)

    def _keep(self, key: bytes, row: Row) -> None:
        """Into the ring, whose oldest make room."""
        self._ring[key] = row
        self._ring_bytes += _nbytes(row)
        while self._ring and self._ring_bytes + self.fresh.nbytes() > self._memory_bytes:
            _, old = self._ring.popitem(last=False)
            self._ring_bytes -= _nbytes(old)

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


def _nbytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row)
