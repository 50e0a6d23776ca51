"""Distractors: what looks like the target, but was seen beside it, and so is not the target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from streamdrop.tracking.config import STRIDE
from streamdrop.tracking.crops import View
from streamdrop.tracking.eye import Map

Place = tuple[float, float]
"""A position in the frame, pixels."""

TURN = 0.4
"""Share of a frame in the velocity of what moves, the target too."""

GO_ON = 0.7
"""Share of a velocity that is expected to go on."""

_LEAST = 0.15  # a peak that scores less is nothing
_BROAD = 0.4  # targets around a peak that hold no second one
_SAME = 0.5  # targets: a peak so near to where a distractor should be is it
_BESIDE = 0.6  # targets: nearer to the target it is the target's own
_GONE = 8  # frames unseen after which a distractor is forgotten
_COVERED = 25  # the same for one that should be where the target is


@dataclass
class Distractor:
    """Where it was last seen and how it moves, pixels and pixels a frame.

    ``beside``: frames in which it was seen while the target was too; ``unseen``: frames since it was last seen.
    """

    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    beside: int = 0
    unseen: int = 0

    def expected(self) -> Place:
        """Where it should be in the frame after the one it was last judged in."""
        share = GO_ON * (self.unseen + 1)
        return self.x + share * self.vx, self.y + share * self.vy

    def see(self, place: Place) -> None:
        """It is here in this frame."""
        frames = self.unseen + 1
        turn = TURN if self.beside else 1.0
        self.vx += turn * ((place[0] - self.x) / frames - self.vx)
        self.vy += turn * ((place[1] - self.y) / frames - self.vy)
        (self.x, self.y), self.unseen = place, 0


def peaks(scores: Map, views: Sequence[View], length: float) -> list[Place]:
    """Where the score maps [N, H, W] of views have peaks, best first; ``length``: the target's, pixels."""
    found: list[tuple[float, Place]] = []
    for values, view in zip(scores, views, strict=True):
        reach = max(round(_BROAD * length / view.scale / STRIDE), 1)
        highest = cv2.dilate(values, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        for row, column in np.argwhere((values >= highest) & (values >= _LEAST)).tolist():
            place = view.to_frame((column + 0.5) * STRIDE, (row + 0.5) * STRIDE)
            found.append((float(values[row, column]), place))
    kept: list[Place] = []
    for _, place in sorted(found, reverse=True):
        if all(math.dist(place, other) > _BROAD * length for other in kept):
            kept.append(place)
    return kept


def followed(
    known: Iterable[Distractor], seen: Sequence[Place], target: Place, length: float, certain: bool
) -> list[Distractor]:
    """The distractors after a frame in which there were peaks at ``seen``, the target's at ``target``.

    ``length``: the target's, pixels; ``certain``: the target was in sight, and no worse than it is used to be.
    """
    free = [place for place in seen if math.dist(place, target) > _BESIDE * length]
    kept = []
    for one in known:
        expected = one.expected()
        apart, place = min(((math.dist(place, expected), place) for place in free), default=(math.inf, expected))
        if apart <= _SAME * length:
            free.remove(place)
            one.see(place)
            one.beside += certain
        else:
            one.unseen += 1
        covered = math.dist(one.expected(), target) <= length
        if one.unseen <= (_COVERED if covered else _GONE):
            kept.append(one)
    return [*kept, *(Distractor(*place, beside=int(certain)) for place in free)]


def at(known: Iterable[Distractor], place: Place, length: float) -> Distractor | None:
    """The distractor that a peak at ``place`` is, if any."""
    return next((one for one in known if math.dist(one.expected(), place) <= _SAME * length), None)


def blanked(scores: Map, views: Sequence[View], place: Place, length: float) -> Map:
    """The score maps [N, H, W] of views with nothing around a place."""
    blank: Map = scores.copy()
    middles = (np.arange(scores.shape[1]) + 0.5) * STRIDE
    for values, view in zip(blank, views, strict=True):
        x, y = view.to_crop(*place)
        distance = (middles[:, None] - y) ** 2 + (middles[None, :] - x) ** 2
        values[distance < (_SAME * length / view.scale) ** 2] = -np.inf
    return blank
