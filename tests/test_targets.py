"""Several targets in one video: alone as a tracker, together in one pass, rounds in turns, saved and restored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tracker import SMALL

from streamdrop import Box, Targets, Track, Tracker
from streamdrop.boxes import iou
from streamdrop.checkpoint import read_checkpoint
from streamdrop.errors import BoxError, CheckpointError, ConfigError, DataError, StreamdropError
from streamdrop.testing.targets import moving_square, moving_squares
from streamdrop.tracking.config import RealtimeConfig, SearchConfig, TrackerConfig
from streamdrop.tracking.crops import View, take
from streamdrop.tracking.eye import Eye
from streamdrop.tracking.learner import Learner
from streamdrop.tracking.saved_targets import read_targets, write_targets
from streamdrop.tracking.search import Motion
from streamdrop.tracking.sheets import Area, Sheet, grouped
from streamdrop.tracking.turns import Turns
from streamdrop.types import Image

SEARCH = SearchConfig(size=128)
_SHARED: dict[str, Targets] = {}


def small(**changes: Any) -> Targets:
    """Targets that tests may hand on to each other: ``init`` forgets all that was."""
    if repr(changes) not in _SHARED:
        _SHARED[repr(changes)] = Targets.from_config({**SMALL, **changes})
    return _SHARED[repr(changes)]


def follow(targets: Targets, images: list[Image], boxes: Any) -> list[dict[int, Track]]:
    return [targets.init(images[0], boxes), *(targets.update(image) for image in images[1:])]


def without_clock(found: dict[int, Track]) -> dict[int, Any]:
    def plain(track: Track) -> Any:
        rounds = [(one.round, one.cut, one.loss) for one in track.reports]
        return track.frame, track.box, track.score, track.lost, rounds

    return {key: plain(track) for key, track in found.items()}


@pytest.mark.slow
def test_one_target_gives_the_tracks_of_a_tracker_bit_for_bit() -> None:
    images, truth = moving_square(14)
    tracker = Tracker.from_config({**SMALL, "update": {**SMALL["update"], "early": 4}})
    targets = small(update={**SMALL["update"], "early": 4})
    alone = [tracker.init(images[0], truth[0]), *(tracker.update(image) for image in images[1:])]
    together = follow(targets, images, [truth[0]])
    assert [without_clock(found) for found in together] == [without_clock({1: track}) for track in alone]
    assert sum(len(track.reports) for track in alone) > 5


@pytest.mark.slow
def test_near_targets_are_followed_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    images, truth = moving_squares(16, count=3)
    targets = small()
    targets.init(images[0], [boxes[0] for boxes in truth])
    passes = count_passes(monkeypatch)
    found = [targets.update(image) for image in images[1:]]
    assert len(passes) < 1.4 * len(found)  # but for the second look at another size, now and then
    for key, boxes in enumerate(truth, 1):
        overlaps = iou([tracks[key].box for tracks in found], boxes[1:])
        assert overlaps.mean() > 0.6
        assert overlaps.min() > 0.35
    assert all(sum(len(track.reports) for track in tracks.values()) <= 1 for tracks in found)
    assert {key for tracks in found for key, track in tracks.items() if track.reports} == {1, 2, 3}


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every pass of a backbone."""
    passes: list[str] = []
    for owner, name in ((Eye, "__call__"), (Learner, "maps")):
        inner = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, crops, inner=inner, name=name: passes.append(name) or inner(self, crops)
        )
    return passes


@pytest.mark.slow
def test_targets_apart_are_followed_as_by_trackers() -> None:
    """Under ``fixed`` nobody borrows anything; no rounds, so that no turns are waited for."""
    images, truth = moving_squares(6, count=2, apart=150, shape=(120, 400))
    config = {**SMALL, "strategy": "fixed", "update": {**SMALL["update"], "early": 0, "every": 100}}
    found = follow(Targets.from_config(config), images, [boxes[0] for boxes in truth])
    for key, boxes in enumerate(truth, 1):
        tracker = Tracker.from_config(config)
        alone = [tracker.init(images[0], boxes[0]), *(tracker.update(image) for image in images[1:])]
        assert [without_clock({key: tracks[key]}) for tracks in found] == [without_clock({key: t}) for t in alone]


@pytest.mark.slow
def test_the_order_in_which_boxes_are_given_plays_no_part() -> None:
    images, truth = moving_squares(8, count=3)
    boxes = {key: one[0] for key, one in enumerate(truth, 1)}
    forwards = [without_clock(found) for found in follow(small(), images, boxes)]
    backwards = [without_clock(found) for found in follow(small(), images, dict(reversed(boxes.items())))]
    assert forwards == backwards
    assert [*forwards[0]] == [1, 2, 3]


@pytest.mark.slow
def test_without_rounds_and_borrowing_ids_play_no_part_either() -> None:
    images, truth = moving_squares(6, count=3)
    targets = small(strategy="none")
    one = follow(targets, images, [boxes[0] for boxes in truth])
    other = follow(targets, images, {9 - key: boxes[0] for key, boxes in enumerate(truth)})
    for key in range(3):
        first, second = (
            [(tracks[at].box, tracks[at].score) for tracks in found] for found, at in ((one, key + 1), (other, 9 - key))
        )
        assert first == second


@pytest.mark.slow
def test_what_cannot_share_goes_by_itself() -> None:
    images, truth = moving_squares(5, count=2)
    boxes = [one[0] for one in truth]
    targets = small(strategy="full")  # each trains a backbone of its own
    found = follow(targets, images, boxes)
    assert [targets.borrows(key) for key in (1, 2)] == [False, False]
    assert min(iou(found[-1][key].box, truth[key - 1][4]) for key in (1, 2)) > 0.4
    apart = small(targets={"share": False})
    assert all(len(area.ids) == 1 for area in (follow(apart, images, boxes), apart._areas())[1])


@pytest.mark.slow
def test_a_target_comes_and_another_goes() -> None:
    images, truth = moving_squares(9, count=3)
    targets = small()
    targets.init(images[0], [truth[0][0]])
    targets.update(images[1])
    track = targets.add(images[1], truth[1][1])
    assert (track.frame, track.box) == (1, truth[1][1])
    assert targets.borrows(2)
    assert targets.add(images[1], truth[2][1], key=7).frame == 1
    assert [*targets.update(images[2])] == [1, 2, 7]
    targets.remove(1)
    for image in images[3:]:
        found = targets.update(image)
    assert [*found] == [2, 7] == [*targets.ids]
    assert min(iou(found[key].box, truth[n][8]) for key, n in ((2, 1), (7, 2))) > 0.4
    assert targets.free_id() == 8
    with pytest.raises(ConfigError, match="no target 1: the targets are 2, 7"):
        targets.remove(1)
    again = targets.add(images[8], truth[0][8], key=2)
    assert again.box == truth[0][8]
    assert targets.ids == (2, 7)


@pytest.mark.slow
def test_a_lost_target_is_searched_for_while_the_other_is_followed() -> None:
    images, truth = moving_squares(14, count=2, apart=40)
    plain, hidden = moving_squares(1, count=1, apart=40, seed=0)[0][0], truth[1]
    for frame in range(6, 14):  # the second one is painted over
        x, y, w, h = (int(value) for value in hidden[frame])
        images[frame] = images[frame].copy()
        images[frame][y : y + h, x : x + w] = plain[:20, :20]
    found = follow(small(), images, [boxes[0] for boxes in truth])
    assert found[-1][2].lost
    assert not found[-1][1].lost
    assert iou(found[-1][1].box, truth[0][-1]) > 0.4


@pytest.mark.parametrize(
    ("boxes", "error", "words"),
    [
        ([], ConfigError, "no targets"),
        ([(1, 2, 3)], BoxError, "four"),
        ([(10, 10, 20, 20), (500, 10, 20, 20)], BoxError, "outside"),
        ({0: (10, 10, 20, 20)}, ConfigError, "at least 1"),
        ({"a": (10, 10, 20, 20)}, ConfigError, "whole number"),
        ([(10, 10, 20, 20)] * 17, ConfigError, "targets.most is 16"),
    ],
)
def test_what_cannot_be_learned_is_refused_and_nothing_is_forgotten(boxes: Any, error: Any, words: str) -> None:
    images, truth = moving_square(3)
    targets = small()
    targets.init(images[0], [truth[0]])
    with pytest.raises(error, match=words):
        targets.init(images[0], boxes)
    assert [*targets.update(images[1])] == [1]
    with pytest.raises(DataError):
        targets.update(np.zeros((5, 5), np.float32))  # type: ignore[arg-type]
    assert targets.frames == 2


@pytest.mark.parametrize("key", ["alike", "rounds", "most"])
def test_settings_that_cannot_be_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Targets.from_config({"targets": {key: 0}})


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True])
def test_restore_goes_on_to_the_same_boxes(on_disk: bool, tmp_path: Path) -> None:
    images, truth = moving_squares(12, count=2)
    boxes = [one[0] for one in truth]

    def make(name: str) -> Targets:
        return Targets.from_config({**SMALL, "store": str(tmp_path / name) if on_disk else None})

    whole = [without_clock(found) for found in follow(make("a"), images, boxes)]
    targets = make("b")
    follow(targets, images[:3], boxes)
    targets.save(tmp_path / "checkpoint")
    targets.update(images[3])
    targets.update(images[4])
    targets.save(tmp_path / "checkpoint")
    for image in images[5:8]:  # a run that goes on, and is killed while it saves: one target's is there, no more
        targets.update(image)
    (tmp_path / "checkpoint" / "set-000003").mkdir()
    targets.tracker(1).save(tmp_path / "checkpoint" / "set-000003" / "1", hold=True)
    targets.close()
    again = make("b")
    again.restore(tmp_path / "checkpoint")
    assert again.frames == 5
    assert [without_clock(again.update(image)) for image in images[5:]] == whole[5:]
    again.save(tmp_path / "checkpoint")
    assert len(list((tmp_path / "checkpoint").glob("set-*"))) == 1


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    targets = small()
    targets.close()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        targets.restore(tmp_path)
    (tmp_path / "set-000001").mkdir()
    (tmp_path / "current").write_text("set-000001")
    for text in ("", "[]", '{"format": 1}', '{"format": 9}', '{"format": 1, "borrows": [1]}', '{"format": 2}'):
        (tmp_path / "set-000001" / "targets.json").write_text(text)
        with pytest.raises(CheckpointError):
            targets.restore(tmp_path)
    with pytest.raises(StreamdropError):
        targets.tracker(1)
    with pytest.raises(CheckpointError, match="several targets: give the folder of one"):
        read_checkpoint(tmp_path)


def test_one_changed_bit_in_what_stands_beside_the_trackers_is_refused(tmp_path: Path) -> None:
    state = {"frame": 12, "turns": {"last": [1, 0.25]}, "borrows": {"1": False}}
    write_targets(tmp_path, {}, state)
    file = tmp_path / "set-000001" / "targets.json"
    whole = file.read_bytes()
    assert read_targets(tmp_path) == (tmp_path / "set-000001", state)
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        try:  # a blank that became another blank is no damage
            assert read_targets(tmp_path)[1] == state
        except CheckpointError:
            continue
    file.write_text(json.dumps({"format": 1, **state}))  # of an earlier release
    assert read_targets(tmp_path)[1] == state


# -------------------------------------------------------------------- which of them share a crop


def area(key: int, x: float, y: float, size: float, surprise: float = 0.1) -> Area:
    motion = dataclasses.replace(
        Motion.starting(Box(x - size / 2, y - size / 2, size, size), 640, 480), surprise=surprise
    )
    return Area.of(key, motion, SEARCH)


def test_an_update_before_the_first_frame_is_refused() -> None:
    targets = small()
    targets.close()
    images, truth = moving_square(2)
    with pytest.raises(StreamdropError, match="call init"):
        targets.update(images[0])
    targets.init(images[0], truth[:1])
    targets.remove(1)
    assert targets.update(images[1]) == {}


def test_near_ones_of_like_size_are_grouped_and_no_others() -> None:
    near, far, large = area(1, 100, 100, 20), area(2, 500, 100, 20), area(3, 110, 100, 60)
    groups = grouped([near, far, large, area(4, 120, 100, 22)], SEARCH.size, 1.35)
    assert sorted(sorted(group.ids) for group in groups) == [[1, 4], [2], [3]]


def test_a_crop_for_all_is_smaller_than_one_for_each() -> None:
    areas = [area(key, 100 + 25 * key, 100, 20) for key in range(1, 5)]
    (group,) = grouped(areas, SEARCH.size, 1.35)
    width, height = group.shape(SEARCH.size)
    assert width * height < 2 * SEARCH.size**2
    assert width % 32 == height % 32 == 0


places = st.tuples(st.floats(0, 640), st.floats(0, 480), st.floats(8, 100), st.floats(0, 1))


@given(st.lists(places, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_groups_hold_every_target_once_whatever_the_order(found: list[tuple[float, ...]], random: Any) -> None:
    areas = [area(key, *each) for key, each in enumerate(found, 1)]
    groups = grouped(areas, SEARCH.size, 1.35)
    assert sorted(key for group in groups for key in group.ids) == list(range(1, len(areas) + 1))
    assert sum(np.prod(group.shape(SEARCH.size)) for group in groups) <= len(areas) * SEARCH.size**2
    assert all(group.coarse <= 1.35 * group.fine for group in groups)
    random.shuffle(areas)
    again = grouped(areas, SEARCH.size, 1.35)
    assert {frozenset(group.ids) for group in again} == {frozenset(group.ids) for group in groups}


@given(st.lists(places, min_size=2, max_size=4))
def test_windows_lie_within_their_sheet_on_the_grid_and_show_what_must_be_seen(found: list[tuple[float, ...]]) -> None:
    motions = [
        dataclasses.replace(Motion.starting(Box(x - s / 2, y - s / 2, s, s), 640, 480), surprise=surprise)
        for x, y, s, surprise in found
    ]
    together = Area.of(0, motions[0], SEARCH)
    for key, motion in enumerate(motions[1:], 1):
        together = together.with_(Area.of(key, motion, SEARCH))
    sheet = Sheet.of(together, SEARCH.size)
    for motion in motions:
        view = sheet.window(motion, SEARCH.size)
        for at, middle, length in ((view.x, sheet.x, sheet.width), (view.y, sheet.y, sheet.height)):
            corner = (at - middle) / sheet.scale + (length - SEARCH.size) / 2
            assert corner == pytest.approx(16 * round(corner / 16), abs=1e-6)
            assert -1e-6 <= corner <= length - SEARCH.size + 1e-6
        u, v = view.to_crop(*motion.expected())
        assert 0 <= u <= SEARCH.size
        assert 0 <= v <= SEARCH.size


def test_a_window_shows_the_pixels_that_its_view_names() -> None:
    image = moving_squares(1)[0][0]
    together = area(1, 60, 60, 20).with_(area(2, 100, 66, 20))
    sheet = Sheet.of(together, 128)
    crop = sheet.take(image)
    assert crop.shape == (sheet.height, sheet.width, 3)
    motion = Motion.starting(Box(90, 56, 20, 20), 160, 120)
    view = sheet.window(motion, 128)
    column = round((view.x - sheet.x) / sheet.scale + (sheet.width - 128) / 2)
    row = round((view.y - sheet.y) / sheet.scale + (sheet.height - 128) / 2)
    part = crop[row : row + 128, column : column + 128].astype(int)
    assert np.abs(part - take(image, View(view.x, view.y, view.side, 128))).max() <= 1


# -------------------------------------------------------------------- whose round it is


def test_rounds_go_round_one_a_frame_and_keep_apart() -> None:
    turns, given_at = Turns(), []
    for frame in range(10, 31):
        for key in (1, 2, 3) if frame % 5 == 0 else ():
            turns.ask(key)
        key = turns.next(frame, 2.5)
        if key is not None:
            turns.last[key] = frame
            given_at.append((frame, key))
    assert given_at == [(10, 1), (13, 2), (16, 3), (19, 1), (22, 2), (25, 3), (28, 1)]


def test_early_rounds_come_first_and_none_is_forgone() -> None:
    turns, order = Turns(), []
    turns.ask(9)
    for _ in range(4):
        for key in (1, 2):
            turns.ask(key, early=0.5)
    for frame in range(1, 9):
        key = turns.next(frame, 3)
        if key is not None:
            turns.last[key] = frame
            order.append(key)
    assert order == [1, 2, 1, 2, 9]
    turns.ask(1, early=1 / 3)
    assert Turns.restored(turns.state()) == turns
    assert turns.next(9, 3) is None
    for _ in range(2):
        turns.ask(1, early=1 / 3)
    assert turns.next(9, 3) == 1
    turns.forget(1)
    assert turns.next(20, 3) is None


def test_several_targets_learn_in_line():
    with pytest.raises(ConfigError, match=r"2 targets, and realtime is set.*realtime\.fps"):
        TrackerConfig(realtime=RealtimeConfig(fps=25)).check_targets(2)
