"""A small labelled stream whose distribution drifts."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from streamdrop.testing.painting import Array, noise

CLASSES = ("disc", "square", "triangle", "ring", "cross", "star", "bars", "crescent")
SIDE = 32
TEXTURES = 512
"""Side of the noise that textures are cut from."""
FINE = 3
"""Shapes are drawn this much larger, for smooth edges."""


def drift_stream(seed: int = 0, n: int = 2000) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``images`` uint8 [n, 32, 32, 3] and ``labels`` int64 [n] in order of arrival: textured shapes of 8 classes.

    From first to last the shapes turn ever further, the light fades, colours move around the wheel, and dark shapes on
    bright ground become bright shapes on dark ground. Values are multiples of 8, so that the file packs well.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), n)
    textures = noise(rng, TEXTURES, TEXTURES, 8, 2) - 0.5
    images = np.stack([_picture(rng, textures, CLASSES[label], i / max(1, n - 1)) for i, label in enumerate(labels)])
    return images, labels.astype(np.int64)


def _picture(rng: np.random.Generator, textures: Array, shape: str, time: float) -> npt.NDArray[np.uint8]:
    """One image at ``time`` 0 … 1 of the drift."""
    mask = _mask(rng, shape, time)[..., None]
    x, y = rng.integers(0, TEXTURES - SIDE, 2)
    texture = textures[y : y + SIDE, x : x + SIDE, None]
    ground = _colour(0.10 + 0.55 * time + rng.normal(0, 0.04), 0.45, 0.80 - 0.50 * time)
    paint = _colour(0.62 + 0.55 * time + rng.normal(0, 0.05), 0.75, 0.38 + 0.50 * time)
    picture = ground + 0.22 * texture * (1 - mask) + (paint - ground + 0.25 * texture) * mask
    picture *= rng.uniform(0.9, 1.1) * (1 - 0.25 * time)
    return np.asarray(np.clip(np.round(picture * 32) * 8, 0, 255).astype(np.uint8))


def _colour(hue: float, saturation: float, value: float) -> Array:
    pixel = np.array([[[hue % 1.0 * 360, saturation, value]]], np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0], np.float32)


def _mask(rng: np.random.Generator, shape: str, time: float) -> Array:
    """Where the shape is, [32, 32] in [0, 1], at a random place, size and turn (up to ±10° first, ±70° at last)."""
    angle = np.deg2rad(rng.uniform(-1, 1) * (10 + 60 * time))
    radius = rng.uniform(8.5, 12.0)
    centre = SIDE / 2 + rng.uniform(-2.5, 2.5, 2)
    y, x = (np.mgrid[0 : SIDE * FINE, 0 : SIDE * FINE] + 0.5) / FINE
    dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy
    inside = _inside(shape, u, v).astype(np.float32)
    return np.asarray(inside.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3)), np.float32)


def _inside(shape: str, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which points of the plane belong to a shape of radius 1."""
    r, turn = np.hypot(u, v), np.arctan2(v, u)
    shapes = {
        "disc": r < 0.9,
        "square": np.maximum(abs(u), abs(v)) < 0.8,
        "triangle": (v < 0.7) & (v > 1.9 * abs(u) - 1.0),
        "ring": (r < 1.0) & (r > 0.55),
        "cross": (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95),
        "star": r < 0.62 + 0.38 * np.cos(5 * turn + np.pi / 2),
        "bars": (np.maximum(abs(u), abs(v)) < 0.95) & (np.cos(v * 3 * np.pi) > 0),
        "crescent": (r < 1.0) & (np.hypot(u - 0.45, v) > 0.75),
    }
    return np.asarray(shapes[shape])
