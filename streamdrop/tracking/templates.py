"""Where in a frame a lost target might be, at a glance: its picture laid over every place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from streamdrop.boxes import Box
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.distractors import Place
from streamdrop.tracking.eye import Map
from streamdrop.types import Image

_PREFIX = "template."
_LENGTH = 12  # pixels that a picture is across, √(w·h)
_WIDEST = 480  # pixels of a frame that is looked over
_LEAST = 4  # pixels of a picture's side below which it says nothing
_FLAT = 1.0  # levels: a picture that varies less is like anything
_ALIKE = 0.3  # a place that correlates less is not like the target


class Templates:
    """The target's pictures, uint8 [h, w, 3]: as it was given, and as it was when it was last certain.

    The frame is reduced until the target is 12 pixels across, and each picture correlated with every place of it
    (``cv2.TM_CCOEFF_NORMED``, colour by colour): milliseconds, where a sweep of the frame by the network takes some 30
    crops. It says where to look, no more: whether the target is there is for the network to say.
    """

    def __init__(self, first: Image, last: Image | None = None) -> None:
        self._first, self._last = first, first if last is None else last

    @classmethod
    def of(cls, image: Image, box: Box) -> Templates:
        """From the first frame."""
        return cls(_picture(image, box))

    def see(self, image: Image, box: Box) -> None:
        """Take the target as it is in this frame for the last picture."""
        self._last = _picture(image, box)

    def places(self, image: Image, box: Box, count: int) -> list[Place]:
        """Up to ``count`` places of a frame [H, W, 3] that look like the target, of ``box``'s size; best first."""
        height, width = image.shape[:2]
        scale = min(_LENGTH / math.sqrt(box.area), _WIDEST / max(width, height), 1.0)
        size = (round(box.w * scale), round(box.h * scale))
        whole = (max(round(width * scale), 1), max(round(height * scale), 1))
        if count == 0 or min(size) < _LEAST or size[0] > whole[0] or size[1] > whole[1]:
            return []
        frame = _resized(image, whole)
        alike = np.max([_correlated(frame, _resized(one, size)) for one in (self._first, self._last)], axis=0)
        places = (((x + size[0] / 2) * width / whole[0], (y + size[1] / 2) * height / whole[1])
                  for x, y in _peaks(alike, size))  # fmt: skip
        return list(itertools.islice(places, count))

    def state(self) -> dict[str, Tensor]:
        """The pictures; ``restored`` takes them back."""
        pairs = (("first", self._first), ("last", self._last))
        return {_PREFIX + name: torch.from_numpy(np.ascontiguousarray(picture)) for name, picture in pairs}

    @classmethod
    def restored(cls, state: Mapping[str, Tensor]) -> Templates:
        """The templates whose ``state`` is among these tensors. Raises KeyError."""
        return cls(*(state[_PREFIX + name].numpy() for name in ("first", "last")))


def _picture(image: Image, box: Box) -> Image:
    scale = math.sqrt(box.area) / _LENGTH
    size = (max(round(box.w / scale), 1), max(round(box.h / scale), 1))
    (x, y), length = box.centre, max(size)
    return take(image, View(x, y, length * scale, length), size)


def _resized(image: Image, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _correlated(frame: Image, picture: Image) -> Map:
    """The mean correlation, -1 to 1, of a picture's colours with what lies under them at every place.

    Colours without a pattern are left out; a picture that has no others correlates with nothing (-1). One by one they
    take OpenCV a fifth of the time that all three take at once.
    """
    pairs = zip(cv2.split(frame), cv2.split(picture), strict=True)
    found = [cv2.matchTemplate(own, other, cv2.TM_CCOEFF_NORMED) for own, other in pairs if other.std() >= _FLAT]
    shape = (frame.shape[0] - picture.shape[0] + 1, frame.shape[1] - picture.shape[1] + 1)
    values: Map = np.mean(found, axis=0, dtype=np.float32) if found else np.full(shape, -1, np.float32)
    return np.nan_to_num(values, nan=-1)


def _peaks(alike: Map, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Columns and rows of what is alike, best first, each a picture's ``size`` away from the others."""
    (w, h), left = size, alike.copy()
    while left.max() >= _ALIKE:
        y, x = (int(at) for at in np.unravel_index(int(left.argmax()), left.shape))
        yield x, y
        left[max(y - h, 0) : y + h + 1, max(x - w, 0) : x + w + 1] = -1
