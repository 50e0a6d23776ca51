"""A store in memory: real time, tests, and a ring that holds the newest samples."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.interrupts import held
from streamdrop.store.batches import check_chunk, stack_or_none
from streamdrop.store.drift import kept_drift
from streamdrop.store.intake import Incoming, check_keys, missing, take_in
from streamdrop.store.layout import EXACT, Layout, codec_name
from streamdrop.store.memory_shelf import MemoryShelf, Record, Row, batch_of, rows_of
from streamdrop.store.memory_stage import Embed, MemoryStage, thawed_rows
from streamdrop.store.protocol import OneOfAKind, Sources, Step, Targets
from streamdrop.store.retention import Retention, retain
from streamdrop.store.snapshot import from_snapshot, snapshot
from streamdrop.store.state import State
from streamdrop.types import Activations, SampleInfo, Target


class MemoryStore(OneOfAKind):
    """A FeatureStore in memory; nothing survives the process but what ``state`` hands to a checkpoint.

    ``max_samples`` bounds it: the oldest unpinned samples make room; ``retention`` says more (give one of them).
    ``dtype`` "float16", "bfloat16" or "int8" shrinks floating tensors at an error that ``error`` reports; the default
    keeps every bit. ``clock`` tells when samples arrive, in seconds. Safe to use from several threads.
    """

    def __init__(
        self,
        max_samples: int | None = None,
        dtype: str | torch.dtype | None = None,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.retention = Retention.of(max_samples, retention)
        self._state = State(codec_name(dtype) or EXACT)
        self._shelf = MemoryShelf(self.retention)
        self._held: list[tuple[int, Record]] = []
        self._staged: weakref.ref[MemoryStage] | None = None  # weak, as an LmdbStore's
        self._clock = clock
        self._closed = False
        self._lock = threading.RLock()

    @property
    def max_samples(self) -> int | None:
        """How many samples it keeps at most."""
        return self.retention.max_samples

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self._state.cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self._state.version

    @property
    def codec(self) -> str:
        """How floating tensors are kept: "float32" (exact), "float16", "bfloat16", "int8"."""
        return self._state.codec

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        return self._state.drift.report()

    def __len__(self) -> int:
        return self._shelf.count

    def __contains__(self, key: object) -> bool:
        return key in self._shelf.records

    def keys(self, stream: str | None = None) -> list[bytes]:
        """All keys, or those of one stream, oldest arrival first."""
        with self._lock:
            return self._shelf.keys(stream)

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Store samples, all or none; then ``retention`` chooses. Raises DataError, StoreFullError."""
        with self._lock:
            self._check_open()
            incoming, layout = take_in(samples, targets, info, self._state.layout, self._state.codec, sources)
            if layout is not None and incoming:
                with held():
                    self._put(incoming, layout, self._clock())

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        with self._lock:
            records, layout = self._find(keys), self._state.layout
        return batch_of(layout, [r.row for r in records]) if layout else ()  # rows never change: others may go on

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        with self._lock:
            return stack_or_none(list(keys), [r.target for r in self._find(keys)])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        with self._lock:
            return [r.info for r in self._find(keys)]

    def get_sources(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The encoded inputs kept beside the activations, None where none was given. Raises MissingKeyError."""
        with self._lock:
            return [r.source for r in self._find(keys)]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored."""
        with self._lock:
            self._check_open()
            wanted = [k for k in dict.fromkeys(check_keys(list(keys))) if k in self._shelf.records]
            with held():
                self._remove(wanted)

    def flush(self) -> None:
        """Nothing to do: memory is as durable as it gets."""
        self._check_open()

    def advance(self, cut: int, step: Step, version: str, chunk: int = 64) -> None:
        """Promote every sample with ``step``, all or none. Raises StoreError, StoreVersionError, DataError."""
        with self.stage(cut, version) as staged:
            staged.commit(step, chunk)

    def stage(self, cut: int, version: str) -> MemoryStage:
        """Start a later cut beside the present one. Raises StoreError, StoreVersionError."""
        with self._lock:
            self._check_unstaged()
            stage = MemoryStage(self, cut, version)
            self._staged = weakref.ref(stage)
            return stage

    def thaw(self, cut: int, embed: Embed, version: str, chunk: int = 64) -> None:
        """Go back to an earlier cut, or make this one anew: ``embed`` turns sources, ``chunk`` at a time, into
        activations at ``cut``. All or none.

        Raises StoreError for a later cut and for a sample without a source, DataError when ``embed`` does not fit.
        """
        check_chunk(chunk)
        with self._lock:
            self._check_unstaged()
            if cut > self._state.cut:
                raise StoreError(f"the store is at cut {self._state.cut}, before {cut}: advance goes there")
            made = thawed_rows(self._records(), embed, self._state.codec, chunk)
            self._flip(self._state.thawed(cut, version, made.layout, made.drift), made.rows)

    def mark(self) -> int:
        """A mark that ``rollback`` can return to; from now on what is removed is held."""
        with self._lock:
            self._check_open()
            self._state = self._state.marked()
            return self._state.last

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError."""
        with self._lock:
            self._check_open()
            self._state.check_mark(mark)
            back = [r for died, r in self._held if died > mark >= r.born]
            live = [r for r in self._shelf.records.values() if r.born <= mark]
            shelf, gone = self._shelf_of([*live, *back], self._state), [one for one in self._held if one[0] <= mark]
            with held():
                self._held, self._shelf, self._state = gone, shelf, self._state.rolled_back(mark)

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""
        with self._lock:
            self._check_open()
            with held():
                self._state = self._state.released(mark)
                self._held = [(died, r) for died, r in self._held if died > mark]

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that is stored, held samples too, as named tensors and JSON values; ``restore`` takes them back."""
        with self._lock:
            self._check_open()
            return snapshot(self._state, list(self._shelf.records.values()), self._held)

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the content by what ``state`` gave. Raises StoreCorruptError, StoreVersionError."""
        with self._lock:
            self._check_open()
            state, live, buried = from_snapshot(tensors, meta, self._state.codec)
            shelf = self._shelf_of(live, state)
            with held():
                self._state, self._held, self._shelf = state, buried, shelf

    def close(self) -> None:
        """Let go of the memory. Twice is fine."""
        with self._lock:
            self._closed = True
            self._shelf, self._held = MemoryShelf(self.retention), []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed: open a new one")

    def _check_unstaged(self) -> None:
        self._check_open()
        if self._staged is not None and self._staged() is not None:
            raise StoreError("another promotion of this store is under way: leave or commit it first")

    def _find(self, keys: Sequence[bytes]) -> list[Record]:
        self._check_open()
        wanted, live = check_keys(keys), self._shelf.records
        absent = [k for k in wanted if k not in live]
        if absent:
            raise missing(absent)
        return [live[k] for k in wanted]

    def _records(self) -> list[Record]:
        """Live and held ones in order of arrival."""
        return sorted([*(r for _, r in self._held), *self._shelf.records.values()], key=lambda r: r.born)

    def _put(self, incoming: Sequence[Incoming], layout: Layout, now: float) -> None:
        first = self._state.last + 1
        arriving = [
            self.retention.candidate(item.key, seq, layout.nbytes + len(item.source or b""), item.info, now)
            for seq, item in enumerate(incoming, first)
        ]
        stay, evicted = retain(self.retention, self._shelf, arriving, now)
        kept = [(c.seq, incoming[c.seq - first]) for c in stay]
        samples = [item.activations for _, item in kept]
        names = [item.key for _, item in kept]
        columns = layout.encode(samples, names)
        drift, rows = self._state.drift + kept_drift(layout, samples, columns, names), rows_of(columns)
        self._state = replace(self._state, layout=layout, drift=drift, last=self._state.last + len(incoming))
        self._bury([*(item.key for item in incoming if item.key in self._shelf.records), *evicted])
        self._shelf.row_bytes = layout.nbytes
        for (seq, item), row in zip(kept, rows, strict=True):
            self._shelf.add(Record(seq, item.key, row, item.target, item.info, now, item.source))

    def _remove(self, keys: Sequence[bytes]) -> None:
        if keys:
            self._state = replace(self._state, last=self._state.last + 1)
            self._bury(keys)

    def _bury(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            record = self._shelf.remove(key)
            if self._state.holding:
                self._held.append((self._state.last, record))

    def _flip(self, state: State, rows: Mapping[int, Row]) -> None:
        """Every sample at another cut; larger rows may leave fewer of them room."""
        with held():
            self._state = state
            self._held = [(died, replace(r, row=rows[r.born])) for died, r in self._held]
            self._shelf.replace_rows(rows, state.layout.nbytes if state.layout else 0)
            if self.retention.max_bytes is not None:
                self._remove(retain(self.retention, self._shelf, (), self._clock())[1])

    def _shelf_of(self, records: Iterable[Record], state: State) -> MemoryShelf:
        ordered = sorted(records, key=lambda r: r.born)
        return MemoryShelf(self.retention, ordered, state.layout.nbytes if state.layout else 0)
