from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
import torch

from streamdrop.errors import ConfigError, MissingKeyError
from streamdrop.store.prefetch import read_ahead
from streamdrop.types import SampleInfo

SECONDS = 120
"""How long a test waits for what must happen: reached only when something is broken."""


def key(number):
    return number.to_bytes(2, "big")


class DictStore:
    """As much of a store as reading needs; notes what is read, and in which thread."""

    def __init__(self, count=40, before=lambda keys: None):
        self.values = {key(i): torch.full((3, 2), float(i)) for i in range(count)}
        self.read, self.threads, self.before = [], set(), before
        self.lock = threading.Lock()

    def get_many(self, keys):
        self.read.append(list(keys))
        self.threads.add(threading.current_thread())
        self.before(keys)
        return (torch.stack(self.find(keys)), torch.stack(self.find(keys))[:, 0].half())

    def find(self, keys):
        with self.lock:
            if missing := [k for k in keys if k not in self.values]:
                raise MissingKeyError(f"{missing} are not in the store")
            return [self.values[k] for k in keys]

    def get_targets(self, keys):
        return torch.tensor([int.from_bytes(k, "big") for k in keys])

    def get_info(self, keys):
        return [SampleInfo(weight=float(int.from_bytes(k, "big"))) for k in keys]


class ReadingInto(DictStore):
    """Offers ``read_into``; remembers whose memory it filled."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.filled, self.made = [], 0

    def read_into(self, keys, buffers):
        fresh = self.get_many(keys)
        if buffers is None or [b.shape for b in buffers] != [t.shape for t in fresh]:
            self.made += 1
            buffers = fresh
        else:
            for buffer, tensor in zip(buffers, fresh, strict=True):
                buffer.copy_(tensor)
        self.filled.append(buffers[0].data_ptr())
        return tuple(buffers)


def batches(*sizes):
    """Keys 0, 1, 2, … in batches of ``sizes``."""
    numbers = iter(range(sum(sizes)))
    return [[key(next(numbers)) for _ in range(size)] for size in sizes]


OTHERS = set()
"""Readers that other tests of this process have left."""


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead") and t not in OTHERS]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    OTHERS.update(readers())
    yield
    assert not readers()


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", [DictStore, ReadingInto])
def test_batches_come_whole_and_in_order_whatever_the_depth(kind, depth):
    order = batches(4, 4, 5, 1, 3, 4)
    store = kind()
    seen = []
    for got in read_ahead(store, order, depth):
        wanted = torch.tensor([int.from_bytes(k, "big") for k in got.keys])
        assert torch.equal(got.activations[0], wanted[:, None, None].expand(-1, 3, 2).float())
        assert torch.equal(got.activations[1], wanted[:, None].expand(-1, 2).half())
        assert torch.equal(got.targets, wanted)
        assert [info.weight for info in got.info] == wanted.tolist()
        seen.append(got.keys)
    assert seen == order == store.read


def test_infos_are_read_only_when_asked_for():
    store = DictStore()
    store.get_info = None
    assert [got.info for got in read_ahead(store, batches(2, 2), info=False)] == [[], []]


def test_an_empty_order_gives_nothing():
    assert list(read_ahead(DictStore(), [])) == []


def test_a_negative_depth_is_refused_at_once():
    with pytest.raises(ConfigError, match="at least 0"):
        read_ahead(DictStore(), [], depth=-1)


def test_no_random_state_is_touched():
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(read_ahead(ReadingInto(), batches(4, 4, 4)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


# ---------------------------------------------------------------- who reads, and when


def test_the_next_batches_are_read_while_the_caller_computes():
    ready = threading.Event()
    store = DictStore(before=lambda keys: ready.set() if keys == [key(2)] else None)
    with closing(read_ahead(store, batches(1, 1, 1, 1), depth=2)) as reading:
        next(reading)
        assert ready.wait(SECONDS)  # the third is read although nobody asked for the second yet
        assert store.read[3:] == []
    assert store.threads.isdisjoint({threading.current_thread()})
    assert len(store.threads) == 1


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_order_is_drawn_in_the_callers_thread_and_no_further_than_depth(depth):
    drawn = []

    def order():
        for batch in batches(*[1] * 10):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(batch)
            yield batch

    for number, _ in enumerate(read_ahead(DictStore(), order(), depth), start=1):
        assert len(drawn) == min(10, number + depth)


def test_depth_0_reads_in_line():
    store = DictStore()
    list(read_ahead(store, batches(2, 2), 0))
    assert store.threads == {threading.current_thread()}


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_buffers_are_used_again_but_never_before_the_next_batch_is_asked_for(depth):
    store = ReadingInto(100)
    sizes = [4] * 12 + [3, 1, 4, 4]
    for got in read_ahead(store, batches(*sizes), depth):
        assert torch.equal(got.activations[0][:, 0, 0].long(), got.targets)
    assert store.made == len(set(store.filled)) == depth + 1
    assert len(store.filled) == len(sizes)


def test_the_present_batch_stays_while_all_that_may_be_is_read_ahead():
    ahead = threading.Event()
    store = ReadingInto(before=lambda keys: ahead.set() if keys == [key(5)] else None)
    with closing(read_ahead(store, batches(*[1] * 9), depth=2)) as reading:
        for _ in range(3):
            present = next(reading)
        assert present.activations[0].unique().tolist() == [2]
        next(reading)
        assert ahead.wait(SECONDS)


def test_a_larger_batch_gets_memory_of_its_own():
    store = ReadingInto()
    assert [len(got.activations[0]) for got in read_ahead(store, batches(2, 2, 3, 2), depth=0)] == [2, 2, 3, 2]
    assert store.made == 2


def test_a_store_that_moves_on_meanwhile_gives_its_own_tensors():
    class Moving(ReadingInto):
        def get_many(self, keys):
            full = super().get_many(keys)
            return full if len(self.read) < 3 else (full[0][:, :1], full[1])

    shapes = [tuple(got.activations[0].shape) for got in read_ahead(Moving(), batches(2, 2, 2, 2), depth=0)]
    assert shapes == [(2, 3, 2), (2, 3, 2), (2, 1, 2), (2, 1, 2)]


def test_pinned_memory_is_made_once_per_buffer(monkeypatch):
    pinned = []

    def pin(tensor):
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    store = ReadingInto()
    for got in read_ahead(store, batches(*[2] * 8), depth=1, pin=True):
        assert {t.data_ptr() for t in (*got.activations, got.targets)} <= set(pinned)
    assert len(pinned) == 2 * 2 + 8  # two tensors in two buffer sets, and every batch's targets
    assert store.threads.isdisjoint({threading.current_thread()})


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_an_error_of_the_order_comes_after_the_batches_before_it(depth):
    def order():
        yield from batches(1, 1, 1)
        raise ZeroDivisionError("a sampler's mistake")

    reading = read_ahead(DictStore(), order(), depth)
    assert [next(reading).keys for _ in range(3)] == batches(1, 1, 1)
    with pytest.raises(ZeroDivisionError):
        next(reading)
    assert list(reading) == []


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_error_of_the_store_comes_at_its_batch(depth):
    store = DictStore()
    del store.values[key(2)]
    reading = read_ahead(store, batches(1, 1, 1, 1, 1, 1, 1), depth)
    assert [next(reading).keys for _ in range(2)] == [[key(0)], [key(1)]]
    with pytest.raises(MissingKeyError, match="not in the store"):
        next(reading)
    assert not readers()
    assert len(store.read) <= 2 + depth + 1


@pytest.mark.parametrize("depth", [0, 2])
def test_keys_may_vanish_and_samples_be_written_between_batches(depth):
    store = DictStore()
    seen = []
    with pytest.raises(MissingKeyError):  # noqa: PT012
        for number, got in enumerate(read_ahead(store, batches(*[1] * 9), depth)):
            seen += got.targets.tolist()
            with store.lock:
                store.values[key(100 + number)] = torch.zeros(3, 2)
                if number == 2:
                    del store.values[key(7)]  # further ahead than any depth here
    assert seen == list(range(7))


def test_closing_early_drops_what_was_not_begun():
    begun, go = threading.Event(), threading.Event()

    def before(keys):
        if keys == [key(1)]:
            begun.set()
            assert go.wait(SECONDS)

    store = DictStore(before=before)
    reading = read_ahead(store, batches(*[1] * 9), depth=3)
    next(reading)
    assert begun.wait(SECONDS)
    threading.Timer(0, go.set).start()
    reading.close()
    assert not readers()
    assert store.read[:2] == [[key(0)], [key(1)]]
    assert len(store.read) < 9


def test_an_error_in_the_callers_loop_ends_the_thread():
    store = DictStore()
    with pytest.raises(RuntimeError, match="the loss"):  # noqa: PT012
        for _ in read_ahead(store, batches(*[1] * 9)):
            raise RuntimeError("the loss")
    assert not readers()


def test_an_interrupt_while_waiting_ends_the_thread():
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals reach the main thread only: run without a threaded runner")

    def before(keys):
        if keys == [key(1)]:
            signal.pthread_kill(main.ident, signal.SIGINT)

    reading = read_ahead(DictStore(before=before), batches(*[1] * 9), depth=2)
    with pytest.raises(KeyboardInterrupt), closing(reading):  # noqa: PT012
        list(reading)
        threading.Event().wait(SECONDS)  # where it arrives if the thread was slower than we
    assert not readers()


@pytest.mark.slow
def test_a_generator_nobody_closes_does_not_keep_the_interpreter():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_prefetch import DictStore, batches, read_ahead\n"
        "reading = read_ahead(DictStore(), batches(*[1] * 9))\n"
        "next(reading)\n"
        "raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=250)
    assert "KeyboardInterrupt" in done.stderr
