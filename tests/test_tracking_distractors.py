"""Look-alikes: they are followed beside the target, and not taken for it when it is hidden."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from streamdrop.boxes import Box
from streamdrop.tracking.config import SearchConfig, TrackerConfig
from streamdrop.tracking.crops import View
from streamdrop.tracking.distractors import Distractor, followed, peaks
from streamdrop.tracking.eye import Map
from streamdrop.tracking.labels import gaussian_label
from streamdrop.tracking.search import Motion, best_peak, crop_views

LENGTH = 40.0


def bump(view: View, place: tuple[float, float], height: float) -> Map:
    """Scores [S/8, S/8] of a thing of ``LENGTH`` at a place of the frame."""
    x, y = view.to_crop(*place)
    half = LENGTH / view.scale / 2
    return height * gaussian_label(Box(x - half, y - half, 2 * half, 2 * half), view.size, 0.18).numpy()


def test_peaks_are_places_of_the_frame_best_first_and_each_once() -> None:
    views = [View(100, 100, 180, 256), View(150, 100, 180, 256)]
    scores = np.stack([bump(v, (80, 90), 0.5) + bump(v, (150, 120), 0.9) + bump(v, (60, 150), 0.1) for v in views])
    found = peaks(scores, views, LENGTH)
    assert found == [pytest.approx((150, 120), abs=4), pytest.approx((80, 90), abs=4)]


def test_nothing_is_a_peak_of_an_empty_map() -> None:
    assert peaks(np.zeros((1, 32, 32), np.float32), [View(0, 0, 64, 256)], LENGTH) == []


def test_one_that_passes_behind_the_target_is_the_same_afterwards() -> None:
    known: list[Distractor] = []
    for frame in range(60):
        place = (300 - 5.0 * frame, 110.0)
        seen = [(150.0, 100.0)] if abs(place[0] - 150) < 30 else [(150.0, 100.0), place]
        known = followed(known, seen, (150.0, 100.0), LENGTH, certain=True)
    assert [one.beside for one in known] == [60 - 11]
    assert known[0].x == 300 - 5.0 * 59
    assert known[0].vx == pytest.approx(-5, abs=0.1)


def test_one_that_is_gone_is_forgotten_and_what_an_uncertain_target_shows_proves_nothing() -> None:
    known = followed([], [(10.0, 10.0)], (150.0, 100.0), LENGTH, certain=False)
    known = followed(known, [(10.0, 10.0)], (150.0, 100.0), LENGTH, certain=False)
    assert [one.beside for one in known] == [0]
    for _ in range(20):
        known = followed(known, [], (150.0, 100.0), LENGTH, certain=True)
    assert known == []


def watched(config: TrackerConfig, frames: int) -> Motion:
    """A target at (200, 200) that scored well beside a look-alike at (260, 200), for so many frames."""
    motion = Motion.starting(Box(180, 180, 40, 40), 640, 480)
    for _ in range(frames):
        look(motion, config, target=0.9, other=0.6)
    return motion


def look(motion: Motion, config: TrackerConfig, target: float, other: float) -> tuple[float, float] | None:
    """One frame; where the target is found in it."""
    motion.advance(640, 480)
    views = crop_views(motion, config)
    scores = np.stack([bump(view, (200, 200), target) + bump(view, (260, 200), other) for view in views])
    peak = best_peak(scores, views, motion, config)
    found = motion.judge(peak, config.lost)
    place = views[peak.view].to_frame(peak.x, peak.y)
    if found:
        motion.move(Box(place[0] - 20, place[1] - 20, 40, 40), config.box)
    motion.note_distractors(scores, views, found, config)
    return place if found else None


def test_a_look_alike_is_not_taken_for_a_hidden_target() -> None:
    config = TrackerConfig()
    motion = watched(config, 10)
    assert all(look(motion, config, target=0.0, other=0.8) is None for _ in range(20))
    assert look(motion, config, target=0.7, other=0.8) == pytest.approx((200, 200), abs=4)


def test_without_the_memory_it_is() -> None:
    config = TrackerConfig(search=SearchConfig(distractors=0))
    motion = watched(config, 10)
    found = [look(motion, config, target=0.0, other=0.8) for _ in range(5)]
    assert (260, 200) in [place and pytest.approx(place, abs=4) for place in found]
    assert motion.distractors == []


def test_after_a_long_time_the_tracker_admits_that_it_may_have_mistaken_one_for_the_other() -> None:
    config = TrackerConfig()
    motion = watched(config, 10)
    found = [look(motion, config, target=0.0, other=0.8) for _ in range(60)]
    assert found[-1] == pytest.approx((260, 200), abs=4)


def test_where_the_target_is_expected_it_counts_whatever_was_seen_there() -> None:
    config = TrackerConfig()
    motion = watched(config, 10)
    motion.distractors = [Distractor(205, 200, beside=30)]
    assert look(motion, config, target=0.9, other=0.0) == pytest.approx((200, 200), abs=4)


def test_distractors_are_saved_with_the_target_and_forgotten_in_a_frame_of_another_size() -> None:
    motion = watched(TrackerConfig(), 5)
    again = Motion.restored(json.loads(json.dumps(dataclasses.asdict(motion))))
    assert again == motion
    assert [one.beside for one in again.distractors] == [5]
    again.advance(320, 240)
    assert again.distractors == []
