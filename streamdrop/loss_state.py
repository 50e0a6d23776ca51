"""What a loss learns: weights of its own, such as the proxies of a metric loss, and running values in its buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamdrop.errors import CheckpointError


class LossState:
    """Of a loss that is a module, what a checkpoint has to carry; nothing of any other loss.

    That is its trained parameters, but for those of ``model``, and the buffers that have moved since it was given:
    constants, such as weights of classes, are the caller's to give anew.
    """

    def __init__(self, loss: Any, model: nn.Module) -> None:
        state = loss.state_dict(keep_vars=True) if isinstance(loss, nn.Module) else {}
        models = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        self._tensors = {n: t for n, t in state.items() if isinstance(t, Tensor) and id(t) not in models}
        self._given = {n: t.clone() for n, t in self._tensors.items() if not isinstance(t, nn.Parameter)}

    def tensors(self) -> dict[str, Tensor]:
        """What it has learned, by name."""
        return {name: tensor.detach() for name, tensor in self._tensors.items() if self._learns(name, tensor)}

    def parameters(self) -> list[nn.Parameter]:
        """Its own parameters."""
        return [tensor for tensor in self._tensors.values() if isinstance(tensor, nn.Parameter)]

    def _learns(self, name: str, tensor: Tensor) -> bool:
        return tensor.requires_grad if name not in self._given else not torch.equal(tensor, self._given[name])

    @contextmanager
    def restored(self, tensors: Mapping[str, Tensor] | None, path: object) -> Iterator[None]:
        """Inside, and after it, the loss has what ``tensors`` gave; where it raises, its own again. None: nothing kept.

        Raises CheckpointError for what another loss has learned.
        """
        before = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        if tensors is not None:
            self._check(tensors, path)
            self._write(tensors)
        try:
            yield
        except BaseException:
            self._write(before)
            raise

    def _check(self, tensors: Mapping[str, Tensor], path: object) -> None:
        kept, given = ({n: tuple(t.shape) for n, t in ts.items()} for ts in (tensors, self._tensors))
        trained = {name for name, tensor in self._tensors.items() if tensor.requires_grad}
        wrong = [name for name in kept.keys() | trained if kept.get(name) != given.get(name)]
        if wrong:
            raise CheckpointError(
                f"{path}: saved with a loss that has learned {', '.join(sorted(kept)) or 'nothing'}; "
                f"{', '.join(sorted(wrong))} does not fit the one given: give load the loss it was saved with"
            )

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._tensors[name].copy_(tensor)
