"""The report of an evaluation, and what it is made of: paired differences, failures, charts."""

import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_arms import Drifter
from test_evaluation_sequences import write_sequence

from streamdrop.boxes import Box
from streamdrop.evaluation.arms import evaluate
from streamdrop.evaluation.arms_report import write_arms_report
from streamdrop.evaluation.confidence import LostCount
from streamdrop.evaluation.failures import find_failures, shown_frames, worst_failures
from streamdrop.evaluation.outcomes import Outcome
from streamdrop.evaluation.paired import interval, paired_differences
from streamdrop.types import Track


def record(name, arm, seed, auc):
    return {"name": name, "arm": arm, "seed": seed, "auc": auc, "precision": 0.5, "ao": auc, "sr50": None}


def test_differences_are_paired_by_sequence_and_seed():
    records = [record(n, "drop", s, 0.6 + s / 10) for n in "ab" for s in (0, 1)]
    records += [record(n, "none", s, 0.5 + s / 10 - (n == "b") / 5) for n in "ab" for s in (0, 1)]
    (row,) = paired_differences(records, ["drop", "none"])
    assert (row["arm"], row["against"], row["sequences"], row["n"]) == ("drop", "none", 0, 0)  # the last score has none
    assert row["auc"]["mean"] == pytest.approx((0.1 + 0.3) / 2)
    assert row["auc"]["high"] - 0.2 == pytest.approx(12.7062 * 0.1, rel=1e-5)  # of two numbers, t of 1 from tables
    assert row["precision"] == {"mean": 0, "low": 0, "high": 0}
    assert row["sr50"] == {"mean": None, "low": None, "high": None}


def test_a_rivals_one_run_meets_every_seed():
    records = [record("a", "drop", s, 0.6 + s / 10) for s in (0, 1, 2)] + [record("a", "csrt", 0, 0.5)]
    (row,) = paired_differences(records, ["drop", "csrt"])
    assert row["auc"]["mean"] == pytest.approx(0.2)
    assert row["auc"]["low"] < 0.2 < row["auc"]["high"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=3), min_size=2, max_size=6), st.floats(-2, 2))
def test_an_interval_lies_around_its_mean_and_moves_with_the_numbers(groups, by):
    arrays = [np.array(group) for group in groups]
    found, moved = interval(arrays), interval([array + by for array in arrays])
    assert found["mean"] == pytest.approx(np.mean([array.mean() for array in arrays]))
    assert found["high"] - found["mean"] == pytest.approx(found["mean"] - found["low"])
    assert [moved[key] - by for key in found] == pytest.approx(list(found.values()), abs=1e-9)


def test_an_interval_is_student_s():
    found = interval([np.array([value]) for value in (1.0, 2.0, 3.0, 4.0)])
    assert found["high"] - found["mean"] == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-5)  # t of 3, from tables


@pytest.mark.parametrize("sequences", [3, 9])
def test_an_interval_covers_the_truth_as_often_as_it_says(sequences):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        found = interval([rng.normal(0.3, 1, 1) for _ in range(sequences)])
        covered += found["low"] <= 0.3 <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98


def test_one_number_has_no_interval():
    assert interval([np.array([0.25])]) == {"mean": 0.25, "low": None, "high": None}
    assert interval([]) == {"mean": None, "low": None, "high": None}


def outcome(overlaps, arm="drop", seed=0, sequence="ant", protocol="ope"):
    values = np.array(overlaps, float)
    return Outcome(sequence, arm, seed, 0, None, {"auc": 0.5}, ([], []), values, LostCount(), protocol=protocol)


def test_failures_are_runs_of_frames_without_overlap():
    nan = np.nan
    overlaps = [1, 0.5, *[0] * 4, 0.5, *[0] * 3, nan, nan, *[0] * 3, nan, 0.2, *[0] * 5]
    first, last = find_failures(outcome(overlaps))
    assert (first.first, first.last, first.frames, first.recovered) == (7, 14, 6, True)
    assert (last.first, last.last, last.frames, last.recovered) == (17, 21, 5, False)
    assert shown_frames(first) == [6, 7, 9, 12, 14, 15]
    assert shown_frames(last) == [16, 17, 18, 20, 21]
    assert find_failures(outcome([1.0] * 9)) == []


def test_the_longest_failures_are_shown_a_few_per_arm_under_the_first_seed():
    def failing(n, **of):
        return outcome([1, *[0] * n, 1], **of)

    runs = [failing(10 + n, sequence=f"s{n}") for n in range(5)]
    runs += [failing(40, seed=1), failing(50, protocol="realtime"), failing(6, arm="none"), failing(3, arm="full")]
    chosen = worst_failures(runs)
    assert [(f.outcome.arm, f.frames) for f in chosen] == [("drop", 14), ("drop", 13), ("drop", 12), ("none", 6)]


class Leaver(Drifter):
    """Leaves the target for good at frame 6; reports itself lost from frame 9 on."""

    def update(self, image):
        track = super().update(image)
        box = Box(20, 14, 10, 8) if self.frame >= 6 else self.box
        return Track(track.frame, box, 0.9 - self.frame / 20, self.frame >= 9, ms=track.ms, report=track.report)


def build(arm, seed):
    return (Leaver if arm == "none" else Drifter)(0.1, arm == "drop")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder, output = tmp_path_factory.mktemp("sequences"), tmp_path_factory.mktemp("out")
    for name in ("ant", "bee"):
        write_sequence(folder / name, ["4,4,10,8"] * 14)
    evaluate(folder, ["drop", "none"], seeds=[0, 1], output=output, build=build, realtime=1000, perturb=1)
    return output


def test_the_page_shows_every_part(output):
    page = (output / "report.html").read_text()
    for text in (
        "Success (AUC)", "Precision (at 20 px)", "Calibration", "Side by side", "drop − none", "In real time",
        "From first boxes that are a little off", "Frames done within", "Milliseconds per frame", "Cut: layers dropped",
        "AUC per sequence", "Longest failures", "none on ant", "found again", "Overlap, frame by frame",
    ):  # fmt: skip
        assert (text in page) != (text == "found again"), text
    assert "frames 6 to 13 (8 with a truth), to the end" in page
    assert page.count("data:image/jpeg;base64,") == 2 * 6 - 2  # two strips that end with the failure
    assert page.count('class="target lost"') == 2 * 2


def test_the_page_needs_nothing_else(output):
    page = (output / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"https?://|url\(|@import|<link", page)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().split()


def test_results_alone_make_a_page_too(output, tmp_path):
    results = json.loads((output / "results.json").read_text())
    write_arms_report(tmp_path / "report.html", results)
    page = (tmp_path / "report.html").read_text()
    assert "Side by side" in page
    assert "Longest failures" not in page


def test_paired_differences_stand_in_the_results(output):
    (row,) = json.loads((output / "results.json").read_text())["paired"]
    assert (row["arm"], row["against"], row["sequences"], row["n"]) == ("drop", "none", 2, 4)
    assert 0 < row["auc"]["low"] <= row["auc"]["mean"] <= row["auc"]["high"]


def test_the_cut_is_drawn_from_the_first_frames_rounds_on(tmp_path):
    results = {
        "name": "ant",
        "arm": "drop",
        "seed": 0,
        "rounds": 2,
        "round_ms": [5, 5],
        "cuts": [4, 6],
        "first_cuts": [0, 2],
    }
    from streamdrop.evaluation.arms_charts import cost_charts

    chart = cost_charts({"drop": {"rounds": 2}}, [results], [], {"drop": 0})[-1]
    shown = json.loads(re.search(r'data-values="([^"]*)"', chart).group(1).replace("&quot;", '"'))
    assert shown["series"][0]["x"] == [-1, 0, 1, 2]
    assert shown["series"][0]["y"] == [0, 2, 4, 6]


def test_sequences_of_one_frame_size_and_another_in_one_strip(tmp_path):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 14)
    for path in sorted((tmp_path / "s" / "ant" / "color").iterdir())[8:]:
        cv2.imwrite(str(path), np.zeros((48, 640, 3), np.uint8))
    evaluate(tmp_path / "s", ["none"], output=tmp_path / "out", build=build)
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'viewBox="0 0 640 48"' in page
    assert 'viewBox="0 0 32 24"' in page
