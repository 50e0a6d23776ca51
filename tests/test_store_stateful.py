"""Every store against a plain dict: whatever is done to them, they hold what the dict holds."""

from __future__ import annotations

import shutil
import tempfile
from typing import ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamdrop.errors import StoreError
from streamdrop.store import LmdbStore, MemoryStore, TieredStore, verify
from streamdrop.testing.stores import doubled, name, sample
from streamdrop.types import SampleInfo

numbers = st.lists(st.integers(0, 7), unique=True, max_size=5)


def stream_of(key):
    return "odd" if key % 2 else "even"


def source_of(key, count):
    return b"%d %d" % (key, count)


class Machine(RuleBasedStateMachine):
    """Key and value number differ so that a replaced value shows; every promotion doubles."""

    limit: int | None = None

    def __init__(self):
        super().__init__()
        self.held, self.marks, self.dead = {}, {}, set()
        self.cut, self.count = 0, 0
        self.store = self.open()

    def put_into_model(self, keys):
        for key in keys:
            self.held.pop(key, None)
            self.held[key] = self.count
        while self.limit and len(self.held) > self.limit:
            del self.held[next(iter(self.held))]

    @rule(keys=numbers)
    def put(self, keys):
        self.count += 1
        values = {name(k): sample(k + 10 * self.count, 2**self.cut) for k in keys}
        info = {name(k): SampleInfo(stream=stream_of(k)) for k in keys}
        sources = {name(k): source_of(k, self.count) for k in keys}
        self.store.put_many(values, {name(k): self.count for k in keys}, info, sources)
        self.put_into_model(keys)

    @rule(keys=numbers)
    def discard(self, keys):
        self.store.discard([name(k) for k in keys])
        for key in keys:
            self.held.pop(key, None)

    @rule()
    def flush(self):
        self.store.flush()

    @precondition(lambda self: self.cut < 8)
    @rule(chunk=st.integers(1, 5))
    def advance(self, chunk):
        self.cut += 1
        self.store.advance(self.cut, doubled, f"v{self.cut}", chunk)

    @precondition(lambda self: self.cut < 8)
    @rule(early=st.booleans(), keys=numbers, commit=st.booleans(), gone=st.integers(0, 7))
    def stage(self, early, keys, commit, gone):
        with self.store.stage(self.cut + 1, f"v{self.cut + 1}") as staged:
            if early:
                self.put(keys)
            chosen = [k for k in keys if k in self.held]
            values = {name(k): sample(k + 10 * self.held[k], 2 ** (self.cut + 1)) for k in chosen}
            staged.put_many(values)
            self.discard([gone])
            self.holds()
            if not early:
                self.put(keys[:2])
            if commit:
                staged.commit(doubled, 2)
                self.cut += 1

    @precondition(lambda self: self.cut > 0)
    @rule(data=st.data(), chunk=st.integers(1, 5))
    def thaw(self, data, chunk):
        cut = data.draw(st.integers(0, self.cut))

        def embed(sources):
            made = [sample(k + 10 * n, 2**cut) for k, n in (map(int, s.split()) for s in sources)]
            return tuple(torch.stack(column) for column in zip(*made, strict=True))

        self.store.thaw(cut, embed, f"v{cut}", chunk)
        self.cut = cut

    @rule()
    def compact(self):
        if not isinstance(self.store, MemoryStore):
            self.store.compact()

    @rule()
    def mark(self):
        mark = self.store.mark()
        assert mark not in self.dead
        self.marks[mark] = dict(self.held)

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def rollback(self, data):
        mark = data.draw(st.sampled_from(sorted(self.marks)))
        self.store.rollback(mark)
        self.held = dict(self.marks[mark])
        self.dead |= {m for m in self.marks if m > mark}
        self.marks = {m: h for m, h in self.marks.items() if m <= mark}

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def release(self, data):
        mark = data.draw(st.sampled_from(sorted(self.marks)))
        self.store.release(mark)
        self.dead |= {m for m in self.marks if m < mark}
        self.marks = {m: h for m, h in self.marks.items() if m >= mark}

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def dead_marks_are_refused(self, data):
        with pytest.raises(StoreError):
            self.store.rollback(data.draw(st.sampled_from(sorted(self.dead))))

    @rule()
    def reopen(self):
        self.store = self.again()

    @invariant()
    def holds(self):
        assert self.store.cut == self.cut
        assert self.store.keys() == [name(k) for k in self.held]
        if self.held:
            got = self.store.get_many([name(k) for k in self.held])
            values = [sample(k + 10 * n, 2**self.cut) for k, n in self.held.items()]
            assert all(torch.equal(g, torch.stack(v)) for g, v in zip(got, zip(*values, strict=True), strict=True))
            keys = self.store.keys()
            assert self.store.get_targets(keys).tolist() == list(self.held.values())
            assert self.store.get_sources(keys) == [source_of(k, n) for k, n in self.held.items()]
        for stream in ("even", "odd"):
            assert self.store.keys(stream) == [name(k) for k in self.held if stream_of(k) == stream]

    def teardown(self):
        self.store.close()


class InMemory(Machine):
    def open(self):
        return MemoryStore(max_samples=self.limit)

    def again(self):
        other = self.open()
        other.restore(*self.store.state())
        return other


class OnDisk(Machine):
    options: ClassVar[dict] = {}

    def open(self):
        self.folder = getattr(self, "folder", None) or tempfile.mkdtemp()
        return self.kind(self.folder, max_samples=self.limit, **self.options)

    def kind(self, folder, **options):
        return LmdbStore(folder, **options)

    def again(self):
        self.store.close()
        found = verify(self.folder)
        assert found["problems"] == []
        assert found["samples"] == len(self.held)
        return self.open()

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.folder)


class Compressed(OnDisk):
    options: ClassVar[dict] = {"compression": "lz4"}


class Tiered(OnDisk):
    """Commits when it must."""

    options: ClassVar[dict] = {"commit_seconds": 3600}

    def kind(self, folder, **options):
        return TieredStore(folder, **options)


class TieredAtOnce(Tiered):
    """A commit is always under way."""

    options: ClassVar[dict] = {"commit_bytes": 1}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("machine", [InMemory, OnDisk, Compressed, Tiered, TieredAtOnce])
def test_store_equals_a_dict(machine, limit):
    kind = type(machine.__name__, (machine,), {"limit": limit})
    examples = 150 if machine is InMemory else 60
    run_state_machine_as_test(
        kind, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True)
    )
