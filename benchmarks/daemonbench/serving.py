"""A daemon in a process of its own, on the sample clip: what the parts of benchmarks/daemon.py share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import yaml
from storebench.measure import resident

import streamdrop as sd
from streamdrop.streams import VideoWriter

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = (640, 480)


def make_source(path: Path) -> tuple[Path, list[float]]:
    """The sample clip at ``SIZE``, and the target in its first frame."""
    with sd.open_stream(ROOT / "data_samples" / "clip.mp4") as stream, VideoWriter(path, stream.fps, SIZE) as writer:
        width, height = stream.size or SIZE
        for sample in stream:
            writer.write(cv2.resize(sample.image, SIZE, interpolation=cv2.INTER_LINEAR))
    x, y, w, h = (float(v) for v in (ROOT / "data_samples" / "clip.txt").read_text().split("\n")[0].split(","))
    p, q = SIZE[0] / width, SIZE[1] / height
    return path, [x * p, y * q, w * p, h * q]


class Serving:
    """``streamdrop serve`` with some streams, in a process of its own."""

    def __init__(self, folder: Path, streams: list[dict[str, Any]], **values: Any) -> None:
        self.folder, self.config = folder, folder / "daemon.yaml"
        state = {"state": str(folder / "run"), "http": {"port": 0, "rate": 10_000}, "streams": streams}
        self.config.write_text(yaml.safe_dump({**state, **values}))
        self.start()

    def start(self) -> None:
        """Start the process and wait for its address."""
        self.began = time.perf_counter()
        where = self.folder / "run" / "daemon.json"
        where.unlink(missing_ok=True)
        command = [sys.executable, "-m", "streamdrop", "serve", str(self.config)]
        self.child = subprocess.Popen(command, cwd=ROOT, stderr=(self.folder / "log").open("ab"))
        wait(lambda: where.exists() and where.read_text())
        self.address = json.loads(where.read_text())["address"]

    def streams(self) -> dict[str, dict[str, Any]]:
        """What the API says about every stream."""
        with urllib.request.urlopen(self.address + "/api/streams") as answer:
            return {one["name"]: one for one in json.load(answer)}

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        """The events that a stream has written."""
        for path in (self.folder / "run" / name / "events.1.jsonl", self.folder / "run" / name / "events.jsonl"):
            if path.exists():
                yield from (json.loads(line) for line in path.read_text().splitlines())

    def kill(self) -> None:
        """End it as a power cut would."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def end(self) -> float:
        """End it as asked; the seconds that took."""
        began = time.perf_counter()
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()
        return time.perf_counter() - began


@contextmanager
def serving(folder: Path, streams: list[dict[str, Any]], **values: Any) -> Iterator[Serving]:
    one = Serving(folder, streams, **values)
    try:
        yield one
    finally:
        if one.child.poll() is None:
            one.end()


def wait(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon does not come up: see its log")
        time.sleep(0.02)


def looped(source: Path, box: list[float], count: int, fps: float) -> list[dict[str, Any]]:
    names = [f"s{number}" for number in range(count)]
    return [{"name": name, "source": str(source), "fps": fps, "loop": True, "box": box} for name in names]


def running(one: Serving) -> bool:
    return all(stream["tracked_frames"] > 5 for stream in one.streams().values())


def memory(one: Serving) -> float:
    """Resident memory in MB."""
    pages = int((Path("/proc") / str(one.child.pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def resources(one: Serving) -> tuple[float, float, int, int]:
    """Resident memory in MB, what of it is the process's own (mapped files left out), open files, bytes of state."""
    size = sum(path.stat().st_size for path in (one.folder / "run").rglob("*") if path.is_file())
    own = resident(one.child.pid)["anon"] / 2**20
    return memory(one), own, len(list((Path("/proc") / str(one.child.pid) / "fd").iterdir())), size
