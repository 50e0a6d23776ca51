"""Lost reports and scores judged by the truth; result files as the toolkits of GOT-10k and VOT read them."""

import math

import numpy as np
import pytest
from test_evaluation_arms import build
from test_evaluation_sequences import write_sequence

from streamdrop.boxes import Box
from streamdrop.errors import ConfigError
from streamdrop.evaluation.arms import evaluate
from streamdrop.evaluation.confidence import Calibration, LostCount, calibrate, count_lost
from streamdrop.evaluation.sequences import read_truth
from streamdrop.types import Track

HERE, AWAY, NAN = [0, 0, 10, 10], [50, 50, 10, 10], [math.nan] * 4
ABSENT = "absent"


def arrange(frames):
    """Truth, boxes, absence of (box, truth) pairs behind a first frame."""
    frames = [(HERE, HERE), *frames]
    truth = [NAN if true == ABSENT else true for _, true in frames]
    return [box for box, _ in frames], truth, [true == ABSENT for _, true in frames]


def test_lost_is_right_where_the_target_is_absent_or_the_box_overlaps_nothing():
    boxes, truth, absent = arrange(
        [(HERE, ABSENT), (AWAY, HERE), (HERE, HERE), (AWAY, HERE), (HERE, ABSENT), (AWAY, NAN)]
    )
    count = count_lost(boxes, [True, True, True, True, False, False, True], truth, absent)
    assert count == LostCount(right=2, wrong=1, missed=2)  # the first frame and the unknown one count for nothing
    assert (count.precision, count.recall) == (2 / 3, 2 / 4)


def test_counts_without_any_such_frame_are_no_numbers_and_add_up():
    assert math.isnan(LostCount().precision)
    assert math.isnan(LostCount().recall)
    assert LostCount(1, 2, 3) + LostCount(1, 1, 1) == LostCount(2, 3, 4)


def test_a_score_that_says_the_odds_has_no_calibration_error():
    boxes, truth, absent = arrange([(HERE, HERE)] * 3 + [(AWAY, HERE)])
    assert calibrate(boxes, [1.0] + [0.75] * 4, truth, absent).error == 0
    assert calibrate(boxes, [1.0] + [1.0] * 4, truth, absent).error == pytest.approx(0.25)
    assert calibrate(boxes, [1.0, 1.0, 1.0, 1.0, 0.0], truth, absent).error == 0


def test_calibration_error_equals_the_slow_sum_over_bins():
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    boxes, truth, absent = arrange([(HERE if rng.random() < s**2 else AWAY, HERE) for s in scores])
    hits = np.array([box == HERE for box in boxes[1:]])
    expected = 0.0
    for low in range(10):
        inside = (scores >= low / 10) & (scores < (low + 1) / 10)
        expected += inside.mean() * abs(scores[inside].mean() - hits[inside].mean())
    assert calibrate(boxes, [1, *scores], truth, absent).error == pytest.approx(expected)


def test_an_absent_target_is_never_hit_an_unknown_one_not_counted():
    boxes, truth, absent = arrange([(HERE, ABSENT), (HERE, NAN), (HERE, HERE)])
    found = calibrate(boxes, [1, 1, 1, 1], truth, absent)
    assert found.curve() == [(1.0, 0.5, 2)]
    assert math.isnan(Calibration().error)
    assert (found + found).frames.sum() == 4


def test_scores_that_are_no_probability_are_clipped():
    boxes, truth, absent = arrange([(HERE, HERE)] * 2)
    assert calibrate(boxes, [1, 7.0, math.nan], truth, absent).curve() == [(0.0, 1.0, 1), (1.0, 1.0, 1)]


class Doubter:
    """Says that it is lost from frame 3 on, with half the score."""

    def init(self, image, box):
        self.box, self.frame = box, 0
        return Track(0, box, 1.0, False)

    def update(self, image):
        self.frame += 1
        lost = self.frame >= 3
        return Track(self.frame, Box(*self.box), 0.5 if lost else 1.0, lost)


def test_an_evaluation_judges_lost_reports_and_scores(tmp_path, capsys):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 4 + ["nan,nan,nan,nan"] * 2)
    results = evaluate(tmp_path / "s", ["drop"], output=tmp_path / "out", build=lambda arm, seed: Doubter())
    (record,), arm = results["sequences"], results["arms"]["drop"]
    assert (record["lost_precision"], record["lost_recall"]) == pytest.approx((2 / 3, 1), abs=1e-6)
    assert arm["lost_counts"] == {"right": 2, "wrong": 1, "missed": 0}
    assert record["calibration_error"] == pytest.approx((2 * 0 + 3 * abs(0.5 - 1 / 3)) / 5, abs=1e-6)
    assert arm["curves"]["calibration"] == [[0.5, pytest.approx(1 / 3, abs=1e-6), 3], [1, 1, 2]]
    assert "67 %" in capsys.readouterr().out


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, output = tmp_path_factory.mktemp("sequences"), tmp_path_factory.mktemp("out")
    write_sequence(folder / "ant", ["nan,nan,nan,nan"] + ["4,4,10,8"] * 4)
    evaluate(folder, ["drop"], seeds=[0, 1], formats=["got10k", "vot"], output=output, build=build)
    return output


def test_result_files_of_got10k(written):
    folder = written / "got10k" / "drop" / "ant"
    assert sorted(path.name for path in folder.iterdir()) == ["ant_001.txt", "ant_002.txt", "ant_time.txt"]
    first = np.loadtxt(folder / "ant_001.txt", delimiter=",")
    assert first.shape == (5, 4)
    assert np.isnan(first[0]).all()
    assert first[1].tolist() == [4, 4, 10, 8]
    assert first == pytest.approx(read_truth(written / "drop" / "ant_0.txt"), abs=1e-3, nan_ok=True)
    times = np.loadtxt(folder / "ant_time.txt", delimiter=",")
    assert times.shape == (5, 2)
    assert (times[1:] > 0).all()


def test_result_files_of_vot(written):
    folder = written / "vot" / "drop" / "unsupervised" / "ant"
    lines = (folder / "ant_002.txt").read_text().splitlines()
    assert lines[:2] == ["0", "1"]  # unknown, then initialised
    assert np.array([line.split(",") for line in lines[2:]], float) == pytest.approx(
        read_truth(written / "drop" / "ant_1.txt")[2:]
    )
    assert (folder / "ant_001_confidence.value").read_text().splitlines() == ["", "", *["0.500000"] * 3]
    assert len((folder / "ant_001_time.value").read_text().splitlines()) == 5


def test_no_format_no_files_and_a_wrong_one_is_refused(tmp_path):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 2)
    evaluate(tmp_path / "s", ["drop"], output=tmp_path / "out", build=build)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"drop", "results.json", "report.html", "writer.lock"}
    with pytest.raises(ConfigError, match="no result format 'otb': choose from got10k, vot"):
        evaluate(tmp_path / "s", ["drop"], formats=["otb"], output=tmp_path / "out", build=build)
