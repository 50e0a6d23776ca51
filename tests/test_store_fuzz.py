"""Damaged files: a clear error, or what was there; never a crash of the process, never a wrong value."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch

from streamdrop.errors import MissingKeyError, StoreError
from streamdrop.store import LmdbStore, Retention, repair, verify
from streamdrop.testing.stores import name, sample
from streamdrop.types import SampleInfo

RETENTION = Retention(policy="class-balanced", stream_samples=20)
COUNT = 24


def info_of(number):
    return SampleInfo(number / 2, number < 2, number % 3, f"cam{number % 2}")


def source_of(number):
    return b"source %d " % number * 40


def fill(path):
    """A store with all it can have: targets, infos, sources, a later cut, held samples, ranks, one promotion begun."""
    with LmdbStore(path, retention=RETENTION) as store:
        keys = [name(n) for n in range(COUNT)]
        numbers = dict(enumerate(keys))
        store.put_many(
            {key: sample(n) for n, key in numbers.items()},
            list(range(COUNT)),
            {key: info_of(n) for n, key in numbers.items()},
            {key: source_of(n) for n, key in numbers.items()},
        )
        store.advance(1, lambda batch: batch, "one")
        store.mark()
        store.discard([name(3), name(4)])


def check_what_comes(path):
    """Use the store in every way; what it gives must be what was put."""
    with LmdbStore(path, retention=RETENTION) as store:
        listed = store.keys()
        keys = [key for key in listed if not key.startswith(b"new")]
        for key in keys:
            number = int(key.split(b"/")[1])
            assert key == name(number)
            try:
                got = store.get_many([key])
            except MissingKeyError:
                continue
            assert all(torch.equal(a[0], b) for a, b in zip(got, sample(number), strict=True))
            assert store.get_targets([key]).tolist() == [number]
            assert store.get_info([key]) == [info_of(number)]
            assert store.get_sources([key]) == [source_of(number)]
        for stream in ("cam0", "cam1", ""):
            assert set(store.keys(stream)) <= {name(n) for n in range(COUNT) if info_of(n).stream == stream}
        store.put_many({b"new/1": sample(50)}, info={b"new/1": SampleInfo(stream="cam1", label=1)})
        store.discard(keys[-2:])
        store.rollback(store.mark())
        store.advance(2, lambda batch: batch, "two")
        store.compact()


def outcome(path):
    """How a process of its own fares: "fine", an error of ours, or what should never be."""
    note = path.with_suffix(".note")
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            check_what_comes(path)
            note.write_text("fine")
        except StoreError as error:
            note.write_text(type(error).__name__)
        except BaseException:
            note.write_text("WRONG " + traceback.format_exc())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else note.read_text()


def flip(data, rng):
    used = [at for at, byte in enumerate(data) if byte]
    for _ in range(rng.choice([1, 1, 2, 5])):
        data[rng.choice(used)] ^= 1 << rng.randrange(8)


def cut_off(data, rng):
    del data[rng.randrange(len(data)) :]


def zero_a_page(data, rng):
    at = rng.randrange(0, len(data), 4096)
    data[at : at + 4096] = bytes(len(data[at : at + 4096]))


def swap_pages(data, rng):
    a, b = (rng.randrange(0, max(1, len(data) // 4096)) * 4096 for _ in range(2))
    data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]


def scramble(data, rng):
    data[:] = rng.randbytes(len(data))


DAMAGE = [flip, flip, flip, flip, cut_off, zero_a_page, swap_pages, scramble]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["data.mdb", "values", "sources", "seal.json", "writer.lock"])
def test_damage_is_an_error_or_harmless(file, tmp_path):
    fill(tmp_path / "whole")
    rng, seen = random.Random(file), Counter()
    cases = int(os.environ.get("STREAMDROP_FUZZ", "16" if file == "data.mdb" else "8"))
    for case in range(cases):
        path = tmp_path / str(case)
        shutil.copytree(tmp_path / "whole", path)
        (victim,) = path.glob(f"{file}*") if file in ("values", "sources") else [path / file]
        data = bytearray(victim.read_bytes() or b"x")
        rng.choice(DAMAGE)(data, rng)
        victim.write_bytes(data)
        found = outcome(path)
        assert not found.startswith(("WRONG", "killed")), found
        seen[found] += 1
        shutil.rmtree(path)
    if file in ("seal.json", "writer.lock"):
        assert set(seen) == {"fine"}
    else:
        assert seen.total() > seen["fine"]


@pytest.mark.parametrize("file", ["values", "sources"])
def test_a_missing_slab_is_said(file, tmp_path):
    fill(tmp_path / "s")
    (victim,) = (tmp_path / "s").glob(f"{file}*")
    victim.unlink()
    with pytest.raises(StoreError, match=r"cut off at 0"):
        LmdbStore(tmp_path / "s")


def test_rows_of_another_store_are_refused(tmp_path):
    for place in ("a", "b"):
        with LmdbStore(tmp_path / place) as store:
            store.put_many({name(n): sample(n + 100 * (place == "b")) for n in range(5)})
    shutil.copy(tmp_path / "b" / "values-000000.bin", tmp_path / "a")
    with LmdbStore(tmp_path / "a") as store, pytest.raises(StoreError, match="have changed"):
        store.get_many([name(1)])


def test_repair_drops_what_is_damaged_and_keeps_the_rest(tmp_path):
    fill(tmp_path / "s")
    (values,) = (tmp_path / "s").glob("values*")
    data = bytearray(values.read_bytes())
    data[10] ^= 1
    values.write_bytes(data)
    assert len(verify(tmp_path / "s")["problems"]) == 1
    dropped = repair(tmp_path / "s")["dropped"]
    assert dropped == [repr(name(0))]
    assert verify(tmp_path / "s")["problems"] == []
    with LmdbStore(Path(tmp_path / "s")) as store:
        assert len(store) == COUNT - 3
