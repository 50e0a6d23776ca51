"""Scenes rendered from a seed: a koi to track in a pond, and a labelled stream that drifts.

The clip is a tracking task in small: the target bends as it swims, dives (scale, tint), rolls (its pattern moves), is
hidden under a leaf for about 0.6 s, and a look-alike passes close by; the camera follows by hand, the light changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Box
from streamdrop.testing.drift import CLASSES as CLASSES
from streamdrop.testing.drift import drift_stream as drift_stream
from streamdrop.testing.painting import Array, koi_outline, koi_skin, lily_pad, mix, noise, pond_floor
from streamdrop.types import Image

FPS = 25.0
MARGIN = 32
"""Pixels of pond beyond each border of the view, for the camera to shake in."""
WATER = (0.13, 0.30, 0.31)
HIDDEN = 0.06
"""Share of the target in view below which it counts as hidden."""
PAN = 50.0
"""Pixels per second that the camera moves along the pond."""
LIGHT = 512
"""Side of the noise that lights the floor."""
SKIN = (256, 96)
"""Length and width of the koi's painting."""


@dataclass(frozen=True)
class Pose:
    """A koi at one moment: centre (pixels of the pond), heading (radians), length (pixels), depth 0 … 1."""

    x: float
    y: float
    heading: float
    length: float
    depth: float
    phase: float
    roll: float


@dataclass(frozen=True)
class Koi:
    """A koi's painting, [SKIN width, SKIN length(, 3)]: colours, and opacity of body and of fins."""

    skin: Array
    body: Array
    fins: Array


@dataclass(frozen=True)
class Leaf:
    """A lily pad: centre in the pond, radius, painting."""

    x: int
    y: int
    radius: int
    colour: Array
    alpha: Array


def render_clip(
    seed: int = 0, frames: int = 300, size: tuple[int, int] = (480, 360)
) -> Iterator[tuple[Image, Box | None]]:
    """Frames, uint8 H×W×3 RGB at 25 fps, each with the target's whole extent (x, y, w, h), None while it is hidden.

    ``size`` is (width, height). The box covers what a leaf hides of a target that is partly in view. The same seed,
    number of frames and size give the same clip.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    pan = float(rng.choice([-1.0, 1.0])) * PAN * np.arange(frames) / FPS
    pan -= min(0.0, pan[-1])
    world = (width + 2 * MARGIN + int(pan.max()) + 2, height + 2 * MARGIN)
    floor = pond_floor(rng, world[1], world[0])
    light = noise(rng, LIGHT, LIGHT, 46, 2)
    target, look_alike = (Koi(koi_skin(rng, *SKIN), *koi_outline(*SKIN)) for _ in range(2))
    route, hide = plan(rng, pan, size)
    rival = pass_by(route, int(frames * rng.uniform(0.24, 0.30)), rng)
    leaves = grow_leaves(rng, route, hide, world)
    shake = rng.normal(0, 1, (frames, 3))
    for t in range(frames):
        left, part = int(pan[t]), pan[t] - int(pan[t])
        scene = floor[:, left : left + width + 2 * MARGIN]
        scene = scene * (0.72 + 0.75 * caustics(light, t, scene.shape, left))[..., None]
        swim_in(scene, look_alike, replace(rival[t], x=rival[t].x - left))
        alpha = swim_in(scene, target, replace(route[t], x=route[t].x - left))
        covered = np.zeros_like(alpha)
        for leaf in leaves:
            cover(scene, covered, replace(leaf, x=leaf.x - left))
        matrix = camera(t, shake, size, part)
        view = cv2.warpAffine(scene, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        both = np.dstack([alpha, alpha * (1 - covered)])
        seen = cv2.warpAffine(both, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        yield expose(view, t, frames, rng), box_of(seen[..., 0], seen[..., 1])


def swim(rng: np.random.Generator, pan: Array, size: tuple[int, int]) -> list[Pose]:
    """The target's way through the pond, in the camera's direction, up and down, deeper and shallower."""
    t = np.arange(len(pan)) / FPS
    a, b, c, d = rng.uniform(0, 2 * np.pi, 4)
    x = MARGIN + size[0] / 2 + pan + 0.12 * size[0] * np.sin(0.5 * t + a)
    y = MARGIN + size[1] / 2 + 0.17 * size[1] * np.sin(0.65 * t + b) + 4 * np.sin(2.3 * t + c)
    heading = np.unwrap(np.arctan2(np.gradient(y), np.gradient(x)))
    depth = 0.5 - 0.5 * np.cos(0.75 * t + d)
    length = min(size) * (0.36 - 0.14 * depth)
    roll = 0.22 * np.sin(0.9 * t + c)
    phase = np.cumsum(0.18 + 0.05 * np.sin(0.8 * t + a))
    return [Pose(*(float(v) for v in row)) for row in zip(x, y, heading, length, depth, phase, roll, strict=True)]


def pass_by(route: list[Pose], when: int, rng: np.random.Generator) -> list[Pose]:
    """A second koi crossing the target's way against its direction, closest (about a body's width) at ``when``."""
    met = route[when]
    across = met.heading + np.pi / 2
    gap = 0.62 * met.length * float(rng.choice([-1.0, 1.0]))
    heading = met.heading + np.pi + float(rng.uniform(-0.35, 0.35))
    x, y = met.x + gap * np.cos(across), met.y + gap * np.sin(across)
    way = [3.6 * (t - when) for t in range(len(route))]
    return [
        Pose(x + s * np.cos(heading), y + s * np.sin(heading), heading, met.length, met.depth, 0.24 * t, 0.1)
        for t, s in enumerate(way)
    ]


def plan(rng: np.random.Generator, pan: Array, size: tuple[int, int]) -> tuple[list[Pose], tuple[int, float]]:
    """A way, with the frame at which a leaf hides the target and the radius: in plain view first, hidden once.

    Of up to 100 ways the first that keeps clear of the leaf at all other times, or the clearest.
    """
    best = None
    for _ in range(100):
        route = swim(rng, pan, size)
        when, radius, clearance = hiding_place(route)
        if best is None or clearance > best[0]:
            best = clearance, route, (when, radius)
        if clearance > 0:
            break
    assert best is not None
    return best[1], best[2]


def hiding_place(route: list[Pose]) -> tuple[int, float, float]:
    """Where the target swims fastest in mid-clip; the radius that hides it there for 0.6 s; pixels of clearance.

    Clearance: how far the leaf stays from the target's middle at other times, and from all of it at the beginning.
    """
    way = np.array([(p.x, p.y) for p in route])
    length, time = np.array([p.length for p in route]), np.linspace(0, 1, len(route))
    speed = np.hypot(*np.gradient(way, axis=0).T) / length
    when = int(np.argmax(speed * (np.abs(time - 0.55) < 0.13)))
    window = slice(max(0, when - 6), when + 7)
    radius = float((np.hypot(*(way[window] - way[when]).T) + 0.5 * length[window]).max())
    gap = np.hypot(*(way - way[when]).T) - radius
    away = np.abs(time - time[when]) > 0.1
    return when, radius, min(float(gap[away].min(initial=np.inf)), float((gap - 0.6 * length)[time < 0.15].min()))


def grow_leaves(
    rng: np.random.Generator, route: list[Pose], hide: tuple[int, float], world: tuple[int, int]
) -> list[Leaf]:
    """The leaf that hides the target, its notch beside the way; others where the target never comes."""
    when, reach = hide
    leaves = [_leaf(rng, route[when].x, route[when].y, reach, route[when].heading + np.pi / 2)]
    way = np.array([(p.x, p.y) for p in route])
    for _ in range(400):
        px, py, radius = rng.uniform(0, world[0]), rng.uniform(0, world[1]), rng.uniform(16, 40)
        clear = np.hypot(*(way - (px, py)).T).min() > radius + 0.34 * route[0].length
        apart = all(np.hypot(leaf.x - px, leaf.y - py) > 0.8 * (leaf.radius + radius) for leaf in leaves)
        if clear and apart and len(leaves) < world[0] // 50:
            leaves.append(_leaf(rng, px, py, radius, float(rng.uniform(0, 2 * np.pi))))
    return leaves


def _leaf(rng: np.random.Generator, x: float, y: float, radius: float, turn: float) -> Leaf:
    return Leaf(round(x), round(y), round(radius), *lily_pad(rng, round(radius), turn))


def caustics(light: Array, t: int, shape: tuple[int, ...], left: int) -> Array:
    """Light that waves cast on the floor, [H, W] in [0, 1]: ridges between two drifting noises."""
    rows, columns = np.arange(shape[0]), np.arange(shape[1]) + left
    one = light[np.ix_(_folded(rows + round(0.9 * t)), _folded(columns + round(0.5 * t)))]
    two = light[np.ix_(_folded(rows + 300 - round(0.6 * t)), _folded(columns + 190 + round(0.8 * t)))]
    ridge = 1 - np.abs(one - two)
    return np.asarray(ridge * ridge * ridge * ridge * ridge * ridge, np.float32)


def _folded(index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices running back and forth through the noise, so that no seam shows."""
    return np.abs((index + LIGHT) % (2 * LIGHT - 2) - (LIGHT - 1))


def swim_in(scene: Array, koi: Koi, pose: Pose) -> Array:
    """Draws a koi and its shadow into the scene, in place; returns its opacity [H, W].

    A point's place along the body is its distance along the heading; the body's bend shifts it sideways, so that the
    inverse of the deformation is exact.
    """
    opacity = np.zeros(scene.shape[:2], np.float32)
    reach = 0.75 * pose.length + 30
    y0, y1 = (int(np.clip(v, 0, scene.shape[0])) for v in (pose.y - reach, pose.y + reach))
    x0, x1 = (int(np.clip(v, 0, scene.shape[1])) for v in (pose.x - reach, pose.x + reach))
    if y1 <= y0 or x1 <= x0:
        return opacity
    column, row = _along_and_across(pose, (x0, x1), (y0, y1))
    body, fins = (cv2.remap(part, column, row, cv2.INTER_LINEAR) for part in (koi.body, koi.fins))
    rolled = row + np.float32(pose.roll * SKIN[1])
    colour = cv2.remap(koi.skin, column, rolled, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    tinted = mix(colour, WATER, np.full(column.shape, 0.08 + 0.27 * pose.depth, np.float32))
    alpha = np.clip(body + 0.62 * fins, 0, 1)[..., None]
    below = scene[y0:y1, x0:x1] * (1 - 0.42 * _shadow(alpha[..., 0], pose)[..., None])
    scene[y0:y1, x0:x1] = below * (1 - alpha) + tinted * alpha
    opacity[y0:y1, x0:x1] = np.maximum(body, fins)
    return opacity


def _along_and_across(pose: Pose, x: tuple[int, int], y: tuple[int, int]) -> tuple[Array, Array]:
    """For each pixel of a window the column and row of the koi's painting that it shows."""
    dy, dx = np.mgrid[y[0] : y[1], x[0] : x[1]].astype(np.float32)
    dx, dy = dx - np.float32(pose.x), dy - np.float32(pose.y)
    cos, sin = np.float32(np.cos(pose.heading)), np.float32(np.sin(pose.heading))
    along = (dx * cos + dy * sin) / np.float32(pose.length) + np.float32(0.5)
    aside = (dy * cos - dx * sin) / np.float32(pose.length)
    bend = 0.085 * (1.15 - along) * np.sin(np.float32(1.5 * np.pi) * along + np.float32(pose.phase))
    across = (aside - bend) / np.float32(0.42) + np.float32(0.5)
    return (along * SKIN[0]).astype(np.float32), (across * SKIN[1]).astype(np.float32)


def _shadow(alpha: Array, pose: Pose) -> Array:
    """The koi's outline moved down and right, further the higher it swims, and blurred."""
    offset = 5 + 9 * (1 - pose.depth)
    moved = cv2.warpAffine(alpha, np.array([[1, 0, offset], [0, 1, offset]], np.float32), alpha.shape[::-1])
    return np.asarray(cv2.GaussianBlur(moved, (0, 0), 3.5), np.float32)


def cover(scene: Array, covered: Array, leaf: Leaf) -> None:
    """Lays a leaf over the scene, in place."""
    height, width = covered.shape
    x0, y0, r = max(leaf.x - leaf.radius, 0), max(leaf.y - leaf.radius, 0), leaf.radius
    x1, y1 = min(leaf.x + r + 1, width), min(leaf.y + r + 1, height)
    if x1 <= x0 or y1 <= y0:
        return
    part = np.s_[y0 - leaf.y + r : y1 - leaf.y + r, x0 - leaf.x + r : x1 - leaf.x + r]
    alpha = leaf.alpha[part]
    scene[y0:y1, x0:x1] = scene[y0:y1, x0:x1] * (1 - alpha[..., None]) + leaf.colour[part] * alpha[..., None]
    covered[y0:y1, x0:x1] = np.maximum(covered[y0:y1, x0:x1], alpha)


def camera(t: int, shake: Array, size: tuple[int, int], part: float) -> Array:
    """From view to pond: a hand's slow sway and quick tremble, with a little rotation; 2×3."""
    s = t / FPS
    x = MARGIN + part + 11 * np.sin(0.9 * s + shake[0, 0]) + 4 * np.sin(3.1 * s) + 0.9 * shake[t, 0]
    y = MARGIN + 8 * np.sin(1.1 * s + shake[0, 1]) + 3 * np.sin(4.3 * s) + 0.9 * shake[t, 1]
    angle = 0.018 * np.sin(1.3 * s) + 0.002 * shake[t, 2]
    cos, sin = np.cos(angle), np.sin(angle)
    cx, cy = size[0] / 2, size[1] / 2
    return np.array([[cos, -sin, x + cx - cos * cx + sin * cy], [sin, cos, y + cy - sin * cx - cos * cy]], np.float32)


def expose(view: Array, t: int, frames: int, rng: np.random.Generator) -> Image:
    """The camera's picture: a cloud passes in the last third, a vignette, a little sensor noise; uint8."""
    height, width = view.shape[:2]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    cloud = 0.33 * np.exp(-(((t / frames - 0.80) / 0.09) ** 2)) * np.array((1.0, 0.92, 0.78))
    bright = (255 * (1.18 - 0.10 * (x * x + y * y)))[..., None] * (1 - cloud).astype(np.float32)
    grain = 1.2 * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.asarray(np.clip(view * bright + grain, 0, 255).astype(np.uint8))


def box_of(alpha: Array, seen: Array) -> Box | None:
    """The extent of what is more than half opaque; None when (nearly) none of it is seen."""
    solid = alpha > 0.5
    if not solid.any() or seen.sum() < HIDDEN * alpha.sum():
        return None
    columns, rows = np.flatnonzero(solid.any(0)), np.flatnonzero(solid.any(1))
    x, y = float(columns[0]), float(rows[0])
    return Box(x, y, columns[-1] + 1.0 - x, rows[-1] + 1.0 - y)
