"""Putting samples into the durable store: rows first, then the records, all or none, visible with the last commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from streamdrop.errors import StoreError
from streamdrop.store.drift import Drift
from streamdrop.store.entries import Entry, encode
from streamdrop.store.intake import Incoming
from streamdrop.store.layout import Layout
from streamdrop.store.ledger import LmdbShelf, New
from streamdrop.store.retention import retain
from streamdrop.store.rows import PACKED_UNIT, Packer, RowFile, write_samples
from streamdrop.store.slab import Place
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Tables
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore

RECORDS = 100_000
"""Records written in one transaction; LMDB keeps its pages in memory."""
_RECORD_BYTES = 400


def put_samples(
    store: LmdbStore, layout: Layout, incoming: Sequence[Incoming], evicted: Sequence[bytes] | None = None
) -> None:
    """Write checked samples. ``evicted`` are the keys that leave for them; None: retention chooses.

    Raises StoreFullError; then none of them is there.
    """
    now, state = store.clock(), store.now()
    if evicted is None:
        incoming, numbers, evicted = _chosen(store, state, layout, incoming, now)
        last = max([state.last, *numbers])
    else:
        numbers, last = list(range(state.last + 1, state.last + 1 + len(incoming))), state.last + len(incoming)
    _put(store, layout, incoming, numbers, evicted, last, now)


def _chosen(
    store: LmdbStore, state: State, layout: Layout, incoming: Sequence[Incoming], now: float
) -> tuple[list[Incoming], list[int], list[bytes]]:
    """Samples that stay with their sequence numbers, and the keys of those that leave, replaced ones too."""
    retention = store.retention
    arriving = [
        retention.candidate(item.key, seq, layout.nbytes + len(item.source or b""), item.info, now)
        for seq, item in enumerate(incoming, state.last + 1)
    ]
    with store.reading() as (tables, state):
        kept, gone = retain(retention, LmdbShelf(tables, state, retention), arriving, now)
    if len(kept) == len(incoming):
        return list(incoming), [candidate.seq for candidate in kept], gone
    stay = {candidate.seq for candidate in kept}
    refused = [c.key for c in arriving if c.seq not in stay]  # what they would have replaced leaves all the same
    by_number = {c.seq: item for c, item in zip(arriving, incoming, strict=True)}
    return [by_number[c.seq] for c in kept], [c.seq for c in kept], [*gone, *refused]


def _put(
    store: LmdbStore,
    layout: Layout,
    incoming: Sequence[Incoming],
    numbers: Sequence[int],
    evicted: Sequence[bytes],
    last: int,
    now: float,
) -> None:
    packer, drift = Packer(layout, store.now().compression), Drift()

    def seen(samples: Sequence[Activations], columns: Sequence[torch.Tensor]) -> None:
        nonlocal drift
        drift = drift + Drift.over(layout, samples, columns)

    values, sources = store.row_file(VALUES, packer.unit), None
    need = len(incoming) * layout.nbytes + sum(len(item.source or b"") for item in incoming)
    taken: list[tuple[RowFile, Sequence[Place], int]] = []
    end = values.space.end
    with store.environment.errors(need):
        try:
            samples = {item.key: item.activations for item in incoming}
            places = write_samples(values, packer, samples, numbers, seen)
            taken.append((values, places, end))
            if any(item.source is not None for item in incoming):
                sources = store.row_file(SOURCES, PACKED_UNIT)
            kept = _write_sources(sources, incoming, numbers, taken)
            for file in filter(None, (values, sources)):
                file.slab.sync()
            new = [_new(*one, now) for one in zip(numbers, incoming, places, kept, strict=True)]
            _record(store, layout, new, evicted, last, drift)
        except BaseException:
            for file, unused, before in taken:
                file.undo(unused, before)
            raise


def _write_sources(
    file: RowFile | None,
    incoming: Sequence[Incoming],
    numbers: Sequence[int],
    taken: list[tuple[RowFile, Sequence[Place], int]],
) -> list[Place | None]:
    if file is None:
        return [None] * len(incoming)
    given = [(seq, item.source) for seq, item in zip(numbers, incoming, strict=True) if item.source is not None]
    end = file.space.end
    places = file.place([source for _, source in given], [seq for seq, _ in given])
    taken.append((file, places, end))
    file.write([source for _, source in given], places)
    by_number = dict(zip((seq for seq, _ in given), places, strict=True))
    return [by_number.get(seq) for seq in numbers]


def _new(seq: int, item: Incoming, place: Place, source: Place | None, now: float) -> New:
    raw = encode(item.key, item.info, now, item.target)
    return New(seq, Entry(item.key, item.info, now, item.target), raw, place, source)


def _record(
    store: LmdbStore, layout: Layout, new: Sequence[New], evicted: Sequence[bytes], last: int, drift: Drift
) -> None:
    """Records in bounded transactions, above the clock until the last one moves it: nobody sees a part."""
    parts = [new[at : at + RECORDS] for at in range(0, len(new), RECORDS)] or [new]
    beside = sum(len(one.raw) for one in new) + _RECORD_BYTES * len(new)

    def work(tables: Tables, state: State) -> State:
        _write_records(tables, state, parts[-1])
        ledger = store.ledger(tables)
        keys = list(dict.fromkeys([*(one.entry.key for one in new), *evicted]))
        gone = [(key, seq) for key, seq in zip(keys, tables.find_each(keys), strict=True) if seq is not None]
        state = ledger.remove(replace(state, last=last), gone, last)
        state = store.files.reached(replace(state, layout=layout, drift=state.drift + drift))
        return ledger.add(state, new)

    try:
        for part in parts[:-1]:
            store.change(partial(_shown_later, part), _RECORD_BYTES * len(part))
        store.change(work, beside)
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
        store.sweep()
    except StoreError:  # no room to tidy up either: the next opening does it
        return
