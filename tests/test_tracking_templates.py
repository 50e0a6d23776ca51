"""Where a lost target might be at a glance: places that look like it, and their turn among the crops searched."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tracker import SMALL

from streamdrop.boxes import Box
from streamdrop.config import load
from streamdrop.errors import ConfigError
from streamdrop.tracking import Tracker
from streamdrop.tracking.config import LostConfig, TrackerConfig
from streamdrop.tracking.search import Motion, crop_views
from streamdrop.tracking.templates import Templates

HEIGHT, WIDTH = 240, 360


def scene(place: tuple[float, float] | None, size: tuple[int, int] = (40, 30), seed: int = 0) -> np.ndarray:
    """Noise of soft patches, with a patterned thing of ``size`` around a place."""
    random = np.random.default_rng(seed)
    image = np.kron(random.integers(60, 200, (HEIGHT // 20, WIDTH // 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    if place is not None:
        thing = np.kron(np.random.default_rng(99).integers(0, 256, (5, 5, 3)), np.ones((size[1] // 5, size[0] // 5, 1)))
        x, y = round(place[0] - size[0] / 2), round(place[1] - size[1] / 2)
        image[y : y + size[1], x : x + size[0]] = thing
    return image


def box_at(x: float, y: float, size: tuple[int, int] = (40, 30)) -> Box:
    return Box(x - size[0] / 2, y - size[1] / 2, *size)


@pytest.mark.parametrize("size", [(10, 10), (40, 30), (25, 80), (150, 100)])
def test_the_place_that_looks_like_the_target_comes_first(size: tuple[int, int]) -> None:
    templates = Templates.of(scene((100, 120), size), box_at(100, 120, size))
    found = templates.places(scene((270, 130), size, seed=1), box_at(100, 120, size), 3)
    assert found[0] == pytest.approx((270, 130), abs=max(2.0, math.sqrt(size[0] * size[1]) / 8))


def test_what_it_looked_like_last_is_known_too_and_what_it_was_given_as_not_forgotten() -> None:
    first, later = scene((100, 120)), scene((200, 100))[:, :, ::-1].copy()
    templates = Templates.of(first, box_at(100, 120))
    templates.see(later, box_at(200, 100))
    for image, place in ((first, (100, 120)), (later, (200, 100))):
        assert templates.places(image, box_at(0, 0), 1)[0] == pytest.approx(place, abs=3)


def test_places_lie_apart_and_nothing_is_like_a_target_that_is_not_there() -> None:
    templates = Templates.of(scene((100, 120)), box_at(100, 120))
    found = templates.places(scene((270, 130), seed=1), box_at(100, 120), 5)
    assert all(abs(a[0] - b[0]) >= 40 or abs(a[1] - b[1]) >= 30 for a in found for b in found if a is not b)
    assert templates.places(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), box_at(100, 120), 3) == []


def test_a_target_without_a_pattern_is_like_nothing() -> None:
    flat = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    assert Templates.of(flat, box_at(100, 120)).places(scene((270, 130)), box_at(100, 120), 3) == []


@given(
    x=st.floats(0, WIDTH),
    y=st.floats(0, HEIGHT),
    w=st.floats(1, 900),
    h=st.floats(1, 900),
    shape=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    seed=st.integers(0, 3),
)
def test_whatever_the_box_places_are_of_the_frame(
    x: float, y: float, w: float, h: float, shape: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    box = Box(x - w / 2, y - h / 2, w, h)
    templates = Templates.of(image, box)
    templates.see(image, box)
    for u, v in templates.places(image, box, 3):
        assert 0 <= u <= shape[1]
        assert 0 <= v <= shape[0]


def test_the_pictures_come_back() -> None:
    templates = Templates.of(scene((100, 120)), box_at(100, 120))
    templates.see(scene((200, 100))[:, :, ::-1].copy(), box_at(200, 100))
    again, image = Templates.restored(templates.state()), scene((270, 130), seed=1)
    assert again.places(image, box_at(0, 0), 3) == templates.places(image, box_at(0, 0), 3)
    with pytest.raises(KeyError):
        Templates.restored({})


# ---------------------------------------------------------------- among the crops


def lost(config: TrackerConfig, frames: int, likely: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The middles of the crops beyond the first, frame by frame, of a target that is lost."""
    motion, found = Motion.starting(Box(280, 220, 20, 20), 640, 480), []
    for _ in range(frames):
        motion.lost += 1
        motion.advance(640, 480)
        found.append([(view.x, view.y) for view in crop_views(motion, config, likely=likely)[1:]])
    return found


LIKELY = [(500.0, 400.0), (60.0, 80.0)]


def test_likely_places_take_turns_and_the_sweep_goes_on_beside_them() -> None:
    config = TrackerConfig(lost=LostConfig(windows=2))
    frames = lost(config, 200, LIKELY)
    assert [views[0] for views in frames[:4]] == [*LIKELY, *LIKELY]
    swept, alone = [views[1] for views in frames], lost(config, 100, [])
    assert swept == [view for views in alone for view in views]


def test_with_one_crop_a_frame_they_take_every_other() -> None:
    config = TrackerConfig(lost=LostConfig(windows=1))
    frames = [views[0] for views in lost(config, 6, LIKELY)]
    assert frames[0::2] == [LIKELY[0], LIKELY[1], LIKELY[0]]
    assert frames[1::2] == [views[0] for views in lost(config, 3, [])]


def test_what_is_looked_at_anyway_is_no_likely_place() -> None:
    config = TrackerConfig(lost=LostConfig(windows=2))
    assert lost(config, 3, [(292.0, 235.0)]) == lost(config, 3, [])


def test_fewer_than_no_places_are_refused() -> None:
    with pytest.raises(ConfigError, match="likely is -1: give a whole number of at least 0"):
        LostConfig(likely=-1)


def jumped(likely: int) -> list[bool]:
    """Whether the target is lost in the frames after it has jumped across the frame."""
    config = load(SMALL, TrackerConfig)
    config = dataclasses.replace(config, lost=dataclasses.replace(config.lost, likely=likely))
    tracker = Tracker(config)
    tracker.init(scene((60, 60), (20, 20)), box_at(60, 60, (20, 20)))
    for step in range(8):
        tracker.update(scene((60 + 2 * step, 60), (20, 20)))
    tracks = [tracker.update(scene((310, 200), (20, 20))) for _ in range(10)]
    tracker.close()
    found = [not t.lost and math.dist(t.box.centre, (310, 200)) < 10 for t in tracks]
    return [not one for one in found]


@pytest.mark.slow
def test_a_target_that_jumps_across_the_frame_is_found_sooner() -> None:
    assert sum(jumped(likely=3)) < sum(jumped(likely=0))
