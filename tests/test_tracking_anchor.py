"""The second opinion: what the first frame's head takes for background is not learned from, and no round changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_tracker import SMALL

from streamdrop import Box, Tracker, track
from streamdrop.testing.targets import moving_square
from streamdrop.tracking.anchor import Anchor
from streamdrop.tracking.config import HeadConfig, UpdateConfig
from streamdrop.tracking.network import ScoreHead
from streamdrop.tracking.search import Motion, Peak


def a_head() -> ScoreHead:
    head = ScoreHead(HeadConfig(channels=8))
    head.reset(0)
    return head


def followed(anchor: float, **changes: Any) -> tuple[Tracker, int]:
    """A tracker after 12 frames, and in how many it learned."""
    images, truth = moving_square(12)
    tracker = Tracker.from_config({**SMALL, **changes, "update": {**SMALL["update"], "early": 4, "anchor": anchor}})
    return tracker, sum(each.report is not None for each in list(track(images, tracker, truth[0]))[1:])


def test_what_the_first_head_takes_for_background_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    always = followed(0.0)[1]
    assert followed(0.2)[1] == always > 4
    monkeypatch.setattr(Anchor, "score", lambda *_: -0.3)
    assert followed(0.2)[1] == 4  # the early ones
    assert followed(0.0)[1] == always


def test_enough_is_what_it_has_given_of_late_and_follows_that_slowly() -> None:
    motion, update = Motion.starting(Box(40, 40, 20, 20), 200, 200), UpdateConfig(anchor=0.5)
    for opinion in [0.8] * 500:
        assert motion.vouched(opinion, update)
    assert motion.anchored == pytest.approx(0.8)
    assert not motion.vouched(0.39, update)
    assert motion.vouched(0.41, update)
    refused = next(number for number in range(1000) if motion.vouched(0.3, update))
    assert 30 < refused < 300  # a target that has changed for good is learned from again
    for _ in range(1000):
        motion.vouched(-0.3, update)  # it has changed so much that the anchor does not know it at all
    assert not motion.vouched(-0.3, update)
    assert motion.vouched(0.05, update)


def test_what_it_usually_gives_is_the_mean_of_the_early_frames_none_of_which_is_refused() -> None:
    motion, update = Motion.starting(Box(40, 40, 20, 20), 200, 200), UpdateConfig(anchor=0.5, early=4)
    for opinion in (0.1, -0.2, 0.9, 0.8):
        assert motion.vouched(opinion, update)
    assert motion.anchored == pytest.approx(0.4)
    assert not motion.vouched(0.19, update)
    assert motion.vouched(0.21, update)


def test_it_scores_the_best_place_about_a_peak_whatever_the_head_has_learned_since() -> None:
    head, maps = a_head(), (torch.randn(2, 32, 16, 16), torch.randn(2, 96, 8, 8))
    anchor, scores = Anchor(head), head(*maps).detach()
    peak, corner = Peak(1, 60.0, 37.0, 0.9, 0.0), Peak(0, 1.0, 127.0, 0.9, 0.0)
    for _ in range(2):
        assert anchor.score(maps, peak) == pytest.approx(float(scores[1, 3:6, 6:9].max()), abs=1e-6)
        assert anchor.score(maps, corner) == pytest.approx(float(scores[0, 14:, :2].max()), abs=1e-6)
        head.reset(1)  # as rounds change it
    again = Anchor.restored(a_head(), anchor.state())
    assert again is not None
    assert again.score(maps, peak) == anchor.score(maps, peak)


def test_a_checkpoint_has_the_first_head(tmp_path: Path) -> None:
    tracker, _ = followed(0.2)
    tracker.save(tmp_path / "checkpoint")
    restored = Tracker(tracker.config)
    restored.restore(tmp_path / "checkpoint")
    tensors = restored.learner.tuner.extra_tensors
    weights = {name: value for name, value in tensors.items() if name.startswith("anchor.")}
    head = restored.learner.tuner.split.model.score.state_dict()
    assert weights.keys() == {f"anchor.{name}" for name in head}
    assert any(not torch.equal(weights[f"anchor.{name}"], value) for name, value in head.items())  # it has learned


def test_a_backbone_that_learns_on_has_none() -> None:
    images, truth = moving_square(2)
    for strategy, there in (("drop", True), ("freeze", True), ("fixed", True), ("full", False)):
        tracker = Tracker.from_config({**SMALL, "strategy": strategy})
        tracker.init(images[0], truth[0])
        assert (tracker.learner.anchor() is not None) == there
