"""On a CPU, the same bits for a sample wherever in the batch it lies.

PyTorch computes functions in whole vectors, and what is left at the end of a tensor, or of one thread's share of it,
number by number. For some functions the two differ in the last bit. Products of matrices differ where rows begin off
the bounds of vectors. Which do so was measured, and a test measures it anew for every function that there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from streamdrop.tracing.mode import Mode
from streamdrop.tracing.pieces import join

_STEP = 128
"""Bytes: two vectors of AVX-512, the most that PyTorch's loops take at once."""

_SHARE = 32768
"""Numbers for which one thread is enough: at::internal::GRAIN_SIZE."""

_SHARED = 16384
"""Numbers from which on all threads share in some functions, GELU among them."""

_ROW = 16
"""Bytes: rows of matrices that begin at multiples of so many are multiplied alike."""

UNLIKE = frozenset(
    (
        *("sigmoid", "silu", "gelu", "elu", "celu", "selu", "mish", "softplus", "pow", "exp2", "sinh", "cosh", "atanh"),
        *("atan2", "ldexp", "logaddexp", "logaddexp2", "igamma", "igammac", "hypot"),
    )
)
"""Functions, number by number, that give other bits in whole vectors and beside them."""

_PRODUCTS = {"mm": (0,), "addmm": (1,), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Products of matrices: which arguments they are."""

_BY_HEADS = {"_native_multi_head_attention": (3, 9), "_transformer_encoder_layer_fwd": (1, 18)}
"""Attention of all heads: how many arguments are batches (size and heads follow them), and where a mask stands."""


class PlaceFree(Mode):
    """Inside, the bits that PyTorch computes for a sample do not depend on where in their tensors its numbers lie.

    ``needed`` tells whether anything had to be run another way than without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, another way where places would matter."""
        way = _way(func)
        if way is None or not all(_usual(a) for a in args if isinstance(a, Tensor)):
            return func(*args, **(kwargs or {}))
        return way(self, func, *args, **(kwargs or {}))

    def in_vectors(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A function of each number, in place or not, all in whole vectors, whatever the number of threads."""
        places = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.dim() > 0]
        if not places:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        tensors: list[Tensor] = torch.ops.aten.broadcast_tensors([args[i] for i in places])
        first = tensors[0]
        if _fits(first) and all(t.stride() == first.stride() for t in tensors):
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        self.needed = True
        shape, strides = first.shape, torch.empty_like(first).stride()
        length = _whole(first.numel(), _STEP // min(t.element_size() for t in tensors))
        given = list(args)
        for i, tensor in zip(places, tensors, strict=True):
            given[i] = tensor.new_zeros(length)
            given[i].as_strided(shape, strides).copy_(tensor)
        written = _name(func).endswith("_")
        anew = getattr(torch.ops.aten, _name(func)[:-1]) if written else func
        result: Tensor = anew(*given, **kwargs).as_strided(shape, strides)
        return args[0].copy_(result) if written else result

    def along_rows(self, func: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        """A softmax, always along the last dimension, where it goes row by row."""
        if x.dim() == 0 or dim % x.dim() == x.dim() - 1:
            return func(x, dim, half_to_float)  # type: ignore[no-any-return]
        self.needed = True
        rows = func(x.movedim(dim, -1).contiguous(), -1, half_to_float)
        return torch.empty_like(x, dtype=rows.dtype).copy_(rows.movedim(-1, dim))

    def gated(self, func: Any, x: Tensor, dim: int = -1) -> Tensor:
        """A gated linear unit."""
        self.needed = True
        half, gate = x.chunk(2, dim)
        return half * self.in_vectors(torch.ops.aten.sigmoid.default, gate)

    def multiplied(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A product of matrices, the rows of its factors moved to the bounds of vectors."""
        matrices = _PRODUCTS[_name(func)]
        given = [self._on_bounds(value) if i in matrices else value for i, value in enumerate(args)]
        return func(*given, **kwargs)  # type: ignore[no-any-return]

    def multiplied_by_sample(self, func: Any, a: Tensor, b: Tensor) -> Tensor:
        """Products [B, L, M] of many matrices, the products' rows on the bounds of vectors too."""
        columns = b.shape[-1]
        if _on_row(columns, b):
            return self.multiplied(func, a, b)
        wide = b.new_zeros(*b.shape[:-1], _widened(columns, b))
        wide[..., :columns] = b
        product: Tensor = func(self._on_bounds(a), wide)
        self.needed = True
        return product[..., :columns].contiguous()

    def convolved(self, func: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A convolution, sample by sample where oneDNN has none and samples begin off the bounds of vectors."""
        several = x.shape[2:].numel() > 1
        alike = x.dtype == torch.float32 and (several or (_on_row(x.shape[1], x) and _on_row(weight.shape[0], x)))
        return func(x, weight, *args, **kwargs) if alike else self._apart(func, (x,), weight, *args, **kwargs)

    def attended(self, func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention, sample by sample where a head's rows [N, heads, L, E] do not begin on the bounds of vectors."""
        mask = kwargs.get("attn_mask")
        alike = _on_row(q.shape[-1], q) and q.dtype != torch.float64
        alike = alike or (mask is not None and mask.dim() == q.dim() and len(mask) > 1)
        return func(q, k, v, *args, **kwargs) if alike else self._apart(func, (q, k, v), *args, **kwargs)

    def attended_by_heads(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """The same of all heads [N, L, E] at once, or with all else of an encoder layer; no mask's rows are parted."""
        count, mask = _BY_HEADS[_name(func)]
        alike = _on_row(args[count] // args[count + 1], args[0]) and args[0].dtype != torch.float64
        alike = alike or args[mask : mask + 1] not in ((), (None,))
        return func(*args, **kwargs) if alike else self._apart(func, args[:count], *args[count:], **kwargs)

    def _apart(self, func: Any, batches: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """An operation on each sample of the ``batches`` by itself, in memory of its own; its results together."""
        self.needed = True
        copies = [{id(b): b[i : i + 1].clone() for b in batches} for i in range(len(batches[0]))]
        results = [func(*(copy[id(b)] for b in batches), *args, **kwargs) for copy in copies]
        if isinstance(results[0], Tensor):
            return join(results)
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def _on_bounds(self, matrix: Tensor) -> Tensor:
        columns = matrix.shape[-1]
        if matrix.stride(-1) != 1 and matrix.stride(-2) == 1:
            return self._on_bounds(matrix.mT).mT
        if _on_row(columns, matrix):
            return matrix
        self.needed = True
        wide = matrix.new_empty(*matrix.shape[:-1], _widened(columns, matrix))
        return wide[..., :columns].copy_(matrix)


_OTHERS: dict[str, Callable[..., Any]] = {
    "_softmax": PlaceFree.along_rows,
    "_log_softmax": PlaceFree.along_rows,
    "glu": PlaceFree.gated,
    "convolution": PlaceFree.convolved,
    "_scaled_dot_product_flash_attention_for_cpu": PlaceFree.attended,
    **dict.fromkeys(_BY_HEADS, PlaceFree.attended_by_heads),
}


@functools.cache
def _way(func: Any) -> Callable[..., Any] | None:
    """How an operation of PyTorch's (an OpOverload) is run; None: as it is."""
    name = _name(func)
    if "out" in func.__name__.removeprefix(name):
        return None
    if name.removesuffix("_") in UNLIKE:
        return PlaceFree.in_vectors
    if name in _PRODUCTS:
        return PlaceFree.multiplied_by_sample if name == "bmm" else PlaceFree.multiplied
    return _OTHERS.get(name)


def _name(func: Any) -> str:
    """Without the overload: silu_ for aten.silu_.default."""
    name: str = func.__name__
    return name.partition(".")[0]


def _usual(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in a CPU's memory as they are."""
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return plain and not (tensor.is_quantized or tensor.is_nested)


def _on_row(count: int, like: Tensor) -> bool:
    """Whether rows of so many numbers begin on the bounds of vectors."""
    return count * like.element_size() % _ROW == 0


def _widened(count: int, like: Tensor) -> int:
    """So many numbers and as many more as fill whole vectors."""
    return -(-count * like.element_size() // _STEP) * _STEP // like.element_size()


def _fits(tensor: Tensor) -> bool:
    """Whether the numbers lie without gaps, and each thread's share of them fills whole vectors."""
    count = tensor.numel()
    dense = torch.ops.aten.is_non_overlapping_and_dense.default(tensor)
    return dense and _whole(count, _STEP // tensor.element_size()) == count


def _whole(count: int, step: int) -> int:
    """The next length from ``count`` on of which each thread takes a multiple of ``step``."""
    length = -(-count // step) * step
    while any(-(-length // threads) % step for threads in _threads(length)):
        length += step
    return length


def _threads(count: int) -> set[int]:
    """How many threads may share ``count`` numbers."""
    most = torch.get_num_threads()
    return {1 if count < _SHARE else min(most, -(-count // _SHARE)), 1 if count < _SHARED else most}
