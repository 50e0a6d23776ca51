"""Frames as cameras and files give them, as uint8 RGB."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from streamdrop.errors import DataError
from streamdrop.types import Image

_SHAPES = "shape (height, width), or (height, width, 3 or 4) in RGB"
_MARGIN = 0.25  # of the first frame's range: room for later frames that are darker or brighter


@dataclass(frozen=True)
class Tones:
    """The 16-bit values shown as black and as white; the first frame fixes them, so that frames stay comparable."""

    low: float = 0.0
    high: float = 65535.0

    @classmethod
    def of(cls, image: object) -> Tones:
        """Of a first frame: nearly all of its range with a margin; 16-bit sensors seldom use all values."""
        if not hasattr(image, "__array__"):
            return cls()
        array = _array(image, "image")
        if array.dtype != np.uint16 or array.size == 0:
            return cls()
        colours = np.asarray(array[..., :3] if array.ndim == 3 else array, np.uint16)
        low, high = (float(value) for value in np.percentile(colours, (0.5, 99.5)))
        room = _MARGIN * max(high - low, 1.0)
        return cls(low - room, high + room)

    @cached_property
    def table(self) -> Image:
        """What each 16-bit value is shown as, uint8 [65536]; made once, not for every frame."""
        gain = 255 / (self.high - self.low)
        shown: Image = np.clip((np.arange(65536, dtype=np.float32) - self.low) * gain + 0.5, 0, 255).astype(np.uint8)
        return shown


_ALL = Tones()


def as_rgb(image: object, tones: Tones = _ALL, what: str = "image", least: int = 1) -> Image:
    """uint8 [H, W, 3] from uint8 or uint16 [H, W] or [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA).

    Alpha is left out; uint8 RGB is handed back as it is. ``what`` names the array in messages. Raises DataError for
    anything else, and for sides of fewer than ``least`` pixels.
    """
    array = _array(image, what)
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{what} is {array.dtype} {array.shape}: give uint8, 0 to 255, or uint16, as an array of {_SHAPES}"
        )
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise DataError(f"{what} has shape {array.shape}: give an array of {_SHAPES}")
    if min(array.shape[:2]) < least:
        raise DataError(f"{what} of {array.shape[1]}x{array.shape[0]} pixels: give one of at least {least}x{least}")
    shown = array[..., :3] if array.ndim == 3 else array[..., None]
    if shown.dtype == np.uint16:
        shown = tones.table[shown]
    return np.asarray(shown if shown.shape[2] == 3 else np.repeat(shown, 3, axis=2), np.uint8)


def _array(image: object, what: str) -> npt.NDArray[np.generic]:
    """What is an array, or can be read as one, such as a tensor; bytes in this machine's order."""
    if not (isinstance(image, np.ndarray) or hasattr(image, "__array__")):
        raise DataError(f"{what} is a {type(image).__name__}: give a uint8 or uint16 array of {_SHAPES}")
    try:
        array: npt.NDArray[np.generic] = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor's own, on a GPU or with a gradient
        reason = " ".join(str(error).split())
        raise DataError(
            f"{what} is a {type(image).__name__} that does not read as an array ({reason}): "
            f"give a uint8 or uint16 array of {_SHAPES}"
        ) from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)
