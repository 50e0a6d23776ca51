"""Several targets on one stream of the daemon: from the YAML, drawn, redrawn, let go, killed and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemons import SECONDS, in_step, until
from fastapi.testclient import TestClient
from PIL import Image as pillow
from small_tracker import SMALL

import streamdrop as sd
from streamdrop.boxes import Box, iou
from streamdrop.errors import BoxError, ConfigError, ConflictError, UnknownError
from streamdrop.service.daemon import Daemon
from streamdrop.service.files import OutputFiles
from streamdrop.service.frames import Arrival, FrameBuffer
from streamdrop.service.http.app import make_app
from streamdrop.service.settings import OutputsConfig, SessionSettings, load_daemon, tracker_settings
from streamdrop.service.share import Share, watch_rounds
from streamdrop.service.stream_session import StreamSession
from streamdrop.service.wanted import Wanted, WantedTargets
from streamdrop.testing.targets import moving_squares
from streamdrop.types import Track


class Stage:
    """Makes sessions on one scene of three squares and one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.share = root, Share(1)
        images, boxes = moving_squares(60, count=3)
        self.boxes = [[list(box) for box in one] for one in boxes]
        (root / "scene").mkdir()
        for number, image in enumerate(images):
            pillow.fromarray(image).save(root / "scene" / f"{number:05}.png", compress_level=1)
        self.open: list[StreamSession] = []

    def configuration(self, **changes: Any) -> dict[str, Any]:
        targets = [{"box": one[0]} for one in self.boxes[:2]]
        stream = {"name": "s", "source": str(self.root / "scene"), "fps": 30, "loop": True, "targets": targets}
        limits = {"retry_first": 0.01, "retry_most": 0.02, "buffer_seconds": 60}
        return {"state": str(self.root), "tracker": SMALL, "streams": [{**stream, **changes}], "limits": limits}

    def session(self, *, start: bool = True, **changes: Any) -> StreamSession:
        config = load_daemon(self.configuration(**changes))
        one = config.streams[0]
        settings = SessionSettings(one, tracker_settings(config, one), one.outputs or config.outputs, config.limits)
        session = StreamSession(settings, self.root / "s", self.share)
        self.open.append(session)
        if start:
            session.start()
        return session

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "s" / "events.jsonl").read_text().splitlines()]

    def since_drawn(self, key: int) -> list[dict[str, Any]]:
        """Frames of target ``key`` since it was last drawn; before that it was another thing."""
        events = self.events()
        drawn = [at for at, one in enumerate(events) if one.get("why") == "drawn" and one["target"] == key]
        return [one for one in events[drawn[-1] :] if "score" in one and one["target"] == key] if drawn else []

    def overlap(self, key: int, square: int, last: int = 8) -> float:
        """Of the last frames of target ``key`` with the square, on average."""
        frames = [event for event in self.events() if "score" in event and event["target"] == key][-last:]
        return float(np.mean([float(iou(one["box"], self.boxes[square][one["frame"] % 60])) for one in frames]))


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
def test_targets_of_the_yaml_are_followed_killed_and_gone_on_with(stage):
    first = stage.session(outputs={"boxes": ["xywh", "mot"]})
    tracked(first, 14)
    first.stop()
    assert first.join(SECONDS)
    before = first.status()
    assert [one["id"] for one in before["targets"]] == [1, 2]
    assert before["target"] == {key: value for key, value in before["targets"][0].items() if key != "id"}
    second = stage.session(outputs={"boxes": ["xywh", "mot"]}, start=False)
    assert second.status()["targets"] == before["targets"]
    second.start()
    tracked(second, 26)
    second.stop()
    assert second.join(SECONDS)
    events = stage.events()
    learned = [(event["target"], event["why"]) for event in events if event.get("event") == "target"]
    assert learned == [(1, "remembered"), (2, "remembered")]
    assert next(event["targets"] for event in events if event.get("event") == "restored") == [1, 2]
    for key in (1, 2):
        assert stage.overlap(key, key - 1) > 0.5
        frames = [event["frame"] for event in events if "score" in event and event["target"] == key]
        assert frames == sorted(set(frames))
        rounds = [event["round"] for event in events if "after_frame" in event and event["target"] == key]
        assert rounds == list(range(1, len(rounds) + 1))
    mot = np.loadtxt(stage.root / "s" / "boxes.mot.txt", delimiter=",")
    assert set(mot[:, 1]) == {1, 2}
    assert (stage.root / "s" / "boxes.2.txt").read_text().count("\n") > 20
    assert (stage.root / "s" / "tracker-2").is_dir()


@pytest.mark.slow
def test_targets_are_added_redrawn_and_let_go_while_others_are_followed(stage):
    session = stage.session(targets=[], box=stage.boxes[0][0])
    tracked(session, 8)
    arrival = session._worker.buffer.newest()
    key, frame = session.add_target(Box(*stage.boxes[1][arrival.number % 60]), arrival.number)
    assert (key, frame) == (2, arrival.number)
    until(lambda: [one["id"] for one in session.status()["targets"]] == [1, 2], "two targets")
    until(lambda: len([e for e in session.stats.frames(1500) if e["target"] == 2]) > 14, "frames of the second")
    assert stage.overlap(1, 0) > 0.5
    assert stage.overlap(2, 1) > 0.5
    learned_at = next(event["frame"] for event in stage.events() if "score" in event and event["target"] == 2)
    assert learned_at == frame

    arrival = session._worker.buffer.newest()
    session.redraw_target(1, Box(*stage.boxes[2][arrival.number % 60]), arrival.number)
    until(lambda: len(stage.since_drawn(1)) > 2, "frames of the redrawn target")
    assert stage.overlap(1, 2, last=2) > 0.3

    session.remove_target(2)
    assert [one["id"] for one in session.status()["targets"]] == [1]
    assert not (stage.root / "s" / "tracker-2").exists()
    with pytest.raises(UnknownError, match="no target 2: the targets are 1"):
        session.remove_target(2)
    with pytest.raises(BoxError):
        session.add_target(Box(999, 0, 5, 5))
    assert session.add_target(Box(*stage.boxes[1][0]))[0] == 3  # ids are not used again
    session.clear_target()
    until(lambda: [one["id"] for one in session.status()["targets"]] == [3], "the last target")
    assert "cleared" in [event.get("event") for event in stage.events()]


@pytest.mark.slow
def test_no_more_targets_than_allowed(stage):
    session = stage.session(tracker={"targets": {"most": 2}})
    tracked(session, 2)
    with pytest.raises(ConflictError, match=r"targets\.most is 2"):
        session.add_target(Box(*stage.boxes[2][0]))


@pytest.mark.slow
def test_embedded_sessions_take_several_targets(stage):
    targets = [{"box": one[0]} for one in stage.boxes[:2]]
    with sd.Session(stage.root / "scene", targets=targets, tracker=SMALL, fps=30) as session:
        for event in session:
            if event.get("frame", 0) >= 4 and event.get("target") == 2 and "score" in event:
                break
        assert [one["id"] for one in session.status["targets"]] == [1, 2]
        assert session.add_target(stage.boxes[2][0]) == 3
        session.remove_target(1)
        assert 1 not in [one["id"] for one in session.status["targets"]]


@pytest.mark.slow
def test_over_http(stage):
    daemon = Daemon(load_daemon({**stage.configuration(), "state": str(stage.root / "run"), "http": {"port": 0}}))
    daemon.start()
    try:
        client = TestClient(make_app(daemon, lambda: {}, lambda: False), base_url="http://127.0.0.1")
        until(lambda: len(client.get("/api/streams/s").json()["targets"]) == 2, "two targets")
        until(lambda: daemon.get("s").stats.counters.tracked > 3, "tracked frames")
        answer = client.post("/api/streams/s/targets", json={"box": stage.boxes[2][0]})
        assert answer.status_code == 202
        assert answer.json()["id"] == 3
        until(lambda: len(client.get("/api/streams/s").json()["targets"]) == 3, "three targets")
        answer = client.post("/api/streams/s/targets/3", json={"box": stage.boxes[2][1]})
        assert (answer.status_code, answer.json()["id"]) == (202, 3)
        assert client.delete("/api/streams/s/targets/2").status_code == 204
        assert [one["id"] for one in client.get("/api/streams").json()[0]["targets"]] == [1, 3]
        unknown = client.delete("/api/streams/s/targets/2")
        assert (unknown.status_code, unknown.json()["title"]) == (404, "Unknown stream or target")
        assert client.delete("/api/streams/s/targets/0").status_code == 422
        assert client.post("/api/streams/s/targets", json={"box": [999, 0, 5, 5]}).status_code == 422
        metrics = client.get("/metrics").text
        assert 'streamdrop_targets{stream="s"} 2.0' in metrics
        assert client.get("/api/streams/s/snapshot.jpg").status_code == 200
        assert client.patch("/api/streams/s", json={"stale": 9}).json()["targets"]
    finally:
        assert daemon.stop(SECONDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"box": [1, 1, 5, 5]}, "box and targets are both given"),
        ({"targets": [{"box": [1, 1, 5, 5], "id": 2}, {"box": [1, 1, 5, 5]}]}, "id 2 is given twice"),
        ({"targets": [{"box": [1, 1, 0, 5]}]}, "area"),
        ({"targets": [{"box": [1, 1, 5, 5], "id": 0}]}, "at least 1"),
        ({"targets": [{"boxes": [1, 1, 5, 5]}]}, "box"),
        ({"tracker": {"targets": {"most": 1}}}, "targets.most"),
        ({"tracker": {"realtime": {"fps": 25}}}, "realtime"),
    ],
)
def test_targets_that_cannot_be_are_refused(stage, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_daemon(stage.configuration(**changes))


def test_ids_are_places_unless_given(stage):
    config = load_daemon(stage.configuration(targets=[{"box": [1, 1, 5, 5], "id": 4}, {"box": [2, 2, 5, 5]}]))
    assert config.streams[0].boxes == {4: (1, 1, 5, 5), 2: (2, 2, 5, 5)}


def test_box_files_of_several_targets(tmp_path):
    files = OutputFiles(OutputsConfig(boxes=("xywh", "mot", "got10k")), tmp_path, 25)
    tracks = {1: Track(0, Box(1, 2, 3, 4), 0.5, False), 3: Track(0, Box(5, 6, 7, 8), 0.25, False)}
    files.add(0, np.zeros((9, 9, 3), np.uint8), tracks)
    files.close()
    assert (tmp_path / "boxes.txt").read_text() == "0,1.0,2.0,3.0,4.0,0.5000,0\n"
    assert (tmp_path / "boxes.3.txt").read_text() == "0,5.0,6.0,7.0,8.0,0.2500,0\n"
    assert (tmp_path / "boxes.got10k.3.txt").read_text() == "5.0,6.0,7.0,8.0\n"
    assert (tmp_path / "boxes.mot.txt").read_text().splitlines()[1] == "1,3,6.0,7.0,7.0,8.0,0.2500,-1,-1,-1"


def test_of_one_id_only_what_was_asked_for_last_waits():
    arrival = Arrival(0, 0, np.zeros((2, 2, 3), np.uint8), 0.0)
    first, second, other = (Wanted(Box(1, 1, size, 5), arrival, "drawn", key) for size, key in ((1, 1), (2, 1), (3, 2)))
    wanted = WantedTargets()
    for one in (first, other, second):
        wanted.ask(one)
    assert wanted.ids() == {1, 2}
    assert wanted.withdrawn(1)
    assert [wanted.next(), wanted.next(), wanted.next()] == [other, second, None]
    assert not wanted.withdrawn(1)
    wanted.ask(first)
    wanted.give_up(1)
    assert not wanted
    assert wanted.withdrawn(1)
    assert wanted.next() is None
    wanted.forgotten(1)
    assert not wanted.withdrawn(1)
    assert wanted.next() is None
    wanted.give_up(1)
    wanted.ask(second)
    wanted.forgotten(1)  # late: it is wanted anew
    assert wanted.next() == second
    assert not wanted.withdrawn(1)


def test_what_was_to_be_forgotten_and_is_kept_still_waits():
    arrival = Arrival(0, 0, np.zeros((2, 2, 3), np.uint8), 0.0)
    first, other = (Wanted(Box(1, 1, 5, 5), arrival, "drawn", key) for key in (1, 2))
    wanted = WantedTargets()
    for one in (first, other):
        wanted.ask(one)
    wanted.give_up(1)
    assert wanted.next() == other
    wanted.kept(1)
    assert wanted.ids() == {1}
    assert wanted.next() == first


def test_frames_to_catch_up_with_end_at_the_last_one():
    buffer = FrameBuffer(100, 1e9, 1)
    for number in range(40):
        buffer.put(Arrival(number, number, np.zeros((2, 2, 3), np.uint8), float(number)))
    numbers = [arrival.number for arrival in buffer.between(3, 38)]
    assert numbers[-1] == 38
    assert len(numbers) <= 12
    assert numbers == sorted(numbers)
    assert [arrival.number for arrival in buffer.between(3, 5)] == [4, 5]
    assert buffer.between(5, 5) == []
