"""Arrays of any usual layout as uint8 H×W×3 RGB, and smaller pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamdrop.errors import DataError
from streamdrop.types import Image


def scale_to_fit(image: Image, largest: tuple[int, int]) -> float:
    """At most 1: by how much a picture shrinks to a width and height of ``largest``."""
    height, width = image.shape[:2]
    return float(min(1.0, largest[0] / width, largest[1] / height))


def scaled(image: Image, scale: float) -> Image:
    """A picture made smaller; at scale 1.0 itself."""
    import cv2

    if scale == 1.0:
        return image
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def as_rgb(image: object, what: str = "image") -> Image:
    """uint8 or uint16, H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA; alpha is left out) as uint8 H×W×3.

    16-bit values keep their high byte. ``what`` names the array in messages. Raises DataError for everything else.
    """
    if not (isinstance(image, np.ndarray) or hasattr(image, "__array__")):
        raise DataError(f"{what} is a {type(image).__name__}: give uint8 arrays, height x width x 3, RGB")
    array: npt.NDArray[np.generic] = np.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"{what} has shape {array.shape}: give height x width x 3, RGB")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)  # type: ignore[operator]
    if array.dtype != np.uint8:
        raise DataError(f"{what} is {array.dtype}: give uint8, 0 to 255")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3], dtype=np.uint8)
