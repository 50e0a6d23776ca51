"""Where training broke: the layer whose weights, or gradients, stopped being numbers first."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from streamdrop.split import SplitModel


def explain_divergence(split: SplitModel, cut: int, rate: float) -> str:
    """What is not finite after the backward pass of a loss that is not, and what to do about it.

    Gradients flow from the output: the first layer without finite ones is the one nearest to it.
    """
    return f"{_where(split, cut)}: lower the learning rate (now {rate:g}), set clip_norm, or check the targets"


def _where(split: SplitModel, cut: int) -> str:
    for name in split.layers:
        if not _finite(split.layer_parameters(name)):
            return f"the weights of layer {name} are no longer finite"
    for name in reversed(split.layers[cut:]):
        if not _finite(p.grad for p in split.layer_parameters(name) if p.grad is not None):
            return f"the first gradient that is not finite is at layer {name}"
    return "gradients and weights of all layers are finite"


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
