"""Other ways of keeping samples, each as fast as we know how to make it.

A writer returns when all is on the disk. Where a rival keeps a file per sample, one ``sync`` at the end does it: faster
for the rival than ``fsync`` for each. A reader is a context: only ``read`` inside it is timed.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamdrop.atomic import sync

DISK, PICKLE, MAP, RECOMPUTE = "sequential write", "pickle per sample", "raw memory map", "recompute"


@dataclass(frozen=True)
class Place:
    """A folder for ``count`` samples of ``floats`` float32; ``part`` of them go into a file that holds several."""

    folder: Path
    count: int
    floats: int

    @property
    def part(self) -> int:
        """256 samples, at most 64 MB."""
        return min(256, max(1, (16 << 20) // self.floats))

    @property
    def parts(self) -> Iterator[slice]:
        """All samples, ``part`` at a time."""
        return (slice(i, min(i + self.part, self.count)) for i in range(0, self.count, self.part))


Write: TypeAlias = Callable[[Tensor], None]
"""Samples [count, floats] to the disk; durable when it returns."""
Read: TypeAlias = Callable[[list[int]], Tensor]
"""The samples of these numbers, [N, floats], in memory of their own."""
Writer: TypeAlias = Callable[[Place], AbstractContextManager[Write]]
Reader: TypeAlias = Callable[[Place], AbstractContextManager[Read]]


def plainly(write: Callable[[Place, Tensor], None]) -> Writer:
    """A writer that needs nothing opened beforehand."""

    @contextmanager
    def writer(place: Place) -> Iterator[Write]:
        yield partial(write, place)

    return writer


def write_sequentially(place: Place, samples: Tensor) -> None:
    """What the disk can do: one file, 16 MB at a time."""
    with (place.folder / "all").open("wb", buffering=0) as file:
        data = memoryview(samples.numpy()).cast("B")
        for start in range(0, len(data), 16 << 20):
            os.write(file.fileno(), data[start : start + (16 << 20)])
        os.fdatasync(file.fileno())


def file_each(
    dump: Callable[[Any, IO[bytes]], Any], load: Callable[[IO[bytes]], Any], size: int = 1
) -> tuple[Writer, Reader]:
    """A file for every ``size`` samples; to read one sample of a file is to load the file."""

    def write(place: Place, samples: Tensor) -> None:
        rows = samples.numpy()
        for start in range(0, place.count, size):
            with open(f"{place.folder}/{start // size}", "wb") as file:
                dump(rows[start : start + size] if size > 1 else rows[start], file)
        os.sync()

    @contextmanager
    def reader(place: Place) -> Iterator[Read]:
        def load_one(number: int) -> Any:
            with open(f"{place.folder}/{number}", "rb") as file:
                return load(file)

        if size == 1:
            yield lambda batch: torch.from_numpy(np.stack([load_one(i) for i in batch]))
        else:
            yield lambda batch: picked(batch, load_one, size)

    return plainly(write), reader


def picked(batch: list[int], load: Callable[[int], Any], size: int) -> Tensor:
    """Samples out of files of ``size``, each file loaded once."""
    rows: dict[int, Any] = {}
    for number in {i // size for i in batch}:
        part = load(number)
        rows.update({i: part[i % size] for i in batch if i // size == number})
    return torch.from_numpy(np.stack([rows[i] for i in batch]))


def write_map(place: Place, samples: Tensor) -> None:
    rows = np.memmap(place.folder / "all", np.float32, "w+", shape=(place.count, place.floats))
    rows[:] = samples.numpy()
    rows.flush()


@contextmanager
def read_map(place: Place) -> Iterator[Read]:
    """Gathered into a fresh array: no keys, no checksums, no targets."""
    rows = np.memmap(place.folder / "all", np.float32, "r", shape=(place.count, place.floats))
    yield lambda batch: torch.from_numpy(np.asarray(rows[batch]))


def write_safetensors(place: Place, samples: Tensor) -> None:
    for number, part in enumerate(place.parts):
        save_file({"a": samples[part]}, f"{place.folder}/{number}")
    os.sync()


@contextmanager
def read_safetensors(place: Place) -> Iterator[Read]:
    """One tensor per shard, read slice by slice: faster than a tensor per sample from 64 KB up."""
    shards = [safe_open(f"{place.folder}/{n}", "pt").get_slice("a") for n, _ in enumerate(place.parts)]
    yield lambda batch: torch.stack([shards[i // place.part][i % place.part] for i in batch])


def write_hdf5(place: Place, samples: Tensor) -> None:
    import h5py

    with h5py.File(place.folder / "all", "w", libver="latest") as file:
        rows = file.create_dataset("a", (place.count, place.floats), "f4", chunks=(1, place.floats))
        for part in place.parts:
            rows[part] = samples[part].numpy()
    sync(place.folder / "all")


@contextmanager
def read_hdf5(place: Place) -> Iterator[Read]:
    """Row by row: a list of indices is slower."""
    import h5py

    with h5py.File(place.folder / "all", "r") as file:
        rows = file["a"]

        def read(batch: list[int]) -> Tensor:
            out = np.empty((len(batch), place.floats), np.float32)
            for row, i in enumerate(batch):
                rows.read_direct(out, np.s_[i], np.s_[row])
            return torch.from_numpy(out)

        yield read


def write_zarr(place: Place, samples: Tensor) -> None:
    import zarr

    shape, chunks = (place.count, place.floats), (1, place.floats)
    rows = zarr.create_array(place.folder / "z", shape=shape, chunks=chunks, dtype="f4", compressors=None)
    for part in place.parts:
        rows[part] = samples[part].numpy()
    os.sync()


@contextmanager
def read_zarr(place: Place) -> Iterator[Read]:
    """Small samples by a list of indices, larger ones row by row: each the faster way."""
    import zarr

    rows = zarr.open_array(place.folder / "z", mode="r")
    if place.floats < 4096:
        yield lambda batch: torch.from_numpy(rows.oindex[np.asarray(batch)])
    else:
        yield lambda batch: torch.from_numpy(np.stack([rows[i] for i in batch]))


def write_sqlite(place: Place, samples: Tensor) -> None:
    with closing(sqlite3.connect(place.folder / "all")) as base:
        base.executescript("pragma page_size=65536; pragma journal_mode=off; pragma synchronous=off;")
        base.execute("create table samples(key integer primary key, value blob)")
        for part in place.parts:
            rows = enumerate(samples[part].numpy(), part.start)
            base.executemany("insert into samples values(?, ?)", ((n, memoryview(row)) for n, row in rows))
            base.commit()
    sync(place.folder / "all")


@contextmanager
def read_sqlite(place: Place) -> Iterator[Read]:
    """One query per batch; pages of 64 KB are faster for blobs than the default."""
    with closing(sqlite3.connect(place.folder / "all")) as base:

        def read(batch: list[int]) -> Tensor:
            query = f"select key, value from samples where key in ({','.join('?' * len(batch))})"
            found = dict(base.execute(query, batch))
            return torch.from_numpy(np.stack([np.frombuffer(found[i], np.float32) for i in batch]))

        yield read


TAILS = ((4, "layer3", 32), (64, "layer1", 64), (512, "layer1", 180))
"""ResNet-18 up to and with which stage, on images of which side, gives activations of about how many KB."""


def tail_for(floats: int) -> tuple[int, str, int]:
    return min(TAILS, key=lambda tail: abs(tail[0] - floats / 256))


@contextmanager
def read_by_computing(place: Place) -> Iterator[Read]:
    """No store: the tail runs again on images that lie in memory."""
    _, last, side = tail_for(place.floats)
    model = torchvision.models.resnet18(weights=None).eval()
    names = [name for name, _ in model.named_children()]
    tail = torch.nn.Sequential(*list(model.children())[: names.index(last) + 1])
    images = torch.rand(256, 3, side, side)

    @torch.no_grad()
    def read(batch: list[int]) -> Tensor:
        activations: Tensor = tail(images[[i % len(images) for i in batch]])
        return activations

    yield read


RIVALS: dict[str, tuple[Writer | None, Reader | None]] = {
    DISK: (plainly(write_sequentially), None),
    PICKLE: file_each(pickle.dump, pickle.load),
    "pickle per batch": file_each(pickle.dump, pickle.load, size=32),
    "torch.save": file_each(
        lambda row, file: torch.save(torch.from_numpy(row).clone(), file),
        lambda file: torch.load(file, weights_only=True).numpy(),
    ),
    "npy files": file_each(lambda row, file: np.save(file, row), np.load),
    MAP: (plainly(write_map), read_map),
    "safetensors shards": (plainly(write_safetensors), read_safetensors),
    "HDF5": (plainly(write_hdf5), read_hdf5),
    "Zarr": (plainly(write_zarr), read_zarr),
    "SQLite": (plainly(write_sqlite), read_sqlite),
    RECOMPUTE: (None, read_by_computing),
}

EXTRA = {"HDF5": "h5py", "Zarr": "zarr"}
"""Rivals whose library the extra ``bench`` brings."""
