"""Both stores against a plain dict: whatever is done to them, they hold what the dict holds."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamdrop.errors import StoreError
from streamdrop.store import LmdbStore, MemoryStore, verify
from streamdrop.testing.stores import doubled, name, sample

numbers = st.lists(st.integers(0, 7), unique=True, max_size=5)


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
        self.store.put_many(values, {name(k): self.count for k in keys})
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
            assert self.store.get_targets(self.store.keys()).tolist() == list(self.held.values())

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
    def open(self):
        self.folder = getattr(self, "folder", None) or tempfile.mkdtemp()
        return LmdbStore(self.folder, max_samples=self.limit)

    def again(self):
        self.store.close()
        found = verify(self.folder)
        assert found["problems"] == []
        assert found["samples"] == len(self.held)
        return self.open()

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("machine", [InMemory, OnDisk])
def test_store_equals_a_dict(machine, limit):
    kind = type(machine.__name__, (machine,), {"limit": limit})
    examples = 15 if machine is OnDisk else 60
    run_state_machine_as_test(
        kind, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True)
    )
