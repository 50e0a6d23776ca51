"""What the daemon's tests share: a scene on disk, a small tracker, and waiting without sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as pillow

from streamdrop.testing import moving_square


def make_scene(folder: Path, frames: int = 60) -> list[list[float]]:
    """A square that circles once in 60 frames, as images; its box in each."""
    images, boxes = moving_square(frames)
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        pillow.fromarray(image).save(folder / f"{number:05}.png", compress_level=1)
    return [list(box) for box in boxes]


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait until ``condition`` gives something true, and return that."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        pause.wait(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")
