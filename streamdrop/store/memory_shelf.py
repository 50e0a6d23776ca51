"""The live samples of a store in memory, indexed by stream and in the order in which retention lets them go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

import torch

from streamdrop.store.layout import Layout, byte_view
from streamdrop.store.retention import Candidate, Pool, Retention
from streamdrop.types import Activations, SampleInfo

Row = tuple[torch.Tensor, ...]
"""One sample as stored: a tensor for each column of the layout, in memory of its own."""


@dataclass(frozen=True)
class Record:
    """A stored sample: ``born`` on the store's clock, ``arrived`` in seconds, ``target`` and ``source`` encoded."""

    born: int
    key: bytes
    row: Row
    target: bytes | None
    info: SampleInfo
    arrived: float
    source: bytes | None


def rows_of(columns: Sequence[torch.Tensor]) -> list[Row]:
    """Columns [N, ...] → N rows that hold on to no other's memory."""
    alone = len(columns[0]) == 1
    return list(zip(*([v if alone else _cloned(v) for v in column.unbind()] for column in columns), strict=True))


def _cloned(row: torch.Tensor) -> torch.Tensor:
    try:
        return row.clone()
    except RuntimeError:  # torch clones no dtype of less than a byte, such as int4
        return row.view(torch.uint8).clone().view(row.dtype)


def batch_of(layout: Layout, rows: Sequence[Row]) -> Activations:
    """Rows → activations [N, ...] in memory of their own."""
    columns = layout.allocate(len(rows))
    if rows:
        for out, parts in zip(columns, zip(*rows, strict=True), strict=True):
            torch.stack(parts, out=out)
    return layout.decode(columns)


def fill_rows(columns: Sequence[torch.Tensor], rows: Sequence[Row | None]) -> None:
    """Rows into their places in a batch, where there are any."""
    for j, column in enumerate(columns):
        view, size = byte_view(column), column[0].nbytes
        for i, row in enumerate(rows):
            if row is not None:
                view[i * size : (i + 1) * size] = byte_view(row[j])


class MemoryShelf:
    """Live records in order of arrival; a ``Shelf``. ``row_bytes``: what each row takes."""

    def __init__(self, retention: Retention, records: Iterable[Record] = (), row_bytes: int = 0) -> None:
        self.row_bytes = row_bytes
        self.records: dict[bytes, Record] = {}
        self._retention = retention
        self._streams: dict[str, dict[bytes, None]] = {}
        self._counts: dict[Pool, tuple[int, int]] = {}
        self._free: OrderedDict[bytes, None] = OrderedDict()  # unpinned: a dict is slow to let its oldest go
        self._heaps: dict[Pool, _Heap] = {}
        self._source_bytes = 0
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in the newest record; its key must not be there."""
        key, pool = record.key, self._retention.pool(record.info)
        self.records[key] = record
        self._streams.setdefault(record.info.stream, {})[key] = None
        self._count(record, pool, 1)
        if not record.info.pinned:
            self._free[key] = None
            if self._retention.ranked:
                heap = self._heaps.setdefault(pool, _Heap())
                heap.add(-self._retention.rank(key, record.born), record.born, key)

    def remove(self, key: bytes) -> Record:
        """Let a record go."""
        record = self.records.pop(key)
        pool, stream = self._retention.pool(record.info), self._streams[record.info.stream]
        self._count(record, pool, -1)
        del stream[key]
        if not stream:
            del self._streams[record.info.stream]
        if not record.info.pinned:
            del self._free[key]
            if self._retention.ranked:
                self._heaps[pool].gone(self._counts.get(pool, (0, 0))[0], self._alive)
            if pool not in self._counts:
                self._heaps.pop(pool, None)
        return record

    def keys(self, stream: str | None) -> list[bytes]:
        """Keys of a stream, or all, oldest arrival first."""
        return list(self.records if stream is None else self._streams.get(stream, ()))

    def replace_rows(self, rows: Mapping[int, Row], row_bytes: int) -> None:
        """Give every record the row under its number."""
        self.records = {key: replace(r, row=rows[r.born]) for key, r in self.records.items()}
        self.row_bytes = row_bytes

    @property
    def count(self) -> int:
        """All live samples."""
        return len(self.records)

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""
        return len(self.records) * self.row_bytes + self._source_bytes

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts."""
        return self._counts

    def candidates(self, pool: Pool) -> Iterator[Candidate]:
        """Unpinned samples of a pool, highest rank first."""
        if not self._retention.ranked:
            return self.aged()
        heap = self._heaps.get(pool, _Heap())
        return (self._candidate(self.records[key]) for born, key in heap if self._alive(born, key))

    def aged(self) -> Iterator[Candidate]:
        """Unpinned samples, oldest arrival first."""
        return (self._candidate(self.records[key]) for key in self._free)

    def find(self, key: bytes) -> Candidate | None:
        """The live sample of this key."""
        record = self.records.get(key)
        return None if record is None else self._candidate(record)

    def _candidate(self, record: Record) -> Candidate:
        nbytes = self.row_bytes + len(record.source or b"")
        return self._retention.candidate(record.key, record.born, nbytes, record.info, record.arrived)

    def _alive(self, born: int, key: bytes) -> bool:
        record = self.records.get(key)
        return record is not None and record.born == born

    def _count(self, record: Record, pool: Pool, by: int) -> None:
        free, pinned = self._counts.get(pool, (0, 0))
        after = (free + by * (not record.info.pinned), pinned + by * record.info.pinned)
        if after == (0, 0):
            del self._counts[pool]
        else:
            self._counts[pool] = after
        self._source_bytes += by * len(record.source or b"")


class _Heap:
    """Unpinned samples of a pool by rank; those that left are taken out late: at the top, or when they are many."""

    def __init__(self) -> None:
        self._items: list[tuple[int, int, bytes]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, place: int, born: int, key: bytes) -> None:
        """Take in a sample; the lowest place comes first."""
        heappush(self._items, (place, born, key))

    def gone(self, count: int, alive: Callable[[int, bytes], bool]) -> None:
        """A sample left: ``count`` still do live."""
        while self._items and not alive(*self._items[0][1:]):
            heappop(self._items)
        if len(self._items) > 2 * count + 8:
            self._items = [item for item in self._items if alive(*item[1:])]
            heapify(self._items)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(born, key), the lowest place first, taking nothing out: only the heap's top is looked at."""
        items = self._items
        ahead = [(items[0], 0)] if items else []
        while ahead:
            (_, born, key), at = heappop(ahead)
            yield born, key
            for child in range(2 * at + 1, min(2 * at + 3, len(items))):
                heappush(ahead, (items[child], child))
