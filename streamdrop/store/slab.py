"""A file of rows beside LMDB: written with pwrite, read through a memory map while it is small, else with pread.

A map of a large file cannot be bounded: a fault brings in whole folios of the system's cache, megabytes for a row, and
they stay in this process's memory.
"""

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
"""A larger file is not mapped: its pages stay in the system's cache, not in this process's memory."""
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
        self._slow = False
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
        """A row's bytes. Raises StoreCorruptError when the file ends before it."""
        start = place.start * self.unit
        view = self._reaching(start + place.length)
        if view is not None:
            return view[start : start + place.length]
        row = memoryview(bytearray(place.length))
        self._read(row, start)
        return row

    def rows(self, found: Sequence[tuple[int, Place]], out: torch.Tensor) -> None:
        """Copy rows of one unit each into ``out`` [N, ...], contiguous, ``unit`` bytes per row: one call for all."""
        with self.reading(found):
            starts = [place[0] for _, place in found]
            last = (max(starts) + 1) * self.unit
            view = self._reaching(last)
            if view is None:
                data = byte_view(out)
                for at, start in enumerate(starts):
                    self._read(data[at * self.unit : (at + 1) * self.unit], start * self.unit)
                return
            flat = out.view(torch.uint8).numpy().reshape(len(starts), self.unit)
            np.take(self._matrix(view, last), np.array(starts), axis=0, out=flat, mode="clip")

    def checked_rows(self, found: Sequence[tuple[int, Place]], out: torch.Tensor) -> int | None:
        """As ``rows``, each row checked while the processor still has it; the number of one that has changed."""
        unit, digest, data, at = self.unit, xxhash.xxh3_64_intdigest, byte_view(out), 0
        with self.reading(found):
            view = self._reaching((max([place[0] for _, place in found]) + 1) * unit)
            for seq, (start, _, expected) in found:
                row = data[at : at + unit]
                if view is not None:
                    row[:] = view[start * unit : (start + 1) * unit]
                else:
                    self._read(row, start * unit)
                if digest(row, seq) != expected:
                    return seq
                at += unit
        return None

    def _read(self, row: memoryview, offset: int) -> None:
        """Fill ``row`` from the file. Raises StoreCorruptError."""
        done = os.preadv(self._fd, [row], offset)
        while done < len(row):
            more = os.preadv(self._fd, [row[done:]], offset + done)
            if more == 0:
                raise self._cut_off_before(offset + len(row))
            done += more

    @contextlib.contextmanager
    def reading(self, found: Sequence[tuple[int, Place]]) -> Iterator[None]:
        """Around reading rows: a slow disk is told of all, in its order, before the first is waited for."""
        if self._slow and hasattr(os, "posix_fadvise"):
            for place in sorted(place for _, place in found):
                os.posix_fadvise(self._fd, place.start * self.unit, place.length, os.POSIX_FADV_WILLNEED)
        began = time.perf_counter()
        yield
        nbytes = sum(place[1] for _, place in found)
        self._slow = nbytes < _SLOW * (time.perf_counter() - began)

    def _matrix(self, view: memoryview, last: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """The map as rows of one unit, as far as byte ``last`` at least."""
        rows = self._rows
        if rows is None or last > rows.size:
            count = len(view) // self.unit
            rows = self._rows = np.frombuffer(view, np.uint8, count * self.unit).reshape(count, self.unit)
        return rows

    def _reaching(self, stop: int) -> memoryview | None:
        """The map, as far as byte ``stop``; None where the file is too large for one, or the system has no preadv."""
        view = self._view
        return view if stop <= len(view) else self._remap(stop)

    def _remap(self, stop: int) -> memoryview | None:
        with self._lock:
            size = os.fstat(self._fd).st_size
            if stop > size:
                raise self._cut_off_before(stop)
            self._rows = None
            if size > self._map_bytes and hasattr(os, "preadv"):
                self._map, self._view = None, memoryview(b"")
                return None
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)  # the old one goes with its last view
            self._view = memoryview(self._map)
            return self._view

    def _cut_off_before(self, stop: int) -> StoreCorruptError:
        size = os.fstat(self._fd).st_size
        return StoreCorruptError(
            f"{self.path} is cut off at {size} of {stop} bytes: restore the store from a copy, or start anew"
        )

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
    rows = torch.zeros((count, max(nbytes, 1)), dtype=torch.uint8, device="cpu")
    for column, (start, stop) in zip(columns, spans, strict=True):
        if stop > start:
            rows[:, start:stop] = column.reshape(count, -1).view(torch.uint8).reshape(count, stop - start)
    return byte_view(rows)
