"""Rows made anew in the durable store: from their sources at an earlier cut, or as they are without gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from streamdrop.errors import StoreError
from streamdrop.store.batches import as_rows, check_chunk
from streamdrop.store.files import generation_of, packer_of
from streamdrop.store.making import Making, forget_staged, pages
from streamdrop.store.rows import PACKED_UNIT, Found, RowFile, read_row
from streamdrop.store.slab import Slab
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Tables
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore


def thaw(store: LmdbStore, cut: int, embed: Callable[[list[bytes]], Activations], version: str, chunk: int) -> None:
    """Make every sample anew from its source, at ``cut``. Raises StoreError, DataError."""
    check_chunk(chunk)
    state = store.now()
    if cut > state.cut:
        raise StoreError(f"the store is at cut {state.cut}, below {cut}: advance promotes it without the sources")
    forget_staged(store)
    making = Making(store, cut, version)
    try:
        for found in pages(store, making, chunk):
            seqs = [seq for seq, _ in found]
            with store.folder.reading() as (tables, now):
                sources = store.sources_of(tables, now, seqs)
            known = [source for source in sources if source is not None]
            if len(known) < len(sources):
                raise StoreError(_bare(store, seqs[sources.index(None)]))
            making.take(seqs, as_rows(embed(known), len(seqs)))
        making.flip(lambda state: state.thawed(cut, version, making.layout, making.drift))
        store.shrink()
    except BaseException:
        with suppress(StoreError):  # no room to tidy up: the next of these does it
            making.abandon()
        raise
    making.close()


def _bare(store: LmdbStore, seq: int) -> str:
    """Why a sample without a source stands in the way, and what to do."""
    with store.folder.reading() as (tables, state):
        key = next((tables.entry(seq).key for found, _ in tables.living(state.last, seq) if found == seq), None)
    if key is None:
        return (
            "a sample that was replaced or discarded, but is held for a checkpoint or mark, has no source: save again, "
            "or release the mark, then thaw"
        )
    return f"sample {key!r} has no source to make it anew from: put samples with sources="


def compact(store: LmdbStore) -> None:
    """Copy the rows that count, as they are, into slabs without gaps."""
    forget_staged(store)
    for table in (VALUES, SOURCES):
        _compact(store, table)


def _compact(store: LmdbStore, table: bytes) -> None:
    """Rows stay as they are, bit for bit, and are checked on the way."""
    state = store.now()
    generation = generation_of(state, table)
    with store.folder.reading() as (tables, _):
        places = list(tables.placed(table, generation))
    if not places:
        return
    unit = PACKED_UNIT if table == SOURCES else packer_of(state).unit
    with store.folder.environment.errors(sum(place.length for _, place in places)):
        old = store.folder.files.reading(table, generation, unit)
        new = store.folder.files.adopt(table, generation + 1, unit, 0)
        try:
            _flip(store, table, generation, new, _copied(old.slab, new, places))
        except BaseException:
            if generation_of(store.now(), table) == generation:
                new.slab.cut_off(0)  # on a full disk the copy would keep it full
            raise
    store.flush()
    store.folder.sweep()


def _copied(old: Slab, new: RowFile, places: Sequence[Found]) -> list[Found]:
    """The rows in their new places, on the disk. Raises OSError, StoreCorruptError."""
    moved: list[Found] = []
    for at in range(0, len(places), 256):
        part = places[at : at + 256]
        with old.reading(part):
            rows = [read_row(old, seq, place, verify=True) for seq, place in part]
            put = new.place(rows, [seq for seq, _ in part])
            new.write(rows, put)
        moved += [(seq, place) for (seq, _), place in zip(part, put, strict=True)]
    new.slab.sync()
    return moved


def _flip(store: LmdbStore, table: bytes, generation: int, new: RowFile, moved: Sequence[Found]) -> None:
    def work(tables: Tables, state: State) -> State:
        tables.put_places(table, generation + 1, moved)
        if table == VALUES:
            return replace(state, generation=generation + 1, units=new.space.end, epoch=state.epoch + 1)
        return replace(state, source_generation=generation + 1, source_units=new.space.end, epoch=state.epoch + 1)

    store.folder.change(work, 64 * len(moved))
