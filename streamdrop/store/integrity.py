"""Whether LMDB's file may be mapped: damage in its pages could kill the process that reads them.

A writer that closes in order leaves a seal beside the file: its size, time and digest. Of a file without a fitting
seal, of a killed writer or changed by something else, the pages are looked at first; then a process of its own reads
it through.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import xxhash

from streamdrop.errors import StoreCorruptError
from streamdrop.store.header import Header, check_pages

_LARGE = 64 << 20
"""Above this size the seal's size and time are taken for proof: a digest would make opening slow."""
_PATIENCE = 600
_SCAN = """
import lmdb, os, sys, zlib
lock = os.access(os.path.join(sys.argv[1], "lock.mdb"), os.W_OK)
env = lmdb.open(sys.argv[1], readonly=True, lock=lock, max_dbs=16, map_size=1 << 20)
with env.begin(buffers=True) as txn:
    for name in [bytes(k) for k, _ in txn.cursor()]:
        try:
            table = env.open_db(name, txn=txn, create=False)
        except lmdb.IncompatibleError:  # a plain value: another program's, to be refused by its content
            continue
        sizes = [len(value) for value in txn.cursor(table).iternext(keys=False)]
        if len(sizes) != txn.stat(table)["entries"]:
            sys.exit(1)
        if sizes and max(sizes) > 1000:  # such values may lie on pages of their own
            for value in txn.cursor(table).iternext(keys=False):
                zlib.crc32(value)
"""


def seal(file: Path) -> None:
    """Leave a seal for a file that nobody changes any more."""
    with contextlib.suppress(OSError):
        temporary = file.with_name("seal.json.new")
        temporary.write_text(json.dumps(_facts(file)), encoding="utf-8")
        os.replace(temporary, file.with_name("seal.json"))


def break_seal(file: Path) -> None:
    """Take the seal away: the file is about to change."""
    with contextlib.suppress(OSError):
        file.with_name("seal.json").unlink(missing_ok=True)


def check_sound(file: Path, header: Header, writer: bool) -> None:
    """Raise StoreCorruptError when the file is not sealed, not being written, and not sound or not to be read through.

    A ``writer`` holds the lock already and must not ask for it: closing the lock's file would let go of it.
    """
    if _sealed(file) or (not writer and being_written(file.parent)):
        return
    check_pages(file, header)
    if not survives(file.parent):
        raise StoreCorruptError(
            f"{file.parent} cannot be read through: restore it from a copy, or remove it to start anew"
        )


def survives(folder: Path) -> bool:
    """Whether all of LMDB's records can be read: tried by a process of its own, which damage might kill or stall."""
    command = [sys.executable, "-c", _SCAN, str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def being_written(folder: Path) -> bool:
    """Whether a live process holds the writer's lock: it answers for the file."""
    try:
        import fcntl

        with (folder / "writer.lock").open("rb+") as lock:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack("hhqqi4x", fcntl.fcntl(lock, fcntl.F_GETLK, asked))[0]
            return kind != fcntl.F_UNLCK
    except (ImportError, OSError, struct.error):
        return False


def _sealed(file: Path) -> bool:
    try:
        return bool(json.loads(file.with_name("seal.json").read_text(encoding="utf-8")) == _facts(file))
    except (OSError, ValueError):
        return False


def _facts(file: Path) -> dict[str, int | str]:
    stat = file.stat()
    facts: dict[str, int | str] = {"size": stat.st_size, "time": stat.st_mtime_ns}
    if stat.st_size <= _LARGE:
        digest = xxhash.xxh3_64()
        with file.open("rb") as data:
            while part := data.read(1 << 20):
                digest.update(part)
        facts["digest"] = digest.hexdigest()
    return facts
