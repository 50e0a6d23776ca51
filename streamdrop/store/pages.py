"""A walk over LMDB's pages with plain reads: which of them a file that is too short lacks.

Reading a missing page through the memory map would kill the process, so this comes before the file is mapped. A short
file need not be damaged: pages that were taken and given back within one transaction are never written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper; an overflow page has its length in the last two
_NODE = struct.Struct("<HHHH")  # low, high, flags, key size
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG, _TABLE = 0x01, 0x02
_ROOT = 40  # where a table record holds its root page
_DEEPEST = 32
NO_ROOT = 2**64 - 1


class Damage(Exception):
    """A page that is in use is missing or makes no sense."""


def all_there(file: Path, page: int, roots: tuple[int, ...]) -> bool:
    """Whether every page that can be reached from ``roots`` lies within the file and looks like one."""
    with file.open("rb") as data:
        try:
            for root in roots:
                _walk(data, page, root, 0)
        except (Damage, struct.error):
            return False
    return True


def _walk(data: BinaryIO, page: int, root: int, depth: int) -> None:
    if root == NO_ROOT:
        return
    raw = _read(data, page, root)
    flags = _PAGE.unpack_from(raw)[2]
    if not flags & (_BRANCH | _LEAF) or depth > _DEEPEST:
        raise Damage
    for low, high, kind, rest in _nodes(raw):
        if flags & _BRANCH:
            _walk(data, page, low | high << 16 | kind << 32, depth + 1)
        elif kind & _BIG:
            _check_overflow(data, page, _number(rest, 0))
        elif kind & _TABLE:
            _walk(data, page, _number(rest, _ROOT), depth + 1)


def _number(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 8], "little")


def _nodes(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(low, high, flags, what follows the key) of each node."""
    lower = _PAGE.unpack_from(raw)[3]
    for at in struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", raw, _PAGE.size):
        low, high, kind, size = _NODE.unpack_from(raw, at)
        yield low, high, kind, raw[at + _NODE.size + size :]


def _check_overflow(data: BinaryIO, page: int, number: int) -> None:
    raw = _read(data, page, number)
    _, _, flags, low, high = _PAGE.unpack_from(raw)
    if not flags & _OVERFLOW:
        raise Damage
    _read(data, page, number + (low | high << 16) - 1)


def _read(data: BinaryIO, page: int, number: int) -> bytes:
    if number > 2**48:
        raise Damage
    data.seek(number * page)
    raw = data.read(page)
    if len(raw) < page:
        raise Damage
    return raw
