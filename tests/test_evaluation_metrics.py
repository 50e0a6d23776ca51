"""Metrics against slow oracles and their properties."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from streamdrop.errors import DataError
from streamdrop.evaluation import metrics

NAN = [math.nan] * 4


def slow_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return min(1.0, width * height / (a[2] * a[3] + b[2] * b[3] - width * height))  # a box with itself may round up


def slow_scores(predicted, truth):
    frames = [(i, p, t) for i, (p, t) in enumerate(zip(predicted, truth, strict=True)) if not any(map(math.isnan, t))]
    ious = [slow_iou(p, t) for _, p, t in frames]
    later = [v for (i, _, _), v in zip(frames, ious, strict=True) if i > 0]
    curve = [sum(v > k / 20 for v in ious) / len(ious) for k in range(21)]
    near = [
        math.dist((p[0] + p[2] / 2, p[1] + p[3] / 2), (t[0] + t[2] / 2, t[1] + t[3] / 2)) <= 20 for _, p, t in frames
    ]
    return {
        "auc": sum(curve) / 21,
        "precision": sum(near) / len(near),
        "ao": sum(later) / len(later) if later else math.nan,
        "sr50": sum(v > 0.5 for v in later) / len(later) if later else math.nan,
    }


# Eighths are exact in binary; sevenths keep most overlaps away from the thresholds, where rounding decides.
numbers = st.integers(-400, 400).map(lambda n: n / 8)
sizes = st.integers(1, 400).map(lambda n: n / 7)
boxes = st.tuples(numbers, numbers, sizes, sizes)
pairs = st.lists(st.tuples(boxes, st.one_of(boxes, st.just(tuple(NAN)))), min_size=1, max_size=30)


def rounding_decides(predicted, truth):
    """Whether an overlap lies on a threshold between 0 and 1, so that its last bit settles the score."""
    ious = [slow_iou(p, t) for p, t in zip(predicted, truth, strict=True) if not math.isnan(t[0])]
    return any(0 < v < 1 - 1e-9 and abs(v * 20 - round(v * 20)) < 1e-9 for v in ious)


@settings(deadline=None)
@given(pairs)
@example([((0.0, 31.875, 1 / 7, 1 / 7), (0.0, 31.875, 1 / 7, 1 / 7))])
def test_scores_equal_the_slow_oracle(frames):
    predicted, truth = [p for p, _ in frames], [t for _, t in frames]
    assume(not rounding_decides(predicted, truth))
    if all(math.isnan(t[0]) for t in truth):
        assert all(math.isnan(v) for v in metrics.scores(predicted, truth).values())
        return
    assert metrics.scores(predicted, truth) == pytest.approx(slow_scores(predicted, truth), nan_ok=True, abs=1e-9)


@settings(deadline=None)
@given(pairs)
def test_scores_are_bounded_and_curves_are_monotone(frames):
    predicted, truth = [p for p, _ in frames], [t for _, t in frames]
    if all(math.isnan(t[0]) for t in truth):
        return
    success, precision = metrics.success_curve(predicted, truth), metrics.precision_curve(predicted, truth)
    assert (np.diff(success) <= 0).all()
    assert (np.diff(precision) >= 0).all()
    assert success[-1] == 0
    assert 0 <= metrics.success(predicted, truth) <= 20 / 21
    assert precision[20] == metrics.precision(predicted, truth)


@settings(deadline=None)
@given(pairs, st.integers(0, 30))
def test_frames_without_truth_change_nothing(frames, where):
    predicted, truth = [list(p) for p, _ in frames], [list(t) for _, t in frames]
    at = 1 + where % len(frames)  # never before the first frame, which AO leaves out
    longer = metrics.scores([*predicted[:at], [0, 0, 1, 1], *predicted[at:]], [*truth[:at], NAN, *truth[at:]])
    assert longer == pytest.approx(metrics.scores(predicted, truth), nan_ok=True)


@settings(deadline=None)
@given(st.lists(boxes, min_size=2, max_size=10), numbers, numbers)
def test_scores_do_not_depend_on_where_the_origin_is(frames, dx, dy):
    predicted, truth = np.array(frames[1:]), np.array(frames[:-1])
    moved = [dx, dy, 0, 0]
    before, after = metrics.overlaps(predicted, truth), metrics.overlaps(predicted + moved, truth + moved)
    assert after == pytest.approx(before, abs=1e-9)


def test_a_perfect_tracker_scores_20_of_21():
    truth = [[10, 20, 30, 40]] * 5
    assert metrics.scores(truth, truth) == pytest.approx({"auc": 20 / 21, "precision": 1, "ao": 1, "sr50": 1})


def test_the_first_frame_counts_for_success_and_precision_but_not_for_ao_and_sr():
    truth = [[0, 0, 10, 10], [0, 0, 10, 10]]
    predicted = [[0, 0, 10, 10], [500, 500, 10, 10]]
    assert metrics.scores(predicted, truth) == pytest.approx({"auc": 10 / 21, "precision": 0.5, "ao": 0, "sr50": 0})


def test_an_overlap_on_a_threshold_does_not_count_and_a_centre_20_px_away_does():
    assert metrics.success_curve([[0, 0, 10, 5]], [[0, 0, 10, 10]])[10] == 0
    assert metrics.precision([[20, 0, 10, 10]], [[0, 0, 10, 10]]) == 1
    assert metrics.precision([[20.01, 0, 10, 10]], [[0, 0, 10, 10]]) == 0
    assert metrics.success_rate([[0, 0, 1, 1], [0, 0, 10, 5]], [[0, 0, 1, 1], [0, 0, 10, 10]]) == 0


def test_a_prediction_that_is_not_finite_overlaps_nothing():
    truth = [[0, 0, 10, 10]] * 2
    assert metrics.scores([[0, 0, 10, 10], NAN], truth) == pytest.approx(
        {"auc": 10 / 21, "precision": 0.5, "ao": 0, "sr50": 0}
    )


@pytest.mark.parametrize("predicted", [[[0, 0, 1, 1]], [[0, 0, 1]] * 2, [0, 0, 1, 1]])
def test_boxes_that_do_not_pair_are_refused(predicted):
    with pytest.raises(DataError, match="do not pair"):
        metrics.success(predicted, [[0, 0, 1, 1]] * 2)


def test_a_confidence_is_as_far_off_as_its_bins_are_from_the_odds():
    truth = np.tile([0.0, 0.0, 10.0, 10.0], (9, 1))
    hit, miss = truth[0], truth[0] + [50, 0, 0, 0]
    boxes = np.array([hit, hit, hit, hit, hit, miss, miss, miss, miss])  # the first frame does not count
    assert metrics.calibration_error([1, 1, 1, 1, 1, 0, 0, 0, 0], boxes, truth) == 0
    assert metrics.calibration_error([1] * 9, boxes, truth) == pytest.approx(0.5)
    assert metrics.calibration_error([0.5] * 9, boxes, truth) == pytest.approx(0.0)
    assert metrics.calibration_error([0.05] * 9, boxes, truth) == pytest.approx(0.45)
    assert np.isnan(metrics.calibration_error([1], truth[:1], truth[:1]))
