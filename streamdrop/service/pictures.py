"""The newest picture of a stream, as JPEG for as many viewers as there are."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import cv2

from streamdrop.errors import ConflictError
from streamdrop.streams import annotate
from streamdrop.streams.shrinking import scale_to_fit, scaled
from streamdrop.types import Image

LARGEST = (1280, 960)
"""Width and height above which the live view is shown smaller."""

_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A frame of the stream and its ``targets``: id, box, score, lost of each."""

    number: int
    image: Image
    targets: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Shown:
    """A picture as JPEG: what a viewer that is slow to take it keeps, without the frame."""

    number: int
    targets: list[dict[str, Any]]
    data: bytes


class Pictures:
    """Holds the newest picture; each is encoded at most once, and only when somebody asks."""

    def __init__(self) -> None:
        self._newest: Picture | None = None
        self._encoding = threading.Lock()
        self._encoded: tuple[Picture, Shown] | None = None

    def put(self, number: int, image: Image, targets: list[dict[str, Any]]) -> None:
        """Make this the newest."""
        self._newest = Picture(number, image, targets, time.time())

    @property
    def newest(self) -> Picture | None:
        """The newest picture; None before the first."""
        return self._newest

    def encoded(self) -> Shown | None:
        """The newest picture where somebody has asked for it already, else None; never waits."""
        encoded = self._encoded
        return encoded[1] if encoded is not None and encoded[0] is self._newest else None

    def live(self) -> Shown:
        """The newest picture, at most of size ``LARGEST``. Raises ConflictError before the first."""
        with self._encoding:
            shown = self.encoded()
            if shown is None:
                picture = self._some()
                shown = Shown(picture.number, picture.targets, encode(_live_size(picture.image)))
                self._encoded = (picture, shown)
            return shown

    def snapshot(self, drawn: bool) -> bytes:
        """The newest picture as JPEG in its own size, with boxes drawn in if asked for. Raises ConflictError."""
        picture = self._some()
        if not drawn or not picture.targets:
            return encode(picture.image)
        image = picture.image
        for one in picture.targets:
            name = str(one["id"]) if len(picture.targets) > 1 else ""
            image = annotate(image, one["box"], one["score"], one["lost"], name=name)
        return encode(image, 90)

    def _some(self) -> Picture:
        if self._newest is None:
            raise ConflictError("no frame has come yet: wait for the stream to come up")
        return self._newest


def encode(image: Image, quality: int = _QUALITY) -> bytes:
    """uint8 H×W×3 RGB as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data)


def _live_size(image: Image) -> Image:
    return scaled(image, scale_to_fit(image, LARGEST))
