"""Rounds that make way for frames: by iterations in what frames leave of their time, and in a thread beside them."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from daemons import SECONDS, make_scene, until
from small_tracker import SMALL
from test_evaluation_protocol import REPORT

from streamdrop import Box, Track, Tracker
from streamdrop.boxes import iou
from streamdrop.cli import main
from streamdrop.errors import ConfigError, StoreError, TrainingError
from streamdrop.service.recorder import Recorder, events_of
from streamdrop.testing.targets import moving_square
from streamdrop.tracking import TrackerConfig
from streamdrop.tracking.beside import BesideRounds
from streamdrop.tracking.config import RealtimeConfig
from streamdrop.tracking.rounds import SpareRounds, Turn
from streamdrop.types import Image, Sample

IMAGES, TRUTH = moving_square(24)


def small(**changes: Any) -> Tracker:
    return Tracker.from_config({**SMALL, **changes})


def followed(tracker: Tracker, images: list[Image] = IMAGES) -> list[Track]:
    return [tracker.init(images[0], TRUTH[0]), *(tracker.update(image) for image in images[1:])]


# ---------------------------------------------------------------- in what frames leave of their time


class Hands:
    """A clock that moves as told, and a learner whose rounds are pieces of ``cost`` seconds each."""

    def __init__(self, cost: float = 0.01, pieces: int = 4, owed: int = 0) -> None:
        self.now, self.cost, self.pieces, self.owed, self.ran = 0.0, cost, pieces, owed, 0

    def __call__(self) -> float:
        return self.now

    def round(self) -> Generator[None, None, Any]:
        for left in reversed(range(self.pieces)):
            self.now += self.cost
            self.ran += 1
            if left:
                yield
        return REPORT

    def rest(self) -> Generator[None, None, Any] | None:
        return self.round() if self.owed else None

    @property
    def first(self) -> Hands:
        return self

    @property
    def least(self) -> int:
        return (self.owed + 1) // 2

    def start(self, examples: Any, fit_boxes: Any, backbone: Any = None) -> list[Any]:
        self.now += 0.3
        return []

    def close(self) -> None:
        self.owed = 0


def spare(hands: Hands, fps: float = 25) -> SpareRounds:
    config = TrackerConfig(realtime=RealtimeConfig(fps=fps, first=1.0))
    return SpareRounds(config, hands, fps, clock=hands)  # type: ignore[arg-type]


def frame(rounds: SpareRounds, hands: Hands, due: bool, looking: float = 0.02, fps: float = 25) -> Any:
    """A frame that comes on time, and is looked at for so many seconds."""
    began = hands.now
    hands.now += looking
    turn = rounds.turn(due, SimpleNamespace(adapt=lambda: None), began)  # type: ignore[arg-type]
    took = hands.now - began
    hands.now = max(hands.now, began + 1 / fps)
    return turn, round(took, 6)


def test_a_round_is_spread_over_the_frames_that_leave_time_for_its_pieces() -> None:
    hands = Hands(cost=0.015)
    rounds = spare(hands)
    turns = [frame(rounds, hands, due=number == 0) for number in range(6)]
    assert [turn.begun for turn, _ in turns] == [True] + [False] * 5
    assert [len(turn.reports) for turn, _ in turns] == [0, 0, 0, 1, 0, 0]
    assert [took for _, took in turns] == [0.035] * 4 + [0.02] * 2


def test_pieces_that_fit_run_in_one_frame() -> None:
    hands = Hands(cost=0.004)
    turn, took = frame(spare(hands), hands, due=True)
    assert (turn.begun, turn.put_off, len(turn.reports), took) == (True, False, 1, 0.036)


def test_a_round_that_is_due_while_another_is_under_way_is_put_off() -> None:
    hands = Hands(cost=0.015)
    rounds = spare(hands)
    turns = [frame(rounds, hands, due=True)[0] for _ in range(5)]
    assert [(turn.begun, turn.put_off) for turn in turns] == [(True, False)] + [(False, True)] * 3 + [(True, False)]


def test_no_frame_waits_for_a_piece_that_does_not_fit_but_one_in_a_fifth_of_a_second() -> None:
    hands = Hands(cost=0.03, pieces=3)
    rounds = spare(hands)
    took = [frame(rounds, hands, due=number == 0, looking=0.025)[1] for number in range(20)]
    late = [number for number, seconds in enumerate(took) if seconds > 0.04]
    assert late[0] == 0  # what it costs is not known yet
    assert [5 <= after - before <= 7 for before, after in pairwise(late)] == [True, True]
    assert hands.ran == 3


def test_after_a_frame_that_took_too_long_the_next_is_looked_at_in_a_hurry_but_never_two_in_a_row() -> None:
    hands = Hands()
    rounds = spare(hands)
    late = []
    for looking in (0.02, 0.05, 0.02, 0.05, 0.05, 0.05, 0.02):
        frame(rounds, hands, due=False, looking=looking)
        late.append(rounds.late)
    assert late == [False, True, False, True, False, True, False]


def test_a_round_makes_way_for_the_frame_that_waits_and_goes_on_after_it() -> None:
    hands = Hands(cost=0.01)
    rounds = SpareRounds(TrackerConfig(), hands, None, lambda: hands.now >= 0.025, hands)  # type: ignore[arg-type]
    regression = SimpleNamespace(adapt=lambda: None)
    turn = rounds.turn(True, regression, 0.0)  # type: ignore[arg-type]
    assert (turn.begun, turn.reports, hands.ran) == (True, (), 0)  # first the frame's box is told
    assert (rounds.spare(), hands.ran) == ((), 3)
    hands.now = 0.0
    assert rounds.turn(True, regression, 0.0) == Turn(False, True)  # type: ignore[arg-type]
    assert rounds.spare() == (REPORT,)


def test_a_whole_round_comes_after_the_one_under_way() -> None:
    hands = Hands()
    hands.adapt = lambda: "whole"  # type: ignore[attr-defined]
    rounds = SpareRounds(TrackerConfig(), hands, None, lambda: True, hands)  # type: ignore[arg-type]
    regression = SimpleNamespace(adapt=lambda: None)
    assert rounds.turn(True, regression, 0.0).reports == ()  # type: ignore[arg-type]
    assert rounds.whole(regression) == (REPORT, "whole")  # type: ignore[arg-type]


def test_the_first_frames_training_is_cut_short_and_goes_on() -> None:
    hands = Hands(cost=0.1, pieces=13, owed=13)
    rounds = spare(hands)
    assert rounds.start([], lambda maps: None, began=0.0) == []
    assert hands.now == pytest.approx(1.0)  # 0.3 that cannot be put off, then seven pieces: half of them in any case
    hands.cost = 0.004
    rounds._cost = hands.cost
    turn, took = frame(rounds, hands, due=True)
    assert (turn.begun, turn.put_off, len(turn.reports), took) == (False, True, 0, 0.036)
    turn, _ = frame(rounds, hands, due=False)
    assert len(turn.reports) == 1


def test_a_tracker_with_time_does_all_its_rounds_and_says_what_it_put_off() -> None:
    tracks = followed(small(realtime={"fps": 0.05, "first": 60}), IMAGES[:12])
    assert tracks[0].report is not None
    assert all(t.report is not None for t in tracks[1:11])
    assert not any(t.put_off for t in tracks)
    hurried = followed(small(realtime={"fps": 2000, "first": 0.01}), IMAGES[:12])
    assert any(t.put_off for t in hurried)
    assert len([t for t in hurried[1:] if t.report]) < 10


def test_with_time_in_plenty_the_boxes_are_those_of_whole_rounds() -> None:
    whole = followed(small())
    spread = followed(small(realtime={"fps": 0.05, "first": 60}))
    assert [t.box for t in spread] == [t.box for t in whole]
    assert [[r.loss for r in t.reports] for t in spread] == [[r.loss for r in t.reports] for t in whole]


@pytest.mark.parametrize("beside", [False, True])
def test_the_first_frames_training_goes_on_after_a_restore(beside: bool, tmp_path: Path) -> None:
    realtime = {"fps": 0.05, "first": 0.001, "beside": beside}
    tracker = small(realtime=realtime)
    tracker.init(IMAGES[0], TRUTH[0])
    owed = tracker._learner.first.owed
    assert owed > 7
    tracker.save(tmp_path / "c")
    tracker.close()
    again = small(realtime=realtime)
    again.restore(tmp_path / "c")
    assert again._learner.first.owed == owed
    done: list[int] = []
    for image in IMAGES[1:3]:
        done += [r.iterations for r in again.update(image).reports]
        if beside:
            quiet(again)
    assert done[0] == owed
    again.close()


def test_wrong_real_time_is_refused() -> None:
    for wrong in ({"fps": 0}, {"fps": 25, "first": -1}, {"beside": "often"}):
        with pytest.raises(ConfigError):
            small(realtime=wrong)


# ---------------------------------------------------------------- beside


def quiet(tracker: Tracker) -> None:
    """Wait until the thread has nothing left to do."""
    until(lambda: not tracker._rounds._work_waits(), "the thread is done")  # type: ignore[attr-defined]


def beside(**changes: Any) -> Tracker:
    return small(realtime={"beside": True, "first": 600}, **changes)


def test_rounds_beside_follow_the_target_and_report() -> None:
    tracker = beside()
    tracks = []
    for image in IMAGES:
        tracks.append(tracker.update(image) if tracker.frames else tracker.init(image, TRUTH[0]))
        if tracker.frames > 1:
            quiet(tracker)
    thread = tracker._rounds._thread  # type: ignore[attr-defined]
    tracker.close()
    assert not thread.is_alive()
    for t, truth in zip(tracks, TRUTH, strict=True):
        assert float(iou(t.box, truth)) > 0.4
    reports = [r for t in tracks for r in t.reports]
    assert [r.round for r in reports] == list(range(1, len(reports) + 1))
    assert sum(r.iterations for r in reports) > 24 + 10  # the first frame's, and most of what was due since


def test_a_round_that_the_caller_runs_makes_the_thread_wait() -> None:
    tracker = beside()
    tracks, own = [tracker.init(IMAGES[0], TRUTH[0])], []
    for image in IMAGES[1:]:
        tracks.append(tracker.update(image))
        own += tracker.adapt()
    assert any(report.iterations == tracker.config.update.steps for report in own)
    quiet(tracker)
    tracks.append(tracker.update(IMAGES[-1]))
    tracker.close()
    told = [report.round for track in tracks for report in track.reports] + [r.round for r in own]
    assert sorted(told) == list(range(1, len(told) + 1))


def test_the_copy_holds_one_state_of_the_learner_never_parts_of_two() -> None:
    tracker = beside()
    learner = tracker._learner
    states = []
    given = learner.weights

    def noted() -> dict[str, torch.Tensor]:
        states.append(given())
        return states[-1]

    learner.weights = noted  # type: ignore[method-assign]
    rounds: Any = tracker._rounds
    tracker.init(IMAGES[0], TRUTH[0])
    seen = set()
    for image in IMAGES[1:]:
        before = len(states)
        tracker.update(image)
        until(lambda before=before: len(states) > before or not rounds._work_waits(), "a piece of a round")
        eye = rounds._eye
        shown = {n: p for piece in (eye.tail, eye.between, eye.head) for n, p in piece.named_parameters()}
        taken = [i for i, s in enumerate(states) if all(torch.equal(shown[n], s[n]) for n in s)]
        assert taken, "the copy is like no state that the learner was in"
        seen.add(taken[-1])
    tracker.close()
    assert len(seen) > 3


def test_what_goes_wrong_beside_is_raised_by_the_next_frame_and_until_a_new_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error, kind in ((StoreError("the disk is gone"), StoreError), (RuntimeError("no memory"), TrainingError)):
        tracker = beside()

        def broken(*_: Any, error: Exception = error) -> None:
            raise error

        tracker.init(IMAGES[0], TRUTH[0])
        with monkeypatch.context() as patch:
            patch.setattr(tracker._learner, "weights", broken)
            tracker.update(IMAGES[1])
            until(lambda t=tracker: t._rounds._error is not None, "it goes wrong")
            for _ in range(2):
                with pytest.raises(kind, match=str(error)):
                    tracker.update(IMAGES[2])
        assert tracker.init(IMAGES[0], TRUTH[0]).box == TRUTH[0]
        quiet(tracker)
        tracker.update(IMAGES[1])
        tracker.close()


def test_close_ends_the_thread_twice_is_fine_and_a_forgotten_tracker_ends_it_too() -> None:
    tracker = beside()
    tracker.init(IMAGES[0], TRUTH[0])
    tracker.update(IMAGES[1])
    thread = tracker._rounds._thread  # type: ignore[attr-defined]
    assert thread.is_alive()
    tracker.close()
    tracker.close()
    assert not thread.is_alive()
    tracker = beside()
    tracker.init(IMAGES[0], TRUTH[0])
    tracker.update(IMAGES[1])
    thread = tracker._rounds._thread  # type: ignore[attr-defined]
    del tracker
    until(lambda: gc.collect() is not None and not thread.is_alive(), "the thread ends")


def gate(tracker: Tracker) -> Callable[[], None]:
    """Hold the thread in its next piece until what is returned is called."""
    opened, inside = threading.Event(), threading.Event()
    given = tracker._learner.weights

    def held() -> dict[str, torch.Tensor]:
        inside.set()
        assert opened.wait(SECONDS)
        return given()

    tracker._learner.weights = held  # type: ignore[method-assign]
    tracker.update(IMAGES[1])
    assert inside.wait(SECONDS)
    return opened.set


def test_what_waits_for_the_thread_is_bounded_and_frames_do_not_wait() -> None:
    tracker = beside()
    tracker.init(IMAGES[0], TRUTH[0])
    go_on = gate(tracker)
    rounds: Any = tracker._rounds
    tracks = [tracker.update(image) for image in (IMAGES[2:] * 3)[:40]]
    assert len(rounds._seen) <= tracker.config.update.memory
    assert any(t.put_off for t in tracks)
    assert not any(t.reports for t in tracks)
    go_on()
    quiet(tracker)
    assert len(tracker._learner.tuner.store) <= tracker.config.first_frame.crops + tracker.config.update.memory
    tracker.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_checkpoint_beside_is_of_whole_pieces_and_holds_what_waited(on_disk: bool, tmp_path: Path) -> None:
    store = {"store": str(tmp_path / "store")} if on_disk else {}
    tracker = beside(**store)
    tracker.init(IMAGES[0], TRUTH[0])
    go_on = gate(tracker)
    for image in IMAGES[2:6]:
        tracker.update(image)
    threading.Timer(0.05, go_on).start()
    tracker.save(tmp_path / "c")
    kept = sorted(tracker._learner.tuner.store.keys())
    frames = tracker.frames
    tracker.close()
    again = beside(**store)
    again.restore(tmp_path / "c")
    assert again.frames == frames
    assert sorted(again._learner.tuner.store.keys()) == kept
    assert len(kept) >= 8 + 4
    for image, truth in zip(IMAGES[frames:], TRUTH[frames:], strict=True):
        assert float(iou(again.update(image).box, truth)) > 0.4
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("drop", [{"policy": "paper", "steps": 2}, {"policy": {"schedule": {4: 37}}, "steps": 2}])
def test_cuts_that_move_beside_move_the_copy_too(drop: dict[str, Any]) -> None:
    tracker = beside(drop=drop)
    tracker.init(IMAGES[0], TRUTH[0])
    for image, truth in zip(IMAGES[1:], TRUTH[1:], strict=True):
        assert float(iou(tracker.update(image).box, truth)) > 0.4
        quiet(tracker)
    rounds: Any = tracker._rounds
    tracker.update(IMAGES[-1])
    quiet(tracker)  # the store may have moved once more
    assert (rounds._news.eye or rounds._eye).cut == tracker._learner.tuner.store.cut
    tracker.close()


def test_strategies_run_beside() -> None:
    for strategy in ("freeze", "full", "none"):
        tracker = beside(strategy=strategy)
        tracks = followed(tracker, IMAGES[:6])
        assert float(iou(tracks[-1].box, TRUTH[5])) > 0.4
        tracker.close()


# ---------------------------------------------------------------- what users are told


def test_events_and_summary_say_what_had_no_time(tmp_path: Path) -> None:
    samples = [Sample(b"%d" % i, image, i) for i, image in enumerate(IMAGES[:3])]
    short = replace(REPORT, cut_short=True)
    with Recorder(samples, events=tmp_path / "e.jsonl") as recorder:
        for index, _ in enumerate(recorder):
            recorder.add(
                Track(index, Box(1, 1, 5, 5), 1.0, False, 9.0, short if index == 1 else REPORT, put_off=index == 2)
            )
        assert "rounds: 2 whole, 1 cut short, 1 put off" in recorder.summary()
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [e.get("put_off") for e in events if "frame" in e] == [None, None, True]
    assert [e["cut_short"] for e in events if "round" in e] == [False, True, False]
    assert "put_off" not in next(events_of(0, Track(0, Box(1, 1, 5, 5), 1.0, False)))


@pytest.mark.slow
def test_track_with_a_rate_and_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count()

    def late(self: BesideRounds, launch: Any = BesideRounds._launch) -> None:
        """The thread is slower than the first frames, as it may be."""
        if next(looks) > 2:
            launch(self)

    monkeypatch.setattr(BesideRounds, "_launch", late)
    make_scene(tmp_path / "clip", 12)
    quick = ("search.size=128", "first_frame.crops=8", "first_frame.steps=24", "realtime.first=0.01")
    sets = [part for text in quick for part in ("--set", text)]
    box = ",".join(f"{value:g}" for value in TRUTH[0])
    for more in (["--fps", "500"], ["--set", "realtime.beside=true"]):
        assert main(["track", str(tmp_path / "clip"), "--box", box, *sets, *more]) == 0
        assert "put off" in capsys.readouterr().out
    assert main(["track", "x", "--box", box, "--fps", "0"]) == 2
