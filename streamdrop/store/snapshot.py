"""A memory store's content as tensors and JSON values, so that a checkpoint can carry it without pickle."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from streamdrop.errors import StoreCorruptError, StoreVersionError
from streamdrop.store.drift import Drift
from streamdrop.store.entries import Entry, decode, encode
from streamdrop.store.layout import EXACT, Layout, codec_known
from streamdrop.store.memory_shelf import Record, rows_of
from streamdrop.store.state import State
from streamdrop.types import SampleInfo

Snapshot = tuple[dict[str, torch.Tensor], dict[str, Any]]

_EARLY_INFO = struct.Struct(
    "<dBqH"
)  # weight, 1: pinned 2: labelled, label, bytes of the stream's name; then it, the key


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
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], codec: str, now: float
) -> tuple[State, list[Record], list[tuple[int, Record]]]:
    """What ``snapshot`` took apart, in memory of its own. Raises StoreCorruptError, StoreVersionError.

    What release 0.1 saved has no sources, and counts as arrived ``now``.
    """
    try:
        early = not isinstance(meta["state"], str)
        state = _early_state(meta["state"]) if early else State.from_bytes(meta["state"].encode())
        if state.codec != codec:
            raise StoreVersionError(f"the saved store keeps {state.codec}, this one {codec}: open it with that dtype")
        entries = _early_entries(tensors, meta, now) if early else _entries(tensors, meta)
        records = _records(tensors, meta, state, list(entries))
        died = [int(d) for d in meta["died"]]
        split = len(records) - len(died)
        return state, records[:split], list(zip(died, records[split:], strict=True))
    except (KeyError, TypeError, ValueError, IndexError, struct.error) as error:
        raise StoreCorruptError(f"the saved store does not decode ({error!r}): use another checkpoint") from error


def _records(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], state: State, entries: Sequence[Entry]
) -> list[Record]:
    columns = state.layout.columns if state.layout and entries else ()
    stacks = [tensors[f"values.{j}"] for j in range(len(columns))]
    for stack, column in zip(stacks, columns, strict=True):
        if tuple(stack.shape) != (len(entries), *column.shape) or stack.dtype != column.dtype:
            raise StoreCorruptError("the saved store's values do not fit its layout: use another checkpoint")
    sources = _split(tensors["sources"], meta["sources"]) if "sources" in meta else [None] * len(entries)
    rows = rows_of([stack.clone() for stack in stacks]) if entries else []
    return [
        Record(int(born), entry.key, row, entry.target, entry.info, entry.arrived, source)
        for born, entry, row, source in zip(meta["born"], entries, rows, sources, strict=True)
    ]


def _entries(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Iterator[Entry]:
    return (decode(raw or b"") for raw in _split(tensors["entries"], meta["entries"]))


def _early_entries(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], now: float) -> Iterator[Entry]:
    """Release 0.1 kept targets apart and no time of arrival."""
    targets = _split(tensors["targets"], meta["targets"])
    for raw, target in zip(_split(tensors["entries"], meta["entries"]), targets, strict=True):
        weight, flags, label, length = _EARLY_INFO.unpack_from(raw or b"")
        stream, key = _halves(raw or b"", length)
        yield Entry(key, SampleInfo(weight, bool(flags & 1), label if flags & 2 else None, stream), now, target)


def _halves(raw: bytes, length: int) -> tuple[str, bytes]:
    start = _EARLY_INFO.size
    return raw[start : start + length].decode(), raw[start + length :]


def _early_state(value: Mapping[str, Any]) -> State:
    """Release 0.1 named the dtype that a tensor is stored in, not its codec."""
    if value["format"] != 1:
        raise StoreVersionError(f"the saved store has format {value['format']}, which this release does not read")
    tensors = [{**t, "codec": EXACT if t["stored"] == t["dtype"] else t["stored"]} for t in value["layout"] or ()]
    return State(
        codec_known(value["codec"]),
        value["cut"],
        value["version"],
        value["generation"],
        value["last"],
        layout=Layout.from_json(tensors) if tensors else None,
        floor=value["floor"],
        undone=tuple((int(a), int(b)) for a, b in value["undone"]),
        drift=Drift(*value["drift"]),
    )


def _joined(chunks: Sequence[bytes]) -> torch.Tensor:
    data = b"".join(chunks)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _split(joined: torch.Tensor, sizes: Sequence[int | None]) -> list[bytes | None]:
    data, at, out = joined.numpy().tobytes(), 0, []
    for size in sizes:
        out.append(None if size is None else data[at : at + size])
        at += size or 0
    if at != len(data):
        raise StoreCorruptError("the saved store's records are cut off: use another checkpoint")
    return out
