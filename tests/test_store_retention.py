"""What bounded stores keep: ``retain`` against a slow model of its contract, and stores that use it."""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.errors import ConfigError, StoreFullError, StoreVersionError
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.store.retention import POLICIES, Candidate, Retention, retain
from streamdrop.types import SampleInfo

ROW = 8  # bytes of a sample as ``values`` makes them
SAMPLED = ("reservoir", "class-balanced")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["memory", "lmdb", "tiered", "tiered, committing at once"])
def make(request, tmp_path):
    made, numbers = [], count()

    def make_store(max_samples=None, clock=None, **limits):
        options = {"retention": Retention(max_samples, **limits), "clock": clock or Clock()}
        path = tmp_path / str(next(numbers))
        kinds = {
            "memory": lambda: MemoryStore(**options),
            "lmdb": lambda: LmdbStore(path, **options),
            "tiered": lambda: TieredStore(path, commit_seconds=3600, **options),
            "tiered, committing at once": lambda: TieredStore(path, commit_bytes=1, **options),
        }
        made.append(kinds[request.param]())
        return made[-1]

    make_store.kind = request.param
    yield make_store
    for store in made:
        store.close()


def values(keys):
    return {key: (torch.tensor([zlib.crc32(key) % 1000, 7], dtype=torch.int32),) for key in keys}


def put(store, infos, sources=None):
    store.put_many(values(infos), info=infos, sources=sources)


def named(numbers, prefix="k", **info):
    return {f"{prefix}{n}".encode(): SampleInfo(**info) for n in numbers}


# --- the model: everything is looked at again for every sample that leaves


def slow(retention, live, arriving, now):
    """The contract of ``retain`` on a list of candidates; None for StoreFullError."""
    replaced = {c.key for c in arriving}
    stock = [c for c in live if c.key not in replaced] + list(arriving)
    if arriving and not has_room(retention, stock, arriving):
        return None
    gone = [c for c in stock if arriving and not c.pinned and now - c.arrived > or_endless(retention.max_age)]
    left = [c for c in stock if c not in gone]
    for stream in {c.pool[0] for c in stock}:
        while sum(c.pool[0] == stream for c in left) > or_endless(retention.stream_samples):
            if not leave(left, gone, stream):
                break
    hopeful = any(c in left and not c.pinned for c in arriving)
    while len(left) > or_endless(retention.max_samples) or nbytes(left) > or_endless(retention.max_bytes):
        if not leave(left, gone):
            break
    crowded = nbytes(left) > or_endless(retention.max_bytes) or (hopeful and all(c.pinned for c in left))
    if arriving and crowded:
        return None
    return [c for c in arriving if c in left], {c.key for c in gone if c not in arriving}


def or_endless(limit):
    return math.inf if limit is None else limit


def nbytes(candidates):
    return sum(c.nbytes for c in candidates)


def has_room(retention, stock, arriving):
    for limit, stream in [(retention.max_samples, None), *((retention.stream_samples, c.pool[0]) for c in arriving)]:
        pinned = sum(c.pinned for c in stock if stream in (None, c.pool[0]))
        free = any(not c.pinned for c in arriving if stream in (None, c.pool[0]))
        if limit is not None and pinned + free > limit:
            return False
    return all(c.nbytes <= or_endless(retention.max_bytes) for c in arriving)


def leave(left, gone, stream=None):
    free = [c for c in left if not c.pinned]
    if stream is None and free:
        sizes = Counter(c.pool[0] for c in free)
        stream = min(sizes, key=lambda s: (-sizes[s], s))
    free = [c for c in free if c.pool[0] == stream]
    if not free:
        return False
    sizes = Counter(c.pool[1] for c in free)
    label = min(sizes, key=lambda v: (-sizes[v], v is not None, v or 0))
    victim = max((c for c in free if c.pool[1] == label), key=lambda c: c.rank)
    left.remove(victim)
    gone.append(victim)
    return True


class ListShelf:
    """A shelf that counts what is taken from it."""

    def __init__(self, live):
        self.live, self.taken = list(live), 0

    @property
    def count(self):
        return len(self.live)

    def nbytes(self):
        return nbytes(self.live)

    def pools(self):
        free, pinned = (Counter(c.pool for c in self.live if c.pinned == p) for p in (False, True))
        return {pool: (free[pool], pinned[pool]) for pool in free | pinned}

    def candidates(self, pool):
        return self._count(sorted((c for c in self._free() if c.pool == pool), key=lambda c: -c.rank))

    def aged(self):
        return self._count(sorted(self._free(), key=lambda c: c.seq))

    def find(self, key):
        return next((c for c in self.live if c.key == key), None)

    def _free(self):
        return [c for c in self.live if not c.pinned]

    def _count(self, candidates):
        for candidate in candidates:
            self.taken += 1
            yield candidate


infos = st.builds(
    SampleInfo,
    pinned=st.sampled_from([False, False, False, True]),
    label=st.sampled_from([None, 0, 1, -1]),
    stream=st.sampled_from(["", "a", "b"]),
)
limits = st.none() | st.integers(1, 8)
retentions = st.builds(
    Retention,
    max_samples=limits,
    max_bytes=st.none() | st.integers(4, 60),
    max_age=st.none() | st.integers(1, 12),
    policy=st.sampled_from(POLICIES),
    stream_samples=limits,
    seed=st.integers(0, 3),
)
batches = st.dictionaries(st.integers(0, 14), st.tuples(infos, st.integers(1, 9)), max_size=8)


def candidates_of(retention, batch, first, arrived):
    return [
        retention.candidate(b"k%d" % key, seq, size, info, float(arrived(seq)))
        for seq, (key, (info, size)) in enumerate(batch.items(), first)
    ]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(retention=retentions, live=batches, arriving=batches, now=st.integers(0, 25))
def test_retain_keeps_its_contract(retention, live, arriving, now):
    before = candidates_of(retention, live, 1, lambda seq: seq)
    new = candidates_of(retention, arriving, 20, lambda seq: now - seq % 3 * 4)
    expected = slow(retention, before, new, now)
    if expected is None:
        with pytest.raises(StoreFullError, match=r"raise the|discard some"):
            retain(retention, ListShelf(before), new, now)
    else:
        stay, gone = retain(retention, ListShelf(before), new, now)
        assert (stay, set(gone)) == expected
        assert len(gone) == len(set(gone))


def test_a_plain_limit_takes_no_more_than_it_evicts():
    retention = Retention(max_samples=100, max_age=1e6)
    live = [retention.candidate(b"%d" % n, n, 5, SampleInfo(), n) for n in range(100)]
    shelf = ListShelf(live)
    new = [retention.candidate(b"new%d" % n, 100 + n, 5, SampleInfo(), 100 + n) for n in range(7)]
    stay, gone = retain(retention, shelf, new, 200)
    assert stay == new
    assert gone == [b"%d" % n for n in range(7)]  # the oldest first
    assert shelf.taken <= 7 + 2


def test_no_limit_asks_nothing():
    new = [Candidate(b"k", 1, 5, 0, ("", None), 0.0, False)]
    assert retain(Retention(policy="reservoir"), None, new, 0.0) == (new, [])


@pytest.mark.parametrize(
    "options",
    [
        {"max_samples": 0},
        {"max_samples": 1.5},
        {"max_bytes": -1},
        {"stream_samples": True},
        {"max_age": 0},
        {"max_age": float("nan")},
        {"policy": "newest"},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_impossible_retentions_are_refused(options):
    with pytest.raises(ConfigError, match=r"at least 1|seconds above 0|valid: oldest|from 0 to"):
        Retention(**options)


def test_one_way_to_say_how_many():
    assert Retention.of(3, None) == Retention(3)
    with pytest.raises(ConfigError, match="give one of them"):
        MemoryStore(3, retention=Retention(3))
    with pytest.raises(ConfigError, match="not a Retention"):
        MemoryStore(retention={"max_samples": 3})


# --- what a reservoir promises


def test_ranks_stay_the_same_from_release_to_release():
    assert Retention(policy="reservoir", seed=5).rank(b"cam/7", 1) == 5509606247071270202
    assert [Retention().rank(b"cam/7", seq) for seq in (0, 3)] == [2**64 - 1, 2**64 - 4]


def test_a_reservoir_is_uniform():
    keys, places, seeds = [b"cam/%06d" % n for n in range(40)], 10, 1500
    kept = Counter()
    for seed in range(seeds):
        retention = Retention(places, policy="reservoir", seed=seed)
        new = [retention.candidate(key, n, 1, SampleInfo(), 0.0) for n, key in enumerate(keys)]
        kept.update(c.key for c in retain(retention, ListShelf([]), new, 0.0)[0])
    share = places / len(keys)
    spread = seeds * share * (1 - share) * len(keys) / (len(keys) - 1)
    squares = sum((kept[key] - seeds * share) ** 2 for key in keys) / spread
    assert 15 < squares < 75  # chi-square of 39 degrees of freedom: 99.9 % lie between


@pytest.mark.parametrize(
    "limits",
    [
        {"max_samples": 12, "policy": "reservoir"},
        {"max_samples": 12, "policy": "class-balanced"},
        {"max_samples": 15, "policy": "class-balanced", "stream_samples": 8},
        {"policy": "reservoir", "stream_samples": 5},
        {"max_bytes": 12 * ROW, "policy": "reservoir"},
    ],
)
def test_sampled_sets_do_not_depend_on_how_samples_arrive(make, limits):
    draw = random.Random(4)
    arrivals = [
        (f"k{n}".encode(), SampleInfo(pinned=n % 20 == 3, label=min(9, int(draw.expovariate(1))), stream="abc"[n % 3]))
        for n in range(40)
    ]
    kept = []
    for shuffled, size in [(False, 40), (False, 2), (True, 7), (True, 1)][: 4 if make.kind == "memory" else 3]:
        order = draw.sample(arrivals, len(arrivals)) if shuffled else arrivals
        store = make(**limits)
        for start in range(0, len(order), size):
            put(store, dict(order[start : start + size]))
        kept.append(set(store.keys()))
    assert all(found == kept[0] for found in kept)


@pytest.mark.parametrize("limits", [{"max_samples": 12}, {"max_samples": 15, "stream_samples": 6}])
def test_the_newest_stay_however_puts_are_cut(make, limits):
    arrivals = [(f"k{n}".encode(), SampleInfo(pinned=n == 3, stream="aab"[n % 3])) for n in range(36)]
    kept = []
    for size in (36, 1, 7):
        store = make(**limits)
        for start in range(0, 36, size):
            put(store, dict(arrivals[start : start + size]))
        kept.append(store.keys())
    assert kept[0] == kept[1] == kept[2]
    assert b"k3" in kept[0]
    assert b"k35" in kept[0]


def test_seeds_choose_different_samples(make):
    kept = []
    for seed in (0, 0, 1):
        store = make(10, policy="reservoir", seed=seed)
        put(store, named(range(100)))
        kept.append(store.keys())
    assert kept[0] == kept[1] != kept[2]


def test_a_reservoir_may_refuse_what_arrives_again(make):
    store = make(5, policy="reservoir")
    put(store, named(range(50)))
    kept = store.keys()
    refused = next(key for key in named(range(50)) if key not in kept)
    put(store, {refused: SampleInfo()})
    assert store.keys() == kept
    put(store, {refused: SampleInfo(pinned=True)})
    assert refused in store
    put(store, {refused: SampleInfo(), b"other": SampleInfo(pinned=True)})  # it replaces itself, and is let go
    assert refused not in store
    assert len(store) == 5


# --- classes, streams, bytes, ages


def test_classes_share_the_places_of_a_skewed_stream(make):
    draw = random.Random(0)
    store = make(30, policy="class-balanced")
    labels = [draw.choices([0, 1, 2, None], [90, 7, 2, 1])[0] for _ in range(600)]
    arrivals = {f"k{n}".encode(): SampleInfo(label=label) for n, label in enumerate(labels)}
    keys = list(arrivals)
    for start in range(0, 600, 32):
        put(store, {key: arrivals[key] for key in keys[start : start + 32]})
    came, kept = Counter(labels), Counter(info.label for info in store.get_info(store.keys()))
    assert sum(kept.values()) == 30
    crowded = {label for label in came if kept[label] < came[label]}
    assert {0, 1} <= crowded
    assert all(kept[label] >= max(kept.values()) - 1 for label in crowded)  # the rare are kept whole, the others alike


def test_equal_classes_give_way_in_order_of_labels(make):
    store = make(4, policy="class-balanced")
    for prefix, label in [("x", None), ("y", 1), ("z", -1)]:
        put(store, named(range(2), prefix, label=label))
    kept = Counter(info.label for info in store.get_info(store.keys()))
    assert kept == {None: 1, -1: 1, 1: 2}


def test_quotas_hold_within_each_stream(make):
    store = make(stream_samples=5)
    put(store, named(range(3), "b", stream="b"))
    put(store, named(range(2), "pin", stream="a", pinned=True))
    for n in range(0, 40, 8):
        put(store, named(range(n, n + 8), "a", stream="a"))
    assert store.keys(stream="b") == [b"b0", b"b1", b"b2"]
    assert store.keys(stream="a") == [b"pin0", b"pin1", b"a37", b"a38", b"a39"]
    put(store, named(range(2, 5), "pin", stream="a", pinned=True))
    before = store.keys()
    with pytest.raises(StoreFullError, match="stream_samples=5 of stream 'a'"):
        put(store, named([99], "a", stream="a"))
    assert store.keys() == before
    put(store, named(range(9), "c", stream="c"))
    assert len(store.keys(stream="c")) == 5


def test_a_sample_put_again_is_its_streams_newest(make):
    store = make(stream_samples=3)
    put(store, named(range(3)))
    put(store, named([1]))
    put(store, named([3]))
    put(store, named([4]))
    assert store.keys() == [b"k1", b"k3", b"k4"]


def test_what_left_is_forgotten():
    store = MemoryStore(retention=Retention(100, policy="reservoir"))
    put(store, named(range(50)))
    for n in range(50, 1000):
        put(store, named([n]))
        store.discard(named([n]))
    assert store.keys() == list(named(range(50)))
    assert sum(len(heap) for heap in store._shelf._heaps.values()) < 200  # else a long run would fill the memory


@pytest.mark.parametrize("policy", POLICIES)
def test_streams_share_what_all_of_them_may_keep(make, policy):
    store = make(20, stream_samples=100, policy=policy)
    put(store, named(range(6), "b", stream="b"))
    put(store, named(range(70), "a", stream="a"))
    assert [len(store.keys(stream=s)) for s in "abc"] == [14, 6, 0]
    for n in range(0, 50, 5):
        put(store, named(range(n, n + 5), "c", stream="c"))
    assert [len(store.keys(stream=s)) for s in "abc"] == [7, 6, 7]


def test_bytes_count_rows_and_sources(make):
    store = make(max_bytes=10 * ROW)
    put(store, named(range(12)))
    assert store.keys() == list(named(range(2, 12)))
    put(store, named([20]), {b"k20": bytes(3 * ROW)})
    assert store.keys() == [*named(range(6, 12)), b"k20"]
    put(store, named([21]))
    assert store.keys() == [*named(range(7, 12)), b"k20", b"k21"]
    store.discard([b"k20"])
    put(store, named(range(30, 34)))
    assert store.keys() == [*named(range(7, 12)), b"k21", *named(range(30, 34))]
    put(store, named([21]), {b"k21": bytes(2 * ROW)})
    assert store.keys() == [*named(range(9, 12)), *named(range(30, 34)), b"k21"]


def test_what_never_fits_is_refused_whole(make):
    store = make(max_bytes=3 * ROW)
    put(store, named([0], pinned=True))
    put(store, named([1]))
    with pytest.raises(StoreFullError, match=rf"'k3' takes {4 * ROW} bytes of max_bytes={3 * ROW}"):
        put(store, named([2, 3]), {b"k3": bytes(3 * ROW)})
    with pytest.raises(StoreFullError, match=f"pinned samples of {ROW} bytes leave no room among max_bytes"):
        put(store, named([2]), {b"k2": bytes(2 * ROW)})
    put(store, named([4, 5], pinned=True))
    with pytest.raises(StoreFullError, match="no room"):
        put(store, named([6], pinned=True))
    assert store.keys() == [b"k0", b"k4", b"k5"]


def test_larger_rows_of_a_later_cut_leave_fewer_room(make):
    store = make(max_bytes=6 * ROW)
    put(store, named([0], pinned=True))
    put(store, named(range(1, 6)))
    mark = store.mark()
    store.advance(1, lambda acts: (acts[0].repeat(1, 2),), "one")
    assert store.keys() == [b"k0", b"k4", b"k5"]
    store.rollback(mark)
    assert store.keys() == list(named(range(6)))
    store.advance(2, lambda acts: (acts[0][:, :2],), "two")
    assert store.keys() == list(named(range(6)))


def test_the_aged_leave_when_something_is_put(make):
    clock = Clock()
    store = make(max_age=10.0, clock=clock)
    put(store, named([0], pinned=True))
    put(store, named([1, 2]))
    clock.now += 6
    put(store, named([3, 1]))
    clock.now += 5
    assert len(store) == 4
    put(store, named([4]))
    assert store.keys() == [b"k0", b"k3", b"k1", b"k4"]
    store.advance(1, lambda acts: acts, "one")
    clock.now += 100
    put(store, named([5]))
    assert store.keys() == [b"k0", b"k5"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollback_returns_what_was_kept_at_the_mark(make, policy):
    store = make(8, policy=policy, stream_samples=6)
    twin = make(8, policy=policy, stream_samples=6)
    for n in range(4):
        for each in (store, twin):
            put(each, named(range(5 * n, 5 * n + 5), stream="ab"[n % 2], label=n))
    kept, mark = store.keys(), store.mark()
    put(store, named(range(100, 120), stream="c"))
    store.discard(kept[:3])
    put(store, named([0, 7, 110], stream="a", pinned=True))
    store.rollback(mark)
    assert store.keys() == kept
    for each in (store, twin):
        put(each, named(range(30, 40), stream="c", label=7))
    assert store.keys() == twin.keys()


def test_a_restored_store_goes_on_as_if_nothing_had_been():
    clock = Clock()
    options = {"retention": Retention(12, max_age=50, policy="class-balanced", stream_samples=8), "clock": clock}
    one, two = MemoryStore(**options), MemoryStore(**options)
    for n in range(12):
        clock.now += 10
        batch = {f"{n}/{i}".encode(): SampleInfo(label=i % 3, stream="ab"[i % 2], pinned=n + i == 0) for i in range(5)}
        for store in (one, two):
            put(store, batch, {key: key for key in batch if n % 2})
        again = MemoryStore(**options)
        again.restore(*two.state())
        two = again
        assert one.keys() == two.keys()
        assert one.get_sources(one.keys()) == two.get_sources(two.keys())


def test_a_state_of_the_first_release_is_refused():
    with pytest.raises(StoreVersionError, match=r"0\.1"):
        MemoryStore().restore({}, {"state": {"format": 1, "codec": "float32"}})


# --- stores against the model


steps = st.one_of(
    st.tuples(st.just("put"), batches),
    st.tuples(st.just("discard"), st.sets(st.integers(0, 14), max_size=4)),
    st.tuples(st.just("wait"), st.integers(1, 8)),
    st.tuples(st.just("mark"), st.none()),
    st.tuples(st.just("rollback"), st.none()),
)


class Model:
    """A dict beside a store: what ``slow`` keeps of the same puts and discards."""

    def __init__(self, retention, clock):
        self.retention, self.clock, self.seq = retention, clock, 0
        self.live, self.marked = {}, {}

    def put(self, batch):
        """Whether there is room."""
        sized = {key: (info, ROW + size) for key, (info, size) in batch.items()}
        new = candidates_of(self.retention, sized, self.seq + 1, lambda _: self.clock.now)
        found = slow(self.retention, list(self.live.values()), new, self.clock.now)
        if found is None:
            return False
        self.seq += len(new)
        self.discard([*found[1], *(c.key for c in new)])
        self.live |= {c.key: c for c in found[0]}
        return True

    def discard(self, keys):
        self.live = {key: c for key, c in self.live.items() if key not in keys}


@pytest.mark.slow
def test_a_store_keeps_what_the_model_keeps(make):
    @settings(max_examples=120 if make.kind == "memory" else 25, deadline=None, derandomize=True, database=None)
    @given(retention=retentions, steps=st.lists(steps, max_size=14))
    def run(retention, steps):
        clock = Clock()
        compare(make(clock=clock, **vars(retention)), Model(retention, clock), clock, steps)

    run()


def compare(store, model, clock, steps):
    mark = None
    for what, value in steps:
        if what == "wait":
            clock.now += value
        elif what == "mark":
            mark, model.marked = store.mark(), dict(model.live)
        elif what == "rollback" and mark is not None:
            store.rollback(mark)
            model.live = dict(model.marked)
        elif what == "discard":
            keys = [b"k%d" % key for key in value]
            store.discard(keys)
            model.discard(keys)
        elif what == "put":
            batch = {b"k%d" % key: pair for key, pair in value.items()}
            with nullcontext() if model.put(value) else pytest.raises(StoreFullError):
                put(store, {k: i for k, (i, _) in batch.items()}, {k: bytes(size) for k, (_, size) in batch.items()})
        assert store.keys() == list(model.live)
        for stream in ("", "a", "b"):
            assert all(info.stream == stream for info in store.get_info(store.keys(stream=stream)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"policy": "reservoir"}, {"policy": "reservoir"}),
        ({"policy": "reservoir"}, {"policy": "reservoir", "seed": 1}),
        ({}, {"policy": "class-balanced", "stream_samples": 5}),
        ({"policy": "class-balanced"}, {}),
        ({"stream_samples": 5}, {"policy": "class-balanced"}),
    ],
)
def test_a_reopened_store_follows_the_retention_it_is_given(tmp_path, before, after):
    def batch(start, stop):
        return {n: (SampleInfo(label=n % 3, stream="aab"[n % 3], pinned=n == 0), 0) for n in range(start, stop)}

    infos = {b"k%d" % n: info for n, (info, _) in batch(0, 40).items()}
    clock = Clock()
    model = Model(Retention(12, **before), clock)
    with LmdbStore(tmp_path / "s", retention=model.retention, clock=clock) as store:
        assert model.put(batch(0, 20))
        put(store, {b"k%d" % n: info for n, (info, _) in batch(0, 20).items()})
        assert store.keys() == list(model.live)
    model.retention = Retention(9, **after)
    model.live = {
        key: model.retention.candidate(key, c.seq, c.nbytes, infos[key], c.arrived) for key, c in model.live.items()
    }
    with LmdbStore(tmp_path / "s", retention=model.retention, clock=clock) as store:
        for start in (20, 30):
            assert model.put(batch(start, start + 10))
            put(store, {b"k%d" % n: info for n, (info, _) in batch(start, start + 10).items()})
            assert store.keys() == list(model.live)
