"""A store on a system that fails, at any call: it is as it was or as it shall be, goes on, and opens whole."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from faults import STORES, failing

from streamdrop.errors import StoreError, StoreFullError, StreamdropError
from streamdrop.store import LmdbStore, TieredStore
from streamdrop.store.environment import Environment
from streamdrop.store.exchange import export_store
from streamdrop.store.inspection import verify
from streamdrop.types import Activations

Store = LmdbStore | TieredStore


def value(number: int) -> torch.Tensor:
    return torch.full((3, 20), float(number))


def samples(numbers: range, by: int = 0) -> dict[bytes, tuple[torch.Tensor, ...]]:
    return {b"%d" % number: (value(number + by),) for number in numbers}


def sources(numbers: range) -> dict[bytes, bytes]:
    return {b"%d" % number: b"%d" % number for number in numbers}


def tenfold(activations: Activations) -> Activations:
    return (activations[0] * 10,)


def embed(given: list[bytes]) -> Activations:
    return (torch.stack([value(int(source) + 1000) for source in given]),)


def replaced(store: Store) -> None:
    store.put_many(samples(range(3, 8), 100), sources=sources(range(3, 8)))
    store.flush()


def removed(store: Store) -> None:
    store.discard([b"1", b"4"])
    store.flush()


def staged(store: Store) -> None:
    with store.stage(1, "later") as stage:
        stage.put_many({key: tenfold(row) for key, row in samples(range(1, 3)).items()})
        stage.commit(tenfold, 2)


OPERATIONS: dict[str, Callable[[Any], object]] = {
    "replace": replaced,
    "discard": removed,
    "advance": lambda store: store.advance(1, tenfold, "later", 2),
    "stage": staged,
    "thaw": lambda store: store.thaw(0, embed, "anew", 2),
    "compact": lambda store: store.compact(),
    "rollback": lambda store: store.rollback(6),
}


def opened(path: Path, kind: str) -> Store:
    return LmdbStore(path) if kind == "lmdb" else TieredStore(path, commit_seconds=1e6)


def shown(store: Store) -> object:
    keys = store.keys()
    (rows,) = store.get_many(keys)
    assert len(store) == len(keys)
    return store.cut, store.version, dict(zip(keys, rows[:, 0, 0].tolist(), strict=True)), store.get_sources(keys)


def filled(path: Path) -> None:
    with LmdbStore(path) as store:
        store.put_many(samples(range(6)), sources=sources(range(6)))
        store.mark()
        store.put_many(samples(range(5, 7), 50), sources=sources(range(5, 7)))
        store.discard([b"0"])


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("kind", ["lmdb", "tiered"])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_failing_system_leaves_the_store_as_before_or_after(
    tmp_path: Path, name: str, kind: str, lasting: bool
) -> None:
    filled(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "whole")
    with opened(tmp_path / "whole", kind) as store:
        before, _ = shown(store), OPERATIONS[name](store)
        after = shown(store)
    at, fired = 0, True
    while fired:
        at += 1
        path = shutil.copytree(tmp_path / "base", tmp_path / f"at-{at}")
        store = opened(path, kind)
        with failing(STORES, at, lasting) as faults:
            failed = raised(lambda store=store: OPERATIONS[name](store))
        fired = faults.fired
        assert shown(store) in ([before, after] if failed else [after])
        if failed:
            raised(store.flush)  # of a tiered store, which tells once more what it could not commit
            OPERATIONS[name](store)
        assert shown(store) == after
        store.close()
        assert verify(path)["problems"] == []
        with opened(path, kind) as again:
            assert shown(again) == after


def raised(work: Callable[[], object]) -> bool:
    """Whether it raised one of our errors; others go on."""
    try:
        work()
    except StreamdropError:
        return True
    return False


class GivenUp:
    """An LMDB environment that could not write a header: it refuses all."""

    def __init__(self, real: lmdb.Environment) -> None:
        self._real = real

    def begin(self, **options: object) -> lmdb.Transaction:
        raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC: Update of meta page failed or environment had fatal error")

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize("first", ["read", "write"])
def test_a_store_goes_on_after_lmdb_has_given_up(tmp_path: Path, first: str) -> None:
    filled(tmp_path)
    with LmdbStore(tmp_path) as store:
        before = shown(store)
        store.folder.environment.env = GivenUp(store.folder.environment.env)
        if first == "read":
            assert shown(store) == before
        else:
            raised(lambda: replaced(store))
        replaced(store)
        assert len(store) == 7
    assert verify(tmp_path)["problems"] == []


def test_staged_rows_that_could_not_be_written_are_promoted_all_the_same(tmp_path: Path) -> None:
    filled(tmp_path)
    with LmdbStore(tmp_path) as store, store.stage(1, "later") as stage:
        with failing(STORES[3:4], 1):  # the first write, which a thread does
            raised(lambda: stage.put_many({b"1": (value(10),)}))
            raised(lambda: stage.commit(tenfold, 2))
        stage.commit(tenfold, 2)
        assert store.get_many([b"1", b"2"])[0][:, 0, 0].tolist() == [10.0, 20.0]


def test_what_a_promotion_recorded_outlives_that_it_cannot_be_forgotten(tmp_path: Path) -> None:
    filled(tmp_path)
    with LmdbStore(tmp_path) as store, pytest.raises(StoreError), store.stage(1, "later") as stage:  # noqa: PT012
        stage.put_many({key: tenfold(row) for key, row in samples(range(1, 3)).items()})
        stage._making.record()
        with failing(STORES, 1, lasting=True):
            stage.commit(tenfold)
            pytest.fail("a commit without a disk")
    with LmdbStore(tmp_path) as store:
        store.advance(1, tenfold, "later")
        assert store.get_many([b"1", b"2"])[0][:, 0, 0].tolist() == [10.0, 20.0]


def test_a_promotion_is_committed_once_however_often_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    with LmdbStore(tmp_path) as store, store.stage(1, "later") as stage:
        with monkeypatch.context() as patch:
            patch.setattr(store.folder, "sweep", refused)
            with pytest.raises(StoreError, match="tidy"):
                stage.commit(tenfold)
        stage.commit(tenfold)
        assert store.cut == 1
        assert store.get_many([b"2"])[0][0, 0, 0] == 20


def refused() -> None:
    raise StoreError("no room to tidy up")


def test_a_compaction_that_fails_gives_its_room_back(tmp_path: Path) -> None:
    filled(tmp_path)
    with LmdbStore(tmp_path) as store, failing(((Environment, "_commit"),), 1), pytest.raises(StoreFullError):
        store.compact()
    assert (tmp_path / "values-000001.bin").stat().st_size == 0


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_an_opening_that_fails_leaves_the_store_to_be_opened(tmp_path: Path, lasting: bool) -> None:
    filled(tmp_path)
    (tmp_path / "seal.json").unlink()  # all is looked at
    at, fired = 0, True
    while fired:
        at += 1
        with failing((*STORES, (Path, "open")), at, lasting) as faults:
            raised(lambda: LmdbStore(tmp_path).close())
        fired = faults.fired
    with LmdbStore(tmp_path) as store:
        assert len(store) == 6


def test_a_store_whose_creation_failed_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "_tables", lambda self: refused())
        with pytest.raises(StoreError, match="no room"):
            LmdbStore(tmp_path)
    assert not (tmp_path / "data.mdb").exists()
    LmdbStore(tmp_path).close()


def test_a_tiered_store_without_a_thread_leaves_the_store_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(StoreError, match="thread"):
            TieredStore(tmp_path)
    LmdbStore(tmp_path).close()


def test_an_export_whose_leftovers_stay_is_done(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    with LmdbStore(tmp_path / "store") as store, failing(((Path, "unlink"),), 1, lasting=True):
        assert export_store(store, tmp_path / "out.npz") == [tmp_path / "out.npz"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a system without it")
def test_a_full_disk_is_told_before_lmdb_maps_its_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreFullError, match="free some space"):  # a hole under LMDB's map ends the process
            LmdbStore(tmp_path)
    with LmdbStore(tmp_path):
        there = (tmp_path / "lock.mdb").stat()
        assert there.st_blocks * 512 >= there.st_size


def test_a_file_system_that_cannot_give_room_beforehand_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    filled(tmp_path)
    with LmdbStore(tmp_path) as store:
        assert len(store) == 6
