"""Frames as a worse camera would have given them. The same frame always comes out the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from streamdrop.boxes import Box
from streamdrop.evaluation.protocol import OnlineTracker
from streamdrop.types import Image, Track

Change: TypeAlias = Callable[[Image, np.random.Generator], Image]
"""A frame (RGB) and where chance comes from → the frame as it is seen."""

_GAMMA = 2.2
_LIGHT = 0.1  # of the light that the frame was taken in
_PHOTONS = 1000.0  # that white would be, in full light
_NOISE = 25.0  # standard deviation, in grey levels
_BLUR = 3.0  # pixels
_THERMAL = (2.0, 0.6, 4.0)  # pixels of blur; contrast kept; noise


def plain(image: Image, random: np.random.Generator) -> Image:
    """As it is."""
    return image


def grey(image: Image, random: np.random.Generator) -> Image:
    """Without colour."""
    return np.repeat(_luminance(image)[..., None], 3, axis=2)


def low_light(image: Image, random: np.random.Generator) -> Image:
    """In a tenth of the light: each pixel counts few photons, and chance decides how many."""
    expected = (np.arange(256, dtype=np.float32) / 255) ** np.float32(_GAMMA) * np.float32(_LIGHT * _PHOTONS)
    mean = expected[image]
    counted = mean + np.sqrt(mean) * _normal(image.shape, random)  # Poisson's, nearly
    return _levels((np.maximum(np.rint(counted), 0) / _PHOTONS) ** (1 / _GAMMA) * 255)


def noise(image: Image, random: np.random.Generator) -> Image:
    """With noise of a tenth of the range."""
    return _levels(image + _NOISE * _normal(image.shape, random))


def blur(image: Image, random: np.random.Generator) -> Image:
    """Out of focus."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), _BLUR), np.uint8)


def inverted(image: Image, random: np.random.Generator) -> Image:
    """As a negative."""
    return np.asarray(255 - image, np.uint8)


def thermal(image: Image, random: np.random.Generator) -> Image:
    """Like a thermal camera's: no colour, little contrast and detail, dark shown hot, in false colours."""
    width, contrast, deviation = _THERMAL
    flat = cv2.GaussianBlur(_luminance(image), (0, 0), width).astype(np.float32)
    heat = _levels(128 - contrast * (flat - 128) + deviation * _normal(flat.shape, random))
    return np.ascontiguousarray(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)[..., ::-1])


FRAMES: dict[str, Change] = {
    "plain": plain,
    "grey": grey,
    "low light": low_light,
    "noise": noise,
    "blur": blur,
    "inverted": inverted,
    "thermal": thermal,
}


def changed(change: Change, image: Image, sequence: str, index: int) -> Image:
    """Frame ``index`` of a sequence, changed; chance is the frame's own, the same for every arm."""
    return change(image, np.random.default_rng((zlib.crc32(sequence.encode()), index)))


class Seen:
    """A tracker that sees the frames of a sequence changed."""

    def __init__(self, tracker: OnlineTracker, change: Change, sequence: str) -> None:
        self._tracker, self._change, self._sequence = tracker, change, sequence
        self._index = 0

    def init(self, image: Image, box: Box) -> Track:
        """Start on the first frame."""
        self._index = 0
        return self._tracker.init(self._next(image), box)

    def update(self, image: Image) -> Track:
        """The next frame."""
        return self._tracker.update(self._next(image))

    def close(self) -> None:
        """Let go of the target."""
        close = getattr(self._tracker, "close", None)
        if close is not None:
            close()

    def _next(self, image: Image) -> Image:
        self._index += 1
        return changed(self._change, image, self._sequence, self._index - 1)


def _luminance(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def _levels(values: np.ndarray) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
