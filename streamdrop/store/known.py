"""Where samples lie, as far as this process has looked: what was found once need not be looked up again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from streamdrop.errors import StoreCorruptError
from streamdrop.store.entries import checked, key_of
from streamdrop.store.intake import check_keys
from streamdrop.store.rows import Found
from streamdrop.store.state import State
from streamdrop.store.tables import VALUES, Tables

MOST = 1 << 18
"""Places kept in memory; more are looked up again."""


class Known:
    """Places of samples by key, true for one epoch of a store, and its keys in order. Threads may share it."""

    def __init__(self) -> None:
        self._listed: tuple[int, int, dict[bytes, None]] = (-1, 0, {})  # epoch, newest number listed, keys in order
        self._found: tuple[int, dict[bytes, Found]] = (-1, {})  # always read as one: epoch and places belong together
        self._lock = threading.Lock()

    def locate(self, tables: Tables, state: State, keys: Sequence[bytes]) -> list[Found]:
        """Sequence number and place of each key. Raises MissingKeyError, DataError, StoreCorruptError."""
        epoch, known = self._found
        if epoch == state.epoch:
            try:
                return [known[key] for key in keys]
            except (KeyError, TypeError):
                pass
        seqs = tables.find_all(check_keys(keys))
        places = tables.places(VALUES, state.generation, seqs)
        found = []
        for seq, place in zip(seqs, places, strict=True):
            if place is None:
                raise StoreCorruptError(f"the row of sample {seq} is missing: restore the store from a copy")
            found.append((seq, place))
        self._learn(state.epoch, keys, found)
        return found

    def _learn(self, epoch: int, keys: Sequence[bytes], found: Sequence[Found]) -> None:
        with self._lock:
            now, known = self._found
            if now != epoch or len(known) + len(found) > MOST:
                known = {}
                self._found = (epoch, known)
            known.update(zip(keys, found, strict=True))

    def keys(self, tables: Tables, state: State) -> list[bytes]:
        """All keys, oldest arrival first. Only what is new since the last time is looked up."""
        with self._lock:
            epoch, last, listed = self._listed
            if epoch != state.epoch or last > state.last:
                last, listed = 0, {}
            if last < state.last:
                listed.update((key_of(checked(raw)), None) for _, raw in tables.living(state.last, last + 1))
            self._listed = (state.epoch, state.last, listed)
            return list(listed)

    def forget(self, gone: Sequence[bytes], before: int, after: int) -> None:
        """A change from one epoch to another took these keys' places away, and no others'."""
        with self._lock:
            epoch, known = self._found
            if epoch == before:
                for key in gone:
                    known.pop(key, None)
                self._found = (after, known)
            epoch, last, listed = self._listed
            if epoch == before:
                for key in gone:
                    listed.pop(key, None)
                self._listed = (after, last, listed)
