"""Back to a mark in the durable store, or past it for good: what was removed since is held until then."""

from __future__ import annotations

from itertools import islice

from streamdrop.store.entries import key_of
from streamdrop.store.folder import Folder
from streamdrop.store.state import State
from streamdrop.store.tables import BATCH, Tables


def rollback(folder: Folder, mark: int) -> None:
    """Undo every put and discard made after ``mark``. Raises StoreError."""

    def work(tables: Tables, state: State) -> State:
        state.check_mark(mark)
        ledger = folder.ledger(tables)
        held = [(seq, raw) for seq, died, raw in tables.held() if died > mark]
        newer = [(key_of(raw), seq) for seq, raw in tables.living(state.last, mark + 1)]
        state = ledger.remove(state, newer, None)
        for seq, raw in held:
            if seq > mark:
                ledger.release(state, seq)
            else:
                state = ledger.revive(state, seq, raw)
        return state.rolled_back(mark)

    folder.change(work)


def count_at(folder: Folder, mark: int) -> int:
    """How many samples ``rollback`` to ``mark`` would leave. Raises StoreError as that does."""
    with folder.reading() as (tables, state):
        state.check_mark(mark)
        newer = sum(1 for _ in tables.living(state.last, mark + 1))
        return state.count - newer + sum(1 for seq, died, _ in tables.held() if seq <= mark < died)


def release(folder: Folder, mark: int) -> None:
    """Forget for good what was removed up to ``mark``, some at a time. Raises StoreError."""
    more = True

    def work(tables: Tables, state: State) -> State:
        nonlocal more
        ledger = folder.ledger(tables)
        dead = list(islice((seq for seq, died, _ in tables.held() if died <= mark), BATCH))
        for seq in dead:
            ledger.release(state, seq)
        more = len(dead) == BATCH
        return state.released(mark)

    while more:
        folder.change(work)
