"""Labelled sets of every accepted kind, made here in miniature; what is wrong with one is said before training."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional

from streamdrop.errors import DataError, StreamError
from streamdrop.evaluation.datasets import LabelledSet, as_input, read_split
from streamdrop.evaluation.datasets_folders import interleaved
from streamdrop.streams import open_stream

REAL = Path(os.environ.get("STREAMDROP_DATA", "/nowhere"))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save_npz(folder, name="train", images=None, labels=None):
    folder.mkdir(exist_ok=True)
    images = random_images(12, 8, 8, 3) if images is None else images
    np.savez(folder / f"{name}.npz", images=images, labels=np.arange(len(images)) % 3 if labels is None else labels)
    return str(folder)


# ---------------------------------------------------------------- .npz, as before


def formula(path, count, size):
    """What read_split computed when it held floats: the streams' batches of 500, resized, joined."""
    images = []
    for batch in open_stream(str(path), batch_size=500):
        x = batch.images
        if x.shape[-2:] != (size, size):
            x = functional.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
        images.append(x.expand(-1, 3, -1, -1).sub(0.5).div(0.25).contiguous())
    return torch.cat(images)[:count]


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3)], ids=str)
@pytest.mark.parametrize("size", [9, 16, 5])
def test_input_has_the_same_bits_whenever_it_is_converted(tmp_path, shape, size):
    data = save_npz(tmp_path / "d", images=random_images(520, *shape))
    split = read_split(data, "train", 510, size)
    truth = formula(tmp_path / "d" / "train.npz", 510, size)
    assert torch.equal(split.images, truth)
    for step in (510, 64, 7, 1):
        assert torch.equal(torch.cat([batch.images for batch in split.batches(step)]), truth)
    assert split.images.is_contiguous()
    assert (split.images.dtype, split.labels.dtype, split.pixels.dtype) == (torch.float32, torch.int64, torch.uint8)


def test_a_set_gives_keys_labels_and_lazy_batches(tmp_path):
    split = read_split(save_npz(tmp_path / "d"), "train", 10, 8)
    stream = next(iter(open_stream(str(tmp_path / "d" / "train.npz"), batch_size=10)))
    assert (len(split), split.keys) == (10, list(stream.keys))
    batches = split.batches(4)
    assert iter(batches) is batches
    parts = list(batches)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [key for part in parts for key in part.keys] == split.keys
    assert torch.equal(torch.cat([part.targets for part in parts]), split.labels)
    assert split.labels.tolist() == [i % 3 for i in range(10)]


def test_pixels_rest_as_bytes(tmp_path):
    split = read_split(save_npz(tmp_path / "d"), "train", 10, 32)
    assert split.pixels.untyped_storage().nbytes() == 10 * 8 * 8 * 3
    assert split.labels.untyped_storage().nbytes() == 80


# ---------------------------------------------------------------- one .npz


def single(path, **more):
    arrays = {
        "train_images": random_images(6, 8, 8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": random_images(3, 8, 8, seed=1),
        "test_labels": np.array([2, 1, 0]),
        **more,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path), arrays


def test_one_file_with_four_arrays(tmp_path):
    data, arrays = single(tmp_path / "all.npz")
    for name, count in (("train", 5), ("test", 3)):
        split = read_split(data, name, count, 8)
        assert np.array_equal(split.pixels[..., 0].numpy(), arrays[f"{name}_images"][:count])
        assert split.labels.tolist() == arrays[f"{name}_labels"][:count].tolist()
    assert not set(read_split(data, "train", 3, 8).keys) & set(read_split(data, "test", 3, 8).keys)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"test_labels": None}, "no array test_labels"),
        ({"train_images": np.array([np.zeros((8, 8)), np.zeros((9, 8))], dtype=object)}, "mixed sizes"),
        ({"train_images": random_images(6, 8, 8).astype(np.float32)}, "float32"),
        ({"train_images": random_images(6, 9, 8)}, "differ in size"),
        ({"train_labels": np.arange(5)}, "one label per image"),
        ({"train_labels": np.int64(3)}, "one label per image"),
        ({"train_labels": np.zeros((6, 2), int)}, "one class number per image"),
    ],
)
def test_one_file_with_something_wrong(tmp_path, more, words):
    with pytest.raises(DataError, match=words):
        read_split(single(tmp_path / "all.npz", **more)[0], "train", 5, 8)


def test_one_file_that_is_none(tmp_path):
    (tmp_path / "all.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_split(str(tmp_path / "all.npz"), "train", 1, 8)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_split(str(tmp_path / "plain.npz"), "train", 1, 8)


# ---------------------------------------------------------------- MNIST


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def save_mnist(folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 20), ("t10k", 7)):
        arrays = {
            "images-idx3": random_images(count, 28, 28, seed=count),
            "labels-idx1": np.arange(count, dtype=np.uint8) % 10,
        }
        for kind, array in arrays.items():
            body = gzip.compress(idx(array), mtime=0) if packed else idx(array)
            (folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(body)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
def test_mnist_as_distributed(tmp_path, packed, place):
    save_mnist(tmp_path / place, packed)
    train = read_split(str(tmp_path), "train", 15, 28)
    assert np.array_equal(train.pixels[..., 0].numpy(), random_images(20, 28, 28, seed=20)[:15])
    assert train.labels.tolist() == [i % 10 for i in range(15)]
    assert read_split(str(tmp_path), "test", 7, 32).images.shape == (7, 3, 32, 32)
    with pytest.raises(DataError, match="20 images, 21 were asked for: lower train"):
        read_split(str(tmp_path), "train", 21, 28)


def test_mnist_with_a_file_missing_or_damaged(tmp_path):
    save_mnist(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for bad in (whole[:2000], gzip.compress(gzip.decompress(whole)[:900]), b"no gzip", gzip.compress(b"\0\0\x08\x01")):
        file.write_bytes(bad)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: not an IDX file"):
            read_split(str(tmp_path), "train", 20, 28)
    file.write_bytes(gzip.compress(idx(random_images(20, 27, 28))))
    with pytest.raises(DataError, match="28 × 28"):
        read_split(str(tmp_path), "train", 20, 28)
    file.unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte .*missing"):
        read_split(str(tmp_path), "train", 20, 28)
    file.write_bytes(whole)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.full(20, 10, np.uint8))))
    with pytest.raises(DataError, match="10 classes"):
        read_split(str(tmp_path), "train", 20, 28)


# ---------------------------------------------------------------- CIFAR-10


CIFAR = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar_arrays(number):
    return random_images(4, 3, 32, 32, seed=number), (np.arange(4) + number).astype(np.uint8) % 10


def save_cifar_binary(folder):
    folder.mkdir(parents=True)
    for number, part in enumerate(CIFAR):
        images, labels = cifar_arrays(number)
        body = np.concatenate([labels[:, None], images.reshape(4, -1)], axis=1).tobytes()
        (folder / f"{part}.bin").write_bytes(body)


def packed(archive, folder, arcname=None):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname or folder.name)


def check_cifar(data, size=32):
    train, test = read_split(data, "train", 18, size), read_split(data, "test", 4, size)
    images = np.concatenate([cifar_arrays(number)[0] for number in range(5)])[:18]
    labels = np.concatenate([cifar_arrays(number)[1] for number in range(5)])[:18]
    assert np.array_equal(train.pixels.permute(0, 3, 1, 2).numpy(), images)
    assert train.labels.tolist() == labels.tolist()
    assert torch.equal(train.images, as_input(torch.from_numpy(images).float().div(255), size))
    assert test.labels.tolist() == cifar_arrays(5)[1].tolist()
    with pytest.raises(DataError, match="20 images, 21 were asked for"):
        read_split(data, "train", 21, size)


def test_cifar_binary_in_a_folder_and_in_its_archive(tmp_path):
    save_cifar_binary(tmp_path / "cifar-10-batches-bin")
    check_cifar(str(tmp_path))
    check_cifar(str(tmp_path / "cifar-10-batches-bin"))
    (tmp_path / "other").mkdir()
    packed(tmp_path / "other" / "cifar-10-binary.tar.gz", tmp_path / "cifar-10-batches-bin")
    check_cifar(str(tmp_path / "other"))
    check_cifar(str(tmp_path / "other" / "cifar-10-binary.tar.gz"))
    assert len(list((tmp_path / "other").iterdir())) == 1  # nothing was unpacked


def test_cifar_binary_missing_cut_short_or_foreign(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    save_cifar_binary(folder)
    archive = tmp_path / "a" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    packed(archive, folder)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        read_split(str(archive), "train", 20, 32)
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a readable archive"):
        read_split(str(archive), "train", 20, 32)
    file = folder / "data_batch_2.bin"
    body = file.read_bytes()
    file.write_bytes(body[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin is no multiple"):
        read_split(str(tmp_path), "train", 20, 32)
    file.write_bytes(b"\x0a" + body[1:])
    with pytest.raises(DataError, match="up to 10, the model has 10 classes"):
        read_split(str(tmp_path), "train", 20, 32)
    file.unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin: no such file"):
        read_split(str(tmp_path), "train", 20, 32)


class Evil:
    """Unpickling this would make the file ``proof``."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def save_cifar_python(root, monkeypatch):
    """The python version, its checksums made known to torchvision as the publishers'."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for number, part in enumerate(CIFAR):
        images, labels = cifar_arrays(number)
        (folder / part).write_bytes(pickle.dumps({"data": images.reshape(4, -1), "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[part, sums[part]] for part in CIFAR[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})


def test_cifar_python_is_read_where_its_checksums_hold(tmp_path, monkeypatch):
    save_cifar_python(tmp_path, monkeypatch)
    check_cifar(str(tmp_path))
    check_cifar(str(tmp_path / "cifar-10-batches-py"))


@pytest.mark.parametrize("part", ["data_batch_3", "test_batch", "batches.meta"])
def test_cifar_python_with_another_checksum_is_never_unpickled(tmp_path, monkeypatch, part):
    save_cifar_python(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / part).write_bytes(pickle.dumps(Evil(tmp_path / "proof")))
    for name in ("train", "test"):
        with pytest.raises(DataError, match="MD5"):
            read_split(str(tmp_path), name, 4, 32)
    assert not (tmp_path / "proof").exists()


def test_cifar_python_packed_is_refused_with_the_remedy(tmp_path, monkeypatch):
    save_cifar_python(tmp_path, monkeypatch)
    (tmp_path / "cifar10").mkdir()
    archive = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    packed(archive, tmp_path / "cifar-10-batches-py")
    for data in (archive, archive.parent):
        with pytest.raises(DataError, match="unpack"):
            read_split(str(data), "train", 4, 32)


# ---------------------------------------------------------------- folders of images


def picture(colour, size=(20, 14), kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


COLOURS = {"n01440764": (250, 0, 0), "n02102040": (0, 250, 0), "n03888257": (0, 0, 250)}


def save_folders(root, splits=("train", "val"), counts=(4, 2, 3)):
    for split in splits:
        for (kind, colour), count in zip(COLOURS.items(), counts, strict=True):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{kind}_{i}.JPEG").write_bytes(picture(tuple(max(0, c - 20 * i) for c in colour)))
            (folder / ".hidden.jpg").write_bytes(b"x")
            (folder / "notes.txt").write_bytes(b"x")
    return root


def check_folders(data):
    train = read_split(data, "train", 9, 16)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 0]
    shades = train.pixels[:, 8, 8].amax(1).tolist()
    assert all(abs(shade - (250 - 20 * i)) < 4 for shade, i in zip(shades, [0, 0, 0, 1, 1, 1, 2, 2, 3], strict=True))
    assert train.pixels[:, 8, 8].argmax(1).tolist() == train.labels.tolist()
    assert (train.pixels.shape, train.pixels.dtype) == ((9, 16, 16, 3), torch.uint8)
    assert read_split(data, "train", 4, 16).keys == train.keys[:4]
    assert len(read_split(data, "test", 5, 16)) == 5
    return train


def test_folders_and_archives_hold_the_same_set(tmp_path):
    root = save_folders(tmp_path / "imagenette2-160")
    sets = [check_folders(str(root)), check_folders(str(tmp_path))]
    (tmp_path / "imagenette").mkdir()
    packed(tmp_path / "imagenette" / "imagenette2-160.tgz", root)
    packed(tmp_path / "odd.tar.gz", root, ".")
    before = sorted(tmp_path.rglob("*"))
    sets += [check_folders(str(tmp_path / part)) for part in ("imagenette", "imagenette/imagenette2-160.tgz")]
    sets += [check_folders(str(tmp_path / "odd.tar.gz"))]
    assert all(torch.equal(one.pixels, sets[0].pixels) for one in sets)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_test_serves_like_val(tmp_path):
    check_folders(str(save_folders(tmp_path / "own", ("train", "test"))))


def test_interleaved_order_is_balanced_at_every_count():
    order = interleaved({"b": [1, 2, 3], "a": [4], "c": [5, 6]})
    assert order == [(4, 0), (1, 1), (5, 2), (2, 1), (6, 2), (3, 1)]
    even = [label for _, label in interleaved({name: list(range(9)) for name in "abcd"})]
    for count in range(1, 37):
        share = [even[:count].count(label) for label in range(4)]
        assert max(share) - min(share) <= 1


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (21, 20), (14, 10), (10, 10)], ids=str)
def test_images_keep_their_aspect_and_lose_their_edges(tmp_path, size):
    save_folders(tmp_path)
    image = Image.new("RGB", size, (255, 255, 255))
    side, middle = min(size), (size[0] // 2, size[1] // 2)
    box = [m - side // 4 for m in middle] + [m + side // 4 for m in middle]
    image.paste((0, 0, 0), tuple(box))
    image.save(tmp_path / "train" / "n01440764" / "n01440764_0.png")
    (tmp_path / "train" / "n01440764" / "n01440764_0.JPEG").unlink()
    grey = read_split(str(tmp_path), "train", 1, 10).pixels[0].float().mean(2)
    assert grey.shape == (10, 10)
    assert grey[4:6, 4:6].max() < 30
    assert grey[0, 0] > 200
    dark = (grey < 128).sum(0)
    assert abs(int(dark.max()) - int((grey < 128).sum(1).max())) <= 1  # the square stayed square


def test_images_of_every_mode_become_rgb(tmp_path):
    save_folders(tmp_path)
    for i, mode in enumerate(["L", "RGBA", "P", "1", "CMYK"]):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (12, 12)).save(tmp_path / "train" / "n01440764" / f"a{i}.{suffix}")
    assert read_split(str(tmp_path), "train", 14, 12).pixels.shape == (14, 12, 12, 3)


@pytest.mark.parametrize("body", [b"", b"no image", picture((9, 9, 9), (64, 64))[:300]], ids=["empty", "text", "cut"])
def test_a_damaged_image_is_named(tmp_path, body):
    root = save_folders(tmp_path / "imagenette2")
    (root / "train" / "n02102040" / "n02102040_1.JPEG").write_bytes(body)
    packed(tmp_path / "i.tgz", root)
    for data in (root, tmp_path / "i.tgz"):
        with pytest.raises(DataError, match=r"n02102040_1\.JPEG cannot be read"):
            read_split(str(data), "train", 9, 16)
        assert len(read_split(str(data), "train", 4, 16)) == 4  # it is not among these


def test_folders_with_something_wrong(tmp_path):
    root = save_folders(tmp_path / "d")
    with pytest.raises(DataError, match=r"9 images, 10 were asked for: lower train"):
        read_split(str(root), "train", 10, 16)
    (root / "val" / "n9").mkdir()
    for name in ("train", "test"):
        with pytest.raises(DataError, match="n9 is in one of train and test only"):
            read_split(str(root), name, 2, 16)
    (root / "train" / "n9").mkdir()
    packed(tmp_path / "d.tgz", root)
    for data in (root, tmp_path / "d.tgz"):
        with pytest.raises(DataError, match="n9 of train holds no images"):
            read_split(str(data), "train", 2, 16)
    (root / "val").rename(root / "aside")
    with pytest.raises(DataError, match="no folder test or val"):
        read_split(str(root), "test", 2, 16)


def test_an_archive_cut_short(tmp_path):
    packed(tmp_path / "i.tgz", save_folders(tmp_path / "imagenette2"))
    body = (tmp_path / "i.tgz").read_bytes()
    (tmp_path / "i.tgz").write_bytes(body[: len(body) // 2])
    with pytest.raises(DataError, match="not a readable archive, or damaged"):
        read_split(str(tmp_path / "i.tgz"), "train", 9, 16)


def test_several_sets_in_one_folder_are_not_guessed_between(tmp_path):
    for part in ("imagenette2-160", "imagenette2-320"):
        save_folders(tmp_path / part)
    with pytest.raises(DataError, match="imagenette2-160, imagenette2-320"):
        read_split(str(tmp_path), "train", 2, 16)


# ---------------------------------------------------------------- labels and structure


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, -1] * 6), "down to -1"),
        (np.array([0, 0.5] * 6), "not whole numbers"),
        (np.array([0, 2**63] * 6, dtype=np.uint64), "up to 9223372036854775808"),
        (np.array([0, 10_000] * 6), "up to 10000: at most 10,000 classes"),
        (np.zeros((12, 2)), "one class number per image"),
        (np.array(["cat", "dog"] * 6), "labels of"),
        (np.arange(11), "one label per image"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        read_split(save_npz(tmp_path / "d", labels=labels), "train", 2, 8)


def test_labels_beyond_the_models_classes(tmp_path):
    data = save_npz(tmp_path / "d")
    assert len(read_split(data, "train", 12, 8, classes=3)) == 12
    with pytest.raises(DataError, match="up to 2, the model has 2 classes"):
        read_split(data, "train", 12, 8, classes=2)


def test_whole_numbers_may_be_stored_as_floats(tmp_path):
    data = save_npz(tmp_path / "d", labels=np.arange(12).astype(np.float32))
    assert read_split(data, "train", 12, 8).labels.tolist() == list(range(12))


def test_train_and_test_must_fit(tmp_path):
    data = save_npz(tmp_path / "d")
    save_npz(tmp_path / "d", "test", labels=np.full(12, 7))
    with pytest.raises(DataError, match=r"labels \[7\] that train lacks"):
        read_split(data, "test", 12, 8)
    save_npz(tmp_path / "d", "test", random_images(12, 9, 8, 3))
    for name in ("train", "test"):
        with pytest.raises(DataError, match="make them alike"):
            read_split(data, name, 12, 8)
    with pytest.raises(DataError, match=r"labels \[4\] that train lacks"):
        read_split(single(tmp_path / "a.npz", test_labels=np.array([0, 4, 1]))[0], "test", 3, 8)


def test_npz_with_missing_arrays_mixed_sizes_or_damage(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    np.savez(folder / "train.npz", images=random_images(4, 8, 8))
    with pytest.raises(DataError, match="no array labels"):
        read_split(str(folder), "train", 2, 8)
    mixed = np.empty(2, object)
    mixed[:] = [random_images(8, 8, 3), random_images(9, 8, 3)]
    save_npz(folder, images=mixed)
    with pytest.raises(DataError, match="mixed sizes"):
        read_split(str(folder), "train", 2, 8)
    (folder / "train.npz").write_bytes(b"x")
    with pytest.raises(StreamError, match=r"\.npz"):
        read_split(str(folder), "train", 2, 8)
    with pytest.raises(DataError, match=r"test\.npz: no such file"):
        read_split(str(folder), "test", 2, 8)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read .Permission denied.: check its permissions"):
        read_split(str(tmp_path), "train", 2, 8)


def test_what_is_no_set_says_what_is_accepted_and_what_was_found(tmp_path):
    for name in ("b.txt", "a.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"found: a\.csv, b\.txt\); accepted are .*train\.npz.*imagenette2"):
        read_split(str(tmp_path), "train", 2, 8)
    with pytest.raises(DataError, match="nothing is there"):
        read_split(str(tmp_path / "nowhere"), "train", 2, 8)
    with pytest.raises(DataError, match="a file that is no labelled set"):
        read_split(str(tmp_path / "a.csv"), "train", 2, 8)
    with pytest.raises(DataError, match="train or test"):
        read_split(str(tmp_path), "val", 2, 8)


# ---------------------------------------------------------------- download, by torchvision, when asked for


class Fetched:
    """Stands for a torchvision data set class: remembers its calls, does what a download would."""

    def __init__(self, does):
        self.calls, self.does = [], does

    def __call__(self, root, **options):
        self.calls.append(options)
        self.does(Path(root))


def test_download_fetches_once_and_only_when_asked(tmp_path, monkeypatch):
    fetched = Fetched(lambda root: save_mnist(root / "MNIST" / "raw"))
    monkeypatch.setattr(torchvision.datasets, "MNIST", fetched)
    data = str(tmp_path / "mnist")
    with pytest.raises(DataError, match="give --download to fetch it"):
        read_split(data, "train", 5, 28)
    assert fetched.calls == []
    assert not (tmp_path / "mnist").exists()
    assert len(read_split(data, "train", 5, 28, download=True)) == 5
    assert len(read_split(data, "test", 5, 28, download=True)) == 5
    assert fetched.calls == [{"download": True}]


def test_a_download_that_broke_off_is_taken_up_again(tmp_path, monkeypatch):
    save_mnist(tmp_path / "mnist" / "MNIST" / "raw")
    (tmp_path / "mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    fetched = Fetched(lambda root: save_mnist(root / "MNIST" / "raw"))
    monkeypatch.setattr(torchvision.datasets, "MNIST", fetched)
    assert len(read_split(str(tmp_path / "mnist"), "test", 5, 28, download=True)) == 5
    assert len(fetched.calls) == 1


def test_cifar_and_imagenette_are_fetched_too(tmp_path, monkeypatch):
    fetched = Fetched(lambda root: save_cifar_binary(root / "cifar-10-batches-bin"))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fetched)
    assert len(read_split(str(tmp_path / "CIFAR10"), "train", 5, 32, download=True)) == 5
    for size, published in ((16, "160px"), (161, "320px"), (321, "full")):
        root = tmp_path / str(size) / "imagenette"
        fetched = Fetched(lambda root: save_folders(root / "imagenette2"))
        monkeypatch.setattr(torchvision.datasets, "Imagenette", fetched)
        assert len(read_split(str(root), "train", 1, size, download=True)) == 1
        assert fetched.calls == [{"size": published, "download": True}]


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("File not found or corrupted."), OSError()]
)
def test_a_download_that_fails_says_what_to_fetch_and_where(tmp_path, monkeypatch, error):
    def fail(root):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fetched(fail))
    with pytest.raises(DataError, match=r"cifar10 could not be downloaded .* fetch cifar-10-binary\.tar\.gz") as caught:
        read_split(str(tmp_path / "cifar10"), "train", 5, 32, download=True)
    assert str(tmp_path / "cifar10") in str(caught.value)


def test_what_a_failed_download_leaves_is_not_taken_for_the_set(tmp_path, monkeypatch):
    root = tmp_path / "imagenette"

    def fail(folder):
        (folder / "imagenette2-160.tgz").write_bytes(b"half of it")
        raise URLError("reset")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", Fetched(fail))
    for _ in range(2):
        with pytest.raises(DataError, match=r"could not be downloaded .* fetch imagenette2-160\.tgz"):
            read_split(str(root), "train", 5, 32, download=True)
    assert list(root.iterdir()) == []


def test_a_folder_of_another_name_is_not_downloaded(tmp_path, monkeypatch):
    for kind in ("MNIST", "CIFAR10", "Imagenette"):
        monkeypatch.setattr(torchvision.datasets, kind, Fetched(lambda root: pytest.fail("fetched")))
    with pytest.raises(DataError, match="name the folder mnist, cifar10, imagenette"):
        read_split(str(tmp_path / "mine"), "train", 5, 32, download=True)
    with pytest.raises(DataError, match="12 images, 50 were asked for"):
        read_split(save_npz(tmp_path / "cifar10"), "train", 50, 32, download=True)


# ---------------------------------------------------------------- the real thing


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("cifar10", (32, 64)), ("mnist", (28, 32))])
def test_real_sets_keep_their_bits(kind, sizes):
    folder = REAL / kind
    if not (folder / "train.npz").is_file():
        pytest.skip(f"no {kind} in STREAMDROP_DATA")
    for size in sizes:
        split = read_split(str(folder), "train", 600, size)
        assert torch.equal(split.images, formula(folder / "train.npz", 600, size))
        assert isinstance(split, LabelledSet)
        assert set(split.labels.tolist()) == set(range(10))


def test_images_of_sixteen_bits_keep_their_shades(tmp_path):
    save_folders(tmp_path, counts=(1, 1, 1))
    ramp = np.tile(np.linspace(3000, 5000, 32).astype(np.uint16), (32, 1))
    for file in tmp_path.glob("train/*/*.*"):
        Image.fromarray(ramp).save(file.with_name("deep.png"))
        file.unlink()
    shades = read_split(str(tmp_path), "train", 1, 32).pixels[0, 16, :, 0].tolist()
    assert shades == sorted(shades)
    assert shades[0] < 60 < 190 < shades[-1]
    assert len(set(shades)) == 32
