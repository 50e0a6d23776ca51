"""One-pass evaluation: what a tracker is shown, what is measured."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_evaluation_sequences import write_sequence

from streamdrop.boxes import Box
from streamdrop.errors import DataError
from streamdrop.evaluation.opencv_worker import read
from streamdrop.evaluation.peers import shown_between
from streamdrop.evaluation.protocol import hold_last, one_pass
from streamdrop.evaluation.sequences import read_sequence
from streamdrop.pixels import Tones, as_rgb
from streamdrop.types import RoundReport, Track

REPORT = RoundReport(
    round=1, cut=0, next_cut=2, loss=0.5, seconds=0.25, samples=8, iterations=2, tail_seconds=0, write_seconds=0,
    read_seconds=0, train_seconds=0.2, parameters=10, forward_macs=100,
)  # fmt: skip


class Recorder:
    """Remembers what it was shown; a round every other frame, lost from frame 3 on."""

    def __init__(self):
        self.seen = []

    def init(self, image, box):
        self.seen.append((image.copy(), box))
        return Track(0, box, 1.0, False, report=replace(REPORT, round=0))

    def update(self, image):
        self.seen.append((image.copy(), None))
        frame = len(self.seen) - 1
        report = replace(REPORT, round=frame // 2, cut=frame // 2) if frame % 2 == 0 else None
        return Track(frame, Box(frame, 0, 5, 5), 0.5, frame >= 3, report=report)


@pytest.fixture
def sequence(tmp_path):
    return read_sequence(write_sequence(tmp_path / "cup", ["1,2,3,4"] * 6, suffix=".png"))


def test_the_tracker_sees_every_frame_once_and_one_box(sequence):
    tracker = Recorder()
    one_pass(tracker, sequence)
    assert [image[0, 0, 0] for image, _ in tracker.seen] == [0, 10, 20, 30, 40, 50]
    assert [box for _, box in tracker.seen] == [Box(1, 2, 3, 4)] + [None] * 5


def test_images_are_rgb(tmp_path):
    folder = write_sequence(tmp_path / "cup", ["1,2,3,4"] * 2, suffix=".png")
    for path in (folder / "color").iterdir():
        cv2.imwrite(str(path), np.full((24, 32, 3), (0, 0, 200), np.uint8))  # red, as OpenCV orders it
    tracker = Recorder()
    one_pass(tracker, read_sequence(folder))
    assert tracker.seen[0][0][0, 0].tolist() == [200, 0, 0]


def test_sixteen_bits_are_shown_in_the_first_frames_range(tmp_path):
    folder = write_sequence(tmp_path / "warm", ["1,2,3,4"] * 2, suffix=".png")
    frames = sorted((folder / "color").iterdir())
    ramp = np.linspace(7000, 7600, 12 * 16).astype(np.uint16).reshape(12, 16)
    for frame, values in zip(frames, (ramp, ramp + 60), strict=True):
        cv2.imwrite(str(frame), values)
    seen = []
    one_pass(Recorder(), read_sequence(folder), on_frame=lambda i, image, track: seen.append(image))
    tones = Tones.of(np.dstack([ramp] * 3))
    assert all((image == as_rgb(values, tones)).all() for image, values in zip(seen, (ramp, ramp + 60), strict=True))
    rival = [read(str(frame), shown_between(read_sequence(folder))) for frame in frames]
    assert all((ours == theirs).all() for ours, theirs in zip(seen, rival, strict=True))


def test_lost_frames_keep_the_last_box_and_rounds_are_counted_after_the_first_frame(sequence):
    run = one_pass(Recorder(), sequence)
    assert run.boxes[:, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert run.lost.tolist() == [False] * 3 + [True] * 3
    assert run.round_frames == (2, 4)
    assert run.cuts == (1, 2)
    assert run.round_ms == (250, 250)


def test_fps_leaves_out_the_first_frame_and_decoding(sequence, monkeypatch):
    clock = iter(np.cumsum([0, 3.0, 100, 0.5, 100, 0.5, 100, 0.5, 100, 0.5, 100, 0.5]))
    monkeypatch.setattr("streamdrop.evaluation.protocol.time.perf_counter", lambda: float(next(clock)))
    run = one_pass(Recorder(), sequence)
    assert run.init_s == pytest.approx(3)
    assert run.fps == pytest.approx(5 / 2.5)


def test_frames_are_handed_on_outside_the_timing(sequence):
    seen = []
    one_pass(Recorder(), sequence, on_frame=lambda i, image, track: seen.append((i, image.shape, track.frame)))
    assert seen == [(i, (24, 32, 3), i) for i in range(6)]


def test_a_frame_that_cannot_be_decoded_is_named(sequence):
    sequence.frames[2].write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00000003\.png cannot be decoded"):
        one_pass(Recorder(), sequence)


def test_hold_last_takes_the_first_box_as_found():
    a, b, c = Box(0, 0, 1, 1), Box(1, 0, 1, 1), Box(2, 0, 1, 1)
    assert hold_last([a, b, c], [True, True, False]).tolist() == [list(a), list(a), list(c)]
