"""The few facts that make records a store: cut, version, layout, counts, marks. Immutable; flipped as one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from streamdrop.errors import StoreCorruptError, StoreError, StoreVersionError
from streamdrop.store.drift import Drift
from streamdrop.store.layout import Layout, codec_known

FORMAT = 2
"""Number of the record format; a store with another one is refused."""


@dataclass(frozen=True)
class State:
    """One consistent view of a store.

    ``last`` is the clock: every stored sample and every discard takes the next number. ``floor`` is the oldest mark
    that can be restored (None: nothing is held yet); ``undone`` are spans of the clock that rollbacks wiped out.
    ``lineage`` names the (cut, version) of every promotion's origin, oldest first: a promoted store proves its line.
    ``nbytes`` are the stored bytes of live samples, ``source_bytes`` those of their sources. ``units`` and
    ``source_units`` say how far the slabs reach. ``epoch`` counts the changes that made a known place invalid;
    ``ranking`` names the retention that the ranks are sorted for.
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
    drift: Drift = field(default_factory=Drift)
    lineage: tuple[tuple[int, str], ...] = ()
    nbytes: int = 0
    source_bytes: int = 0
    compression: str | None = None
    units: int = 0
    source_generation: int = 0
    source_units: int = 0
    epoch: int = 0
    ranking: str = ""

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

    def promoted(self, cut: int, version: str, layout: Layout | None, drift: Drift) -> State:
        """At a later cut, this one added to the line it comes from."""
        lineage = (*self.lineage, (self.cut, self.version)) if cut > self.cut else self.lineage
        return replace(
            self, cut=cut, version=version, layout=layout, drift=drift, lineage=lineage,
            generation=self.generation + 1, epoch=self.epoch + 1,
        )  # fmt: skip

    def thawed(self, cut: int, version: str, layout: Layout | None, drift: Drift) -> State:
        """At a lower cut (or this one made anew): what came after it is no longer in the line."""
        lineage = tuple(step for step in self.lineage if step[0] < cut)
        return replace(
            self, cut=cut, version=version, layout=layout, drift=drift, lineage=lineage,
            generation=self.generation + 1, epoch=self.epoch + 1,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """A checksum and JSON; ``from_bytes`` reads it."""
        value: dict[str, Any] = dict(self.__dict__)
        value["layout"] = self.layout.to_json() if self.layout else None
        value["drift"] = [self.drift.largest, self.drift.total, self.drift.count]
        data = json.dumps({"format": FORMAT, **value}).encode()
        return xxhash.xxh3_64_hexdigest(data).encode() + data

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Read what ``to_bytes`` wrote. Raises StoreVersionError for another format, StoreCorruptError."""
        try:
            value = json.loads(data[data.index(b"{") :])
            written = int(value.pop("format"))
            if written != FORMAT:
                hint = "upgrade streamdrop" if written > FORMAT else "export it with the release that wrote it"
                raise StoreVersionError(f"store has format {written}, this release reads format {FORMAT}: {hint}")
            if not data.startswith(xxhash.xxh3_64_hexdigest(data[16:]).encode()):
                raise ValueError("its checksum does not fit")
            value["codec"] = codec_known(value["codec"])
            value["layout"] = Layout.from_json(value["layout"]) if value["layout"] is not None else None
            value["undone"] = tuple((int(a), int(b)) for a, b in value["undone"])
            value["drift"] = Drift(*value["drift"])
            value["lineage"] = tuple((int(cut), str(version)) for cut, version in value["lineage"])
            return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreCorruptError(f"the store's state does not decode ({error!r}): restore it from a copy") from error
