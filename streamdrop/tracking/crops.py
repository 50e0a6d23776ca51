"""Square views of a frame: where they lie, their pixels, and the way between crop and frame coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Box
from streamdrop.types import Image

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A square of ``side`` pixels around (``x``, ``y``) of the frame, shown on ``size`` × ``size`` pixels.

    It may be turned (``angle``, radians) and mirrored; outside the frame the border's pixels go on.
    """

    x: float
    y: float
    side: float
    size: int
    angle: float = 0.0
    mirrored: bool = False

    @property
    def scale(self) -> float:
        """Frame pixels per crop pixel."""
        return self.side / self.size

    def to_frame(self, x: float, y: float) -> tuple[float, float]:
        """A crop position in the frame."""
        u, v = (x - self.size / 2) * self.scale, (y - self.size / 2) * self.scale
        u = -u if self.mirrored else u
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + c * u - s * v, self.y + s * u + c * v

    def to_crop(self, x: float, y: float) -> tuple[float, float]:
        """A frame position in the crop."""
        dx, dy = (x - self.x) / self.scale, (y - self.y) / self.scale
        c, s = math.cos(self.angle), math.sin(self.angle)
        u, v = c * dx + s * dy, -s * dx + c * dy
        return self.size / 2 + (-u if self.mirrored else u), self.size / 2 + v

    def box_in_crop(self, box: Box) -> Box:
        """A frame box around its place in the crop; its own axes stay upright whatever the angle."""
        x, y = self.to_crop(*box.centre)
        w, h = box.w / self.scale, box.h / self.scale
        return Box(x - w / 2, y - h / 2, w, h)

    def box_in_frame(self, box: Box) -> Box:
        """An upright view's crop box in the frame."""
        x, y = self.to_frame(*box.centre)
        w, h = box.w * self.scale, box.h * self.scale
        return Box(x - w / 2, y - h / 2, w, h)


def take(image: Image, view: View, shape: tuple[int, int] | None = None) -> Image:
    """The view's pixels, uint8 [size, size, 3]; of ``shape`` (width, height) the part of it around its middle."""
    width, height = shape or (view.size, view.size)
    halvings = int(math.log2(max(view.scale, 1.0)))
    if halvings:
        image, view = _halved(image, view, halvings)
    c, s = math.cos(view.angle) * view.scale, math.sin(view.angle) * view.scale
    flip = -1.0 if view.mirrored else 1.0
    turn: Matrix = np.array([[c * flip, -s], [s * flip, c]])
    offset = np.array([view.x - 0.5, view.y - 0.5]) - turn @ np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.concatenate([turn, offset[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def _halved(image: Image, view: View, halvings: int) -> tuple[Image, View]:
    """The part of the frame that the view needs at 1/2ⁿ of its resolution: shrinking further would alias."""
    factor = 2**halvings
    reach = view.side * (0.5 if view.angle == 0 else 0.75) + factor
    height, width = image.shape[:2]
    x0, y0 = _within(view.x - reach, width - factor), _within(view.y - reach, height - factor)
    x1, y1 = _within(view.x + reach, width), _within(view.y + reach, height)
    w, h = max((x1 - x0) // factor, 1), max((y1 - y0) // factor, 1)
    part = image[y0 : y0 + h * factor, x0 : x0 + w * factor]
    small = cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA)
    moved = View((view.x - x0) / factor, (view.y - y0) / factor, view.side / factor, view.size)
    return np.asarray(small, np.uint8), View(**{**vars(moved), "angle": view.angle, "mirrored": view.mirrored})


def _within(value: float, limit: int) -> int:
    return int(min(max(value, 0), max(limit, 0)))


def sweep(width: int, height: int, side: float, x: float, y: float) -> list[tuple[float, float]]:
    """Centres of squares of ``side`` that overlap and together cover the frame, nearest to (x, y) first."""
    xs, ys = _stops(width, side), _stops(height, side)
    centres = [(u, v) for v in ys for u in xs]
    return sorted(centres, key=lambda centre: (math.hypot(centre[0] - x, centre[1] - y), centre))


def _stops(length: int, side: float) -> list[float]:
    if length <= side:
        return [length / 2]
    count = math.ceil((length - side / 2) / (side / 2))
    return [side / 4 + (length - side / 2) * i / (count - 1) for i in range(count)] if count > 1 else [length / 2]
