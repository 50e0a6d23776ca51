"""Key frames of a run: a few pictures, chosen while the stream passes, small enough to keep."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2

from streamdrop.types import Image, Track

WIDTH = 480
"""Pictures are shrunk to this width, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A frame as JPEG; ``width`` and ``height`` are the frame's own, in pixels, before it was shrunk."""

    jpeg: bytes
    width: int
    height: int

    @property
    def data_url(self) -> str:
        """The picture inside a page, without a file beside it."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


def encode(image: Image, limit: int = WIDTH) -> Picture:
    """A frame (uint8 H×W×3 RGB) as a small JPEG, at most ``limit`` pixels wide."""
    height, width = image.shape[:2]
    if width > limit:
        image = cv2.resize(image, (limit, max(1, round(height * limit / width))), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return Picture(data.tobytes(), width, height)


class KeyFrames:
    """About ``count`` frames of a stream of unknown length: evenly spread, and where the target was lost and found.

    Keeps at most ``4 × count`` small pictures, however long the stream.
    """

    def __init__(self, count: int = 12) -> None:
        self.count = count
        self._even: dict[int, Picture] = {}
        self._moments: dict[int, Picture] = {}
        self._stride = 1
        self._offered = 0
        self._lost = False

    def offer(self, track: Track, image: Image) -> None:
        """Show the collector the next frame (uint8 H×W×3 RGB) and its track."""
        moment, even = track.lost != self._lost, self._offered % self._stride == 0
        if moment or even:
            picture = encode(image)
            if even:
                self._even[track.frame] = picture
            if moment:
                self._moments[track.frame] = picture
        self._offered += 1
        self._lost = track.lost
        if len(self._even) > 2 * self.count:
            self._even = _every_other(self._even)
            self._stride *= 2
        if len(self._moments) > 2 * self.count:
            self._moments = _every_other(self._moments)

    def pictures(self) -> dict[int, Picture]:
        """The chosen pictures by frame number, in order: up to a half of them lost-and-found moments."""
        moments = _spread(sorted(self._moments), self.count // 2)
        rest = [frame for frame in self._even if frame not in moments]
        chosen = sorted({*moments, *_spread(rest, self.count - len(moments))})
        return {frame: self._moments.get(frame) or self._even[frame] for frame in chosen}


def _every_other(pictures: dict[int, Picture]) -> dict[int, Picture]:
    return {frame: pictures[frame] for frame in list(pictures)[::2]}


def _spread(frames: list[int], count: int) -> list[int]:
    """``count`` of the frames, evenly, the first and the last among them."""
    if len(frames) <= count:
        return frames
    return [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
