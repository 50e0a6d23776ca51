"""Promotion in memory: the later cut's values are gathered beside the present ones, then swapped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.store.batches import check_chunk, restore, stepped
from streamdrop.store.intake import check_activations
from streamdrop.store.layout import Layout
from streamdrop.store.protocol import Step
from streamdrop.store.snapshot import Record
from streamdrop.store.state import Drift
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.memory import MemoryStore


class MemoryStage:
    """A later cut of a MemoryStore in the making."""

    def __init__(self, store: MemoryStore, cut: int, version: str) -> None:
        self._store, self._cut, self._version = store, cut, version
        self._needed = store._state.check_cut(cut, version, not store._live and not store._held)
        self._layout: Layout | None = None
        self._values: dict[int, Activations] = {}
        self._drift = Drift()
        self._done = False

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""
        with self._store._lock:
            self._check_running()
            layout = check_activations(samples, self._layout, self._store._state.codec)
            records = self._store._find(list(samples))
            if self._needed and layout is not None:
                self._layout = layout
                self._keep(records, [tuple(a) for a in samples.values()])

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged and flip. Raises DataError when ``step`` does not fit; then nothing changed."""
        check_chunk(chunk)
        with self._store._lock:
            self._check_running()
            if self._needed:
                self._promote(step, chunk)
                self._flip()
            self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._store._lock:
            self._done = True
            self._values = {}
            if self._store._staged is self:
                self._store._staged = None

    def _check_running(self) -> None:
        self._store._check_open()
        if self._done:
            raise StoreError("this promotion is over: start another with stage()")

    def _records(self) -> list[Record]:
        held = [r for _, r in self._store._held]
        return sorted([*held, *self._store._live.values()], key=lambda r: r.born)

    def _keep(self, records: Sequence[Record], activations: Sequence[Activations]) -> None:
        assert self._layout is not None
        packed = [self._layout.pack(a) for a in activations]
        self._drift += Drift.over(self._layout, activations, packed)
        self._values.update({r.born: v for r, v in zip(records, packed, strict=True)})

    def _promote(self, step: Step, chunk: int) -> None:
        rest = [r for r in self._records() if r.born not in self._values]
        before = self._store._state.layout
        for start in range(0, len(rest), chunk):
            assert before is not None
            records = rest[start : start + chunk]
            rows = stepped(step, restore(before, [r.values for r in records]), len(records))
            named = {r.key: row for r, row in zip(records, rows, strict=True)}
            self._layout = check_activations(named, self._layout, self._store._state.codec)
            self._keep(records, rows)

    def _flip(self) -> None:
        store, values = self._store, self._values
        store._live = {k: replace(r, values=values[r.born]) for k, r in store._live.items()}
        store._held = [(died, replace(r, values=values[r.born])) for died, r in store._held]
        store._state = replace(
            store._state, cut=self._cut, version=self._version, layout=self._layout, drift=self._drift,
            generation=store._state.generation + 1,
        )  # fmt: skip
