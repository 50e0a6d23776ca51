"""The box from features: ridge regression, learned on the first frame and corrected since, around the score's peak."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamdrop.boxes import Box, overlap
from streamdrop.tracking.config import STRIDES, BoxConfig
from streamdrop.tracking.memory import kept
from streamdrop.types import Activations

_LEAST_OVERLAP = 0.4
_NO_FRAMES = torch.zeros(0, dtype=torch.int64)
_LARGEST_MOVE = 0.5  # of the box's size, and of the logarithm of its growth


class BoxRegression:
    """Moves a box onto the target: offsets (dx/w, dy/h, ln w'/w, ln h'/h) linear in pooled features.

    The first frame teaches most of it; frames remembered since correct it, by ridge regression on what it misses there.
    """

    def __init__(self, config: BoxConfig, learned: Learned) -> None:
        self._config, self._learned = config, learned

    @classmethod
    def fit(cls, config: BoxConfig, maps: Activations, boxes: Sequence[Box], seed: int) -> BoxRegression:
        """Learn from maps [N, ...] of crops and the target's ``boxes`` in them."""
        random = np.random.default_rng(seed)
        each = math.ceil(config.samples / len(boxes))
        drawn = [
            (i, around) for i, box in enumerate(boxes) for around in _boxes_around(box, each, config.spread, random)
        ]
        truth = _tensor([_offsets(boxes[i], around) for i, around in drawn])
        features = pooled(maps, [i for i, _ in drawn], [around for _, around in drawn], config)
        mean, offset = features.mean(0), truth.mean(0)
        features -= mean  # in place: they are 20 MB, and the head learns beside
        first = _ridge(features, truth - offset, config.ridge)
        return cls(config, Learned(mean, offset, first, first, features[:0].clone(), truth[:0], _NO_FRAMES))

    def __call__(self, maps: Activations, index: int, box: Box) -> Box:
        """The box (crop pixels of map ``index``) moved and resized towards the target."""
        features = pooled(maps, [index], [box], self._config) - self._learned.mean
        values = (features @ self._learned.weights + self._learned.offset)[0].tolist()
        dx, dy, dw, dh = (min(max(value, -_LARGEST_MOVE), _LARGEST_MOVE) for value in values)
        x, y = box.centre
        w, h = box.w * math.exp(dw), box.h * math.exp(dh)
        return Box(x + dx * box.w - w / 2, y + dy * box.h - h / 2, w, h)

    def remember(self, maps: Activations, index: int, box: Box, frame: int, seed: int) -> None:
        """Keep what boxes around ``box`` (crop pixels of map ``index``), taken for the truth, look like in a ``frame``.

        The truth is the tracker's own: learned from the last frames alone, the box would drift with it.
        """
        config, learned = self._config, self._learned
        if not config.recent:
            return
        around = _boxes_around(box, config.fresh, config.spread, np.random.default_rng((seed, frame)))
        features = pooled(maps, [index] * len(around), around, config) - learned.mean
        truth = _tensor([_offsets(box, each) for each in around]) - learned.offset
        frames = torch.cat([learned.frames, torch.tensor([frame])])
        stay = torch.tensor(kept(frames.tolist(), config.recent, config.lasting, seed))
        rows = (stay[:, None] * config.fresh + torch.arange(config.fresh)).flatten()
        self._learned = dataclasses.replace(
            learned,
            features=torch.cat([learned.features, features])[rows],
            truth=torch.cat([learned.truth, truth])[rows],
            frames=frames[stay],
        )

    def adapt(self) -> None:
        """Correct what the first frame taught by what has been remembered since."""
        self.take(self.corrected())

    def corrected(self) -> Tensor:
        """The weights that ``adapt`` would take; nothing changes."""
        learned = self._learned
        if not len(learned.truth):
            return learned.weights
        missed = learned.truth - learned.features @ learned.first
        return learned.first + _ridge(learned.features, missed, self._config.ridge)

    def take(self, weights: Tensor) -> None:
        """Use these weights from now on."""
        self._learned = dataclasses.replace(self._learned, weights=weights)

    def state(self) -> dict[str, Tensor]:
        """Everything learned; ``restored`` takes it back exactly."""
        return dict(vars(self._learned))

    @classmethod
    def restored(cls, config: BoxConfig, state: Mapping[str, Tensor]) -> BoxRegression:
        """The regression whose ``state`` was saved. Raises KeyError for what is none."""
        return cls(config, Learned(**{field.name: state[field.name] for field in dataclasses.fields(Learned)}))


@dataclass(frozen=True)
class Learned:
    """``mean`` [D] and ``offset`` [4] of the first frame's features and offsets, ``first`` [D, 4] its weights.

    ``weights`` [D, 4] are those in use; ``features`` [R, D] and ``truth`` [R, 4], less mean and offset, are of the
    ``frames`` (numbers, int64) that are remembered, as many rows of each.
    """

    mean: Tensor
    offset: Tensor
    first: Tensor
    weights: Tensor
    features: Tensor
    truth: Tensor
    frames: Tensor


def pooled(maps: Activations, indices: Sequence[int], boxes: Sequence[Box], config: BoxConfig) -> Tensor:
    """Features of regions ``context`` times the boxes, from both maps: [len(boxes), (32 + 96) · pool²].

    As RoIAlign: a bin is the mean of 2×2 bilinear samples.
    """
    regions = torch.tensor([(*box.centre, box.w, box.h) for box in boxes], dtype=torch.float32)
    rows = maps[0].new_empty(len(boxes), sum(part.shape[1] for part in maps) * config.pool**2)
    for index in set(indices):
        own = [i for i, which in enumerate(indices) if which == index]
        at = regions[own]
        parts = [_bins(part[index], at / stride, config) for part, stride in zip(maps, STRIDES, strict=True)]
        rows[own] = torch.cat(parts, 1)
    return rows


def _ridge(features: Tensor, truth: Tensor, ridge: float) -> Tensor:
    """Weights [D, 4] of ridge regression from centred features [R, D]; by way of their R×R products, as R < D."""
    kernel = features @ features.T
    kernel.diagonal().add_(ridge)
    weights: Tensor = features.T @ torch.linalg.solve(kernel, truth)
    return weights


def _tensor(rows: Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _bins(values: Tensor, regions: Tensor, config: BoxConfig) -> Tensor:
    """One map [C, H, W], regions [N, 4] (middle and size, in cells) → [N, C · pool²]."""
    x, y, w, h = regions.unbind(1)
    across = _bin_weights(x, w * config.context, values.shape[2], config.pool)
    down = _bin_weights(y, h * config.context, values.shape[1], config.pool)
    columns = torch.einsum("chw,nqw->ncqh", values, across)
    return torch.einsum("ncqh,nph->ncpq", columns, down).flatten(1)


def _bin_weights(middle: Tensor, length: Tensor, cells: int, pool: int) -> Tensor:
    """How much each cell counts in each of ``pool`` bins along one axis: [N, pool, cells]; none outside the map."""
    samples = (torch.arange(2 * pool) + 0.5) / (2 * pool) - 0.5
    places = middle[:, None] + length[:, None] * samples - 0.5
    inside = ((places >= -1) & (places <= cells)).to(torch.float32)
    distance = (places.clamp(0, cells - 1)[:, :, None] - torch.arange(cells)).abs()
    near = (1 - distance).clamp(min=0) * inside[:, :, None]
    return near.view(len(middle), pool, 2, cells).mean(2)


def _boxes_around(box: Box, count: int, spread: float, random: np.random.Generator) -> list[Box]:
    found: list[Box] = []
    while len(found) < count:
        u, v, p, q = random.normal(0, spread, 4).tolist()
        w, h = box.w * math.exp(p), box.h * math.exp(q)
        around = Box(box.x + box.w / 2 + u * box.w - w / 2, box.y + box.h / 2 + v * box.h - h / 2, w, h)
        if overlap(box, around) >= _LEAST_OVERLAP:
            found.append(around)
    return found


def _offsets(box: Box, around: Box) -> tuple[float, float, float, float]:
    (x, y), (u, v) = box.centre, around.centre
    return (x - u) / around.w, (y - v) / around.h, math.log(box.w / around.w), math.log(box.h / around.h)
