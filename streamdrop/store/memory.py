"""A store in memory: real time, tests, and a ring that holds the newest samples."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.store.batches import restore, stack_or_none
from streamdrop.store.intake import (
    Incoming,
    check_keys,
    check_max_samples,
    check_room,
    missing,
    take_in,
)
from streamdrop.store.layout import EXACT, codec_name
from streamdrop.store.memory_stage import MemoryStage
from streamdrop.store.protocol import Step, Targets
from streamdrop.store.snapshot import Record, from_snapshot, snapshot
from streamdrop.store.state import Drift, State
from streamdrop.types import Activations, SampleInfo, Target


class MemoryStore:
    """A FeatureStore in memory; nothing survives the process but what ``state`` hands to a checkpoint.

    ``max_samples`` bounds it: the oldest unpinned samples make room. ``dtype`` "float16" or "bfloat16" halves floating
    tensors at an error that ``error`` reports; the default keeps every bit. Safe to use from several threads.
    """

    def __init__(self, max_samples: int | None = None, dtype: str | torch.dtype | None = None) -> None:
        self.max_samples = check_max_samples(max_samples)
        self._state = State(codec_name(dtype) or EXACT)
        self._live: dict[bytes, Record] = {}
        self._held: list[tuple[int, Record]] = []
        self._staged: MemoryStage | None = None
        self._closed = False
        self._lock = threading.RLock()

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""
        return self._state.cut

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations."""
        return self._state.version

    def error(self) -> dict[str, float]:
        """{"max", "mean"} absolute error of what was stored at this cut; 0 for the exact codec."""
        return self._state.drift.report()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        return key in self._live

    def keys(self) -> list[bytes]:
        """All keys, oldest arrival first."""
        with self._lock:
            return list(self._live)

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
    ) -> None:
        """Store samples, all or none. Raises DataError, StoreFullError when pinned samples fill ``max_samples``."""
        with self._lock:
            self._check_open()
            incoming, layout = take_in(samples, targets, info, self._state.layout, self._state.codec)
            if layout is None or not incoming:
                return
            stay = sum(r.info.pinned for k, r in self._live.items() if k not in samples)
            check_room(stay + sum(item.info.pinned for item in incoming), incoming, self.max_samples)
            packed = [layout.pack(item.activations) for item in incoming]
            drift = self._state.drift + Drift.over(layout, [i.activations for i in incoming], packed)
            self._state = replace(self._state, layout=layout, drift=drift)
            self._insert(incoming, packed)
            self._evict()

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``, in memory of their own. Raises MissingKeyError."""
        with self._lock:
            records = self._find(keys)
            layout = self._state.layout
            return restore(layout, [r.values for r in records]) if layout else ()

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...], or None. Raises MissingKeyError, DataError when only some have one."""
        with self._lock:
            return stack_or_none(list(keys), [r.target for r in self._find(keys)])

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets. Raises MissingKeyError."""
        with self._lock:
            return [r.info for r in self._find(keys)]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored."""
        with self._lock:
            self._check_open()
            gone = [k for k in dict.fromkeys(check_keys(list(keys))) if k in self._live]
            if gone:
                self._state = replace(self._state, last=self._state.last + 1)
            for key in gone:
                self._bury(key)

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
            self._check_open()
            if self._staged is not None:
                raise StoreError("another promotion of this store is under way: leave or commit it first")
            self._staged = MemoryStage(self, cut, version)
            return self._staged

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
            live = [r for r in self._live.values() if r.born <= mark]
            self._held = [(died, r) for died, r in self._held if died <= mark]
            self._live = {r.key: r for r in sorted([*live, *back], key=lambda r: r.born)}
            self._state = self._state.rolled_back(mark)

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``. Raises StoreError."""
        with self._lock:
            self._check_open()
            self._state = self._state.released(mark)
            self._held = [(died, r) for died, r in self._held if died > mark]

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that is stored, held samples too, as named tensors and JSON values; ``restore`` takes them back."""
        with self._lock:
            self._check_open()
            return snapshot(self._state, list(self._live.values()), self._held)

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the content by what ``state`` gave. Raises StoreCorruptError, StoreVersionError."""
        with self._lock:
            self._check_open()
            state, live, held = from_snapshot(tensors, meta, self._state.codec)
            self._state, self._held = state, held
            self._live = {r.key: r for r in live}

    def close(self) -> None:
        """Let go of the memory. Twice is fine."""
        with self._lock:
            self._closed = True
            self._live, self._held = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed: open a new one")

    def _find(self, keys: Sequence[bytes]) -> list[Record]:
        self._check_open()
        wanted = check_keys(keys)
        absent = [k for k in wanted if k not in self._live]
        if absent:
            raise missing(absent)
        return [self._live[k] for k in wanted]

    def _insert(self, incoming: Sequence[Incoming], packed: Sequence[Activations]) -> None:
        for item, values in zip(incoming, packed, strict=True):
            self._state = replace(self._state, last=self._state.last + 1)
            if item.key in self._live:
                self._bury(item.key)
            self._live[item.key] = Record(self._state.last, item.key, values, item.target, item.info)

    def _bury(self, key: bytes) -> None:
        record = self._live.pop(key)
        if self._state.holding:
            self._held.append((self._state.last, record))

    def _evict(self) -> None:
        excess = 0 if self.max_samples is None else len(self._live) - self.max_samples
        if excess > 0:
            oldest = [k for k, r in self._live.items() if not r.info.pinned]
            for key in oldest[:excess]:
                self._bury(key)
