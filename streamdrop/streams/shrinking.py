"""Smaller pictures."""

from __future__ import annotations

import numpy as np

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
