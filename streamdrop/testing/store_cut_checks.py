"""Laws of a store's way through cuts and time: promotion, thaw, marks and rollback."""

# ruff: noqa: PT017, PT018

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from streamdrop.errors import DataError, MissingKeyError, StoreError, StoreVersionError
from streamdrop.store.protocol import FeatureStore
from streamdrop.testing.store_samples import (
    assert_at,
    assert_holds,
    assert_streams,
    doubled,
    name,
    never,
    raises,
    sample,
    samples,
    targets_of,
)
from streamdrop.types import Activations, SampleInfo


def check_advance(store: FeatureStore) -> None:
    """Every sample is promoted; targets, info and order stay; the same cut is a no-op, a lower one an error."""
    store.put_many(samples(range(5)), list(range(5)), {name(3): SampleInfo(2.0)})
    sizes: list[int] = []

    def step(batch: Activations) -> Activations:
        sizes.append(len(batch[0]))
        return doubled(batch)

    store.advance(3, step, "three", chunk=2)
    assert sum(sizes) == 5 and max(sizes) == 2, f"5 samples with chunk=2 were given to step as {sizes}"
    assert_at(store, 3, "three")
    assert_holds(store, range(5), 2)
    assert torch.equal(targets_of(store, range(5)), torch.arange(5)) and store.get_info([name(3)])[0].weight == 2.0
    store.advance(3, never, "three")
    with raises(StoreError, "a lower cut"):
        store.advance(2, doubled, "two")
    with raises(StoreVersionError, "another version at the same cut"):
        store.advance(3, doubled, "other")
    assert_holds(store, range(5), 2)
    store.advance(4, lambda batch: (batch[1].float(),), "four")
    assert torch.equal(store.get_many([name(2)])[0], torch.tensor([[4.0, -4.0, 14.0]])), (
        "shapes may change with the cut"
    )
    with raises(DataError, "a sample of the old cut's shapes"):
        store.put_many(samples([9]))


def check_failed_advance_changes_nothing(store: FeatureStore) -> None:
    """An error in step, or a wrong number of rows, leaves the old cut whole."""
    store.put_many(samples(range(5)))
    for bad, kind in [(never, AssertionError), (lambda batch: (batch[0][:1],), DataError), (lambda _: (), DataError)]:
        with raises(kind, "step does not fit"):
            store.advance(1, bad, "one", chunk=2)
        assert_at(store, 0, "")
        assert_holds(store, range(5))
    store.advance(1, doubled, "one")
    assert_holds(store, range(5), 2)


def check_stage(store: FeatureStore) -> None:
    """A later cut in the making: the old one is read meanwhile, put to and discarded from; commit promotes the rest."""
    store.put_many(samples(range(6)))
    with store.stage(2, "two") as staged:
        staged.put_many({name(n): sample(n, 2) for n in (0, 3, 4, 5)})
        assert_holds(store, range(6))
        with raises(MissingKeyError, "staging a key that is not in the store"):
            staged.put_many({b"gone": sample(1)})
        with raises(StoreError, "a second promotion at the same time"):
            store.stage(3, "three")
        store.put_many(samples([3, 6]))
        store.discard([name(4)])
        staged.commit(doubled, chunk=2)
    assert_at(store, 2, "two")
    assert_holds(store, [0, 1, 2, 5, 3, 6], 2)


def check_abandoned_stage(store: FeatureStore) -> None:
    """Leaving without commit, or by an error, leaves the old cut; another promotion may follow."""
    store.put_many(samples(range(3)))
    with store.stage(2, "two") as staged:
        staged.put_many({name(1): sample(8)})
    with contextlib.suppress(ZeroDivisionError), store.stage(2, "two") as staged:
        staged.put_many({name(1): sample(8)})
        raise ZeroDivisionError
    assert_at(store, 0, "")
    assert_holds(store, range(3))
    store.advance(2, doubled, "two")
    assert_holds(store, range(3), 2)


def check_rollback(store: FeatureStore) -> None:
    """Puts, replacements and discards after a mark are undone, whatever was promoted meanwhile."""
    store.put_many(samples(range(4)), [0, 1, 2, 3])
    mark = store.mark()
    store.discard([name(0)])
    store.put_many({name(1): sample(9), name(7): sample(7)}, [9, 7])
    store.discard([name(7)])
    store.advance(1, doubled, "one")
    store.put_many({name(8): sample(8, 2)})
    assert store.keys() == [name(n) for n in (2, 3, 1, 8)]
    _check_count_at(store, mark, 4)
    store.rollback(mark)
    assert_holds(store, range(4), 2)
    assert torch.equal(targets_of(store, range(4)), torch.arange(4)), "targets of restored samples"
    store.discard([name(3)])
    store.rollback(mark)
    assert_holds(store, range(4), 2)


def _check_count_at(store: FeatureStore, mark: int, count: int) -> None:
    """What a rollback would leave is told beforehand, where the store has ``count_at``."""
    count_at, keys = getattr(store, "count_at", None), store.keys()
    assert count_at is None or count_at(mark) == count, "count_at, of what a rollback would leave"
    assert store.keys() == keys, "count_at changes nothing"


def check_release(store: FeatureStore) -> None:
    """Marks before a released one are gone, later ones work; marks that never were are refused."""
    with raises(StoreError, "rollback before any mark"):
        store.rollback(0)
    store.put_many(samples(range(4)))
    first = store.mark()
    store.discard([name(0)])
    second = store.mark()
    store.discard([name(1)])
    store.release(second)
    for mark in (first, second + 1000):
        with raises(StoreError, f"rollback to {mark}, which cannot be restored"):
            store.rollback(mark)
    assert_holds(store, [2, 3])
    _check_count_at(store, second, 3)
    store.rollback(second)
    assert_holds(store, [1, 2, 3])


def check_undone_marks(store: FeatureStore) -> None:
    """A mark that a rollback went past cannot be restored; one set afterwards can."""
    store.put_many(samples([0]))
    first = store.mark()
    store.put_many(samples([1]))
    second = store.mark()
    store.rollback(first)
    with raises(StoreError, "what this mark meant was undone"):
        store.rollback(second)
    third = store.mark()
    store.put_many(samples([2]))
    store.rollback(third)
    assert_holds(store, [0])


def check_what_lies_beside_follows(store: FeatureStore) -> None:
    """Sources and streams stay through a promotion, and come back with a rollback."""
    info = {name(n): SampleInfo(stream="ab"[n % 2]) for n in range(4)}
    store.put_many(samples(range(4)), info=info, sources={name(n): b"%d" % n for n in (0, 1, 2)})
    mark = store.mark()
    store.discard([name(0)])
    store.put_many(samples([1, 5]), info={name(1): SampleInfo(stream="c")}, sources={name(5): b"5"})
    store.advance(1, doubled, "one")
    assert_streams(store, {"a": [2], "b": [3], "c": [1], "": [5]})
    found = store.get_sources([name(n) for n in (2, 3, 1, 5)])
    assert found == [b"2", None, None, b"5"], f"sources after a promotion are {found}"
    store.rollback(mark)
    assert_streams(store, {"a": [0, 2], "b": [1, 3], "c": [], "": []})
    found = store.get_sources([name(n) for n in range(4)])
    assert found == [b"0", b"1", b"2", None], f"sources after a rollback are {found}"
    store.discard([name(1)])
    store.release(store.mark())
    assert_streams(store, {"a": [0, 2], "b": [3]})
    assert_holds(store, [0, 2, 3], 2)


def check_thaw(store: FeatureStore) -> None:
    """The way back, for stores that have one: all samples, held ones too, are made anew from their sources."""
    thaw = getattr(store, "thaw", None)
    if thaw is None:
        return
    info = {name(3): SampleInfo(2.0, stream="a")}
    store.put_many(samples(range(5)), list(range(5)), info, {name(n): b"%d" % n for n in range(5)})
    store.advance(3, lambda acts: (acts[1].float(),), "three")
    mark = store.mark()
    store.discard([name(0)])
    sizes: list[int] = []

    def embed(sources: list[bytes]) -> Activations:
        sizes.append(len(sources))
        return tuple(torch.stack(parts) for parts in zip(*(sample(int(s)) for s in sources), strict=True))

    thaw(1, embed, "one", chunk=2)
    assert sum(sizes) == 5 and max(sizes) == 2, f"5 samples, one of them held, with chunk=2 were embedded as {sizes}"
    assert_at(store, 1, "one")
    assert_holds(store, range(1, 5))
    assert torch.equal(targets_of(store, [4, 3]), torch.tensor([4, 3])) and store.get_info([name(3)]) == [info[name(3)]]
    store.rollback(mark)
    assert_holds(store, range(5))
    thaw(1, lambda sources: doubled(embed(sources)), "another")
    assert (store.cut, store.version) == (1, "another"), "a cut may be made anew for another version"
    store.advance(2, doubled, "two")
    assert_holds(store, range(5), 4)


def check_failed_thaw_changes_nothing(store: FeatureStore) -> None:
    """A later cut, a sample without a source, outputs that do not fit: an error, and the store stays whole."""
    thaw = getattr(store, "thaw", None)
    if thaw is None:
        return
    store.put_many(samples(range(3)), sources={name(n): b"%d" % n for n in range(3)})
    store.advance(2, doubled, "two")
    with raises(StoreError, "thaw to a later cut"):
        thaw(3, never, "three")
    for bad, kind in [(never, AssertionError), (lambda sources: (torch.zeros(1),), DataError), (tuple, DataError)]:
        with raises(kind, "embed does not fit"):
            thaw(1, bad, "one", chunk=2)
    store.put_many({name(3): sample(3, 2)})
    try:
        thaw(1, never, "one")
    except StoreError as error:
        assert "sample/3" in str(error), f"the message does not name the sample without a source: {error}"
    else:
        raise AssertionError("a thaw without a source raised no StoreError")
    assert_at(store, 2, "two")
    assert_holds(store, range(4), 2)


CHECKS: tuple[Callable[[FeatureStore], None], ...] = (
    check_advance,
    check_failed_advance_changes_nothing,
    check_stage,
    check_abandoned_stage,
    check_rollback,
    check_release,
    check_undone_marks,
    check_what_lies_beside_follows,
    check_thaw,
    check_failed_thaw_changes_nothing,
)
