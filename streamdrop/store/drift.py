"""How far stored values lie from what was written: what a lossy codec costs, measured as it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdrop.errors import DataError
from streamdrop.store.codecs import scale_dtype
from streamdrop.store.layout import EXACT, Layout, TensorLayout
from streamdrop.types import Activations


@dataclass(frozen=True)
class Drift:
    """|difference| between values written and values that come back, over ``count`` values of lossy tensors."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def __add__(self, other: Drift) -> Drift:
        return Drift(max(self.largest, other.largest), self.total + other.total, self.count + other.count)

    @classmethod
    def over(cls, layout: Layout, samples: Sequence[Activations], columns: Sequence[Tensor]) -> Drift:
        """Measured over samples and the columns that ``layout`` encoded them to; nothing to do where it is exact.

        A finite value that comes back infinite counts as infinitely far; NaN for NaN and ∞ for ∞ as no difference.
        """
        drift = cls()
        if not layout.lossy or not samples:
            return drift
        for (tensor, stored), written in zip(layout.parts(columns), zip(*samples, strict=True), strict=True):
            if tensor.codec != EXACT:
                gap = _gap(tensor, written, stored)
                total = gap.view(len(gap), -1).sum(1).double().sum()  # sums in double alone take four times as long
                drift += cls(float(gap.amax()), float(total), gap.numel())
        return drift

    def report(self) -> dict[str, float]:
        """{"max", "mean"} absolute error."""
        return {"max": self.largest, "mean": self.total / self.count if self.count else 0.0}


def kept_drift(
    layout: Layout, samples: Sequence[Activations], columns: Sequence[Tensor], keys: Sequence[bytes]
) -> Drift:
    """The drift of samples on their way in. Raises DataError where a finite value would come back infinite."""
    drift = Drift.over(layout, samples, columns)
    if math.isinf(drift.largest):
        for (tensor, stored), written in zip(layout.parts(columns), zip(*samples, strict=True), strict=True):
            if tensor.codec != EXACT:
                _refuse_overflow(tensor, *_pair(tensor, written, stored), keys)
    return drift


def _refuse_overflow(tensor: TensorLayout, before: Tensor, after: Tensor, keys: Sequence[bytes]) -> None:
    lost = (before.isfinite() & after.isinf()).view(len(keys), -1)
    for key, values, bad in zip(keys, before.view(len(keys), -1), lost, strict=True):
        if bool(bad.any()):
            codec, most = tensor.codec, torch.finfo(tensor.columns[-1].dtype).max
            wider = "bfloat16 or float32" if codec == "float16" else "float32"
            raise DataError(
                f"sample {key!r} has an activation of magnitude {float(values[bad].abs().max()):.6g}, {codec} keeps "
                f"none beyond {most:.6g}: use a store of dtype {wider}, or look for the layer that makes it"
            )


def _gap(tensor: TensorLayout, written: Sequence[Tensor], stored: Sequence[Tensor]) -> Tensor:
    before, after = _pair(tensor, written, stored)
    return before.sub_(after).abs_().nan_to_num_(nan=0.0, posinf=torch.inf)


def _pair(tensor: TensorLayout, written: Sequence[Tensor], stored: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Values as they came, in memory of their own, and as they will come back: [N, *physical]."""
    before = tensor.gather(written, scale_dtype(tensor.dtype)).cpu()
    return before, tensor.decode(stored).permute(0, *(d + 1 for d in tensor.order))
