"""One stream of the daemon: it learns, tracks, saves, is killed and goes on, fails and comes back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemons import SECONDS, in_step, make_scene, until
from PIL import Image as pillow
from small_tracker import SMALL
from torch.optim import optimizer

import streamdrop as sd
from streamdrop import checkpoint
from streamdrop.boxes import Box, iou
from streamdrop.errors import BoxError, ConflictError, OutputError, WeightsError
from streamdrop.service import orders
from streamdrop.service.frames import Arrival
from streamdrop.service.settings import SessionSettings, load_daemon, tracker_settings
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.state import StateFolder
from streamdrop.service.stream_session import StreamSession
from streamdrop.service.wanted import Wanted
from streamdrop.service.worker import Worker
from streamdrop.streams import open_stream
from streamdrop.tracking import Tracker


class Stage:
    """Makes sessions on one scene and one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.share = root, Share(1)
        self.boxes = make_scene(root / "scene")
        self.open: list[StreamSession] = []

    def session(self, *, start: bool = True, tracker: dict[str, Any] | None = None, **changes: Any) -> StreamSession:
        stream = {"name": "s", "source": str(self.root / "scene"), "fps": 40, "loop": True, "box": self.boxes[0]}
        limits = {"retry_first": 0.01, "retry_most": 0.02, "buffer_seconds": 60}
        config = load_daemon(
            {
                "state": str(self.root),
                "tracker": tracker or SMALL,
                "streams": [{**stream, **changes}],
                "limits": limits,
            }
        )
        one = config.streams[0]
        settings = SessionSettings(one, tracker_settings(config, one), config.outputs, config.limits)
        session = StreamSession(settings, self.root / "s", self.share)
        self.open.append(session)
        if start:
            session.start()
        return session

    def end(self, session: StreamSession) -> None:
        session.stop()
        assert session.join(SECONDS)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "s" / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    in_step(monkeypatch)
    one = Stage(tmp_path)
    with watch_rounds(one.share):
        yield one
        for session in one.open:
            session.stop()
        for session in one.open:
            assert session.join(SECONDS)


def tracked(session: StreamSession, count: int) -> None:
    until(lambda: session.stats.counters.tracked >= count, f"{count} tracked frames")


@pytest.mark.slow
def test_a_stopped_stream_goes_on_with_its_target_where_it_was(stage):
    first = stage.session()
    tracked(first, 15)
    stage.end(first)
    before = first.status()
    second = stage.session(start=False)
    assert second.status()["target"]["box"] == before["target"]["box"]
    second.start()
    tracked(second, 25)
    stage.end(second)
    events = stage.events()
    assert [event["event"] for event in events if "event" in event].count("target") == 1
    assert any(event.get("event") == "restored" for event in events)
    frames = [event for event in events if "score" in event]
    numbers = [event["frame"] for event in frames]
    assert numbers == sorted(set(numbers))
    overlaps = [float(iou(event["box"], stage.boxes[event["frame"] % 60])) for event in frames]
    assert np.mean(overlaps[-8:]) > 0.5
    rounds = [event["round"] for event in events if "after_frame" in event]
    assert rounds == sorted(set(rounds))
    assert rounds[-1] <= len(rounds) + 1  # the one under way at the stop was given up


@pytest.mark.slow
def test_another_tracker_s_checkpoint_is_not_used_and_the_target_learned_anew(stage):
    first = stage.session()
    tracked(first, 5)
    stage.end(first)
    second = stage.session(tracker={**SMALL, "seed": 5})
    tracked(second, first.stats.counters.tracked + 2)
    events = stage.events()
    assert any("configured otherwise" in event.get("error", "") for event in events)
    assert [event["why"] for event in events if event.get("event") == "target"] == ["remembered", "remembered"]


@pytest.mark.slow
def test_a_tracker_that_fails_begins_again_from_what_was_saved(stage, monkeypatch):
    session = stage.session()
    tracked(session, 5)
    following = session._worker.following
    monkeypatch.setattr(following._targets, "update", lambda image: 1 / 0)
    until(lambda: session.stats.counters.failures, "a failure")
    before = session.stats.counters.tracked
    tracked(session, before + 3)
    kinds = [event.get("event") for event in stage.events()]
    assert kinds.index("failed") < kinds.index("restored")
    assert session.status()["error"] is None


@pytest.mark.slow
def test_a_tracker_that_cannot_be_made_costs_nothing_that_was_learned(stage, monkeypatch):
    first = stage.session()
    tracked(first, 5)
    stage.end(first)
    with monkeypatch.context() as missing:
        missing.setattr("streamdrop.service.following.Targets", _no_weights)
        second = stage.session()
        until(lambda: second.stats.counters.failures >= 6, "more failures than a checkpoint is kept for")
    tracked(second, first.stats.counters.tracked + 2)
    kinds = [event.get("event") for event in stage.events()]
    assert (kinds.count("target"), kinds.count("restored")) == (1, 1)


def _no_weights(*_: object) -> None:
    raise WeightsError("weights are not here: get them")


@pytest.mark.slow
def test_a_tracker_that_cannot_be_taken_down_fails_and_comes_back(stage, monkeypatch):
    session = stage.session()
    tracked(session, 3)
    until(lambda: session.stats.counters.saves, "a save")
    with monkeypatch.context() as broken:
        broken.setattr(Tracker, "snapshot", lambda self: 1 / 0)
        until(lambda: session.stats.counters.failures, "a failure")
    before = session.stats.counters.tracked
    tracked(session, before + 3)
    assert session.status()["error"] is None


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_stream_goes_on(stage, monkeypatch):
    session = stage.session()
    tracked(session, 3)

    def full(*args: Any) -> None:
        raise OutputError("run/s: cannot be written (no space left): free some space")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    until(lambda: session.stats.counters.output_failures, "a failure to save")
    tracked(session, session.stats.counters.tracked + 3)
    assert "free some space" in session.status()["error"]
    with pytest.raises(OutputError):
        session.checkpoint()


@pytest.mark.slow
def test_no_frame_waits_for_a_slow_disk_and_no_second_round_is_at_stake(stage, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    write = checkpoint.write_checkpoint

    def slow(*args: Any) -> None:
        begun.set()
        assert go_on.wait(SECONDS)
        write(*args)

    session = stage.session()
    tracked(session, 3)
    until(lambda: session.stats.counters.saves, "a save")
    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    assert begun.wait(SECONDS)
    rounds, saves = session.status()["round"], session.stats.counters.saves
    tracked(session, session.stats.counters.tracked + 15)  # more than the next round's turn
    assert (session.status()["round"], session.stats.counters.saves) == (rounds, saves)
    go_on.set()
    until(lambda: session.status()["round"] > rounds + 1, "further rounds")
    assert session.stats.counters.saves > saves


@pytest.mark.slow
@pytest.mark.parametrize("waited", [True, False])
def test_a_frame_that_waited_is_looked_at_in_a_hurry_but_not_all_of_them(stage, monkeypatch, waited):
    asked = []

    def noted(self, image, hurry=False, real=Tracker.update):
        asked.append(hurry)
        return real(self, image, hurry)

    monkeypatch.setattr(Tracker, "update", noted)
    monkeypatch.setattr("streamdrop.service.worker._LATE", -1.0 if waited else 1e9)
    session = stage.session()
    assert until(lambda: len(asked) > 8, "eight frames")
    stage.end(session)
    assert asked[:8] == [waited, waited, waited, False] * 2


def test_the_time_of_day_may_jump(stage, monkeypatch):
    monkeypatch.setattr("streamdrop.service.worker._IDLE_SAVE", 0.05)
    session = stage.session(tracker={**SMALL, "strategy": "none"})  # no rounds: saved by the clock alone
    tracked(session, 5)
    true = time.time
    for days in (-2, 400, 0):
        monkeypatch.setattr(time, "time", lambda days=days: true() + days * 86400)
        frames, saves = session.stats.counters.tracked, session.stats.counters.saves
        tracked(session, frames + 5)
        until(lambda saves=saves: session.stats.counters.saves > saves + 1, "state saved")
        assert session.status()["state"] in ("tracking", "uncertain")
    stage.end(session)
    numbers = [event["frame"] for event in stage.events() if "score" in event]
    assert numbers == sorted(set(numbers))
    assert max(event["latency_ms"] for event in stage.events() if "latency_ms" in event) < 86_400_000 / 2
    again = stage.session(start=False)
    assert again.status()["target"] == session.status()["target"]


@pytest.mark.slow
def test_a_box_drawn_on_a_passed_frame_is_tracked_from_there(stage):
    session = stage.session(box=None, fps=60)
    until(lambda: session.status()["state"] == "waiting" and session.broadcast.pictures.newest, "a picture")
    with pytest.raises(BoxError):
        session.set_target(Box(1000, 0, 10, 10))
    with pytest.raises(ConflictError):
        session.set_target(Box(0, 0, 10, 10), 10**9)
    frame = session.broadcast.pictures.newest
    until(lambda: session.status()["frame"] > frame.number + 2, "later frames")
    session.set_target(Box(*stage.boxes[frame.number % 60]), frame.number)
    tracked(session, 20)
    frames = session.stats.frames(1500)
    assert frames[0]["frame"] == frame.number
    overlaps = [float(iou(event["box"], stage.boxes[event["frame"] % 60])) for event in frames]
    assert np.mean(overlaps) > 0.5
    session.set_target(Box(*stage.boxes[0]))  # wherever it is now: the target changes at once
    until(lambda: [e.get("why") for e in stage.events()].count("drawn") == 2, "a second target")


@pytest.mark.slow
def test_a_box_outside_the_first_frame_is_told_and_none_is_tracked(stage):
    session = stage.session(box=[900, 900, 10, 10])
    until(lambda: session.status()["state"] == "waiting", "waiting")
    assert "outside" in session.status()["error"]
    assert session.status()["target"] is None


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["pause", "clear_target"])
def test_what_is_refused_is_not_done_and_the_stream_goes_on(stage, monkeypatch, asked):
    session = stage.session(start=False)
    with monkeypatch.context() as impatient:
        impatient.setattr("streamdrop.service.stream_session._COMMAND", 0.0)
        with pytest.raises(ConflictError, match="try again"):
            getattr(session, asked)()
    session.start()
    tracked(session, 2)
    assert [event["why"] for event in stage.events() if event.get("event") == "target"] == ["remembered"]


def test_a_box_that_was_drawn_is_learned_though_it_was_to_be_cleared_where_that_is_refused(stage, monkeypatch):
    session = stage.session(box=None, start=False)
    worker = session._worker
    worker.buffer.put(Arrival(0, 0, np.zeros((64, 64, 3), np.uint8), 0.0))
    session.set_target(Box(1, 1, 20, 20))
    monkeypatch.setattr("streamdrop.service.stream_session._COMMAND", 0.0)
    with pytest.raises(ConflictError, match="try again"):
        session.clear_target()
    wanted = worker.wanted.next()
    assert wanted is not None
    assert wanted.box == Box(1, 1, 20, 20)


def full(folder: StateFolder, text: str) -> None:
    raise OutputError(f"{folder.path}: cannot be written: free some space")


def test_a_target_stays_where_that_it_is_cleared_cannot_be_written(stage, monkeypatch):
    worker = stage.session(start=False)._worker
    worker.buffer.put(Arrival(0, 0, np.zeros((64, 64, 3), np.uint8), 0.0))
    worker.wanted.ask(Wanted(Box(1, 1, 20, 20), worker.buffer.newest(), "drawn"))
    worker.wanted.give_up(1)
    with monkeypatch.context() as patch:
        patch.setattr(StateFolder, "write", full)
        with pytest.raises(OutputError, match="free some space"):
            orders.forget(worker, 1)
        assert list(worker.state.targets) == [1]
        worker.wanted.kept(1)
        assert worker.wanted.ids() == {1}
        worker._refuse(1, "it lies outside")
        assert not worker.state.targets
    assert "cleared" not in [event.get("event") for event in stage.events()]


@pytest.mark.slow
def test_a_file_that_is_paused_stays_so_after_a_second_pause_that_is_refused(stage, monkeypatch):
    session = stage.session(box=None)
    until(lambda: session.status()["state"] == "waiting", "the stream")
    session.pause()
    stage.end(session)
    with monkeypatch.context() as impatient:
        impatient.setattr("streamdrop.service.stream_session._COMMAND", 0.0)
        with pytest.raises(ConflictError):
            session.pause()
    assert session.status()["paused"]
    again = stage.session(box=None, start=False)
    frames = again.stats.counters.frames
    again.start()
    until(lambda: again.status()["state"] == "paused", "the pause")
    assert again.stats.counters.frames == frames
    again.resume()
    until(lambda: again.status()["state"] == "waiting", "the stream")
    until(lambda: again.stats.counters.frames > frames, "further frames")


def test_a_stream_that_ends_while_it_learns_learns_again(stage, monkeypatch):
    """Interrupted between two iterations; the target is not forgotten."""
    session = stage.session(start=False)
    worker: Worker = session._worker
    worker.following.build()
    session.stop()
    frame = next(iter(open_stream(str(stage.root / "scene"))))
    worker._learn(Wanted(Box(*stage.boxes[0]), Arrival(0, 0, frame.image, 0.0), "drawn"))
    assert not worker.following.learned
    assert worker.state.targets[1].box == stage.boxes[0]
    again = stage.session(start=False)
    assert again._worker.state.targets[1].box == stage.boxes[0]
    assert not again._worker.state.targets[1].learned


def make_session(stage: Stage, **options: Any) -> sd.Session:
    return sd.Session(stage.root / "scene", stage.boxes[0], tracker=SMALL, fps=30, **options)


@pytest.mark.slow
def test_embedded_a_session_is_an_iterator_of_events_that_ends_with_its_file(stage):
    with make_session(stage) as session:
        events = list(session)
        assert session.image.shape == (120, 160, 3)
        assert session.status["state"] == "ended"
    frames = [event for event in events if "score" in event]
    assert frames[0]["frame"] == 0
    assert frames[-1]["frame"] == 59
    assert any("round" in event for event in events)
    assert events[-1]["event"] == "ended"
    assert session.missed == 0


_HOLDING = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()
"""


def test_embedded_a_folder_that_another_process_s_session_has_is_refused(tmp_path):
    (tmp_path / "stream").mkdir()
    command = [sys.executable, "-c", _HOLDING, str(tmp_path / "stream" / "writer.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        hooks = dict(optimizer._global_optimizer_post_hooks)
        with pytest.raises(OutputError, match="another session uses it"):
            sd.Session("video.mp4", (1, 2, 3, 4), state=tmp_path)
        assert dict(optimizer._global_optimizer_post_hooks) == hooks, "it goes on watching every optimiser"
        other.communicate(b"\n")
    assert [path.name for path in (tmp_path / "stream").iterdir()] == ["writer.lock"]


@pytest.mark.slow
def test_embedded_sessions_run_side_by_side_and_async(stage):
    async def first_frames(session: sd.Session) -> list[dict[str, Any]]:
        found = []
        async for event in session:
            if "score" in event:
                found.append(event)
            if len(found) == 4:
                break
        return found

    async def both() -> list[list[dict[str, Any]]]:
        with make_session(stage, loop=True) as one, make_session(stage, loop=True, name="b", beside=one) as two:
            return list(await asyncio.gather(first_frames(one), first_frames(two)))

    for frames in asyncio.run(both()):
        assert len(frames) == 4
        assert frames[0]["frame"] == 0


@pytest.mark.slow
def test_a_picture_that_changes_its_size_is_followed_on(stage):
    for number in range(30, 60):
        path = stage.root / "scene" / f"{number:05}.png"
        with pillow.open(path) as image:
            image.resize((320, 240)).save(path)
    session = stage.session(fps=20)
    until(lambda: session.status()["frame"] > 45, "frames of the other size")
    assert session.status()["size"] == [320, 240]
    stage.end(session)
    frames = [event for event in stage.events() if "score" in event and 34 < event["frame"] < 60]
    truth = [[2 * value for value in stage.boxes[event["frame"]]] for event in frames]
    assert np.mean([float(iou(event["box"], box)) for event, box in zip(frames, truth, strict=True)]) > 0.4
