"""Every record of a store, looked at one by one; and a store without those that do not decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from streamdrop.errors import StoreCorruptError, StoreError
from streamdrop.store.entries import Entry, decode, key_of
from streamdrop.store.header import check_file
from streamdrop.store.ledger import Ledger
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.mending import mend_headers
from streamdrop.store.openings import is_open
from streamdrop.store.records import stack_targets
from streamdrop.store.rows import PACKED_UNIT, Packer, read_row, unpacker
from streamdrop.store.slab import Place, Slab
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Raw, Tables, as_number, slot

_PAGE = 256


class Problem(NamedTuple):
    """What is wrong with a sample: ``seq`` its number, ``key`` where it is known; neither: with the store's counts."""

    text: str
    seq: int | None = None
    key: bytes | None = None


def examine(
    store: LmdbStore, tables: Tables, state: State, tell: Callable[[int, int], None] | None = None
) -> Iterator[Problem]:
    """Read every record and row that ``state`` shows, held ones too."""
    reader = _Rows(store, tables, state)
    done = 0
    for page in _pages(tables.living(state.last)):
        yield from _examine_page(reader, page, live=True)
        done += len(page)
        if tell is not None:
            tell(done, state.count)
    for page in _pages((seq, raw) for seq, _, raw in tables.held()):
        yield from _examine_page(reader, page, live=False)
    if done != state.count:
        yield Problem(f"{done} samples are there, {state.count} were counted")
    if tables.count(b"index") != done:
        yield from _dangling(tables, state)


def _pages(records: Iterable[tuple[int, Raw]]) -> Iterator[list[tuple[int, bytes]]]:
    records = iter(records)
    while page := [(seq, bytes(raw)) for seq, raw in islice(records, _PAGE)]:
        yield page


class _Rows:
    """Rows and sources of one state, checked as they are read."""

    def __init__(self, store: LmdbStore, tables: Tables, state: State) -> None:
        self.tables, self.state = tables, state
        self._slabs: dict[bytes, Slab] = {}
        self._store = store
        self._packer = Packer(state.layout, state.compression) if state.layout else None

    def places(self, table: bytes, seqs: list[int]) -> list[Place | None]:
        return self.tables.places(table, self._generation(table), seqs)

    def check(self, table: bytes, seq: int, place: Place) -> None:
        """Raise StoreCorruptError unless the row is as it was written and unpacks."""
        packer = self._packer
        row = read_row(self._slab(table), seq, place, verify=True)
        if table == VALUES and packer is not None:
            unpacker(packer)(row, seq)

    def _generation(self, table: bytes) -> int:
        return self.state.generation if table == VALUES else self.state.source_generation

    def _slab(self, table: bytes) -> Slab:
        found = self._slabs.get(table)
        if found is None:
            unit = self._packer.unit if table == VALUES and self._packer is not None else PACKED_UNIT
            try:
                found = self._store.folder.files.reading(table, self._generation(table), unit).slab
            except FileNotFoundError:
                raise StoreError(f"{self._store.path} was promoted while it was being read: verify it again") from None
            self._slabs[table] = found
        return found


def _examine_page(reader: _Rows, page: list[tuple[int, bytes]], live: bool) -> Iterator[Problem]:
    seqs = [seq for seq, _ in page]
    rows, sources = reader.places(VALUES, seqs), reader.places(SOURCES, seqs)
    for (seq, raw), row, source in zip(page, rows, sources, strict=True):
        key = None
        try:
            entry = decode(raw)
            key = entry.key
            _examine_sample(reader, seq, entry, row, source, live)
        except StoreCorruptError as error:
            yield Problem(f"sample {seq}{'' if key is None else f' ({key!r})'}: {error}", seq, key)


def _examine_sample(reader: _Rows, seq: int, entry: Entry, row: Place | None, source: Place | None, live: bool) -> None:
    if entry.target is not None:
        stack_targets([entry.target])
    if live and reader.tables.find_each([entry.key]) != [seq]:
        raise StoreCorruptError("its key leads elsewhere: observe it again")
    if row is None:
        raise StoreCorruptError("its activations are missing: observe it again")
    reader.check(VALUES, seq, row)
    if source is not None:
        reader.check(SOURCES, seq, source)


def _dangling(tables: Tables, state: State) -> Iterator[Problem]:
    slots = _slots(tables, state)
    for name, raw in tables.cursor(b"index"):
        if slots.get(_points_at(raw)) != name:
            yield Problem(f"the key {bytes(name[1:])!r} leads to no sample of its own", key=bytes(name[1:]))


def _slots(tables: Tables, state: State) -> dict[int, bytes]:
    """Under which name each live sample must be found."""
    return {seq: slot(key_of(raw)) for seq, raw in tables.living(state.last)}


def _points_at(raw: Raw) -> int:
    return int.from_bytes(raw[:8], "big")


def repair(path: str | PathLike[str]) -> dict[str, list[str]]:
    """Drop the samples that do not decode: {"dropped", "repaired"}.

    "dropped" names them by key, or by number where the key is lost; "repaired" says in a line each what was wrong, with
    the store's own counts and LMDB's headers too. They are forgotten for good, even where a mark would hold them. Opens
    for writing and never creates. Raises StoreLockedError, StoreError, StoreCorruptError where the files as a whole
    cannot be read.
    """
    check_file(Path(path), read_only=True)
    mended = [] if is_open(path) else mend_headers(Path(path) / "data.mdb")
    with LmdbStore(path) as store:
        with store.folder.reading() as (tables, state):
            found = list(examine(store, tables, state))
        if found:
            store.folder.change(lambda tables, state: _without(store.folder.ledger(tables), state, found))
            store.flush()
    return {
        "dropped": [_name(problem) for problem in found if problem.seq is not None],
        "repaired": [*mended, *(problem.text for problem in found)],
    }


def _name(problem: Problem) -> str:
    return f"sample {problem.seq}" if problem.key is None else repr(problem.key)


def _without(ledger: Ledger, state: State, found: Sequence[Problem]) -> State:
    """The store without samples that have problems, whatever of them is left; the rest is counted anew."""
    tables = ledger.tables
    ledger.gone += [problem.key for problem in found if problem.key is not None]
    for seq in {problem.seq for problem in found if problem.seq is not None}:
        ledger.forget(state, seq)
        tables.remove_entry(seq)
        tables.let_go(seq)
    slots = _slots(tables, state)
    _delete_where(tables, b"index", lambda name, raw: slots.get(_points_at(raw)) != name)
    _delete_where(tables, b"streams", lambda name, _: as_number(name[8:]) not in slots)
    if ledger.retention.ranked:
        ledger.rank_all(state.last)
    return _recounted(tables, replace(state, epoch=state.epoch + 1))


def _delete_where(tables: Tables, table: bytes, wrong: Callable[[Raw, Raw], bool]) -> None:
    cursor = tables.cursor(table)
    more = cursor.first()
    while more:
        if wrong(cursor.key(), cursor.value()):
            cursor.delete()
            more = bool(cursor.key())
        else:
            more = cursor.next()


def _recounted(tables: Tables, state: State) -> State:
    count = pinned = nbytes = source_bytes = 0
    for page in _pages(tables.living(state.last)):
        seqs = [seq for seq, _ in page]
        count += len(page)
        pinned += sum(decode(raw).info.pinned for _, raw in page)
        nbytes += sum(p.length for p in tables.places(VALUES, state.generation, seqs) if p)
        source_bytes += sum(p.length for p in tables.places(SOURCES, state.source_generation, seqs) if p)
    return replace(state, count=count, pinned=pinned, nbytes=nbytes + source_bytes, source_bytes=source_bytes)
