"""The daemon over HTTP, in one process: API, problems, guard, metrics, live views."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from daemons import SECONDS, in_step, make_scene, until
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from small_tracker import SMALL
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from streamdrop.errors import ConfigError, OutputError
from streamdrop.service.daemon import Daemon
from streamdrop.service.http import problems
from streamdrop.service.http.app import make_app
from streamdrop.service.http.guard import Guard
from streamdrop.service.http.live import Watchers
from streamdrop.service.settings import HttpConfig, load_daemon
from streamdrop.testing import make_folder
from streamdrop.tracking import TrackerConfig


class Running:
    """A daemon with one tracked stream, one without a target and one whose source is missing."""

    def __init__(self, root: Path) -> None:
        self.root, self.ended = root, False
        self.boxes = make_scene(root / "scene")
        make_folder(root / "other", 4)
        self.daemon = Daemon(self.config())
        self.app = make_app(self.daemon, self.reload, lambda: self.ended)
        self.client = TestClient(self.app, raise_server_exceptions=False, base_url="http://127.0.0.1")
        self.daemon.start()
        until(lambda: self.status("scene")["tracked_frames"] >= 12 and self.status("scene")["round"] > 2, "rounds")
        self.settle()

    def settle(self) -> None:
        """The streams without a target have come to what they are to be."""
        until(lambda: self.status("idle")["state"] == "waiting", "a stream that waits")
        until(lambda: self.status("gone")["state"] == "reconnecting", "a source that is missed")

    def config(self, **changes: Any) -> Any:
        scene = str(self.root / "scene")
        streams = [
            {"name": "scene", "source": scene, "fps": 30, "loop": True, "box": self.boxes[0]},
            {"name": "idle", "source": scene, "fps": 30, "loop": True},
            {"name": "gone", "source": "rtsp://user:secret@127.0.0.1:9/x"},
        ]
        values = {"state": str(self.root / "run"), "tracker": SMALL, "roots": [str(self.root)], "streams": streams}
        return load_daemon({**values, **changes})

    def connect(self, path: str, **options: Any) -> Any:
        """A WebSocket; the test client's own Host is none of this machine."""
        return self.client.websocket_connect(path, headers={"host": "127.0.0.1"}, **options)

    def reload(self) -> dict[str, list[str]]:
        return self.daemon.reload(self.config())

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.daemon.get(name).status())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch)
        one = Running(tmp_path_factory.mktemp("daemon"))
        yield one
        one.ended = True
        assert one.daemon.stop(SECONDS)


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The answer is a problem document that says what, where and the remedy."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert all(isinstance(body[key], str) and body[key] for key in ("type", "title", "detail", "instance", "remedy"))
    return dict(body)


# -------------------------------------------------------------------- API


def test_streams_say_all_that_was_promised(running):
    running.settle()
    scene, idle, gone = running.client.get("/api/streams").json()
    assert {"name", "state", "frame", "fps", "dropped_frames", "target", "cut", "layers", "round", "loss"} <= set(scene)
    assert scene["target"].keys() == {"box", "score", "lost"}
    assert (scene["name"], scene["cut"] > 0, scene["round"] > 2, scene["loss"] > 0) == ("scene", True, True, True)
    assert scene["layers"] > scene["cut"]
    assert (idle["target"], idle["cut"], idle["round"]) == (None, None, 0)
    assert gone["state"] == "reconnecting"
    assert "127.0.0.1:9" in gone["error"]
    assert "secret" not in json.dumps(gone)


def test_the_target_is_where_the_scene_says(running):
    from streamdrop.boxes import iou

    overlaps = []
    for event in until(lambda: [e for e in running.daemon.get("scene").stats.frames(60) if e], "frames"):
        truth = running.boxes[event["frame"] % 60]
        overlaps.append(float(iou(event["box"], truth)))
    assert sum(overlaps) / len(overlaps) > 0.5


def test_rounds_and_frames_have_the_events_keys(running):
    (one,) = running.client.get("/api/streams/scene/rounds?last=1").json()
    assert {"round", "after_frame", "cut", "loss", "ms", "samples", "time"} <= one.keys()
    frames = running.client.get("/api/streams/scene/frames?last=3").json()
    assert len(frames) == 3
    assert {"frame", "box", "score", "lost", "ms"} <= frames[0].keys()
    line = (running.root / "run" / "scene" / "events.jsonl").read_text().splitlines()[-2]
    assert "time" in json.loads(line)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/streams/none", 404),
        ("DELETE", "/api/streams/none", 404),
        ("PATCH", "/api/streams/none", 404),
        ("POST", "/api/streams/none/pause", 404),
        ("GET", "/api/streams/none/snapshot.jpg", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/api/streams", 405),
        ("GET", "/api/streams/gone/snapshot.jpg", 409),
        ("POST", "/api/streams/idle/thaw", 409),
        ("POST", "/api/streams/idle/checkpoint", 409),
        ("GET", "/api/streams/scene/rounds?last=0", 422),
        ("GET", "/api/streams/scene/rounds?last=x", 422),
    ],
)
def test_what_cannot_be_is_a_problem(running, method, path, status):
    assert problem(running.client.request(method, path), status)["instance"] == path.split("?")[0]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 0, 4]},
        {"box": [5000, 5000, 4, 4]},
        {"box": ["a", 2, 3, 4]},
        {"box": [1, 2, 3, 1e999]},
        {"box": [1, 2, 3, 4], "frame": -1},
        {"box": [1, 2, 3, 4], "frame": 10**30},
        {"box": [1, 2, 3, 4], "extra": 1},
        [],
        "x",
        None,
    ],
)
def test_a_bad_target_is_refused_and_the_old_one_stays(running, body):
    before = running.status("scene")["target"]
    text = json.dumps(body)
    answer = running.client.post(
        "/api/streams/scene/target", content=text, headers={"content-type": "application/json"}
    )
    problem(answer, 422)
    assert before is not None
    assert running.status("scene")["state"] != "learning"


def test_a_frame_that_has_gone_is_a_conflict(running):
    body = {"box": [1, 2, 30, 40], "frame": 10**9}
    assert "kept" in problem(running.client.post("/api/streams/scene/target", json=body), 409)["detail"]
    problem(running.client.post("/api/streams/gone/target", json={"box": [1, 2, 3, 4]}), 409)


def test_a_target_is_drawn_on_a_frame_that_has_passed_then_paused_cleared(running):
    frame = until(lambda: running.daemon.get("idle").broadcast.pictures.newest, "a picture").number
    box = running.boxes[frame % 60]
    answer = running.client.post("/api/streams/idle/target", json={"box": box, "frame": frame})
    assert answer.status_code == 202
    assert answer.json()["frame"] == frame
    until(lambda: running.status("idle")["round"] >= 3, "rounds")
    first = next(e for e in running.daemon.get("idle").stats.frames(1500))
    assert (first["frame"], first["score"]) == (frame, 1.0)
    assert running.client.post("/api/streams/idle/checkpoint").status_code == 200
    assert running.client.post("/api/streams/idle/pause").json()["state"] == "paused"
    paused = running.status("idle")["frame"]
    assert running.client.post("/api/streams/idle/thaw").status_code == 200
    assert running.client.post("/api/streams/idle/resume").json()["paused"] is False
    until(lambda: running.status("idle")["frame"] > paused, "frames after the pause")
    assert running.client.delete("/api/streams/idle/target").status_code == 204
    assert running.status("idle")["target"] is None
    until(lambda: running.status("idle")["state"] == "waiting", "waiting")


def test_streams_are_added_changed_and_removed_and_the_added_are_kept(running):
    values = {"name": "added", "source": str(running.root / "other"), "fps": 50, "loop": True}
    answer = running.client.post("/api/streams", json=values)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/streams/added"
    problem(running.client.post("/api/streams", json=values), 409)
    kept = json.loads((running.root / "run" / "streams.json").read_text())
    assert [one["name"] for one in kept] == ["added"]
    changed = running.client.patch("/api/streams/added", json={"fps": 20, "outputs": {"boxes": ["mot"]}})
    assert changed.status_code == 200
    assert running.daemon.get("added").settings.stream.fps == 20
    assert running.daemon.get("added").settings.outputs.boxes == ("mot",)
    problem(running.client.patch("/api/streams/added", json={"name": "other"}), 422)
    problem(running.client.patch("/api/streams/added", json={"fsp": 20}), 422)
    assert "added" in [stream.name for stream in running.daemon._added.values()]
    assert running.client.delete("/api/streams/added?purge=true").status_code == 204
    assert not (running.root / "run" / "added").exists()
    assert json.loads((running.root / "run" / "streams.json").read_text()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x"},
        {"name": "x", "source": "/etc/passwd"},
        {"name": "x", "source": "/etc"},
        {"name": "x", "source": "rtsp://inside/x"},
        {"name": "x", "source": "rtsp://[x/"},
        {"name": "x", "source": "rtsp://h:99999/"},
        {"name": "x", "source": 0},
        {"name": "../x", "source": "."},
        {"name": "\ud800", "source": "\ud800"},
        {"name": "x", "source": None},
        {"name": "x", "source": True},
        {"name": "x", "source": 1.0},
        {"name": "x", "source": ["a"]},
        {"name": "x", "source": ".", "tracker": {"weights": "/etc/passwd"}},
        {"name": "x", "source": ".", "tracker": {"store": "/tmp/x"}},
    ],
)
def test_clients_name_no_files_outside_the_roots(running, values):
    detail = problem(running.client.post("/api/streams", content=json.dumps(values)), 422)["detail"]
    assert "root:" not in detail
    problem(running.client.patch("/api/streams/gone", content=json.dumps({**values, "name": "gone", "fps": -1})), 422)
    assert {session.name for session in running.daemon.sessions()} == {"scene", "idle", "gone"}


def texts(kind: type[Any] = TrackerConfig, *above: str) -> Iterator[tuple[str, ...]]:
    """The keys of a configuration that take any text, and so may name a file."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from texts(hint, *above, name)
        elif {str, Path} & {hint, *get_args(hint)}:
            yield (*above, name)


HARMLESS = {("name",), ("drop", "policy")}  # the daemon has its own name for it; one of a few names
FILES = [keys for keys in texts() if keys not in HARMLESS]


@pytest.mark.parametrize("keys", FILES, ids=".".join)
@pytest.mark.parametrize("file", ["/srv/secret.onnx", "net.ONNX", "../net", "folder/net", "C:\\net", "net.pt", ""])
def test_no_key_of_a_client_s_tracker_names_a_file(running, keys, file):
    tracker: Any = file
    for key in reversed(keys):
        tracker = {key: tracker}
    values = {"name": "x", "source": str(running.root / "other"), "tracker": tracker}
    assert "clients may" in problem(running.client.post("/api/streams", json=values), 422)["detail"]
    assert "clients may" in problem(running.client.patch("/api/streams/gone", json={"tracker": tracker}), 422)["detail"]


def test_keys_that_name_files_are_known():
    assert {("store",), ("weights",), ("backbone",), ("prior", "backbone"), ("prior", "head")} <= set(FILES)


def test_a_client_may_choose_among_the_networks(running):
    values = {"tracker": {"backbone": "resnet18", "drop": {"policy": "never"}}, "fps": -1}
    detail = problem(running.client.patch("/api/streams/gone", json=values), 422)["detail"]
    assert "fps" in detail
    assert "backbone" not in detail


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{" * 5000, "[" * 100_000, "\xff", '{"a": NaN}'])
def test_what_is_no_object_is_refused(running, text):
    for path in ("/api/streams", "/api/streams/gone/target"):
        answer = running.client.post(path, content=text.encode("latin-1"))
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "source", "fps", "loop", "box", "tracker", "outputs", "stale", "frame", "x"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=st.dictionaries(KEYS, JSON, max_size=5), path=st.sampled_from(["", "/gone", "/gone/target"]))
def test_no_body_makes_a_server_error(running, values, path):
    method = "PATCH" if path == "/gone" else "POST"
    values.pop("source", None)
    answer = running.client.request(method, f"/api/streams{path}", content=json.dumps(values))
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        problem(answer, answer.status_code)


def test_what_nobody_foresaw_is_a_problem_too_and_its_traceback_logged(caplog):
    app = FastAPI()
    problems.install(app)

    @app.get("/api/x")
    async def broken() -> None:
        raise ZeroDivisionError("at rtsp://u:secret@cam/x")

    body = problem(TestClient(app).get("/api/x"), 500)
    assert "ZeroDivisionError" in body["detail"]
    assert "secret" not in json.dumps(body)
    (record,) = [one for one in caplog.records if one.name == "streamdrop"]
    assert "GET /api/x" in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError


def test_an_answer_that_breaks_off_is_none(caplog):
    app = FastAPI()
    problems.install(app)

    def some() -> Iterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    @app.get("/api/x")
    async def broken() -> StreamingResponse:
        return StreamingResponse(some())

    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/api/x")
    assert not [one for one in caplog.records if one.name == "streamdrop"]  # the server logs it


def test_pictures_are_jpeg_with_and_without_the_box(running):
    from io import BytesIO

    from PIL import Image as pillow

    for query in ("", "?drawn=false"):
        answer = running.client.get("/api/streams/scene/snapshot.jpg" + query)
        assert answer.headers["content-type"] == "image/jpeg"
        assert pillow.open(BytesIO(answer.content)).size == (160, 120)


def test_events_arrive_on_the_socket_with_their_keys(running):
    with running.connect("/api/streams/scene/events") as socket:
        events = [socket.receive_json() for _ in range(8)]
        while not any("round" in event for event in events):  # rounds run in what frames leave of the time
            events.append(socket.receive_json())
    assert all("time" in event for event in events)
    assert any({"frame", "box", "score", "lost", "ms"} <= event.keys() for event in events)
    assert any({"round", "cut", "loss", "ms", "samples"} <= event.keys() for event in events)


def test_pictures_arrive_on_the_socket_with_their_status(running):
    with running.connect("/api/streams/scene/live", subprotocols=["streamdrop"]) as socket:
        assert socket.accepted_subprotocol == "streamdrop"
        numbers = []
        for _ in range(3):
            data = socket.receive_bytes()
            size = struct.unpack(">I", data[:4])[0]
            head = json.loads(data[4 : 4 + size])
            assert data[4 + size :].startswith(b"\xff\xd8")
            assert head["target"].keys() == {"box", "score", "lost"}
            numbers.append(head["frame"])
    assert numbers == sorted(set(numbers))


def test_a_socket_of_an_unknown_stream_is_closed_with_the_reason(running):
    connect = running.connect("/api/streams/none/events")
    with connect as socket, pytest.raises(WebSocketDisconnect) as caught:
        socket.receive_json()
    assert "no stream 'none'" in caught.value.reason


def test_watchers_are_limited():
    watchers = Watchers(1)
    with watchers.one(), pytest.raises(Exception, match=r"http\.watchers"), watchers.one():
        pass
    with watchers.one():
        assert watchers.count == 1


def test_metrics_parse_and_hold_the_streams(running):
    text = running.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    tracked = {one.labels["stream"]: one.value for one in families["streamdrop_tracked"].samples}
    assert tracked.keys() == {"scene", "idle", "gone"}
    assert tracked["scene"] > 3
    up = {one.labels["stream"]: one.value for one in families["streamdrop_stream_up"].samples}
    assert (up["scene"], up["gone"]) == (1, 0)
    latency = families["streamdrop_frame_latency_seconds"]
    counts = [s.value for s in latency.samples if s.name.endswith("_bucket") and s.labels["stream"] == "scene"]
    assert counts == sorted(counts)
    assert "secret" not in text


def test_health(running):
    assert running.client.get("/healthz").json() == {"status": "ok"}
    assert running.client.get("/readyz").status_code in (200, 503)


def test_the_description_names_every_endpoint(running):
    paths = running.client.get("/openapi.json").json()["paths"]
    for path in ("", "/{name}", "/{name}/target", "/{name}/pause", "/{name}/resume", "/{name}/thaw"):
        assert f"/api/streams{path}" in paths
    for path in ("/{name}/checkpoint", "/{name}/snapshot.jpg", "/{name}/rounds", "/{name}/live.mjpg"):
        assert f"/api/streams{path}" in paths


def test_the_page_is_one_small_file_that_loads_nothing_else(running):
    for path in ("/", "/docs"):
        answer = running.client.get(path)
        assert answer.status_code == 200
        assert len(answer.content) <= 150_000
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "https://" not in answer.text
        assert 'src="http' not in answer.text


def test_a_reload_touches_only_what_differs(running):
    running.client.post("/api/reload")  # what other tests patched is as configured again
    sessions = {session.name: session for session in running.daemon.sessions()}
    assert running.client.post("/api/reload").json()["unchanged"] == ["scene", "idle", "gone"]
    scene, idle, _ = running.config().streams
    fewer = [
        {"name": "idle", "source": idle.source, "fps": 29, "loop": True},
        {"name": "scene", "source": scene.source, "fps": 30, "loop": True, "box": list(scene.box)},
    ]
    changed = running.config(streams=fewer)
    done = running.daemon.reload(changed)
    assert done == {"stopped": ["gone"], "restarted": ["idle"], "started": [], "unchanged": ["scene"]}
    assert running.daemon.get("scene") is sessions["scene"]
    assert running.daemon.get("idle") is not sessions["idle"]
    with pytest.raises(ConfigError, match="needs a restart"):
        running.daemon.reload(running.config(http={"port": 1234}))
    done = running.daemon.reload(running.config())
    assert (done["started"], done["restarted"]) == (["gone"], ["idle"])
    running.settle()


def test_one_state_folder_has_one_daemon(tmp_path):
    code = (
        "import fcntl, os, sys\nfile = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "writer.lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another daemon"):
            Daemon(load_daemon({"state": str(tmp_path)}))
        other.stdin.close()


def test_damaged_additions_are_an_error_with_a_remedy(tmp_path):
    (tmp_path / "streams.json").write_text('[{"name": 3}]')
    with pytest.raises(OutputError, match="remove it"):
        Daemon(load_daemon({"state": str(tmp_path)}))


# -------------------------------------------------------------------- the guard


async def _body(request: Any) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def _socket(socket: Any) -> None:
    await socket.accept()
    await socket.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guarded(clock: Clock | None = None, **config: Any) -> TestClient:
    routes = [
        Route("/", _body),
        Route("/api/x", _body, methods=["GET", "POST"]),
        WebSocketRoute("/api/ws", _socket),
    ]
    app = Guard(Starlette(routes=routes), HttpConfig(**config), clock or Clock())
    return TestClient(app, base_url="http://127.0.0.1:8377")


def test_a_token_is_asked_for_everywhere_but_on_the_page():
    client = guarded(host="0.0.0.0", token="sixteen letters!")
    assert client.get("/").status_code == 200
    assert problem(client.get("/api/x"), 401)["remedy"].startswith("send it in the header")
    assert client.get("/api/x", headers={"authorization": "Bearer sixteen letters?"}).status_code == 401
    assert client.get("/api/x", headers={"authorization": "Bearer sixteen letters!"}).status_code == 200
    assert client.get("/api/x", headers={"authorization": b"Bearer \xff"}).status_code == 401
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/ws"):
        pass
    name = "bearer-hex." + b"sixteen letters!".hex()
    with client.websocket_connect("/api/ws", subprotocols=["streamdrop", name]):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/ws", subprotocols=["bearer-hex.zz"]):
        pass


def test_other_pages_may_neither_write_nor_listen():
    client = guarded(origins=("https://panel.lan",))
    for origin, status in (
        ("http://127.0.0.1:8377", 200),
        ("https://panel.lan", 200),
        ("http://evil", 403),
        ("null", 403),
    ):
        assert client.post("/api/x", headers={"origin": origin}).status_code == status
        assert client.get("/api/x", headers={"origin": origin}).status_code == 200
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/api/ws", headers={"host": "127.0.0.1", "origin": "http://evil"}),
    ):
        pass
    with client.websocket_connect("/api/ws", headers={"host": "127.0.0.1:8377", "origin": "http://127.0.0.1:8377"}):
        pass
    assert client.post("/api/x", headers={"origin": "http://[evil"}).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"host": "[::1"}).status_code == 421
    assert client.get("/", headers={"host": "localhost:99"}).status_code == 200


def test_bodies_and_rates_are_limited():
    clock = Clock()
    client = guarded(clock, max_body=1024, rate=3)
    assert client.post("/api/x", content=b"x" * 1024).text == "1024"
    problem(client.post("/api/x", content=b"x" * 1025), 413)
    problem(client.post("/api/x", content=iter([b"x" * 700, b"x" * 700])), 413)
    assert problem(client.get("/"), 429)["title"] == "Too many requests"
    clock.now += 1.0
    assert client.get("/").status_code == 200


def test_open_requests_are_limited():
    guard = Guard(Starlette(), HttpConfig(connections=1), Clock())
    guard._open = 1
    answer = TestClient(guard, base_url="http://127.0.0.1").get("/")
    problem(answer, 503)
