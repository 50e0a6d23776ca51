"""What a bounded store keeps: one pure function decides, whatever the samples lie in."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace, merge
from typing import Literal, Protocol, TypeAlias

import xxhash

from streamdrop.errors import ConfigError, StoreCorruptError, StoreFullError
from streamdrop.types import SampleInfo

Policy: TypeAlias = Literal["oldest", "reservoir", "class-balanced"]
POLICIES: tuple[Policy, ...] = ("oldest", "reservoir", "class-balanced")

Pool: TypeAlias = tuple[str, int | None]
"""Samples that compete for the same places: (stream, or '' without quotas; label, or None unless class-balanced)."""

_TOP = 2**64 - 1


@dataclass(frozen=True)
class Retention:
    """What a bounded store keeps; pinned samples always stay, and count.

    ``max_samples`` and ``max_bytes`` (rows as stored and sources) bound the whole, ``stream_samples`` each stream;
    samples older than ``max_age`` seconds leave whenever something is put. ``policy`` says which go first: "oldest";
    "reservoir", which keeps a uniform sample of all that ever came; "class-balanced", a uniform sample of each label,
    the largest class giving way. ``seed`` picks the sample: the same keys and seed keep the same, in any order.
    Raises ConfigError.
    """

    max_samples: int | None = None
    max_bytes: int | None = None
    max_age: float | None = None
    policy: Policy = "oldest"
    stream_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("max_samples", "max_bytes", "stream_samples"):
            value = getattr(self, what)
            if value is not None and (not _whole(value) or value < 1):
                raise ConfigError(f"{what}={value!r} is not a whole number of at least 1: leave it out for no limit")
        age = self.max_age
        if age is not None and not (isinstance(age, (int, float)) and math.isfinite(age) and age > 0):
            raise ConfigError(f"max_age={age!r} is not a number of seconds above 0: leave it out for no limit")
        if self.policy not in POLICIES:
            raise ConfigError(f"retention policy {self.policy!r} is not known; valid: {', '.join(POLICIES)}")
        if not _whole(self.seed) or not 0 <= self.seed <= _TOP:
            raise ConfigError(f"seed={self.seed!r} of a retention is not a whole number from 0 to 2**64 - 1")

    @classmethod
    def of(cls, max_samples: int | None, retention: Retention | None) -> Retention:
        """What a store was asked for: ``max_samples`` alone, a whole retention, or nothing. Raises ConfigError."""
        if retention is None:
            return cls(max_samples)
        if max_samples is not None:
            raise ConfigError(f"max_samples={max_samples!r} and a retention were both given: give one of them")
        if not isinstance(retention, cls):
            raise ConfigError(f"retention is a {type(retention).__name__}, not a Retention")
        return retention

    @property
    def bounded(self) -> bool:
        """Whether anything ever has to leave."""
        return any(v is not None for v in (self.max_samples, self.max_bytes, self.max_age, self.stream_samples))

    @property
    def ranked(self) -> bool:
        """Whether a store must index pools and ranks; otherwise the order of arrival is enough."""
        return self.policy != "oldest" or self.stream_samples is not None

    def rank(self, key: bytes, seq: int) -> int:
        """64 bits; the highest rank of a pool leaves first. ``seq`` numbers arrivals."""
        return _TOP - seq if self.policy == "oldest" else xxhash.xxh3_64_intdigest(key, self.seed)

    def pool(self, info: SampleInfo) -> Pool:
        """Where a sample competes."""
        stream = info.stream if self.stream_samples is not None else ""
        return stream, info.label if self.policy == "class-balanced" else None

    def candidate(self, key: bytes, seq: int, nbytes: int, info: SampleInfo, arrived: float) -> Candidate:
        """A sample as ``retain`` sees it. ``nbytes`` as stored, ``arrived`` in seconds of the store's clock."""
        return Candidate(key, seq, nbytes, self.rank(key, seq), self.pool(info), arrived, info.pinned)


@dataclass(frozen=True)
class Candidate:
    """A sample as retention sees it."""

    key: bytes
    seq: int
    nbytes: int
    rank: int
    pool: Pool
    arrived: float
    pinned: bool


class Shelf(Protocol):
    """What is live now, as a store shows it to ``retain``."""

    @property
    def count(self) -> int:
        """All live samples."""

    def nbytes(self) -> int:
        """Stored bytes of all live samples."""

    def pools(self) -> Mapping[Pool, tuple[int, int]]:
        """{pool: (unpinned, pinned)} counts; the one pool ('', None) when the retention is not ranked."""

    def candidates(self, pool: Pool) -> Iterator[Candidate]:
        """Unpinned samples, highest rank first; only a few are taken."""

    def aged(self) -> Iterator[Candidate]:
        """Unpinned samples of all pools, oldest arrival first; only the aged ones and one more are taken."""

    def find(self, key: bytes) -> Candidate | None:
        """The live sample that a new one of this key would replace."""


def retain(
    retention: Retention, shelf: Shelf, arriving: Sequence[Candidate], now: float
) -> tuple[list[Candidate], list[bytes]]:
    """(arriving samples that stay, in order; keys of live samples that leave, first to leave first).

    Arrivals replace live samples of the same key before anything is counted, also when they do not stay themselves;
    the replaced ones are not among the keys. Then the aged leave, then streams over their quota give way, then the
    whole. Reads the shelf and changes nothing. With nothing arriving it evicts down to the limits (ages aside) as far
    as pinned samples let it. Raises StoreFullError when pinned samples leave no room for what arrives.
    """
    if not retention.bounded:
        return list(arriving), []
    stock = _Stock(shelf, arriving)
    if arriving:
        _check_room(retention, stock, arriving)
        _drop_aged(retention, stock, now)
    _drop_over_quota(retention, stock)
    _drop_excess(retention, stock)
    return [c for c in arriving if c.key not in stock.refused], list(stock.evicted)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_room(retention: Retention, stock: _Stock, arriving: Sequence[Candidate]) -> None:
    limit, quota, most = retention.max_samples, retention.stream_samples, retention.max_bytes
    if limit is not None and stock.pinned + any(not c.pinned for c in arriving) > limit:
        raise StoreFullError(
            f"{stock.pinned} pinned samples leave no room among max_samples={limit}: raise the limit or discard some"
        )
    for c in arriving:
        kept = stock.kept[c.pool[0]]
        if quota is not None and kept + (not c.pinned) > quota:
            raise StoreFullError(
                f"{kept} pinned samples leave no room among stream_samples={quota} of stream {c.pool[0]!r}: "
                "raise the quota or discard some"
            )
        if most is not None and c.nbytes > most:
            raise StoreFullError(f"sample {c.key!r} takes {c.nbytes} bytes of max_bytes={most}: raise the limit")


def _drop_aged(retention: Retention, stock: _Stock, now: float) -> None:
    if retention.max_age is not None:
        for candidate in stock.aged(now - retention.max_age):
            stock.leave(candidate)


def _drop_over_quota(retention: Retention, stock: _Stock) -> None:
    quota = retention.stream_samples
    for (stream, _), free in list(stock.streams.counts.items()) if quota is not None else ():
        for _ in range(min(free, free + stock.kept[stream] - (quota or 0))):
            stock.evict(stream)


def _drop_excess(retention: Retention, stock: _Stock) -> None:
    samples = math.inf if retention.max_samples is None else retention.max_samples
    nbytes = math.inf if retention.max_bytes is None else retention.max_bytes
    hopeful = any(not c.pinned and c.key not in stock.refused for c in stock.arriving.values())
    while (stock.count > samples or stock.nbytes > nbytes) and stock.count > stock.pinned:
        stock.evict(stock.streams.largest()[0])
    crowded = stock.nbytes > nbytes or (hopeful and stock.count == stock.pinned)
    if stock.arriving and crowded:  # by bytes: _check_room saw to the number of places
        raise StoreFullError(
            f"pinned samples of {stock.nbytes} bytes leave no room among max_bytes={retention.max_bytes}: "
            "raise the limit or discard some"
        )


class _Ladder:
    """Counts by pool that only fall once the largest was asked for."""

    def __init__(self) -> None:
        self.counts: dict[Pool, int] = {}
        self._heap: list[tuple[int, str, bool, int, Pool]] = []

    def add(self, pool: Pool, by: int) -> None:
        """Count ``by`` more."""
        self.counts[pool] = self.counts.get(pool, 0) + by

    def largest(self) -> Pool:
        """The pool with the highest count; of several the first name, no label, the smallest label."""
        if not self._heap:
            self._heap = [self._step(pool) for pool in self.counts]
            heapify(self._heap)
        while (step := self._step(self._heap[0][-1])) != self._heap[0]:  # it has fallen since it was noted
            heapreplace(self._heap, step)
        return step[-1]

    def _step(self, pool: Pool) -> tuple[int, str, bool, int, Pool]:
        stream, label = pool
        return -self.counts[pool], stream, label is not None, label or 0, pool


class _Stock:
    """What would be live if every arrival stayed; what leaves is taken off step by step."""

    def __init__(self, shelf: Shelf, arriving: Sequence[Candidate]) -> None:
        self._shelf = shelf
        self.arriving = {c.key: c for c in arriving}
        self.evicted: dict[bytes, None] = {}
        self.refused: set[bytes] = set()
        self.count, self.nbytes, self.pinned = shelf.count, shelf.nbytes(), 0
        self.streams = _Ladder()  # unpinned samples by (stream, None)
        self._labels: dict[str, _Ladder] = defaultdict(_Ladder)
        self.kept: Counter[str] = Counter()  # pinned samples by stream
        self._queues: dict[Pool, Iterator[Candidate]] = {}
        self._new: dict[Pool, list[Candidate]] = defaultdict(list)  # unpinned arrivals
        self._count(shelf.pools())
        for candidate in arriving:
            old = shelf.find(candidate.key)
            if old is not None:
                self._move(old, -1)
            self._move(candidate, 1)
            if not candidate.pinned:
                self._new[candidate.pool].append(candidate)

    def aged(self, before: float) -> Iterator[Candidate]:
        """Unpinned samples that arrived earlier than that."""
        for candidate in self._shelf.aged():
            if candidate.arrived >= before:
                break
            if candidate.key not in self.arriving:
                yield candidate
        yield from (c for c in self.arriving.values() if not c.pinned and c.arrived < before)

    def evict(self, stream: str) -> None:
        """Take off the sample of a stream that goes first: of the largest label, the highest rank."""
        pool = self._labels[stream].largest()
        if pool not in self._queues:
            live = (c for c in self._shelf.candidates(pool) if c.key not in self.arriving)
            self._queues[pool] = merge(live, sorted(self._new[pool], key=_first), key=_first)
        for candidate in self._queues[pool]:
            if candidate.key not in self.evicted and candidate.key not in self.refused:
                return self.leave(candidate)
        raise StoreCorruptError("a store's list of samples and their count differ: restore the store from a copy")

    def leave(self, candidate: Candidate) -> None:
        """Take a sample off."""
        self._move(candidate, -1)
        if candidate.key in self.arriving:
            self.refused.add(candidate.key)
        else:
            self.evicted[candidate.key] = None

    def _count(self, pools: Mapping[Pool, tuple[int, int]]) -> None:
        for pool, (free, pinned) in pools.items():  # there may be thousands
            self._labels[pool[0]].counts[pool] = free
            self.kept[pool[0]] += pinned
        self.pinned = sum(self.kept.values())
        self.streams.counts = {(stream, None): sum(of.counts.values()) for stream, of in self._labels.items()}

    def _move(self, candidate: Candidate, by: int) -> None:
        self.count += by
        self.nbytes += by * candidate.nbytes
        stream = candidate.pool[0]
        if candidate.pinned:
            self.pinned += by
            self.kept[stream] += by
        else:
            self.streams.add((stream, None), by)
            self._labels[stream].add(candidate.pool, by)


def _first(candidate: Candidate) -> tuple[int, int]:
    return -candidate.rank, candidate.seq
