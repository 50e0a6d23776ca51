"""The stores of this project as arms of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from storebench.measure import key_of, put_all
from storebench.rivals import Place, Read, Reader, Write, Writer
from streamdrop.store import LmdbStore, TieredStore

CHECKED, UNCHECKED, TIERED = "LmdbStore", "LmdbStore verify=False", "TieredStore"
REUSED = "LmdbStore buffers reused"
STORES = (CHECKED, UNCHECKED, TIERED, REUSED)

Make: TypeAlias = Callable[[Path], Any]


def makers(memory: int) -> dict[str, Make]:
    """How each store is opened; ``memory``: bytes of TieredStore's ring."""
    return {
        CHECKED: LmdbStore,
        UNCHECKED: partial(LmdbStore, verify=False),
        TIERED: partial(TieredStore, memory_bytes=memory),
    }


def chosen(options: argparse.Namespace) -> list[str]:
    """The stores that the sections beside reading and writing look at."""
    return [name for name in (CHECKED, TIERED) if name in options.stores]


def arms(memory: int) -> dict[str, tuple[Writer | None, Reader | None]]:
    """Writer and reader of each store; the stores are opened for writing, as a trainer opens them."""
    made = makers(memory)
    found: dict[str, tuple[Writer | None, Reader | None]] = {
        name: (writer_of(make), reader_of(make)) for name, make in made.items()
    }
    return {**found, REUSED: (writer_of(made[CHECKED]), reuse_of(made[CHECKED]))}


def writer_of(make: Make) -> Writer:
    @contextmanager
    def writer(place: Place) -> Iterator[Write]:
        with make(place.folder) as store:

            def write(samples: Tensor) -> None:
                put_all(store, samples)
                store.flush()

            yield write

    return writer


def reader_of(make: Make) -> Reader:
    @contextmanager
    def reader(place: Place) -> Iterator[Read]:
        keys = [key_of(i) for i in range(place.count)]
        with make(place.folder) as store:
            yield lambda batch: store.get_many([keys[i] for i in batch])[0]

    return reader


def reuse_of(make: Make) -> Reader:
    """Into the buffers of the batch before, as a round reads ahead."""

    @contextmanager
    def reader(place: Place) -> Iterator[Read]:
        buffers: Any = None
        keys = [key_of(i) for i in range(place.count)]
        with make(place.folder) as store:

            def read(batch: list[int]) -> Tensor:
                nonlocal buffers
                buffers = store.read_into([keys[i] for i in batch], buffers)
                found: Tensor = buffers[0]
                return found

            yield read

    return reader
