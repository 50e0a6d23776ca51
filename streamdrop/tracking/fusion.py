"""What a prior proposes and what was learned on the stream, as one score map and one box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError
from streamdrop.tracking.config import STRIDE, TrackerConfig
from streamdrop.tracking.crops import View
from streamdrop.tracking.eye import Map
from streamdrop.tracking.prior import Prior, Proposals
from streamdrop.tracking.search import Motion
from streamdrop.types import Image

_LOOKS = 12  # at the first frame, to learn how the prior's boxes differ from the one given
_MOVED, _SCALED = 0.3, 0.1  # targets, natural logarithm: how far those looks are from the truth
_LARGEST_HABIT = 0.3
_VOTES = 30  # the most probable proposals make the score map …
_LEAST = 0.02  # … if they are as probable as this
_NEAR = 0.5  # targets: a proposal further than about this from a place is of something else
_TRUSTED = 0.05  # probability below which the prior has no box


class Fusion:
    """A prior with one target. ``start`` takes a new one; ``look`` comes before ``refine`` on every frame."""

    def __init__(self, config: TrackerConfig) -> None:
        self._config, self._prior = config, Prior(config.prior)
        self._habit: npt.NDArray[np.float64] = np.zeros(2)
        self._seen: list[Proposals] = []

    def start(self, image: Image, box: Box) -> None:
        """Take the target in ``box``, and learn how the sizes of the prior's boxes differ from it.

        What a box leaves out (arms, a bicycle's wheel) differs between people. Where its middle lies differs less: to
        correct that too made boxes worse.
        """
        self._prior.start(image, box)
        random = np.random.default_rng((self._config.seed, 1))
        found = [self._prior.look(image, _displaced(box, random)) for _ in range(_LOOKS)]
        boxes = [_box_near(proposals, box.centre, box) for proposals in found]
        missed = [_difference(box, each)[2:] for each in boxes if each is not None]
        habit = np.median(missed, axis=0) if missed else np.zeros(2)
        self._habit = np.clip(habit, -_LARGEST_HABIT, _LARGEST_HABIT)

    def look(self, image: Image, scores: Map, views: Sequence[View], motion: Motion) -> Map:
        """The score maps [N, H, W] of ``views`` with the prior's share in them."""
        self._seen, mixed = [], []
        for learned, view in zip(scores, views, strict=True):
            factor = view.side / views[0].side
            w, h = motion.box.w * factor, motion.box.h * factor
            proposals = self._prior.look(image, Box(view.x - w / 2, view.y - h / 2, w, h))
            share = self._config.prior.mix
            mixed.append((1 - share) * learned + share * self._map(proposals, view, math.sqrt(w * h)))
            self._seen.append(proposals)
        return np.stack(mixed).astype(np.float32)

    def refine(self, index: int, place: tuple[float, float], box: Box, learned: Box) -> Box:
        """The box at a ``place`` (frame pixels) of view ``index``: between the prior's and the ``learned`` one.

        ``box``: the target's so far.
        """
        found = _box_near(self._seen[index], place, box)
        if found is None:
            return learned
        return _between(learned, _moved(found, np.array([0.0, 0.0, *self._habit])), self._config.prior.box)

    def state(self) -> dict[str, Any]:
        """What is known of the target, as plain data; ``restore`` takes it back exactly."""
        return {**self._prior.state(), "habit": self._habit.tolist()}

    def restore(self, state: Any) -> None:
        """Go on with the target whose ``state`` was saved. Raises CheckpointError."""
        self._prior.restore(state)
        try:
            self._habit = np.array(state["habit"], float).reshape(2)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the prior's state does not decode ({error}): start anew") from None

    def _map(self, proposals: Proposals, view: View, length: float) -> Map:
        """Proposals vote for the middles of their boxes with Gaussians as wide as the labels of the learned scores."""
        cells, worth = view.size // STRIDE, proposals.worth
        order = np.argsort(-worth, kind="stable")[:_VOTES]
        order = order[worth[order] > _LEAST]
        if not len(order):
            return np.zeros((cells, cells), np.float32)
        width = max(self._config.head.sigma * length / view.scale / STRIDE, 0.6)
        at = ((proposals.middles[order] - (view.x, view.y)) / view.scale + view.size / 2) / STRIDE
        places = np.arange(cells) + 0.5
        across, down = (np.exp(-0.5 * ((places - at[:, axis, None]) / width) ** 2) for axis in (0, 1))
        votes: Map = (worth[order, None, None] * down[:, :, None] * across[:, None, :]).max(0)
        return votes


def _displaced(box: Box, random: np.random.Generator) -> Box:
    """The box moved and resized a little at random."""
    dx, dy = random.uniform(-_MOVED, _MOVED, 2) * math.sqrt(box.area)
    zoom = math.exp(random.uniform(-_SCALED, _SCALED))
    (x, y), w, h = box.centre, box.w * zoom, box.h * zoom
    return Box(x + dx - w / 2, y + dy - h / 2, w, h)


def _box_near(proposals: Proposals, place: tuple[float, float], box: Box) -> Box | None:
    """The best proposal about a place; None where nothing is probable there. ``box``: the target's so far.

    A mean over good proposals is steadier but less exact: cells off the target's middle see less of it.
    """
    distance = ((proposals.middles - place) ** 2).sum(1) / box.area
    best = int((proposals.rank * np.exp(-0.5 * distance / _NEAR**2)).argmax())
    if proposals.probability[best] < _TRUSTED:
        return None
    return Box(*(float(value) for value in proposals.boxes[best]))


def _difference(truth: Box, box: Box) -> tuple[float, float, float, float]:
    (x, y), (u, v) = truth.centre, box.centre
    return (x - u) / box.w, (y - v) / box.h, math.log(truth.w / box.w), math.log(truth.h / box.h)


def _moved(box: Box, by: npt.NDArray[np.float64]) -> Box:
    """A box changed by a ``_difference``."""
    dx, dy, dw, dh = (float(value) for value in by)
    (x, y), w, h = box.centre, box.w * math.exp(dw), box.h * math.exp(dh)
    return Box(x + dx * box.w - w / 2, y + dy * box.h - h / 2, w, h)


def _between(a: Box, b: Box, share: float) -> Box:
    """The box at ``share`` of the way from a to b: middles on a line, sizes in ratio."""
    dx, dy, dw, dh = _difference(b, a)
    return _moved(a, share * np.array([dx, dy, dw, dh]))
