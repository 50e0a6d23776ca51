"""The few facts that make records a store: cut, version, layout, counts, marks. Immutable; flipped as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from streamdrop.errors import StoreCorruptError, StoreError, StoreVersionError
from streamdrop.store.layout import Layout, codec_known
from streamdrop.types import Activations

FORMAT = 1
"""Number of the record format; a store with a higher one is refused."""


@dataclass(frozen=True)
class Drift:
    """How far stored values lie from what was written: |difference| over ``count`` values."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def __add__(self, other: Drift) -> Drift:
        return Drift(max(self.largest, other.largest), self.total + other.total, self.count + other.count)

    @classmethod
    def between(cls, layout: Layout, written: Activations, stored: Activations) -> Drift:
        """Measured on one sample, over the tensors that a lossy codec converted (``stored``: physical)."""
        drift = cls()
        for part, before, after in zip(layout.tensors, written, stored, strict=True):
            if part.stored == part.dtype or not before.numel():
                continue
            before = before.detach().cpu().permute(part.order).double()
            gap = torch.where(before == after, 0.0, (before - after.double()).abs()).nan_to_num(
                nan=0.0, posinf=torch.inf
            )
            drift += cls(float(gap.max()), float(gap.sum()), gap.numel())
        return drift

    @classmethod
    def over(cls, layout: Layout, written: Sequence[Activations], stored: Sequence[Activations]) -> Drift:
        """Measured over samples; nothing to do for an exact layout."""
        if all(t.stored == t.dtype for t in layout.tensors):
            return cls()
        return sum((cls.between(layout, w, s) for w, s in zip(written, stored, strict=True)), cls())

    def report(self) -> dict[str, float]:
        """{"max", "mean"} absolute error."""
        return {"max": self.largest, "mean": self.total / self.count if self.count else 0.0}


@dataclass(frozen=True)
class State:
    """One consistent view of a store.

    ``last`` is the clock: every stored sample and every discard takes the next number. ``floor`` is the oldest mark
    that can be restored (None: nothing is held yet); ``undone`` are spans of the clock that rollbacks wiped out.
    """

    codec: str
    cut: int = 0
    version: str = ""
    generation: int = 0
    last: int = 0
    count: int = 0
    pinned: int = 0
    layout: Layout | None = None
    floor: int | None = None
    undone: tuple[tuple[int, int], ...] = ()
    drift: Drift = Drift()

    @property
    def holding(self) -> bool:
        """Whether removed samples are held back for a rollback."""
        return self.floor is not None

    def marked(self) -> State:
        """After the first mark samples are held."""
        return self if self.holding else replace(self, floor=self.last)

    def check_mark(self, mark: int) -> None:
        """Raise StoreError unless the state at ``mark`` can be restored."""
        if self.floor is None or not self.floor <= mark <= self.last:
            kept = "no mark was ever set" if self.floor is None else f"marks from {self.floor} to {self.last} are kept"
            raise StoreError(f"mark {mark} cannot be restored: {kept}; use a checkpoint that belongs to this store")
        for start, stop in self.undone:
            if start < mark <= stop:
                raise StoreError(
                    f"mark {mark} was itself undone by a rollback to {start}: use mark {start} or a later one"
                )

    def rolled_back(self, mark: int) -> State:
        """The clock goes on past the span that was wiped out, which is remembered."""
        if self.last == mark:
            return self
        spans = tuple(s for s in self.undone if s[0] < mark)
        return replace(self, last=self.last + 1, undone=(*spans, (mark, self.last)))

    def released(self, mark: int) -> State:
        """Marks before ``mark`` are given up. Raises StoreError for a mark of the future."""
        if self.floor is None or mark > self.last:
            raise StoreError(f"mark {mark} was never set: give what mark() returned")
        floor = max(self.floor, mark)
        return replace(self, floor=floor, undone=tuple(s for s in self.undone if s[1] > floor))

    def check_cut(self, cut: int, version: str, empty: bool) -> bool:
        """Whether promoting to ``cut`` has anything to do. Raises StoreError, StoreVersionError.

        Another version at the same cut is a mere label while the store is ``empty`` (nothing live, nothing held).
        """
        if cut < self.cut:
            raise StoreError(
                f"the store is at cut {self.cut} and cannot go back to {cut}: what earlier layers made is gone; "
                "embed the inputs again into a new store"
            )
        if cut > self.cut:
            return True
        if version != self.version and not empty:
            raise StoreVersionError(
                f"the store holds cut {cut} of version {self.version!r}, not {version!r}: its activations come from "
                "another model; use that model, or a new store"
            )
        return version != self.version

    def to_bytes(self) -> bytes:
        """JSON; ``from_bytes`` reads it."""
        value: dict[str, Any] = dict(self.__dict__)
        value["layout"] = self.layout.to_json() if self.layout else None
        value["drift"] = [self.drift.largest, self.drift.total, self.drift.count]
        return json.dumps({"format": FORMAT, **value}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Read what ``to_bytes`` wrote. Raises StoreVersionError for a newer format, StoreCorruptError."""
        try:
            value = json.loads(data)
            written = int(value.pop("format"))
            if written > FORMAT:
                raise StoreVersionError(
                    f"store has format {written}, this release reads up to {FORMAT}: upgrade streamdrop"
                )
            value["codec"] = codec_known(value["codec"])
            value["layout"] = Layout.from_json(value["layout"]) if value["layout"] is not None else None
            value["undone"] = tuple((int(a), int(b)) for a, b in value["undone"])
            value["drift"] = Drift(*value["drift"])
            return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreCorruptError(f"the store's state does not decode ({error!r}): restore it from a copy") from error
