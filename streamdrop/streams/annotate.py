"""Drawing a track into a frame: the box, its score, and a line on what the model is doing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from streamdrop.types import Image

Colour = tuple[int, int, int]
SURE: Colour = (64, 220, 120)
UNSURE: Colour = (255, 184, 40)
LOST: Colour = (255, 72, 72)
INK: Colour = (16, 18, 22)
PAPER: Colour = (240, 242, 245)
MOST_HIDDEN = 5
"""Words take at most one part in so many of a frame's height."""


def annotate(image: Image, box: Sequence[float], score: float, lost: bool, text: str = "", *, name: str = "") -> Image:
    """A copy of ``image`` (uint8 H×W×3 RGB) with the box (x, y, w, h in pixels), its score and a line of ``text``.

    Green: found with a high score; amber: with a low one; red and dashed: lost, the last box known. ``name`` stands
    before the score. A box that is not finite is left out, and so are words that would hide the picture, of a frame of
    few pixels.
    """
    canvas = np.array(image, dtype=np.uint8, order="C")
    thick = max(2, round(min(canvas.shape[:2]) / 240))
    colour = LOST if lost else _between(UNSURE, SURE, (score - 0.2) / 0.4)
    if np.isfinite(box).all():
        low, high = _corners(box)
        _outline(canvas, low, high, colour, thick, dashed=lost)
        words = [name, "lost" if lost else "", f"{score:.2f}"]
        _label(canvas, " ".join(word for word in words if word), low, high, colour)
    if text:
        caption(canvas, text)
    return canvas


def _corners(box: Sequence[float]) -> tuple[tuple[int, int], tuple[int, int]]:
    x, y, w, h = (float(np.clip(v, -30000, 30000)) for v in box)
    return (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1)


def _between(low: Colour, high: Colour, share: float) -> Colour:
    share = min(max(share, 0.0), 1.0) if np.isfinite(share) else 0.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _outline(
    canvas: Image, low: tuple[int, int], high: tuple[int, int], colour: Colour, thick: int, *, dashed: bool
) -> None:
    """A rectangle over a dark rim, so that it shows on any background."""
    if not dashed:
        cv2.rectangle(canvas, low, high, INK, thick + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, low, high, colour, thick, cv2.LINE_AA)
        return
    (x0, y0), (x1, y1) = low, high
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        for a, b in _dashes(start, end, 5 * thick):
            cv2.line(canvas, a, b, INK, thick + 2, cv2.LINE_AA)
            cv2.line(canvas, a, b, colour, thick, cv2.LINE_AA)


def _dashes(start: tuple[int, int], end: tuple[int, int], length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Every second piece of a line, each about ``length`` pixels; an odd number, so that corners are drawn."""
    along = np.array(end, float) - start
    pieces = max(1, round(float(np.hypot(*along)) / length)) | 1
    points = [tuple(int(v) for v in np.round(start + along * k / pieces)) for k in range(pieces + 1)]
    return [((points[k][0], points[k][1]), (points[k + 1][0], points[k + 1][1])) for k in range(0, pieces, 2)]


def _label(canvas: Image, text: str, low: tuple[int, int], high: tuple[int, int], colour: Colour) -> None:
    """A chip with dark letters on the box's colour: above the box, or inside the frame when there is no room."""
    height, width = canvas.shape[:2]
    (w, h), _, scale = _measure(text, canvas)
    pad = max(4, h // 2)
    if w + 2 * pad > width or (h + 2 * pad) * MOST_HIDDEN > height:
        return
    x = min(max(low[0] - 1, 0), max(0, width - w - 2 * pad))
    above = low[1] - h - 2 * pad - 2
    y = above if above >= 0 else min(high[1] + 3, height - h - 2 * pad)
    cv2.rectangle(canvas, (x, y), (x + w + 2 * pad, y + h + 2 * pad), colour, -1, cv2.LINE_AA)
    cv2.putText(canvas, text, (x + pad, y + h + pad), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)


def caption(canvas: Image, text: str) -> None:
    """White letters on a darkened strip along the lower edge."""
    height = canvas.shape[0]
    (_, h), base, scale = _measure(text, canvas)
    if (2 * h + base) * MOST_HIDDEN > height:
        return
    strip = canvas[max(0, height - h - base - h) :]
    strip[:] = (strip * 0.35).astype(np.uint8)
    cv2.putText(canvas, text, (h, height - base - h // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, PAPER, 1, cv2.LINE_AA)


def _measure(text: str, canvas: Image) -> tuple[tuple[int, int], int, float]:
    """Width and height of the text, what hangs below its line, and the font scale, all from the frame's height."""
    scale = max(0.38, min(canvas.shape[:2]) / 900)
    (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    return (w, h), base + 1, scale
