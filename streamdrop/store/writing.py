"""Putting samples into LMDB: all or none, in transactions of bounded size, visible at once with the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from lmdb import Transaction

from streamdrop.errors import StoreError
from streamdrop.store.intake import Incoming, check_room
from streamdrop.store.layout import Layout
from streamdrop.store.records import entry_key, entry_pinned
from streamdrop.store.state import Drift, State
from streamdrop.store.tables import Tables, encode_value

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore

TRANSACTION_BYTES = 64 << 20
"""LMDB keeps a transaction's pages in memory: larger puts are split, and become visible with the last part."""


def put_samples(store: LmdbStore, state: State, layout: Layout, incoming: Sequence[Incoming]) -> None:
    """Write checked samples. Raises StoreFullError; then none of them is there."""
    _check_pinned(store, state, incoming)
    parts = _split(incoming, layout)
    first = state.last + 1
    try:
        for part in parts[:-1]:
            state = _write_part(store, state, layout, part, first)
            first += len(part)
        _write_last(store, state, layout, incoming, parts[-1], first)
    except BaseException:
        if len(parts) > 1:
            _tidy(store)
        raise


def _check_pinned(store: LmdbStore, state: State, incoming: Sequence[Incoming]) -> None:
    if store.max_samples is None:
        return
    with store.reading() as (tables, _):
        found = [seq for item in incoming if (seq := tables.find(item.key)) is not None]
        replaced = sum(entry_pinned(tables.entry(seq)) for seq in found)
    check_room(state.pinned - replaced + sum(item.info.pinned for item in incoming), incoming, store.max_samples)


def _split(incoming: Sequence[Incoming], layout: Layout) -> list[Sequence[Incoming]]:
    size = max(1, TRANSACTION_BYTES // max(1, layout.nbytes))
    return [incoming[start : start + size] for start in range(0, len(incoming), size)]


def _encode(layout: Layout, part: Sequence[Incoming]) -> tuple[list[bytes], Drift, int]:
    """Values as stored, how far they drifted, bytes the transaction will write."""
    packed = [layout.pack(item.activations) for item in part]
    values = [encode_value(p) for p in packed]
    beside = sum(len(item.target or b"") + len(item.key) + 64 for item in part)
    return values, Drift.over(layout, [item.activations for item in part], packed), sum(map(len, values)) + beside


def _write_part(store: LmdbStore, state: State, layout: Layout, part: Sequence[Incoming], first: int) -> State:
    """Records above the clock: nobody sees them before the last part is written."""
    values, drift, weight = _encode(layout, part)

    def run(txn: Transaction) -> None:
        _put(Tables(txn, store.environment.tables), state, part, values, first)

    store.environment.write(run, weight)
    return replace(state, drift=state.drift + drift)


def _write_last(
    store: LmdbStore, state: State, layout: Layout, incoming: Sequence[Incoming], part: Sequence[Incoming], first: int
) -> None:
    values, drift, weight = _encode(layout, part)
    last = state.last + len(incoming)

    def work(tables: Tables, _: State) -> State:
        _put(tables, state, part, values, first)
        after = replace(state, layout=layout, last=last, drift=state.drift + drift)
        for seq, item in enumerate(incoming, state.last + 1):
            after = tables.point(after, item.key, seq)
        return _evict(tables, after, store.max_samples)

    store.change(work, weight)


def _put(tables: Tables, state: State, part: Sequence[Incoming], values: Sequence[bytes], first: int) -> None:
    for seq, (item, value) in enumerate(zip(part, values, strict=True), first):
        tables.put_value(state.generation, seq, value)
        tables.put_sample(seq, item.key, item.info, item.target)


def _evict(tables: Tables, state: State, limit: int | None) -> State:
    excess = 0 if limit is None else state.count - limit
    if excess <= 0:
        return state
    free = ((seq, bytes(e)) for seq, e in tables.living(state.last) if not entry_pinned(e))
    for seq, entry in list(islice(free, excess)):
        tables.drop_key(entry_key(entry))
        state = tables.bury(state, seq, state.last)
    return state


def _tidy(store: LmdbStore) -> None:
    try:
        store.sweep()
    except StoreError:  # no room to tidy up either: the next opening does it
        return
