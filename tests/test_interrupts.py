"""Ctrl-C, and whatever else a signal's handler raises: it waits where it must not come between, and loses nothing."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from streamdrop.errors import StoreError
from streamdrop.interrupts import held
from streamdrop.policies import SchedulePolicy
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.testing.tuners import labelled_batch, small_tuner


class Raised(BaseException):
    """As KeyboardInterrupt, from a handler."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raises ``Raised`` in so many seconds, once, and only within ``interrupted``."""
    armed = False

    def handler(number: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Raised

    def arm(seconds: float) -> None:
        nonlocal armed
        armed = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, handler)
    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(alarm: Callable[[float], None], seconds: float, work: Callable[[], object]) -> bool:
    """Do ``work``; whether it came to its end."""
    try:
        alarm(seconds)
        work()
        alarm(0)
    except Raised:
        return False
    return True


class Aim:
    """Interrupts about every other work of a kind before its end, however quick the machine and its disk are."""

    def __init__(self, alarm: Callable[[float], None]) -> None:
        self.alarm, self.chance, self.reach = alarm, random.Random(3), dict[str, float]()

    def __call__(self, kind: str, work: Callable[[], object]) -> bool:
        """Do ``work``; whether it came to its end."""
        reach = self.reach.get(kind, 0.001)
        ended = interrupted(self.alarm, max(self.chance.random() * reach, 1e-6), work)  # 0 is never
        self.reach[kind] = reach * (0.8 if ended else 1.25)
        return ended


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            with held():
                signal.raise_signal(signal.SIGINT)
                done.append(1)
            done.append(2)
        done.append(3)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]
    with pytest.raises(KeyboardInterrupt):  # the handler is the one there was
        signal.raise_signal(signal.SIGINT)


def test_what_the_block_raises_is_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="own"), held():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_and_signals_without_a_handler_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            thread = threading.Thread(target=lambda: held().__enter__())
            thread.start()
            thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    with held():
        inside = signal.getsignal(signal.SIGINT)
    assert inside != before == signal.getsignal(signal.SIGINT)


def value(number: int) -> torch.Tensor:
    return torch.full((3, 5), float(number))


def check(store: LmdbStore | MemoryStore | TieredStore, known: set[int], tried: set[int]) -> None:
    """All that was put is there, and nothing but what was tried, by whole batches of four."""
    there = {int(key) for key in store.keys()}  # noqa: SIM118
    assert known <= there <= tried
    assert all({number - number % 4 + i for i in range(4)} <= there for number in there)
    if there:
        (rows,) = store.get_many([b"%d" % number for number in sorted(there)])
        assert all(torch.equal(row, value(number)) for row, number in zip(rows, sorted(there), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "lmdb", "tiered"])
def test_a_store_is_whole_wherever_it_is_interrupted(kind: str, tmp_path: Path, alarm: Callable[[float], None]) -> None:
    aim, known, tried, ends = Aim(alarm), set[int](), set[int](), 0
    memory = MemoryStore()

    def opened() -> LmdbStore | MemoryStore | TieredStore:
        if kind == "memory":
            return memory
        return (
            TieredStore(tmp_path, memory_bytes=20_000, commit_seconds=0.003)
            if kind == "tiered"
            else LmdbStore(tmp_path)
        )

    for session in range(6):
        store = opened()
        check(store, known, tried)
        for at in range(session * 160, session * 160 + 160, 4):
            batch = {b"%d" % number: (value(number),) for number in range(at, at + 4)}
            tried |= {*range(at, at + 4)}
            if aim("put", lambda store=store, batch=batch: store.put_many(batch)):
                known |= {*range(at, at + 4)}
                ends += 1
            some = [b"%d" % number for number in list(known)[:3]]
            aim("get", lambda store=store, some=some: store.get_many(some))
            if at % 40 == 0 and len(known) > 30:
                gone = sorted(known)[0] // 4 * 4
                keys = [b"%d" % number for number in range(gone, gone + 4)]
                whole = aim("discard", lambda store=store, keys=keys: store.discard(keys))
                known -= {*range(gone, gone + 4)}
                if not whole:
                    store.discard(keys)
                tried -= {*range(gone, gone + 4)}
        if kind != "memory":
            aim("close", store.close)
            store.close()
    check(opened(), known, tried)
    assert 0 < ends < 240
    opened().close() if kind == "memory" else None


def test_what_is_raised_after_a_commit_takes_no_rows_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LmdbStore(tmp_path)
    store.put_many({b"0": (value(0),)})

    def freed(places: object) -> None:
        raise Raised

    with monkeypatch.context() as patch:
        patch.setattr(store.folder.files, "freed", freed)
        with pytest.raises(Raised):
            store.put_many({b"1": (value(1),)})
    store.close()
    with LmdbStore(tmp_path) as again:
        assert torch.equal(again.get_many([b"1"])[0][0], value(1))


@pytest.mark.parametrize("how", ["advance", "thaw"])
def test_another_cut_that_was_committed_stays_where_what_follows_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store = LmdbStore(tmp_path)
    store.put_many({b"%d" % i: (value(i),) for i in range(5)}, sources={b"%d" % i: b"%d" % i for i in range(5)})
    sweep = store.folder.sweep

    def full() -> None:
        if store.cut or how == "thaw":
            raise StoreError("no room to tidy up")
        sweep()

    def embed(sources: list[bytes]) -> tuple[torch.Tensor]:
        return (torch.stack([value(10 * int(source)) for source in sources]),)

    with monkeypatch.context() as patch, suppress(StoreError):
        patch.setattr(store.folder, "sweep", full)
        if how == "advance":
            store.advance(1, lambda x: (x[0] * 10,), "later")
        else:
            store.thaw(0, embed, "anew")
    assert store.version == {"advance": "later", "thaw": "anew"}[how]
    store.close()
    with LmdbStore(tmp_path) as again:
        assert torch.equal(again.get_many([b"3"])[0][0], value(30))


@pytest.mark.parametrize("kind", ["memory", "lmdb", "tiered"])
def test_a_promotion_that_nobody_could_leave_is_in_nobodys_way(tmp_path: Path, kind: str) -> None:
    makers = {"memory": MemoryStore, "lmdb": lambda: LmdbStore(tmp_path), "tiered": lambda: TieredStore(tmp_path)}
    with makers[kind]() as store:
        store.put_many({b"1": (value(1),)})
        with pytest.raises(Raised):
            interrupted_before_it_is_entered(store)
        store.advance(1, lambda x: (x[0] * 10,), "later")
        assert torch.equal(store.get_many([b"1"])[0][0], value(10))


def interrupted_before_it_is_entered(store: LmdbStore | MemoryStore | TieredStore) -> None:
    store.stage(1, "later")
    raise Raised


def test_a_cut_moves_whole_where_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = small_tuner(policy=SchedulePolicy({1: 2}), batch=labelled_batch(16))
    advance = tuner.cutting.boundary.advance

    def interrupted_advance(cut: int) -> None:
        signal.raise_signal(signal.SIGINT)
        advance(cut)

    with monkeypatch.context() as patch:
        patch.setattr(tuner.cutting.boundary, "advance", interrupted_advance)
        with pytest.raises(KeyboardInterrupt):
            tuner.fit_round()
    trained = {id(parameter) for parameter in tuner.split.head_parameters(2).values()}
    assert tuner.cut == 2
    assert {id(p) for group in tuner.optimizer.param_groups for p in group["params"]} == trained
    assert tuner.fit_round().cut == 2
    assert tuner.store.cut == 2
