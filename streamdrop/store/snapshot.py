"""A memory store's content as tensors and JSON values, so that a checkpoint can carry it without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from streamdrop.errors import StoreCorruptError, StoreVersionError
from streamdrop.store.records import decode_entry, encode_entry
from streamdrop.store.state import State
from streamdrop.types import Activations, SampleInfo


@dataclass(frozen=True)
class Record:
    """A stored sample: ``born`` on the store's clock, values in their physical layout and own memory."""

    born: int
    key: bytes
    values: Activations
    target: bytes | None
    info: SampleInfo


Snapshot = tuple[dict[str, torch.Tensor], dict[str, Any]]


def snapshot(state: State, live: Sequence[Record], held: Sequence[tuple[int, Record]]) -> Snapshot:
    """Tensors: values.J [n, ...], entries and targets [bytes] uint8. Live samples first, then held ones."""
    records = [*live, *(r for _, r in held)]
    tensors: dict[str, torch.Tensor] = {}
    if records:
        tensors = {f"values.{j}": torch.stack(v) for j, v in enumerate(zip(*(r.values for r in records), strict=True))}
    entries = [encode_entry(r.key, r.info) for r in records]
    targets = [r.target for r in records]
    tensors["entries"] = _joined(entries)
    tensors["targets"] = _joined([t for t in targets if t is not None])
    meta = {
        "state": json.loads(state.to_bytes()),
        "born": [r.born for r in records],
        "died": [died for died, _ in held],
        "entries": [len(e) for e in entries],
        "targets": [None if t is None else len(t) for t in targets],
    }
    return tensors, meta


def from_snapshot(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], codec: str
) -> tuple[State, list[Record], list[tuple[int, Record]]]:
    """What ``snapshot`` took apart, in memory of its own. Raises StoreCorruptError, StoreVersionError."""
    try:
        state = State.from_bytes(json.dumps(meta["state"]).encode())
        if state.codec != codec:
            raise StoreVersionError(f"the saved store keeps {state.codec}, this one {codec}: open it with that dtype")
        records = _records(tensors, meta, state)
        died = [int(d) for d in meta["died"]]
        split = len(records) - len(died)
        return state, records[:split], list(zip(died, records[split:], strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreCorruptError(f"the saved store does not decode ({error!r}): use another checkpoint") from error


def _records(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], state: State) -> list[Record]:
    entries = _split(tensors["entries"], meta["entries"])
    targets = _split(tensors["targets"], meta["targets"])
    parts = state.layout.tensors if state.layout else ()
    stacks = [tensors[f"values.{j}"] for j in range(len(parts))] if entries else []
    for stack, part in zip(stacks, parts, strict=bool(entries)):
        if tuple(stack.shape) != (len(entries), *part.physical) or stack.dtype != part.stored:
            raise StoreCorruptError("the saved store's values do not fit its layout: use another checkpoint")
    records = []
    for i, (born, entry, target) in enumerate(zip(meta["born"], entries, targets, strict=True)):
        key, info = decode_entry(entry or b"")
        records.append(Record(int(born), key, tuple(s[i].clone() for s in stacks), target, info))
    return records


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
