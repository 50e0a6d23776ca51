"""Real time on a clock of the test's own, and first boxes that are a little off."""

from dataclasses import replace

import numpy as np
import pytest
from test_evaluation_peers import fake
from test_evaluation_protocol import REPORT
from test_evaluation_sequences import write_sequence

from streamdrop.boxes import Box, iou
from streamdrop.errors import ConfigError
from streamdrop.evaluation import peers
from streamdrop.evaluation.arms import evaluate
from streamdrop.evaluation.jobs import Job, Protocols, schedule
from streamdrop.evaluation.perturbed import perturbed_box
from streamdrop.evaluation.realtime import next_frame, realtime_pass
from streamdrop.evaluation.sequences import read_sequence
from streamdrop.types import Track


class ManualClock:
    """Time passes only when told."""

    def __init__(self):
        self.time, self.slept = 100.0, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.time += seconds


class Busy:
    """Takes ``costs`` seconds in turn; its box says which image it saw. A round on every frame, lost on ``lost``."""

    def __init__(self, clock, costs, init=0.5, lost=()):
        self.clock, self.costs, self.first, self.lost, self.seen = clock, list(costs), init, lost, []

    def init(self, image, box):
        self.clock.time += self.first
        self.box = box
        return Track(0, box, 1.0, False)

    def update(self, image):
        self.clock.time += self.costs[min(len(self.seen), len(self.costs) - 1)]
        shown = round(int(image[0, 0, 0]) / 10)
        self.seen.append(shown)
        box = Box(shown, 0, 5, 5)
        return Track(shown, box, shown / 10, shown in self.lost, report=replace(REPORT, round=shown, cut=shown))


@pytest.fixture
def sequence(tmp_path):
    return read_sequence(write_sequence(tmp_path / "cup", ["0,0,5,5"] * 9, suffix=".png"))


def run(sequence, costs, fps=10, **options):
    clock = ManualClock()
    tracker = Busy(clock, costs, **options)
    return realtime_pass(tracker, sequence, fps, clock), tracker, clock


def test_a_tracker_that_keeps_up_sees_every_frame_and_waits_for_the_next(sequence):
    result, tracker, clock = run(sequence, [0.04])
    assert tracker.seen == list(range(1, 9))
    assert result.boxes[:, 0].tolist() == list(range(9))
    assert result.updates == 8
    assert clock.slept == [0.1] + [0.06] * 7
    assert result.fps == pytest.approx(25)


def test_frames_go_by_while_it_is_busy_and_a_late_box_counts_later(sequence):
    result, tracker, _ = run(sequence, [0.25])
    # frame 1 is taken at 0.1 s and said at 0.35 s, when frame 3 is the newest, and so on
    assert tracker.seen == [1, 3, 6, 8]
    # frame 3 is judged at 0.4 s: by then frame 1's box stands
    assert result.boxes[:, 0].tolist() == [0, 0, 0, 1, 1, 3, 3, 3, 6]
    assert np.isfinite(result.ms).tolist() == [i in (0, 1, 3, 6, 8) for i in range(9)]
    assert result.round_frames == (1, 3, 6, 8)
    assert result.scores.tolist() == pytest.approx([1, 1, 1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.6])


def test_one_slow_frame_is_made_up_for(sequence):
    result, tracker, _ = run(sequence, [0.02, 0.02, 0.35, 0.02])
    assert tracker.seen == [1, 2, 3, 6, 7, 8]
    assert result.boxes[:, 0].tolist() == [0, 1, 2, 2, 2, 2, 6, 7, 8]


def test_how_long_the_first_box_takes_is_told_apart(sequence):
    result, tracker, _ = run(sequence, [0.04], init=30.0)
    assert tracker.seen == list(range(1, 9))
    assert result.init_s == pytest.approx(30)


def test_a_lost_frame_keeps_the_last_box_found(sequence):
    result, _, _ = run(sequence, [0.25], lost=(3,))
    assert result.boxes[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 6]
    assert result.lost.tolist() == [False] * 5 + [True] * 3 + [False]


def test_the_next_frame_is_the_newest_or_else_the_next():
    assert next_frame(3, 0.31, fps=10, frames=9) == 4
    assert next_frame(3, 0.71, fps=10, frames=9) == 7
    assert next_frame(3, 99.0, fps=10, frames=9) == 8
    assert next_frame(8, 99.0, fps=10, frames=9) == 9
    assert next_frame(2, 3 / 10, fps=10, frames=9) == 3


def test_a_rival_in_real_time_sees_what_it_can(sequence, tmp_path):
    (tmp_path / "cv2.py").write_text(FAKE)
    result = peers.run_peer("kcf", sequence, fake(tmp_path), fps=20)
    assert result.updates == 4
    assert np.flatnonzero(np.isfinite(result.ms)).tolist() == [0, 1, 3, 5, 8]  # each takes the time of 2.4 frames
    assert result.boxes.shape == (9, 4)
    plain = peers.run_peer("kcf", sequence, fake(tmp_path), first_box=Box(7, 8, 5, 6))
    assert plain.updates == 8
    assert plain.boxes[0].tolist() == [7, 8, 5, 6]


FAKE = """
import time  # passes only when told
now = [100.0]
time.perf_counter = lambda: now[0]
time.sleep = lambda seconds: now.append(now.pop() + seconds)
__version__ = "9.9"
class error(Exception): pass
def setRNGSeed(seed): pass
from numpy import uint8, zeros
IMREAD_COLOR = IMREAD_ANYDEPTH = 0
def imread(path, flags): return zeros((2, 2, 3), uint8)
class TrackerKCF_create:
    def init(self, image, box): self.box = box
    def update(self, image):
        time.sleep(0.12)
        return True, self.box
"""


def test_a_perturbed_box_is_a_little_off_and_always_the_same():
    box = Box(40, 50, 20, 30)
    boxes = [perturbed_box(box, "cup", variant) for variant in range(6)]
    assert boxes[0] == box
    assert len(set(boxes)) == 6
    assert boxes == [perturbed_box(box, "cup", variant) for variant in range(6)]
    assert perturbed_box(box, "mug", 1) != boxes[1]
    for off in boxes[1:]:
        assert np.abs(np.subtract(off.centre, box.centre) / (box.w, box.h)).max() <= 0.1
        assert 0.9 <= off.w / box.w <= 1.1
        assert 0.9 <= off.h / box.h <= 1.1
        assert float(iou(off, box)) > 0.6


def test_every_arm_runs_every_protocol(sequence):
    jobs = schedule([sequence], ["drop", "none"], ["csrt"], [0], Protocols(25, 2))
    assert [(job.arm, job.protocol, job.variant) for job in jobs if job.arm != "csrt"] == [
        ("drop", "ope", 0), ("none", "ope", 0), ("none", "realtime", 0), ("drop", "realtime", 0),
        ("drop", "perturbed", 1), ("none", "perturbed", 1), ("none", "perturbed", 2), ("drop", "perturbed", 2),
    ]  # fmt: skip
    assert sum(job.arm == "csrt" for job in jobs) == 4
    assert len({job.boxes_file for job in jobs}) == len(jobs)
    assert str(Job(sequence, "drop", 0, variant=2)) == "cup, drop, seed 0, first box 2"


class Steady:
    """Stays where it was told, each update costing a clock ``cost``."""

    def __init__(self, clock, cost):
        self.clock, self.cost = clock, cost

    def init(self, image, box):
        self.box = box
        return Track(0, box, 1.0, False)

    def update(self, image):
        self.clock.time += self.cost
        return Track(1, self.box, 1.0, False)


def test_an_evaluation_reports_each_protocol_apart(tmp_path, monkeypatch, capsys):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 5)
    clock = ManualClock()
    monkeypatch.setattr("streamdrop.evaluation.realtime.WallClock", lambda: clock)
    results = evaluate(
        tmp_path / "s", ["drop"], output=tmp_path / "out", build=lambda *_: Steady(clock, 0.09), realtime=25, perturb=3
    )
    assert [record["name"] for record in results["sequences"]] == ["ant"]
    realtime, perturbed = results["realtime"]["arms"]["drop"], results["perturbed"]["arms"]["drop"]
    assert realtime["auc_loss"] == 0
    assert results["realtime"]["sequences"][0]["unseen"] == 1  # it sees 1, 3 and 4
    assert realtime["unseen_share"] == 0.25
    assert perturbed["variants"] == 3
    aucs = [record["auc"] for record in results["perturbed"]["sequences"]]
    plain = results["arms"]["drop"]["auc"]
    assert perturbed["auc_loss"] == pytest.approx(plain - np.mean(aucs), abs=1e-5)
    assert perturbed["auc_worst"] == pytest.approx(min(aucs), abs=1e-5)
    assert perturbed["auc_spread"] == pytest.approx(np.std([plain, *aucs], ddof=1), abs=1e-5)
    assert [record["variant"] for record in results["perturbed"]["sequences"]] == [1, 2, 3]
    assert (tmp_path / "out" / "drop" / "realtime" / "ant_0.txt").exists()
    assert (tmp_path / "out" / "drop" / "perturbed" / "ant_0_3.txt").exists()
    out = capsys.readouterr().out
    assert "in real time, drop" in out
    assert "from 3 first boxes off by up to 10 %, drop" in out


@pytest.mark.parametrize(("given", "message"), [({"realtime": 0.0}, "rate above 0"), ({"perturb": -1}, "at least 0")])
def test_protocols_that_cannot_be_are_refused(tmp_path, given, message):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 2)
    with pytest.raises(ConfigError, match=message):
        evaluate(tmp_path / "s", ["drop"], output=tmp_path / "out", build=lambda *_: None, **given)
