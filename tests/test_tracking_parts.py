"""The tracker's parts: views, labels, pooled features, box regression, peaks, motion."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from streamdrop.boxes import Box, as_box, check_inside, iou, overlap
from streamdrop.errors import BoxError, ConfigError, DataError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.tracking.config import (
    BoxConfig,
    FirstFrameConfig,
    HeadConfig,
    LostConfig,
    SearchConfig,
    TrackerConfig,
    UpdateConfig,
)
from streamdrop.tracking.crops import View, sweep, take
from streamdrop.tracking.first_frame import examples
from streamdrop.tracking.labels import gaussian_label, score_loss
from streamdrop.tracking.memory import kept
from streamdrop.tracking.network import ScoreHead
from streamdrop.tracking.regression import BoxRegression, pooled
from streamdrop.tracking.samples import Keys, leaving
from streamdrop.tracking.search import Motion, Peak, best_peak, crop_views
from streamdrop.tracking.threads import in_order

coordinates = st.floats(-500, 500)
placed = st.builds(Box, coordinates, coordinates, st.floats(0.1, 500), st.floats(0.1, 500))


def scored(score: float, rival: float = 1.0) -> Peak:
    return Peak(0, 0.0, 0.0, score, rival)


@given(placed, placed)
def test_the_overlap_of_one_pair_is_that_of_many(a: Box, b: Box) -> None:
    assert overlap(a, b) == float(iou(a, b))
    assert overlap(a, a) == float(iou(a, a))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_work_by_several_is_work_by_one(workers: int, count: int) -> None:
    parts = [torch.full((64, 64), 1.0 + part / 7) for part in range(count)]
    found = list(in_order(lambda part: part @ part, parts, workers))
    assert len(found) == count
    assert all(torch.equal(one, part @ part) for one, part in zip(found, parts, strict=True))


def test_a_tensor_is_an_image_and_one_that_cannot_be_read_is_refused() -> None:
    thermal = np.random.default_rng(0).integers(20000, 21000, (6, 8), dtype=np.uint16)
    shown = as_rgb(thermal, Tones.of(thermal))
    for same in (torch.from_numpy(thermal), thermal.astype(">u2")):
        assert (as_rgb(same, Tones.of(same)) == shown).all()
    for other in (torch.zeros(6, 8, 3, requires_grad=True), torch.zeros(6, 8, 3, dtype=torch.uint8, device="meta")):
        with pytest.raises(DataError, match=r"is a Tensor that does not read as an array.*give a uint8 or uint16"):
            as_rgb(other)


def test_in_a_frame_of_another_size_all_that_is_known_of_the_target_is_scaled() -> None:
    motion = Motion.starting(Box(40, 30, 20, 10), 200, 100)
    motion.vx, motion.vy = 4.0, -2.0
    motion.advance(400, 300)
    assert motion.box == Box(80, 90, 40, 30)
    assert (motion.vx, motion.vy) == (8.0, -6.0)
    assert motion.off_size(BoxConfig()) == 1.0
    assert motion.aspect == pytest.approx(40 / 30)


@pytest.mark.parametrize("box", [(1, 1, 1e308, 1e308), (1, 1, 1e5, 10), (-1e6, 0, 2e6, 10), (5, 5, 1, 1e300)])
def test_a_box_of_another_frame_altogether_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(BoxError, match=r"more than ten times as wide or high as the 320x240 frame: give x,y,w,h"):
        check_inside(as_box(box), 320, 240)
    assert check_inside(Box(-160, -120, 3200, 2400), 320, 240).w == 3200


def test_a_number_that_no_float_holds_is_no_box() -> None:
    with pytest.raises(BoxError, match="not four numbers"):
        as_box((10**400, 1, 1, 1))


def test_what_goes_wrong_with_one_part_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda part: 1 // part, [3, 2, 0, 1], 2))


def test_sixteen_bits_keep_the_first_frames_contrast() -> None:
    thermal = np.linspace(7000, 7600, 48 * 64).astype(np.uint16).reshape(48, 64)
    tones = Tones.of(thermal)
    shown = as_rgb(thermal, tones)
    assert shown.shape == (48, 64, 3)
    assert 150 < int(np.ptp(shown)) < 255
    brighter = as_rgb(thermal + np.uint16(60), tones)
    assert (brighter >= shown).all()
    assert brighter.mean() > shown.mean() + 10
    assert as_rgb(np.full((4, 4, 3), 65535, np.uint16), tones).min() == 255


def test_grey_and_four_channels_become_rgb() -> None:
    colours = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)
    assert (as_rgb(colours, Tones()) == colours[..., :3]).all()
    for grey in (colours[..., 0], colours[..., :1]):
        assert (as_rgb(grey, Tones()) == colours[..., :1]).all()


@settings(deadline=None, max_examples=60)
@given(coordinates, coordinates, st.floats(4, 900), st.floats(-3, 3), st.booleans(), coordinates, coordinates)
def test_a_view_maps_there_and_back(
    x: float, y: float, side: float, angle: float, mirrored: bool, u: float, v: float
) -> None:
    view = View(x, y, side, 64, angle, mirrored)
    assert view.to_crop(*view.to_frame(u, v)) == pytest.approx((u, v), abs=1e-6)


@pytest.mark.parametrize("view", [View(30, 20, 32, 32), View(31, 22, 16, 64, 0.4), View(30, 20, 40, 32, 0.0, True)])
def test_take_shows_what_the_view_says(view: View) -> None:
    """A smooth ramp: the crop's pixels are the frame's values at the mapped positions."""
    rows, columns = np.mgrid[0:48, 0:64]
    image = np.stack([columns * 3, rows * 4, np.full_like(rows, 7)], -1).astype(np.uint8)
    crop = take(image, view)
    for u, v in ((view.size / 2, view.size / 2), (view.size * 0.4 + 0.5, view.size * 0.6 + 0.5)):
        x, y = view.to_frame(u, v)
        found = crop[int(v), int(u)].astype(float)
        shift = view.to_frame(int(u) + 0.5, int(v) + 0.5)
        assert found[0] == pytest.approx(3 * (shift[0] - 0.5), abs=2.5), (x, y)
        assert found[1] == pytest.approx(4 * (shift[1] - 0.5), abs=2.5)


@pytest.mark.parametrize(
    "view", [View(32, 24, 700, 32), View(-900, 24, 64, 32), View(32, 24, 3, 32), View(9, 9, 1e5, 32)]
)
def test_take_anywhere_at_any_scale(view: View) -> None:
    assert take(np.full((48, 64, 3), 9, np.uint8), view).tolist() == np.full((32, 32, 3), 9).tolist()


def test_shrinking_does_not_alias() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[::2] = 255  # stripes of one pixel: anything but grey is aliasing
    assert np.ptp(take(image, View(128, 128, 200, 32)).astype(int)) < 30


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 400), st.integers(2, 400), st.floats(8, 300))
def test_a_sweep_covers_the_frame_from_near_to_far(width: int, height: int, side: float) -> None:
    centres = sweep(width, height, side, 0.0, 0.0)
    distances = [math.hypot(x, y) for x, y in centres]
    assert distances == sorted(distances)
    for x, y in ((0, 0), (width, height), (width / 2, height / 3), (width / 3, height)):
        nearest = min(max(abs(x - u), abs(y - v)) for u, v in centres)
        assert nearest <= side / 2 + 1e-6


def test_the_label_peaks_at_the_box() -> None:
    label = gaussian_label(Box(96, 58, 40, 20), 256, 0.25)  # its middle is that of cell (8, 14)
    assert divmod(int(label.argmax()), 32) == (8, 14)
    assert float(label.max()) == 1
    assert float(gaussian_label(None, 256, 0.25).sum()) == 0


def test_the_loss_is_zero_where_the_label_is_met_and_ignores_low_background() -> None:
    label = gaussian_label(Box(100, 60, 40, 20), 256, 0.25)[None]
    below = torch.where(label < 0.05, label - 3, label)
    assert float(score_loss(below, label, torch.ones(1))) == 0
    assert float(score_loss(label + 1, label, torch.ones(1))) > 0.5


def test_the_loss_weighs_samples() -> None:
    label = gaussian_label(Box(100, 60, 40, 20), 256, 0.25)[None].repeat(2, 1, 1)
    output = label + torch.tensor([0.5, 2.0]).view(2, 1, 1)
    first = score_loss(output[:1], label[:1], torch.ones(1))
    assert torch.isclose(score_loss(output, label, torch.tensor([3.0, 0.0])), first)


def test_shifted_taps_are_the_transposed_convolution() -> None:
    head = ScoreHead(HeadConfig(channels=6, kernel=5))
    head.reset(3)
    fine, coarse = torch.randn(2, 32, 12, 16), torch.randn(2, 96, 6, 8)
    wide = torch.nn.functional.interpolate(head.coarse(coarse), scale_factor=2, mode="bilinear", align_corners=False)
    hidden = torch.relu(head.fine(fine) + wide)
    kernel = head.taps.weight.view(5, 5, 6).permute(2, 0, 1)[:, None]
    expected = torch.nn.functional.conv_transpose2d(hidden, kernel, padding=2)[:, 0] + head.bias
    assert torch.allclose(head(fine, coarse), expected, atol=1e-5)


def test_pooled_features_are_roi_align() -> None:
    config = BoxConfig(pool=3, context=1.4)
    maps = torch.randn(2, 32, 16, 16), torch.randn(2, 96, 8, 8)
    boxes = [Box(20, 30, 40, 25), Box(-20, 70, 60, 60), Box(60, 60, 8, 30)]
    indices = [0, 1, 0]
    corners = [
        (i, b.x - 0.2 * b.w, b.y - 0.2 * b.h, b.x + 1.2 * b.w, b.y + 1.2 * b.h)
        for i, b in zip(indices, boxes, strict=True)
    ]
    regions = torch.tensor(corners, dtype=torch.float32)
    expected = [roi_align(part, regions, 3, 1 / s, 2, True).flatten(1) for part, s in zip(maps, (8, 16), strict=True)]
    assert torch.allclose(pooled(maps, indices, boxes, config), torch.cat(expected, 1), atol=1e-4)


def test_regression_learns_to_move_boxes_onto_a_target() -> None:
    box = Box(44, 50, 40, 28)
    config = BoxConfig(samples=400, ridge=1.0)
    columns, rows = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy")
    inside = ((columns * 8 - 60).abs() < 20).float() * ((rows * 8 - 60).abs() < 14).float()
    fine = torch.randn(32, 1, 1) * inside + torch.randn(32, 1, 1) * columns / 16 + torch.randn(32, 1, 1) * rows / 16
    maps = fine[None], torch.nn.functional.avg_pool2d(fine[None], 2).repeat(1, 3, 1, 1)
    regression = BoxRegression.fit(config, maps, [box], seed=0)
    moved = regression(maps, 0, Box(50, 46, 32, 34))
    assert moved == pytest.approx(box, abs=4)
    again = BoxRegression.restored(config, regression.state())
    assert again(maps, 0, Box(50, 46, 32, 34)) == moved


def a_rectangle(width: float, height: float, look: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of a crop of 128 px with a rectangle around (60, 60); ``look`` [32] is what it looks like."""
    columns, rows = torch.meshgrid(torch.arange(16.0) * 8, torch.arange(16.0) * 8, indexing="xy")
    inside = (((columns - 60).abs() < width / 2) & ((rows - 60).abs() < height / 2)).float()
    fine = (look[:, None, None] * inside)[None]
    return fine, torch.nn.functional.avg_pool2d(fine, 2).repeat(1, 3, 1, 1)


def test_remembered_frames_correct_the_regression_and_are_restored_with_it() -> None:
    torch.manual_seed(0)
    config = BoxConfig(samples=300, ridge=1.0, recent=4, lasting=0.5)
    before, after = a_rectangle(40, 40, torch.randn(32)), a_rectangle(40, 40, torch.randn(32))
    box, wrong = Box(40, 40, 40, 40), Box(46, 43, 34, 46)
    regression = BoxRegression.fit(config, before, [box], seed=0)
    regression.adapt()  # nothing is remembered: nothing changes
    naive = regression(after, 0, wrong)
    for frame in range(6):
        regression.remember(after, 0, box, frame, seed=0)
    assert regression(after, 0, wrong) == naive
    regression.adapt()
    assert iou(regression(after, 0, wrong), box) > max(iou(naive, box), 0.8)
    again = BoxRegression.restored(config, regression.state())
    for one in (regression, again):
        one.remember(after, 0, box, 7, seed=0)
        one.adapt()
    assert again(after, 0, wrong) == regression(after, 0, wrong)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_lasting_frames_that_is_none_is_refused(share: float) -> None:
    for config in (BoxConfig, UpdateConfig):
        with pytest.raises(ConfigError, match="lasting is"):
            config(lasting=share)


def test_the_peak_is_found_between_cells_and_prefers_the_middle() -> None:
    config = TrackerConfig()
    motion = Motion.starting(Box(40, 40, 20, 20), 200, 200)
    views = crop_views(motion, config)
    scores = gaussian_label(Box(105, 130, 40, 40), 256, 0.25).numpy()[None]
    peak = best_peak(scores, views, motion, config)
    assert (peak.x, peak.y) == pytest.approx((125, 150), abs=0.5)
    far, near = gaussian_label(Box(0, 0, 40, 40), 256, 0.25), gaussian_label(Box(100, 100, 40, 40), 256, 0.25)
    both = (far + 0.95 * near).numpy()[None]
    assert best_peak(both, views, motion, config).x > 100


def test_a_lost_target_is_searched_for_over_the_whole_frame() -> None:
    config = TrackerConfig(lost=LostConfig(windows=2))
    motion = Motion.starting(Box(40, 40, 10, 10), 300, 200)
    seen: set[tuple[float, float]] = set()
    for _ in range(200):
        assert not motion.judge(scored(0.0), config.lost)
        views = crop_views(motion, config)
        assert len(views) == 3
        seen |= {(view.x, view.y) for view in views[1:]}
    assert seen == set(sweep(300, 200, motion.side(config.search), *motion.box.centre))


def test_in_a_hurry_a_lost_target_is_searched_for_at_its_last_place_and_elsewhere_later() -> None:
    config = TrackerConfig(lost=LostConfig(windows=2))
    calm, hurried = (Motion.starting(Box(40, 40, 10, 10), 300, 200) for _ in range(2))
    seen: tuple[list[View], list[View]] = [], []
    for number in range(8):
        for motion, views, hurry in ((calm, seen[0], False), (hurried, seen[1], number % 2 == 1)):
            motion.judge(scored(0.0), config.lost)
            found = crop_views(motion, config, hurry)
            assert len(found) == (1 if hurry else 3)
            views += found[1:]
    assert seen[0][:8] == seen[1]
    hurried.judge(scored(0.9, rival=0.1), config.lost)
    assert hurried.swept == 0


def test_a_lost_target_needs_a_better_score_to_be_found() -> None:
    motion, config = Motion.starting(Box(40, 40, 10, 10), 300, 200), LostConfig(below=0.4, found=0.9)
    assert motion.judge(scored(0.3), config)
    assert not motion.judge(scored(0.15), config)
    assert not motion.judge(scored(0.3), config)
    assert not motion.judge(scored(0.6, rival=0.55), config)  # there are two of them
    assert motion.judge(scored(0.6, rival=0.2), config)
    assert motion.steady == 0


def test_what_is_low_depends_on_what_was_usual() -> None:
    config = LostConfig(below=0.4)
    for usual, followed in ((0.9, False), (0.4, True)):
        motion = Motion.starting(Box(40, 40, 10, 10), 300, 200)
        for _ in range(60):
            assert motion.judge(scored(usual), config)
        assert motion.judge(scored(0.25), config) is followed


def moved(step: float, frames: int) -> Motion:
    """A target of 20 pixels that went right by ``step`` pixels a frame."""
    motion = Motion.starting(Box(40, 40, 20, 20), 640, 480)
    for frame in range(1, frames):
        motion.judge(scored(0.9), LostConfig())
        motion.move(Box(40 + step * frame, 40, 20, 20), BoxConfig())
    return motion


def test_a_target_is_expected_where_it_is_going() -> None:
    config, motion = TrackerConfig(), moved(10.0, 20)
    x, y = motion.box.centre
    assert crop_views(motion, config)[0].x == pytest.approx(x + 7, abs=0.5)
    motion.judge(scored(0.0), config.lost)
    assert (crop_views(motion, config)[0].x, crop_views(motion, config)[0].y) == (x, y)


def test_the_window_is_narrow_for_steady_motion_and_widens_while_lost() -> None:
    search = SearchConfig(window_width=(0.6, 2.0))
    still, fast = moved(0.0, 60), moved(19.0, 4)
    assert still.reach(search) == pytest.approx(0.6)
    assert still.reach(search) < fast.reach(search) <= 2.0
    before = still.reach(search)
    still.judge(scored(0.0), LostConfig())
    assert still.reach(search) > before


def test_a_low_score_that_stands_out_is_followed() -> None:
    config = LostConfig(below=0.3, floor=0.1, rival=0.5)
    motion = Motion.starting(Box(40, 40, 10, 10), 300, 200)
    assert motion.judge(scored(0.2, rival=0.05), config)
    assert not motion.judge(scored(0.05, rival=0.0), config)
    assert not motion.judge(scored(0.2, rival=0.05), config)


def test_a_rival_is_seen() -> None:
    config = TrackerConfig()
    motion = Motion.starting(Box(40, 40, 20, 20), 200, 200)
    scores = gaussian_label(Box(108, 108, 40, 40), 256, 0.18) + 0.5 * gaussian_label(Box(8, 8, 40, 40), 256, 0.18)
    peak = best_peak(scores.numpy()[None], crop_views(motion, config), motion, config)
    assert peak.rival == pytest.approx(0.5, abs=0.1)


def test_size_follows_only_a_sure_score_and_aspect_is_bounded() -> None:
    config = BoxConfig(step=0.5, sure=0.9, doubtful=0.3, aspect=2.0)
    motion = Motion.starting(Box(40, 40, 20, 20), 300, 200)
    for score, width in ((0.2, 20.0), (0.6, 25.0), (0.9, 32.5)):
        motion.judge(scored(score), LostConfig(below=0.0))
        motion.move(Box(40, 40, 40, 20), config)
        assert motion.box.w == pytest.approx(width)
    for _ in range(50):
        motion.move(Box(0, 90, 300, 2), config)
    assert motion.box.w / motion.box.h <= 2.0 + 1e-6


def test_a_new_frame_size_scales_the_box() -> None:
    motion = Motion.starting(Box(40, 40, 20, 10), 300, 200)
    motion.advance(600, 100)
    assert motion.box == Box(80, 20, 40, 5)


def test_examples_show_the_target_where_they_say() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    image[50:70, 70:100] = 255
    shown = examples(image, Box(70, 50, 30, 20), 100, 128, FirstFrameConfig(crops=12, background=3), seed=1)
    assert len(shown) == 12
    for one in shown:
        if one.box is None:
            assert one.crop.max() == 0
        elif one.upright and 0 <= one.box.x < 100 and 0 <= one.box.y < 100:
            x, y = (int(value) for value in one.box.centre)
            assert one.crop[y, x, 0] > 150


@pytest.mark.parametrize("size", [64, 256])
def test_crops_have_the_search_size(size: int) -> None:
    config = TrackerConfig(search=SearchConfig(size=size))
    view = crop_views(Motion.starting(Box(4, 4, 10, 10), 50, 50), config)[0]
    assert take(np.zeros((50, 50, 3), np.uint8), view).shape == (size, size, 3)


def test_a_box_that_shrank_is_tried_at_its_usual_size_again():
    config = TrackerConfig()
    motion = Motion.starting(Box(100, 100, 40, 40), 640, 480)
    assert len(crop_views(motion, config)) == 1
    motion.grow(0.25)  # as a target that is slowly covered makes it
    motion.frame = config.box.probe
    near, probe = crop_views(motion, config)
    assert probe.side == pytest.approx(config.box.leap * near.side)
    motion.lost = 1
    assert crop_views(motion, config)[1].side == pytest.approx(4 * crop_views(motion, config)[0].side)
    motion.lost, motion.frame = 0, config.box.probe + 1
    assert len(crop_views(motion, config)) == 1


@pytest.mark.parametrize(("size", "share"), [(1, 0.5), (8, 0.5), (8, 0.0), (5, 1.0)])
@given(frames=st.lists(st.integers(1, 10**6), unique=True, max_size=60).map(sorted), seed=st.integers(0, 2**32))
def test_a_memory_holds_the_last_frames_and_some_before_however_they_come(
    size: int, share: float, frames: list[int], seed: int
) -> None:
    held: list[int] = []
    for frame in frames:
        held.append(frame)
        held = [held[index] for index in kept(held, size, share, seed)]
    assert held == [frames[index] for index in kept(frames, size, share, seed)]
    assert len(held) == min(len(frames), size)
    last = size - min(int(size * share), size - 1)
    assert held[-last:] == frames[-last:]


def test_the_earlier_a_frame_the_more_likely_it_lasts() -> None:
    frames, draws = list(range(1, 201)), 2000
    lasted = Counter(kept(frames, 2, 0.5, seed)[0] + 1 for seed in range(draws))  # one that lasts, and the last one
    expected = draws / np.arange(1, 200) / np.sum(1 / np.arange(1, 200))
    for first, end in ((1, 2), (2, 10), (10, 50), (50, 200)):
        hoped = expected[first - 1 : end - 1].sum()
        assert abs(sum(lasted[frame] for frame in range(first, end)) - hoped) < 4 * hoped**0.5


def test_head_and_boxes_remember_the_same_frames() -> None:
    config = TrackerConfig(seed=3, update=UpdateConfig(memory=8), box=BoxConfig(recent=8, samples=20))
    keys = Keys(config)
    maps = a_rectangle(40, 40, torch.randn(32))
    regression = BoxRegression.fit(config.box, maps, [Box(40, 40, 40, 40)], seed=0)
    held: list[bytes] = []
    for frame in range(1, 60):
        held.append(keys.frame(frame))
        gone = leaving(held, config)
        held = [key for key in held if key not in gone]
        regression.remember(maps, 0, Box(40, 40, 40, 40), frame, config.seed)
    assert [keys.frame(frame) for frame in regression.state()["frames"].tolist()] == held
