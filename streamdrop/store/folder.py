"""The folder of a durable store: its transactions, its state, its slabs, and what must be tidied in them."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lmdb import Transaction

from streamdrop.errors import StoreError, StoreVersionError
from streamdrop.interrupts import held
from streamdrop.store.compress import compressor
from streamdrop.store.files import Files
from streamdrop.store.known import Known
from streamdrop.store.layout import EXACT
from streamdrop.store.ledger import Ledger
from streamdrop.store.openings import attach, detach
from streamdrop.store.retention import Retention
from streamdrop.store.rows import RowFile
from streamdrop.store.state import State
from streamdrop.store.tables import BATCH, SOURCES, VALUES, Tables


def staged_generation(tables: Tables, state: State) -> int:
    """The generation of a promotion in the making, or of one that was killed; the present one where there is none."""
    return state.generation + (tables.meta(b"staged") is not None)


class Folder:
    """An open store's folder. Changes are transactions; each makes a new state visible, whole.

    Raises StoreLockedError, StoreVersionError, StoreCorruptError, StoreError.
    """

    def __init__(
        self,
        path: Path,
        read_only: bool,
        retention: Retention,
        map_bytes: int,
        codec: str | None,
        compression: str | None,
    ) -> None:
        self.path, self.read_only, self.retention = path, read_only, retention
        self.known = Known()
        self._seen: tuple[bytes, State] | None = None
        self._ledger: Ledger | None = None
        with held():
            self.environment = attach(path, read_only)
            self.files = Files(path, self.environment, map_bytes)
            self._let_go = weakref.finalize(self, detach, self.environment, read_only)  # also when nobody calls close
        try:
            self._settle(codec, compression)
        except BaseException:
            self._let_go()
            raise

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._let_go.alive

    def check_open(self) -> None:
        """Raise StoreError once closed."""
        if self.closed:
            raise StoreError(f"{self.path} is closed: open it again")

    def close(self) -> None:
        """Let go of the files and the lock. Twice is fine."""
        with held():
            self._let_go()
            self.files.close()

    def now(self) -> State:
        """The facts about the store as last committed."""
        with self.reading() as (_, state):
            return state

    def identity(self) -> str:
        """A word of 32 letters that no other store has; '' for one of an earlier release, until it is written to."""
        with self.reading() as (tables, _):
            return bytes(tables.meta(b"identity") or b"").hex()

    def reading(self) -> View:
        """The tables and the state in one consistent view, for a ``with`` block."""
        return View(self)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One thread at a time; refused when read-only."""
        self.check_open()
        if self.read_only:
            raise StoreError(f"{self.path} was opened read-only: open it without read_only to change it")
        self.environment.check_process()
        with self.environment.turn:
            yield

    def change(self, work: Callable[[Tables, State], State], need: int = 0) -> None:
        """One transaction: ``work`` writes and returns the state that makes it visible."""
        before = after = State(EXACT)

        def run(txn: Transaction) -> None:
            nonlocal before, after
            self._ledger = None
            tables = Tables(txn, self.environment.tables)
            before = self.state_in(tables)
            after = work(tables, before)
            if after != before:
                tables.set_meta(b"state", after.to_bytes())

        with self.writing(), held():
            self.environment.write(run, need)
            if self._ledger is not None:
                self.files.freed(self._ledger.freed)
                if not self._ledger.revived:
                    self.known.forget(self._ledger.gone, before.epoch, after.epoch)

    def ledger(self, tables: Tables) -> Ledger:
        """The ledger of the transaction under way."""
        self._ledger = Ledger(tables, self.retention)
        return self._ledger

    def row_file(self, table: bytes, unit: int) -> RowFile:
        """The present rows, to add to. The writer's turn only."""
        with self.reading() as (tables, state):
            return self.files.writing(tables, state, table, unit)

    def sweep(self) -> None:
        """Delete, in bounded transactions, what no state shows."""
        more = True

        def work(tables: Tables, state: State) -> State:
            nonlocal more
            staged = staged_generation(tables, state)
            wanted = {(VALUES, state.generation), (VALUES, staged), (SOURCES, state.source_generation)}
            more = tables.sweep(state.last, wanted) == BATCH
            if not more:
                self.files.keep_only(wanted)
            return state

        while more:
            self.change(work)

    def _settle(self, codec: str | None, compression: str | None) -> None:
        def begin(tables: Tables) -> None:
            if tables.meta(b"state") is None:
                tables.set_meta(b"state", State(codec or EXACT, compression=compression).to_bytes())
            if tables.meta(b"identity") is None:
                tables.set_meta(b"identity", secrets.token_bytes(16))

        if not self.read_only:
            self.environment.write(lambda txn: begin(Tables(txn, self.environment.tables)))
        state = self.now()
        for what, asked, kept in (("dtype", codec, state.codec), ("compression", compression, state.compression)):
            if asked is not None and asked != kept:
                raise StoreVersionError(
                    f"{self.path} keeps {what} {kept}, not {asked}: open it with {what}={kept!r}, or use a new path"
                )
        if state.compression is not None:
            compressor(state.compression)
        self.files.check(state)
        if not self.read_only:
            self.sweep()
            self._rank()

    def _rank(self) -> None:
        """The ranks are sorted for one retention: sort them anew for another."""
        wanted = repr(replace(self.retention, max_samples=None, max_bytes=None, max_age=None))
        ranking = wanted if self.retention.ranked else ""

        def work(tables: Tables, state: State) -> State:
            if state.ranking != ranking:
                self.ledger(tables).rank_all(state.last)
            return replace(state, ranking=ranking)

        if self.now().ranking != ranking:
            self.change(work)

    def state_in(self, tables: Tables) -> State:
        """The state that a transaction sees. Raises StoreError, StoreVersionError, StoreCorruptError."""
        raw = tables.meta(b"state")
        if raw is None:
            raise StoreError(f"{self.path} is an empty store that was never finished: open it for writing once")
        seen = self._seen
        if seen is None or seen[0] != raw:
            self._seen = seen = (bytes(raw), State.from_bytes(bytes(raw)))
        return seen[1]


class View:
    """One consistent view of a folder while a ``with`` block lasts; its buffers end with it."""

    __slots__ = ("_environment", "_folder", "_txn")

    def __init__(self, folder: Folder) -> None:
        self._folder, self._environment = folder, folder.environment

    def __enter__(self) -> tuple[Tables, State]:
        self._folder.check_open()
        self._txn = self._environment.begin_read()
        try:
            tables = Tables(self._txn, self._environment.tables)
            return tables, self._folder.state_in(tables)
        except BaseException as error:
            self._environment.end_read(self._txn)
            raise self._environment.translated(error, 0) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._environment.end_read(self._txn)
        if error is not None:
            ours = self._environment.translated(error, 0)
            if ours is not error:
                raise ours from error
