"""A batch through dropped layers, a few samples at a time: each gets the same bits in every batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from streamdrop.errors import DataError
from streamdrop.tracing.kept import modes_kept, recording
from streamdrop.tracing.pieces import dense, join
from streamdrop.tracing.places import PlaceFree
from streamdrop.types import Activations

_ROWS = 4
"""Matrix products on a CPU give a row the same bits among any multiple of so many rows, not among others."""

_ONE_THREAD = 12
"""The most rows so, on one thread: from 16 samples on, PyTorch runs 1×1 convolutions otherwise (use_mkldnn in ATen)."""


def run_in_chunks(module: nn.Module, activations: Activations, size: int, graph: bool = False) -> Activations:
    """``module`` in eval mode on ``size`` samples at a time; gradients are noted for a ``graph`` only; modes come back.

    ``activations``: [N, ...] each, N ≥ 1. A sample's bits must not depend on the batch it is in: what was stored once
    stands for what would be run again. Kernels choose other orders of summing by the number of rows (a single sample,
    two or three of them in a linear layer, five on two threads), but not among multiples of four. So a chunk has a
    multiple of four samples, at most 12 on one thread, and the last is filled up with copies of its last; what depends
    on the place in the chunk is run another way (``places``). Raises DataError without samples.
    """
    count = len(activations[0]) if activations else 0
    if count == 0:
        raise DataError("no samples to run: give activations with at least one")
    if activations[0].device.type == "cpu" and torch.get_num_threads() == 1:
        size = min(size, _ONE_THREAD)
    size = max(size // _ROWS, 1) * _ROWS
    chunks = [tuple(_filled(a[start : start + size]) for a in activations) for start in range(0, count, size)]
    with recording(), torch.set_grad_enabled(graph), modes_kept(module):
        module.eval()
        results = [_run(module, chunk) for chunk in chunks]
    tuples = [(result,) if isinstance(result, torch.Tensor) else tuple(result) for result in results]
    joined = tuples[0] if len(tuples) == 1 else tuple(join(parts) for parts in zip(*tuples, strict=True))
    return joined if count % _ROWS == 0 else tuple(dense(a[:count]) for a in joined)


def _run(module: nn.Module, chunk: Activations) -> Any:
    """What ``module`` makes of a chunk, place-free; without looking where nothing had to be done for such a chunk."""
    plain: set[Any] = vars(module).setdefault("_plain", set())  # looking at every operation takes time
    kind = (torch.get_num_threads(), *((a.dtype, a.shape, a.stride()) for a in chunk))
    if kind in plain or chunk[0].device.type != "cpu":
        return module(*chunk)
    with PlaceFree() as places:
        result = module(*chunk)
    if not places.needed:
        plain.add(kind)
    return result


def _filled(chunk: torch.Tensor) -> torch.Tensor:
    """A chunk [n, ...] with its last sample again until there is a multiple of four."""
    missing = -len(chunk) % _ROWS
    return join([chunk, *[chunk[-1:]] * missing]) if missing else chunk
