"""Headers of an LMDB file written anew, from what the states that they show prove of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from streamdrop.errors import StoreCorruptError, StoreError
from streamdrop.store.header import Header, both_headers, check_pages, in_turn, packed, read_header, unpacked
from streamdrop.store.lock import WriterLock
from streamdrop.store.pages import all_there, last_freed


def mend_headers(file: Path) -> list[str]:
    """Put right the headers of a file that nobody writes, where LMDB would not open its last state; says in lines what.

    A header counts if all pages that it shows hang together; then its number is that of its record of freed pages.
    Where only one counts the other is made from it. Raises StoreLockedError, StoreCorruptError where none does,
    StoreError where the file cannot be read or written.
    """
    lock = WriterLock(file.parent)
    lock.take()
    try:
        return _mended(file)
    except OSError as error:
        raise StoreError(f"{file} cannot be read or written: {error.strerror}; check the disk and try again") from error
    finally:
        lock.drop()


def _mended(file: Path) -> list[str]:
    try:
        header = read_header(file)
        if header is not None:
            check_pages(file, header)
    except StoreCorruptError:
        return _mend(file)
    return []


def _mend(file: Path) -> list[str]:
    page, *raw = both_headers(file)
    proven = [_proven(file, unpacked(one, page, file.stat().st_size)) for one in raw]
    known = [header for header in proven if header is not None]
    if not known:
        raise StoreCorruptError(f"{file} is damaged beyond mending: restore it from a copy, or remove it to start anew")
    newest = max(known, key=lambda header: header.transaction)
    newest = replace(newest, map_size=max(min(header.map_size for header in known), newest.size))
    if len(known) == 2 and in_turn(*known):
        _write(file, [replace(header, map_size=newest.map_size) for header in known])
        return ["LMDB's headers were damaged: they are as their states prove them"]
    pair = [newest, replace(newest, transaction=newest.transaction - 1)]
    _write(file, sorted(pair, key=lambda header: header.transaction % 2))
    return [
        f"one of LMDB's headers shows no whole state: the store is as transaction {newest.transaction} left it, "
        "maybe not the last"
    ]


def _proven(file: Path, header: Header | None) -> Header | None:
    if header is None:
        return None
    freed = last_freed(file, header.page, header.tables[0], header.last_page)
    number = header.transaction if freed is None else freed
    whole = number > 0 and all_there(file, header.page, header.tables, header.last_page, number)
    return replace(header, transaction=number) if whole else None


def _write(file: Path, headers: Sequence[Header]) -> None:
    with file.open("r+b") as data:
        for slot, header in enumerate(headers):
            data.seek(slot * header.page)
            data.write(packed(header, slot))
        data.flush()
        os.fsync(data.fileno())
