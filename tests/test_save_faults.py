"""Saving on a system that fails, at any call: what was saved before or what is saved now can be loaded, whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import FILES, Seam, failing
from small_tracker import SMALL

from streamdrop import checkpoint, safetensors_file
from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError, OutputError, StoreError, StreamdropError
from streamdrop.service.track_run import TrackRun
from streamdrop.store import LmdbStore, MemoryStore
from streamdrop.store.prefetch import read_ahead
from streamdrop.streams.writer import VideoWriter
from streamdrop.testing.targets import moving_squares
from streamdrop.tracking import Targets, Tracker
from streamdrop.types import Sample, Track

SEAMS: tuple[Seam, ...] = (*(seam for seam in FILES if seam[1] != "unlink"), (safetensors_file, "save_file"))


def save(path: Path, number: int) -> None:
    part = {"model": {"weight": torch.full((3,), float(number))}}
    checkpoint.take_snapshot(part, {"number": number}).write(path)


def load(path: Path) -> int:
    parts, state = checkpoint.read_checkpoint(path)
    assert parts["model"]["weight"].tolist() == [state["number"]] * 3
    return int(state["number"])


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_checkpoint_is_the_old_or_the_new_one_and_leaves_no_other(tmp_path: Path, lasting: bool) -> None:
    save(tmp_path, 0)
    at, fired = 0, True
    while fired:
        at += 1
        before = load(tmp_path)
        with failing(SEAMS, at, lasting) as faults:
            try:
                save(tmp_path, at)
                after = [at]
            except OutputError:
                after = [before, at]
        fired = faults.fired
        assert load(tmp_path) in after
        if not lasting:  # else nothing can be removed either
            assert max(tmp_path.glob("state-*")).name == (tmp_path / "current").read_text()
    assert at > 8
    assert len(list(tmp_path.glob("state-*"))) == 1


def test_targets_go_on_where_a_checkpoint_cannot_be_restored(tmp_path: Path) -> None:
    images, truth = moving_squares(3, count=2)
    targets = Targets.from_config(SMALL)
    targets.init(images[0], [one[0] for one in truth])
    targets.save(tmp_path)
    with failing(SEAMS, 12), pytest.raises(OutputError):  # within the second target's
        targets.save(tmp_path)
    assert [folder.name for folder in tmp_path.glob("set-*")] == ["set-000001"]
    damaged = tmp_path / "set-000001" / "2" / "state-000001" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        targets.restore(tmp_path)
    assert targets.ids == (1, 2)
    assert sorted(targets.update(images[1])) == [1, 2]


@pytest.mark.parametrize("how", ["init", "restore"])
def test_a_tracker_that_cannot_begin_lets_go_of_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            raise StoreError("no room")

        load = __init__

    images, truth = moving_squares(1)
    tracker = Tracker.from_config({**SMALL, "store": str(tmp_path)})
    monkeypatch.setattr("streamdrop.tracking.learner.FineTuner", Full)
    with pytest.raises(StoreError, match="no room") as held:
        tracker.init(images[0], truth[0][0]) if how == "init" else tracker.restore(tmp_path)
    assert held.tb is not None  # what was raised does not keep the store open
    LmdbStore(tmp_path).close()


class Still:
    """A tracker whose target does not move, and the stream that it is in."""

    def __init__(self) -> None:
        self.frames = 0

    def __iter__(self) -> Iterator[Sample]:
        return iter([Sample(image=None, key=b"%d" % at, index=at) for at in range(3)])

    def add(self, found: Track) -> None:
        pass

    def init(self, image: object, box: Box) -> Track:
        return self.update(image)

    def update(self, image: object) -> Track:
        self.frames += 1
        return Track(frame=self.frames - 1, box=Box(1, 2, 3, 4), score=1.0, lost=False, ms=0.0)

    def save(self, path: Path) -> None:
        save(path, self.frames)

    def restore(self, path: Path) -> None:
        self.frames = load(path)


def test_a_run_whose_journal_cannot_be_written_is_gone_on_with(tmp_path: Path) -> None:
    def run(resume: bool) -> list[int]:
        still = Still()
        return [one.frame for one in TrackRun(still, still, Box(1, 2, 3, 4), started={}, state=tmp_path, resume=resume)]

    at, fired = 0, True
    while fired:
        at += 1
        with failing((*SEAMS, (Path, "open")), at) as faults:
            try:
                run((tmp_path / "run.json").exists())
            except StreamdropError:
                assert faults.fired
        fired = faults.fired
        assert run(resume=(tmp_path / "run.json").exists()) == [0, 1, 2]


def test_a_video_that_cannot_be_begun_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.open", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space"):
        VideoWriter(tmp_path / "a.mp4", 25, (16, 16))
    assert not list(tmp_path.iterdir())


def test_a_video_is_written_where_there_is_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with VideoWriter(tmp_path / "a.mp4", 25, (16, 16)) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_batches_are_read_in_line_where_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    store = MemoryStore()
    store.put_many({b"%d" % at: (torch.full((2,), float(at)),) for at in range(4)})
    monkeypatch.setattr(threading.Thread, "start", refused)
    found = [batch.activations[0][:, 0].tolist() for batch in read_ahead(store, [[b"0", b"1"], [b"2", b"3"]], 2)]
    assert found == [[0.0, 1.0], [2.0, 3.0]]
