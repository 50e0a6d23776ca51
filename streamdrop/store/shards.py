"""Samples of an export as named tensors, and back. ``exchange.py`` says what they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from streamdrop.store.layout import byte_view, dtype_name
from streamdrop.store.records import encode_target, stack_targets
from streamdrop.store.tensorfile import Facts, Tensors
from streamdrop.types import Activations, SampleInfo, Target


@dataclass
class Shard:
    """Samples in order of arrival; ``batch`` are their activations [n, ...]."""

    keys: list[bytes] = field(default_factory=list)
    targets: list[Target | None] = field(default_factory=list)
    sources: list[bytes | None] = field(default_factory=list)
    info: list[SampleInfo] = field(default_factory=list)
    batch: Activations = ()


def target_parts(target: Target | None) -> tuple[torch.Tensor, ...]:
    """The tensors of a target."""
    return () if target is None else target if isinstance(target, tuple) else (target,)


def pack(shard: Shard) -> tuple[dict[str, torch.Tensor], Facts]:
    """Tensors by name, contiguous, and the facts needed to ``unpack`` them."""
    streams = sorted({i.stream for i in shard.info})
    kind, targets = _pack_targets(shard.targets)
    tensors = {f"activations.{j}": tensor.contiguous() for j, tensor in enumerate(shard.batch)}
    tensors |= targets | _pack_info(shard.info, streams) | _pack_bytes("keys", shard.keys)
    if any(source is not None for source in shard.sources):
        tensors |= _pack_bytes("sources", [source or b"" for source in shard.sources])
        tensors["sources.present"] = torch.tensor([source is not None for source in shard.sources], device="cpu")
    order = [_order(tensor) for tensor in shard.batch]
    return tensors, {"samples": len(shard.keys), "streams": streams, "targets": kind, "order": order}


def unpack(tensors: Tensors, facts: Facts) -> Shard:
    """What ``pack`` took apart. Raises ValueError, KeyError, IndexError or TypeError where the pieces do not fit."""
    count, order = int(facts["samples"]), facts["order"]
    batch = tuple(_reordered(_rows(tensors, f"activations.{j}", count), dims) for j, dims in enumerate(order))
    keys = _unpack_bytes(tensors, "keys", count)
    if len(set(keys)) < count or not all(keys):
        raise ValueError("its keys are not all different and of at least one byte")
    sources: list[bytes | None] = [None] * count
    if "sources" in tensors:
        present = _rows(tensors, "sources.present", count).tolist()
        found = _unpack_bytes(tensors, "sources", count)
        sources = [source if there else None for source, there in zip(found, present, strict=True)]
    return Shard(keys, _UNPACK[facts["targets"]](tensors, count), sources, _unpack_info(tensors, facts, count), batch)


def _rows(tensors: Tensors, name: str, count: int) -> torch.Tensor:
    tensor = tensors[name]
    if not tensor.dim() or len(tensor) != count:
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, not {count} rows")
    return tensor


def _order(batch: torch.Tensor) -> list[int]:
    strides = batch.stride()[1:]
    return sorted(range(len(strides)), key=lambda d: -strides[d])


def _reordered(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The same values with a sample's dimensions lying in memory in ``order``."""
    if sorted(order) != list(range(tensor.dim() - 1)):
        raise ValueError(f"the stride order {order} does not fit the shape {list(tensor.shape)}")
    physical = tensor.permute(0, *(d + 1 for d in order)).contiguous()
    return physical.permute(0, *(order.index(d) + 1 for d in range(len(order))))


def _pack_info(info: Sequence[SampleInfo], streams: list[str]) -> dict[str, torch.Tensor]:
    at = {name: index for index, name in enumerate(streams)}
    return {
        "info.weight": torch.tensor([i.weight for i in info], dtype=torch.float64, device="cpu"),
        "info.pinned": torch.tensor([i.pinned for i in info], dtype=torch.bool, device="cpu"),
        "info.label": torch.tensor([i.label or 0 for i in info], dtype=torch.int64, device="cpu"),
        "info.labelled": torch.tensor([i.label is not None for i in info], dtype=torch.bool, device="cpu"),
        "info.stream": torch.tensor([at[i.stream] for i in info], dtype=torch.int64, device="cpu"),
    }


def _unpack_info(tensors: Tensors, facts: Facts, count: int) -> list[SampleInfo]:
    names = ("info.weight", "info.pinned", "info.label", "info.labelled", "info.stream")
    columns = [_rows(tensors, name, count).tolist() for name in names]
    streams = facts["streams"]
    return [
        SampleInfo(weight, pinned, label if labelled else None, streams[stream])
        for weight, pinned, label, labelled, stream in zip(*columns, strict=True)
    ]


def _pack_bytes(name: str, rows: Sequence[bytes]) -> dict[str, torch.Tensor]:
    offsets = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64, device="cpu").cumsum(0)
    joined = torch.empty(int(offsets[-1]), dtype=torch.uint8, device="cpu")
    view = byte_view(joined)
    for row, (start, stop) in zip(rows, pairwise(offsets.tolist()), strict=True):
        view[start:stop] = row
    return {name: joined, f"{name}.offsets": offsets}


def _unpack_bytes(tensors: Tensors, name: str, count: int) -> list[bytes]:
    offsets, data = tensors[f"{name}.offsets"].tolist(), tensors[name]
    if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != len(data) or offsets != sorted(offsets):
        raise ValueError(f"the offsets of {name} do not fit it")
    view = byte_view(data)
    return [bytes(view[start:stop]) for start, stop in pairwise(offsets)]


def _pack_targets(targets: Sequence[Target | None]) -> tuple[str, dict[str, torch.Tensor]]:
    """How a shard's targets are stored, and as what."""
    given = [target for target in targets if target is not None]
    if not given:
        return "none", {}
    if len({_form(target) for target in given}) > 1 or not target_parts(given[0]):
        return "encoded", _pack_bytes("targets.encoded", [b"" if t is None else encode_target(t) for t in targets])
    whole = isinstance(given[0], torch.Tensor)
    stacked = {}
    for j, part in enumerate(target_parts(given[0])):
        blank = torch.zeros_like(part)
        rows = [blank if target is None else target_parts(target)[j] for target in targets]
        stacked["targets" if whole else f"targets.{j}"] = torch.stack(rows)
    if len(given) < len(targets):
        stacked["targets.present"] = torch.tensor([target is not None for target in targets], device="cpu")
    return "tensor" if whole else "tuple", stacked


def _form(target: Target) -> tuple[bool, tuple[Any, ...]]:
    return isinstance(target, tuple), tuple((dtype_name(t.dtype), tuple(t.shape)) for t in target_parts(target))


def _no_targets(tensors: Tensors, count: int) -> list[Target | None]:
    return [None] * count


def _tensor_targets(tensors: Tensors, count: int) -> list[Target | None]:
    return _where_present(tensors, list(_rows(tensors, "targets", count).unbind()), count)


def _tuple_targets(tensors: Tensors, count: int) -> list[Target | None]:
    columns: list[tuple[torch.Tensor, ...]] = []
    while f"targets.{len(columns)}" in tensors:
        columns.append(_rows(tensors, f"targets.{len(columns)}", count).unbind())
    return _where_present(tensors, list(zip(*columns, strict=True)), count)


def _where_present(tensors: Tensors, rows: Sequence[Target], count: int) -> list[Target | None]:
    if "targets.present" not in tensors:
        return list(rows)
    present = _rows(tensors, "targets.present", count).tolist()
    return [row if there else None for row, there in zip(rows, present, strict=True)]


def _encoded_targets(tensors: Tensors, count: int) -> list[Target | None]:
    targets: list[Target | None] = []
    for record in _unpack_bytes(tensors, "targets.encoded", count):
        stacked = stack_targets([record]) if record else None
        parts = tuple(t[0] for t in target_parts(stacked))
        targets.append(None if stacked is None else parts if isinstance(stacked, tuple) else parts[0])
    return targets


_UNPACK: dict[str, Callable[[Tensors, int], list[Target | None]]] = {
    "none": _no_targets,
    "tensor": _tensor_targets,
    "tuple": _tuple_targets,
    "encoded": _encoded_targets,
}
