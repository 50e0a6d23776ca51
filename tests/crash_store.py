"""Kills a process that uses a store, over and over, and looks each time at what it left.

    python tests/crash_store.py [--kills 1000] [--seed 0] [--kind lmdb|tiered] [--folder DIR]

A life is one store with options of its own (retention, compression, sources, small transactions, threads or a process
that read it all the while). A forked child works on it and reports the start and the end of every step until it is
killed: at a random moment, or by itself at its n-th commit, write, torn write, sync or removal of a file. Whatever was
reported as done must be there, the step under way wholly or not at all; then the next child goes on. A tiered store may
lose the steps after its last commit, but only whole ones, the last ones first.

The short form runs in test_store_crash.py.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

torch.set_num_threads(1)

from streamdrop.errors import MissingKeyError  # noqa: E402
from streamdrop.store import LmdbStore, TieredStore, verify  # noqa: E402
from streamdrop.store import slab as slabs  # noqa: E402
from streamdrop.store.entries import decode  # noqa: E402
from streamdrop.store.environment import Environment  # noqa: E402
from streamdrop.store.folder import staged_generation  # noqa: E402
from streamdrop.store.ledger import _pool_name  # noqa: E402
from streamdrop.store.retention import Retention  # noqa: E402
from streamdrop.store.rows import PACKED_UNIT, Packer  # noqa: E402
from streamdrop.store.slab import Slab  # noqa: E402
from streamdrop.store.tables import SOURCES, VALUES, digest, number, slot  # noqa: E402
from streamdrop.types import SampleInfo  # noqa: E402

KILLS_PER_LIFE = 40
STEPS = 400
"""A child that nothing kills closes its store after so many operations."""


class Fact(NamedTuple):
    """A sample that must be there: ``number`` of the operation that put it, which its values are made from."""

    number: int
    info: SampleInfo
    arrived: float
    source: bytes | None


Facts = dict[int, Fact]


@dataclass(frozen=True)
class State:
    """What a store must hold; ``facts`` in order of arrival, ``marks`` with what they bring back."""

    cut: int = 0
    version: str = ""
    lineage: tuple[tuple[int, str], ...] = ()
    facts: Facts = field(default_factory=dict)
    marks: dict[int, Facts] = field(default_factory=dict)


@dataclass(frozen=True)
class Life:
    """A store and its options. ``small`` makes many transactions of one operation."""

    seed: int
    kind: str = "lmdb"
    retention: Retention = Retention()  # noqa: RUF009
    compression: str | None = None
    width: int = 24
    sourced: bool = False
    small: bool = False
    readers: str = ""

    def open(self, folder: Path, clock: Callable[[], float] = time.time) -> LmdbStore | TieredStore:
        options = {"retention": self.retention, "compression": self.compression, "clock": clock}
        if self.kind == "lmdb":
            return LmdbStore(folder, **options)
        return TieredStore(folder, commit_seconds=0.01, commit_bytes=20_000, memory_bytes=50_000, **options)


def life_of(seed: int, kind: str) -> Life:
    rng = random.Random(f"life {seed}")
    policy = rng.choice(["oldest", "oldest", "reservoir", "class-balanced"])
    width = rng.choice([3, 24, 500, 6000])
    limits = rng.choice([
        {}, {}, {"max_samples": 15}, {"max_bytes": 40 * (12 * width + 230)}, {"max_age": 12.0},
        {"stream_samples": 8}, {"max_samples": 20, "stream_samples": 9, "max_age": 30.0},
    ])  # fmt: skip
    compression = None if "max_bytes" in limits else rng.choice([None, None, "lz4", "zstd"])
    return Life(
        seed, kind, Retention(policy=policy, seed=seed, **limits), compression, width, rng.random() < 0.5,
        rng.random() < 0.5, rng.choice(["", "", "threads", "process"]),
    )  # fmt: skip


# ---------------------------------------------------------------- what a sample is


def name(key: int) -> bytes:
    return b"key %d" % key


def made(numbers: torch.Tensor, keys: torch.Tensor, cut: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch at a cut; rows of later cuts differ in size, and some compress better than others."""
    at = torch.arange(width)
    base = (at * (2 * numbers[:, None] + 1) * 7919 + keys[:, None] * 101) % 4093
    base = base * (at % 5 >= keys[:, None] % 5)
    return wide(base.float(), cut), torch.stack([numbers, keys, torch.full_like(keys, cut)], 1)


def wide(base: torch.Tensor, cut: int) -> torch.Tensor:
    return base.repeat(1, 1 + cut % 3) + cut


def step_to(cut: int, width: int) -> Callable[[Any], Any]:
    """Promotes from what is stored: a wrong row stays wrong."""

    def step(batch):
        values, facts = batch
        before = facts[:, 2]
        assert (before == before[0]).all()
        return wide(values[:, :width] - before[0], cut), torch.stack([*facts.unbind(1)[:2], before * 0 + cut], 1)

    return step


def rows(state: State, facts: Facts, cut: int, width: int) -> dict[bytes, tuple[torch.Tensor, torch.Tensor]]:
    keys = torch.tensor(list(facts), dtype=torch.int64)
    numbers = torch.tensor([fact.number for fact in facts.values()], dtype=torch.int64)
    batch = made(numbers, keys, cut, width)
    return {name(key): (batch[0][i], batch[1][i]) for i, key in enumerate(facts)}


def source_of(number: int, key: int) -> bytes:
    return b"%d %d " % (number, key) + bytes((number * 7 + key) % 150)


def embedding(cut: int, width: int) -> Callable[[list[bytes]], Any]:
    def embed(sources):
        pairs = torch.tensor([[int(word) for word in source.split(b" ")[:2]] for source in sources])
        return made(pairs[:, 0], pairs[:, 1], cut, width)

    return embed


# ---------------------------------------------------------------- what retention keeps, slowly


def kept(life: Life, facts: Facts, now: float, arrived: bool) -> Facts:
    """Facts without those that a bounded store lets go."""
    limits, left = life.retention, dict(facts)
    if limits.max_age is not None and arrived:
        left = {k: f for k, f in left.items() if f.info.pinned or f.arrived >= now - limits.max_age}
    for stream in {limits.pool(f.info)[0] for f in left.values()} if limits.stream_samples is not None else ():
        while sum(limits.pool(f.info)[0] == stream for f in left.values()) > limits.stream_samples:
            if not let_go(limits, left, stream):
                break
    return left


def within(life: Life, facts: Facts, cut: int) -> Facts:
    """Facts without those above the limits of the whole."""
    limits, left = life.retention, dict(facts)
    size = 4 * life.width * (1 + cut % 3) + 24

    def over() -> bool:
        nbytes = sum(size + len(f.source or b"") for f in left.values())
        return len(left) > (limits.max_samples or 1e9) or nbytes > (limits.max_bytes or 1e18)

    while over():
        free = Counter(limits.pool(f.info)[0] for f in left.values() if not f.info.pinned)
        let_go(limits, left, min(free, key=lambda stream: (-free[stream], stream)))
    return left


def let_go(limits: Retention, left: Facts, stream: str) -> bool:
    free = {k: f for k, f in left.items() if not f.info.pinned and limits.pool(f.info)[0] == stream}
    if not free:
        return False
    counts = Counter(limits.pool(f.info)[1] for f in free.values())
    label = min(counts, key=lambda label: (-counts[label], label is not None, label or 0))
    pool = [k for k, f in free.items() if limits.pool(f.info)[1] == label]
    ranks = {k: -at if limits.policy == "oldest" else limits.rank(name(k), 0) for at, k in enumerate(pool)}
    del left[max(pool, key=ranks.__getitem__)]
    return True


# ---------------------------------------------------------------- steps


class Step(NamedTuple):
    """``act`` on a store gives a value; ``after`` the states it goes through, the last one when it is done."""

    name: str
    act: Callable[[Any, dict[str, Any], State], int | None]
    after: Callable[[State, int | None], list[State]]
    settles: bool = False  # a tiered store has committed everything


def put(life: Life, count: int, keys: list[int]) -> Step:
    def fact(key: int) -> Fact:
        info = SampleInfo(1.0 + key, key < 2, None if key % 4 == 3 else key % 3, ("", "a", "b")[key // 5 % 3])
        return Fact(count, info, float(count), source_of(count, key) if life.sourced else None)

    new = {key: fact(key) for key in keys}

    def act(store, context, state):
        store.put_many(
            rows(state, new, state.cut, life.width),
            {name(key): count for key in keys},
            {name(key): fact.info for key, fact in new.items()},
            {name(key): fact.source for key, fact in new.items()} if life.sourced else None,
        )

    def after(state, _):
        facts = {**{k: f for k, f in state.facts.items() if k not in new}, **new}
        return [replace(state, facts=within(life, kept(life, facts, float(count), True), state.cut))]

    return Step("put", act, after)


def discard(keys: list[int]) -> Step:
    def after(state, _):
        return [replace(state, facts={k: f for k, f in state.facts.items() if k not in keys})]

    return Step("discard", lambda store, *_: store.discard([name(key) for key in keys]), after)


def promoted(life: Life, state: State, cut: int, version: str) -> list[State]:
    moved = replace(state, cut=cut, version=version, lineage=(*state.lineage, (state.cut, state.version)))
    return [moved, replace(moved, facts=within(life, moved.facts, cut))]


def advance(life: Life, cut: int, version: str) -> Step:
    def act(store, context, state):
        store.advance(cut, step_to(cut, life.width), version, 3)

    return Step("advance", act, lambda state, _: promoted(life, state, cut, version), settles=True)


def unchanged(word: str, act: Callable[[Any, dict[str, Any], State], Any], settles: bool = True) -> Step:
    return Step(word, lambda *given: act(*given) and None, lambda state, _: [state], settles)


def stage(life: Life, cut: int, version: str, chosen: list[int], beside: list[Step], commit: bool) -> list[Step]:
    def begin(store, context, state):
        context["stage"] = store.stage(cut, version).__enter__()

    def fill(store, context, state):
        facts = {key: fact for key, fact in state.facts.items() if key in chosen}
        context["stage"].put_many(rows(state, facts, cut, life.width))

    def finish(store, context, state):
        context["stage"].commit(step_to(cut, life.width), 4)
        context.pop("stage").__exit__(None, None, None)

    def leave(store, context, state):
        context.pop("stage").__exit__(None, None, None)

    last = Step("commit a stage", finish, lambda state, _: promoted(life, state, cut, version), settles=True)
    steps = [unchanged("stage", begin), unchanged("put into a stage", fill), *beside]
    return [*steps, last if commit else unchanged("leave a stage", leave, settles=False)]


def thaw(life: Life, cut: int, version: str) -> Step:
    def act(store, context, state):
        store.thaw(cut, embedding(cut, life.width), version, 3)

    def after(state, _):
        lineage = tuple(line for line in state.lineage if line[0] < cut)
        moved = replace(state, cut=cut, version=version, lineage=lineage)
        return [moved, replace(moved, facts=within(life, moved.facts, cut))]

    return Step("thaw", act, after, settles=True)


def mark() -> Step:
    def after(state, value):
        return [state if value is None else replace(state, marks={**state.marks, value: state.facts})]

    return Step("mark", lambda store, *_: store.mark(), after, settles=True)


def rollback(pick: float) -> Step:
    def chosen(state):
        marks = sorted(state.marks)
        return marks[int(pick * len(marks))]

    def after(state, _):
        to = chosen(state)
        return [replace(state, facts=state.marks[to], marks={m: f for m, f in state.marks.items() if m <= to})]

    return Step("rollback", lambda store, context, state: store.rollback(chosen(state)), after, settles=True)


def release(pick: float) -> Step:
    def chosen(state):
        marks = sorted(state.marks)
        return marks[int(pick * len(marks))]

    def after(state, _):
        return [replace(state, marks={m: f for m, f in state.marks.items() if m >= chosen(state)})]

    return Step("release", lambda store, context, state: store.release(chosen(state)), after, settles=True)


def plan(life: Life, state: State, count: int) -> list[Step]:
    """The steps of an operation: the same for whoever knows the state before it."""
    rng = random.Random(f"{life.seed}/{count}")

    def some(most: int = 12) -> list[int]:
        return rng.sample(range(30), rng.randint(1, most))

    higher, version = state.cut + rng.randint(1, 2), f"v{rng.randint(0, 1)}"
    choices: list[tuple[int, Callable[[], list[Step]]]] = [
        (30, lambda: [put(life, count, some())]),
        (8, lambda: [discard(some())]),
        (4, lambda: [unchanged("flush", lambda store, *_: store.flush())]),
        (5, lambda: [advance(life, higher, version)]),
        (6, lambda: stage(life, higher, version, some(30), [put(life, count, some()), discard(some(3))],
                          rng.random() < 0.7)),
        (4, lambda: [unchanged("compact", lambda store, *_: store.compact())]),
        (3, lambda: [mark()]),
        (3, lambda: [mark(), put(life, count, some()), discard(some()), rollback(0.999), release(0.999)]),
    ]  # fmt: skip
    if life.sourced and state.cut:
        choices.append((4, lambda: [thaw(life, rng.randint(0, state.cut), version)]))
    if state.marks:
        choices += [(2, lambda: [rollback(rng.random())]), (2, lambda: [release(rng.random())])]
    return rng.choices([make for _, make in choices], [weight for weight, _ in choices])[0]()


# ---------------------------------------------------------------- the child


_REPORT = struct.Struct("<cq")


def hook(owner: Any, attribute: str, before: Callable[[], None], after: Callable[[], None]) -> None:
    original = getattr(owner, attribute)

    def wrapped(*args, **kwargs):
        before()
        result = original(*args, **kwargs)
        after()
        return result

    setattr(owner, attribute, wrapped)


def arm(aim: str, count: int) -> None:
    """From now on the process kills itself at the n-th event of a kind."""
    left = [count]

    def fall() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def stay() -> None:
        return None

    if aim == "torn write":
        original = os.pwrite

        def torn(descriptor, data, offset):
            if left[0] == 1:
                original(descriptor, data[: len(data) // 2], offset)
            fall()
            return original(descriptor, data, offset)

        slabs.os.pwrite = torn
        return
    owner, attribute, first = AIMS[aim]
    hook(owner, attribute, *((fall, stay) if first else (stay, fall)))


AIMS = {
    "before a commit": (Environment, "_commit", True),
    "after a commit": (Environment, "_commit", False),
    "before a write": (Slab, "_write", True),
    "after a write": (Slab, "_write", False),
    "torn write": (None, "", True),
    "before a sync": (Slab, "sync", True),
    "after a sync": (Slab, "sync", False),
    "before a sync of records": (Environment, "sync", True),
    "after a sync of records": (Environment, "sync", False),
    "before a removal": (Path, "unlink", True),
    "after a removal": (Path, "unlink", False),
}


def make_small() -> None:
    """Many transactions, parts and records of promotions for few samples."""
    from streamdrop.store import folder, lmdb, making, rows, tables, writing

    writing.RECORDS, rows.PART_BYTES, making.BUFFER_BYTES = 3, 2000, 1500
    folder.BATCH = lmdb.BATCH = tables.BATCH = 4


def work(life: Life, folder: Path, state: State, count: int, report: Callable[[bytes, int], None]) -> None:
    """Operations from the ``count``-th on, until somebody kills the process."""
    now = [0.0]
    if life.small:
        make_small()
    store = life.open(folder, lambda: now[0])
    report(b"O", 0)
    stop = threading.Event()
    count_of = 2 * (life.readers == "threads")
    watchers = [threading.Thread(target=watch, args=(store, life, stop)) for _ in range(count_of)]
    for watcher in watchers:
        watcher.start()
    context: dict[str, Any] = {}
    for turn in range(count, count + STEPS):
        now[0] = float(turn)
        for step in plan(life, state, turn):
            report(b"S", turn)
            value = step.act(store, context, state)
            state = step.after(state, value)[-1]
            report(b"E", -1 if value is None else value)
    stop.set()
    for watcher in watchers:
        watcher.join()
    store.close()


def watch(store: Any, life: Life, stop: threading.Event) -> None:
    """Read what is there, over and over: each sample must be one that was put, at one cut."""
    torch.set_num_threads(1)  # a new thread of a forked process has no pool of its own
    try:
        while not stop.is_set():
            glance(store, life)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def glance(store: Any, life: Life) -> None:
    keys = store.keys()[-8:]
    if keys:
        try:
            values, facts = store.get_many(keys)
        except MissingKeyError:
            return
        expected = made(facts[:, 0], facts[:, 1], int(facts[0, 2]), life.width)
        assert torch.equal(values, expected[0]), "a row that nobody put"
        assert torch.equal(facts, expected[1]), "samples of two cuts"
        assert [name(int(key)) for key in facts[:, 1]] == keys, "another sample's row"


def look_on(life: Life, folder: Path) -> None:
    """A process that reads while others write and die. An open store outlives its writers."""
    with LmdbStore(folder, read_only=True) as store:
        while True:
            glance(store, life)


def fork(task: Callable[[Callable[[bytes, int], None]], None]) -> tuple[int, int]:
    """A child running ``task``; its id, and the end to read its reports from."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    status = 1
    try:
        os.close(ours)
        task(lambda kind, value: os.write(theirs, _REPORT.pack(kind, value)) and None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def listen(child: int, ours: int, delay: float | None) -> tuple[list[tuple[bytes, int]], int]:
    """Its reports and how it ended. It is killed ``delay`` seconds after it opened; without a delay it kills itself."""
    data, until = b"", time.monotonic() + 120
    while True:
        if select.select([ours], [], [], max(0.0, until - time.monotonic()))[0]:
            part = os.read(ours, 1 << 16)
            if not part:
                break
            if not data and delay is not None:
                until = time.monotonic() + delay
            data += part
        else:
            os.kill(child, signal.SIGKILL)
            until = time.monotonic() + 120
    os.close(ours)
    return list(_REPORT.iter_unpack(data)), os.waitpid(child, 0)[1]


# ---------------------------------------------------------------- what must be there


def replay(
    life: Life, state: State, count: int, reports: list[tuple[bytes, int]]
) -> tuple[list[State], list[State], int, str]:
    """(states that may be there after a kill of a tiered store, of a durable one, next operation, what was killed)."""
    history, steps, at = [state], plan(life, state, count), 0
    under_way = "opening"
    for kind, value in reports:
        if kind == b"O":
            under_way = "nothing"
        elif kind == b"S":
            if at == len(steps):
                count, at = count + 1, 0
                steps = plan(life, state, count)
            under_way = steps[at].name
        else:
            state = steps[at].after(state, None if value < 0 else value)[-1]
            history = [state] if steps[at].settles else [*history, state]
            at, under_way = at + 1, "nothing"
    begun = steps[at].after(state, None) if under_way not in ("opening", "nothing") else []
    return [*history, *begun], [state, *begun], count + 1, under_way


def find(store: LmdbStore, states: list[State]) -> State:
    """The state that a store is in."""
    keys = store.keys()
    targets = store.get_targets(keys).tolist() if keys else []
    seen = (store.cut, store.version, store.lineage, keys, targets)
    for state in reversed(states):
        numbers = [fact.number for fact in state.facts.values()]
        if seen == (state.cut, state.version, state.lineage, [name(k) for k in state.facts], numbers):
            return state
    allowed = "\n".join(f"  {s.cut, s.version} {[(k, f.number) for k, f in s.facts.items()]}" for s in states[-6:])
    raise AssertionError(f"found {seen[:3]} {list(zip(keys, targets, strict=True))}, none of\n{allowed}")


def check(store: LmdbStore, life: Life, state: State) -> None:
    """Everything in a store is as in the state, to the bit."""
    keys, facts = store.keys(), state.facts
    assert len(store) == len(facts)
    if keys:
        expected = zip(*rows(state, facts, state.cut, life.width).values(), strict=True)
        assert all(torch.equal(g, torch.stack(e)) for g, e in zip(store.get_many(keys), expected, strict=True))
    assert store.get_info(keys) == [fact.info for fact in facts.values()]
    assert store.get_sources(keys) == [fact.source for fact in facts.values()]
    for stream in ("", "a", "b"):
        assert store.keys(stream) == [name(key) for key, fact in facts.items() if fact.info.stream == stream]


def fsck(store: LmdbStore) -> None:
    """The records agree with each other and with the files, and nothing else is there."""
    with store.folder.reading() as (tables, state):
        live = {int.from_bytes(seq, "big"): decode(raw) for seq, raw in tables.cursor(b"entries")}
        held = {seq: decode(raw) for seq, _, raw in tables.held()}
        assert not live.keys() & held.keys()
        assert max([0, *live, *held]) <= state.last
        assert (len(live), sum(e.info.pinned for e in live.values())) == (state.count, state.pinned)
        found = {bytes(at): seq for at, seq in zip(*_index(tables), strict=True)}
        assert found == {slot(entry.key): seq for seq, entry in live.items()}
        streams = {digest(e.info.stream) + number(seq) for seq, e in live.items() if e.info.stream}
        assert {bytes(raw) for raw, _ in tables.cursor(b"streams")} == streams
        _check_ranks(tables, store.retention, live)
        unit = Packer(state.layout, state.compression).unit if state.layout else 1
        staged = staged_generation(tables, state)
        values = _check_places(tables, VALUES, (state.generation, state.units, unit), staged, {*live, *held})
        sources = _check_places(tables, SOURCES, (state.source_generation, state.source_units, PACKED_UNIT), None, None)
        assert values.keys() == live.keys() | held.keys()
        assert sources.keys() <= values.keys()
        source_bytes = sum(length for seq, length in sources.items() if seq in live)
        assert state.source_bytes == source_bytes
        assert state.nbytes == source_bytes + sum(length for seq, length in values.items() if seq in live)
        allowed = {store.folder.files.path(VALUES, state.generation), store.folder.files.path(VALUES, staged)}
        allowed.add(store.folder.files.path(SOURCES, state.source_generation))
    assert set(store.path.glob("*.bin")) <= allowed
    others = {file.name for file in store.path.iterdir()} - {file.name for file in allowed}
    assert others <= {"data.mdb", "lock.mdb", "writer.lock", "seal.json"}


def _index(tables: Any) -> tuple[list[bytes], list[int]]:
    pairs = [(bytes(at), int.from_bytes(raw[:8], "big")) for at, raw in tables.cursor(b"index")]
    return [at for at, _ in pairs], [seq for _, seq in pairs]


def _check_ranks(tables: Any, retention: Retention, live: dict[int, Any]) -> None:
    pools: Counter[bytes] = Counter()
    pinned: Counter[bytes] = Counter()
    ranks = set()
    for seq, entry in live.items() if retention.ranked else ():
        at = _pool_name(retention.pool(entry.info))
        (pinned if entry.info.pinned else pools)[at] += 1
        if not entry.info.pinned:
            ranks.add(at + number(retention.rank(entry.key, seq)) + number(seq))
    counts = {bytes(at): struct.unpack_from("<QQ", raw) for at, raw in tables.cursor(b"pools")}
    assert counts == {at: (pools[at], pinned[at]) for at in pools.keys() | pinned.keys()}
    assert {bytes(raw) for raw, _ in tables.cursor(b"ranks")} == ranks


def _check_places(
    tables: Any, table: bytes, now: tuple[int, int, int], staged: int | None, known: set[int] | None
) -> dict[int, int]:
    """{sequence number: bytes} of a table's present generation; no two rows share room, none lies past the end."""
    generation, end, unit = now
    places = list(tables.placed(table, generation))
    at = 0
    for start, length in sorted((place.start, max(1, -(-place.length // unit))) for _, place in places):
        assert start >= at, "two rows in one place"
        at = start + length
    assert at <= end
    generations = {int.from_bytes(raw[:4], "big") for raw, _ in tables.cursor(table)}
    assert generations <= {generation, staged}
    if staged is not None and staged != generation:
        assert {seq for seq, _ in tables.placed(table, staged)} <= (known or set())
    return {seq: place.length for seq, place in places}


def inspect(life: Life, folder: Path, states: list[State], read_first: bool) -> State:
    """Open what a killed process left; the state it is in."""
    if read_first:
        with LmdbStore(folder, read_only=True) as store:
            check(store, life, find(store, states))
    with LmdbStore(folder, retention=life.retention, compression=life.compression) as store:
        state = find(store, states)
        check(store, life, state)
        fsck(store)
    assert verify(folder)["problems"] == []
    return state


# ---------------------------------------------------------------- the killer


class Killer:
    """Kills children of one life after the other, and counts."""

    def __init__(self, root: Path, kind: str, seed: int) -> None:
        self.root, self.kind, self.seed = root, kind, seed
        self.rng = random.Random(seed)
        self.kills = self.failures = self.lost = 0
        self.by_step: Counter[str] = Counter()
        self.by_aim: Counter[str] = Counter()

    def run(self, kills: int, tell: Callable[[str], None] = print) -> None:
        began, life = time.monotonic(), 0
        while self.kills < kills and self.failures < 20:
            self.live(life_of(1000 * self.seed + life, self.kind), min(KILLS_PER_LIFE, kills - self.kills))
            life += 1
            tell(f"{self.kills} kills, {life} lives, {self.failures} failures, {time.monotonic() - began:.0f} s")

    def live(self, life: Life, kills: int) -> None:
        """One store until so many kills, or a failure."""
        folder, state, count, until = self.root / f"life-{life.seed}", State(), 0, self.kills + kills
        life.open(folder).close()
        onlooker = None
        if life.readers == "process":
            onlooker = fork(lambda _: look_on(life, folder))
        try:
            while self.kills < until:
                state, count = self.kill(life, folder, state, count)
            if onlooker is not None:
                assert os.waitpid(onlooker[0], os.WNOHANG) == (0, 0), "the process that reads has failed"
        except Exception:
            self.failures += 1
            print(f"FAILED at kill {self.kills} of {life} in {folder}", file=sys.stderr)
            traceback.print_exc()
        else:
            shutil.rmtree(folder)
        finally:
            if onlooker is not None:
                os.kill(onlooker[0], signal.SIGKILL)
                os.close(onlooker[1])

    def kill(self, life: Life, folder: Path, state: State, count: int) -> tuple[State, int]:
        aim = self.rng.choice([None] * 6 + [*AIMS])
        at = 1 + int(self.rng.expovariate(1 / 12))

        def task(report):
            if aim is not None:
                arm(aim, at)
            work(life, folder, state, count, report)

        child, ours = fork(task)
        reports, status = listen(child, ours, None if aim else self.rng.expovariate(1 / 0.04))
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the child failed with {status}"
        tiered, durable, following, under_way = replay(life, state, count, reports)
        self.kills += os.WIFSIGNALED(status)
        self.by_step[under_way] += 1
        self.by_aim[aim or "random moment"] += 1
        states = tiered if life.kind == "tiered" else durable
        found = inspect(life, folder, states, self.rng.random() < 0.25)
        self.lost += found not in durable
        return found, following


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=["lmdb", "tiered"], default="lmdb")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    root = asked.folder or Path(tempfile.mkdtemp(prefix="crash-store-"))
    began = time.monotonic()
    killer = Killer(root, asked.kind, asked.seed)
    killer.run(asked.kills)
    took = time.monotonic() - began
    print(f"{killer.kills} kills of a {asked.kind} store in {took:.0f} s, {killer.failures} failures")
    if asked.kind == "tiered":
        print(f"  {killer.lost} kills lost steps that had not been committed")
    for word, counts in (("killed during", killer.by_step), ("killed at", killer.by_aim)):
        print(f"  {word}: " + ", ".join(f"{what} {count}" for what, count in counts.most_common()))
    if not killer.failures and asked.folder is None:
        shutil.rmtree(root)
    sys.exit(bool(killer.failures))


if __name__ == "__main__":
    main()
