"""The tier's own promises: when it commits, what waits, what a failed commit means."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import torch

from streamdrop.errors import ConfigError, MissingKeyError, StoreError, StoreFullError
from streamdrop.store import LmdbStore, Retention, TieredStore
from streamdrop.store.arena import Arena
from streamdrop.store.front import Batch
from streamdrop.store.layout import EXACT, Layout
from streamdrop.testing.stores import assert_holds, doubled, name, sample, samples


def opened(path, **options):
    return TieredStore(path, **{"commit_seconds": 3600, **options})


def test_what_waits_is_read_and_not_yet_committed(tmp_path):
    with opened(tmp_path / "s") as store:
        store.put_many(samples(range(4)), [0, 1, 2, 3])
        with LmdbStore(tmp_path / "s", read_only=True) as reader:
            assert_holds(store, range(4))
            assert_holds(reader, [])
            store.flush()
            assert_holds(reader, range(4))
            store.discard([name(1)])
            store.put_many({name(2): sample(9)}, [9])
            assert store.keys() == [name(n) for n in (0, 3, 2)]
            assert store.get_targets([name(3), name(2)]).tolist() == [3, 9]
            assert_holds(reader, range(4))
            with pytest.raises(MissingKeyError, match="sample/1"):
                store.get_many([name(1), name(0)])
        mixed = store.get_many([name(2), name(0), name(3)])
        assert torch.equal(mixed[0], torch.stack([sample(n)[0] for n in (9, 0, 3)]))


def test_a_killed_process_loses_what_waited_and_nothing_else(tmp_path):
    child = os.fork()
    if not child:
        store = opened(tmp_path / "s")
        store.put_many(samples([1]))
        store.flush()
        store.put_many(samples([2, 3]))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with LmdbStore(tmp_path / "s") as store:
        assert_holds(store, [1])


@pytest.mark.slow
def test_a_store_that_nobody_closes_commits_as_the_interpreter_ends(tmp_path):
    program = (
        "import sys, torch\nfrom streamdrop.store import TieredStore\n"
        "store = TieredStore(sys.argv[1], commit_seconds=3600)\n"
        "for n in range(12): store.put_many({b'%d' % n: (torch.full((1 << 18,), float(n)),)})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "s"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with LmdbStore(tmp_path / "s") as store:
        assert store.keys() == [b"%d" % n for n in range(12)]


def test_puts_wait_for_the_disk_rather_than_filling_the_memory(tmp_path, monkeypatch):
    go, apply = threading.Event(), LmdbStore.apply

    def held_up(self, *args):
        go.wait(60)
        apply(self, *args)

    monkeypatch.setattr(LmdbStore, "apply", held_up)
    with opened(tmp_path / "s", commit_bytes=4000) as store:
        big = {b"%d" % n: (torch.full((250,), float(n)),) for n in range(40)}
        put = []

        def fill():
            for key, value in big.items():
                store.put_many({key: value})
                put.append(key)

        thread = threading.Thread(target=fill)
        thread.start()
        while len(put) < 8:  # 8 samples of 1000 bytes: twice what makes a commit
            pass
        thread.join(0.2)
        assert len(put) == 8
        go.set()
        thread.join()
        assert store.keys() == list(big)


def test_a_failed_commit_is_told_and_tried_again(tmp_path, monkeypatch):
    apply, full = LmdbStore.apply, [True]

    def on_a_full_disk(self, *args):
        if full[0]:
            raise StoreFullError("no room: free some")
        apply(self, *args)

    monkeypatch.setattr(LmdbStore, "apply", on_a_full_disk)
    with opened(tmp_path / "s") as store:
        store.put_many(samples([1]))
        with pytest.raises(StoreFullError, match="no room"):
            store.flush()
        with pytest.raises(StoreFullError, match="no room"):
            store.put_many(samples([2]))
        assert_holds(store, [1])
        full[0] = False
        store.flush()
        store.put_many(samples([2]))
        assert_holds(store, [1, 2])
    with LmdbStore(tmp_path / "s") as store:
        assert_holds(store, [1, 2])


def test_closing_on_a_full_disk_says_so_and_keeps_what_was_committed(tmp_path, monkeypatch):
    store = opened(tmp_path / "s")
    store.put_many(samples([1]))
    store.flush()
    store.put_many(samples([2]))

    def on_a_full_disk(self, *args):
        raise StoreFullError("no room: free some")

    monkeypatch.setattr(LmdbStore, "apply", on_a_full_disk)
    with pytest.raises(StoreFullError, match="no room"):
        store.close()
    monkeypatch.undo()
    with LmdbStore(tmp_path / "s") as store:
        assert_holds(store, [1])


def test_the_bound_holds_while_samples_wait(tmp_path):
    kept = Retention(max_samples=3, policy="reservoir")
    with opened(tmp_path / "s", retention=kept) as store, LmdbStore(tmp_path / "t", retention=kept) as other:
        for n in range(30):
            for one in (store, other):
                one.put_many(samples([n]))
            if n == 15:
                store.flush()
            assert len(store) <= 3
            assert store.keys() == other.keys()


def test_promotion_takes_along_what_waits(tmp_path):
    with opened(tmp_path / "s") as store:
        store.put_many(samples(range(3)))
        with store.stage(1, "one") as staged:
            store.put_many(samples([3]))
            staged.put_many({name(3): sample(3, 2)})
            staged.commit(doubled)
        assert_holds(store, range(4), 2)
        assert (store.cut, store.lineage) == (1, ((0, ""),))


def test_rounds_commit_what_has_waited_for_a_while(tmp_path):
    with opened(tmp_path / "s") as store:
        store.put_many(samples([1]))
        store.round_done()  # it is young: the next round will do
        assert store.waiting == 1
    with opened(tmp_path / "t", commit_seconds=1e-6) as store:
        store.put_many(samples([1]))
        while store.waiting:
            store.round_done()
        assert_holds(store, [1])


@pytest.mark.parametrize(
    "options", [{"memory_bytes": 0}, {"commit_bytes": 1.5}, {"commit_seconds": 0}, {"read_only": True}]
)
def test_impossible_options_are_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        TieredStore(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_a_forked_child_is_told_to_open_its_own(tmp_path):
    with opened(tmp_path / "s") as store:
        store.put_many(samples([1]))
        child = os.fork()
        if not child:
            try:
                with pytest.raises(StoreError, match="forked"):
                    store.put_many(samples([2]))
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        store.put_many(samples([2]))
        assert_holds(store, [1, 2])


def test_no_file_left_to_open_is_an_error_of_ours(tmp_path):
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # no number below that is free
            with pytest.raises(StoreError, match="Too many open files"):
                LmdbStore(tmp_path / "s")
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    with LmdbStore(tmp_path / "s") as store:
        store.put_many(samples([1]))
        assert_holds(store, [1])


def test_a_put_that_waits_while_the_store_closes_is_refused_or_kept(tmp_path, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    commit = Batch.commit

    def held(batch, durable):
        entered.set()
        assert go_on.wait(120)
        return commit(batch, durable)

    monkeypatch.setattr(Batch, "commit", held)
    store, returned = opened(tmp_path / "s", commit_bytes=sample(0)[0].nbytes), []

    def put():
        with contextlib.suppress(StoreError):
            for number in range(20):
                store.put_many({name(number): sample(number)})
                returned.append(name(number))

    threads = [threading.Thread(target=put), threading.Thread(target=lambda: (entered.wait(120), store.close()))]
    for thread in threads:
        thread.start()
    assert entered.wait(120)
    go_on.set()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    with LmdbStore(tmp_path / "s", read_only=True) as reader:
        assert set(returned) <= set(reader.keys())


def test_a_full_arena_takes_no_more_rows():
    layout = Layout.of(sample(0), EXACT)
    columns = layout.encode([sample(n) for n in range(3)], [name(n) for n in range(3)])
    arena = Arena(layout, 2 * layout.nbytes)
    assert [arena.fill(columns), arena.fill(columns)] == [[0, 1], []]
    assert torch.equal(arena.row(1)[0], columns[0][1])
