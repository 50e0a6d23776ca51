"""Memory for rows of one layout, taken once and used again row by row: it neither grows nor falls to pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from streamdrop.store.layout import Layout
from streamdrop.store.memory_shelf import Row


class Arena:
    """Room for as many rows as fit into ``nbytes``; page-locked where a GPU is in use. Its pages are taken as used."""

    def __init__(self, layout: Layout, nbytes: int) -> None:
        self._count = count = nbytes // max(1, layout.nbytes)
        pinned = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0  # a GPU is in use
        self._columns = [
            torch.empty((count, *column.shape), dtype=column.dtype, device="cpu", pin_memory=pinned)
            for column in layout.columns
        ]
        self._touched = 0  # slots from here on were never used
        self._free: list[int] = []

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return len(self._free) + self._count - self._touched

    def fill(self, columns: Sequence[torch.Tensor]) -> list[int]:
        """Copy in as many of the rows of ``columns`` [N, ...] as fit; their slots, in order."""
        count = min(len(columns[0]), self.room)
        if not count:
            return []
        slots = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = count - len(slots)
        slots += range(self._touched, self._touched + fresh)
        self._touched += fresh
        for own, column in zip(self._columns, columns, strict=True):
            _bytes(own)[slots] = _bytes(column[:count])
        return slots

    def row(self, slot: int) -> Row:
        """A row, valid until its slot is given back."""
        return tuple(column[slot] for column in self._columns)

    def give_back(self, slot: int) -> None:
        """A row that nobody reads any more."""
        self._free.append(slot)


def _bytes(column: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Rows as bytes [N, bytes of a row], not copied: of some dtypes, such as uint16, torch cannot fill places."""
    return column.reshape(-1).view(torch.uint8).numpy().reshape(len(column), -1)
