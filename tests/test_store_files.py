"""The LMDB store as files: locks, readers, damage, growth, full disks, forks and threads."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import lmdb
import pytest
import torch

from streamdrop.errors import StoreCorruptError, StoreError, StoreFullError, StoreLockedError, StoreVersionError
from streamdrop.store import LmdbStore, store_info, verify
from streamdrop.store.header import read_header
from streamdrop.store.pages import all_there
from streamdrop.store.tables import VALUES
from streamdrop.testing.stores import assert_holds, doubled, name, sample, samples
from streamdrop.types import SampleInfo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def filled(path, count=5, **options):
    with LmdbStore(path, **options) as store:
        store.put_many(samples(range(count)), list(range(count)))
    return path


def forked(work):
    """Exit status of a forked child that runs ``work``: 0 when it returned, 1 when it raised."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_everything_is_there_after_reopening(path):
    with LmdbStore(path) as store:
        store.put_many(samples(range(3)), [1, 2, 3], {name(1): SampleInfo(2.0, True, 4, "cam")})
        mark = store.mark()
        store.discard([name(0)])
        store.advance(2, doubled, "two")
    with LmdbStore(path) as store:
        assert (store.cut, store.version) == (2, "two")
        assert_holds(store, [1, 2], 2)
        assert store.get_info([name(1)]) == [SampleInfo(2.0, True, 4, "cam")]
        store.rollback(mark)
        assert_holds(store, range(3), 2)


def test_a_second_writer_is_refused_until_the_first_closes(path):
    with LmdbStore(path) as store:
        store.put_many(samples([1]))
        with pytest.raises(StoreLockedError, match="already being written in this process"):
            LmdbStore(path)
        assert forked(lambda: LmdbStore(path)) == 1
        assert_holds(store, [1])
    LmdbStore(path).close()


def test_a_writer_in_another_process_is_named_and_its_lock_dies_with_it(path):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        store = LmdbStore(path)
        store.put_many(samples([1]))
        os.write(theirs, b".")
        signal.pause()
    os.read(ours, 1)
    with pytest.raises(StoreLockedError, match=f"process {child}"):
        LmdbStore(path)
    with LmdbStore(path, read_only=True) as reader:
        assert_holds(reader, [1])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with LmdbStore(path) as store:
        assert_holds(store, [1])


def test_a_forgotten_store_lets_go(path):
    store = LmdbStore(path)
    store.put_many(samples([1]))
    del store
    with LmdbStore(path) as store:
        assert_holds(store, [1])


def test_readers_follow_a_writer(path):
    with LmdbStore(path) as store:
        store.put_many(samples([1]))
        with LmdbStore(path, read_only=True) as reader:
            assert_holds(reader, [1])
            store.put_many(samples([2]))
            store.advance(1, doubled, "one")
            assert (reader.cut, reader.version) == (1, "one")
            assert_holds(reader, [1, 2], 2)
            store.close()
            assert_holds(reader, [1, 2], 2)
            with LmdbStore(path) as store:
                store.discard([name(1)])
            assert_holds(reader, [2], 2)


def test_read_only_changes_nothing(path):
    filled(path)
    with LmdbStore(path, read_only=True) as store:
        for change in (lambda: store.put_many(samples([9])), lambda: store.discard([name(1)]), store.mark,
                       lambda: store.advance(1, doubled, "one"), lambda: store.release(0)):  # fmt: skip
            with pytest.raises(StoreError, match="read-only"):
                change()
        with pytest.raises(StoreLockedError, match="open for reading"):
            LmdbStore(path)


@pytest.mark.parametrize("use", [store_info, verify, lambda path: LmdbStore(path, read_only=True)])
def test_reading_never_creates(tmp_path, use):
    for missing in (tmp_path / "no", tmp_path):
        with pytest.raises(StoreError, match="holds no store"):
            use(missing)
    assert list(tmp_path.iterdir()) == []


def test_reading_a_copy_without_lock_files_adds_none(path):
    filled(path)
    for lock in ("lock.mdb", "writer.lock"):
        (path / lock).unlink()
    assert store_info(path)["samples"] == 5
    assert verify(path)["problems"] == []
    assert sorted(f.name for f in path.iterdir()) == ["data.mdb", "seal.json", "values-000000.bin"]


def test_info_says_what_is_there(path):
    with LmdbStore(path, dtype="float16") as store:
        store.put_many(samples(range(4)), info={name(0): SampleInfo(pinned=True, stream="cam")})
        store.mark()
        store.discard([name(3)])
        store.advance(2, doubled, "two")
        info = store_info(path)
    assert info["bytes_on_disk"] > 0
    expected = {
        "format": 2, "codec": "float16", "cut": 2, "version": "two", "samples": 3, "pinned": 1, "held": 1,
        "streams": {"": 2, "cam": 1}, "shapes": [[2, 3, 4], [3]], "dtypes": ["float32", "int64"],
        "bytes_per_sample": 72, "bytes_live": 216, "error": {"max": 0.0, "mean": 0.0},
    }  # fmt: skip
    assert {k: info[k] for k in expected} == expected


def test_paths_that_cannot_be_a_store(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    for bad in (file, file / "below"):
        with pytest.raises(StoreError, match="give"):
            LmdbStore(bad)
    assert file.read_text() == "text"


def test_a_store_of_another_codec_is_refused(path):
    filled(path, dtype="float16")
    with pytest.raises(StoreVersionError, match="dtype='float16'"):
        LmdbStore(path, dtype="float32")
    with LmdbStore(path) as store:
        assert len(store) == 5


@pytest.mark.parametrize("named", [True, False])
def test_foreign_lmdb_is_refused_and_left_alone(path, named):
    with lmdb.open(str(path), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value", db=env.open_db(b"theirs", txn=txn) if named else None)
    for read_only in (True, False):
        with pytest.raises(StoreVersionError, match="another program"):
            LmdbStore(path, read_only=read_only)
    with lmdb.open(str(path), max_dbs=2, readonly=True) as env, env.begin() as txn:
        assert txn.stat()["entries"] == 1


def test_a_newer_format_is_refused(path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.state.FORMAT", 9)
    filled(path)
    monkeypatch.undo()
    for use in (LmdbStore, store_info, verify):
        with pytest.raises(StoreVersionError, match=r"format 9.*upgrade"):
            use(path)


@pytest.mark.parametrize("content", [b"\0" * 8192, b"hello", b"x" * 100_000])
def test_files_that_are_no_lmdb_are_refused(path, content):
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    for use in (LmdbStore, store_info, verify):
        with pytest.raises((StoreCorruptError, StoreVersionError), match=r"damaged|not an LMDB"):
            use(path)
    assert (path / "data.mdb").read_bytes() == content


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_grows_out_of_its_map_and_reads_the_same(path, verify):
    def row(n):
        return (torch.full((3000,), float(n)),)

    with LmdbStore(path, map_bytes=200_000, verify=verify) as store:
        for n in range(60):
            store.put_many({name(n): row(n)})
            wanted = sorted({0, n // 2, n})
            assert store.get_many([name(i) for i in wanted])[0][:, 7].tolist() == wanted
    file = next(path.glob("values-*"))
    assert file.stat().st_size > 200_000
    with LmdbStore(path, map_bytes=0, verify=verify) as store:
        assert torch.equal(store.get_many([name(i) for i in range(60)])[0], torch.stack([row(i)[0] for i in range(60)]))


@pytest.mark.slow
def test_cut_off_files_are_refused(path):
    with LmdbStore(path) as store:
        store.put_many({name(n): (torch.full((3000,), float(n)),) for n in range(30)})
        store.discard([name(n) for n in range(0, 30, 2)])
    data = (path / "data.mdb").read_bytes()
    for size in range(0, len(data), 4096 * 3 + 100):
        (path / "data.mdb").write_bytes(data[:size])
        if size:
            with pytest.raises(StoreCorruptError, match=r"cut off|damaged"):
                LmdbStore(path)
            with pytest.raises(StoreCorruptError, match=r"cut off|damaged"):
                store_info(path)
    (path / "data.mdb").write_bytes(data)
    with LmdbStore(path) as store:
        assert store.get_many([name(7)])[0].unique().tolist() == [7]


def test_a_short_file_that_lacks_only_unused_pages_is_whole(path):
    filled(path)
    header = read_header(path / "data.mdb")
    assert all_there(path / "data.mdb", header.page, header.tables, header.last_page, header.transaction)


def test_ordinary_files_need_no_scan_at_opening(path):
    with LmdbStore(path) as store:
        for at in range(30):
            store.put_many({b"%d" % at: (torch.zeros(20_000),)})
            store.discard([b"%d" % (at - 3)])
            assert read_header(path / "data.mdb").whole


def test_changed_bits_are_found_or_harmless(path):
    filled(path, 12)
    script = textwrap.dedent("""
        import random, sys, pathlib, torch
        from streamdrop.errors import StoreError
        from streamdrop.store import LmdbStore, verify
        from streamdrop.testing.stores import assert_holds
        path = pathlib.Path(sys.argv[1])
        file, rng, found = path / "data.mdb", random.Random(0), 0
        whole = file.read_bytes()
        used = [at for at, byte in enumerate(whole) if byte]
        for _ in range(15):
            data = bytearray(whole)
            for _ in range(3):
                data[rng.choice(used)] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            try:
                problems = verify(path)["problems"]
            except StoreError:
                found += 1
                continue
            found += bool(problems)
            if not problems:
                with LmdbStore(path, read_only=True) as store:
                    assert_holds(store, range(12))
        print(found)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_the_map_grows_beside_readers(path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.environment.MAP_STEP", 1 << 16)
    big = torch.arange(50_000, dtype=torch.float32)
    ours, theirs = os.pipe()
    go, done = os.pipe()
    with LmdbStore(path) as store:
        store.put_many({b"0": (big,)})
    child = os.fork()
    if not child:
        with LmdbStore(path, read_only=True) as reader:
            reader.get_many([b"0"])
            os.write(theirs, b".")
            os.read(go, 1)
            ok = torch.equal(reader.get_many([b"0", b"39"])[0][1], big + 39)
        os._exit(0 if ok else 1)
    os.read(ours, 1)
    with LmdbStore(path) as store:
        for at in range(40):
            store.put_many({b"%d" % at: (big + at,)})
        os.write(done, b".")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(store.get_many([b"17"])[0][0], big + 17)


def test_threads_read_while_one_writes(path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.environment.MAP_STEP", 1 << 16)
    stop, failures, rounds = threading.Event(), [], [0]
    with LmdbStore(path) as store:
        store.put_many(samples(range(8)))

        def read():
            try:
                while not stop.is_set():
                    keys = store.keys()
                    first, second = store.get_many(keys[:8])
                    assert torch.equal(first[:, 0, 0, 0] / 100, second[:, 0].float())
                    rounds[0] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for at in range(40):
            store.put_many(samples([100 + at]))
            store.put_many(samples(range(at * 5, at * 5 + 5)))
        store.advance(1, doubled, "one")
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert rounds[0] > 0


def test_a_forked_child_is_told_to_open_its_own(path):
    with LmdbStore(path) as store:
        store.put_many(samples([1]))

        def child():
            for use in (lambda: store.get_many([name(1)]), lambda: store.put_many(samples([2])), store.flush):
                with pytest.raises(StoreError, match="forked"):
                    use()
            with LmdbStore(path, read_only=True) as own:
                assert_holds(own, [1])

        assert forked(child) == 0
        store.put_many(samples([2]))
        assert_holds(store, [1, 2])
        assert forked(lambda: LmdbStore(path)) == 1


def test_a_file_size_limit_is_a_full_disk(path):
    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with LmdbStore(path) as store:
            store.put_many(samples(range(4)))
            limit = (path / "data.mdb").stat().st_size + 100_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            many = samples(range(10, 4000))
            with pytest.raises(StoreFullError, match=r"no room .* for \d{6,} bytes"):
                store.put_many(many)
            with pytest.raises(StoreFullError, match="no room"):
                store.advance(1, lambda acts: (acts[0].repeat(1, 100, 10, 10),), "one")
            assert_holds(store, range(4))
            store.put_many(samples([4]))
            assert_holds(store, range(5))
        with LmdbStore(path) as store:
            assert_holds(store, range(5))

    assert forked(child) == 0
    with LmdbStore(path) as store:
        assert_holds(store, range(5))
        store.put_many(samples(range(10, 4000)))
        assert len(store) == 3995


def test_a_full_disk_names_the_bytes_and_keeps_what_was_there(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if shutil.which("mount") is None or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("no right to mount a small file system: the file size limit above tests the same")
    try:
        with LmdbStore(mount / "store") as store:
            store.put_many(samples(range(5)))
            with pytest.raises(StoreFullError, match=r"for \d{6,} bytes"):
                store.put_many({b"%d" % n: sample(n) for n in range(8000)})
            with pytest.raises(StoreFullError, match="no room"):
                store.advance(1, lambda acts: (acts[0].repeat(1, 100, 10, 10),), "one")
            assert_holds(store, range(5))
            store.discard([name(0)])
            store.put_many(samples([7]))
        with LmdbStore(mount / "store") as store:
            assert_holds(store, [1, 2, 3, 4, 7])
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_leftovers_of_an_unfinished_promotion_take_no_room(path):
    with LmdbStore(path) as store:
        store.put_many(samples(range(20)))

        def left():
            with store.folder.reading() as (tables, _):
                placed = [len(list(tables.placed(VALUES, generation))) for generation in (0, 1)]
            return placed, sorted(file.name for file in path.glob("*.bin"))

        with store.stage(1, "one") as staged:
            staged.put_many({name(n): sample(n, 2) for n in range(10)})
            staged._making.record()
            assert left() == ([20, 10], ["values-000000.bin", "values-000001.bin"])
        assert left() == ([20, 0], ["values-000000.bin"])
        store.advance(1, doubled, "one")
        assert left() == ([0, 20], ["values-000001.bin"])


def test_a_state_that_does_not_decode_is_corrupt(path):
    filled(path)
    with LmdbStore(path) as store:
        broken = replace(store.now(), codec="float99")
        store.folder.change(lambda tables, state: broken)
        with pytest.raises(StoreVersionError, match="float99"):
            len(store)


def test_a_folder_whose_name_is_no_text_holds_a_store(tmp_path):
    path = tmp_path / os.fsdecode(b"store-\xff")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("a file system of UTF-8 names")
    with LmdbStore(path) as store:
        store.put_many({b"a": (torch.ones(3),)})
    (path / "seal.json").unlink()  # then a process of its own reads it through first
    with LmdbStore(path) as store:
        assert store.keys() == [b"a"]
