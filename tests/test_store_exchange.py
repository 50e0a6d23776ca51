"""Encoded inputs, and stores as files: what goes out comes back bit for bit, and damage is told, not imported."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from streamdrop.errors import (
    ConfigError,
    DataError,
    OutputError,
    StoreCorruptError,
    StoreError,
    StoreVersionError,
)
from streamdrop.store import LmdbStore, MemoryStore
from streamdrop.store.exchange import export_store, import_store
from streamdrop.store.sources import decode_source, encode_source, is_raw
from streamdrop.testing.stores import doubled, name, sample, samples
from streamdrop.types import SampleInfo

SUFFIXES = (".safetensors", ".npz")
EXOTIC = (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.complex128, torch.bool, torch.uint16)


def bits(value):
    return value.contiguous().reshape(-1).view(torch.uint8).tolist()


def same(left, right):
    """Equal tensors, tuples of them or None: dtype, shape and every bit."""
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(same, left, right))
    if left is None or right is None:
        return left is right
    return (left.dtype, left.shape, bits(left)) == (right.dtype, right.shape, bits(right))


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, shape or (9, 7, 3), np.uint8)


@pytest.mark.parametrize("kind", ["png", "raw"])
@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 4), (1, 1, 3)])
def test_exact_sources_of_images(kind, shape):
    image = picture(*shape)
    back = decode_source(encode_source(image, kind))
    assert back.dtype == np.uint8
    assert np.array_equal(back, image)
    back[:] = 0  # memory of its own
    assert np.array_equal(decode_source(memoryview(encode_source(image[::-1], kind))), image[::-1])


def test_jpeg_is_near():
    y, x = np.mgrid[:32, :48]
    image = np.stack([x * 4, y * 6, x + y], 2).astype(np.uint8)
    back = decode_source(encode_source(image, "jpeg", 95)).astype(int)
    assert 0 < np.abs(back - image).max() < 16
    assert len(encode_source(image, "jpeg", 30)) < len(encode_source(image, "jpeg", 95))
    assert decode_source(encode_source(image[..., 0], "jpeg")).shape == (32, 48)


def test_image_sources_are_files_that_others_read(tmp_path):
    import cv2

    image = picture()
    (tmp_path / "a.png").write_bytes(encode_source(torch.from_numpy(image)))
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, *EXOTIC])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_raw_tensors(dtype, shape):
    value = (torch.arange(6.0)[: int(np.prod(shape))] - 2.5).reshape(shape).to(dtype)
    data = encode_source(value, "raw")
    assert is_raw(data)
    assert same(decode_source(data), value)


@pytest.mark.parametrize("dtype", ["<f2", ">i4", "u8", "c8", "?", "M8[s]", "S3"])
def test_raw_arrays(dtype):
    value = np.arange(6).reshape(2, 3).T.astype(dtype)
    back = decode_source(encode_source(value, "raw"))
    assert back.dtype == value.dtype
    assert np.array_equal(back, value)


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (picture().astype(np.float32), {"kind": "jpeg"}, "float32.*jpeg.*raw"),
        (torch.zeros(3, 4, 5), {}, "float32.*png"),
        (picture(3, 4, 5), {}, r"uint8\[3, 4, 5\]"),
        (picture(0, 4), {}, "uint8"),
        ("a.png", {}, "str"),
        (picture(), {"kind": "webp"}, "webp.*png, jpeg, raw"),
        (picture(), {"kind": "jpeg", "quality": 0}, "quality=0"),
        ([1, 2], {"kind": "raw"}, "list"),
        (np.array([object()]), {"kind": "raw"}, "object"),
        (torch.zeros(3).to_sparse(), {"kind": "raw"}, "sparse"),
        (np.zeros((1, 70_000), np.uint8), {"kind": "jpeg"}, "too large"),
    ],
)
def test_inputs_that_cannot_be_kept(value, options, words):
    with pytest.raises(DataError, match=words):
        encode_source(value, **options)


@pytest.mark.parametrize("kind", ["png", "jpeg", "raw"])
def test_truncated_sources(kind):
    data = encode_source(picture(), kind)
    for size in (0, 3, 7, 12, len(data) // 2, len(data) - 4, len(data) - 1):
        with pytest.raises(StoreCorruptError, match="source"):
            decode_source(data[:size])
    if kind == "raw":
        with pytest.raises(StoreCorruptError, match="189"):
            decode_source(data + b"!")


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[1]", b"nonsense", b'{"kind":"tensor","dtype":"save","shape":[1]}',
     b'{"kind":"array","dtype":"|O","shape":[1]}', b'{"kind":"array","dtype":"u1","shape":[-1,-4]}'],
)  # fmt: skip
def test_raw_headers_that_make_no_sense(header):
    with pytest.raises(StoreCorruptError, match=r"source|dtype"):
        decode_source(b"SDRAW1" + len(header).to_bytes(4, "little") + header + b"1234")


def test_images_as_cameras_leave_them():
    import io

    from PIL import Image

    def encoded(image, **options):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(picture())
    assert decode_source(encoded(image, exif=exif)).shape == (7, 9, 3)
    assert decode_source(encoded(image.convert("RGBA"))).shape == (9, 7, 3)
    with pytest.raises(StoreCorruptError, match=r"8 bits.*raw"):
        decode_source(encoded(Image.fromarray(np.zeros((3, 3), np.uint16))))


def rich(store, count=7):
    """Samples with everything a store can keep, at cut 2 of version "two"."""
    store.advance(2, doubled, "two")
    keys = [b"\xff\x00%d" % i * (i + 1) for i in range(count)]
    store.put_many(
        {k: (*sample(i), *(torch.tensor([1.5, i, 0.1 * i]).to(d) for d in EXOTIC)) for i, k in enumerate(keys)},
        {k: torch.tensor([i, 2.5]).bfloat16() for i, k in enumerate(keys)},
        {k: SampleInfo(0.1 * i, i == 2, i - 3 if i % 2 else None, f"ü{i % 2}") for i, k in enumerate(keys)},
        {k: encode_source(picture() + i) for i, k in enumerate(keys) if i != 1},
    )
    return store


def assert_same_content(one, other, keys=None):
    keys = one.keys() if keys is None else keys
    assert other.keys() == keys
    assert (other.cut, other.version) == (one.cut, one.version)
    for mine, theirs in zip(one.get_many(keys), other.get_many(keys), strict=True):
        assert same(mine, theirs)
        assert mine.stride() == theirs.stride()
    for key in keys:
        assert same(one.get_targets([key]), other.get_targets([key]))
    assert one.get_info(keys) == other.get_info(keys)
    assert one.get_sources(keys) == other.get_sources(keys)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shard_bytes", [1, 900, 1 << 20])
def test_a_store_comes_back_bit_for_bit(suffix, shard_bytes, tmp_path):
    store = rich(MemoryStore())
    files = export_store(store, tmp_path / f"out{suffix}", shard_bytes=shard_bytes)
    assert len(files) == {1: 7, 900: len(files), 1 << 20: 1}[shard_bytes] >= (shard_bytes < 1000) + 1
    assert sorted(tmp_path.iterdir()) == files
    back = MemoryStore()
    assert import_store(back, reversed(files)) == 7
    assert_same_content(store, back)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_between_lmdb_stores(suffix, tmp_path):
    rich(LmdbStore(tmp_path / "a")).close()
    with LmdbStore(tmp_path / "a", read_only=True) as store, LmdbStore(tmp_path / "b") as back:
        import_store(back, export_store(store, tmp_path / f"out{suffix}"))
        assert_same_content(store, back)
    with LmdbStore(tmp_path / "a", read_only=True) as store, LmdbStore(tmp_path / "b", read_only=True) as back:
        assert_same_content(store, back)


def test_other_programs_find_plain_tensors(tmp_path):
    store = MemoryStore()
    store.put_many(samples([1, 2]), torch.tensor([7, 8]), sources={name(2): b"\xff\xd8\xffpicture"})
    (path,) = export_store(store, tmp_path / "out.safetensors")
    tensors = load_file(path)
    assert torch.equal(tensors["activations.0"], torch.stack([sample(1)[0], sample(2)[0]]))
    assert tensors["targets"].tolist() == [7, 8]
    assert bytes(tensors["keys"][: tensors["keys.offsets"][1]].tolist()) == name(1)
    assert bytes(tensors["sources"].tolist()) == b"\xff\xd8\xffpicture"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["streamdrop"])
    assert {k: facts[k] for k in ("format", "cut", "version", "samples", "total", "targets")} == {
        "format": 1, "cut": 0, "version": "", "samples": 2, "total": 2, "targets": "tensor",
    }  # fmt: skip
    export_store(store, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["activations.1"].tolist() == [sample(1)[1].tolist(), sample(2)[1].tolist()]
        assert json.loads(str(arrays["streamdrop"]))["targets"] == "tensor"


def test_bfloat16_lies_in_npz_as_its_bits(tmp_path):
    store = MemoryStore()
    store.put_many({b"a": (torch.tensor([1.5, -2.0]).bfloat16(),)})
    (path,) = export_store(store, tmp_path / "out.npz")
    with np.load(path) as arrays:
        assert arrays["activations.0"].tolist() == [[0x3FC0, 0xC000]]
        assert json.loads(str(arrays["streamdrop"]))["tensors"]["activations.0"]["dtype"] == "bfloat16"


TARGETS = {
    "none": ([None, None, None], "none"),
    "numbers": ([1, 2, 3], "tensor"),
    "some": ([1, None, 3], "tensor"),
    "tuples": ([(torch.ones(2), torch.tensor(i)) for i in range(3)], "tuple"),
    "some tuples": ([None, (torch.ones(2), torch.tensor(True)), None], "tuple"),
    "odd shapes": ([torch.ones(1), torch.ones(2), torch.ones(0)], "encoded"),
    "odd dtypes": ([1, 1.5, None], "encoded"),
    "one alone and one in a tuple": ([torch.ones(2), (torch.ones(2),), None], "encoded"),
    "nothing in them": ([(), (), None], "encoded"),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_targets_of_every_structure(kind, suffix, tmp_path):
    targets, stored = TARGETS[kind]
    store, back = MemoryStore(), MemoryStore()
    store.put_many(samples(range(3)), {name(i): t for i, t in enumerate(targets) if t is not None})
    (path,) = export_store(store, tmp_path / f"out{suffix}")
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["streamdrop"])["targets"] == stored
    import_store(back, [path])
    assert_same_content(store, back)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_stream_alone(suffix, tmp_path):
    store, back = rich(MemoryStore()), MemoryStore()
    import_store(back, export_store(store, tmp_path / f"out{suffix}", stream="ü1"))
    assert len(back) == 3
    assert_same_content(store, back, store.keys(stream="ü1"))
    with pytest.raises(DataError, match=r"'cam'.*'ü0', 'ü1'"):
        export_store(store, tmp_path / f"none{suffix}", stream="cam")


def test_an_empty_store_exports_its_cut(tmp_path):
    store, back = MemoryStore(), MemoryStore()
    store.advance(3, doubled, "three")
    assert import_store(back, export_store(store, tmp_path / "out.npz")) == 0
    assert (back.cut, back.version, len(back)) == (3, "three", 0)


def test_lossy_stores_export_what_they_give_out(tmp_path):
    store, back = MemoryStore(dtype="float16"), MemoryStore()
    store.put_many({b"a": (torch.tensor([0.1, 2.0]),)})
    (path,) = export_store(store, tmp_path / "out.safetensors")
    import_store(back, [path])
    assert same(back.get_many([b"a"])[0], store.get_many([b"a"])[0])
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["streamdrop"])
    assert facts["codec"] == getattr(store, "codec", None)
    assert 0 < facts["error"]["max"] < 1e-4


def test_imports_join_a_store_of_the_same_cut(tmp_path):
    store = MemoryStore()
    store.put_many(samples([1, 2]), [1, 2])
    (path,) = export_store(store, tmp_path / "out.npz")
    back = MemoryStore()
    back.put_many(samples([2, 3]), [20, 30])
    import_store(back, str(path))
    assert back.keys() == [name(3), name(1), name(2)]
    assert back.get_targets(back.keys()).tolist() == [30, 1, 2]


def test_two_exports_at_once(tmp_path):
    store, back = rich(MemoryStore()), MemoryStore()
    files = export_store(store, tmp_path / "b.npz", "ü1", 1) + export_store(store, tmp_path / "a.npz", "ü0", 1)
    assert import_store(back, files) == 7
    assert back.keys() == store.keys(stream="ü1") + store.keys(stream="ü0")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_shards_are_named(suffix, tmp_path):
    files = export_store(rich(MemoryStore()), tmp_path / f"out{suffix}", shard_bytes=1)
    back = MemoryStore()
    for missing in (0, 3, 6):
        with pytest.raises(DataError, match=f"out-0000{missing + 1}-of-00007{suffix} is missing"):
            import_store(back, files[:missing] + files[missing + 1 :])
    with pytest.raises(DataError, match=r"nowhere.npz: no such file"):
        import_store(back, [*files, tmp_path / "nowhere.npz"])
    with pytest.raises(DataError, match="no file"):
        import_store(back, [])
    (tmp_path / f"twin{suffix}").write_bytes(files[2].read_bytes())
    with pytest.raises(DataError, match="too"):
        import_store(back, [*files, tmp_path / f"twin{suffix}"])
    assert (len(back), back.cut) == (0, 0)


def test_other_cuts_and_versions_are_refused(tmp_path):
    files = export_store(rich(MemoryStore()), tmp_path / "out.npz")
    for cut, version in ((2, "other"), (1, "two"), (3, "two")):
        back = MemoryStore()
        back.advance(cut, doubled, version)
        with pytest.raises(StoreVersionError, match=rf"cut 2 of version 'two'.*cut {cut}"):
            import_store(back, files)
    back = MemoryStore()
    back.put_many(samples([1]))
    with pytest.raises(StoreVersionError, match="new store"):
        import_store(back, files)
    assert back.keys() == [name(1)]
    back = MemoryStore()
    back.advance(1, doubled, "one")
    with pytest.raises(StoreVersionError, match="cut 1"):
        import_store(MemoryStore(), files + export_store(back, tmp_path / "other.npz"))


def test_a_store_that_holds_removed_samples_takes_over_no_cut(tmp_path):
    files = export_store(rich(MemoryStore()), tmp_path / "out.npz")
    back = MemoryStore()
    back.put_many(samples([1]))
    back.mark()
    back.discard([name(1)])
    with pytest.raises(StoreError, match="release"):
        import_store(back, files)
    assert (back.cut, len(back)) == (0, 0)


def test_samples_of_another_model_are_refused(tmp_path):
    store, back = MemoryStore(), MemoryStore()
    store.put_many(samples([1]))
    back.put_many({b"a": (torch.zeros(3),)})
    with pytest.raises(DataError, match="one model"):
        import_store(back, export_store(store, tmp_path / "out.npz"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("names", [("activations.0", "targets"), ("images", "labels"), ()])
def test_files_of_other_programs_are_refused(suffix, names, tmp_path):
    path = tmp_path / f"out{suffix}"
    if suffix == ".npz":
        np.savez(path, **{n: np.zeros((3, 2)) for n in names})
    else:
        save_file({n: torch.zeros(3, 2) for n in names}, path)
    with pytest.raises(StoreVersionError, match=f"{names[0] if names else 'nothing'}.*store export"):
        import_store(MemoryStore(), [path])


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt"])
def test_files_that_are_none_are_refused(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    for content in (b"", b"text", b"\x93NUMPY" + b"\0" * 90, b"PK\x03\x04" + b"x" * 50, b"\x80\x04]\x94."):
        path.write_bytes(content)
        with pytest.raises((StoreCorruptError, DataError), match=f"out{suffix}"):
            import_store(MemoryStore(), [path])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises((StoreCorruptError, DataError), match=f"out{suffix}"):
        import_store(MemoryStore(), [path])


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("streamdrop.store.exchange.FORMAT", 9)
    files = export_store(MemoryStore(), tmp_path / "out.npz")
    with pytest.raises(StoreVersionError, match=r"format 9.*upgrade"):
        import_store(MemoryStore(), files)


def test_incomplete_metadata_is_refused(tmp_path):
    facts = json.dumps({"format": 1, "cut": 0})
    save_file({}, tmp_path / "out.safetensors", {"streamdrop": facts, "crc32": str(zlib.crc32(facts.encode()))})
    with pytest.raises(StoreCorruptError, match="version"):
        import_store(MemoryStore(), [tmp_path / "out.safetensors"])


def refusal(store, path):
    """Why a file cannot be imported; nothing when it was."""
    try:
        import_store(store, [path])
    except StoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_found_or_harmless(suffix, tmp_path):
    store = rich(MemoryStore())
    (path,) = export_store(store, tmp_path / f"out{suffix}")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for at in rng.integers(0, len(whole), 60):
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        back = MemoryStore()
        message = refusal(back, path)
        assert "\n" not in message
        if message:
            found += 1
            assert (len(back), back.cut) == (0, 0)
        else:
            assert_same_content(store, back)
    assert found > 30
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreCorruptError):
            import_store(MemoryStore(), [path])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_shard_is_not_half_imported(suffix, tmp_path):
    files = export_store(rich(MemoryStore()), tmp_path / f"out{suffix}", shard_bytes=900)
    data = bytearray(files[1].read_bytes())
    position = data.index(b"\xff\x00")
    data[position] ^= 1
    files[1].write_bytes(data)
    back = MemoryStore()
    with pytest.raises(StoreCorruptError, match=files[1].name):
        import_store(back, files)
    with safe_open(files[0], "pt") if suffix == ".safetensors" else np.load(files[0]) as first:
        count = len(first.get_tensor("keys.offsets") if suffix == ".safetensors" else first["keys.offsets"]) - 1
    assert len(back) == count


class Failing(MemoryStore):
    """Fails when more than ``reads`` batches are read."""

    reads = 2

    def get_many(self, keys):
        self.reads -= 1
        if self.reads < 0:
            raise StoreCorruptError("sample 3 has changed")
        return super().get_many(keys)


def test_a_failed_export_leaves_what_was_there(tmp_path):
    (tmp_path / "out-00001-of-00007.npz").write_text("of an earlier export")
    store = Failing()
    store.put_many(samples(range(7)))
    with pytest.raises(StoreCorruptError, match="changed"):
        export_store(store, tmp_path / "out.npz", shard_bytes=1)
    assert [f.name for f in tmp_path.iterdir()] == ["out-00001-of-00007.npz"]
    assert (tmp_path / "out-00001-of-00007.npz").read_text() == "of an earlier export"


def test_one_shard_is_read_at_a_time(tmp_path):
    asked, done = [], []

    class Watched(MemoryStore):
        def get_many(self, keys):
            asked.append(len(keys))
            return super().get_many(keys)

    store = Watched()
    store.put_many(samples(range(100)))
    row = sum(t.nbytes for t in sample(0))
    files = export_store(store, tmp_path / "out.npz", shard_bytes=30 * row, tell=lambda *now: done.append(now))
    assert len(files) == 4
    assert max(asked) == 30
    assert done == [(30, 100), (60, 100), (90, 100), (100, 100)]


def test_a_promotion_meanwhile_ends_the_export(tmp_path):
    store = MemoryStore()
    store.put_many(samples(range(4)))
    with pytest.raises(StoreError, match="promoted"):
        export_store(
            store, tmp_path / "out.npz", shard_bytes=1, tell=lambda done, _: store.advance(done, doubled, f"{done}")
        )
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path):
    store = MemoryStore()
    for bad in ("out", "out.pt", "no/where.npz", "/proc/out.npz", "/proc/out.safetensors"):
        with pytest.raises(OutputError):
            export_store(store, tmp_path / bad)
    with pytest.raises(ConfigError, match="shard_bytes=0"):
        export_store(store, tmp_path / "out.npz", shard_bytes=0)
    (tmp_path / "out.npz").mkdir()
    with pytest.raises(OutputError, match="another name"):
        export_store(store, tmp_path / "out.npz")
    assert [f.name for f in tmp_path.iterdir()] == ["out.npz"]
