"""Which units of a slab are free. Derived from the records when needed, never stored: it cannot disagree with them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable


class Space:
    """Free room of a slab, in units. What a transaction frees waits until nobody can see the state before it."""

    def __init__(self, end: int) -> None:
        self.end = end  # units from here on were never used
        self._free: dict[int, list[int]] = {}  # length → heap of starts
        self._waiting: deque[tuple[int, int, int]] = deque()  # transaction, start, length
        self.waiting = 0

    def take(self, length: int) -> int:
        """The start of ``length`` units: the tightest free extent, else new room at the end."""
        fits = length if length in self._free else min((k for k in self._free if k > length), default=0)
        if not fits:
            start, self.end = self.end, self.end + length
            return start
        heap = self._free[fits]
        start = heapq.heappop(heap)
        if not heap:
            del self._free[fits]
        if fits > length:
            self.put_back(start + length, fits - length)
        return start

    def put_back(self, start: int, length: int) -> None:
        """Room that was taken and not used, or that nobody can see any more."""
        heapq.heappush(self._free.setdefault(length, []), start)

    def give(self, start: int, length: int, transaction: int) -> None:
        """Room that ``transaction`` freed: states before it still show what lies there."""
        self._waiting.append((transaction, start, length))
        self.waiting += length

    def settle(self, transaction: int) -> None:
        """Nobody sees a state before ``transaction`` any more, nor would a power cut bring one back."""
        while self._waiting and self._waiting[0][0] <= transaction:
            _, start, length = self._waiting.popleft()
            self.waiting -= length
            self.put_back(start, length)

    @property
    def free(self) -> int:
        """Units that can be taken now without new room."""
        return sum(length * len(heap) for length, heap in self._free.items())

    def rebuild(self, used: Iterable[tuple[int, int]], transaction: int) -> None:
        """All that ``used`` (start, length) leaves below the end is free, and waits for ``transaction``."""
        self._free, self._waiting, self.waiting = {}, deque(), 0
        at = 0
        for start, length in sorted(used):
            if start > at:
                self.give(at, start - at, transaction)
            at = max(at, start + length)
        if at < self.end:
            self.give(at, self.end - at, transaction)
