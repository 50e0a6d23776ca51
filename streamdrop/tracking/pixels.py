"""Frames as cameras give them, as the uint8 RGB that the network takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from streamdrop.errors import DataError
from streamdrop.types import Image

_MARGIN = 0.25  # of the first frame's range: room for later frames that are darker or brighter


@dataclass(frozen=True)
class Tones:
    """The 16-bit values shown as black and as white; the first frame fixes them, so that frames stay comparable."""

    low: float = 0.0
    high: float = 65535.0

    @classmethod
    def of(cls, image: object) -> Tones:
        """Of a first frame: nearly all of its range with a margin; 16-bit sensors seldom use all values."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint16 or image.size == 0:
            return cls()
        colours = image[..., :3] if image.ndim == 3 else image
        low, high = (float(value) for value in np.percentile(colours, (0.5, 99.5)))
        room = _MARGIN * max(high - low, 1.0)
        return cls(low - room, high + room)

    @cached_property
    def table(self) -> Image:
        """What each 16-bit value is shown as, uint8 [65536]; made once, not for every frame."""
        gain = 255 / (self.high - self.low)
        shown: Image = np.clip((np.arange(65536, dtype=np.float32) - self.low) * gain + 0.5, 0, 255).astype(np.uint8)
        return shown


def as_rgb(image: object, tones: Tones) -> Image:
    """uint8 [H, W, 3] from uint8 or uint16 [H, W] or [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA).

    Alpha is left out. Raises DataError for anything else, and for less than 2×2 pixels.
    """
    if not isinstance(image, np.ndarray) or not _is_picture(image):
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(
            f"image is {kind}: give a uint8 or uint16 array of shape (height, width), or (height, width, 3 or 4) in RGB"
        )
    if image.shape[0] < 2 or image.shape[1] < 2:
        raise DataError(f"image of {image.shape[1]}x{image.shape[0]} pixels: give one of at least 2x2")
    shown = image[..., :3] if image.ndim == 3 else image[..., None]
    if shown.dtype == np.uint16:
        shown = tones.table[shown]
    return shown if shown.shape[2] == 3 else np.repeat(shown, 3, axis=2)


def _is_picture(image: npt.NDArray[np.generic]) -> bool:
    return image.dtype in (np.uint8, np.uint16) and (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    )
