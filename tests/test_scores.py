"""Equations 1-4 against slow oracles that follow the paper's sums letter by letter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.scores import GradientScores, best_prefix, first_crossing, standardise

scores = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12)


def slow_importance(g):
    """Eq. 2 with loops; g is [N, M]."""
    above = sum(abs(sum(g[i][j] for j in range(len(g[0])))) for i in range(len(g)))
    below = sum(abs(g[i][j]) for i in range(len(g)) for j in range(len(g[0])))
    return 1.0 if below == 0 else 1 - above / below


def slow_magnitude(g):
    """Eq. 1 with loops."""
    return sum(sum(abs(v) for v in row) for row in g) / len(g)


def feed(gradients, splits):
    """Scores of one layer made of several parameters, fed [N, M] gradients."""
    parts = np.split(gradients, splits)
    weights = [torch.nn.Parameter(torch.zeros(len(part))) for part in parts]
    tracked = GradientScores({"layer": weights})
    for j in range(gradients.shape[1]):
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = torch.tensor(part[:, j], dtype=torch.float32)
        tracked.update()
    return tracked


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 7), st.floats(-1, 1))
def test_importance_and_magnitude_match_the_sums_of_the_paper(seed, n, m, drift):
    g = np.random.default_rng(seed).normal(drift, 1, (n, m))
    tracked = feed(g, [n // 2])
    assert tracked.importance()["layer"] == pytest.approx(slow_importance(g), abs=1e-5)
    assert tracked.magnitude()["layer"] == pytest.approx(slow_magnitude(g), rel=1e-5)
    assert 0 <= tracked.importance()["layer"] <= 1
    assert tracked.iterations == m


def test_gradients_that_agree_score_zero_and_that_cancel_score_one():
    assert feed(np.ones((4, 6)), []).importance()["layer"] == 0
    assert feed(np.array([[1.0, -1.0], [-2.0, 2.0]]), []).importance()["layer"] == 1


def test_no_gradient_at_all_scores_one():
    weight = torch.nn.Parameter(torch.zeros(3))
    tracked = GradientScores({"layer": weight})
    tracked.update()
    assert tracked.importance() == {"layer": 1.0}
    assert tracked.magnitude() == {"layer": 0.0}


def test_independent_steps_score_one_minus_one_over_root_m():
    g = np.random.default_rng(0).normal(size=(4000, 48))
    assert feed(g, []).importance()["layer"] == pytest.approx(1 - 1 / math.sqrt(48), abs=0.01)


def test_reset_keep_and_restore():
    a, b = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    tracked = GradientScores({"a": a, "b": b})
    a.grad, b.grad = torch.ones(2, 2), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    tracked.update()
    b.grad = -b.grad
    tracked.update()
    tracked.keep(["b"])
    assert tracked.layers == ("b",)
    assert tracked.importance() == {"b": 1.0}
    twin = GradientScores({"b": b})
    twin.restore(tracked.tensors(), tracked.iterations)
    assert (twin.importance(), twin.magnitude(), twin.iterations) == (tracked.importance(), tracked.magnitude(), 2)
    tracked.reset()
    assert (tracked.iterations, tracked.magnitude()) == (0, {"b": 0.0})


@settings(deadline=None)
@given(scores)
def test_standardise_is_eq_3(values):
    z = standardise(torch.tensor(values)).numpy()
    p = np.array(torch.tensor(values).tolist())
    if p.max() == p.min():
        assert not z.any()
    else:
        np.testing.assert_allclose(z, (p - p.mean()) / p.std(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_equal_scores_make_no_candidates_despite_rounding(value):
    assert standardise(torch.full((7,), value)).tolist() == [0.0] * 7


@settings(deadline=None)
@given(scores)
def test_first_crossing_is_eq_4(values):
    z = torch.tensor(values)
    oracle = next((t + 1 for t in range(len(z) - 1) if z[t] > 0 and z[t + 1] < 0), 0)
    assert first_crossing(z) == oracle


@settings(deadline=None)
@given(scores)
def test_best_prefix_is_the_largest_positive_sum(values):
    z = torch.tensor(values, dtype=torch.float64)
    sums = [0.0]
    for value in z.tolist():
        sums.append(sums[-1] + value)
    assert best_prefix(z) == sums.index(max(sums))


@pytest.mark.parametrize(
    ("z", "crossing", "prefix"),
    [
        ([1, -1], 1, 1),
        ([-1, 1], 0, 0),
        ([-1, -2, -3], 0, 0),
        ([0, 0, 0], 0, 0),
        ([1, 0, -1], 0, 1),
        ([-1, 2, -1], 2, 2),
        ([1, -1, 1, -1], 1, 1),
        ([2, -1, 2, -3], 1, 3),
        ([5], 0, 1),
        ([], 0, 0),
    ],
)
def test_corners(z, crossing, prefix):
    assert first_crossing(torch.tensor(z, dtype=torch.float32)) == crossing
    assert best_prefix(torch.tensor(z, dtype=torch.float32)) == prefix
