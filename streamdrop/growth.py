"""A batch that grows as dropped layers free memory, and the learning rate with it."""

from __future__ import annotations

import math
from typing import Any

import torch

from streamdrop.split import SplitModel


def growth(split: SplitModel, first: int, cut: int, most: int) -> int:
    """How much larger a batch at ``cut`` may be for the memory of one at cut ``first``: a power of two ≤ ``most``.

    Memory is taken as what crosses all later cuts: the activations that a backward pass keeps.
    """
    if most <= 1 or cut <= first:
        return 1
    kept = [split.live_bytes(c) for c in range(len(split.layers))]
    ratio = min(float(most), sum(kept[first:]) / max(sum(kept[cut:]), 1))
    return int(2 ** math.floor(math.log2(max(ratio, 1.0))))


def scale_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Learning rates for batches ``factor`` times as large: linear for SGD, by the square root for adaptive methods.

    Linear: Goyal et al. 2017, section 2.1; square root: Malladi et al. 2022, section 3. A scheduler goes on from there.
    """
    scale = factor if isinstance(optimizer, torch.optim.SGD) else math.sqrt(factor)
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr"):  # the last three: where OneCycleLR, SWALR go
            if name in group:
                group[name] = group[name] * scale
    _scale_schedule(scheduler, scale)


def _scale_schedule(scheduler: Any, scale: float) -> None:
    """The rates that a scheduler goes between; those of its parts, where it is made of others."""
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_schedule(part, scale)
    for name in ("base_lrs", "max_lrs", "min_lrs"):  # the last two: CyclicLR, ReduceLROnPlateau
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * scale for rate in getattr(scheduler, name)])
    if hasattr(scheduler, "eta_min"):  # CosineAnnealingLR, CosineAnnealingWarmRestarts
        scheduler.eta_min = scheduler.eta_min * scale
