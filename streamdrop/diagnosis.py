"""Where training broke: the layer whose weights, or gradients, stopped being numbers first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamdrop.split import SplitModel


def explain_divergence(split: SplitModel, cut: int, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> str:
    """What is not finite after the backward pass of a loss that is not, and what to do about it.

    Gradients flow from the output: the first layer without finite ones is the one nearest to it. The learning rate told
    is that of its parameters. Only what the caller has set can be lowered: ``clip_norm`` is told where it is given.
    """
    where, broken = _where(split, cut)
    clip = "" if clip_norm is None else f" or clip_norm (now {clip_norm:g})"
    return f"{where}: lower the learning rate{_rates(optimizer, broken)}{clip}, or check the targets"


def _where(split: SplitModel, cut: int) -> tuple[str, nn.Parameter | None]:
    for name, parameter in split.head_parameters(0).items():
        if not _finite(parameter):
            return f"the weights of {_owner(split, name)} are no longer finite", parameter
    for name, parameter in reversed(split.head_parameters(cut).items()):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the first gradient that is not finite is at {_owner(split, name)}", parameter
    return "gradients and weights are finite", None


def _owner(split: SplitModel, name: str) -> str:
    """The layer that a parameter belongs to; another module, such as a classifier, by its own name."""
    layer = next((layer for layer in split.layers if name.startswith(f"{layer}.")), None)
    return f"layer {layer}" if layer is not None else f"{name.rpartition('.')[0] or name} (no layer of the split)"


def _rates(optimizer: torch.optim.Optimizer, broken: nn.Parameter | None) -> str:
    """The learning rate of a parameter's group; those of all groups where it is in none."""
    groups = [group for group in optimizer.param_groups if "lr" in group]
    own = [group for group in groups if any(parameter is broken for parameter in group["params"])]
    rates = dict.fromkeys(f"{float(group['lr']):g}" for group in own or groups)
    return f" (now {', '.join(rates)})" if rates else ""


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
