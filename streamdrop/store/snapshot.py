"""A memory store's content as tensors and JSON values, so that a checkpoint can carry it without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from streamdrop.errors import StoreCorruptError, StoreVersionError
from streamdrop.store.entries import Entry, decode, encode
from streamdrop.store.memory_shelf import Record, rows_of
from streamdrop.store.state import State

Snapshot = tuple[dict[str, torch.Tensor], dict[str, Any]]


def snapshot(state: State, live: Sequence[Record], held: Sequence[tuple[int, Record]]) -> Snapshot:
    """Tensors: values.J [n, ...] per column, entries and sources [bytes] uint8. Live samples first, then held ones."""
    records = [*live, *(r for _, r in held)]
    tensors: dict[str, torch.Tensor] = {}
    if records:
        tensors = {f"values.{j}": torch.stack(v) for j, v in enumerate(zip(*(r.row for r in records), strict=True))}
    entries = [encode(r.key, r.info, r.arrived, r.target) for r in records]
    sources = [r.source for r in records]
    tensors["entries"] = _joined(entries)
    tensors["sources"] = _joined([s for s in sources if s is not None])
    meta = {
        "state": state.to_bytes().decode(),
        "born": [r.born for r in records],
        "died": [died for died, _ in held],
        "entries": [len(e) for e in entries],
        "sources": [None if s is None else len(s) for s in sources],
    }
    return tensors, meta


def from_snapshot(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], codec: str
) -> tuple[State, list[Record], list[tuple[int, Record]]]:
    """What ``snapshot`` took apart, in memory of its own. Raises StoreCorruptError, StoreVersionError."""
    if isinstance(meta.get("state"), dict):
        raise StoreVersionError("the saved store is of release 0.1, which this one does not read: fill a new store")
    try:
        state = State.from_bytes(meta["state"].encode())
        if state.codec != codec:
            raise StoreVersionError(f"the saved store keeps {state.codec}, this one {codec}: open it with that dtype")
        entries = [decode(raw or b"") for raw in _split(tensors["entries"], meta["entries"])]
        records = _records(tensors, meta, state, entries)
        died = [int(d) for d in meta["died"]]
        split = len(records) - len(died)
        return state, records[:split], list(zip(died, records[split:], strict=True))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreCorruptError(f"the saved store does not decode ({error!r}): use another checkpoint") from error


def _records(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], state: State, entries: Sequence[Entry]
) -> list[Record]:
    columns = state.layout.columns if state.layout and entries else ()
    stacks = [tensors[f"values.{j}"] for j in range(len(columns))]
    for stack, column in zip(stacks, columns, strict=True):
        if tuple(stack.shape) != (len(entries), *column.shape) or stack.dtype != column.dtype:
            raise StoreCorruptError("the saved store's values do not fit its layout: use another checkpoint")
    sources = _split(tensors["sources"], meta["sources"])
    rows = rows_of([stack.clone() for stack in stacks]) if entries else []
    return [
        Record(int(born), entry.key, row, entry.target, entry.info, entry.arrived, source)
        for born, entry, row, source in zip(meta["born"], entries, rows, sources, strict=True)
    ]


def _joined(chunks: Sequence[bytes]) -> torch.Tensor:
    data = b"".join(chunks)
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8, device="cpu")
    )


def _split(joined: torch.Tensor, sizes: Sequence[int | None]) -> list[bytes | None]:
    data, at, out = joined.numpy().tobytes(), 0, []
    for size in sizes:
        out.append(None if size is None else data[at : at + size])
        at += size or 0
    if at != len(data):
        raise StoreCorruptError("the saved store's records are cut off: use another checkpoint")
    return out
