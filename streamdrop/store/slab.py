"""A file of rows beside LMDB: written with pwrite, read through a memory map."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from streamdrop.errors import StoreCorruptError
from streamdrop.store.layout import byte_view

GROWTH = 16
"""The file grows by a sixteenth at least, so that maps of it last."""
MAP_BYTES = 512 << 20
"""Bytes read through a map before its pages are let go: they stay in the system's cache, not in this process."""
_SLOW = 1e9
"""Bytes per second below which rows seem to come from the disk: the next ones are asked for ahead."""


class Place(NamedTuple):
    """Where a row lies: first unit, bytes, and the checksum of its bytes seeded with its sequence number."""

    start: int
    length: int
    checksum: int


def checksum(row: memoryview | bytes, seq: int) -> int:
    """xxh3-64 of a row; the sequence number as seed tells a row from another sample's."""
    value: int = xxhash.xxh3_64_intdigest(row, seq)
    return value


class Slab:
    """Rows in the file ``path``, each starting at a multiple of ``unit`` bytes."""

    def __init__(self, path: Path, unit: int, writable: bool, map_bytes: int = MAP_BYTES) -> None:
        self.path, self.unit, self._map_bytes = path, unit, map_bytes
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._view = memoryview(b"")
        self._rows: np.ndarray[tuple[int, int], np.dtype[np.uint8]] | None = None
        self._map: mmap.mmap | None = None
        self._touched, self._slow = 0, False
        self._lock = threading.Lock()
        self.dirty = False

    def units(self, length: int) -> int:
        """How many units a row of ``length`` bytes takes."""
        return max(1, -(-length // self.unit))

    def write(self, data: memoryview, extents: Sequence[tuple[int, int]]) -> None:
        """Write ``data``, whole units one after the other, to extents (start, units). Raises OSError."""
        if not extents:
            return
        self._reach(max(start + length for start, length in extents) * self.unit)
        at = 0
        first, count = extents[0][0], 0
        for start, length in extents:
            if start != first + count:
                at = self._write(data, at, first, count)
                first, count = start, 0
            count += length
        self._write(data, at, first, count)

    def _write(self, data: memoryview, at: int, start: int, count: int) -> int:
        """One run of units; returns where the next begins in ``data``."""
        self.dirty = True
        stop, offset = at + count * self.unit, start * self.unit
        while at < stop:
            done = os.pwrite(self._fd, data[at:stop], offset)
            _start_writeback(self._fd, offset, done)
            at, offset = at + done, offset + done
        return stop

    def _reach(self, size: int) -> None:
        """Make the file long enough: sparse, so room is taken only by what is written."""
        now = os.fstat(self._fd).st_size
        if size > now:
            step = max(size, now + now // GROWTH)
            os.ftruncate(self._fd, -(-step // 65536) * 65536)

    def cut_off(self, end: int) -> None:
        """Give back the room after ``end`` units, which nothing shows."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size > end * self.unit:
                os.ftruncate(self._fd, end * self.unit)

    def sync(self) -> None:
        """All that was written is on the disk when this returns. Raises OSError."""
        if self.dirty:
            self.dirty = False
            try:
                getattr(os, "fdatasync", os.fsync)(self._fd)
            except BaseException:
                self.dirty = True
                raise

    def row(self, place: Place) -> memoryview:
        """A row's bytes, in the map. Raises StoreCorruptError when the file ends before it."""
        start = place.start * self.unit
        stop = start + place.length
        view = self._view
        if stop > len(view):
            view = self._remap(stop)
        return view[start:stop]

    def rows(self, found: Sequence[tuple[int, Place]], out: torch.Tensor) -> None:
        """Copy rows of one unit each into ``out`` [N, ...], contiguous, ``unit`` bytes per row: one call for all."""
        if self._slow:
            self._ask_ahead(found)
        began = time.perf_counter()
        starts = [place[0] for _, place in found]
        last = (max(starts) + 1) * self.unit
        rows = self._rows
        if rows is None or last > rows.size:
            rows = self._matrix(last)
        flat = out.view(torch.uint8).numpy().reshape(len(starts), self.unit)
        np.take(rows, np.array(starts), axis=0, out=flat, mode="clip")
        self._has_read(flat.size, began)

    def checked_rows(self, found: Sequence[tuple[int, Place]], out: torch.Tensor) -> int | None:
        """As ``rows``, each row checked while the processor still has it; the number of one that has changed."""
        if self._slow:
            self._ask_ahead(found)
        began, unit, digest = time.perf_counter(), self.unit, xxhash.xxh3_64_intdigest
        view, data, at = self._reaching(found), byte_view(out), 0
        for seq, (start, _, expected) in found:
            row = data[at : at + unit]
            row[:] = view[start * unit : (start + 1) * unit]
            if digest(row, seq) != expected:
                return seq
            at += unit
        self._has_read(at, began)
        return None

    def _reaching(self, found: Sequence[tuple[int, Place]]) -> memoryview:
        """The map, as far as the last of some rows of one unit."""
        last = (max([place[0] for _, place in found]) + 1) * self.unit
        return self._view if last <= len(self._view) else self._remap(last)

    @contextlib.contextmanager
    def reading(self, found: Sequence[tuple[int, Place]]) -> Iterator[None]:
        """Around reading rows one by one."""
        if self._slow:
            self._ask_ahead(found)
        began = time.perf_counter()
        yield
        self._has_read(sum(place.length for _, place in found), began)

    def _ask_ahead(self, found: Sequence[tuple[int, Place]]) -> None:
        """Tell a slow disk of all rows, in its order, before the first is waited for."""
        if hasattr(os, "posix_fadvise"):
            for place in sorted(place for _, place in found):
                os.posix_fadvise(self._fd, place.start * self.unit, place.length, os.POSIX_FADV_WILLNEED)

    def _has_read(self, nbytes: int, began: float) -> None:
        self._slow = nbytes < _SLOW * (time.perf_counter() - began)
        self.counted(nbytes)

    def counted(self, nbytes: int) -> None:
        """So much more was read: the map's pages are let go once that is enough, and memory stays bounded."""
        self._touched += nbytes
        if self._touched > self._map_bytes and self._map is not None and hasattr(self._map, "madvise"):
            self._touched = 0
            self._map.madvise(mmap.MADV_DONTNEED)

    def _matrix(self, last: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        view = self._view if last <= len(self._view) else self._remap(last)
        count = len(view) // self.unit
        self._rows = np.frombuffer(view, np.uint8, count * self.unit).reshape(count, self.unit)
        return self._rows

    def _remap(self, stop: int) -> memoryview:
        with self._lock:
            size = os.fstat(self._fd).st_size
            if stop > size:
                raise StoreCorruptError(
                    f"{self.path} is cut off at {size} of {stop} bytes: restore the store from a copy, or start anew"
                )
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)  # the old one goes with its last view
            self._rows, self._view = None, memoryview(self._map)
            return self._view

    def size(self) -> int:
        """Bytes the file takes on the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Let go of the file, which nobody reads; else that happens when the last reader lets go of this object."""
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _start_writeback(fd: int, offset: int, length: int) -> None:
    """Let the disk begin with what was written, where the system can (Linux): the sync to come has less to wait for."""
    if _SYNC_RANGE is not None and length >= _WORTH:
        _SYNC_RANGE(fd, ctypes.c_int64(offset), ctypes.c_int64(length), 2)  # SYNC_FILE_RANGE_WRITE


_SYNC_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None) if os.name == "posix" else None
_WORTH = 1 << 20
"""Shorter writes are left to the sync."""


def as_units(columns: Sequence[torch.Tensor], spans: Sequence[tuple[int, int]], nbytes: int) -> memoryview:
    """Columns [N, ...] of N samples as N rows one after the other; the only column is not copied."""
    if len(columns) == 1 and nbytes:
        return byte_view(columns[0])
    count = len(columns[0])
    rows = torch.zeros((count, max(nbytes, 1)), dtype=torch.uint8)
    for column, (start, stop) in zip(columns, spans, strict=True):
        if stop > start:
            rows[:, start:stop] = column.reshape(count, -1).view(torch.uint8).reshape(count, stop - start)
    return byte_view(rows)
