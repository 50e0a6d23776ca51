"""The order of things on the disk: what a power cut or a slow reader may still see is neither lost nor overwritten."""

from __future__ import annotations

import random

import pytest
import torch

from streamdrop.store import LmdbStore, Retention
from streamdrop.store.environment import Environment
from streamdrop.store.files import Files
from streamdrop.store.rows import read_row
from streamdrop.store.slab import Slab
from streamdrop.store.tables import VALUES
from streamdrop.testing.stores import doubled, name, sample


def churn(store, steps=60, seed=0):
    """Puts, replacements, discards, promotions and a compaction."""
    rng = random.Random(seed)
    for step in range(steps):
        keys = rng.sample(range(12), rng.randint(1, 5))
        store.put_many(
            {name(k): sample(k, 2 ** (store.cut % 8)) for k in keys}, sources={name(k): b"s" * k for k in keys}
        )
        if step % 7 == 3:
            store.discard([name(k) for k in rng.sample(range(12), 2)])
        if step % 20 == 19:
            store.advance(store.cut + 1, doubled, f"v{store.cut + 1}", 3)
        if step == 33:
            store.compact()


def test_rows_are_on_the_disk_before_a_commit_shows_them(tmp_path, monkeypatch):
    commit, write, slabs, commits = Environment._commit, Slab._write, set(), [0]

    def written(self, *args):
        slabs.add(self)
        return write(self, *args)

    def committed(self, work, need):
        def checked(txn):
            result = work(txn)
            assert not any(slab.dirty for slab in slabs), "a commit would show rows that the disk does not have"
            commits[0] += 1
            return result

        return commit(self, checked, need)

    monkeypatch.setattr(Slab, "_write", written)
    monkeypatch.setattr(Environment, "_commit", committed)
    with LmdbStore(tmp_path / "s") as store:
        churn(store)
    assert commits[0] > 60


def test_room_is_used_again_only_after_a_power_cut_could_not_bring_its_owner_back(tmp_path, monkeypatch):
    freed, write, free, reused = {}, Slab.write, Files.freed, [0]

    def noted(self, places):
        for table, generation, place in places:
            freed[self.path(table, generation), place.start] = self._environment.last()
        free(self, places)

    def checked(self, data, extents):
        for start, _ in extents:
            transaction = freed.pop((self.path, start), None)
            if transaction is not None:
                reused[0] += 1
                assert transaction <= store.folder.environment.durable
        write(self, data, extents)

    monkeypatch.setattr(Files, "freed", noted)
    monkeypatch.setattr(Slab, "write", checked)
    with LmdbStore(tmp_path / "s", max_samples=8) as store:
        churn(store)
    assert reused[0] > 20


def test_a_reader_keeps_what_it_sees(tmp_path):
    with LmdbStore(tmp_path / "s") as store, LmdbStore(tmp_path / "s", read_only=True) as reader:
        store.put_many({name(n): sample(n) for n in range(8)})
        with reader.folder.reading() as (tables, state):
            found = reader.folder.known.locate(tables, state, [name(n) for n in range(8)])
            file = reader.folder.files.reading(VALUES, state.generation, state.layout.nbytes)
            for _ in range(20):
                store.put_many({name(n): sample(n + 50) for n in range(8)})
            for seq, place in found:
                read_row(file.slab, seq, place, verify=True)
        assert store.folder.files.writing(tables, store.now(), VALUES, state.layout.nbytes).space.end > 100
        size = (tmp_path / "s" / "values-000000.bin").stat().st_size
        for _ in range(50):  # nobody looks any more: its room is used again
            store.put_many({name(n): sample(n + 50) for n in range(8)})
        assert (tmp_path / "s" / "values-000000.bin").stat().st_size == size


@pytest.mark.parametrize("policy", ["oldest", "reservoir"])
def test_a_bounded_store_stays_as_large_as_what_it_holds(tmp_path, policy):
    with LmdbStore(tmp_path / "s", retention=Retention(max_samples=50, policy=policy)) as store:
        for at in range(0, 1000, 5):
            store.put_many({b"%d" % n: (torch.full((2048,), float(n)),) for n in range(at, at + 5)})
        assert len(store) == 50
        assert store.now().units <= 60
        keys = store.keys()
        assert store.get_many(keys)[0][:, 0].tolist() == [float(key) for key in keys]
