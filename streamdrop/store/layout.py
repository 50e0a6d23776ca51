"""How one sample's activations lie in memory: shapes, dtypes and stride orders, written once per cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from streamdrop.errors import ConfigError, DataError, StoreCorruptError, StoreVersionError
from streamdrop.types import Activations

EXACT = "float32"
"""Codec that keeps every tensor in its own dtype, bit for bit."""

_CODECS: dict[str, torch.dtype | None] = {EXACT: None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def codec_name(dtype: str | torch.dtype | None) -> str | None:
    """Codec for a ``dtype`` option: "float32" (exact), "float16", "bfloat16"; None when none is asked for.

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
class TensorLayout:
    """One tensor of a sample. ``order``: its dimensions from the largest stride to the smallest.

    ``dtype`` is what callers see, ``stored`` what is kept (they differ for lossy codecs).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor, codec: str) -> TensorLayout:
        """The layout of ``tensor`` under a codec; ties between strides keep the order of dimensions."""
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.dim()), key=lambda d: -strides[d]))
        lossy = _CODECS[codec]
        stored = lossy if lossy is not None and tensor.is_floating_point() else tensor.dtype
        return cls(tuple(tensor.shape), tensor.dtype, stored, order)

    @cached_property
    def physical(self) -> tuple[int, ...]:
        """Shape as it lies in memory: dimensions sorted by ``order``, contiguous."""
        return tuple(self.shape[d] for d in self.order)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one stored sample's tensor."""
        return math.prod(self.shape) * torch.empty((), dtype=self.stored).element_size()

    @cached_property
    def _inverse(self) -> tuple[int, ...]:
        return (0, *(self.order.index(d) + 1 for d in range(len(self.order))))

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Own contiguous memory of the physical shape and stored dtype, on the CPU."""
        return torch.empty(self.physical, dtype=self.stored).copy_(tensor.detach().permute(self.order))

    def restore(self, physical: torch.Tensor) -> torch.Tensor:
        """[N, *physical] as stored → [N, *shape] in the original dtype and stride order."""
        return physical.permute(self._inverse).to(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` reads them."""
        names = {"dtype": dtype_name(self.dtype), "stored": dtype_name(self.stored)}
        return {"shape": list(self.shape), "order": list(self.order), **names}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TensorLayout:
        """Read what ``to_json`` wrote. Raises StoreCorruptError, KeyError, TypeError."""
        shape, order = (tuple(int(v) for v in value[k]) for k in ("shape", "order"))
        if sorted(order) != list(range(len(shape))):
            raise StoreCorruptError(f"store names the stride order {order} for the shape {shape}")
        return cls(shape, dtype_named(value["dtype"]), dtype_named(value["stored"]), order)


@dataclass(frozen=True)
class Layout:
    """All tensors of a sample, laid one after the other."""

    tensors: tuple[TensorLayout, ...]

    @classmethod
    def of(cls, activations: Activations, codec: str) -> Layout:
        """The layout that the first sample of a cut sets."""
        return cls(tuple(TensorLayout.of(t, codec) for t in activations))

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each tensor lies in a sample's bytes: (start, stop)."""
        ends = [0]
        for tensor in self.tensors:
            ends.append(ends[-1] + tensor.nbytes)
        return tuple(pairwise(ends))

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one stored sample."""
        return sum(t.nbytes for t in self.tensors)

    def check(self, key: bytes, activations: Sequence[torch.Tensor]) -> None:
        """Raise DataError unless the activations fit this layout."""
        got = [(tuple(t.shape), t.dtype) for t in activations]
        want = [(t.shape, t.dtype) for t in self.tensors]
        if got != want:
            raise DataError(
                f"sample {key!r} has activations {_words(got)} but the store holds {_words(want)}: one store keeps one "
                "model's activations at one cut"
            )

    def pack(self, activations: Activations) -> Activations:
        """Own contiguous memory for each tensor of one sample."""
        return tuple(layout.pack(t) for layout, t in zip(self.tensors, activations, strict=True))

    def allocate(self, count: int) -> Activations:
        """Empty [count, *physical] tensors, to be filled and then given to ``restore``."""
        return tuple(torch.empty((count, *t.physical), dtype=t.stored) for t in self.tensors)

    def restore(self, physical: Sequence[torch.Tensor]) -> Activations:
        """Batched stored tensors → batched activations."""
        return tuple(layout.restore(t) for layout, t in zip(self.tensors, physical, strict=True))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values; ``from_json`` reads them."""
        return [t.to_json() for t in self.tensors]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> Layout:
        """Read what ``to_json`` wrote. Raises StoreCorruptError, KeyError, TypeError."""
        return cls(tuple(TensorLayout.from_json(v) for v in value))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _words(shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return "(" + ", ".join(f"{dtype_name(dtype)}{list(shape)}" for shape, dtype in shapes) + ")"
