"""A tracker in an application that sets torch otherwise, and in several threads."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_settings import SETTINGS

from streamdrop.boxes import Box
from streamdrop.errors import ConfigError, TrainingError
from streamdrop.tracking import Targets, Tracker
from streamdrop.tracking.threads import both, in_order
from streamdrop.types import Image

QUICK: dict[str, Any] = {
    "search": {"size": 64},
    "first_frame": {"crops": 4, "steps": 2, "batch": 2, "again": 0},
    "update": {"every": 1, "steps": 1, "recent": 2, "first": 1, "certain": 0.0},
    "lost": {"below": 0.0, "floor": 0.0, "found": 0.0},
    "box": {"samples": 30},
    "drop": {"steps": 1},
}
BOX = (20, 15, 20, 18)


@cache
def frames() -> list[Image]:
    ground = np.random.default_rng(0).integers(0, 120, (60, 80, 3), dtype=np.uint8)
    found = [ground.copy() for _ in range(3)]
    for at, frame in enumerate(found):
        frame[15 + at : 33 + at, 20 + 2 * at : 40 + 2 * at] = (230, 40, 90)
    return found


def boxes(config: dict[str, Any] = QUICK) -> list[Box]:
    tracker = Tracker.from_config(config)
    first, *rest = frames()
    return [tracker.init(first, BOX).box, *(tracker.update(image).box for image in rest)]


@cache
def expected() -> list[Box]:
    return boxes()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_the_application_sets_changes_no_box(setting: Callable[[], AbstractContextManager[None]]) -> None:
    with setting():
        found = boxes()
    assert found == expected()


def test_a_tracker_goes_on_where_the_application_sets_torch_otherwise_midway(tmp_path: Path) -> None:
    first, second, third = frames()
    targets = Targets.from_config(QUICK)
    with torch.inference_mode():
        targets.init(first, [BOX])
        targets.save(tmp_path)
    targets.restore(tmp_path)
    found = [targets.update(second)[1].box]
    with torch.no_grad():
        found.append(targets.update(third)[1].box)
    assert found == expected()[1:]


def test_another_default_dtype_is_refused_with_the_remedy() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ConfigError, match=r"float64.*float32.*set_default_dtype"):
            Tracker.from_config(QUICK)
    finally:
        torch.set_default_dtype(torch.float32)


def test_trackers_in_threads_give_the_boxes_of_one() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(boxes, [QUICK] * 3)) == [expected()] * 3


def test_a_system_that_starts_no_more_threads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tracker = Tracker.from_config({**QUICK, "threads": 2, "realtime": {"beside": True}})
    first, second, _ = frames()
    tracker.init(first, BOX)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(TrainingError, match=r"can't start.*ulimit"):
        list(in_order(int, [1, 2, 3], 2))
    with pytest.raises(TrainingError, match=r"can't start.*ulimit"):
        both(int, int, 2)
    with pytest.raises(TrainingError, match=r"can't start.*realtime\.beside=false"):
        tracker.update(second)
    tracker.close()


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_process_forked_after_a_tracker_tracks_too() -> None:
    found = expected()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(boxes).get(timeout=60) == found
