"""Whether LMDB's file may be mapped: damage in its pages could kill the process that reads them.

A writer that closes in order leaves a seal beside the file: its size, time and digests. Of a file without a fitting
seal, of a killed writer or changed by something else, the pages are looked at first; then a process of its own reads
it through. Whole pages do not show that they are the newest: where the headers are not the sealed ones, or without a
seal not as transactions number them, LMDB may take an earlier state, empty perhaps, for the present one, so such a file
is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

from streamdrop.atomic import sync
from streamdrop.errors import StoreCorruptError
from streamdrop.store.digest import file_digest
from streamdrop.store.header import Header, check_pages, headers_digest

Facts: TypeAlias = dict[str, int | str]
_LARGE = 64 << 20
"""Above this size the seal's size and time are taken for proof: a digest would make opening slow."""
_PATIENCE = 600
_SCAN = """
import lmdb, os, sys, zlib
lock = os.access(os.path.join(sys.argv[1], "lock.mdb"), os.W_OK)
env = lmdb.open(os.fsencode(sys.argv[1]), readonly=True, lock=lock, max_dbs=16, map_size=1 << 20)
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
    """Take the seal away: the file is about to change. Raises OSError."""
    try:
        file.with_name("seal.json").unlink()
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):  # a power cut must not bring it back: it would not fit, and the file be refused
        sync(file.parent)


def check_sound(file: Path, header: Header | None, writer: bool) -> None:
    """Raise StoreCorruptError when the file is not sealed, not being written, and not sound or not to be read through.

    A ``writer`` holds the lock already and must not ask for it: closing the lock's file would let go of it.
    """
    sealed, facts = _seal_of(file), _facts(file)
    if sealed in (facts, {name: facts[name] for name in facts if name != "headers"}):  # earlier releases left it out
        return
    if not writer and being_written(file.parent):
        return
    if _at_another_state(sealed, facts) and sealed == _seal_of(file):  # no writer has come and gone meanwhile
        raise StoreCorruptError(
            f"{file} is damaged, its headers are not those that its writer left: restore it and seal.json from a copy, "
            "let store verify --repair mend them, or remove seal.json to open what is there, maybe an earlier state"
        )
    if header is None:
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


def _seal_of(file: Path) -> Facts:
    """What the seal says; nothing where there is none, or none that can be read."""
    try:
        sealed = json.loads(file.with_name("seal.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sealed if isinstance(sealed, dict) else {}


def _at_another_state(sealed: Facts, facts: Facts) -> bool:
    """Whether the headers are others than the seal's; where the whole file is as it was, the seal itself is damaged."""
    as_it_was = "digest" in facts and sealed.get("digest") == facts["digest"]
    return "headers" in sealed and sealed["headers"] != facts["headers"] and not as_it_was


def _facts(file: Path) -> Facts:
    stat = file.stat()
    facts: Facts = {"size": stat.st_size, "time": stat.st_mtime_ns, "headers": headers_digest(file)}
    if stat.st_size <= _LARGE:
        facts["digest"] = file_digest(file)
    return facts
