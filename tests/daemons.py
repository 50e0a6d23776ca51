"""What the daemon's tests share: a scene on disk, frames in step with the tracker, and waiting without sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from streamdrop.service.frames import Arrival
from streamdrop.service.worker import Worker
from streamdrop.testing import moving_square

SECONDS = 120.0
"""How long a test waits for what must happen: reached only when something is broken."""


def make_scene(folder: Path, frames: int = 60) -> list[list[float]]:
    """A square that circles once in 60 frames, as images; its box in each."""
    images, boxes = moving_square(frames)
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        pillow.fromarray(image).save(folder / f"{number:05}.png", compress_level=1)
    return [list(box) for box in boxes]


def in_step(patch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no frame is dropped: the next comes once the last was taken. Commands may wait."""
    came, pause = Worker._came, threading.Event()

    def in_turn(worker: Worker, arrival: Arrival) -> None:
        while worker.buffer.waiting() and not worker._stopping.is_set():
            pause.wait(0.002)
        if not worker._stopping.is_set():
            came(worker, replace(arrival, at=time.monotonic()))

    patch.setattr(Worker, "_came", in_turn)
    patch.setattr("streamdrop.service.stream_session._COMMAND", SECONDS)


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait until ``condition`` gives something true, and return that."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        pause.wait(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")
