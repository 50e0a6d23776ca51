"""Rows of one generation: their slab, its free room, and the way of samples into it and out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from streamdrop.errors import StoreCorruptError
from streamdrop.store.compress import compressor
from streamdrop.store.drift import Drift, kept_drift
from streamdrop.store.layout import Layout, byte_view
from streamdrop.store.slab import Place, Slab, as_units, checksum
from streamdrop.store.space import Space
from streamdrop.types import Activations

PART_BYTES = 4 << 20
"""Rows are encoded and written this much at a time; one part is encoded while the one before it is written."""
PACKED_UNIT = 64
"""Bytes per unit where rows differ in length."""
Found: TypeAlias = tuple[int, Place]
"""A sample's sequence number and where its row lies."""


class RowFile:
    """The rows in one slab. ``space`` knows what is free; a reader has none."""

    def __init__(self, path: Path, unit: int, space: Space | None, map_bytes: int) -> None:
        self.slab = Slab(path, unit, space is not None, map_bytes)
        self._space = space

    @property
    def writable(self) -> bool:
        """Whether rows may be added."""
        return self._space is not None

    @property
    def space(self) -> Space:
        """Free room; only the writer knows it."""
        assert self._space is not None
        return self._space

    def place(self, rows: Sequence[memoryview | bytes], seqs: Sequence[int]) -> list[Place]:
        """Room for rows, with their checksums; ``undo`` takes it back."""
        units, take = self.slab.units, self.space.take
        return [Place(take(units(len(row))), len(row), checksum(row, seq)) for row, seq in zip(rows, seqs, strict=True)]

    def undo(self, places: Sequence[Place], end: int) -> None:
        """Rows that are not used after all; the slab reached up to ``end`` before."""
        for place in places:
            if place.start < end:
                self.space.put_back(place.start, self.slab.units(place.length))
        self.space.end = end
        self.slab.cut_off(end)

    def extents(self, places: Sequence[Place]) -> list[tuple[int, int]]:
        """(first unit, units) of each place."""
        return [(place.start, self.slab.units(place.length)) for place in places]

    def write(self, rows: Sequence[memoryview | bytes], places: Sequence[Place]) -> None:
        """Write rows of any length to their places. Raises OSError."""
        unit = self.slab.unit
        data = b"".join([part for row in rows for part in (row, bytes(-len(row) % unit or (unit if not row else 0)))])
        self.slab.write(memoryview(data), self.extents(places))


class Packer(NamedTuple):
    """How samples become rows."""

    layout: Layout
    compression: str | None

    @property
    def unit(self) -> int:
        """Bytes per unit of a slab of such rows."""
        return PACKED_UNIT if self.compression else max(1, self.layout.nbytes)


def write_samples(
    file: RowFile, packer: Packer, parts: Iterable[Sequence[torch.Tensor]], seqs: Sequence[int]
) -> list[Place]:
    """Columns of samples, part by part, into the slab. Raises OSError, DataError; then no room is taken."""
    places: list[Place] = []
    end = file.space.end
    with ThreadPoolExecutor(1) as background:
        under_way: Future[None] | None = None
        try:
            for columns in parts:
                write, placed = prepared(file, packer, columns, seqs[len(places) : len(places) + len(columns[0])])
                places += placed
                if under_way is not None:
                    under_way.result()
                if len(places) == len(seqs):
                    write()  # the last part, mostly the only one, needs no thread
                else:
                    under_way = started(background, write)
        except BaseException:
            if under_way is not None:
                under_way.exception()
            file.undo(places, end)
            raise
    return places


def started(pool: ThreadPoolExecutor, work: Callable[[], None]) -> Future[None]:
    """``work`` in the background; here and now where no thread can be had any more, as the interpreter ends."""
    try:
        return pool.submit(work)
    except RuntimeError:
        future: Future[None] = Future()
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)
        return future


def encoded(
    layout: Layout, samples: Mapping[bytes, Activations], seen: Callable[[Drift], None]
) -> Iterator[Sequence[torch.Tensor]]:
    """Samples as columns in memory of their own, part by part; ``seen`` learns how far they drifted."""
    keys, rows, size = list(samples), list(samples.values()), part_size(layout)
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        names = keys[at : at + size]
        columns = layout.encode(part, names)
        seen(kept_drift(layout, part, columns, names))
        yield columns


def part_size(layout: Layout) -> int:
    """How many rows make a part."""
    return max(1, PART_BYTES // max(1, layout.nbytes))


def prepared(
    file: RowFile, packer: Packer, columns: Sequence[torch.Tensor], seqs: Sequence[int]
) -> tuple[Callable[[], None], list[Place]]:
    """What writes the rows of some samples, and where they will lie."""
    nbytes = packer.layout.nbytes
    data = as_units(columns, packer.layout.spans, nbytes)
    stride = max(1, nbytes)
    rows: Sequence[memoryview | bytes] = [data[i * stride : i * stride + nbytes] for i in range(len(seqs))]
    if packer.compression is None:
        placed = file.place(rows, seqs)
        return lambda: file.slab.write(data, file.extents(placed)), placed
    shorter = compressor(packer.compression)[0]
    rows = [packed if len(packed := shorter(row)) < nbytes else row for row in rows]
    placed = file.place(rows, seqs)
    return lambda: file.write(rows, placed), placed


def gather(
    file: RowFile,
    packer: Packer,
    found: Sequence[Found],
    columns: Sequence[torch.Tensor],
    verify: bool,
    at: Sequence[int] | None = None,
) -> None:
    """Rows of samples into ``columns`` [N, ...], or into the places ``at`` of them.

    Raises StoreCorruptError for a row that has changed.
    """
    layout, slab = packer.layout, file.slab
    if at is None and packer.compression is None and len(columns) == 1 and layout.nbytes:
        if not verify:
            slab.rows(found, columns[0])
        elif (seq := slab.checked_rows(found, columns[0])) is not None:
            raise changed(seq)
        return
    with slab.reading(found):
        views = [byte_view(column) for column in columns]
        unpack = unpacker(packer)
        for i, (seq, place) in zip(range(len(found)) if at is None else at, found, strict=True):
            spread(unpack(read_row(slab, seq, place, verify), seq), layout, views, i)


def read_row(slab: Slab, seq: int, place: Place, verify: bool) -> memoryview:
    """A stored row's bytes, in the map. Raises StoreCorruptError."""
    row = slab.row(place)
    if verify and checksum(row, seq) != place.checksum:
        raise changed(seq)
    return row


def changed(seq: int) -> StoreCorruptError:
    """The error for a row whose checksum does not fit."""
    return StoreCorruptError(
        f"the activations of sample {seq} have changed since they were written: `streamdrop store verify --repair` "
        "drops what is damaged"
    )


def unpacker(packer: Packer) -> Callable[[memoryview, int], memoryview | bytes]:
    """(stored row, sequence number) → the row of the layout's size. It raises StoreCorruptError."""
    size = packer.layout.nbytes
    expand = compressor(packer.compression)[1] if packer.compression is not None else None

    def unpack(row: memoryview, seq: int) -> memoryview | bytes:
        if expand is not None and len(row) < size:
            return expand(row, size)
        if len(row) != size:
            raise changed(seq)
        return row

    return unpack


def spread(row: memoryview | bytes, layout: Layout, views: Sequence[memoryview], i: int) -> None:
    """A row's columns into the ``i``-th place of a batch, whose columns' bytes are ``views``."""
    for view, (start, stop) in zip(views, layout.spans, strict=True):
        size = stop - start
        view[i * size : (i + 1) * size] = row[start:stop]
