"""Targets and ``SampleInfo`` as bytes: self-describing, without pickle."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, SupportsFloat, SupportsIndex

import torch

from streamdrop.errors import DataError, StoreCorruptError
from streamdrop.store.layout import byte_view, dtype_name, dtype_named
from streamdrop.types import SampleInfo, Target


def check_info(key: bytes, info: object) -> SampleInfo:
    """``info`` if it can be stored. Raises DataError."""
    if not isinstance(info, SampleInfo):
        raise DataError(f"info of sample {key!r} is a {type(info).__name__}, not a SampleInfo")
    if not isinstance(info.weight, SupportsFloat) or not (math.isfinite(info.weight) and info.weight >= 0):
        raise DataError(f"weight {info.weight!r} of sample {key!r} is not a finite number of at least 0")
    if info.label is not None and not isinstance(info.label, SupportsIndex):
        raise DataError(f"label {info.label!r} of sample {key!r} is not a whole number: number the classes")
    if info.label is not None and not -(2**63) <= info.label < 2**63:
        raise DataError(f"label {info.label} of sample {key!r} does not fit 64 bits")
    if not isinstance(info.stream, str):
        raise DataError(f"stream {info.stream!r} of sample {key!r} is not text: give its name")
    if len(info.stream.encode()) > 65535:
        raise DataError(f"stream name of sample {key!r} is longer than 65535 bytes: shorten it")
    return info


def as_target(key: bytes, value: Any) -> Target:
    """A tensor, or tuple of tensors, from what a user hands in: numbers and arrays become tensors. Raises DataError."""
    if isinstance(value, tuple):
        return tuple(_tensor(key, v) for v in value)
    return _tensor(key, value)


def _tensor(key: bytes, value: Any) -> torch.Tensor:
    if isinstance(value, (str, bytes, dict, list, tuple)) or value is None:
        raise DataError(
            f"target of sample {key!r} is a {type(value).__name__}: give a tensor, a tuple of tensors or a number"
        )
    try:
        tensor = torch.as_tensor(value, device="cpu").detach().contiguous().resolve_conj().resolve_neg()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"target of sample {key!r} is no tensor or number: {error}") from error
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise DataError(f"target of sample {key!r} is sparse or quantised: give a dense tensor")
    return tensor


def encode_target(target: Target) -> bytes:
    """Header (length, structure, then dtype and shape of each tensor) and raw bytes."""
    tensors = target if isinstance(target, tuple) else (target,)
    head = struct.pack("<?B", isinstance(target, tuple), len(tensors))
    for t in tensors:
        name = dtype_name(t.dtype).encode()
        head += struct.pack(f"<B{len(name)}sB{t.dim()}Q", len(name), name, t.dim(), *t.shape)
    return b"".join([struct.pack("<I", len(head)), head, *(byte_view(t) for t in tensors)])


def stack_targets(records: Sequence[bytes | memoryview]) -> Target:
    """Encoded targets, equal in structure → tensors [N, ...]. Raises DataError, StoreCorruptError."""
    head, parts = _header(records[0])
    length = len(head)
    if any(bytes(r[:length]) != head for r in records):
        raise DataError("targets differ in shape, dtype or structure and cannot be stacked: ask for them one by one")
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in parts]
    if any(len(r) != length + sum(sizes) for r in records):
        raise StoreCorruptError("a target's bytes do not fit its shape: restore the store from a copy")
    stacked, start = [], length
    for (dtype, shape), size in zip(parts, sizes, strict=True):
        out = torch.empty((len(records), *shape), dtype=dtype, device="cpu")
        byte_view(out)[:] = b"".join([r[start : start + size] for r in records])
        stacked.append(out)
        start += size
    return tuple(stacked) if head[4] else stacked[0]


def _header(record: bytes | memoryview) -> tuple[bytes, list[tuple[torch.dtype, tuple[int, ...]]]]:
    try:
        head = bytes(record[: 4 + struct.unpack_from("<I", record)[0]])
        parts, at = [], 6
        for _ in range(head[5]):
            (size,) = struct.unpack_from("<B", head, at)
            name = head[at + 1 : at + 1 + size].decode()
            (dims,) = struct.unpack_from("<B", head, at + 1 + size)
            parts.append((dtype_named(name), struct.unpack_from(f"<{dims}Q", head, at + 2 + size)))
            at += 2 + size + 8 * dims
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise StoreCorruptError(f"a target does not decode ({error}): restore the store from a copy") from error
    return head, parts
