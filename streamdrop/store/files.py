"""The slabs of a store, by table and generation: which are open, where their free room is, when they go."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from streamdrop.errors import StoreCorruptError, StoreError
from streamdrop.store.environment import Environment
from streamdrop.store.ledger import Freed
from streamdrop.store.rows import PACKED_UNIT, Packer, RowFile
from streamdrop.store.space import Space
from streamdrop.store.state import State
from streamdrop.store.tables import SOURCES, VALUES, Tables

_NAMES = {VALUES: "values", SOURCES: "sources"}
_SLACK = 20
"""Room worth looking for: a twentieth of the slab."""


def generation_of(state: State, table: bytes) -> int:
    """The generation whose rows count."""
    return state.generation if table == VALUES else state.source_generation


def packer_of(state: State) -> Packer:
    """How a state's samples become rows. The store must not be empty."""
    assert state.layout is not None
    return Packer(state.layout, state.compression)


def remove_store(path: Path) -> None:
    """Delete the files of a store that nobody has open, and nothing else. Raises StoreError."""
    try:
        for pattern in ("data.mdb", "lock.mdb", "seal.json", *(f"{kind}-[0-9]*.bin" for kind in _NAMES.values())):
            for file in path.glob(pattern):
                file.unlink()
    except OSError as error:
        raise StoreError(f"{path} cannot be removed ({error}): remove it by hand, or give another path") from error


class Files:
    """Open slabs of the store in ``path``."""

    def __init__(self, path: Path, environment: Environment, map_bytes: int) -> None:
        self._path, self._environment, self._map_bytes = path, environment, map_bytes
        self._open: dict[tuple[bytes, int], RowFile] = {}
        self._lock = threading.Lock()

    def path(self, table: bytes, generation: int) -> Path:
        """Where a generation's rows lie."""
        return self._path / f"{_NAMES[table]}-{generation:06d}.bin"

    def reading(self, table: bytes, generation: int, unit: int) -> RowFile:
        """A generation's rows, to read. Raises FileNotFoundError when a later state has done away with them."""
        with self._lock:
            found = self._open.get((table, generation))
            if found is None or found.slab.unit != unit:
                for stale in [name for name in self._open if name[0] == table and name[1] < generation]:
                    del self._open[stale]
                found = self._open[table, generation] = RowFile(
                    self.path(table, generation), unit, None, self._map_bytes
                )
            return found

    def writing(self, tables: Tables, state: State, table: bytes, unit: int) -> RowFile:
        """The present rows, to add to; free room is looked for where there seems to be some. The writer's turn only."""
        generation = generation_of(state, table)
        found = self._open.get((table, generation))
        if found is None or not found.writable or found.slab.unit != unit:
            end = state.units if table == VALUES else state.source_units
            found = self.adopt(table, generation, unit, end)
            self._look_for_room(tables, table, generation, found, state)
        if found.space.waiting:
            found.space.settle(self._environment.forgotten())
        return found

    def adopt(self, table: bytes, generation: int, unit: int, end: int) -> RowFile:
        """A generation's rows, to write after ``end`` units."""
        with self._lock:
            found = RowFile(self.path(table, generation), unit, Space(end), self._map_bytes)
            self._open[table, generation] = found
            return found

    def reached(self, state: State) -> State:
        """The state with how far the present slabs reach."""
        values = self._open.get((VALUES, state.generation))
        sources = self._open.get((SOURCES, state.source_generation))
        return replace(
            state,
            units=values.space.end if values is not None and values.writable else state.units,
            source_units=sources.space.end if sources is not None and sources.writable else state.source_units,
        )

    def freed(self, places: list[Freed]) -> None:
        """The last transaction set places free."""
        last = self._environment.last()
        for table, generation, place in places:
            found = self._open.get((table, generation))
            if found is not None and found.writable:
                found.space.give(place.start, found.slab.units(place.length), last)

    def keep_only(self, wanted: set[tuple[bytes, int]]) -> None:
        """Do away with all slabs but these. Who still reads one keeps it until he lets go."""
        with self._lock:
            for name in [name for name in self._open if name not in wanted]:
                del self._open[name]
        paths = {self.path(*name) for name in wanted}
        for kind in _NAMES.values():
            for file in self._path.glob(f"{kind}-[0-9]*.bin"):
                if file not in paths:
                    with suppress(OSError):
                        file.unlink()

    def close(self) -> None:
        """Let go of all slabs. Who still reads one keeps it until he lets go."""
        with self._lock:
            self._open.clear()

    def check(self, state: State) -> None:
        """Raise StoreCorruptError when a slab ends before the rows that the state shows."""
        needs = [(VALUES, state.units * packer_of(state).unit if state.layout else 0)]
        needs.append((SOURCES, state.source_units * PACKED_UNIT))
        for table, need in needs:
            file = self.path(table, generation_of(state, table))
            size = file.stat().st_size if file.exists() else 0
            if size < need:
                raise StoreCorruptError(
                    f"{file} is cut off at {size} of {need} bytes: restore the store from a copy, or start anew"
                )

    def _look_for_room(self, tables: Tables, table: bytes, generation: int, file: RowFile, state: State) -> None:
        end = file.space.end
        packed = file.slab.unit == PACKED_UNIT
        rows = state.count + tables.count(b"held")
        if end and (packed or end - rows > end // _SLACK):
            used = ((place.start, file.slab.units(place.length)) for _, place in tables.placed(table, generation))
            file.space.rebuild(used, self._environment.last())
