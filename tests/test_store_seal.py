"""A closed store opens as it was closed, or not at all; a killed one needs no seal."""

from __future__ import annotations

import json
import os
import signal

import pytest

from streamdrop.errors import StoreCorruptError, StoreError
from streamdrop.store import LmdbStore, store_info, verify
from streamdrop.store.environment import Environment
from streamdrop.store.examination import repair
from streamdrop.store.header import check_pages, read_header
from streamdrop.store.integrity import seal
from streamdrop.store.mending import mend_headers
from streamdrop.testing.stores import assert_holds, name, samples


@pytest.fixture
def path(tmp_path):
    with LmdbStore(tmp_path / "store") as store:
        store.put_many(samples(range(20)))
    return tmp_path / "store"


@pytest.fixture
def unread(monkeypatch):
    """No process of its own to read a file through."""

    def survives(folder):
        raise AssertionError("the file was read through")

    monkeypatch.setattr("streamdrop.store.integrity.survives", survives)


def in_child(work):
    """What ``work`` raises in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
        except StoreError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as text:
        raise StoreError(text.read())


def flip(file, at, bit):
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


TRANSACTION = 144
"""Where LMDB's first header keeps the number of its transaction."""


@pytest.mark.parametrize("keeps_time", [True, False])
@pytest.mark.parametrize("large", [0, 64 << 20])
def test_a_changed_transaction_is_no_way_back_to_an_earlier_state(path, unread, monkeypatch, keeps_time, large):
    monkeypatch.setattr("streamdrop.store.integrity._LARGE", large)  # 0: a file too large for a digest of the whole
    file = path / "data.mdb"
    seal(file)
    whole, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    for at in (TRANSACTION, TRANSACTION + 1, 4096 + TRANSACTION):
        flip(file, at, 0)
        damaged = file.read_bytes()
        if keeps_time:
            os.utime(file, ns=times)
        for use in (LmdbStore, store_info, verify):
            with pytest.raises(StoreCorruptError, match=r"damaged, its headers .* restore it"):
                use(path)
        assert file.read_bytes() == damaged
        file.write_bytes(whole)
    os.utime(file, ns=times)
    with LmdbStore(path) as store:
        assert_holds(store, range(20))


def test_an_emptied_file_is_not_taken_for_a_new_store(path, unread):
    (path / "data.mdb").write_bytes(b"")
    with pytest.raises(StoreCorruptError, match="headers"):
        LmdbStore(path)


def test_without_the_seal_what_is_there_opens(path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.integrity.survives", lambda folder: True)
    with (path / "data.mdb").open("r+b") as file:
        file.truncate()  # a power cut can lose a file that was never synced, not its name
    with pytest.raises(StoreCorruptError, match="headers"):
        LmdbStore(path)
    (path / "seal.json").unlink()  # the remedy that the error names
    with LmdbStore(path) as store:
        assert len(store) == 0


# ---------------------------------------------------------------- headers of a killed writer, which left no seal


@pytest.fixture
def killed(tmp_path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.integrity.survives", lambda folder: True)
    child = os.fork()
    if not child:
        store = LmdbStore(tmp_path / "killed")
        for at in range(0, 20, 5):
            store.put_many(samples(range(at, at + 5)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return tmp_path / "killed"


HEADER, SECOND = 152, 4096
UNUSED = range(88, 92)
"""Where LMDB's headers keep nothing."""


def test_no_changed_bit_in_a_header_leads_a_killed_store_back(killed):
    file = killed / "data.mdb"
    whole, true = file.read_bytes(), read_header(file)
    numbers = [*range(TRANSACTION, TRANSACTION + 8), *range(SECOND + TRANSACTION, SECOND + TRANSACTION + 8)]
    for at in [*range(HEADER), *numbers]:
        for bit in range(8) if at in numbers else (at % 8,):
            flip(file, at, bit)
            try:
                header = read_header(file)
                check_pages(file, header)
                assert at in UNUSED or header.tables == true.tables, (at, bit)
            except StoreError:
                assert at not in UNUSED
            file.write_bytes(whole)
    with LmdbStore(killed) as store:
        assert_holds(store, range(20))


@pytest.mark.parametrize("at", [TRANSACTION, SECOND + TRANSACTION, TRANSACTION + 3, 16, SECOND + 16, 40, 10])
def test_repair_writes_headers_anew_and_loses_nothing(killed, at):
    for bit in (0, 1, 3):
        flip(killed / "data.mdb", at, bit)
        try:
            check_pages(killed / "data.mdb", read_header(killed / "data.mdb"))
        except StoreError:
            with pytest.raises(StoreCorruptError):
                LmdbStore(killed)
            assert repair(killed)["repaired"] == ["LMDB's headers were damaged: they are as their states prove them"]
        with LmdbStore(killed) as store:
            assert_holds(store, range(20))
            store.put_many(samples(range(20)))
        (killed / "seal.json").unlink()


def test_a_header_beyond_repair_is_made_from_the_other_and_said_to_be(killed):
    file = killed / "data.mdb"
    newest = read_header(file).transaction
    flip(file, SECOND * (newest % 2) + 128, 1)  # the root of its records
    with pytest.raises(StoreCorruptError):
        LmdbStore(killed)
    assert repair(killed)["repaired"][0].startswith("one of LMDB's headers shows no whole state")
    with LmdbStore(killed) as store:
        assert_holds(store, range(15))  # the last put is lost with its header
        store.put_many(samples(range(15, 20)))
    with LmdbStore(killed) as store:
        assert_holds(store, range(20))


def test_headers_of_a_sealed_store_are_mended_to_what_was_sealed(path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.integrity.survives", lambda folder: True)
    whole = (path / "data.mdb").read_bytes()
    flip(path / "data.mdb", TRANSACTION, 1)
    mend_headers(path / "data.mdb")
    assert (path / "data.mdb").read_bytes() == whole
    with LmdbStore(path) as store:
        assert_holds(store, range(20))


def test_a_store_that_is_open_here_is_not_mended(path):
    with LmdbStore(path) as store:
        with pytest.raises(StoreError, match="already being written"):
            repair(path)
        with pytest.raises(StoreError, match="being written by"):  # the lock was not let go of
            in_child(lambda: LmdbStore(path))
        store.put_many(samples([30]))


@pytest.mark.parametrize("field", ["headers", "digest"])
def test_a_damaged_seal_harms_no_whole_store(path, field, monkeypatch):
    monkeypatch.setattr("streamdrop.store.integrity.survives", lambda folder: True)
    file = path / "seal.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "0"}))
    with LmdbStore(path) as store:
        assert_holds(store, range(20))


def test_the_seal_of_an_earlier_release_fits(path, unread):
    file = path / "seal.json"
    sealed = json.loads(file.read_text())
    del sealed["headers"]
    file.write_text(json.dumps(sealed))
    with LmdbStore(path) as store:
        assert_holds(store, range(20))


def test_a_killed_writer_leaves_no_seal_and_all_it_put(path, monkeypatch):
    child = os.fork()
    if not child:
        store = LmdbStore(path)
        store.put_many(samples(range(20, 30)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (path / "seal.json").exists()
    monkeypatch.setattr("streamdrop.store.integrity.survives", lambda folder: True)
    with LmdbStore(path) as store:
        assert_holds(store, range(30))


def test_a_file_moved_back_by_a_copy_is_refused(path, unread):
    before = (path / "data.mdb").read_bytes()
    with LmdbStore(path) as store:
        store.put_many(samples(range(20, 30)))
    (path / "data.mdb").write_bytes(before)
    with pytest.raises(StoreCorruptError, match=r"restore it and seal.json"):
        LmdbStore(path)


def test_what_is_sealed_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    sync = Environment.sync
    monkeypatch.setattr(Environment, "sync", lambda self: (synced.append(self.written), sync(self)))
    store = LmdbStore(tmp_path / "s")
    store.put_many(samples([1]))
    del store  # nobody closes it
    assert synced[-1:] == [True]
    assert (tmp_path / "s" / "seal.json").exists()


def test_what_cannot_be_synced_is_not_sealed(tmp_path, monkeypatch):
    def fails(self):
        raise StoreError("the disk is gone")

    store = LmdbStore(tmp_path / "s")
    store.put_many(samples([1]))
    monkeypatch.setattr(Environment, "sync", fails)
    with pytest.raises(StoreError, match="gone"):
        store.close()
    assert not (tmp_path / "s" / "seal.json").exists()


def test_a_writer_that_comes_back_breaks_the_seal_that_another_left(path):
    store = LmdbStore(path)
    reader = LmdbStore(path, read_only=True)
    store.close()  # the reader keeps the files open: nothing is sealed
    child = os.fork()
    if not child:
        with LmdbStore(path) as other:
            other.put_many(samples([50]))
        os._exit(0)
    os.waitpid(child, 0)
    assert (path / "seal.json").exists()
    with LmdbStore(path) as store:
        assert not (path / "seal.json").exists()
        assert name(50) in store
    reader.close()
