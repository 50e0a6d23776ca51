"""Buffers that a model's ``state_dict`` leaves out, but that training moves: a checkpoint has to carry them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from streamdrop.errors import CheckpointError


class MovingBuffers:
    """The non-persistent buffers of ``model`` that have been written to since this was made; constants never are.

    ``moved``: the names of those that had been before, such as in the run that a checkpoint is of.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self.moved = model, set[str]()
        self._given = {name: _state_of(buffer) for name, buffer in passing_buffers(model)}

    def tensors(self) -> dict[str, Tensor]:
        """Those that have moved, by name."""
        there = passing_buffers(self._model)
        return {name: one for name, one in there if name in self.moved or self._given.get(name) != _state_of(one)}


def passing_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The non-persistent buffers of a model, named as its other tensors are."""
    for prefix, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield f"{prefix}.{name}" if prefix else name, buffer


@torch.no_grad()
def write_buffers(buffers: Mapping[str, Tensor], values: Mapping[str, Tensor], path: object) -> None:
    """Copy values into buffers of these names. Raises CheckpointError where one is missing, or of another shape."""
    for name, value in values.items():
        if name not in buffers or buffers[name].shape != value.shape:
            raise CheckpointError(f"{path}: the buffer {name} does not fit this model: build the same model")
        buffers[name].copy_(value)


def _state_of(buffer: Tensor) -> tuple[int, int]:
    """Which memory it is, and how often it was written to."""
    return buffer.data_ptr(), buffer._version
