"""What is live in a tiered store: what waits in memory, over what the durable store shows and has not lost since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from typing import TYPE_CHECKING

from streamdrop.store.ledger import LmdbShelf
from streamdrop.store.memory_shelf import MemoryShelf
from streamdrop.store.retention import Candidate, Pool

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore


class TierShelf:
    """Counts of a tiered store. ``fresh`` waits for its commit; the rest is the durable store's.

    The counts of the rest are kept here: a commit under way may or may not show in the durable store yet.
    """

    def __init__(self, durable: LmdbStore, row_bytes: int) -> None:
        self._durable, self._retention = durable, durable.retention
        self.fresh = MemoryShelf(self._retention, (), row_bytes)
        with durable.folder.reading() as (tables, state):
            self._count, self._nbytes = state.count, state.nbytes
            self._pools = dict(LmdbShelf(tables, state, self._retention).pools())

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

    def settle(self, key: bytes) -> None:
        """A sample that waited is committed."""
        candidate = self.fresh.find(key)
        assert candidate is not None
        self.fresh.remove(key)
        self._tally(candidate, 1)

    @contextmanager
    def viewed(self, gone: set[bytes]) -> Iterator[TierView]:
        """One view of both, for as long as the block lasts; ``gone`` are keys that the durable store still shows."""
        with self._durable.folder.reading() as (tables, state):
            yield TierView(self, LmdbShelf(tables, state, self._retention), gone, self._tally)

    def _tally(self, candidate: Candidate, by: int) -> None:
        free, pinned = self._pools.get(candidate.pool, (0, 0))
        self._pools[candidate.pool] = (free + by * (not candidate.pinned), pinned + by * candidate.pinned)
        self._count += by
        self._nbytes += by * candidate.nbytes


class TierView:
    """A tiered store's ``Shelf``, and the way out of it."""

    def __init__(
        self, shelf: TierShelf, durable: LmdbShelf, gone: set[bytes], tally: Callable[[Candidate, int], None]
    ) -> None:
        self._shelf, self._durable, self._gone, self._tally = shelf, durable, gone, tally

    @property
    def count(self) -> int:
        """All live samples."""
        return self._shelf.count

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""
        return self._shelf.nbytes()

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts."""
        return self._shelf.pools()

    def candidates(self, pool: Pool) -> Iterator[Candidate]:
        """Unpinned samples, highest rank first."""
        durable = self._left(self._durable.candidates(pool))
        return merge(durable, self._shelf.fresh.candidates(pool), key=lambda candidate: -candidate.rank)

    def aged(self) -> Iterator[Candidate]:
        """Unpinned samples, oldest arrival first."""
        yield from self._left(self._durable.aged())
        yield from self._shelf.fresh.aged()

    def find(self, key: bytes) -> Candidate | None:
        """The live sample of this key."""
        fresh = self._shelf.fresh.find(key)
        return fresh if fresh is not None or key in self._gone else self._durable.find(key)

    def drop(self, key: bytes) -> bool:
        """Take a live sample off the counts; whether there was one."""
        if key in self._shelf.fresh.records:
            self._shelf.fresh.remove(key)
            return True
        candidate = self.find(key)
        if candidate is not None:
            self._tally(candidate, -1)
        return candidate is not None

    def _left(self, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
        fresh = self._shelf.fresh.records
        return (c for c in candidates if c.key not in fresh and c.key not in self._gone)
