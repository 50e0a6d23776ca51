"""The smallest thing to track: a patterned square that moves over a patterned ground."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Box
from streamdrop.types import Image

_COLOURS = ((200, 90, 60), (70, 90, 210), (220, 200, 70), (190, 80, 190))


def moving_square(
    frames: int, size: int = 24, seed: int = 0, shape: tuple[int, int] = (120, 160), hidden: Sequence[int] = ()
) -> tuple[list[Image], list[Box]]:
    """``frames`` images (height, width of ``shape``) and the square's box in each; it is not drawn in ``hidden`` ones.

    It circles once in 60 frames around the middle. The same arguments give the same images.
    """
    random = np.random.default_rng(seed)
    height, width = shape
    ground = _pattern(random, height, width, 12, (60, 110, 70))
    square = _pattern(random, size, size, max(size // 4, 1), (200, 90, 60))
    images, boxes = [], []
    for frame in range(frames):
        angle = 2 * np.pi * frame / 60
        x = round(width / 2 + 0.25 * width * np.cos(angle) - size / 2)
        y = round(height / 2 + 0.25 * height * np.sin(angle) - size / 2)
        image = ground.copy()
        if frame not in hidden:
            image[y : y + size, x : x + size] = square
        images.append(image)
        boxes.append(Box(x, y, size, size))
    return images, boxes


def moving_squares(
    frames: int, count: int = 2, size: int = 20, apart: float = 30.0, seed: int = 0, shape: tuple[int, int] = (120, 160)
) -> tuple[list[Image], list[list[Box]]]:
    """As ``moving_square`` with ``count`` squares of different looks in a row, ``apart`` pixels from middle to middle.

    The row sways sideways, once in 60 frames. Returns the images and each square's boxes by frame: [count][frames].
    """
    random = np.random.default_rng(seed)
    height, width = shape
    ground = _pattern(random, height, width, 12, (60, 110, 70))
    looks = [_pattern(random, size, size, max(size // 4, 1), _COLOURS[n % len(_COLOURS)]) for n in range(count)]
    images, boxes = [], [list[Box]() for _ in range(count)]
    for frame in range(frames):
        image = ground.copy()
        sway = 0.08 * width * np.sin(2 * np.pi * frame / 60)
        for n, look in enumerate(looks):
            x = round(width / 2 + sway + (n - (count - 1) / 2) * apart - size / 2)
            y = round(height / 2 + 6 * np.sin(2 * np.pi * frame / 40 + n) - size / 2)
            image[y : y + size, x : x + size] = look
            boxes[n].append(Box(x, y, size, size))
        images.append(image)
    return images, boxes


def _pattern(
    random: np.random.Generator, height: int, width: int, cell: int, colour: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Random blotches of ``cell`` pixels around a colour."""
    coarse = random.normal(0, 45, (height // cell + 2, width // cell + 2, 3)) + np.array(colour)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pattern: npt.NDArray[np.uint8] = np.clip(smooth, 0, 255).astype(np.uint8)
    return pattern
