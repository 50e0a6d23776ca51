"""Runs one of OpenCV's trackers, as a program of its own: it imports nothing but cv2, numpy and the standard library.

It reads one JSON request from stdin and answers in JSON lines on stdout: first ``{"opencv": version}``, then per frame
seen ``{"frame": index, "at": seconds, "box": [x, y, w, h], "ok": bool, "ms": float, "cpu_s": float}``; ``{"error":
text}`` where it has to stop. Request: ``{"tracker": name, "frames": [paths], "box": [x, y, w, h], "models": [paths],
"fps": rate or null, "tones": [black, white]}``. With a rate, frames go by while it is busy, as
streamdrop.evaluation.realtime says; ``tones`` are the values of 16-bit frames that are shown black and white.
The first box is rounded to whole pixels, the last box is held when the tracker reports failure; only ``init`` and
``update`` are timed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2

library: Any = cv2  # which names it has depends on its version and build
CLASSES = {"csrt": "CSRT", "kcf": "KCF", "mil": "MIL", "mosse": "MOSSE", "medianflow": "MedianFlow"}
SEED = 12345


def create(name: str, models: Sequence[str]) -> Any:
    """A tracker by name, wherever this OpenCV keeps it: ``cv2.TrackerX`` (4.x, 5.x) or ``cv2.legacy``."""
    if name == "nano":
        params = library.TrackerNano_Params()
        params.backbone, params.neckhead = models
        return library.TrackerNano_create(params)
    if name == "vit":
        params = library.TrackerVit_Params()
        (params.net,) = models
        return library.TrackerVit_create(params)
    attribute = f"Tracker{CLASSES[name]}_create"
    for home in (library, getattr(library, "legacy", None)):
        if hasattr(home, attribute):
            return getattr(home, attribute)()
    raise LookupError(f"OpenCV {cv2.__version__} has no {attribute}: install opencv-contrib-python-headless")


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Result, wall-clock milliseconds and CPU seconds of a call."""
    cpu, began = time.process_time(), time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - began) * 1000, time.process_time() - cpu


def read(path: str, tones: Sequence[float]) -> Any:
    """A frame, uint8 BGR; one of 16 bits is shown between ``tones``."""
    image: Any = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise LookupError(f"{path} cannot be decoded")
    if image.dtype == "uint8":
        return image
    low, high = tones
    return ((image.astype("float32") - low) * (255 / (high - low)) + 0.5).clip(0, 255).astype("uint8")


def track(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One answer per frame."""
    cv2.setRNGSeed(SEED)
    tracker = create(request["tracker"], request["models"])
    box = [round(v) for v in request["box"]]
    frames, fps = request["frames"], request["fps"]
    index, started = 0, 0.0
    while index < len(frames):
        decoding = time.perf_counter()
        image = read(frames[index], request["tones"])
        started += time.perf_counter() - decoding
        if index == 0:
            _, ms, cpu_s = timed(tracker.init, image, tuple(box))
            ok, started = True, time.perf_counter()
        else:
            (ok, found), ms, cpu_s = timed(tracker.update, image)
            box = [float(v) for v in found] if ok else box
        at = time.perf_counter() - started
        yield {"frame": index, "at": at if index else 0.0, "box": box, "ok": bool(ok), "ms": ms, "cpu_s": cpu_s}
        index = index + 1 if fps is None else wait(index, started, fps, len(frames))


def wait(index: int, started: float, fps: float, frames: int) -> int:
    """The frame to see after ``index``, once it is there: the newest that has arrived, or else the next."""
    elapsed = time.perf_counter() - started
    following = max(index + 1, min(int(elapsed * fps + 1e-9), frames - 1))
    if following < frames:
        time.sleep(max(following / fps - elapsed, 0.0))
    return following


def main() -> None:
    """Answer the request on stdin."""
    print(json.dumps({"opencv": cv2.__version__}), flush=True)
    try:
        for answer in track(json.load(sys.stdin)):
            print(json.dumps(answer), flush=True)
    except (cv2.error, LookupError) as error:
        print(json.dumps({"error": " ".join(str(error).split())}), flush=True)


if __name__ == "__main__":
    main()
