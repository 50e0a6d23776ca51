"""Floats as whole numbers from -127 to 127 with one scale per channel: a quarter of float32's bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamdrop.errors import DataError

_LEVELS = 127


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which scales of tensors of ``dtype`` are kept, and their values computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def quantise(rows: Tensor, keys: Sequence[bytes] | None = None) -> tuple[Tensor, Tensor]:
    """Floats [N, outer, channels, inner], which are overwritten → scales [N, channels] and int8 of the rows' shape.

    A value lies within half a scale of what ``dequantise`` makes of it; a channel of zeros has scale 0. Raises
    DataError, naming the sample by ``keys``, for values that are not finite.
    """
    largest = torch.maximum(rows.amax((1, 3)), rows.amin((1, 3)).neg_())
    _check_finite(largest, keys)
    kind = torch.finfo(rows.dtype)
    # Scales below the smallest normal number lose their bits; the upper limit keeps 127 scales finite.
    scales = (largest / _LEVELS).clamp_(kind.tiny, kind.max / _LEVELS * (1 - 4 * kind.eps))
    rows.div_(scales[:, None, :, None]).round_()
    return scales.masked_fill_(largest == 0, 0), rows.to(torch.int8)


def dequantise(scales: Tensor, whole: Tensor) -> Tensor:
    """Scales [N, channels] and int8 [N, outer, channels, inner] → floats in the scales' dtype."""
    return whole.to(scales.dtype).mul_(scales[:, None, :, None])


def _check_finite(largest: Tensor, keys: Sequence[bytes] | None) -> None:
    bad = largest.isfinite().all(1).logical_not_().nonzero()
    if len(bad):
        first = int(bad[0])
        name = repr(keys[first]) if keys is not None else f"number {first} of the batch"
        raise DataError(
            f"sample {name} has activations that are not finite, which int8 cannot keep: look for the layer that "
            "makes them, or use a store of another dtype"
        )
