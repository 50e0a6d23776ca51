"""The daemon as a whole process: fairness, latency, API under load, start, recovery after kill -9, a soak.

    python benchmarks/daemon.py [--parts start,fairness,latency,api,clients,recovery] [--seconds 30]
                                [--output FILE.json]
    python benchmarks/daemon.py --parts soak --frames 100000

Streams are the sample clip at 640x480, looped. Figures are of this machine, and of all that runs on it meanwhile.

- start: from starting the process to the first tracked frame, with an empty state folder.
- fairness: 4 streams of 15 fps with rounds: Jain's index of the frames tracked (1: all get the same); dropped frames.
- latency: one stream at 25 and at 15 fps: from a frame's arrival to its box, frames in which a round ran included.
- api: 200 requests a second to /api/streams by 8 clients while 2 streams run.
- clients: 90 clients that never read, a third each MJPEG, WebSocket pictures and WebSocket events of one stream:
  memory before, while they are there and after; how many still have a connection in the end.
- recovery: the process is killed (SIGKILL) and started again: seconds to the first tracked frame, and the mean overlap
  of the next 50 frames' boxes with those of a run that was never killed.
- soak: 6 streams until so many frames have been tracked: memory, open files and bytes of the state folder over time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from daemonbench.serving import Serving, looped, make_source, memory, resources, running, serving, wait

from streamdrop.boxes import iou
from streamdrop.evaluation.hardware import describe_hardware

Result = dict[str, Any]


def main() -> None:
    options = arguments()
    print(describe_hardware(), flush=True)
    results: dict[str, Any] = {"hardware": describe_hardware(), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="streamdrop-daemon-") as folder:
        source, box = make_source(Path(folder) / "clip.mp4")
        for part in options.parts.split(","):
            place = Path(folder) / part
            place.mkdir()
            results[part] = PARTS[part](place, source, box, options)
            print(f"{part}: {json.dumps(results[part])}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def start(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    with serving(folder, looped(source, box, 1, 15)) as one:
        answered = time.perf_counter() - one.began
        wait(lambda: one.streams()["s0"]["tracked_frames"] >= 1)
        first = time.perf_counter() - one.began
        return {"answers_s": round(answered, 2), "first_tracked_s": round(first, 2), "sigterm_s": round(one.end(), 2)}


def fairness(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    with serving(folder, looped(source, box, 4, 15)) as one:
        wait(lambda: running(one))
        before, began = one.streams(), time.perf_counter()
        time.sleep(options.seconds)
        after, seconds = one.streams(), time.perf_counter() - began
        gained = {k: np.array([after[n][k] - before[n][k] for n in after]) for k in COUNTED}
        tracked, dropped = gained["tracked_frames"], gained["dropped_frames"]
        return {
            "fps": [round(float(value) / seconds, 2) for value in tracked],
            "fairness": round(float(tracked.sum() ** 2 / (len(tracked) * (tracked**2).sum())), 4),
            "dropped_percent": round(100 * float(dropped.sum() / (dropped.sum() + tracked.sum())), 1),
            "rounds": int(gained["round"].sum()),
        }


COUNTED = ("tracked_frames", "dropped_frames", "round")


def latency(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    return {f"{fps} fps": _latency(folder / str(fps), source, box, options, fps) for fps in (15, 25)}


def _latency(folder: Path, source: Path, box: list[float], options: argparse.Namespace, fps: float) -> Result:
    folder.mkdir()
    with serving(folder, looped(source, box, 1, fps)) as one:
        wait(lambda: running(one))
        before = one.streams()["s0"]
        time.sleep(options.seconds)
        after = one.streams()["s0"]
        values = [e["latency_ms"] for e in one.events("s0") if "latency_ms" in e and e["frame"] > before["frame"]]
        p50, p99 = np.percentile(values, [50, 99])
        return {
            "n": len(values),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "dropped": after["dropped_frames"] - before["dropped_frames"],
            "rounds": after["round"] - before["round"],
        }


def api(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    with serving(folder, looped(source, box, 2, 15)) as one:
        wait(lambda: running(one))
        times: list[float] = []
        clients = [threading.Thread(target=ask, args=(one.address, 25, options.seconds, times)) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        p50, p99 = np.percentile(times, [50, 99])
        rate = len(times) / options.seconds
        return {
            "n": len(times),
            "per_s": round(rate, 1),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
        }


def ask(address: str, rate: float, seconds: float, times: list[float]) -> None:
    """GET /api/streams ``rate`` times a second over one connection."""
    connection = HTTPConnection(address.removeprefix("http://"))
    due, end = time.perf_counter(), time.perf_counter() + seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        connection.request("GET", "/api/streams")
        connection.getresponse().read()
        times.append((time.perf_counter() - began) * 1e3)
        due += 1 / rate
    connection.close()


def clients(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    with serving(folder, looped(source, box, 1, 15)) as one:
        wait(lambda: running(one))
        time.sleep(options.seconds)  # until the buffers of the stream itself are full
        before = memory(one)
        with ExitStack() as stack:
            for number in range(CLIENTS):
                stack.enter_context(unread(one.address, WATCHED[number % len(WATCHED)]))
            peak, end = 0.0, time.perf_counter() + options.seconds
            while time.perf_counter() < end:
                time.sleep(0.5)
                peak = max(peak, memory(one))
            left = connections(one)
        time.sleep(2.0)
        return {
            "mb": [round(value, 1) for value in (before, peak, memory(one))],
            "mb_a_client": round((peak - before) / CLIENTS, 3),
            "connected_after_s": [options.seconds, left],
            "tracked_fps": one.streams()["s0"]["fps"],
        }


CLIENTS = 90
WATCHED = ("live.mjpg", "live", "events")


def unread(address: str, what: str) -> socket.socket:
    """A client that asks to watch and never reads."""
    parts = urlsplit(address)
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    client = socket.create_connection((parts.hostname or "", parts.port or 0))
    asked = f"GET /api/streams/s0/{what} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    client.sendall(f"{asked}{'' if '.' in what else upgrade}\r\n".encode())
    return client


def connections(one: Serving) -> int:
    """Sockets that the daemon has open, the one that listens included."""
    links = (os.readlink(path) for path in (Path("/proc") / str(one.child.pid) / "fd").iterdir())
    return sum(link.startswith("socket:") for link in links)


def recovery(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    streams, goal = looped(source, box, 1, 8), 60  # slow enough to drop nothing: then the runs can be compared
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    with serving(folder / "whole", streams) as one:
        wait(lambda: one.streams()["s0"]["frame"] > goal + 70)
    whole = {event["frame"]: event["box"] for event in one.events("s0") if "score" in event}
    with serving(folder / "killed", streams) as one:
        wait(lambda: one.streams()["s0"]["frame"] > goal)
        one.kill()
        rounds = [event["round"] for event in one.events("s0") if "after_frame" in event][-1]
        seen = sum("score" in event for event in one.events("s0"))
        one.start()
        wait(lambda: sum("score" in event for event in one.events("s0")) > seen)
        seconds = time.perf_counter() - one.began
        kept = one.streams()["s0"]["round"]
        wait(lambda: one.streams()["s0"]["frame"] > goal + 55)
        later = [event for event in one.events("s0") if "score" in event][seen:][:50]
    overlaps = [float(iou(event["box"], whole[event["frame"]])) for event in later if event["frame"] in whole]
    return {
        "first_tracked_s": round(seconds, 2),
        "rounds_lost": max(0, rounds - kept),
        "overlap": round(float(np.mean(overlaps)), 3),
        "frames_compared": len(overlaps),
    }


def soak(folder: Path, source: Path, box: list[float], options: argparse.Namespace) -> Result:
    tracker = {"update": {"every": 10}}
    with serving(folder, looped(source, box, 6, 60), tracker=tracker) as one:
        wait(lambda: running(one))
        points: list[tuple[int, float, float, int, int]] = []
        frames = dropped = 0
        print(f"  {'frames':>8}{'MB':>10}{'own MB':>10}{'files':>8}{'state MB':>10}")
        while frames < options.frames:
            time.sleep(min(30.0, options.seconds))
            streams = one.streams().values()
            frames, dropped = (sum(s[name] for s in streams) for name in ("tracked_frames", "dropped_frames"))
            points.append((frames, *resources(one)))
            *counts, size = points[-1]
            print("  {:>8}{:>10.1f}{:>10.1f}{:>8}{:>10.1f}".format(*counts, size / 1e6), flush=True)
        first, last = points[0], points[-1]
        return {
            "frames": frames,
            "dropped": dropped,
            "mb": [round(first[1], 1), round(last[1], 1)],
            "own_mb": [round(first[2], 1), round(last[2], 1)],
            "mb_per_100000_frames": _slope(points, 1),
            "own_mb_per_100000_frames": _slope(points, 2),
            "points": points,
            "files": [first[3], last[3]],
            "state_bytes": [first[4], last[4]],
        }


def _slope(points: list[tuple[int, float, float, int, int]], column: int) -> float | None:
    """Growth per 100,000 frames over all but the first tenth, in which everything is first used."""
    later = np.array(points[len(points) // 10 :], float)
    return round(float(np.polyfit(later[:, 0], later[:, column], 1)[0]) * 1e5, 1) if len(later) > 2 else None


PARTS: dict[str, Callable[[Path, Path, list[float], argparse.Namespace], Result]] = {
    "start": start,
    "fairness": fairness,
    "latency": latency,
    "api": api,
    "clients": clients,
    "recovery": recovery,
    "soak": soak,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="start,fairness,latency,api,clients,recovery")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--frames", type=int, default=100_000, help="tracked in the soak")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
