"""What LMDB keeps of a sample beside its row: key, info, arrival, target, as one checked record."""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from streamdrop.errors import StoreCorruptError
from streamdrop.types import SampleInfo

_HEAD = struct.Struct("<IdBqdHI")  # checksum, weight, flags, label, arrival, bytes of stream and key; target
_CHECKED = 4
_PINNED, _LABELLED, _TARGET = 1, 2, 4
_FLAGS = 12
Raw = bytes | memoryview


class Entry(NamedTuple):
    """A decoded record; ``arrived`` in seconds since the epoch."""

    key: bytes
    info: SampleInfo
    arrived: float
    target: bytes | None


def encode(key: bytes, info: SampleInfo, arrived: float, target: bytes | None) -> bytes:
    """A record; ``decode`` reads it."""
    flags = _PINNED * info.pinned | _LABELLED * (info.label is not None) | _TARGET * (target is not None)
    stream = info.stream.encode()
    head = _HEAD.pack(0, info.weight, flags, info.label or 0, arrived, len(stream), len(key))
    body = b"".join([head[_CHECKED:], stream, key, target or b""])
    return int(xxhash.xxh32_intdigest(body)).to_bytes(_CHECKED, "little") + body


def checked(raw: Raw) -> Raw:
    """The record itself. Raises StoreCorruptError when it has changed since it was written."""
    if len(raw) < _HEAD.size or xxhash.xxh32_intdigest(raw[_CHECKED:]) != int.from_bytes(raw[:_CHECKED], "little"):
        raise StoreCorruptError("a sample's record has changed since it was written: restore the store from a copy")
    return raw


def decode(raw: Raw) -> Entry:
    """What ``encode`` wrote. Raises StoreCorruptError."""
    _, weight, flags, label, arrived, stream, key = _HEAD.unpack_from(checked(raw))
    start = _HEAD.size + stream
    info = SampleInfo(
        weight,
        bool(flags & _PINNED),
        label if flags & _LABELLED else None,
        bytes(raw[_HEAD.size : start]).decode(errors="replace"),
    )
    target = bytes(raw[start + key :]) if flags & _TARGET else None
    return Entry(bytes(raw[start : start + key]), info, arrived, target)


def key_of(raw: Raw) -> bytes:
    """The key alone: listing keys does not build infos."""
    return bytes(raw[slice(*_key_span(raw))])


def target_of(raw: Raw) -> Raw | None:
    """The encoded target alone, not copied."""
    start = _key_span(raw)[1]
    return raw[start:] if raw[_FLAGS] & _TARGET else None


def is_pinned(raw: Raw) -> bool:
    """Whether a sample must never be evicted."""
    return bool(raw[_FLAGS] & _PINNED)


def _key_span(raw: Raw) -> tuple[int, int]:
    if len(raw) < _HEAD.size:
        raise StoreCorruptError("a sample's record is cut off: restore the store from a copy")
    stream, key = _HEAD.unpack_from(raw)[5:]
    start = _HEAD.size + stream
    return start, start + key
