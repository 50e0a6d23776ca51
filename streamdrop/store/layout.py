"""How samples' activations become rows of bytes: shapes, dtypes, stride orders and codecs, settled once per cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from streamdrop.errors import ConfigError, DataError, StoreCorruptError, StoreVersionError
from streamdrop.store.codecs import dequantise, quantise, scale_dtype
from streamdrop.types import Activations

EXACT = "float32"
"""Codec that keeps every tensor in its own dtype, bit for bit."""

INT8 = "int8"
"""Codec that keeps whole numbers from -127 to 127 and a scale per channel."""

_LOSSY = {"float16": torch.float16, "bfloat16": torch.bfloat16, INT8: torch.int8}
_CODECS = (EXACT, *_LOSSY)


def codec_name(dtype: str | torch.dtype | None) -> str | None:
    """Codec for a ``dtype`` option: "float32" (exact), "float16", "bfloat16", "int8"; None when none is asked for.

    Raises ConfigError for any other.
    """
    name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype
    if name is not None and name not in _CODECS:
        raise ConfigError(f"store dtype {name!r} is not known; valid: {', '.join(_CODECS)}")
    return name


def codec_known(name: object) -> str:
    """``name`` as read from a file. Raises StoreVersionError when this release does not know it."""
    if not isinstance(name, str) or name not in _CODECS:
        raise StoreVersionError(f"store was written with the codec {name!r}, which this release does not know: upgrade")
    return name


def dtype_name(dtype: torch.dtype) -> str:
    """'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: object) -> torch.dtype:
    """torch.float32 for 'float32'. Raises StoreCorruptError."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise StoreCorruptError(f"store names a dtype {name!r} that torch does not have: restore it from a copy")
    return dtype


@dataclass(frozen=True)
class Column:
    """One run of equal values in a stored row: contiguous, of ``shape`` and ``dtype``."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one row's column."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorLayout:
    """One tensor of a sample. ``order``: its dimensions from the largest stride to the smallest.

    ``shape`` and ``dtype`` are what callers see; ``codec`` is how this tensor is kept ("float32": as it is).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: str
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, codec: str) -> TensorLayout:
        """The layout of ``tensor`` under a codec; ties between strides keep the order of dimensions."""
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.dim()), key=lambda d: -strides[d]))
        return cls(
            tuple(tensor.shape), tensor.dtype, codec if _shrinks(codec, tensor.dtype, tensor.shape) else EXACT, order
        )

    @cached_property
    def physical(self) -> tuple[int, ...]:
        """Shape as it lies in memory: dimensions sorted by ``order``, contiguous."""
        return tuple(self.shape[d] for d in self.order)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What a row keeps of this tensor: its values, under int8 preceded by the scales of its channels."""
        if self.codec == INT8:
            return Column(self._blocks[1:2], scale_dtype(self.dtype)), Column(self.physical, torch.int8)
        return (Column(self.physical, _LOSSY.get(self.codec, self.dtype)),)

    @cached_property
    def _plain(self) -> bool:
        """Whether rows lie as callers see them."""
        return self.codec == EXACT and self.order == tuple(range(len(self.order)))

    @cached_property
    def _inverse(self) -> tuple[int, ...]:
        return (0, *(self.order.index(d) + 1 for d in range(len(self.order))))

    @cached_property
    def _blocks(self) -> tuple[int, int, int]:
        """The physical shape as [outer, channels, inner]: 0 is the channel axis, of a matrix the last, else none."""
        if len(self.shape) < 2:
            return 1, 1, math.prod(self.shape)
        place = self.order.index(0 if len(self.shape) > 2 else 1)
        before, after = self.physical[:place], self.physical[place + 1 :]
        return math.prod(before), self.physical[place], math.prod(after)

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Samples' tensors → [N, *physical] of ``dtype``, own memory, on their device (the CPU if on several)."""
        views = [t.permute(self.order) for t in tensors]
        if len({t.device for t in tensors}) > 1:
            views = [v.cpu() for v in views]
        out = torch.empty((len(views), *self.physical), dtype=dtype, device=views[0].device)
        with torch.no_grad():
            return torch.stack(views, out=out)

    def encode(self, tensors: Sequence[Tensor], keys: Sequence[bytes] | None = None) -> list[Tensor]:
        """One CPU tensor [N, *shape] for each column. Raises DataError (int8: values that are not finite)."""
        values = self.columns[-1]
        if self.codec != INT8:
            return [self.gather(tensors, values.dtype).cpu()]
        rows = self.gather(tensors, scale_dtype(self.dtype))
        scales, whole = quantise(rows.view(-1, *self._blocks), keys)
        return [scales.cpu(), whole.cpu().view(-1, *self.physical)]

    def decode(self, columns: Sequence[Tensor]) -> Tensor:
        """What ``encode`` made → [N, *shape] in the original dtype and stride order; kept as it is: no copy."""
        rows = columns[-1]
        if self._plain:
            return rows
        if self.codec == INT8:
            rows = dequantise(columns[0], rows.view(len(rows), *self._blocks)).view(-1, *self.physical)
        return rows.permute(self._inverse).to(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` reads them."""
        names = {"dtype": dtype_name(self.dtype), "codec": self.codec}
        return {"shape": list(self.shape), "order": list(self.order), **names}

    @classmethod
    def from_json(cls, value: Any) -> TensorLayout:
        """Read what ``to_json`` wrote. Raises StoreCorruptError."""
        if not isinstance(value, dict):
            raise StoreCorruptError(f"store describes a tensor as {value!r}: restore it from a copy")
        shape, order = _sizes(value.get("shape")), _sizes(value.get("order"))
        if sorted(order) != list(range(len(shape))):
            raise StoreCorruptError(f"store names the stride order {order} for the shape {shape}")
        dtype, codec = dtype_named(value.get("dtype")), value.get("codec")
        if not isinstance(codec, str) or (codec != EXACT and not _shrinks(codec, dtype, shape)):
            raise StoreCorruptError(f"store names the codec {codec!r} for {dtype_name(dtype)}{list(shape)}")
        return cls(shape, dtype, codec, order)


@dataclass(frozen=True)
class Layout:
    """All tensors of a sample, laid one after the other."""

    tensors: tuple[TensorLayout, ...]

    @classmethod
    def of(cls, activations: Activations, codec: str) -> Layout:
        """The layout that the first sample of a cut sets."""
        return cls(tuple(TensorLayout.of(t, codec) for t in activations))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of all tensors, in order."""
        return tuple(column for tensor in self.tensors for column in tensor.columns)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each column lies in a row's bytes: (start, stop)."""
        ends = [0]
        for column in self.columns:
            ends.append(ends[-1] + column.nbytes)
        return tuple(pairwise(ends))

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return sum(column.nbytes for column in self.columns)

    @cached_property
    def lossy(self) -> bool:
        """Whether what comes back may differ from what went in."""
        return any(tensor.codec != EXACT for tensor in self.tensors)

    @cached_property
    def _fits(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(t.shape, t.dtype) for t in self.tensors]

    def check(self, key: bytes, activations: Sequence[Tensor]) -> None:
        """Raise DataError unless the activations fit this layout."""
        got = [(tuple(t.shape), t.dtype) for t in activations]
        if got != self._fits:
            raise DataError(
                f"sample {key!r} has activations {_words(got)} but the store holds {_words(self._fits)}: one store "
                "keeps one model's activations at one cut"
            )

    def encode(self, samples: Sequence[Activations], keys: Sequence[bytes] | None = None) -> list[Tensor]:
        """Samples that fit → one contiguous CPU tensor [N, *shape] per column, in memory of its own.

        Raises DataError, naming the sample by ``keys``, when int8 meets a value that is not finite.
        """
        if not samples:
            return self.allocate(0)
        by_tensor = zip(self.tensors, zip(*samples, strict=True), strict=True)
        return [column for layout, tensors in by_tensor for column in layout.encode(tensors, keys)]

    def allocate(self, count: int) -> list[Tensor]:
        """Empty [count, *shape] tensors, one per column, to be filled and then given to ``decode``."""
        return [torch.empty((count, *column.shape), dtype=column.dtype, device="cpu") for column in self.columns]

    def decode(self, columns: Sequence[Tensor]) -> Activations:
        """Columns → batched activations [N, ...], original dtype and stride order; views where nothing is lossy."""
        return tuple(layout.decode(part) for layout, part in self.parts(columns))

    def parts(self, columns: Sequence[Tensor]) -> Iterable[tuple[TensorLayout, list[Tensor]]]:
        """Each tensor's layout with its columns."""
        rest = iter(columns)
        return [(layout, [next(rest) for _ in layout.columns]) for layout in self.tensors]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values; ``from_json`` reads them."""
        return [t.to_json() for t in self.tensors]

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Read what ``to_json`` wrote. Raises StoreCorruptError."""
        if not isinstance(value, list) or not value:
            raise StoreCorruptError(f"store describes its activations as {value!r}: restore it from a copy")
        return cls(tuple(TensorLayout.from_json(v) for v in value))


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _shrinks(codec: str, dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether a lossy codec applies: to floats with more bytes than it keeps; others stay exact."""
    kept = _LOSSY.get(codec)
    return kept is not None and dtype.is_floating_point and dtype.itemsize > kept.itemsize and 0 not in shape


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        raise StoreCorruptError(f"store names {value!r} where sizes of a tensor belong: restore it from a copy")
    return tuple(value)


def _words(shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return "(" + ", ".join(f"{dtype_name(dtype)}{list(shape)}" for shape, dtype in shapes) + ")"


def fitting(layout: Layout, count: int, buffers: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Columns for ``count`` samples in the memory of ``buffers``, if these are activations as the layout gives them."""
    if buffers is not None and not layout.lossy and len(buffers) == len(layout.tensors):
        columns = [
            buffer.permute(0, *(d + 1 for d in tensor.order))
            for tensor, buffer in zip(layout.tensors, buffers, strict=True)
            if buffer.dim() == len(tensor.shape) + 1
        ]
        wanted = [((count, *column.shape), column.dtype) for column in layout.columns]
        if [(tuple(c.shape), c.dtype) for c in columns] == wanted and all(c.is_contiguous() for c in columns):
            return columns
    return layout.allocate(count)
