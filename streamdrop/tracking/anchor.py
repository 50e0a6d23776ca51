"""A second opinion on what is followed: the score head as the first frame left it, which no later frame has taught."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamdrop.tracking.config import STRIDE
from streamdrop.tracking.search import Peak
from streamdrop.types import Activations

_PREFIX = "anchor."
_CELLS = 1  # around the peak: the two heads need not agree to the cell


class Anchor:
    """Scores what is at a peak by the head that knows nothing but the given box.

    A tracker that learns from its own word can be led, frame by frame, to take a leaf for the fish that passed under
    it; to this head the leaf stays background. ``Motion.vouched`` compares its word with what it has been of late.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head = copy.deepcopy(head).requires_grad_(False)

    def score(self, maps: Activations, peak: Peak) -> float:
        """The highest score about a peak; ``maps`` are those of the frame's views, [N, …] each."""
        with torch.no_grad():
            scores: Tensor = self._head(*(part[peak.view : peak.view + 1] for part in maps))[0]
        row, column = (int(place / STRIDE) for place in (peak.y, peak.x))
        near = (slice(max(at - _CELLS, 0), at + _CELLS + 1) for at in (row, column))
        return float(scores[tuple(near)].max())

    def state(self) -> dict[str, Tensor]:
        """The weights; ``restored`` takes them back exactly."""
        return {_PREFIX + name: value for name, value in self._head.state_dict().items()}

    @classmethod
    def restored(cls, head: nn.Module, state: Mapping[str, Tensor]) -> Anchor | None:
        """The anchor whose ``state`` is among these tensors, in a head of that make; None where there was none."""
        weights = {name[len(_PREFIX) :]: value for name, value in state.items() if name.startswith(_PREFIX)}
        if not weights:
            return None
        anchor = cls(head)
        anchor._head.load_state_dict(weights)
        return anchor
