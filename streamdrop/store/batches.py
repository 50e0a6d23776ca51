"""Samples to batches and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamdrop.errors import DataError
from streamdrop.store.protocol import Step
from streamdrop.store.records import stack_targets
from streamdrop.types import Activations, Target


def stepped(step: Step, batch: Activations, count: int) -> list[Activations]:
    """``step`` on one batch, cut into samples. Raises DataError when it does not return ``count`` of each tensor."""
    return as_rows(step(batch), count)


def as_rows(batch: object, count: int) -> list[Activations]:
    """What a step or an embedding returned, cut into samples. Raises DataError unless it has ``count`` of each."""
    if not isinstance(batch, (tuple, list)) or not batch:
        raise DataError(f"step returned a {type(batch).__name__}, not a tuple of batched tensors")
    for tensor in batch:
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or len(tensor) != count:
            shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise DataError(f"step turned {count} samples into {shape}: it must keep the batch dimension first")
    return [tuple(tensor[i] for tensor in batch) for i in range(count)]


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
