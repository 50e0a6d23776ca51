"""A look at a store on disk without changing it: ``streamdrop store info`` and ``verify``."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import xxhash

from streamdrop.errors import DataError
from streamdrop.store.entries import decode
from streamdrop.store.examination import Problem, examine
from streamdrop.store.layout import byte_view, dtype_name
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.state import FORMAT, State
from streamdrop.store.tables import SOURCES, Tables
from streamdrop.types import Activations

Recompute = Callable[[list[bytes]], Activations]
"""Sources → batched activations at the store's cut, in the same order."""
Tell = Callable[[int, int], None]
"""Called now and then with the samples done and their total."""


def store_info(path: str | PathLike[str]) -> dict[str, Any]:
    """What the store at ``path`` holds, as JSON values. Sizes in bytes; ``error`` is that of a lossy codec.

    ``parents`` are the [cut, version] it was promoted from, oldest first; ``retention`` is the one that its samples are
    ranked for (None: by arrival, or not bounded). Opens read-only, beside a writer too, and never creates. Raises
    StoreError when nothing is there, StoreVersionError, StoreCorruptError.
    """
    with LmdbStore(path, read_only=True) as store, store.folder.reading() as (tables, state):
        parts = state.layout.tensors if state.layout else ()
        streams = Counter(decode(raw).info.stream for _, raw in tables.living(state.last))
        return {
            "path": str(store.path),
            "format": FORMAT,
            "codec": state.codec,
            "compression": state.compression,
            "error": state.drift.report(),
            "cut": state.cut,
            "version": state.version,
            "parents": [list(step) for step in state.lineage],
            "generation": state.generation,
            "samples": state.count,
            "pinned": state.pinned,
            "held": tables.count(b"held"),
            "streams": dict(sorted(streams.items())),
            "retention": state.ranking or None,
            "shapes": [list(t.shape) for t in parts],
            "dtypes": [dtype_name(t.dtype) for t in parts],
            "bytes_per_sample": state.layout.nbytes if state.layout else 0,
            "bytes_live": state.nbytes - state.source_bytes,
            "sources": _count_sources(tables, state),
            "source_bytes": state.source_bytes,
            "bytes_on_disk": sum(file_sizes(store.path).values()),
            "bytes_file": file_sizes(store.path),
        }


def file_sizes(path: Path) -> dict[str, int]:
    """Bytes that each file of a store takes on the disk, by name."""
    files = sorted(path.iterdir()) if path.is_dir() else []
    return {file.name: file.stat().st_blocks * 512 for file in files if file.is_file()}


def _count_sources(tables: Tables, state: State) -> int:
    placed = sum(seq <= state.last for seq, _ in tables.placed(SOURCES, state.source_generation))
    held = tables.places(SOURCES, state.source_generation, [seq for seq, _, _ in tables.held()])
    return placed - sum(place is not None for place in held)


def verify(
    path: str | PathLike[str], recompute: Recompute | None = None, samples: int = 16, tell: Tell | None = None
) -> dict[str, Any]:
    """Read every record: {"path", "samples", "held", "problems": [one line each]}; no problems means all decode.

    With ``recompute``, that many ``samples`` (always the same ones of a store) are made anew from their sources and
    compared: bit for bit where the codec is exact, else within the error that the store reports. "recomputed" says how
    many were, and "note" that no sample keeps a source. Opens read-only and never creates. Raises as ``store_info``
    does, StoreCorruptError also where the files cannot be read through.
    """
    with LmdbStore(path, read_only=True) as store:
        problems = [problem.text for problem in _examined(store, tell)]
        result: dict[str, Any] = {"path": str(store.path), "samples": len(store)}
        with store.folder.reading() as (tables, _):
            result["held"] = tables.count(b"held")
        if recompute is not None:
            keys, sources = _chosen(store, samples)
            result["recomputed"] = len(keys)
            if keys:
                problems += _compared(store, keys, recompute(sources))
            else:
                result["note"] = "there was nothing to recompute: no sample keeps its source"
        return {**result, "problems": problems}


def _examined(store: LmdbStore, tell: Tell | None) -> Iterator[Problem]:
    with store.folder.reading() as (tables, state):
        yield from examine(store, tables, state, tell)


def _chosen(store: LmdbStore, count: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and sources of up to ``count`` samples that keep theirs: a uniform choice that depends on the keys alone."""
    with store.folder.reading() as (tables, state):
        sourced = {seq for seq, _ in tables.placed(SOURCES, state.source_generation)}
        keys = (decode(raw).key for seq, raw in tables.living(state.last) if seq in sourced)
        chosen = heapq.nsmallest(count, keys, key=xxhash.xxh3_64_intdigest)
    return chosen, [source for source in store.get_sources(chosen) if source is not None]


def _compared(store: LmdbStore, keys: Sequence[bytes], made: Activations) -> list[str]:
    kept, error = store.get_many(keys), store.error()["max"]
    words = [_words(tensors) for tensors in (made, kept)]
    if words[0] != words[1]:
        raise DataError(
            f"the network makes {words[0]} at cut {store.cut}, the store holds {words[1]}: give its network"
        )
    return [
        f"sample {key!r}: tensor {j} is not what its source gives again: {difference}"
        for j, (new, old) in enumerate(zip(made, kept, strict=True))
        for i, key in enumerate(keys)
        if (difference := _difference(new[i], old[i], error))
    ]


def _difference(new: torch.Tensor, old: torch.Tensor, error: float) -> str:
    """What is wrong with ``old``; empty when nothing is."""
    new = new.detach().cpu()
    if byte_view(new.contiguous()) == byte_view(old.contiguous()):
        return ""
    if new.dtype.is_floating_point and error and torch.allclose(old.double(), new.double(), 0, error, equal_nan=True):
        return ""
    if new.is_complex():
        return "it differs"
    return f"it differs by up to {float((old.double() - new.double()).abs().max()):.3g}"


def _words(tensors: Sequence[torch.Tensor]) -> str:
    return "(" + ", ".join(f"{dtype_name(t.dtype)}{list(t.shape[1:])}" for t in tensors) + ")"
