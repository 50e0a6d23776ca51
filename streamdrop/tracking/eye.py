"""One pass over crops: what is stored of them, their maps, their scores."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamdrop.split import SplitModel
from streamdrop.tracking.network import normalise
from streamdrop.types import Activations, Image

Map: TypeAlias = npt.NDArray[np.float32]
"""Scores by place, a cell for 8×8 pixels of a crop."""

Look: TypeAlias = tuple[Activations, Activations, Map]
"""Of N crops: activations at the store's cut, the two maps, score maps [N, S/8, S/8]."""


@dataclass(frozen=True)
class Eye:
    """The pieces of a split network between its input, the store's cut, the maps and the scores.

    ``between`` leads from the lower of cut and maps to the other.
    """

    cut: int
    maps: int
    tail: nn.Module
    between: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, split: SplitModel, cut: int, maps: int) -> Eye:
        """The network's own pieces: what it learns shows at once."""
        lower, upper = sorted((cut, maps))
        return cls(cut, maps, split.tail(lower), split.step(lower, upper), split.head(maps))

    def copied(self) -> Eye:
        """The same with weights of its own."""
        return Eye(self.cut, self.maps, *(copy.deepcopy(piece) for piece in (self.tail, self.between, self.head)))

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights, named as in the network."""
        with torch.no_grad():
            for piece in (self.tail, self.between, self.head):
                for name, parameter in piece.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])

    def __call__(self, crops: Sequence[Image]) -> Look:
        """Look at crops, uint8 [S, S, 3] each."""
        with torch.no_grad():
            lower: Activations = self.tail(as_input(crops))
            upper: Activations = lower if self.cut == self.maps else self.between(lower)
            activations, maps = (lower, upper) if self.cut <= self.maps else (upper, lower)
            scores: Tensor = self.head(maps)
        return activations, maps, scores.numpy()


def as_input(crops: Sequence[Image]) -> Tensor:
    """Crops as the network takes them, [N, 3, S, S]."""
    return normalise(torch.from_numpy(np.stack(crops)))
