"""How far stored values lie from what was written: what a lossy codec costs, measured as it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


def _gap(tensor: TensorLayout, written: Sequence[Tensor], stored: Sequence[Tensor]) -> Tensor:
    before = tensor.gather(written, scale_dtype(tensor.dtype)).cpu()
    after = tensor.decode(stored).permute(0, *(d + 1 for d in tensor.order))
    return before.sub_(after).abs_().nan_to_num_(nan=0.0, posinf=torch.inf)
