"""An LMDB environment made safe to share: it grows by itself, and opens again where LMDB has given up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from streamdrop.errors import StoreError, StoreVersionError
from streamdrop.store.failures import ours
from streamdrop.store.header import check_file
from streamdrop.store.integrity import break_seal, check_sound, seal
from streamdrop.store.lock import WriterLock

T = TypeVar("T")
TABLES = (b"meta", b"index", b"entries", b"places", b"sources", b"held", b"streams", b"pools", b"ranks")
_FIRST = {b"meta", b"index", b"entries", b"targets", b"values", b"held"}
MAP_STEP = 1 << 28
"""Bytes by which the map grows at least; address space only, not memory or disk."""
LOCK_BYTES = 8192
"""What LMDB makes lock.mdb of, for as many readers as it allows by default."""


class Environment:
    """LMDB's files at ``path``, the lock of their one writer, and transactions on them."""

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self.file = path / "data.mdb"
        self.users, self.pid = 0, os.getpid()
        self.written, self.durable, self._lost = False, 0, False
        self.lock = WriterLock(path)
        # Entered as a lock: a Condition's own methods are Python, and one that Ctrl-C comes into stays locked.
        self._entry = threading.Lock()
        self._gate = threading.Condition(self._entry)
        self._views: dict[lmdb.Transaction, int] = {}  # under way, with the thread that looks
        self.turn = threading.RLock()
        if not read_only:
            self.lock.take()
        try:
            with self.errors(0):
                self._open()
        except BaseException:
            self.lock.drop()
            raise

    def _open(self) -> None:
        header = check_file(self.path, self.read_only)
        size = max(MAP_STEP, _rounded(2 * header.size, MAP_STEP)) if header else MAP_STEP
        size = max(size, header.map_size) if header and self.read_only else size
        if self.file.exists():
            check_sound(self.file, header, writer=not self.read_only)
        if not self.read_only:
            break_seal(self.file)
        try:
            self._open_files(size)
        except BaseException:
            if header is None and not self.read_only:
                self.file.unlink(missing_ok=True)  # half made, it would be refused as damaged
            raise

    def _open_files(self, size: int) -> None:
        lock = self._lockable()
        if lock:
            _allocate(self.path / "lock.mdb", LOCK_BYTES)
        # metasync=False: one sync for each commit. A power cut may undo the last commits that were not flushed, but
        # neither it nor a killed process can tear the file.
        self.env = lmdb.open(
            os.fsencode(self.path),  # as text, LMDB would want it in UTF-8
            map_size=size, max_dbs=len(TABLES), readonly=self.read_only, create=not self.read_only,
            metasync=False, readahead=False, lock=lock,
        )  # fmt: skip
        try:
            self.env.reader_check()
            self.durable = max(self.last() - 1, 0)
            self.tables = self._tables()
        except BaseException:
            self.env.close()
            raise

    def _lockable(self) -> bool:
        return not self.read_only or os.access(self.path / "lock.mdb", os.W_OK)

    def _tables(self) -> dict[bytes, Any]:
        with self.env.begin() as txn:
            names = {bytes(k) for k, _ in txn.cursor()}
        if names == _FIRST:
            raise StoreVersionError(
                f"{self.path} has format 1, of release 0.1: fill a new store, or export this one with that release"
            )
        if names and names != set(TABLES):
            raise StoreVersionError(f"{self.path} is an LMDB of another program: give a store's path, or a new one")
        if self.read_only:
            if not names:
                raise StoreError(f"{self.path} is an empty store that was never finished: open it for writing once")
            return {name: self.env.open_db(name, create=False) for name in TABLES}
        with self.env.begin(write=True) as txn:  # all or none
            return {name: self.env.open_db(name, txn=txn) for name in TABLES}

    def begin_read(self) -> lmdb.Transaction:
        """A consistent view, with values as buffers, until ``end_read``."""
        self.check_process()
        try:
            with self._entry:
                return self._begun()
        except lmdb.Error as error:
            if not self._given_up(error) or threading.get_ident() in self._views.values():
                raise self.translated(error, 0) from error
        with self.turn, self.errors(0):
            self._open_again()
            with self._entry:
                return self._begun()

    def _begun(self) -> lmdb.Transaction:
        try:
            txn = self.env.begin(buffers=True)
        except lmdb.MapResizedError:  # a writer in another process has grown the map
            self._resize(0)
            return self._begun()
        self._views[txn] = threading.get_ident()
        return txn

    def end_read(self, txn: lmdb.Transaction) -> None:
        """The view is no longer needed, nor are its buffers."""
        txn.abort()
        with self._entry:
            self._views.pop(txn, None)
            self._gate.notify_all()

    def write(self, work: Callable[[lmdb.Transaction], T], need: int = 0) -> T:
        """Run ``work`` in one transaction; again with a larger map when it was too small. ``need``: bytes expected."""
        self.check_process()
        with self.turn, self.errors(need):
            if self._lost:
                self._open_again()
            self._reserve(need)
            try:
                return self._commit(work, need)
            except lmdb.Error:
                self._open_again()
                raise

    def _commit(self, work: Callable[[lmdb.Transaction], T], need: int) -> T:
        try:
            with self.env.begin(write=True) as txn:
                result = work(txn)
        except lmdb.MapFullError:
            self._grow(need)
            return self._commit(work, need)
        self.durable = int(self.env.info()["last_txnid"]) - 1  # its own header may not have reached the disk
        self.written = True
        return result

    def sync(self) -> None:
        """Everything committed is on the disk when this returns."""
        self.check_process()
        with self.turn, self.errors(0):
            if self.written:
                if self._lost:
                    self._open_again()
                self.env.sync(True)
                self.durable = int(self.env.info()["last_txnid"])
                self.written = False

    def _given_up(self, error: BaseException) -> bool:
        """Whether LMDB refuses all: it does after a header that it could not write, whole as its file is."""
        return self._lost or isinstance(error, lmdb.PanicError)

    def _open_again(self) -> None:
        """Open the files anew where LMDB has given up on them. The writer's turn only."""
        try:
            if not self._lost:
                self.env.begin().abort()
                return
        except lmdb.PanicError:
            self._lost = True
        except lmdb.Error:
            return  # for whoever begins in earnest to find
        with self._entry:
            self._wait_for_readers()
            self._reopen()
            try:
                self._write_header()
            except lmdb.Error:  # for now it can be read, at least
                self._reopen()

    def _reopen(self) -> None:
        self._lost = True
        self.env.close()
        self._open_files(_rounded(2 * self.file.stat().st_size, MAP_STEP))
        self._lost = False

    def _write_header(self) -> None:
        """A commit that changes nothing: LMDB left the header with its old number and the new tables."""
        with self.env.begin(write=True, db=self.tables[b"meta"]) as txn:
            if (state := txn.get(b"state")) is not None:
                txn.put(b"state", state)

    def last(self) -> int:
        """The number of the last transaction."""
        return int(self.env.info()["last_txnid"])

    def forgotten(self) -> int:
        """The newest transaction before which nobody looks and no power cut leads back."""
        seen = [int(words[-1]) for words in map(str.split, self.env.readers().splitlines()[1:]) if words[-1].isdigit()]
        return min([self.durable, *seen])

    def _reserve(self, need: int) -> None:
        info = self.env.info()
        if (info["last_pgno"] + 1) * self.env.stat()["psize"] + 2 * need > info["map_size"]:
            self._grow(2 * need)

    def _grow(self, need: int) -> None:
        size = int(self.env.info()["map_size"])
        with self._entry:
            self._resize(_rounded(max(2 * size, size + need), MAP_STEP))

    def _resize(self, size: int) -> None:
        self._wait_for_readers()  # the map may move: nobody may be looking at it
        self.env.set_mapsize(size)

    def _wait_for_readers(self) -> None:
        """Until no other thread looks; a view of this one's is left over from an interruption. With the gate held."""
        for txn in [txn for txn, thread in self._views.items() if thread == threading.get_ident()]:
            txn.abort()
            del self._views[txn]
        while self._views:
            self._gate.wait()

    @contextmanager
    def errors(self, need: int) -> Iterator[None]:
        """LMDB's and the system's errors as ours; ``need``: bytes being written."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise self.translated(error, need) from error

    def translated(self, error: BaseException, need: int) -> BaseException:
        """An error of LMDB or the system as one of ours; any other as it is."""
        return ours(error, self.path, self.file, need)

    def check_process(self) -> None:
        """Raise StoreError in a forked child: LMDB must not be used across a fork."""
        if os.getpid() != self.pid:
            raise StoreError(
                f"{self.path} was opened before this process was forked: open it anew here, read_only beside a writer"
            )

    def write_again(self) -> None:
        """Become the writer once more: others may have been meanwhile. Raises StoreLockedError, StoreError."""
        self.lock.take()
        try:
            with self.errors(0):
                break_seal(self.file)
        except BaseException:
            self.lock.drop()
            raise

    def close(self) -> None:
        """Let go of the files and the lock."""
        if os.getpid() == self.pid:
            with suppress(StoreError):  # a seal must not outlive, in a power cut, the commits that it is of
                self.sync()
            with self._entry:
                self._wait_for_readers()
                self.env.close()
            if self.lock.taken and not self.written:
                seal(self.file)
            self.lock.drop()


def _allocate(file: Path, size: int) -> None:
    """Room on the disk for a file that LMDB writes through a map, where a full disk would end the process (SIGBUS).

    What the file holds stays. Raises OSError.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):  # else a file system that cannot
            raise
    finally:
        os.close(descriptor)


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step
