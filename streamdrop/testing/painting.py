"""What the sample clip is painted with: noise, a pond's floor, koi, lily pads. Floats in [0, 1], RGB."""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def noise(rng: np.random.Generator, height: int, width: int, coarse: float, octaves: int = 4) -> Array:
    """Smooth noise [height, width] in [0, 1]: octaves of random grids, the first with cells of ``coarse`` pixels."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cell = max(1.0, coarse / 2**octave)
        grid = rng.random((int(height / cell) + 4, int(width / cell) + 4), dtype=np.float32)
        scaled = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += scaled[int(cell) : int(cell) + height, int(cell) : int(cell) + width] / 2**octave
    low, high = np.percentile(total, (1, 99))
    return np.asarray(np.clip((total - low) / (high - low), 0, 1), np.float32)


def mix(a: Array, b: npt.ArrayLike, share: Array | float) -> Array:
    """``a`` [..., 3] moved towards the colour ``b`` by ``share`` [...]."""
    weight = np.asarray(share, np.float32)[..., None]
    return np.asarray(a * (1 - weight) + np.asarray(b, np.float32) * weight, np.float32)


def pond_floor(rng: np.random.Generator, height: int, width: int) -> Array:
    """A floor of mud, pebbles and weed, [height, width, 3]."""
    floor = mix(
        np.full((height, width, 3), (0.20, 0.30, 0.27), np.float32), (0.42, 0.44, 0.33), noise(rng, height, width, 90)
    )
    for radius in np.sort(rng.uniform(3, 17, height * width // 550))[::-1]:
        _pebble(rng, floor, float(radius))
    weed = noise(rng, height, width, 60, 5)
    floor = mix(floor, (0.10, 0.27, 0.17), np.clip((weed - 0.62) * 4, 0, 0.8))
    return np.clip(floor * (0.86 + 0.28 * noise(rng, height, width, 6, 2)[..., None]), 0, 1).astype(np.float32)


def _pebble(rng: np.random.Generator, floor: Array, radius: float) -> None:
    """One stone with a shadow and a lit edge."""
    height, width = floor.shape[:2]
    centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
    axes = (int(radius), max(2, int(radius * rng.uniform(0.55, 0.95))))
    angle = float(rng.uniform(0, 180))
    base = np.array((0.47, 0.47, 0.42)) * rng.uniform(0.55, 1.25) + rng.normal(0, 0.025, 3)
    shadow = (centre[0] + 2, centre[1] + 2)
    for where, size, shade in (
        (shadow, axes, 0.3),
        (centre, axes, 1.0),
        ((centre[0] - 1, centre[1] - 1), _inner(axes), 1.18),
    ):
        colour = tuple(float(v) for v in np.clip(base * shade, 0, 1))
        cv2.ellipse(floor, where, size, angle, 0, 360, colour, -1, cv2.LINE_AA)


def _inner(axes: tuple[int, int]) -> tuple[int, int]:
    return max(1, int(axes[0] * 0.65)), max(1, int(axes[1] * 0.6))


def koi_skin(rng: np.random.Generator, length: int, width: int) -> Array:
    """The pattern of a koi's back, [width, length, 3], head at the right: orange and dark patches on cream, scales."""
    skin = np.full((width, length, 3), (0.93, 0.88, 0.79), np.float32)
    orange = noise(rng, width, length, width * 0.75, 3)
    skin = mix(skin, (0.89, 0.34, 0.10), np.clip((orange - 0.42) * 14, 0, 1))
    dark = noise(rng, width, length, width * 0.45, 3)
    skin = mix(skin, (0.10, 0.10, 0.13), np.clip((dark - 0.74) * 14, 0, 1))
    y, x = np.mgrid[0:width, 0:length].astype(np.float32)
    scales = np.abs(np.sin(x * 0.32 + np.sin(y * 0.4))) * np.abs(np.sin(y * 0.4))
    back = 1 - np.abs(y / width - 0.5) * 2
    return np.asarray(np.clip(skin * (0.72 + 0.33 * back + 0.10 * scales)[..., None], 0, 1), np.float32)


def koi_outline(length: int, width: int) -> tuple[Array, Array]:
    """Opacity [width, length] of body and of fins and tail, head at the right; the body takes 0.55 of the width."""
    u = np.linspace(0, 1, length, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, width, dtype=np.float32)[:, None]
    belly = (
        0.55 * np.sqrt(np.clip(1 - ((u - 0.64) / 0.37) ** 2, 0, None)) * np.where(u < 0.64, 0.25 + 0.75 * u / 0.64, 1)
    )
    body = np.clip((np.maximum(belly, 0.07 * (u > 0.2) * (u < 0.64)) - np.abs(v)) * width * 0.5, 0, 1)
    spread = np.clip((0.30 - u) / 0.30, 0, 1)
    tail = np.clip((0.06 + 0.62 * spread - np.abs(v)) * width * 0.4, 0, 1) * (
        np.abs(v) > 0.55 * (0.12 - u) / 0.12 * spread
    )
    pectoral = ((u - 0.70 + (np.abs(v) - 0.4) * 0.28) / 0.075) ** 2 + ((np.abs(v) - 0.62) / 0.36) ** 2
    fins = np.maximum(tail * (u < 0.32), np.clip((1 - pectoral) * 4, 0, 1))
    return body.astype(np.float32), (fins * (1 - body)).astype(np.float32)


def lily_pad(rng: np.random.Generator, radius: int, turn: float) -> tuple[Array, Array]:
    """A leaf seen from above: colour [2r+1, 2r+1, 3] and opacity, with veins and a narrow notch towards ``turn``."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    distance, angle = np.hypot(x, y) / radius, np.arctan2(y, x)
    around = np.angle(np.exp(1j * (angle - turn))).astype(np.float32)
    rim = 0.965 + 0.02 * np.sin(5 * angle + turn) + 0.012 * np.sin(11 * angle)
    alpha = np.clip((rim - distance) * radius, 0, 1) * np.clip(
        (np.abs(around) - 0.10 * distance) * distance * radius * 0.5, 0, 1
    )
    leaf = np.full((*x.shape, 3), (0.24, 0.47, 0.16), np.float32) * float(rng.uniform(0.85, 1.1))
    leaf = mix(leaf, (0.42, 0.58, 0.22), 0.7 * noise(rng, 2 * radius + 1, 2 * radius + 1, radius * 0.5))
    veins = np.clip(1 - np.abs(np.sin(around * 9)) * distance * radius * 0.16, 0, 1) * (distance > 0.06)
    leaf = mix(leaf, (0.60, 0.70, 0.36), 0.6 * veins)
    leaf = mix(leaf, (0.36, 0.22, 0.12), np.clip((distance - 0.90) * 7, 0, 0.6))
    return np.clip(leaf, 0, 1).astype(np.float32), alpha.astype(np.float32)
