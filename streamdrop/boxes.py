"""Boxes: ``x, y, w, h`` in pixels, 0-based, floats; their geometry and their checks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamdrop.errors import BoxError

Array = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A rectangle: ``x, y`` of its top-left corner, width ``w`` and height ``h``, in pixels."""

    x: float
    y: float
    w: float
    h: float

    @property
    def centre(self) -> tuple[float, float]:
        """The middle, ``(x, y)``."""
        return self.x + self.w / 2, self.y + self.h / 2

    @property
    def area(self) -> float:
        """Width times height."""
        return self.w * self.h


def as_box(values: object) -> Box:
    """Four finite numbers with a positive width and height as a Box; raises BoxError for anything else."""
    try:
        numbers = [float(v) for v in values]  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        raise BoxError(f"box {values!r} is not four numbers: give x,y,w,h in pixels") from None
    if len(numbers) != 4:
        raise BoxError(f"box {values!r} has {len(numbers)} numbers, not four: give x,y,w,h in pixels")
    if not all(math.isfinite(v) for v in numbers):
        raise BoxError(f"box {values!r} holds a number that is not finite: give x,y,w,h in pixels")
    box = Box(*numbers)
    if box.w <= 0 or box.h <= 0:
        raise BoxError(f"box {values!r} has no area: width and height (3rd and 4th number) must be positive")
    return box


def parse_box(text: str) -> Box:
    """``"x,y,w,h"`` as a Box; raises BoxError."""
    try:
        return as_box([float(part) for part in text.split(",")])
    except ValueError as error:
        if isinstance(error, BoxError):
            raise
        raise BoxError(f"box {text!r} is not four numbers: give x,y,w,h in pixels, such as 120,80,60,60") from None


def check_inside(box: Box, width: int, height: int) -> Box:
    """The box itself if it overlaps a ``width``×``height`` frame, at most ten times as large; raises BoxError."""
    shared_w = min(box.x + box.w, width) - max(box.x, 0.0)
    shared_h = min(box.y + box.h, height) - max(box.y, 0.0)
    if shared_w <= 0 or shared_h <= 0:
        raise BoxError(
            f"box {','.join(f'{v:g}' for v in box)} lies outside the {width}x{height} frame: "
            "give x,y,w,h in pixels of the first frame"
        )
    if box.w > 10 * width or box.h > 10 * height:
        raise BoxError(
            f"box {','.join(f'{v:g}' for v in box)} is more than ten times as wide or high as the "
            f"{width}x{height} frame: give x,y,w,h in pixels of the first frame"
        )
    return box


def clip(box: Box, width: int, height: int) -> Box:
    """The part of the box inside the frame; at least 1×1 pixel at the nearest border when nothing is."""
    x0, y0 = min(max(box.x, 0.0), width - 1.0), min(max(box.y, 0.0), height - 1.0)
    x1, y1 = min(max(box.x + box.w, x0 + 1), float(width)), min(max(box.y + box.h, y0 + 1), float(height))
    return Box(x0, y0, x1 - x0, y1 - y0)


def mot_line(frame: int, target: int, box: npt.ArrayLike, score: float) -> str:
    """A box in a frame (from 0) as the MOT challenge has it: ``frame,id,x,y,w,h,score,-1,-1,-1``, counted from 1."""
    x, y, w, h = np.asarray(box, float).tolist()
    numbers = (round(value, 3) for value in (x + 1, y + 1, w, h))
    return f"{frame + 1},{target},{','.join(map(str, numbers))},{score:.4f},-1,-1,-1"


def iou(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Intersection over union of boxes ``[..., 4]`` and ``[..., 4]`` (broadcast), in [0, 1]; NaN in, NaN out."""
    p, q = np.asarray(a, float), np.asarray(b, float)
    low = np.maximum(p[..., :2], q[..., :2])
    high = np.minimum(p[..., :2] + p[..., 2:], q[..., :2] + q[..., 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=-1)
    union = np.prod(p[..., 2:], axis=-1) + np.prod(q[..., 2:], axis=-1) - shared
    ratio = np.minimum(shared / np.where(union > 0, union, 1.0), 1.0)  # rounding can lift equal boxes above it
    result: Array = np.where(union > 0, ratio, np.where(np.isnan(union), np.nan, 0.0))
    return result


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes that have an area, in [0, 1]: ``iou`` of one pair, much faster."""
    across = max(min(a.x + a.w, b.x + b.w) - max(a.x, b.x), 0.0)
    down = max(min(a.y + a.h, b.y + b.h) - max(a.y, b.y), 0.0)
    shared = across * down
    return min(shared / (a.w * a.h + b.w * b.h - shared), 1.0)


def centre_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Euclidean distance of the centres of boxes ``[..., 4]``, in pixels."""
    p, q = np.asarray(a, float), np.asarray(b, float)
    gap: Array = (p[..., :2] + p[..., 2:] / 2) - (q[..., :2] + q[..., 2:] / 2)
    distance: Array = np.hypot(gap[..., 0], gap[..., 1])
    return distance
