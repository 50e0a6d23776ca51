"""What clocks, other threads and a machine that is slow for a moment must not change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from daemons import SECONDS, make_scene, until
from small_tracker import SMALL

from streamdrop.service.capture import backoff
from streamdrop.service.frames import Arrival
from streamdrop.service.settings import SessionSettings, load_daemon, tracker_settings
from streamdrop.service.share import Share
from streamdrop.service.stats import Stats
from streamdrop.service.worker import Worker
from streamdrop.streams import open_stream


@pytest.fixture
def worker(tmp_path) -> Iterator[Worker]:
    """A worker whose target is to be learned; nobody reads its source."""
    box = make_scene(tmp_path / "scene", 9)[0]
    stream = {"name": "s", "source": str(tmp_path / "scene"), "box": box}
    config = load_daemon({"state": str(tmp_path), "tracker": SMALL, "streams": [stream]})
    one = config.streams[0]
    worker = Worker(
        SessionSettings(one, tracker_settings(config, one), config.outputs, config.limits), tmp_path / "s", Share(1)
    )
    yield worker
    worker.stop()
    assert worker.join(SECONDS)


@pytest.mark.slow
def test_a_target_is_learned_on_its_own_frame_however_late_that_is_taken(worker, tmp_path):
    """Its box is one in the first frame: half-way to the newest, where a late tracker goes on, it is elsewhere."""
    with open_stream(str(tmp_path / "scene")) as stream:
        for sample in stream:
            worker.buffer.put(Arrival(sample.index, sample.index, sample.image, 0.0))
    worker._thread.start()
    (first, *_) = until(lambda: worker.stats.frames(9), "a target that was learned")
    assert first["frame"] == 0


def test_a_wait_draws_from_no_generator_that_others_watch():
    """A source that is missed is tried again while another stream's network is traced: it would pass for random."""
    before = random.getstate()
    assert len({backoff(1, 1, 30) for _ in range(20)}) > 1
    assert random.getstate() == before


def test_the_rate_is_of_the_last_seconds_whatever_the_time_of_day(monkeypatch):
    clock, stats = SimpleNamespace(now=100.0), Stats()
    jumping = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: -1e9 * clock.now)
    monkeypatch.setattr("streamdrop.service.stats.time", jumping)
    assert stats.fps == 0
    for _ in range(21):
        stats.tracked({}, [], 0.0)
        clock.now += 0.1
    assert stats.fps == pytest.approx(10)
    for _ in range(100):
        stats.tracked({}, [], 0.0)
        clock.now += 0.05
    assert stats.fps == pytest.approx(20, abs=0.3)
    clock.now += 6
    assert stats.fps == 0
