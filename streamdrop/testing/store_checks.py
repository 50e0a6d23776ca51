"""Laws of a store at one cut: what is put is what comes back."""

# ruff: noqa: PT017, PT018, PERF203

from __future__ import annotations

from collections.abc import Callable

import torch

from streamdrop.errors import DataError, MissingKeyError, StoreError
from streamdrop.store.protocol import FeatureStore
from streamdrop.testing.store_samples import assert_holds, assert_streams, name, raises, sample, samples, targets_of
from streamdrop.types import SampleInfo


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


def check_exact_bits(store: FeatureStore) -> None:
    """No bit is lost, unless the store says by ``codec`` that it keeps floats as something else."""
    if getattr(store, "codec", "float32") != "float32":
        return
    odd = torch.tensor([1 / 3, -0.0, 1e-42, 65505.0, 3e38, torch.inf, torch.nan])
    store.put_many({name(1): (odd, odd.double() / 3)})
    for tensor, given in zip(store.get_many([name(1)]), (odd, odd.double() / 3), strict=True):
        assert tensor[0].numpy().tobytes() == given.numpy().tobytes(), f"{given} came back as {tensor[0]}"


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
    assert b"gone" not in store and name(1) in store, "`in` says another thing than keys()"


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
    whole = targets_of(store, [2, 1])
    assert torch.equal(whole, torch.tensor([5, 4])) and whole.dtype == torch.int64, (
        f"whole numbers are int64 targets, not {whole}"
    )
    store.put_many(samples([3, 4]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(targets_of(store, [4]), torch.tensor([[3.0, 4.0]])), "rows of a tensor are targets"
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


def check_info(store: FeatureStore) -> None:
    """Weight, pinned, label and stream come back."""
    info = SampleInfo(0.5, True, 3, "cam/éa")
    store.put_many(samples([1, 2]), info={name(2): info})
    assert store.get_info([name(2), name(1)]) == [info, SampleInfo()], f"{store.get_info([name(2), name(1)])}"


def check_sources(store: FeatureStore) -> None:
    """Encoded inputs come back as they were given; a sample that is put again without one has none."""
    long = bytes(range(256)) * 20
    store.put_many(samples([1, 2, 3]), sources={name(2): b"two", name(1): long})
    found = store.get_sources([name(n) for n in (3, 2, 1, 2)])
    assert found == [None, b"two", long, b"two"], f"sources are {found}: in the order of the keys, None for none"
    store.put_many(samples([1, 2]), sources={name(2): b"other"})
    found = store.get_sources([name(1), name(2)])
    assert found == [None, b"other"], f"sources of replaced samples are {found}"
    store.discard([name(2)])
    store.put_many(samples([2]))
    assert store.get_sources([name(2)]) == [None], "the source of a sample that was discarded before"
    for wrong in ({name(9): b"a stranger's"}, {name(4): "text"}, {name(4): 5}):
        with raises(DataError, f"sources={wrong!r}"):
            store.put_many(samples([4]), sources=wrong)  # type: ignore[arg-type]
    with raises(MissingKeyError, "the source of a key that is not there"):
        store.get_sources([name(1), b"gone"])
    assert_holds(store, [3, 1, 2])


def check_streams(store: FeatureStore) -> None:
    """Keys of one stream in their order of arrival, through replacement and discard."""
    streams = {1: "cam/é", 2: "b", 3: "", 4: "cam/é", 5: "b"}
    store.put_many(samples(range(6)), info={name(n): SampleInfo(stream=s) for n, s in streams.items()})
    assert_streams(store, {"cam/é": [1, 4], "b": [2, 5], "": [0, 3], "cam": []})
    store.discard([name(1), name(0)])
    store.put_many(samples([2, 5]), info={name(2): SampleInfo(stream="cam/é"), name(5): SampleInfo(stream="b")})
    assert_streams(store, {"cam/é": [4, 2], "b": [5], "": [3]})
    store.put_many(samples([5]))
    assert_streams(store, {"cam/é": [4, 2], "b": [], "": [3, 5]})
    assert_holds(store, [3, 4, 2, 5])


def check_discard(store: FeatureStore) -> None:
    """Discarded samples are gone; keys that are not there are ignored."""
    store.put_many(samples([1, 2, 3]))
    store.discard([name(2), b"gone", name(2)])
    assert_holds(store, [1, 3])
    store.put_many(samples([2]))
    assert_holds(store, [1, 3, 2])


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
    check_exact_bits,
    check_memory_is_not_shared,
    check_missing_keys_are_named,
    check_replacing_makes_newest,
    check_bad_samples_change_nothing,
    check_targets,
    check_info,
    check_sources,
    check_streams,
    check_discard,
    check_odd_tensors,
    check_closed,
)
