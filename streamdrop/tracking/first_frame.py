"""The first frame, seen many ways: crops to learn the target from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from streamdrop.boxes import Box
from streamdrop.tracking.config import FirstFrameConfig
from streamdrop.tracking.crops import View, sweep, take
from streamdrop.types import Image

_TURNED = 2  # one crop in so many is turned: box regression learns from the others only


@dataclass(frozen=True)
class Example:
    """A crop, where the target is in it (crop pixels; None: nowhere), and whether it stands upright there."""

    crop: Image
    box: Box | None
    upright: bool


def examples(image: Image, box: Box, side: float, size: int, config: FirstFrameConfig, seed: int) -> list[Example]:
    """The target as it is, then moved, rescaled, turned, mirrored, blurred, darkened or lightened at random.

    The last ``background`` ones are of other parts of the frame, as far as there are any.
    """
    random = np.random.default_rng((seed, 0))
    first = View(*box.centre, side, size)
    found = [Example(take(image, first), first.box_in_crop(box), True)]
    elsewhere = _views_elsewhere(first, box, image.shape[1], image.shape[0])
    count = min(config.background, len(elsewhere), config.crops - 1)
    for index in range(1, config.crops - count):
        view = _random_view(first, box, config, random, turned=index % _TURNED == 1)
        crop = _changed(take(image, view), random)
        found.append(Example(crop, view.box_in_crop(box), view.angle == 0))
    chosen = random.permutation(len(elsewhere))[:count]
    return [*found, *(Example(take(image, elsewhere[index]), None, False) for index in chosen)]


def upright(examples: Sequence[Example]) -> dict[int, Box]:
    """Which examples box regression learns from, and where the target is in them."""
    return {index: each.box for index, each in enumerate(examples) if each.upright and each.box is not None}


def _views_elsewhere(first: View, box: Box, width: int, height: int) -> list[View]:
    """Views of the frame at the first one's scale that do not show the target."""
    apart = first.side / 2
    return [
        View(x, y, first.side, first.size)
        for x, y in sweep(width, height, first.side, first.x, first.y)
        if abs(x - first.x) > apart + box.w / 2 or abs(y - first.y) > apart + box.h / 2
    ]


def _random_view(first: View, box: Box, config: FirstFrameConfig, random: np.random.Generator, turned: bool) -> View:
    dx, dy = random.uniform(-config.shift, config.shift, 2) * (box.w + box.h) / 2
    zoom = math.exp(random.uniform(-config.scale, config.scale))
    angle = math.radians(random.uniform(-config.rotation, config.rotation)) if turned else 0.0
    return View(first.x + dx, first.y + dy, first.side * zoom, first.size, angle, bool(random.random() < 0.3))


def _changed(crop: Image, random: np.random.Generator) -> Image:
    if random.random() < 0.25:
        crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), random.uniform(0.7, 2.0)), np.uint8)
    return np.asarray(cv2.convertScaleAbs(crop, alpha=random.uniform(0.8, 1.2)), np.uint8)
