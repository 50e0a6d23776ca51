"""One crop for several targets: which of them share it, what it shows, and each one's part of its maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from streamdrop.tracking.config import STRIDES, SearchConfig
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.search import Motion
from streamdrop.types import Activations, Image

_STEP = 32
"""Sides of sheets are multiples of so many pixels: every new shape costs the kernels' preparation once (5 ms)."""

_GRID = STRIDES[1]
_ROOM = 1.0  # targets that are seen on every side of where one is expected …
_SURPRISE = 3.0  # … and more, the less regularly it moves


@dataclass(frozen=True)
class Area:
    """What must be seen of a frame (``left`` to ``right``, ``top`` to ``bottom``), of one target or several.

    ``fine`` and ``coarse``: the least and the largest of their own scales, frame pixels per crop pixel; ``ids``: whose.
    """

    left: float
    top: float
    right: float
    bottom: float
    fine: float
    coarse: float
    ids: tuple[int, ...]

    @classmethod
    def of(cls, key: int, motion: Motion, search: SearchConfig) -> Area:
        """Around where one target is expected."""
        (x, y), size, side = motion.expected(), math.sqrt(motion.box.area), motion.side(search)
        reach = min((_ROOM + _SURPRISE * motion.surprise) * size, side / 2)
        scale = side / search.size
        return cls(x - reach, y - reach, x + reach, y + reach, scale, scale, (key,))

    def with_(self, other: Area) -> Area:
        """Of both."""
        return Area(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
            min(self.fine, other.fine),
            max(self.coarse, other.coarse),
            self.ids + other.ids,
        )

    def shape(self, size: int) -> tuple[int, int]:
        """Width and height of its crop, in pixels; of one target alone its own square."""
        if len(self.ids) == 1:
            return size, size
        scale = math.sqrt(self.fine * self.coarse)
        lengths = ((self.right - self.left) / scale, (self.bottom - self.top) / scale)
        width, height = (max(math.ceil(length / _STEP) * _STEP, size) for length in lengths)
        return width, height


def grouped(areas: list[Area], size: int, alike: float) -> list[Area]:
    """Areas joined where one crop for both is smaller than one for each: the pair that saves most first.

    The order in which the areas are given plays no part.
    """
    groups = sorted(areas, key=lambda area: (area.left, area.top, area.right, area.bottom, area.ids))
    saved = {(a, b): _saved(a, b, size, alike) for i, a in enumerate(groups) for b in groups[i + 1 :]}
    while saved:
        pair = max(saved, key=lambda both: saved[both])
        if saved[pair] <= 0:
            break
        joined = pair[0].with_(pair[1])
        groups = [group for group in groups if group not in pair]
        saved = {both: pixels for both, pixels in saved.items() if pair[0] not in both and pair[1] not in both}
        saved |= {(group, joined): _saved(group, joined, size, alike) for group in groups}
        groups.append(joined)
    return groups


def _saved(a: Area, b: Area, size: int, alike: float) -> int:
    """Pixels that one crop saves; none where the scales do not go together."""
    both = a.with_(b)
    if both.coarse > alike * both.fine:
        return 0
    return math.prod(a.shape(size)) + math.prod(b.shape(size)) - math.prod(both.shape(size))


@dataclass(frozen=True)
class Sheet:
    """A crop of ``width`` × ``height`` pixels around (``x``, ``y``) of the frame; targets have windows in it."""

    x: float
    y: float
    scale: float
    width: int
    height: int

    @classmethod
    def of(cls, area: Area, size: int) -> Sheet:
        """The crop that shows an area."""
        width, height = area.shape(size)
        middle = ((area.left + area.right) / 2, (area.top + area.bottom) / 2)
        return cls(*middle, math.sqrt(area.fine * area.coarse), width, height)

    def take(self, image: Image) -> Image:
        """Its pixels, uint8 [height, width, 3]."""
        size = max(self.width, self.height)
        return take(image, View(self.x, self.y, size * self.scale, size), (self.width, self.height))

    def window(self, motion: Motion, size: int) -> View:
        """The square of the crop around where a target is expected, on the grid of the coarser map."""
        x, y = motion.expected()
        left, top = self._corner(x - self.x, self.width, size), self._corner(y - self.y, self.height, size)
        u, v = left + (size - self.width) / 2, top + (size - self.height) / 2
        return View(self.x + u * self.scale, self.y + v * self.scale, size * self.scale, size)

    def _corner(self, off: float, length: int, size: int) -> int:
        """Where the window begins, in crop pixels; it lies within the crop."""
        wanted = off / self.scale + (length - size) / 2
        return min(max(round(wanted / _GRID) * _GRID, 0), length - size)

    def cut(self, maps: Activations, view: View) -> Activations:
        """A window's part of the crop's two maps [1, C, H, W]."""
        found = []
        for tensor, stride in zip(maps, STRIDES, strict=True):
            cells = view.size // stride
            column = round(((view.x - self.x) / self.scale + (self.width - view.size) / 2) / stride)
            row = round(((view.y - self.y) / self.scale + (self.height - view.size) / 2) / stride)
            part = tensor[:, :, row : row + cells, column : column + cells]
            found.append(part.contiguous(memory_format=torch.channels_last))
        return tuple(found)


def as_batch(parts: list[Activations]) -> Activations:
    """Maps of several views as one batch."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
