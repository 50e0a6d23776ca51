"""Deeper training on the stream: tried where it is due, kept where it pays, told in the rounds' reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_tracker import SMALL

from streamdrop import Track, Tracker, track
from streamdrop.errors import ConfigError
from streamdrop.store import decode_source
from streamdrop.testing.targets import moving_square
from streamdrop.tracking import trial
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.trial import Drift, Verdict, prepared

DROP = {**SMALL["drop"], "policy": "if-it-pays", "trial": 3}


def small(**changes: Any) -> Tracker:
    return Tracker.from_config({**SMALL, "drop": DROP, **changes})


def seen(tracks: list[Track]) -> list[Any]:
    return [(t.frame, t.box, t.score, [(r.round, r.loss, r.why, r.thawed) for r in t.reports]) for t in tracks]


def boxes(tracks: list[Track]) -> list[Any]:
    return [(t.box, t.score) for t in tracks]


def verdicts(tracks: list[Track]) -> list[str]:
    return [report.why for t in tracks for report in t.reports if report.why]


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes of a trial is kept."""
    monkeypatch.setattr(trial.Verdict, "pays", True)


@pytest.fixture
def does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.Verdict, "pays", False)


def test_a_trial_that_does_not_pay_leaves_no_trace(does_not: None) -> None:
    """The boxes are those of a backbone that is never trained, bit for bit; the report says what was found."""
    images, truth = moving_square(14)
    tried = list(track(images, small(), truth[0]))
    fixed = list(track(images, small(strategy="fixed"), truth[0]))
    assert boxes(tried) == boxes(fixed)
    (why,) = verdicts(tried)
    assert why.startswith("the first frames are there: 3 steps of deeper training leave a loss of")
    assert why.endswith("it does not pay, the blocks stay dropped")
    assert not any(report.thawed for t in tried for report in t.reports)


def test_what_pays_is_kept_and_the_store_follows(pays: None) -> None:
    images, truth = moving_square(14)
    tracker, fixed = small(), small(strategy="fixed")
    tracks = list(track(images, tracker, truth[0]))
    list(track(images, fixed, truth[0]))
    (why,) = verdicts(tracks)
    assert why.endswith("it pays, the blocks are kept as trained")
    changed = [
        name
        for name, weight in tracker.learner.backbone.items()
        if not torch.equal(weight, fixed.learner.backbone[name])
    ]
    assert changed
    assert all(name.startswith("upper.") for name in changed)
    store, maps = tracker.learner.tuner.store, tracker.learner.tuner.store.cut
    assert store.version == tracker.learner.tuner.split.version(maps)
    keys = store.keys()
    for key in keys:  # of samples from before the trial and after it
        crop = prepared(decode_source(store.get_sources([key])[0] or b""))[None]
        with torch.no_grad():
            made = tracker.learner.tuner.split.tail(maps)(crop)
        for one, stored in zip(made, store.get_many([key]), strict=True):
            torch.testing.assert_close(stored, one, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("stop", [5, 10])
def test_restore_goes_on_to_the_same_boxes(pays: None, on_disk: bool, stop: int, tmp_path: Path) -> None:
    """Stopped before the trial and after it; the run that goes on has a trial of its own before it is killed."""
    images, truth = moving_square(14)
    stores: list[dict[str, Any]] = [{"store": str(tmp_path / name)} if on_disk else {} for name in "ab"]
    whole = seen(list(track(images, small(**stores[0]), truth[0])))
    assert sum(bool(r[2]) for t in whole for r in t[3]) == 1
    first = small(**stores[1])
    list(track(images[:stop], first, truth[0]))
    first.save(tmp_path / "checkpoint")
    for image in images[stop:12]:
        first.update(image)
    first.close()
    again = small(**stores[1])
    again.restore(tmp_path / "checkpoint")
    assert seen([again.update(image) for image in images[stop:]]) == whole[stop:]


def test_a_trial_that_is_broken_off_leaves_no_trace(pays: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or a full disk, while the store is made anew: the weights are those that made what it holds."""
    images, truth = moving_square(12)
    tracker = small()
    list(track(images[:4], tracker, truth[0]))
    before = {name: weight.clone() for name, weight in tracker.learner.backbone.items()}

    def broken(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "thaw_store", broken)
    with pytest.raises(KeyboardInterrupt):
        list(map(tracker.update, images[4:]))
    assert all(torch.equal(weight, before[name]) for name, weight in tracker.learner.backbone.items())
    store = tracker.learner.tuner.store
    assert store.version == tracker.learner.tuner.split.version(store.cut)


def test_rounds_that_make_way_for_frames_try_nothing_and_say_so() -> None:
    images, truth = moving_square(12)
    tracks = list(track(images, small(realtime={"fps": 0.05}), truth[0]))
    assert verdicts(tracks)
    assert set(verdicts(tracks)) == {"deeper training is not tried: rounds make way for frames"}


def test_a_trial_is_due_once_early_and_then_where_the_loss_has_risen() -> None:
    drift = Drift()
    assert drift.due(12) == "the first frames are there"
    drift.judged(12, pays=False)
    for _ in range(30):
        drift.note(1.0)
    assert drift.due(200) is None
    for _ in range(6):
        drift.note(2.0)
    assert (drift.due(200) or "").startswith("the loss has risen from 1 to 1.7")
    assert drift.due(60) is None, "too soon after the last"
    drift.judged(200, pays=False)
    assert drift.quiet == 200 + 200, "refused twice: four times as long"
    drift.judged(500, pays=True)
    assert (drift.quiet, drift.tried) == (550, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": {"policy": "if-it-pays", "blocks": 0}}, "nothing to try"),
        ({"drop": {"policy": "if-it-pays"}, "update": {"memory": 7}}, "at least 8"),
        ({"drop": {"policy": "if-it-pays"}, "strategy": "freeze"}, "give strategy drop"),
        ({"drop": {"trial": 0}}, "trial at least 1"),
        ({"drop": {"policy": "if-it-pay"}}, "if-it-pays"),
    ],
)
def test_what_cannot_be_tried_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tracker.from_config(changes)


@pytest.mark.parametrize(
    ("deeper", "better", "pays"),
    [((0.9, 1.8, 2.7), 3, True), ((0.999, 1.999, 2.999), 3, False), ((0.1, 0.1, 3.1), 2, False)],
)
def test_what_pays_is_less_on_every_frame_and_no_trifle(deeper: tuple[float, ...], better: int, pays: bool) -> None:
    verdict = Verdict(16, (1.0, 2.0, 3.0), deeper, "why", 0.1)
    assert (verdict.better, verdict.pays) == (better, pays)
    assert ("it pays" in str(verdict)) is pays


def test_by_default_nothing_is_tried() -> None:
    assert TrackerConfig().drop.policy == "after-warm-up"
