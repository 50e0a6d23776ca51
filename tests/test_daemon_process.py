"""The daemon as a process: killed at any time it goes on, told to end it saves, told to reload it does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from daemons import SECONDS, make_scene, until
from small_tracker import SMALL

from streamdrop.boxes import iou
from streamdrop.cli import main
from streamdrop.service import serve

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """``streamdrop serve`` in a folder of its own."""

    def __init__(self, folder: Path, streams: list[dict[str, Any]]) -> None:
        self.folder, self.config = folder, folder / "d.yaml"
        self.write(streams)
        self.child: subprocess.Popen[bytes] | None = None

    def write(self, streams: list[dict[str, Any]], **more: Any) -> None:
        values = {"state": str(self.folder / "run"), "http": {"port": 0}, "tracker": SMALL, "streams": streams}
        self.config.write_text(yaml.safe_dump({**values, **more}))

    def start(self, wrapper: Sequence[str] = ()) -> None:
        (self.folder / "run" / "daemon.json").unlink(missing_ok=True)
        command = [*wrapper, sys.executable, "-m", "streamdrop", "serve", str(self.config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / "log").open("ab") as log:
            self.child = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        where = self.inside / "run" / "daemon.json"
        until(lambda: self.alive() and where.exists() and where.read_text(), "the daemon's address")
        self.address = json.loads(where.read_text())["address"]

    @property
    def inside(self) -> Path:
        """The folder as the daemon sees it."""
        assert self.child is not None
        return Path(f"/proc/{self.child.pid}/root") / self.folder.relative_to("/")

    def alive(self) -> bool:
        assert self.child is not None
        assert self.child.poll() is None, (self.folder / "log").read_text()
        return True

    def get(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.address + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=SECONDS) as answer:
            return str(answer.read().decode())

    def stream(self, name: str = "scene") -> dict[str, Any]:
        return dict(self.get(f"/api/streams/{name}"))

    def end(self, number: int, seconds: float = SECONDS) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(seconds)

    def events(self, name: str = "scene") -> list[dict[str, Any]]:
        folder = self.inside if self.child is not None and self.child.poll() is None else self.folder
        text = (folder / "run" / name / "events.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    boxes = make_scene(tmp_path / "scene")
    stream = {"name": "scene", "source": str(tmp_path / "scene"), "fps": 20, "loop": True, "box": boxes[0]}
    one = Process(tmp_path, [stream])
    one.boxes, one.first = boxes, stream
    yield one
    if one.child is not None and one.child.poll() is None:
        one.child.kill()
        one.child.wait(SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_it_goes_on_then_reloads_and_ends_when_told(process):
    process.start()
    until(lambda: process.stream()["round"] >= 4, "rounds")
    goal = process.stream()["tracked_frames"] + random.Random(0).randrange(2, 10)
    until(lambda: process.stream()["tracked_frames"] >= goal, "more frames")
    process.end(signal.SIGKILL)
    done = [event["round"] for event in process.events() if "after_frame" in event][-1]

    process.start()
    until(lambda: process.stream()["state"] in ("tracking", "uncertain"), "tracking again")
    status = process.stream()
    assert status["round"] >= done - 1  # at most one round is lost
    goal = status["tracked_frames"] + 15
    until(lambda: process.stream()["tracked_frames"] >= goal, "more frames")
    kinds = [event["event"] for event in process.events() if "event" in event]
    assert (kinds.count("target"), kinds.count("restored")) == (1, 1)

    second = {"name": "second", "source": str(process.folder / "scene"), "fps": 5, "loop": True}
    process.write([process.first, second])
    process.child.send_signal(signal.SIGHUP)
    until(lambda: len(process.get("/api/streams")) == 2, "a second stream")
    process.config.write_text("streams: [{nam: x}]")
    assert process.get("/api/reload", "POST")["status"] == 422
    assert len(process.get("/api/streams")) == 2

    assert process.end(signal.SIGTERM) == 0
    assert process.events()[-1]["event"] == "stopped"
    last = [event for event in process.events() if "score" in event][-12:]
    assert np.mean([float(iou(one["box"], process.boxes[one["frame"] % 60])) for one in last]) > 0.5
    state = json.loads((process.folder / "run" / "scene" / "stream.json").read_text())
    assert state["targets"]["1"]["learned"]
    assert not (process.folder / "run" / "daemon.json").exists()


def small_disk(folder: Path, size: str) -> list[str]:
    """A command's beginning: it sees ``folder`` as a disk of that size, which nobody else does."""
    mounting = 'mount -t tmpfs -o size="$1" disk "$2" && shift 2 && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounting, "sh", size, str(folder)]


def may_mount(folder: Path) -> bool:
    return subprocess.run([*small_disk(folder, "1m"), "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1)")
def test_a_disk_that_fills_is_told_and_the_target_goes_on_once_there_is_room(process):
    state = process.folder / "run"
    state.mkdir()
    if not may_mount(state):
        pytest.skip("user namespaces are not permitted here")
    process.write([process.first], limits={"retry_first": 0.2, "retry_most": 0.5})
    process.start(small_disk(state, "96m"))
    until(lambda: process.stream()["round"] >= 12, "rounds")
    before = process.stream()["tracked_frames"]
    ballast = process.inside / "run" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    failures = re.compile(r'streamdrop_failures_total\{stream="scene"\} (\d+)')
    until(lambda: int(failures.search(process.text("/metrics"))[1]) > 3, "more failures than a checkpoint is kept for")
    until(lambda: re.search("free (some|that much)|free space", process.text("/api/streams/scene")), "the remedy")
    ballast.unlink()
    until(lambda: process.stream()["state"] in ("tracking", "uncertain"), "tracking again")
    until(lambda: process.stream()["tracked_frames"] > before + 15, "frames again")
    until(lambda: process.stream()["error"] is None, "no error any more")
    events = process.events()  # whole lines all
    assert [event.get("event") for event in events].count("target") == 1
    last = [event for event in events if "score" in event][-8:]
    assert np.mean([float(iou(one["box"], process.boxes[one["frame"] % 60])) for one in last]) > 0.5
    assert process.end(signal.SIGTERM) == 0


_SIGNALLED = """
import os, sys
number = int(sys.argv.pop())
class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), number)
            except BaseException:
                pass
sys.meta_path.insert(0, Signalling())
from streamdrop.cli import program
program()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "interrupted before anything"),
        (signal.SIGINT, 130, "interrupted before anything"),
        (signal.SIGHUP, 2, "no such configuration"),
    ],
)
def test_a_signal_while_libraries_are_loaded_counts_though_they_swallow_exceptions(tmp_path, number, status, said):
    command = [sys.executable, "-c", _SIGNALLED, "serve", str(tmp_path / "none.yaml"), str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_is_ended_while_libraries_are_loaded_ends(tmp_path):
    clip = str(ROOT / "data_samples" / "clip.mp4")
    command = [
        "track",
        clip,
        "--box",
        "112,85,128,72",
        "--boxes",
        str(tmp_path / "boxes.txt"),
        str(int(signal.SIGTERM)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 143, done.stderr
    assert "interrupted" in done.stderr
    assert not (tmp_path / "boxes.txt").exists()


def test_signals_that_came_together_are_obeyed_together():
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (1, 1, 15):
        arrived.put(number)
    assert serve._next(arrived) == {1, 15}


@pytest.fixture
def own_process() -> Iterator[None]:
    """``serve`` has its process to itself: its log and how threads take turns are not left to other tests."""
    root, interval = logging.getLogger(), sys.getswitchinterval()
    handlers, level = root.handlers[:], root.level
    yield
    sys.setswitchinterval(interval)
    logging.captureWarnings(False)
    logging.getLogger("uvicorn").setLevel(logging.NOTSET)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("own_process")
def test_a_wrong_configuration_ends_in_one_line_before_anything_starts(tmp_path, capsys):
    (tmp_path / "d.yaml").write_text(f"state: {tmp_path}/run\nstreams: [{{nam: x}}]")
    assert main(["serve", str(tmp_path / "d.yaml")]) == 2
    said = capsys.readouterr().err
    assert "did you mean name" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own_process")
def test_an_address_that_is_taken_is_said(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "d.yaml").write_text(f"state: {tmp_path}/run\nhttp: {{port: {port}}}")
        assert main(["serve", str(tmp_path / "d.yaml")]) == 1
    assert "choose another port" in capsys.readouterr().err


def test_the_example_says_what_is_wrong_with_a_box(tmp_path, monkeypatch, capsys):
    example = runpy.run_path(str(ROOT / "apps" / "daemon.py"))
    monkeypatch.setattr(sys, "argv", ["daemon.py", "--box", "1,2", "--state", str(tmp_path)])
    assert example["main"]() == 1
    assert "give x,y,w,h" in capsys.readouterr().err
