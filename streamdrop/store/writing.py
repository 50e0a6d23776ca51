"""Putting samples into the durable store: rows first, then the records, all or none, visible with the last commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from streamdrop.errors import StoreError
from streamdrop.store.drift import Drift
from streamdrop.store.entries import Entry, encode
from streamdrop.store.intake import Incoming
from streamdrop.store.layout import Layout
from streamdrop.store.ledger import LmdbShelf, New
from streamdrop.store.memory_shelf import Record
from streamdrop.store.retention import retain
from streamdrop.store.rows import PACKED_UNIT, Packer, RowFile, encoded, part_size, started, write_samples
from streamdrop.store.slab import Place
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Tables
from streamdrop.types import SampleInfo

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore

RECORDS = 100_000
"""Records written in one transaction; LMDB keeps its pages in memory."""
_RECORD_BYTES = 400


def put_samples(store: LmdbStore, layout: Layout, incoming: Sequence[Incoming]) -> None:
    """Write checked samples that retention lets in. Raises StoreFullError; then none of them is there."""
    now, state, drift = store.clock(), store.now(), Drift()

    def seen(more: Drift) -> None:
        nonlocal drift
        drift = drift + more

    numbers, last = list(range(state.last + 1, state.last + 1 + len(incoming))), state.last + len(incoming)
    gone: Sequence[bytes] = ()
    if store.retention.bounded:
        incoming, numbers, gone = _chosen(store, state, layout, incoming, now)
    parts = encoded(layout, {item.key: item.activations for item in incoming}, seen)
    values = [(item.key, item.info, now, item.target, item.source) for item in incoming]
    _put(store, layout, parts, numbers, values, gone, last, lambda: drift)


def put_records(
    store: LmdbStore, layout: Layout, records: Sequence[Record], gone: Sequence[bytes], drift: Drift
) -> None:
    """Write samples that are encoded already and let ``gone`` leave: what a write-behind tier has settled."""
    state, size = store.now(), part_size(layout)
    parts = (
        [torch.stack(column) for column in zip(*(r.row for r in records[at : at + size]), strict=True)]
        for at in range(0, len(records), size)
    )
    last = state.last + max(1, len(records))
    numbers = list(range(state.last + 1, state.last + 1 + len(records)))
    values = [(r.key, r.info, r.arrived, r.target, r.source) for r in records]
    _put(store, layout, parts, numbers, values, gone, last, lambda: drift)


def _chosen(
    store: LmdbStore, state: State, layout: Layout, incoming: Sequence[Incoming], now: float
) -> tuple[list[Incoming], list[int], list[bytes]]:
    """Samples that stay with their sequence numbers, and the keys of those that leave, replaced ones too."""
    retention = store.retention
    arriving = [
        retention.candidate(item.key, seq, layout.nbytes + len(item.source or b""), item.info, now)
        for seq, item in enumerate(incoming, state.last + 1)
    ]
    with store.folder.reading() as (tables, state):
        kept, gone = retain(retention, LmdbShelf(tables, state, retention), arriving, now)
    stay = {candidate.seq for candidate in kept}
    refused = [c.key for c in arriving if c.seq not in stay]  # what they would have replaced leaves all the same
    by_number = {c.seq: item for c, item in zip(arriving, incoming, strict=True)}
    return [by_number[c.seq] for c in kept], [c.seq for c in kept], [*gone, *refused]


Values: TypeAlias = tuple[bytes, SampleInfo, float, bytes | None, bytes | None]
"""Key, info, arrival, target and source of a sample."""


def _put(
    store: LmdbStore,
    layout: Layout,
    parts: Iterable[Sequence[torch.Tensor]],
    numbers: Sequence[int],
    values: Sequence[Values],
    gone: Sequence[bytes],
    last: int,
    drift: Callable[[], Drift],
) -> None:
    packer = Packer(layout, store.now().compression)
    rows = store.folder.row_file(VALUES, packer.unit)
    sources = store.folder.row_file(SOURCES, PACKED_UNIT) if any(one[-1] is not None for one in values) else None
    taken: list[tuple[RowFile, Sequence[Place], int]] = []
    end = rows.space.end
    with store.folder.environment.errors(len(values) * layout.nbytes + sum(len(one[-1] or b"") for one in values)):
        try:
            places = write_samples(rows, packer, parts, numbers)
            taken.append((rows, places, end))
            kept = _write_sources(sources, numbers, [one[-1] for one in values], taken)
            with ThreadPoolExecutor(1) as background:  # the disk takes the rows while their records are made
                on_disk = started(background, partial(_sync, (rows, sources)))
                new = [
                    New(seq, Entry(key, info, arrived, target), encode(key, info, arrived, target), place, source)
                    for seq, (key, info, arrived, target, _), place, source in zip(
                        numbers, values, places, kept, strict=True
                    )
                ]
                _record(store, layout, new, gone, last, drift(), on_disk.result)
        except BaseException:
            if store.now().last < last:  # else what was raised came after the commit, from a signal's handler
                for file, unused, before in taken:
                    file.undo(unused, before)
            raise


def _sync(files: Sequence[RowFile | None]) -> None:
    for file in files:
        if file is not None:
            file.slab.sync()


def _write_sources(
    file: RowFile | None,
    numbers: Sequence[int],
    sources: Sequence[bytes | None],
    taken: list[tuple[RowFile, Sequence[Place], int]],
) -> list[Place | None]:
    if file is None:
        return [None] * len(sources)
    given = {seq: source for seq, source in zip(numbers, sources, strict=True) if source is not None}
    end = file.space.end
    places = file.place(list(given.values()), list(given))
    taken.append((file, places, end))
    file.write(list(given.values()), places)
    by_number = dict(zip(given, places, strict=True))
    return [by_number.get(seq) for seq in numbers]


def _record(
    store: LmdbStore,
    layout: Layout,
    new: Sequence[New],
    evicted: Sequence[bytes],
    last: int,
    drift: Drift,
    on_disk: Callable[[], None],
) -> None:
    """Records in bounded transactions, above the clock until the last one moves it: nobody sees a part.

    The last commit waits for ``on_disk``: what it shows must not be lost in a power cut that it survives.
    """
    parts = [new[at : at + RECORDS] for at in range(0, len(new), RECORDS)] or [new]
    beside = sum(len(one.raw) for one in new) + _RECORD_BYTES * len(new)

    def work(tables: Tables, state: State) -> State:
        _write_records(tables, state, parts[-1])
        ledger = store.folder.ledger(tables)
        keys = list(dict.fromkeys([*(one.entry.key for one in new), *evicted]))
        gone = [(key, seq) for key, seq in zip(keys, tables.find_each(keys), strict=True) if seq is not None]
        state = ledger.remove(replace(state, last=last), gone, last)
        state = store.folder.files.reached(replace(state, layout=layout, drift=state.drift + drift))
        state = ledger.add(state, new)
        on_disk()
        return state

    try:
        for part in parts[:-1]:
            store.folder.change(partial(_shown_later, part), _RECORD_BYTES * len(part))
        store.folder.change(work, beside)
    except BaseException:
        if len(parts) > 1:
            _tidy(store)
        raise


def _shown_later(new: Sequence[New], tables: Tables, state: State) -> State:
    _write_records(tables, state, new)
    return state


def _write_records(tables: Tables, state: State, new: Sequence[New]) -> None:
    tables.put_entries([(one.seq, one.raw) for one in new])
    tables.put_places(VALUES, state.generation, [(one.seq, one.place) for one in new])
    sources = [(one.seq, one.source) for one in new if one.source is not None]
    if sources:
        tables.put_places(SOURCES, state.source_generation, sources)


def _tidy(store: LmdbStore) -> None:
    try:
        store.folder.sweep()
    except StoreError:  # no room to tidy up either: the next opening does it
        return
