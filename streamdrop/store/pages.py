"""A walk over LMDB's pages with plain reads: whether they hang together.

LMDB trusts its file. A page that is missing kills the process that reads it through the memory map, a link that leads
back stalls it, a page that is in use but listed as free is overwritten by the next commit. So this comes before the
file is mapped, unless its writer has sealed it. A file that is too short need not be damaged: pages that were taken and
given back within one transaction are never written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]

_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper; an overflow page has its length in the last two
TABLE = struct.Struct("<IHHQQQQQ")  # page size (in the first one), flags, depth, branch, leaf, overflow, entries, root
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04  # kinds of pages
_BIG, _SUBTABLE = 0x01, 0x02  # kinds of nodes
_HEAD = 8  # bytes before a node's key
_DEEPEST, _LONGEST_KEY = 32, 511
_BY_NUMBER = 0x08  # the only flag: the table of free pages has whole numbers for keys
NO_ROOT = 2**64 - 1


class Damage(Exception):
    """A page that is in use is missing or makes no sense, or its table is none of a store's."""


def all_there(file: Path, page: int, tables: tuple[bytes, bytes], last: int, transaction: int) -> bool:
    """Whether all pages that a header shows lie within the file and hang together.

    ``page`` is their size in bytes, ``last`` the highest one, ``tables`` are the header's records of its tables of free
    pages and of everything else, ``transaction`` the one that wrote them.
    """
    with file.open("rb") as data:
        walk = _Walk(data, page, last)
        try:
            walk.mark({0, 1})
            walk.table(tables[1])
            for freed in list(walk.free(tables[0], transaction)):
                walk.mark(freed)
        except (Damage, struct.error, ValueError):
            return False
    return True


def last_freed(file: Path, page: int, free: bytes, last: int) -> int | None:
    """The newest transaction of which a table of free pages has a record, None: none, or the table is not whole.

    Every transaction but a file's first replaces pages, and so leaves a record of its own there.
    """
    with file.open("rb") as data:
        try:
            return max(_Walk(data, page, last).freed_by(free), default=None)
        except (Damage, struct.error, ValueError):
            return None


class _Nodes(NamedTuple):
    """Where a page's nodes begin, and what their heads say."""

    at: Numbers
    size: Numbers
    kind: Numbers
    key: Numbers


class _Walk:
    """Visits the pages of tables, each one once."""

    def __init__(self, data: BinaryIO, page: int, last: int) -> None:
        self._data, self._page, self._last = data, page, last
        self._seen: set[int] = set()

    def mark(self, pages: set[int]) -> None:
        """Note what is in use, or free. Raises Damage for pages that were seen before or never existed."""
        if not self._seen.isdisjoint(pages) or (pages and max(pages) > self._last):
            raise Damage
        self._seen |= pages

    def table(self, record: bytes) -> None:
        """Visit a table, and the tables in it. Raises Damage."""
        for raw, nodes in self._leaves(record, 0):
            for i in np.flatnonzero(nodes.kind == _SUBTABLE).tolist():
                self.table(_value(raw, nodes, i))

    def free(self, record: bytes, transaction: int) -> Iterator[set[int]]:
        """The pages that each transaction has set free. Raises Damage."""
        for raw, nodes in self._leaves(record, _BY_NUMBER):
            for i in range(len(nodes.at)):
                value = _value(raw, nodes, i)
                if nodes.kind[i] == _BIG:
                    self._data.seek(int.from_bytes(value, "little") * self._page + _PAGE.size)
                    value = self._data.read(int(nodes.size[i]))
                numbers = np.frombuffer(value, "<u8")[1 : 1 + int.from_bytes(value[:8], "little")].tolist()
                whole = len(numbers) == len(set(numbers)) == int.from_bytes(value[:8], "little")
                if not whole or _number(raw, nodes, i) > transaction:
                    raise Damage
                yield set(numbers)

    def freed_by(self, record: bytes) -> Iterator[int]:
        """The transactions that have set pages free. Raises Damage."""
        for raw, nodes in self._leaves(record, _BY_NUMBER):
            yield from (_number(raw, nodes, i) for i in range(len(nodes.at)))

    def _leaves(self, record: bytes, wanted: int) -> Iterator[tuple[bytes, _Nodes]]:
        _, flags, depth, branches, leaves, overflows, entries, root = TABLE.unpack(record)
        if flags != wanted or depth > _DEEPEST:
            raise Damage
        counts = [0, 0, 0, 0]
        if root != NO_ROOT:
            yield from self._tree(root, depth, counts)
        if counts != [branches, leaves, overflows, entries]:
            raise Damage

    def _tree(self, number: int, depth: int, counts: list[int]) -> Iterator[tuple[bytes, _Nodes]]:
        raw, flags = self._read(number)
        if depth < 1 or flags != (_BRANCH if depth > 1 else _LEAF):
            raise Damage
        nodes = _nodes(raw, flags)
        if flags == _BRANCH:
            counts[0] += 1
            for child in nodes.size | nodes.kind << 32:
                yield from self._tree(int(child), depth - 1, counts)
        else:
            counts[1] += 1
            counts[2] += sum(self._overflow(raw, nodes, i) for i in np.flatnonzero(nodes.kind == _BIG).tolist())
            counts[3] += len(nodes.at)
            yield raw, nodes

    def _overflow(self, raw: bytes, nodes: _Nodes, i: int) -> int:
        """How many pages a long value takes."""
        number = int.from_bytes(_value(raw, nodes, i), "little")
        first, flags = self._read(number)
        _, _, _, low, high = _PAGE.unpack_from(first)
        count: int = low | high << 16
        if flags != _OVERFLOW or count != -(-(_PAGE.size + int(nodes.size[i])) // self._page):
            raise Damage
        self.mark(set(range(number + 1, number + count)))
        self._bytes(number + count - 1)
        return count

    def _read(self, number: int) -> tuple[bytes, int]:
        self.mark({number})
        raw = self._bytes(number)
        owner, _, flags, _, _ = _PAGE.unpack_from(raw)
        if owner != number:
            raise Damage
        return raw, flags

    def _bytes(self, number: int) -> bytes:
        self._data.seek(number * self._page)
        raw = self._data.read(self._page)
        if len(raw) < self._page:
            raise Damage
        return raw


def _nodes(raw: bytes, flags: int) -> _Nodes:
    """The nodes of a page. Raises Damage unless all of them lie within it."""
    _, _, _, lower, upper = _PAGE.unpack_from(raw)
    if not _PAGE.size < lower <= upper <= len(raw) or lower % 2:
        raise Damage
    data = np.frombuffer(raw, np.uint8).astype(np.int64)
    at = np.frombuffer(raw, "<u2", (lower - _PAGE.size) // 2, _PAGE.size).astype(np.int64)
    if at.min() < upper or at.max() > len(raw) - _HEAD:
        raise Damage
    low, high, kind, key = (data[at + i] | data[at + i + 1] << 8 for i in (0, 2, 4, 6))
    size = low | high << 16
    inside = np.where(kind == _BIG, 8, size) if flags == _LEAF else 0
    if key.max() > _LONGEST_KEY or (at + _HEAD + key + inside).max() > len(raw):
        raise Damage
    if flags == _LEAF and kind.max() > _SUBTABLE:
        raise Damage
    return _Nodes(at, size, kind, key)


def _number(raw: bytes, nodes: _Nodes, i: int) -> int:
    """A leaf's key where keys are numbers."""
    return int.from_bytes(raw[nodes.at[i] + _HEAD : nodes.at[i] + _HEAD + nodes.key[i]], "little")


def _value(raw: bytes, nodes: _Nodes, i: int) -> bytes:
    """What follows a leaf's key: the value, or for a long one the page where it begins."""
    start = int(nodes.at[i] + _HEAD + nodes.key[i])
    return raw[start : start + (8 if nodes.kind[i] == _BIG else int(nodes.size[i]))]
