"""The mean of the weights over a window of iterations, which layers take where some are dropped.

Once the steps of stochastic gradient descent undo each other (an agreement far below 0) they carry a layer's weights
around a point, no longer towards it. A layer that goes on training comes to rest there as the learning rate falls; one
that is dropped stays for good wherever it was carried last. Its mean over those iterations is the better place (Polyak
and Juditsky 1992; Izmailov et al. 2018, of networks).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

EVERY = 4
"""Iterations from one look at the weights to the next: as good a mean as of all, at a quarter of the work."""


class WeightMean:
    """The running mean of ``parameters`` over a window of iterations; ``update`` follows each step of the optimiser."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight.detach() for name, weight in parameters.items() if weight.requires_grad}
        self._means: dict[str, Tensor] = {}
        self.iterations = 0

    @torch.no_grad()
    def update(self) -> None:
        """Count an iteration, and in every fourth take the weights in."""
        if not self._weights:
            return
        self.iterations += 1
        if self.iterations == EVERY:
            self._begin()
        elif self.iterations % EVERY == 0:
            share = EVERY / self.iterations
            torch._foreach_lerp_(list(self._means.values()), list(self._weights.values()), share)

    def _begin(self) -> None:
        """The first look; into memory that an earlier window used, where there was one: fresh pages cost as much."""
        if self._means.keys() == self._weights.keys():
            torch._foreach_copy_(list(self._means.values()), list(self._weights.values()))
        else:
            self._means = {name: weight.clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def take(self, names: Collection[str]) -> None:
        """Put the mean in the place of the weights of these names; nothing before the first look."""
        for name in self.tensors().keys() & set(names):
            self._weights[name].copy_(self._means[name])

    def reset(self) -> None:
        """Start a new window."""
        self.iterations = 0

    def keep(self, names: Collection[str]) -> None:
        """Forget every other parameter."""
        self._weights = {name: weight for name, weight in self._weights.items() if name in names}
        self._means = {name: mean for name, mean in self._means.items() if name in names}

    def tensors(self) -> dict[str, Tensor]:
        """The means by name, for a checkpoint; ``restore`` takes them back."""
        return dict(self._means) if self.iterations >= EVERY else {}

    def restore(self, tensors: Mapping[str, Tensor], iterations: int) -> None:
        """Take back what ``tensors`` gave for the same parameters; without them a window under way begins anew."""
        missing = iterations >= EVERY and not self._weights.keys() <= tensors.keys()
        self.iterations = 0 if missing or not self._weights else iterations
        if self.iterations >= EVERY:
            self._means = {name: tensors[name].to(weight, copy=True) for name, weight in self._weights.items()}
