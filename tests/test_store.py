from __future__ import annotations

import re

import pytest
import torch

from streamdrop.errors import ConfigError, DataError, StoreCorruptError, StoreFullError, StoreVersionError
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.testing.stores import CHECKS, assert_holds, check_store, doubled, name, sample, samples
from streamdrop.types import SampleInfo


@pytest.fixture(params=["memory", "lmdb", "lmdb, without a map", "tiered", "tiered, committing at once"])
def make(request, tmp_path):
    made = []

    def make_store(**options):
        path = tmp_path / str(len(made))
        kinds = {
            "memory": lambda: MemoryStore(**options),
            "lmdb": lambda: LmdbStore(path, **options),
            "lmdb, without a map": lambda: LmdbStore(path, map_bytes=0, **options),
            "tiered": lambda: TieredStore(path, commit_seconds=3600, **options),
            "tiered, committing at once": lambda: TieredStore(path, commit_bytes=1, **options),
        }
        made.append(kinds[request.param]())
        return made[-1]

    yield make_store
    for store in made:
        store.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(make, check):
    with make() as store:
        check(store)


def test_the_kit_runs_every_check_and_reports_broken_laws(make):
    class Forgetful(MemoryStore):
        def get_many(self, keys):
            return tuple(t.contiguous() for t in super().get_many(keys))

    check_store(make)
    with pytest.raises(AssertionError, match="stride order was lost"):
        check_store(Forgetful)


def rounded(self, keys):
    return tuple(t.half().to(t.dtype) if t.is_floating_point() else t for t in MemoryStore.get_many(self, keys))


def floating(self, keys):
    found = MemoryStore.get_targets(self, keys)
    return found.float() if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"get_many": rounded}, "came back as"),
        ({"get_targets": floating}, "int64 targets"),
        ({"__contains__": lambda self, key: True}, "another thing than keys"),
        ({"version": property(lambda self: "")}, "the store says cut 3, version ''; it is at cut 3, version 'three'"),
    ],
)
def test_the_kit_names_the_fault(fault, told):
    with pytest.raises(AssertionError, match=re.escape(told)):
        check_store(type("Faulty", (MemoryStore,), fault))


def test_oldest_unpinned_sample_makes_room(make):
    store = make(max_samples=3)
    store.put_many(samples([0, 1]), info={name(0): SampleInfo(pinned=True)})
    store.put_many(samples([2, 3]))
    assert_holds(store, [0, 2, 3])
    store.put_many(samples([2]))
    assert_holds(store, [0, 3, 2])
    store.put_many(samples(range(10, 20)))
    assert_holds(store, [0, 18, 19])


def test_evicted_samples_come_back_with_a_rollback(make):
    store = make(max_samples=2)
    store.put_many(samples([0, 1]))
    mark = store.mark()
    store.put_many(samples([2, 3, 4]))
    assert_holds(store, [3, 4])
    store.rollback(mark)
    assert_holds(store, [0, 1])


def test_pinned_samples_never_leave(make):
    store = make(max_samples=2)
    pinned = SampleInfo(pinned=True)
    store.put_many(samples([0, 1]), info={name(0): pinned, name(1): pinned})
    for key in (2, 3):
        with pytest.raises(StoreFullError, match="max_samples=2"):
            store.put_many(samples([key]), info={name(3): pinned} if key == 3 else None)
    assert_holds(store, [0, 1])
    store.put_many(samples([1]))  # replaced, no longer pinned
    store.put_many(samples([2]))
    assert_holds(store, [0, 2])


@pytest.mark.parametrize("options", [{"max_samples": 0}, {"max_samples": 1.5}, {"dtype": "int4"}])
def test_impossible_options_are_refused(make, options):
    with pytest.raises(ConfigError, match=r"valid|at least 1"):
        make(**options)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_lossy_codecs_restore_the_dtype_and_report_their_error(make, dtype):
    store = make(dtype=dtype)
    values = torch.randn(4, 3, 5)
    store.put_many({name(i): (values[i], torch.arange(3)) for i in range(4)})
    got, whole = store.get_many([name(i) for i in range(4)])
    assert got.dtype == torch.float32
    assert whole.dtype == torch.int64
    half = torch.float16 if dtype == "float16" else dtype
    assert torch.equal(got, values.to(half).float())
    gap = (got - values).abs().double()
    assert store.error() == pytest.approx({"max": gap.max().item(), "mean": gap.mean().item()})
    assert store.error()["max"] > 0


RARE = ["uint16", "uint32", "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e8m0fnu", "uint1"]


@pytest.mark.parametrize(
    ("dtype", "most", "wider"),
    [("float16", "65504", "bfloat16 or float32"), ("bfloat16", r"3.38953e\+38", "float32")],
)
def test_finite_values_that_a_codec_cannot_keep_are_refused(make, dtype, most, wider):
    store = make(dtype=dtype)
    store.put_many({b"there": (torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]).double(),)})
    fit, unfit = (torch.ones(4).double() for _ in range(2))
    unfit[2] = -3e39
    with pytest.raises(DataError, match=rf"b'bad' .* 3e\+39, {dtype} keeps none beyond {most}: .* dtype {wider},"):
        store.put_many({b"good": (fit,), b"bad": (unfit,)})
    assert store.keys() == [b"there"]
    store.put_many({b"good": (fit,)})
    assert torch.equal(store.get_many([b"good"])[0][0], fit)
    with pytest.raises(DataError, match=f"magnitude 1e\\+39, {dtype}"):
        store.advance(1, lambda acts: (acts[0].nan_to_num(posinf=1.0, neginf=1.0) * 1e39,), "one")
    assert (store.cut, store.error()) == (0, {"max": 0.0, "mean": 0.0})


@pytest.mark.parametrize("dtype", [d for d in RARE if hasattr(torch, d)])
def test_every_dtype_is_taken_in_and_kept_bit_for_bit(make, dtype):
    kind, store = getattr(torch, dtype), make(dtype="float16")
    raw = torch.arange(4 * 6 * kind.itemsize, dtype=torch.uint8).reshape(4, -1) % (2 if dtype == "bool" else 251)
    store.put_many({name(i): (row.view(kind).reshape(2, 3), row.view(kind)[0]) for i, row in enumerate(raw)})
    for _ in range(2):
        whole, number = store.get_many([name(2), name(1)])
        assert (whole.dtype, number.dtype) == (kind, kind)
        assert torch.equal(whole.view(torch.uint8).reshape(2, -1), raw[[2, 1]])
        store.flush()


def test_exact_codec_has_no_error(make):
    store = make(dtype="float32")
    store.put_many({b"x": (torch.randn(9).double(),)})
    assert store.error() == {"max": 0.0, "mean": 0.0}


def test_stride_order_is_that_of_the_cut(make):
    store = make()
    store.put_many({name(i): (torch.full((2, 3), float(i)),) for i in range(3)})
    store.advance(1, lambda acts: (acts[0].reshape(-1, 2, 3, 1).to(memory_format=torch.channels_last),), "1")
    (got,) = store.get_many([name(2), name(1)])
    assert got.shape == (2, 2, 3, 1)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_batches_come_back_channels_last(make):
    store = make()
    batch = torch.randn(4, 8, 1, 1).to(memory_format=torch.channels_last)
    store.put_many({name(i): (batch[i],) for i in range(4)})
    (got,) = store.get_many([name(i) for i in range(4)])
    assert torch.equal(got, batch)
    assert got.stride() == batch.stride()


def test_version_of_an_empty_store_is_a_label(make):
    store = make()
    store.advance(0, doubled, "prepared")
    assert (store.cut, store.version) == (0, "prepared")
    store.put_many(samples([1]))
    with pytest.raises(StoreVersionError, match="another model"):
        store.advance(0, doubled, "other")


def test_large_batches_are_split_and_all_or_none(make, monkeypatch):
    monkeypatch.setattr("streamdrop.store.writing.RECORDS", 3)
    store = make()
    store.put_many(samples(range(2)))
    store.put_many(samples(range(10)), list(range(10)))
    assert_holds(store, range(10))
    assert torch.equal(store.get_targets([name(7)]), torch.tensor([7]))


def test_memory_state_survives_a_round_trip():
    store = MemoryStore(max_samples=4)
    store.put_many(samples(range(4)), {name(1): (torch.rand(2), torch.tensor(3))}, {name(2): SampleInfo(2.0, True)})
    mark = store.mark()
    store.put_many(samples([9]))
    tensors, meta = store.state()
    assert all(t.device.type == "cpu" and t.is_contiguous() for t in tensors.values())
    other = MemoryStore(max_samples=4)
    other.restore(tensors, meta)
    for tensor in tensors.values():
        tensor.zero_()
    assert_holds(other, [1, 2, 3, 9])
    assert other.get_info([name(2)]) == [SampleInfo(2.0, True)]
    other.rollback(mark)
    assert_holds(other, range(4))
    found = other.get_targets([name(1)])
    assert torch.equal(found[1], torch.tensor([3]))


def test_memory_state_goes_through_safetensors(tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    for numbers in ([], [1, 2]):
        store = MemoryStore()
        store.put_many(samples(numbers))
        tensors, meta = store.state()
        save_file(tensors, str(tmp_path / "s"))
        other = MemoryStore()
        other.restore(load_file(str(tmp_path / "s")), json.loads(json.dumps(meta)))
        assert_holds(other, numbers)


def test_broken_memory_state_is_refused_and_changes_nothing():
    store = MemoryStore()
    store.put_many(samples([1]))
    tensors, meta = store.state()
    other = MemoryStore()
    other.put_many(samples([5]))
    for broken in (
        {},
        {**tensors, "values.0": tensors["values.0"][:, :1]},
        {**tensors, "entries": tensors["entries"][:3]},
    ):
        with pytest.raises(StoreCorruptError):
            other.restore(broken, meta)
    with pytest.raises(StoreVersionError, match="dtype"):
        MemoryStore(dtype="float16").restore(tensors, meta)
    assert_holds(other, [5])
    assert torch.equal(other.get_many([name(5)])[1][0], sample(5)[1])
