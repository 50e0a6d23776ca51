"""What trying a model out must leave as it was: modes, buffers, random generators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_CASTING = [one for one in ("cpu", "cuda", "mps", "xpu") if torch.amp.autocast_mode.is_autocast_available(one)]
"""Devices on which torch.autocast may be at work."""


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's train/eval flag is as before when the block ends."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Buffers written while tracing or trying the model get their values back, whoever owns them."""
    slots = [
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, tensor, value in slots:
                module._buffers[name] = tensor
                if tensor.shape != value.shape:  # such as an observer's range, without a shape until it has seen values
                    tensor.resize_(value.shape)
                tensor.copy_(value)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Inside, gradients are recorded, nothing is cast, no inference tensor is made, whatever the caller has set.

    Under torch.autocast, say, what is stored would be another activation than what is run again.
    """
    with contextlib.ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        for device in _CASTING:
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        yield


def rng_kept(inputs: tuple[torch.Tensor, ...]) -> Any:
    """Torch's random generators as before when the block ends."""
    return torch.random.fork_rng([x.device for x in inputs if x.is_cuda])
