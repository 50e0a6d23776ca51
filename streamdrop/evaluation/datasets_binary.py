"""MNIST and CIFAR-10 as their publishers distribute them."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from streamdrop.errors import DataError
from streamdrop.evaluation.labelled import LabelledSet, check_count, checked_labels
from streamdrop.streams.stream import sample_key

Pixels = npt.NDArray[np.uint8]

MNIST_PARTS = {"train": "train", "test": "t10k"}
MNIST_FILES = tuple(f"{part}-{kind}" for part in MNIST_PARTS.values() for kind in ("images-idx3", "labels-idx1"))
CIFAR_PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR_CLASSES = 10


def idx_file(folder: Path, stem: str) -> Path | None:
    """``stem-ubyte`` in a folder, or the same with ``.gz``; None where neither is there."""
    names = (f"{stem}-ubyte", f"{stem}-ubyte.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_mnist(folder: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` digits of MNIST's IDX files in ``folder``, in their order. Raises DataError."""
    part = MNIST_PARTS[name]
    images = _idx(folder, f"{part}-images-idx3", 3, count)
    labels = _idx(folder, f"{part}-labels-idx1", 1, count)
    where = f"{folder} ({part})"
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images, {len(labels)} labels: fetch the files again")
    check_count(len(images), count, where, name)
    return _set("mnist", name, images[:, :, :, None], labels, where, size, 10)


def _idx(folder: Path, stem: str, dimensions: int, count: int) -> Pixels:
    """Up to ``count`` entries of an IDX file of unsigned bytes."""
    path = idx_file(folder, stem)
    if path is None:
        raise DataError(f"{folder}: {stem}-ubyte (or .gz) is missing: put all four MNIST files there")
    broken = f"{path}: not an IDX file of {dimensions} dimensions, or cut short: fetch it again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) != 4 + 4 * dimensions:
                raise DataError(broken)
            held, *shape = (int(v) for v in np.frombuffer(head, ">u4", offset=4))
            taken = min(held, count)
            if shape != [28] * len(shape):
                raise DataError(f"{path}: images of {shape} px: MNIST's are 28 × 28")
            body = file.read(taken * int(np.prod(shape, dtype=np.int64)))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(broken) from error
    if len(body) != taken * int(np.prod(shape, dtype=np.int64)):
        raise DataError(broken)
    return np.frombuffer(body, np.uint8).reshape(taken, *shape)


def read_cifar_binary(folder: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` images of CIFAR-10's binary version in a folder, in its order. Raises DataError."""

    def opened(part: str) -> IO[bytes]:
        path = folder / f"{part}.bin"
        if not path.is_file():
            raise DataError(f"{path}: no such file: unpack the whole cifar-10-binary.tar.gz there")
        return open(path, "rb")

    return _cifar_records(opened, name, count, size, str(folder))


def read_cifar_archive(archive: Path, name: str, count: int, size: int) -> LabelledSet:
    """The same out of ``cifar-10-binary.tar.gz``, without unpacking it. Raises DataError."""
    with opened_archive(archive) as tar:
        members = {Path(member.name).name: member for member in tar if member.isfile()}

        def opened(part: str) -> IO[bytes]:
            file = tar.extractfile(members[f"{part}.bin"]) if f"{part}.bin" in members else None
            if file is None:
                raise DataError(f"{archive}: holds no {part}.bin: give cifar-10-binary.tar.gz as distributed")
            return file

        return _cifar_records(opened, name, count, size, str(archive))


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not; what is wrong with it inside becomes a DataError."""
    try:
        with tarfile.open(path, "r:*") as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable archive, or damaged: fetch it again") from error


def _cifar_records(opened: Callable[[str], IO[bytes]], name: str, count: int, size: int, where: str) -> LabelledSet:
    taken: list[tuple[str, int]] = []  # (part, records)
    held = 0
    for part in CIFAR_PARTS[name]:
        with opened(part) as file:
            length = file.seek(0, 2)
        if not length or length % CIFAR_RECORD:
            raise DataError(f"{where}: {part}.bin is no multiple of {CIFAR_RECORD} bytes: fetch it again")
        taken.append((part, min(length // CIFAR_RECORD, count - held)))
        held += taken[-1][1]
        if held == count:
            break
    check_count(held, count, where, name)
    images, labels = np.empty((count, 32, 32, 3), np.uint8), np.empty(count, np.uint8)
    start = 0
    for part, records in taken:
        with opened(part) as file:
            for chunk in _chunks(file, records, f"{where}: {part}.bin"):
                stop = start + len(chunk)
                labels[start:stop] = chunk[:, 0]
                images[start:stop] = chunk[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                start = stop
    return _set("cifar10", name, images, labels, where, size, CIFAR_CLASSES)


def _chunks(file: IO[bytes], records: int, where: str) -> Iterator[Pixels]:
    """The first records of a file, 1,000 at a time: the set itself is all that stays in memory."""
    for start in range(0, records, 1000):
        body = file.read(min(1000, records - start) * CIFAR_RECORD)
        if len(body) != min(1000, records - start) * CIFAR_RECORD:
            raise DataError(f"{where} is cut short: fetch it again")
        yield np.frombuffer(body, np.uint8).reshape(-1, CIFAR_RECORD)


def read_cifar_python(root: Path, name: str, count: int, size: int) -> LabelledSet:
    """The first ``count`` images of ``root/cifar-10-batches-py``, read by torchvision alone.

    These files are pickles, which can run code when read: torchvision compares each with its publishers' MD5 first.
    Raises DataError where one differs.
    """
    import torchvision

    folder = root / "cifar-10-batches-py"
    try:
        data = torchvision.datasets.CIFAR10(str(root), train=name == "train", download=False)
    except RuntimeError:
        raise DataError(
            f"{folder}: a file is missing or differs from the publishers' MD5, and is not read: unpack "
            "cifar-10-python.tar.gz again, or use the binary version (cifar-10-batches-bin)"
        ) from None
    check_count(len(data.data), count, str(folder), name)
    images = np.ascontiguousarray(data.data[:count])
    return _set("cifar10", name, images, np.asarray(data.targets[:count]), str(folder), size, CIFAR_CLASSES)


def _set(
    kind: str, name: str, images: Pixels, labels: npt.NDArray[Any], where: str, size: int, most: int
) -> LabelledSet:
    keys = [sample_key(f"{kind}/{name}", 0, i) for i in range(len(images))]
    tensor = torch.from_numpy(images if images.flags.writeable else images.copy())
    return LabelledSet(keys, tensor, checked_labels(labels, where, most), size)
