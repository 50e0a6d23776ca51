"""A look at an LMDB file's own header before it is mapped: reading past the end of a cut-off map kills the process."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from streamdrop.errors import StoreCorruptError, StoreError, StoreVersionError
from streamdrop.store.pages import NO_ROOT, TABLE, all_there, last_freed

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
        page, first, second = both_headers(file)
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


def check_newest(file: Path) -> None:
    """Raise StoreCorruptError where a header's number is not that of its state, so that LMDB may open an earlier one.

    Transactions write the two headers in turn, the even ones the first, and number them one after the other. A changed
    bit shows in that, or it has moved a number by 2: then the state's own record of freed pages is ahead of it or
    behind it by 2. (A power cut can leave an older header whose record is ahead, but by 3.)
    """
    size, (page, *raw) = file.stat().st_size, both_headers(file)
    even, odd = (_meta(one, page, size) for one in raw)
    if even is None or odd is None or not in_turn(even, odd) or _moved(file, even) or _moved(file, odd):
        raise StoreCorruptError(
            f"{file} is damaged, its headers are not as its writer left them: restore it from a copy, or let store "
            "verify --repair mend them"
        )


def in_turn(even: Header, odd: Header) -> bool:
    """Whether two headers are numbered as transactions write them, or those of a new file."""
    numbers = even.transaction, odd.transaction
    return numbers == (0, 0) or (numbers[0] % 2 == 0 and numbers[1] % 2 == 1 and abs(numbers[0] - numbers[1]) == 1)


def _moved(file: Path, header: Header) -> bool:
    freed = last_freed(file, header.page, header.tables[0], header.last_page)
    return freed is not None and abs(freed - header.transaction) == 2


def headers_digest(file: Path) -> str:
    """xxh3-64 of both headers, in hex: of two states, one transaction apart, LMDB opens the one they call the newer.

    Raises OSError.
    """
    _, first, second = both_headers(file)
    return xxhash.xxh3_64_hexdigest(first + second)


def both_headers(file: Path) -> tuple[int, bytes, bytes]:
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
    """A header, None where it is not valid."""
    header = unpacked(raw, page, size)
    if header is None or not _PAGE.unpack_from(raw)[2] & _META_FLAG:
        return None
    magic, version = struct.unpack_from("<II", raw, _PAGE.size)
    (own_page, *_, root), (*_, main_root) = (TABLE.unpack(table) for table in header.tables)
    lost = any(one != NO_ROOT and one > header.last_page for one in (root, main_root))
    return None if (magic, version, own_page) != (_MAGIC, _VERSION, page) or header.last_page < 1 or lost else header


def unpacked(raw: bytes, page: int, size: int) -> Header | None:
    """What a header says of its state, valid or not; None where it is cut off."""
    if len(raw) < _PAGE.size + _META.size:
        return None
    _, _, _, map_size, free, main, last, transaction = _META.unpack_from(raw, _PAGE.size)
    return Header(transaction, page, last, map_size, (free, main), size)


def packed(header: Header, slot: int) -> bytes:
    """A valid header, for the file's first (``slot`` 0) or second page."""
    free, main = header.tables
    tables = (struct.pack("<I", header.page) + free[4:], bytes(4) + main[4:])
    page = _PAGE.pack(slot, 0, _META_FLAG, 0)
    return page + _META.pack(_MAGIC, _VERSION, 0, header.map_size, *tables, header.last_page, header.transaction)


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
    """Raise StoreCorruptError unless all of the file's pages are there and hang together, and the header is the newest.

    Only for a file that nobody is writing.
    """
    check_newest(file)
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
