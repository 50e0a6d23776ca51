from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamdrop.errors import ConfigError, DataError, StoreCorruptError, StoreVersionError
from streamdrop.store.compress import compressor
from streamdrop.store.drift import Drift
from streamdrop.store.layout import EXACT, Layout, byte_view, codec_known, codec_name, dtype_name, dtype_named

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*FLOATS, torch.bool, torch.uint8, torch.int16, torch.int64, torch.complex64, torch.float8_e4m3fn]
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LIBRARIES = ["lz4", "zstd"]

quick = settings(deadline=None, max_examples=100, derandomize=True)
shapes = st.lists(st.integers(0, 4), max_size=4)
full_shapes = st.lists(st.integers(1, 4), max_size=4)
seeds = st.integers(0, 2**32 - 1)


def bits(tensor):
    return bytes(byte_view(tensor.contiguous()))


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def scattered(values, generator):
    """The same values as a view of a larger tensor, with dimensions in any order and every second one left out."""
    order = torch.randperm(values.dim(), generator=generator).tolist()
    places = tuple(slice(None, None, int(torch.randint(1, 3, (), generator=generator))) for _ in order)
    outer = torch.empty([values.shape[d] * 2 for d in order], dtype=values.dtype)
    view = outer[places][tuple(slice(values.shape[d]) for d in order)]
    view.copy_(values.permute(order))
    return view.permute([order.index(d) for d in range(len(order))])


def any_bits(shape, dtype, generator):
    """Every pattern of bits, NaNs of all kinds among them."""
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def numbers(shape, dtype, generator, power):
    """Finite floats of very different sizes, some of them 0."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values *= 10.0 ** (power * torch.rand(shape, generator=generator, dtype=torch.float64))
    values *= torch.rand(shape, generator=generator) < 0.7
    kind = torch.finfo(dtype)
    return values.clamp(kind.min, kind.max).to(dtype)


def batch_of(make, parts, count, seed):
    """``count`` samples of tensors (shape, dtype), each with strides of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(scattered(make(s, d, generator), generator) for s, d in parts) for _ in range(count)]


def parts_of(kinds, sizes=shapes):
    return st.lists(st.tuples(sizes, st.sampled_from(kinds)), min_size=1, max_size=3)


@quick
@given(parts_of(DTYPES), st.integers(1, 4), seeds)
def test_the_exact_codec_keeps_every_bit_and_the_first_samples_stride_order(parts, count, seed):
    samples = batch_of(any_bits, parts, count, seed)
    layout = Layout.of(samples[0], EXACT)
    columns = layout.encode(samples)
    assert not layout.lossy
    assert [(tuple(c.shape), c.dtype) for c in columns] == [((count, *c.shape), c.dtype) for c in layout.columns]
    for at, tensor in enumerate(layout.decode(columns)):
        assert same(tensor, torch.stack([s[at] for s in samples]))
        assert tensor.permute(0, *(d + 1 for d in layout.tensors[at].order)).is_contiguous()
        assert tensor.numel() == 0 or tensor.data_ptr() == columns[at].data_ptr(), "a copy"


@quick
@given(parts_of(DTYPES), st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.integers(0, 3), seeds)
def test_rows_of_bytes_come_back_as_they_were(parts, codec, count, seed):
    def small(shape, dtype, generator):
        return (torch.rand(shape, generator=generator) * 8).to(dtype)

    samples = batch_of(small, parts, count, seed)
    layout = Layout.of(batch_of(small, parts, 1, seed)[0], codec)
    columns = layout.encode(samples)
    assert layout.spans[0][0] == 0
    assert layout.spans[-1][1] == layout.nbytes
    rows = [b"".join(bits(column[n]) for column in columns) for n in range(count)]
    assert {len(row) for row in rows} <= {layout.nbytes}
    read = layout.allocate(count)
    for column, (start, stop) in zip(read, layout.spans, strict=True):
        byte_view(column)[:] = b"".join(row[start:stop] for row in rows)
    for got, expected in zip(layout.decode(read), layout.decode(columns), strict=True):
        assert same(got, expected)
        assert got.stride() == expected.stride()


def test_encoded_memory_is_its_own():
    samples = [(torch.ones(2, 3), torch.ones(4).requires_grad_()) for _ in range(3)]
    for batch in (samples, samples[:1]):
        layout = Layout.of(batch[0], EXACT)
        columns = layout.encode(batch)
        with torch.no_grad():
            [t.zero_() for sample in batch for t in sample]
        assert all(bool(c.all()) and not c.requires_grad for c in columns)
        with torch.no_grad():
            [t.fill_(1) for sample in batch for t in sample]


def test_stride_order_is_kept_where_strides_are_equal_or_zero():
    tensors = (torch.zeros(1, 3, 1, 1), torch.ones(1).expand(5, 2), torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1))
    assert [t.order for t in Layout.of(tensors, EXACT).tensors] == [(0, 1, 2, 3), (0, 1), (1, 2, 0)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_tensors_on_the_gpu_are_copied_to_the_cpu(codec):
    there = [(torch.randn(4, 3, 2, device="cuda").permute(1, 2, 0), torch.ones(2, dtype=torch.int64)) for _ in range(3)]
    here = [(a.cpu(), b) for a, b in there]
    layout = Layout.of(there[0], codec)
    assert layout == Layout.of(here[0], codec)
    for batch in (there, [here[0], *there[1:]]):
        columns = layout.encode(batch)
        assert all(c.device.type == "cpu" for c in columns)
        for a, b in zip(layout.decode(columns), layout.decode(layout.encode(here)), strict=True):
            assert same(a, b)
        assert Drift.over(layout, batch, columns) == Drift.over(layout, here, columns)


@quick
@given(parts_of(DTYPES), st.sampled_from(list(HALVES)), st.integers(1, 4), seeds)
def test_half_codecs_round_like_torch_and_leave_the_rest_alone(parts, codec, count, seed):
    samples = batch_of(any_bits, parts, count, seed)
    layout = Layout.of(samples[0], codec)
    for (shape, dtype), at, got in zip(parts, range(len(parts)), layout.decode(layout.encode(samples)), strict=True):
        written = torch.stack([s[at] for s in samples])
        lossy = dtype in (torch.float32, torch.float64) and 0 not in shape
        assert layout.tensors[at].codec == (codec if lossy else EXACT)
        if lossy:
            assert torch.equal(got.nan_to_num(), written.to(HALVES[codec]).to(dtype).nan_to_num())
            assert torch.equal(got.isnan(), written.isnan())
        else:
            assert same(got, written)


def channels(array):
    """[channels, values]: what shares a scale in int8."""
    if array.ndim < 2:
        return array.reshape(1, -1)
    return np.moveaxis(array, 0 if array.ndim > 2 else 1, 0).reshape(array.shape[0 if array.ndim > 2 else 1], -1)


def assert_int8_bound(samples, dtype):
    """Half a step of 127 levels to the largest value of a channel, and the rounding of the product."""
    layout = Layout.of(samples[0], "int8")
    columns = layout.encode(samples)
    kind = torch.finfo(dtype)
    for n, (sample, got) in enumerate(zip(samples, layout.decode(columns)[0], strict=True)):
        before, after = (channels(t.double().numpy()) for t in (sample[0], got))
        top = np.abs(before).max(1)
        scale = columns[0][n].double().numpy()
        assert scale.shape == top.shape
        assert ((scale == 0) == (top == 0)).all()
        step = np.maximum(top / 127, torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny)
        assert np.allclose(scale[top > 0], step[top > 0], rtol=1e-6, atol=0)
        bound = scale[:, None] / 2 * (1 + 1e-5) + np.abs(before) * kind.eps + kind.smallest_normal * kind.eps
        assert (np.abs(before - after) <= bound).all()
        assert (after[top == 0] == 0).all()


@quick
@given(full_shapes, st.sampled_from(FLOATS), st.integers(1, 3), st.integers(-44, 38), seeds)
def test_int8_errs_by_half_a_step_of_its_channel(shape, dtype, count, power, seed):
    def make(shape, dtype, generator):
        return numbers(shape, dtype, generator, power)

    assert_int8_bound(batch_of(make, [(shape, dtype)], count, seed), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_holds_the_extremes_of_every_dtype(dtype):
    kind = torch.finfo(dtype)
    least = kind.smallest_normal * kind.eps
    rows = [[kind.max, kind.min, kind.max / 2], [kind.tiny, 3 * least, -least], [0.0, -0.0, 0.0], [1.0, -127.0, 0.4]]
    sample = torch.tensor(rows, dtype=torch.float64).to(dtype).reshape(4, 3, 1)
    assert_int8_bound([(sample,)] * 2, dtype)
    layout = Layout.of((sample,), "int8")
    assert layout.decode(layout.encode([(sample,)]))[0][0, 3].flatten().tolist() == [1.0, -127.0, 0.0]


def test_int8_takes_a_scale_per_channel_in_any_stride_order():
    values = torch.tensor([1.0, 100.0, 10000.0])
    picture = values[:, None, None] * torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    matrix, vector, number = picture.flatten(1).t(), picture[0, 0], picture[0, 0, 0]
    plain, other = (Layout.of((t, matrix, vector, number), "int8") for t in (picture, last))
    assert [c.shape for c in plain.columns] == [(3,), (3, 4, 5), (3,), (3, 20), (1,), (5,), (1,), ()]
    assert [c.shape for c in other.columns[:2]] == [(3,), (4, 5, 3)]
    one, two = (k.encode([(t, matrix, vector, number)]) for k, t in ((plain, picture), (other, last)))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[0], one[2])
    assert torch.equal(plain.decode(one)[0], other.decode(two)[0])
    assert torch.allclose(plain.decode(one)[0], picture, rtol=0, atol=10000 / 254)
    assert torch.allclose(plain.decode(one)[0][0, 0], picture[0], rtol=0, atol=1.001 / 254)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_int8_refuses_what_is_not_finite_and_names_the_sample(bad):
    samples = [(torch.ones(2, 2, 2), torch.ones(3)) for _ in range(3)]
    samples[1][1][2] = bad
    layout = Layout.of(samples[0], "int8")
    with pytest.raises(DataError, match="b'second' has activations that are not finite"):
        layout.encode(samples, [b"first", b"second", b"third"])
    with pytest.raises(DataError, match="number 1 of the batch"):
        layout.encode(samples)


def slow_drift(layout, samples, columns):
    largest, total, count = 0.0, 0.0, 0
    for at, (part, after) in enumerate(zip(layout.tensors, layout.decode(columns), strict=True)):
        if part.codec == EXACT:
            continue
        for sample, row in zip(samples, after, strict=True):
            for a, b in zip(sample[at].flatten().tolist(), row.flatten().tolist(), strict=True):
                gap = 0.0 if a == b or np.isnan(a) else abs(a - b)
                largest, total, count = max(largest, gap), total + gap, count + 1
    return largest, total, count


@quick
@given(parts_of([*FLOATS, torch.int64]), st.sampled_from(["float16", "bfloat16", "int8", EXACT]),
       st.integers(1, 3), st.integers(-6, 7), seeds)  # fmt: skip
def test_drift_is_what_values_moved_by(parts, codec, count, power, seed):
    def make(shape, dtype, generator):
        values = numbers(shape, dtype if dtype.is_floating_point else torch.float32, generator, power)
        if dtype.is_floating_point and codec != "int8":
            values[torch.rand(shape, generator=generator) < 0.1] = torch.nan
            values[torch.rand(shape, generator=generator) < 0.1] = -torch.inf
        return values.to(dtype)

    samples = batch_of(make, parts, count, seed)
    layout = Layout.of(samples[0], codec)
    columns = layout.encode(samples)
    drift = Drift.over(layout, samples, columns)
    assert [drift.largest, drift.total, drift.count] == pytest.approx(slow_drift(layout, samples, columns), rel=1e-5)


def test_drift_counts_overflow_as_infinite_and_adds_up():
    samples = [(torch.tensor([70000.0, 1.0, torch.inf, torch.nan]), torch.arange(3))]
    layout = Layout.of(samples[0], "float16")
    over = Drift.over(layout, samples, layout.encode(samples))
    assert over == Drift(torch.inf, torch.inf, 4)
    assert over.report() == {"max": torch.inf, "mean": torch.inf}
    assert Drift(1.0, 2.0, 4) + Drift(3.0, 1.0, 2) == Drift(3.0, 3.0, 6)
    assert Drift(1.0, 2.0, 4).report() == {"max": 1.0, "mean": 0.5}
    assert Drift().report() == {"max": 0.0, "mean": 0.0}
    assert Drift.over(layout, [], layout.allocate(0)) == Drift()


@quick
@given(parts_of(DTYPES), st.sampled_from(["float32", "float16", "bfloat16", "int8"]), seeds)
def test_layouts_survive_json(parts, codec, seed):
    layout = Layout.of(batch_of(any_bits, parts, 1, seed)[0], codec)
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.spans == layout.spans


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
GOOD = {"shape": [2, 3], "dtype": "float32", "codec": "int8", "order": [1, 0]}


@quick
@given(nonsense)
def test_nonsense_is_a_corrupt_store(value):
    with pytest.raises(StoreCorruptError):
        Layout.from_json(value)


@quick
@given(st.sampled_from(sorted(GOOD)), nonsense)
@example("shape", [2, -3])
@example("shape", [2, 0])
@example("shape", [2, True])
@example("order", [0, 0])
@example("order", [0, 1, 2])
@example("dtype", "int64")
@example("dtype", "nn")
@example("codec", "float64")
def test_nonsense_in_one_field_is_a_corrupt_store(field, value):
    if (
        field == "shape"
        and isinstance(value, list)
        and len(value) == 2
        and all(type(v) is int and v > 0 for v in value)
    ):
        return
    with pytest.raises(StoreCorruptError):
        Layout.from_json([{**GOOD, field: value}])


def test_check_names_what_differs():
    layout = Layout.of((torch.ones(2), torch.ones(3)), "float16")
    layout.check(b"k", (torch.ones(2), torch.zeros(3)))
    for bad in [(torch.ones(2),), (torch.ones(2), torch.ones(4)), (torch.ones(2), torch.ones(3).half())]:
        with pytest.raises(
            DataError, match=r"b'k' has activations .* but the store holds \(float32\[2\], float32\[3\]"
        ):
            layout.check(b"k", bad)


def test_codecs_have_names():
    assert [codec_name(n) for n in (None, "int8", torch.int8, torch.bfloat16)] == [None, "int8", "int8", "bfloat16"]
    assert codec_known("int8") == "int8"
    with pytest.raises(ConfigError, match=r"float64.*valid: float32, float16, bfloat16, int8"):
        codec_name("float64")
    for foreign in ("int4", None, ["int8"]):
        with pytest.raises(StoreVersionError, match="upgrade"):
            codec_known(foreign)
    assert dtype_named(dtype_name(torch.bfloat16)) is torch.bfloat16
    with pytest.raises(StoreCorruptError):
        dtype_named("tensor")


@pytest.mark.parametrize("name", LIBRARIES)
@quick
@given(data=st.binary(max_size=300) | st.integers(0, 100_000).map(bytes))
@example(data=b"")
def test_compression_gives_back_what_it_got(name, data):
    compress, decompress = compressor(name)
    for kind in (bytes, bytearray, memoryview):
        packed = compress(kind(data))
        assert type(packed) is bytes
        assert decompress(kind(packed), len(data)) == data


@pytest.mark.parametrize("name", LIBRARIES)
def test_rows_after_a_relu_shrink(name):
    compress, decompress = compressor(name)
    rows = torch.randn(64, 28, 28, generator=torch.Generator().manual_seed(0)).relu()
    view = byte_view(rows)
    packed = compress(view)
    assert len(packed) < 0.8 * len(view)
    assert decompress(packed, len(view)) == view


@pytest.mark.parametrize("name", LIBRARIES)
def test_damaged_rows_are_a_corrupt_store(name):
    compress, decompress = compressor(name)
    data = bytes(500) + bytes(range(250))
    packed = compress(data)
    for bad, size in [(packed[:-3], 750), (packed, 749), (packed, 751), (packed, 10), (b"", 750), (b"nonsense", 750)]:
        with pytest.raises(StoreCorruptError, match="restore the store from a copy"):
            decompress(bad, size)
    assert decompress(packed, 750) == data


@pytest.mark.parametrize("name", LIBRARIES)
def test_threads_share_a_compressor(name):
    compress, decompress = compressor(name)

    def work(seed):
        data = torch.randn(50_000, generator=torch.Generator().manual_seed(seed)).relu().numpy().tobytes()
        return all(decompress(compress(data), len(data)) == data for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize(("name", "module"), [("lz4", "lz4.block"), ("zstd", "zstandard")])
def test_a_missing_library_comes_with_the_remedy(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'streamdrop\[compression\]'") as caught:
        compressor(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_compression_is_refused():
    with pytest.raises(ConfigError, match="'gzip' is not known; valid: lz4, zstd"):
        compressor("gzip")
