"""A conformance kit for feature stores: what the engine relies on, for users' own stores too.

``check_store(make_store)`` runs every check of ``CHECKS`` on a store of its own: ``make_store()`` returns an empty one,
at cut 0 and version ''.
"""

# The kit works without pytest, so its rules do not apply.
# ruff: noqa: PT017, PT018, PERF203

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from streamdrop.errors import DataError, MissingKeyError, StoreError, StoreVersionError
from streamdrop.store.protocol import FeatureStore
from streamdrop.types import Activations, SampleInfo

MakeStore = Callable[[], FeatureStore]


def check_store(make_store: MakeStore) -> None:
    """Assert every law of a FeatureStore; AssertionError says which one is broken."""
    for check in CHECKS:
        with make_store() as store:
            check(store)


def sample(seed: int, double: int = 1) -> Activations:
    """Two tensors of one sample, made from its number: float32 [2, 3, 4] in channels-last order and int64 [3]."""
    values = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2).permute(2, 0, 1)
    return (values + 100 * seed) * double, torch.tensor([seed, -seed, 7]) * double


def samples(numbers: Sequence[int]) -> dict[bytes, Activations]:
    """{key: sample} for numbers."""
    return {name(n): sample(n) for n in numbers}


def name(number: int) -> bytes:
    """A key."""
    return b"sample/%d" % number


def doubled(activations: Activations) -> Activations:
    """A step whose outcome is easy to check; keeps shapes and dtypes."""
    return tuple(t * 2 for t in activations)


def assert_holds(store: FeatureStore, numbers: Sequence[int], factor: int = 1) -> None:
    """Assert that exactly these samples are there, in this order of arrival, each with its own values."""
    keys = [name(n) for n in numbers]
    assert store.keys() == keys, f"keys() is {store.keys()}, not {keys}: order of arrival"
    assert len(store) == len(keys), f"len() is {len(store)}, not {len(keys)}"
    assert all(key in store for key in keys), "a key of keys() is not `in` the store"
    if keys:
        for at, tensor in enumerate(store.get_many(keys)):
            expected = torch.stack([sample(n, factor)[at] for n in numbers])
            assert torch.equal(tensor, expected), f"tensor {at} of {keys} is {tensor}, not {expected}"


@contextlib.contextmanager
def raises(kind: type[BaseException], why: str) -> Iterator[None]:
    """Assert that an error of this kind leaves the block."""
    try:
        yield
    except kind as error:
        assert str(error) and "\n" not in str(error), f"{kind.__name__} needs a message of one line, not {str(error)!r}"
    else:
        raise AssertionError(f"no {kind.__name__}: {why}")


def check_new_store_is_empty(store: FeatureStore) -> None:
    """A new store has nothing, at cut 0 with version ''."""
    assert isinstance(store, FeatureStore), "a method or property of FeatureStore is missing"
    assert (store.cut, store.version) == (0, ""), f"a new store is at {store.cut, store.version}, not (0, '')"
    assert_holds(store, [])
    store.put_many({})
    store.discard([name(1)])
    store.flush()
    assert_holds(store, [])


def check_values_come_back(store: FeatureStore) -> None:
    """Values, dtypes and stride order, in the order asked for, repeated keys too."""
    store.put_many(samples([3, 1, 2]))
    assert_holds(store, [3, 1, 2])
    batch = store.get_many([name(2), name(3), name(2)])
    for at, tensor in enumerate(batch):
        expected = torch.stack([sample(n)[at] for n in (2, 3, 2)])
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype, (
            f"tensor {at} is {tensor}, not {expected}"
        )
    assert batch[0].stride() == (24, 1, 8, 2), f"strides are {batch[0].stride()}: a sample's stride order was lost"
    assert batch[1].is_contiguous(), "a contiguous sample came back with other strides"


def check_memory_is_not_shared(store: FeatureStore) -> None:
    """Neither what goes in nor what comes out aliases the store."""
    mine = sample(1)
    store.put_many({name(1): mine})
    for tensor in mine:
        tensor.zero_()
    for tensor in store.get_many([name(1)]):
        tensor.zero_()
    assert_holds(store, [1])


def check_missing_keys_are_named(store: FeatureStore) -> None:
    """MissingKeyError, also a KeyError, names what is missing."""
    store.put_many(samples([1]))
    for ask in (store.get_many, store.get_targets, store.get_info):
        try:
            ask([name(1), b"gone"])
        except MissingKeyError as error:
            assert isinstance(error, KeyError) and "gone" in str(error), f"the message does not name the key: {error}"
        else:
            raise AssertionError(f"{ask.__name__} of a missing key raised no MissingKeyError")
    assert b"gone" not in store and name(1) in store


def check_replacing_makes_newest(store: FeatureStore) -> None:
    """A key that is put again is replaced whole and moves to the end."""
    store.put_many(samples([1, 2]), {name(1): 5, name(2): 6}, {name(1): SampleInfo(2.0)})
    store.put_many({name(1): sample(9)})
    assert store.keys() == [name(2), name(1)], f"a replaced key must be the newest: {store.keys()}"
    assert torch.equal(store.get_many([name(1)])[0][0], sample(9)[0]), "old values of a replaced key"
    assert store.get_targets([name(1)]) is None, "old target of a replaced key"
    assert store.get_info([name(1)]) == [SampleInfo()], "old info of a replaced key"


def check_bad_samples_change_nothing(store: FeatureStore) -> None:
    """Another shape, dtype or number of tensors, odd keys: DataError, and nothing of the batch is kept."""
    store.put_many(samples([1]))
    first, second = sample(2)
    for bad in [(first,), (first, second, second), (first[:, :2], second), (first.double(), second), first, ()]:
        with raises(DataError, f"activations {bad!r} do not fit the store's first sample"):
            store.put_many({name(2): sample(2), name(3): bad})  # type: ignore[dict-item]
    for key in ("text", b"", 3):
        with raises(DataError, f"{key!r} is no key"):
            store.put_many({name(2): sample(2), key: sample(3)})  # type: ignore[dict-item]
    with raises(DataError, "weight -1"):
        store.put_many(samples([2]), info={name(2): SampleInfo(-1.0)})
    with raises(DataError, "a target for a key that is not put"):
        store.put_many(samples([2]), {name(3): 1})
    with raises(DataError, "one target for two samples"):
        store.put_many(samples([2, 3]), [1])
    assert_holds(store, [1])


def check_targets(store: FeatureStore) -> None:
    """Numbers, tensors and tuples, by key, in a list, stacked."""
    store.put_many(samples([1, 2]), [4, 5])
    assert torch.equal(_one(store, [2, 1]), torch.tensor([5, 4])), "whole numbers are int64 targets"
    store.put_many(samples([3, 4]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(_one(store, [4]), torch.tensor([[3.0, 4.0]])), "rows of a tensor are targets"
    boxes, scores = torch.rand(2, 4), torch.rand(2)
    store.put_many(samples([5, 6]), (boxes, scores))
    found = store.get_targets([name(6), name(5)])
    assert isinstance(found, tuple) and len(found) == 2, "a tuple of tensors comes back as a tuple of stacked ones"
    assert torch.equal(found[0], boxes.flip(0)) and torch.equal(found[1], scores.flip(0))
    store.put_many(samples([7, 8]), {name(7): 0.5})
    assert store.get_targets([name(8)]) is None, "no target: None"
    with raises(DataError, "only one of two has a target"):
        store.get_targets([name(7), name(8)])
    with raises(DataError, "targets of different shapes cannot be stacked"):
        store.get_targets([name(1), name(3)])


def _one(store: FeatureStore, numbers: Sequence[int]) -> torch.Tensor:
    target = store.get_targets([name(n) for n in numbers])
    assert isinstance(target, torch.Tensor), f"a tensor target came back as {target!r}"
    return target


def check_info(store: FeatureStore) -> None:
    """Weight, pinned, label and stream come back."""
    info = SampleInfo(0.5, True, 3, "cam/éa")
    store.put_many(samples([1, 2]), info={name(2): info})
    assert store.get_info([name(2), name(1)]) == [info, SampleInfo()], f"{store.get_info([name(2), name(1)])}"


def check_discard(store: FeatureStore) -> None:
    """Discarded samples are gone; keys that are not there are ignored."""
    store.put_many(samples([1, 2, 3]))
    store.discard([name(2), b"gone", name(2)])
    assert_holds(store, [1, 3])
    store.put_many(samples([2]))
    assert_holds(store, [1, 3, 2])


def check_advance(store: FeatureStore) -> None:
    """Every sample is promoted; targets, info and order stay; the same cut is a no-op, a lower one an error."""
    store.put_many(samples(range(5)), list(range(5)), {name(3): SampleInfo(2.0)})
    sizes: list[int] = []

    def step(batch: Activations) -> Activations:
        sizes.append(len(batch[0]))
        return doubled(batch)

    store.advance(3, step, "three", chunk=2)
    assert sum(sizes) == 5 and max(sizes) == 2, f"5 samples with chunk=2 were given to step as {sizes}"
    assert (store.cut, store.version) == (3, "three")
    assert_holds(store, range(5), 2)
    assert torch.equal(_one(store, range(5)), torch.arange(5)) and store.get_info([name(3)])[0].weight == 2.0
    store.advance(3, _never, "three")
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
    for bad, kind in [(_never, AssertionError), (lambda batch: (batch[0][:1],), DataError), (lambda _: (), DataError)]:
        with raises(kind, "step does not fit"):
            store.advance(1, bad, "one", chunk=2)
        assert (store.cut, store.version) == (0, "")
        assert_holds(store, range(5))
    store.advance(1, doubled, "one")
    assert_holds(store, range(5), 2)


def _never(batch: Activations) -> Activations:
    raise AssertionError("step was called though there was nothing to promote (or to fail on purpose)")


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
    assert (store.cut, store.version) == (2, "two")
    assert_holds(store, [0, 1, 2, 5, 3, 6], 2)


def check_abandoned_stage(store: FeatureStore) -> None:
    """Leaving without commit, or by an error, leaves the old cut; another promotion may follow."""
    store.put_many(samples(range(3)))
    with store.stage(2, "two") as staged:
        staged.put_many({name(1): sample(8)})
    with contextlib.suppress(ZeroDivisionError), store.stage(2, "two") as staged:
        staged.put_many({name(1): sample(8)})
        raise ZeroDivisionError
    assert (store.cut, store.version) == (0, "")
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
    store.rollback(mark)
    assert_holds(store, range(4), 2)
    assert torch.equal(_one(store, range(4)), torch.arange(4)), "targets of restored samples"
    store.discard([name(3)])
    store.rollback(mark)
    assert_holds(store, range(4), 2)


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


def check_odd_tensors(store: FeatureStore) -> None:
    """Keys of any length; bool, half, bfloat16, empty, scalar and expanded tensors, views with gradients."""
    odd = (
        torch.tensor(True),
        torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.float16),
        torch.rand(3, 2, requires_grad=True).to(torch.bfloat16).t(),
        torch.empty(0, 4),
        torch.ones(1).expand(5),
        torch.arange(10, dtype=torch.uint8)[::3],
    )
    keys = [b"\x00", b"k" * 5000, b"k" * 5001]
    store.put_many(dict.fromkeys(keys, odd))
    for got, put in zip(store.get_many(keys), odd, strict=True):
        expected = torch.stack([put.detach()] * 3)
        assert got.dtype == put.dtype and got.shape == expected.shape, f"{put} came back as {got}"
        assert torch.equal(got.nan_to_num(), expected.nan_to_num()) and not got.requires_grad, (
            f"{put} came back as {got}"
        )
    assert store.keys() == keys, "keys of any length keep their order"


def check_closed(store: FeatureStore) -> None:
    """After close, which may be repeated, every use is a StoreError."""
    store.put_many(samples([1]))
    store.close()
    store.close()
    for use in (lambda: store.put_many(samples([2])), lambda: store.get_many([name(1)]), store.mark, store.flush):
        with raises(StoreError, "use of a closed store"):
            use()


CHECKS: tuple[Callable[[FeatureStore], None], ...] = (
    check_new_store_is_empty,
    check_values_come_back,
    check_memory_is_not_shared,
    check_missing_keys_are_named,
    check_replacing_makes_newest,
    check_bad_samples_change_nothing,
    check_targets,
    check_info,
    check_discard,
    check_advance,
    check_failed_advance_changes_nothing,
    check_stage,
    check_abandoned_stage,
    check_rollback,
    check_release,
    check_undone_marks,
    check_odd_tensors,
    check_closed,
)
