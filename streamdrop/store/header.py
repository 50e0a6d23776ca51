"""A look at an LMDB file's own header before it is mapped: reading past the end of a cut-off map kills the process."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from streamdrop.errors import StoreCorruptError, StoreError, StoreVersionError
from streamdrop.store.pages import NO_ROOT, TABLE, all_there

_PAGE = struct.Struct("<QHHI")  # number, pad, flags, free space
_META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, address, map size, two tables, last page, transaction
_MAGIC, _VERSION, _META_FLAG = 0xBEEFC0DE, 1, 0x08


@dataclass(frozen=True)
class Header:
    """``page`` bytes per page, ``last_page`` the highest page ever used, ``map_size`` bytes the writer mapped.

    ``tables`` are the records of its tables of free pages and of everything else; ``size`` the file's bytes.
    """

    transaction: int
    page: int
    last_page: int
    map_size: int
    tables: tuple[bytes, bytes]
    size: int

    @property
    def whole(self) -> bool:
        """Whether every page that was ever used lies within the file."""
        return self.size >= (self.last_page + 1) * self.page


def read_header(file: Path) -> Header | None:
    """The newer of the file's two headers; None for a file that does not exist or is empty.

    Raises StoreVersionError for a file that is no LMDB, StoreCorruptError for one that is damaged.
    """
    try:
        size = file.stat().st_size
        page, first, second = _both(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}; check its permissions") from error
    if not size:
        return None
    metas = [m for m in (_meta(first, page, size), _meta(second, page, size)) if m is not None]
    if not metas:
        raise _refusal(file, first)
    return max(metas, key=lambda header: header.transaction)


def headers_digest(file: Path) -> str:
    """xxh3-64 of both headers, in hex: of two states, one transaction apart, LMDB opens the one they call the newer.

    Raises OSError.
    """
    _, first, second = _both(file)
    return xxhash.xxh3_64_hexdigest(first + second)


def _both(file: Path) -> tuple[int, bytes, bytes]:
    """Bytes per page, and both headers as they are."""
    with file.open("rb") as data:
        first = data.read(_PAGE.size + _META.size)
        page = _page_size(first)
        data.seek(page)
        return page, first, data.read(_PAGE.size + _META.size)


def _page_size(raw: bytes) -> int:
    if len(raw) < _PAGE.size + _META.size:
        return 4096
    page: int = TABLE.unpack(_META.unpack_from(raw, _PAGE.size)[4])[0]
    return page if 512 <= page <= 65536 and page & (page - 1) == 0 else 4096


def _meta(raw: bytes, page: int, size: int) -> Header | None:
    if len(raw) < _PAGE.size + _META.size or not _PAGE.unpack_from(raw)[2] & _META_FLAG:
        return None
    magic, version, _, map_size, free, main, last, transaction = _META.unpack_from(raw, _PAGE.size)
    roots = (TABLE.unpack(free)[7], TABLE.unpack(main)[7])
    if magic != _MAGIC or version != _VERSION or last < 1 or any(r != NO_ROOT and r > last for r in roots):
        return None
    return Header(transaction, page, last, map_size, (free, main), size)


def _refusal(file: Path, raw: bytes) -> StoreError:
    if len(raw) >= _PAGE.size + 8:
        magic, version = struct.unpack_from("<II", raw, _PAGE.size)
        if magic == _MAGIC and version != _VERSION:
            return StoreVersionError(f"{file} has LMDB's data version {version}, not {_VERSION}: use another path")
        if magic != _MAGIC and any(raw):
            return StoreVersionError(f"{file} is not an LMDB file: give the path of a store, or a new one")
    return StoreCorruptError(f"{file} is damaged (no valid header): restore it from a copy, or remove it to start anew")


def check_file(path: Path, read_only: bool) -> Header | None:
    """The file's header. Raises StoreError when nothing is there to read, StoreCorruptError for a damaged one."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file: a store is a folder; give another path")
    header = read_header(path / "data.mdb")
    if header is None and read_only:
        raise StoreError(f"{path} holds no store: give the path that a store was created at")
    return header


def check_pages(file: Path, header: Header) -> None:
    """Raise StoreCorruptError unless all of the file's pages are there and hang together."""
    if all_there(file, header.page, header.tables, header.last_page, header.transaction):
        return
    if header.whole:
        raise StoreCorruptError(
            f"{file} is damaged, or of another program: restore it from a copy, or remove it to start anew"
        )
    raise StoreCorruptError(
        f"{file} is cut off at {header.size} of {(header.last_page + 1) * header.page} bytes: "
        "restore it from a copy, or remove it to start anew"
    )
