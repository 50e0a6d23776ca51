"""Real processes, killed: whatever the moment, the store opens as it was before or after the operation, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from streamdrop.errors import StoreError
from streamdrop.store import LmdbStore, verify
from streamdrop.store.environment import Environment
from streamdrop.testing.stores import doubled, name, sample

State = tuple[int, dict[int, int]]  # cut, {key: number of the operation that put it}


def values(state, keys, later=0):
    cut, held = state
    return {name(k): sample(k + 10 * held[k], 2 ** (cut + later)) for k in keys}


def put(store, state, keys, count):
    cut, held = state
    held = {**{k: n for k, n in held.items() if k not in keys}, **dict.fromkeys(keys, count)}
    if store is not None:
        store.put_many(values((cut, held), keys), {name(k): count for k in keys})
    return cut, held


def discard(store, state, keys, count):
    if store is not None:
        store.discard([name(k) for k in keys])
    return state[0], {k: n for k, n in state[1].items() if k not in keys}


def advance(store, state, keys, count):
    if store is not None:
        store.advance(state[0] + 1, doubled, f"v{state[0] + 1}", 2)
    return state[0] + 1, state[1]


def stage(store, state, keys, count):
    if store is not None:
        with store.stage(state[0] + 1, f"v{state[0] + 1}") as staged:
            staged.put_many(values(state, [k for k in keys if k in state[1]], 1))
            staged.commit(doubled, 2)
    return state[0] + 1, state[1]


def mark(store, state, keys, count):
    if store is not None:
        store.mark()
    return state


def there_and_back(store, state, keys, count):
    if store is not None:
        mark = store.mark()
        put(store, state, keys, count)
        store.rollback(mark)
        store.release(mark)
    return state


SCRIPT = [(put, range(6)), (put, range(4, 14)), (discard, [0, 5]), (advance, []), (mark, []), (put, [1, 2, 20]),
          (discard, [3, 4]), (stage, [1, 6, 7]), (there_and_back, [8, 30]), (advance, []), (put, range(9))]  # fmt: skip


def outcomes(states, done, plan):
    """What may be there when ``done`` operations were reported: before or after the next, or between its steps."""
    operation, keys, count = plan
    between = [put(None, states[done], keys, count)] if operation is there_and_back else []
    return [*states[done : done + 2], *between]


def spawn(work):
    """A forked child running ``work(report)``; returns its id and the end to read its reports from."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    try:
        work(lambda: os.write(theirs, b"."))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(child, ours):
    """How many reports it made and how it ended."""
    status = os.waitpid(child, 0)[1]
    done = len(os.read(ours, 65536))
    os.close(ours)
    return done, status


def assert_whole(path, *allowed):
    """The store is in one of the allowed states, every value in place; returns which."""
    try:
        assert verify(path)["problems"] == []
    except StoreError as error:
        if allowed[0] != (0, {}) or "never finished" not in str(error):
            raise
    with LmdbStore(path) as store:
        keys = store.keys()
        targets = store.get_targets(keys).tolist() if keys else []
        for cut, held in allowed:
            if (store.cut, keys, targets) == (cut, [name(k) for k in held], list(held.values())):
                break
        else:
            raise AssertionError(f"cut {store.cut}, {list(zip(keys, targets, strict=True))}: none of {allowed}")
        if keys:
            expected = zip(*values((cut, held), held).values(), strict=True)
            assert all(torch.equal(g, torch.stack(v)) for g, v in zip(store.get_many(keys), expected, strict=True))
    assert verify(path)["problems"] == []
    return cut, held


def die_at(commit):
    """From now on the process kills itself before its n-th commit."""
    seen, run = [0], Environment._commit

    def patched(self, work, need):
        seen[0] += 1
        if seen[0] == commit:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, work, need)

    Environment._commit = patched


@pytest.mark.slow
def test_killed_at_every_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.writing.RECORDS", 3)
    monkeypatch.setattr("streamdrop.store.making.BUFFER_BYTES", 300)
    monkeypatch.setattr("streamdrop.store.tables.BATCH", 3)
    monkeypatch.setattr("streamdrop.store.rows.PART_BYTES", 300)
    states = [(0, {})]
    for count, (operation, keys) in enumerate(SCRIPT):
        states.append(operation(None, states[-1], keys, count))

    def work(report):
        die_at(commit)
        with LmdbStore(path) as store:
            for count, (operation, keys) in enumerate(SCRIPT):
                operation(store, states[count], keys, count)
                report()

    for commit in range(1, 1000):
        path = tmp_path / str(commit)
        done, status = finish(*spawn(work))
        if not os.WIFSIGNALED(status):
            break
        if (path / "data.mdb").exists():
            count = min(done, len(SCRIPT) - 1)
            assert_whole(path, *outcomes(states, done, (*SCRIPT[count], count)))
    assert os.WEXITSTATUS(status) == 0
    assert done == len(SCRIPT)
    assert commit > 30


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for the disk at every step
@pytest.mark.parametrize("kind", ["lmdb", "tiered"])
def test_killed_at_random_moments(kind, tmp_path):
    script = Path(__file__).with_name("crash_store.py")
    asked = ["--kills", "40", "--kind", kind, "--folder", tmp_path]
    done = subprocess.run([sys.executable, script, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"40 kills of a {kind} store" in done.stdout
