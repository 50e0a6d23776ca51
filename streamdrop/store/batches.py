"""Samples to batches and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamdrop.errors import DataError
from streamdrop.store.layout import Layout
from streamdrop.store.protocol import Step
from streamdrop.store.records import stack_targets
from streamdrop.types import Activations, Target


def restore(layout: Layout, rows: Sequence[Activations]) -> Activations:
    """Samples in their physical layout → one batch in memory of its own."""
    batch = layout.allocate(len(rows))
    if rows:
        for out, parts in zip(batch, zip(*rows, strict=True), strict=True):
            torch.stack(parts, out=out)
    return layout.restore(batch)


def stepped(step: Step, batch: Activations, count: int) -> list[Activations]:
    """``step`` on one batch, cut into samples. Raises DataError when it does not return ``count`` of each tensor."""
    after = step(batch)
    if not isinstance(after, (tuple, list)) or not after:
        raise DataError(f"step returned a {type(after).__name__}, not a tuple of batched tensors")
    for tensor in after:
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or len(tensor) != count:
            shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise DataError(f"step turned {count} samples into {shape}: it must keep the batch dimension first")
    return [tuple(t[i] for t in after) for i in range(count)]


def stack_or_none(keys: Sequence[bytes], targets: Sequence[bytes | memoryview | None]) -> Target | None:
    """Stacked targets; None when there is none. Raises DataError when only some samples have one."""
    found = [t for t in targets if t is not None]
    if found and len(found) < len(targets):
        bare = next(k for k, t in zip(keys, targets, strict=True) if t is None)
        raise DataError(
            f"sample {bare!r} has no target but others asked for with it have: ask for labelled samples only"
        )
    return stack_targets(found) if found else None


def check_chunk(chunk: int) -> None:
    """Raise DataError unless ``chunk`` is a number of samples."""
    if chunk < 1:
        raise DataError(f"chunk={chunk} is not a number of samples of at least 1")
